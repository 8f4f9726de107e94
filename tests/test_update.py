"""An update of a live bundle: what is measured, where training starts, what is published, what is refused."""

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mtcore import events
from mtcore.bundle import read_bundle
from mtcore.config import RunConfig, RunFile
from mtcore.contracts import TaskAdapter
from mtcore.defaults.schedulers import MixtureStage
from mtcore.errors import ConfigError, ModelError, ResumeMismatch
from mtcore.evaluation.comparison import compare
from mtcore.fitting import Fitting
from mtcore.live import read_live
from mtcore.modeling.tiny import new_decoder
from mtcore.pipeline import train
from mtcore.planning import plan_run
from mtcore.plugins import load_plugins
from mtcore.preparation import Preparer
from mtcore.registry import Entry, Plugin, Registry
from mtcore.runfolder import judgement
from mtcore.types import Piece, TaskSpec
from mtcore.updating import update

TOYS = Plugin("toys", "toys", "1.0", "loaded")
BUNDLE = "toy/seed-1/classification/bundle"


def toy(name, *, rows=192, output="binary", plugin=TOYS, **changes):
    """A task whose answer can be read off one character."""
    spec = {
        "name": name,
        "output": output,
        "input": "single-sentence",
        "fields": ("text",),
        "instruction": f"任务{name}",
        "template": "{text}\n答案：",
        "words": {} if output == "generation" else {"0": "差", "1": "好"},
        "metric": "exact-match" if output == "generation" else "accuracy",
        "max_answer_tokens": 4,
        "licence": "none",
        "source": "made up",
    }

    class Toy(TaskAdapter):
        def rows(self, split):
            source = random.Random(f"{name} {split}")
            for number in range({"train": rows, "validation": 24}.get(split, 0)):
                label, filler = source.randrange(2), "".join(source.choices("天地人和春夏秋冬", k=source.randrange(2, 12)))
                yield {"text": f"{filler}{number}{split}{'AB'[label]}", "label": str(label)}

        def fields(self, row):
            return {"text": row["text"]}

        def answer(self, row):
            return (row["label"],) if output == "generation" else row["label"]

    Toy.spec = TaskSpec(**{**spec, **changes})
    return Entry("task", f"toys/{name}", Toy, plugin)


def registry_with(*tasks):
    installed = load_plugins(environment="")
    boxed = [e for kind in ("filter", "sampler", "scheduler", "method", "launcher", "observer") for e in installed.entries(kind)]
    return Registry([*installed.plugins, TOYS], [*boxed, *tasks])


def taught_by(use="two-stage", rate=3e-3):
    length = {"two-stage": "stage2_epochs", "mixture": "epochs", "from-base": "epochs"}[use]
    return {"scheduler": {"use": use, "learning_rate": rate, "examples_per_step": 8, length: 6, "update_epochs": 1}}


def run_file(base, out, **changes):
    table = {
        "model": str(base),
        "out": str(out),
        "tasks": ["toys/*"],
        "method": {"use": "text2text", "max_length": 64, "batch_tokens": 256},
        **taught_by(),
        "reference": {"use": "single-task", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 6, "patience": 6},
        "observers": [],
        **changes,
    }
    return RunFile("toy", {"": RunConfig.model_validate_json(json.dumps(table))})


OLD, NEW = (toy("a"), toy("b")), toy("c", rows=48)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base_folder):
    """What a run over two tasks left, both of them learnt and qualified."""
    out = tmp_path_factory.mktemp("trained")
    (outcome,) = train(run_file(base_folder, out), registry_with(*OLD), Fitting(lambda e: None), out / "toy")
    assert [t.verdict.is_qualified for t in outcome.tasks] == [True, True]
    return out


@pytest.fixture
def out(trained, tmp_path):
    """A copy of it to work on."""
    return shutil.copytree(trained, tmp_path / "out")


def do(file, tasks, out, seen=None, *, bundle=BUNDLE, emit=None, **options):
    live = read_live(out / bundle)
    fitting = Fitting(emit or (seen if seen is not None else []).append)
    return update(file, registry_with(*tasks), fitting, out / "toy" / live.workplace, live, **options)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(folder):
    return load_file(folder / "model.safetensors")


