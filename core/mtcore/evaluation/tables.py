"""Reports as tables: for a terminal, and as Markdown pages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mtcore.evaluation.comparison import verdict_word
from mtcore.evaluation.report import VariantOutcome

Report = Mapping[str, Any]
"""A variant's report as JSON."""


def task_table(outcome: VariantOutcome) -> list[list[str]]:
    """Header and one line a task."""
    lines = [
        [
            "group",
            "task",
            "metric",
            "reference",
            "score",
            "ratio",
            "qualified",
            "P",
            "95 % of ratio",
            "majority",
            "bag of words",
            "saturates",
            "resource",
        ]
    ]
    for group in outcome.groups:
        for task in group.tasks:
            v = task.verdict
            epochs = "/".join("–" if e is None else str(e) for e in task.saturation_epoch)
            lines.append(
                [
                    group.name,
                    task.name,
                    task.metric,
                    percent(v.reference) if v else "–",
                    percent(v.score) if v else "failed",
                    f"{v.ratio:.3f}" if v and v.ratio is not None else "–",
                    verdict_word(task.as_json()),
                    f"{v.p_qualified:.2f}" if v else "–",
                    f"{v.interval[0]:.3f}–{v.interval[1]:.3f}" if v and v.interval else "–",
                    percent(task.floors["majority"]),
                    percent(task.floors["bag-of-words"]),
                    f"epoch {epochs}",
                    task.resource + (" (assumed)" if task.resource_is_assumed else ""),
                ]
            )
    return lines


def comparison_table(reports: Sequence[Report]) -> list[list[str]]:
    """The paper's table: a line a variant, a column a task; * marks what qualifies."""
    names = list(dict.fromkeys(task["name"] for report in reports for task in _tasks(report)))
    lines = [["variant", *names, "average", "qualified", "overhead", "deployable"]]
    for report in reports:
        by_name = {task["name"]: task for task in _tasks(report)}
        totals = [
            percent(report["average"]),
            str(report["qualified"]),
            percent(report["overhead"]),
            percent(report["deployment"]["overhead"]),
        ]
        lines.append([report["variant"] or "–"] + [_score_cell(by_name.get(name)) for name in names] + totals)
    return lines


def change_table(comparison: Report) -> list[list[str]]:
    """Two models side by side (`Comparison.as_json`): a line a task."""
    lines = [["task", "old", "new", "difference", "95 % of difference", "was qualified", "is qualified", "notes"]]
    for task in comparison["tasks"]:
        sides = [task["old"], task["new"]]
        lines.append(
            [
                task["name"],
                *[percent(side["score"]) if side else "–" for side in sides],
                "–" if task["difference"] is None else f"{100 * task['difference']:+.2f}",
                " to ".join(f"{100 * end:+.2f}" for end in task["interval"]) if task["interval"] else "–",
                *[side["verdict"] if side else "–" for side in sides],
                "; ".join((["lost"] if task["lost"] else []) + task["notes"]),
            ]
        )
    return lines


def sides_table(comparison: Report) -> list[list[str]]:
    """What stands above the tasks of two models: a line a model."""
    lines = [["", "average", "of shared tasks", "qualified", "overhead", "deployable", "FLOP", "wall time"]]
    for side, s in (("old", comparison["old"]), ("new", comparison["new"])):
        shares = [percent(s[key]) for key in ("average", "average_of_shared")]
        counts = [f"{s['qualified']} of {s['tasks']}", percent(s["overhead"]), percent(s["deployable"])]
        lines.append([side, *shares, *counts, flop(s["cost"]["flops"]), f"{s['cost']['seconds']:,.0f} s"])
    return lines


def cost_table(outcome: VariantOutcome) -> list[list[str]]:
    is_shared = any(c.saved for c in outcome.costs.values())
    shared = ["shared"] if is_shared else []
    lines = [["phase", "steps", "examples", "tokens", "padding", *shared, "FLOP", "wall time", "tokens/s", "MFU"]]
    for phase, c in outcome.costs.items():
        counts = [f"{c.steps:,}", f"{c.examples:,}", f"{c.tokens:,}", f"{c.padding / max(1, c.padding + c.tokens):.1%}"]
        counts += [f"{c.saved / max(1, c.saved + c.tokens):.1%}"] if is_shared else []
        lines.append([phase, *counts, flop(c.flops), f"{c.seconds:,.0f} s", speed(c.tokens_per_second), utilisation(c.utilisation)])
    return lines


def cost_note(report: Report) -> str:
    """What the words of a cost table mean."""
    costs = [cost for cost in report["cost"].values() if isinstance(cost, Mapping)]
    peaks = list(dict.fromkeys(peak for cost in costs for peak in cost["peaks"]))
    told = ["Tokens are useful ones, without padding; wall time is that of every piece of work, added up where several went on at once."]
    told += (
        ["Shared: tokens that were saved by encoding a document once for several examples."] if any(cost["saved"] for cost in costs) else []
    )
    told += [f"MFU: the FLOP that the model demands over the peak of its devices ({'; '.join(peaks)})."] if peaks else []
    return " ".join(told)


