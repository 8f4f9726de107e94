"""Model cards: the README of a bundle. What it answers, how well, from which data, and what it must not be used for."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from mtcore.bundle import BundleManifest, read_bundle, write_card
from mtcore.data.text import render
from mtcore.evaluation.qualify import BAR
from mtcore.evaluation.tables import markdown_table, on_one_line, percent
from mtcore.evaluation.views import Report, by_verdict, count, status, warning_lines
from mtcore.types import TaskSpec

SHOWN_WORDS = 6
LICENCES = (
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "unlicense", "pddl", "odbl", "gpl-3.0"),
    *("cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
)
"""Identifiers that the Hugging Face Hub knows, as far as they are used for data."""


def leave_cards(report: Report) -> None:
    """Put a card into every bundle of a variant that is still there."""
    for group in report["groups"]:
        for bundle in group["bundles"]:
            folder = Path(bundle["folder"])
            if folder.is_dir():
                write_card(folder, model_card(report, group, bundle["seed"], read_bundle(folder, verify=False)))


def model_card(report: Report, group: Report, seed: int, manifest: BundleManifest) -> str:
    """The card of one group's model under one seed. All text that is not ours stands there as text."""
    tasks = by_verdict(group["tasks"])
    title = " · ".join(on_one_line(part) for part in (report["run"], report["variant"], group["name"]) if part)
    has_weights = any(name.endswith(".safetensors") for name in manifest.files)
    parts = [
        f"---\n{_front_matter(report, tasks, manifest, has_weights=has_weights)}\n---",
        f"# {title}",
        _summary(report, tasks, manifest, has_weights=has_weights),
        "## Tasks",
        markdown_table([["task", "question", "fields", "answers", "metric"], *(_task(name, t.spec) for name, t in manifest.tasks.items())]),
        "## Scores",
        f"Scores are × 100, {_judged_on(tasks)}. The reference is the task's own single-task model. A task can go live at {100 * BAR:.0f} % of it. "
        "P is the probability of that, and the interval that of the ratio, by a paired bootstrap. Majority and words (a linear model on "
        "character n-grams) are what can be had without a language model."
        + (f" Scores are means over seeds {', '.join(map(str, report['seeds']))}." if len(report["seeds"]) > 1 else ""),
        markdown_table([["task", "verdict", "score", "reference", "ratio", "95 %", "P", "majority", "words"], *map(_score, tasks)]),
        "## Training",
        *_training(report, group, seed, manifest),
        "## Data",
        markdown_table([["task", "licence", "source", "train rows", "rows that decide", "plugin"], *map(_data, tasks)]),
        "The licence of the base model holds beside those of the data.",
        "## Known limits",
        "\n".join(_limits(report, group, tasks)) or "None were found beside the verdicts.",
        "## Use",
        _use(next((t["name"] for t in tasks if t["qualified"]), tasks[0]["name"]), manifest, has_weights=has_weights),
        "## Versions",
        on_one_line(", ".join(f"{name} {version}" for name, version in report["versions"].items())),
    ]
    return "\n\n".join(parts) + "\n"


def licence_of(report: Report, tasks: Sequence[Report]) -> str:
    """The one licence of all tasks' data, if the Hub knows it and the base is not somebody else's; `other` in all other cases."""
    named = {re.sub(r"[\s_]+", "-", task["data"]["licence"].strip().lower()) for task in tasks}
    return named.pop() if len(named) == 1 and named <= set(LICENCES) and report["base"]["revision"] is None else "other"


def _front_matter(report: Report, tasks: Sequence[Report], manifest: BundleManifest, *, has_weights: bool) -> str:
    from huggingface_hub import ModelCardData

    licence = licence_of(report, tasks)
    return ModelCardData(
        license=licence,
        license_name="licences-of-base-and-data" if licence == "other" else None,
        library_name="transformers" if has_weights else "mtcore",
        pipeline_tag="text-generation",
        base_model=report["model"] if report["base"]["revision"] else None,
        tags=["mtcore", "multi-task", manifest.method],
    ).to_yaml()


def _summary(report: Report, tasks: Sequence[Report], manifest: BundleManifest, *, has_weights: bool) -> str:
    """What it is, and, before anything else, what it must not be used for."""
    base = on_one_line(report["model"]) + (f" at revision {report['base']['revision']}" if report["base"]["revision"] else "")
    live = sum(task["qualified"] for task in tasks)
    what = "fine-tuned to answer" if has_weights else f"untrained, and asked by the method {manifest.method}, for"
    text = f"{base}, {what} {count(len(tasks), 'text task')} with one model; {live or 'none'} of them {'reaches' if live < 2 else 'reach'} "
    text += f"{100 * BAR:.0f} % of what a model of its own scores."
    kept = [f"{on_one_line(task['name'])} ({status(task).word})" for task in tasks if not task["qualified"]]
    return text + (f"\n\n**Not for {', '.join(kept)}.** These have not qualified in this model." if kept else "")