def distance(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def sources(seen):
    return {e.task: e.source for e in seen if isinstance(e, events.ReferenceReady)}


def told(seen):
    return [f"{e.about}: {e.text}" for e in seen if isinstance(e, events.Warned)]


# --- what is done ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def updated(trained, base_folder, tmp_path_factory):
    """An update that went well: folder, outcome, events, and the live bundle's files from before."""
    out = shutil.copytree(trained, tmp_path_factory.mktemp("updated") / "out")
    before, seen = contents(out / BUNDLE), []
    return out, do(run_file(base_folder, out), (*OLD, NEW), out, seen), seen, before


def test_only_the_new_task_is_measured_and_one_stage_over_all_tasks_is_trained(updated):
    _, outcome, seen, _ = updated
    assert sources(seen) == {"toys/a": "reused", "toys/b": "reused", "toys/c": "measured"}
    (stage,) = outcome.groups[0].stages
    assert (stage["name"], set(stage["tasks"])) == ("update", {"toys/a", "toys/b", "toys/c"})
    assert stage["steps"] == (192 + 192 + 48) / 8
    assert min(task["draws"] for task in stage["tasks"].values()) > 0


def test_the_successor_answers_the_old_tasks_and_the_new_one_and_the_live_bundle_is_as_it_was(updated):
    out, outcome, _, before = updated
    assert contents(out / BUNDLE) == before
    assert outcome.update["is_published"]
    successor = Path(outcome.update["path"])
    assert successor.name == "bundle"
    assert not successor.with_name("candidate").exists()
    assert list(read_bundle(successor).tasks) == ["toys/a", "toys/b", "toys/c"]
    assert outcome.groups[0].bundles == {1: str(successor)}


def test_the_report_tells_of_the_update_and_of_both_models(updated):
    out, outcome, _, _ = updated
    folder = out / "toy" / read_live(out / BUNDLE).workplace
    report = json.loads((folder / "report.json").read_text())["update"]
    assert report == outcome.update
    assert (report["bundle"], report["digest"]) == (str(out / BUNDLE), read_live(out / BUNDLE).digest)
    assert (report["kept"], report["new"], report["replaced"]) == (["toys/a", "toys/b"], ["toys/c"], {})
    a, _, c = report["comparison"]["tasks"]
    assert a["old"]["verdict"] == "yes"
    assert a["interval"] is not None
    assert (c["old"], c["difference"]) == (None, None)
    assert "## Update" in (folder / "report.md").read_text()
    assert judgement(folder).tasks.keys() == {"toys/a", "toys/b", "toys/c"}


def test_the_same_call_again_finds_everything_done(updated, base_folder):
    out, first, _, _ = updated
    seen = []
    second = do(run_file(base_folder, out), (*OLD, NEW), out, seen)
    assert not any(isinstance(e, events.Stepped) for e in seen)
    assert (first.update, first.groups) == (second.update, second.groups)


class FromBase(MixtureStage):
    name = "from-base"

    def next_stage(self, profiles, done, sampler):
        stage = super().next_stage(profiles, done, sampler)
        return stage and stage.model_copy(update={"start": "base"})


@pytest.mark.parametrize("use", ["two-stage", "mixture", "from-base"])
def test_training_starts_from_the_weights_of_the_live_bundle(base_folder, out, use):
    tasks = (*OLD, NEW, Entry("scheduler", "from-base", FromBase, TOYS))
    outcome = do(run_file(base_folder, out, **taught_by(use, rate=1e-9)), tasks, out)
    live, successor = weights(out / BUNDLE), weights(Path(outcome.update["path"]))
    assert 0 < distance(live, successor) < 1e-5
    assert distance(weights(base_folder), successor) > 1e-2
    place = Path(outcome.update["path"]).parent
    asked, answered = (json.loads((place / name).read_text())["answers"] for name in ("live.json", "result.json"))
    assert {name: answered[name] for name in asked} == asked


def test_a_successor_can_be_updated_in_turn(base_folder, out):
    first = do(run_file(base_folder, out), (*OLD, NEW), out)
    seen, bundle = [], Path(first.update["path"]).relative_to(out)
    second = do(run_file(base_folder, out), (*OLD, NEW, toy("d", rows=48)), out, seen, bundle=bundle)
    assert second.update["kept"] == ["toys/a", "toys/b", "toys/c"]
    assert [task for task, source in sources(seen).items() if source == "measured"] == ["toys/d"]


def test_a_task_whose_rows_changed_is_replaced_and_measured_again(base_folder, out):
    seen = []
    outcome = do(run_file(base_folder, out), (OLD[0], toy("b", rows=160)), out, seen)
    assert outcome.update["replaced"] == {"toys/b": "its rows changed"}
    assert (outcome.update["kept"], outcome.update["new"]) == (["toys/a"], [])
    assert sources(seen) == {"toys/a": "reused", "toys/b": "measured"}
    assert any("toys/b: is replaced" in w and "its rows changed" in w for w in outcome.warnings)


def test_a_task_whose_spec_changed_is_replaced_and_the_live_bundle_is_asked_as_it_was_taught(base_folder, out):
    outcome = do(run_file(base_folder, out), (OLD[0], toy("b", instruction="另一任务")), out)
    assert outcome.update["replaced"] == {"toys/b": "its spec changed (instruction)"}
    live = {t["name"]: t["old"]["verdict"] for t in outcome.update["comparison"]["tasks"]}
    assert live == {"toys/a": "yes", "toys/b": "yes"}


def test_a_reference_that_is_gone_is_measured_again_with_a_warning(base_folder, out):
    (path,) = [p for p in (out / "references").glob("*/reference.json") if json.loads(p.read_text())["task"] == "toys/a"]
    shutil.rmtree(path.parent)
    seen = []
    outcome = do(run_file(base_folder, out), (*OLD, NEW), out, seen)
    assert sources(seen) == {"toys/a": "measured", "toys/b": "reused", "toys/c": "measured"}
    assert [w.split(":")[0] for w in told(seen) if "measured again" in w] == ["toys/a"]
    assert any(w.startswith("toys/a: no reference") for w in outcome.warnings)


def test_tasks_of_other_groups_are_left_out_and_said_to_be(base_folder, out):
    seen = []
    outcome = do(run_file(base_folder, out), (*OLD, NEW, toy("g", output="generation")), out, seen)
    assert [t.name for t in outcome.tasks] == ["toys/a", "toys/b", "toys/c"]
    assert "toys/g" not in sources(seen)
    assert any(w.startswith("toys/g: is in group generation") for w in outcome.warnings)


def test_a_plan_shows_the_stage_of_the_update(base_folder, out):
    registry = registry_with(*OLD, NEW)
    config = run_file(base_folder, out).variants[""]
    plan = plan_run(config, registry, Preparer(registry, lambda e: None, read_live(out / BUNDLE))).as_json()
    (stage,) = plan["groups"][0]["stages"]
    assert (stage["name"], stage["steps"], list(stage["tasks"])) == ("update", 54, ["toys/a", "toys/b", "toys/c"])


# --- what is published ----------------------------------------------------------------------------------------------------------------


def test_a_candidate_that_loses_a_task_is_left_unpublished(base_folder, out):
    before = contents(out / BUNDLE)
    outcome = do(run_file(base_folder, out, **taught_by(rate=1.0)), (*OLD, NEW), out)
    assert not outcome.update["is_published"]
    lost = outcome.update["comparison"]["lost"]
    assert lost
    assert set(lost) <= {"toys/a", "toys/b"}
    candidate = Path(outcome.update["path"])
    assert candidate.name == "candidate"
    assert read_bundle(candidate).tasks.keys() == {"toys/a", "toys/b", "toys/c"}
    assert not candidate.with_name("bundle").exists()
    assert contents(out / BUNDLE) == before


def test_the_gate_is_that_of_compare_on_the_two_runs(base_folder, out):
    do(run_file(base_folder, out, **taught_by(rate=1.0)), (*OLD, NEW), out)
    updated = judgement(out / "toy" / read_live(out / BUNDLE).workplace)
    comparison = compare(judgement(out / "toy"), updated).as_json()
    kept = ("name", "old", "new", "difference", "interval", "lost")
    inside = [{key: task[key] for key in kept} for task in updated.report["update"]["comparison"]["tasks"]]
    assert [{key: task[key] for key in kept} for task in comparison["tasks"]] == inside


class Stop(Exception):
    """What an interruption looks like from inside."""


@pytest.mark.parametrize("work", ["reference toys/c", "run/classification"])
def test_an_interrupted_update_goes_on_to_the_same_weights(base_folder, out, tmp_path, work):
    whole = shutil.copytree(out, tmp_path / "whole")
    file = {"scheduler": {**taught_by()["scheduler"], "update_epochs": 2}}
    expected = do(run_file(base_folder, whole, **file), (*OLD, NEW), whole)
    first = []

    def emit(event):
        first.append(event)
        if isinstance(event, events.Stepped) and any(isinstance(e, events.Evaluated) and e.work == work for e in first):
            raise Stop

    with pytest.raises(Stop):
        do(run_file(base_folder, out, **file), (*OLD, NEW), out, emit=emit)
    second = []
    outcome = do(run_file(base_folder, out, **file), (*OLD, NEW), out, second)
    (start,) = [e.done for e in second if isinstance(e, events.WorkStarted) and e.work == work]
    assert start > 0
    assert distance(weights(Path(expected.update["path"])), weights(Path(outcome.update["path"]))) == 0
    assert [t.verdict for t in outcome.tasks] == [t.verdict for t in expected.tasks]


def test_a_plain_run_of_the_same_file_and_the_update_keep_apart(base_folder, out):
    before = contents(out / "toy")
    do(run_file(base_folder, out), (*OLD, NEW), out)
    place = read_live(out / BUNDLE).workplace
    assert {name: data for name, data in contents(out / "toy").items() if name.parts[0] != place} == before
    seen = []
    train(run_file(base_folder, out), registry_with(*OLD), Fitting(seen.append), out / "toy")
    assert not any(isinstance(e, events.Stepped) for e in seen)


def test_an_update_with_another_configuration_is_refused_with_the_difference(base_folder, out):
    do(run_file(base_folder, out), (*OLD, NEW), out)
    with pytest.raises(ResumeMismatch, match=r"max_steps: was null, now 3"):
        do(run_file(base_folder, out, max_steps=3), (*OLD, NEW), out)
    outcome = do(run_file(base_folder, out, max_steps=3), (*OLD, NEW), out, restart=True)
    assert outcome.groups[0].stages[0]["steps"] == 3


# --- what is refused ------------------------------------------------------------------------------------------------------------------


def coded(entry):
    entry.cls.render = lambda self, fields, layout: (Piece("选择："), Piece(fields["text"], is_user=True), Piece("\n答案："))
    return entry


REFUSED = [
    ("a task of the bundle is missing", {}, (OLD[0], NEW), r"also answers toys/b"),
    ("nothing is new", {}, OLD, r"there is nothing to teach it"),
    ("what is new is in another group", {}, (*OLD, toy("g", output="generation")), r"nothing to teach it.* toys/g: is in group generation"),
    ("nothing is kept", {}, (toy("a", rows=80), toy("b", rows=80), NEW), r"nothing that .* answers stays as it is"),
    (
        "tasks are split",
        {},
        (OLD[0], toy("b", output="generation"), NEW),
        r"splits the tasks of .*classification: toys/a.*generation: toys/b",
    ),
    ("another method", {"method": {"use": "few-shot"}}, (*OLD, NEW), r"was made by method 'text2text'"),
    ("another length", {"method": {"use": "text2text", "max_length": 48}}, (*OLD, NEW), r"max_length: is 64, here 48"),
    ("single tasks", {"scheduler": {"use": "single-task"}}, (*OLD, NEW), r"has no shared model to update"),
    ("several seeds", {"seeds": [1, 2]}, (*OLD, NEW), r"--set 'seeds=\[1\]'"),
]


@pytest.mark.parametrize(("changes", "tasks", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_no_update_of_the_bundle_is_refused_before_anything_is_done(base_folder, out, changes, tasks, said):
    seen = []
    with pytest.raises(ConfigError, match=said):
        do(run_file(base_folder, out, **changes), tasks, out, seen)
    assert not any(isinstance(e, events.WorkStarted) for e in seen)
    assert not (out / "toy" / read_live(out / BUNDLE).workplace / "resolved.json").exists()


def test_an_update_follows_one_variant(base_folder, out):
    config = run_file(base_folder, out).variants[""]
    with pytest.raises(ConfigError, match=r"choose its variant with --variant \(x, y\)"):
        do(RunFile("toy", {"x": config, "y": config}), (*OLD, NEW), out)


def test_a_bundle_of_another_base_is_refused(base_folder, out, tmp_path):
    other = shutil.copytree(base_folder, tmp_path / "other")
    new_decoder(vocabulary=400, width=32, layers=2, heads=2, context=256, eos_id=0, seed=4).save_pretrained(other)
    with pytest.raises(ModelError, match=r"was trained from .* as it then was"):
        do(run_file(other, out), (*OLD, NEW), out)


def test_a_corrupt_bundle_is_refused(base_folder, out):
    with (out / BUNDLE / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ModelError, match=r"model\.safetensors missing or changed"):
        do(run_file(base_folder, out), (*OLD, NEW), out)


def test_a_bundle_that_is_replaced_while_new_tasks_are_measured_is_not_trained_from(base_folder, out):
    live = out / BUNDLE
    manifest = (live / "mtcore.json").read_text()

    def replace(event):
        if isinstance(event, events.ReferenceReady):
            (live / "mtcore.json").write_text(manifest + "\n")

    with pytest.raises(ModelError, match="not the bundle any more that this update began with"):
        do(run_file(base_folder, out), (*OLD, NEW), out, emit=replace)


def test_prompts_written_by_a_newer_version_of_their_code_make_another_task(base_folder, tmp_path):
    old, new = coded(toy("p", rows=48)), coded(toy("p", rows=48, plugin=Plugin("toys", "toys", "2.0", "loaded")))
    file = run_file(base_folder, tmp_path, **taught_by("mixture"))
    train(file, registry_with(toy("a", rows=48), old), Fitting(lambda e: None), tmp_path / "toy")
    outcome = do(file, (toy("a", rows=48), new), tmp_path)
    assert outcome.update["replaced"] == {"toys/p": "its prompts are written by toys 2.0, and were by toys 1.0"}


# --- the command line -----------------------------------------------------------------------------------------------------------------

PLUGIN = '''
"""The tasks of a test, as a plugin."""

import importlib.util

from mtcore.hookspecs import hookimpl

spec = importlib.util.spec_from_file_location("tasks_of_a_test", {path!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)


@hookimpl
def register_tasks():
    return [entry.cls for entry in (*tests.OLD, tests.NEW)]
'''


def installed(place):
    """A folder with the plugin in it."""
    info = place / "site/toys-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (place / "site/toys_plugin.py").write_text(PLUGIN.format(path=__file__))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtcore]\ntoys = toys_plugin\n")
    return str(place / "site")


def test_the_command_publishes_or_says_what_would_be_lost_and_fails(base_folder, out, forks):
    options = run_file(base_folder, out).variants[""]
    lines = [f"{key} = {json.dumps(getattr(options, key))}" for key in ("model", "out", "tasks")]
    for key in ("method", "scheduler", "reference"):
        table = getattr(options, key).model_dump()
        lines.append(f"{key} = {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in table.items())} }}")
    (out / "toy.toml").write_text("\n".join(lines))
    command = ("train", "toy.toml", "--update", str(out / BUNDLE))
    site = installed(out)
    refused = forks.mtcore(out, *command, "--set", "scheduler.learning_rate=1.0", PYTHONPATH=site)
    assert refused.returncode == 1, refused.stderr
    assert "lost: toys/b was qualified with 100.00, now scores" in refused.stderr
    assert "not published, because a qualified task would be lost" in refused.stdout
    other = forks.mtcore(out, *command, PYTHONPATH=site)
    assert other.returncode == 2
    assert "scheduler: was" in other.stderr
    published = forks.mtcore(out, *command, "--restart", "--json", PYTHONPATH=site)
    assert published.returncode == 0, published.stderr
    (report,) = json.loads(published.stdout)
    assert report["update"]["is_published"]
    assert Path(report["update"]["path"]).is_dir()
    planned = forks.mtcore(out, "plan", "toy.toml", "--update", str(out / BUNDLE), "--json", PYTHONPATH=site)
    assert [s["name"] for s in json.loads(planned.stdout)["groups"][0]["stages"]] == ["update"]