def markdown(outcome: VariantOutcome) -> str:
    """The report of one variant as a plain Markdown page."""
    deployment = outcome.deployment
    shared = "; ".join(f"{group} for {', '.join(tasks)}" for group, tasks in deployment.shared.items()) or "none"
    parts = [
        f"# {outcome.run}{f' · {outcome.variant}' if outcome.variant else ''}",
        f"Model {outcome.model}, method {outcome.method}, seeds {', '.join(map(str, outcome.seeds))}. Scores are × 100.",
        "## Verdicts",
        markdown_table(task_table(outcome)),
        *[
            f"Group **{g.name}**: {g.reason}. Average {percent(g.average)}, {len(g.qualified)} of {len(g.tasks)} qualified."
            for g in outcome.groups
        ],
        f"Average {percent(outcome.average)}; qualified {sum(len(g.qualified) for g in outcome.groups)} of {len(outcome.tasks)}; "
        f"overhead {percent(outcome.overhead)} % (the paper's: 1 over the most qualified tasks of one model), "
        f"deployable {percent(deployment.overhead)} %.",
        *(_update(outcome.update) if outcome.update else []),
        "## Deployment",
        f"Shared models: {shared}.\n\nTasks that keep a model of their own: {', '.join(deployment.single) or 'none'}."
        + (f"\n\nOf these, not even their own model is ready: {', '.join(deployment.not_ready)}." if deployment.not_ready else ""),
        "## Stages",
        markdown_table(_stage_table(outcome)) if any(g.stages for g in outcome.groups) else "Nothing was trained.",
        "## Cost",
        markdown_table(cost_table(outcome)),
        f"References reused from earlier work: {outcome.reference_reused}. {cost_note(outcome.as_json())}",
        "## Warnings",
        "\n".join(f"- {on_one_line(' '.join(w.split()))}" for w in [*outcome.failures, *gathered(outcome)]) or "None.",
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in outcome.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def comparison_markdown(run: str, reports: Sequence[Report]) -> str:
    """All variants of a run side by side."""
    costs = [["variant", "steps", "tokens", "FLOP", "wall time", "tokens/s", "MFU"]]
    for report in reports:
        c = report["cost"]["total shared"]
        counts = [f"{c['steps']:,}", f"{c['tokens']:,}", flop(c["flops"]), f"{c['seconds']:,.0f} s"]
        # reports of earlier versions know no rates
        costs.append([report["variant"] or "–", *counts, speed(c.get("tokens_per_second")), utilisation(c.get("utilisation"))])
    chance = sorted({task["name"] for report in reports for task in _tasks(report) if task["at_chance"]})
    note = f"At chance alone, so nothing can be qualified against them: {', '.join(chance)}.\n\n" if chance else ""
    return (
        f"# {run}: variants\n\nScores × 100; * marks tasks that reach 99 % of their own single-task model.\n\n"
        f"{markdown_table(comparison_table(reports))}\n\n{note}## Cost of the shared models, evaluation included\n\n{markdown_table(costs)}\n"
    )


def comparison(run: str, reports: Sequence[Report]) -> dict[str, Any]:
    """The same for programs."""
    kept = ("variant", "model", "method", "average", "qualified", "overhead", "deployment")
    return {"run": run, "variants": [{k: r[k] for k in kept} | {"scores": {t["name"]: t["score"] for t in _tasks(r)}} for r in reports]}


def gathered(outcome: VariantOutcome) -> list[str]:
    """The warnings, with the tasks of which the same is said on one line."""
    tasks = {t.name for t in outcome.tasks}
    said: dict[str, list[str]] = {}
    for warning in outcome.warnings:
        about, _, text = warning.partition(": ")
        said.setdefault(text if about in tasks else warning, []).append(about)
    return [f"{', '.join(names)}: {text}" if names[0] in tasks else text for text, names in said.items()]


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [[on_one_line(text) for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def on_one_line(text: str) -> str:
    """A text as Markdown shows it unchanged: on one line, and nothing in it ends a cell or is taken for a link, code or HTML."""
    return " ".join(re.sub(r"([\\|`\[<&])", r"\\\1", text).splitlines())


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def speed(tokens_per_second: float | None) -> str:
    return "–" if tokens_per_second is None else f"{tokens_per_second:,.0f}"


def utilisation(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def flop(value: float) -> str:
    """Floating-point operations with a unit: 3.1 T."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= 0.9995 * size:  # what three digits round up to the next unit
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def span(seconds: float) -> str:
    """A length of time in the unit that fits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _tasks(report: Report) -> list[Report]:
    return [task for group in report["groups"] for task in group["tasks"]]


def _score_cell(task: Report | None) -> str:
    if task is None:
        return "–"
    return "failed" if task["failure"] else percent(task["score"]) + ("*" if task["qualified"] else "")


def _update(update: Report) -> list[str]:
    """What became of an update."""
    taught = [*update["new"], *(f"{name} ({why})" for name, why in update["replaced"].items())]
    lost = ", ".join(update["comparison"]["lost"])
    outcome = "The candidate is published" if update["is_published"] else f"The candidate is not published, because {lost} would be lost"
    return [
        "## Update",
        f"The live bundle {update['bundle']} (digest {update['digest'][:12]}) was taught {', '.join(taught)} beside what it answers already. "
        f"{outcome}: {update['path']}.",
        markdown_table(change_table(update["comparison"])),
    ]


def _stage_table(outcome: VariantOutcome) -> list[list[str]]:
    lines = [["group", "seed", "stage", "ended", "steps", "task", "share", "draws", "passes"]]
    for group in outcome.groups:
        for stage in group.stages:
            for name, task in stage["tasks"].items():
                numbers = [f"{task['share']:.4f}", f"{task['draws']:,}", f"{task['passes']:.2f}"]
                lines.append([group.name, str(stage["seed"]), stage["name"], stage["ended"], f"{stage['steps']:,}", name, *numbers])
    return lines