def _task(name: str, spec: TaskSpec) -> list[str]:
    words = [word if word == label else f"{label}: {word}" for label, word in spec.words.items()]
    answers = ", ".join(words[:SHOWN_WORDS]) + (f" and {len(words) - SHOWN_WORDS} more" if len(words) > SHOWN_WORDS else "")
    if spec.number_range is not None:
        answers = f"{spec.number_range.low:g} to {spec.number_range.high:g} by {spec.number_range.step:g}"
    return [name, spec.instruction, ", ".join(spec.fields), f"{spec.output}{': ' if answers else ''}{answers}", spec.metric]


def _score(task: Report) -> list[str]:
    interval = "–" if task["interval"] is None else f"{task['interval'][0]:.3f}–{task['interval'][1]:.3f}"
    ratio, p = ("–" if value is None else format(value, form) for value, form in ((task["ratio"], ".3f"), (task["p_qualified"], ".2f")))
    scores, floors = ([percent(value) for value in values] for values in ((task["score"], task["reference"]), task["floors"].values()))
    return [task["name"], status(task).word, *scores, ratio, interval, p, *floors]


def _data(task: Report) -> list[str]:
    data = task["data"]
    rows = [f"{data['train_rows']:,}", f"{data['judged_rows']:,} {data['judged_on']}"]
    return [task["name"], data["licence"], data["source"], *rows, data["plugin"]]


def _limits(report: Report, group: Report, tasks: Sequence[Report]) -> list[str]:
    """The warnings about these tasks and their group, and about none in particular."""
    own = {task["name"] for task in tasks}
    others = tuple(f"group {other['name']}: " for other in report["groups"] if other["name"] != group["name"])
    lines = [([name for name in names if name in own], names, text) for names, text in warning_lines(report)]
    return [
        f"- {on_one_line(text)}" + (f" ({on_one_line(', '.join(about))})" if about else "")
        for about, names, text in lines
        if about or not (names or text.startswith(others))
    ]


def _judged_on(tasks: Sequence[Report]) -> str:
    splits = {task["data"]["judged_on"] for task in tasks}
    if splits == {"test"}:
        return "on test rows"
    where = "on validation rows" if splits == {"validation"} else "on test rows or, where a task has none, on validation rows"
    return f"{where}, by which the checkpoint was chosen too"


def _training(report: Report, group: Report, seed: int, manifest: BundleManifest) -> list[str]:
    """How the model came about: where it started, what it drew in every stage, and at what rate."""
    stages = [stage for stage in group["stages"] if stage["seed"] == seed]
    start = f"Base {on_one_line(report['model'])} (digest `{manifest.base_digest[:12]}`), method {manifest.method}, seed {seed}"
    if report["update"]:
        start += f", going on from the bundle with digest `{report['update']['digest'][:12]}`"
    options = ", ".join(f"{name} {value}" for name, value in manifest.options.items() if isinstance(value, (str, int, float)))
    told = [f"{start}. Why its tasks share a model: {on_one_line(group['reason'])}.", f"Options: {on_one_line(options)}."]
    if not stages:
        return [*told, "Nothing was trained in stages."]
    lines = [["stage", "steps", "examples a step", "rate", "task", "share", "draws", "passes"]]
    for stage in stages:
        recipe = [stage["name"], f"{stage['steps']:,}", str(stage["examples_per_step"]), f"{stage['learning_rate']:g}"]
        for name, task in stage["tasks"].items():
            lines.append([*recipe, name, f"{task['share']:.4f}", f"{task['draws']:,}", f"{task['passes']:.2f}"])
    return [*told, markdown_table(lines)]


def _use(name: str, manifest: BundleManifest, *, has_weights: bool) -> str:
    """Commands and code that ask the model one of its tasks."""
    spec, code = manifest.tasks[name].spec, manifest.tasks[name].code
    request = json.dumps(dict.fromkeys(spec.fields, "…"), ensure_ascii=False)
    command = f"echo {shlex.quote(request)} | mtcore predict . --task {shlex.quote(name)}"
    text = "With mtcore, one JSON object of fields a line; a label comes from the task's own set, with probabilities:\n\n"
    text += _fenced("bash", command)
    if code or not has_weights:
        return text
    pieces = render(spec, {field: f"<{field}>" for field in spec.fields}, manifest.options.get("layout", "task-first"))
    snippet = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
prompt = {"".join(piece.text for piece in pieces)!r}
ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
answer = model.generate(**ids, max_new_tokens={spec.max_answer_tokens}, do_sample=False)
print(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
"""
    text += "\n\nWith transformers alone; a text is then not kept from being read as control tokens, nor an answer within its set:\n\n"
    return text + _fenced("python", snippet.strip())


def _fenced(language: str, code: str) -> str:
    """A block of code that nothing in it ends."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
