"""What trackers write is what happened, step by step, once, and read back by TensorBoard itself."""

import importlib.util
import json
import math
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtcore import events
from mtcore.config import RunConfig, RunFile
from mtcore.contracts import TaskAdapter
from mtcore.defaults.trackers import Trackers
from mtcore.errors import ConfigError
from mtcore.fitting import Fitting
from mtcore.pipeline import train
from mtcore.plugins import load_plugins
from mtcore.registry import Entry, Plugin, Registry
from mtcore.types import Evaluation, ObserverUse, TaskSpec

BOX = load_plugins(environment="")


def curves(folder):
    """Every curve that TensorBoard shows of a run: name → tag → (step, value) pairs."""
    root = folder / "trackers/tensorboard"
    found = {}
    for place in sorted({path.parent for path in root.rglob("events.out.*")}):
        told = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
        scalars = {tag: [(e.step, e.value) for e in told.Scalars(tag)] for tag in told.Tags()["scalars"]}
        found[str(place.relative_to(root))] = scalars
    return found


def observe(folder, *happened):
    trackers = BOX.observer(ObserverUse(use="trackers"))
    for event in happened:
        trackers.on_event(event, folder)


def step(number, *, work="ours/classification", stage="mixture", loss=0.5):
    return events.Stepped(work, stage, number, 4, loss, 1e-3, 200, 0.5)


def evaluated(number, **scores):
    evaluation = Evaluation(stage="mixture", step=number, draws=8, epoch=1.0, scores=scores, qualified=1, average=0.25)
    return events.Evaluated("ours/classification", evaluation)


START = events.RunStarted("demo", ["ours"], [1], False)
WORK = events.WorkStarted("ours/classification", 4, 0, "abcdef0123")
END = events.RunEnded("demo", "report.md")


def test_steps_and_evaluations_are_a_curve_by_their_own_numbers(tmp_path):
    observe(tmp_path, START, WORK, step(1), step(2, loss=math.nan), evaluated(2, a=0.5, b=None), step(3), END)
    ((name, told),) = curves(tmp_path).items()
    assert name == "ours/classification/mixture-abcdef"
    assert [s for s, _ in told["loss"]] == [1, 2, 3]
    assert math.isnan(told["loss"][1][1])
    assert told["learning rate"][0] == (1, pytest.approx(1e-3))
    assert told["tokens per second"] == [(1, 400), (2, 400), (3, 400)]
    assert told["score/a"] == [(2, 0.5)]
    assert told["average"] == [(2, 0.25)]
    assert told["qualified"] == [(2, 1)]
    assert "score/b" not in told


def test_numbers_can_be_read_while_the_run_goes_on(tmp_path):
    trackers = Trackers(Trackers.Config())
    for event in (START, WORK, step(1)):
        trackers.on_event(event, tmp_path)
    assert curves(tmp_path)["ours/classification/mixture-abcdef"]["loss"] == [(1, 0.5)]


def test_stages_and_works_of_one_name_do_not_share_a_curve(tmp_path):
    reference = "reference clue/tnews"
    observe(
        tmp_path,
        START,
        WORK,
        step(1, stage="high-resource"),
        step(1),
        events.WorkStarted(reference, 1, 0, "seed 1"),
        step(1, work=reference, stage="alone"),
        events.WorkStarted(reference, 1, 0, "other"),
        step(1, work=reference, stage="alone"),
        events.WorkStarted("../../outside", 1, 0, ""),
        step(1, work="../../outside"),
        END,
    )
    assert set(curves(tmp_path)) == {
        "ours/classification/high-resource-abcdef",
        "ours/classification/mixture-abcdef",
        "reference-clue/tnews/alone-seed-1",
        "reference-clue/tnews/alone-other",
        "-/-/outside/mixture",
    }


def test_a_verdict_stands_beside_the_references_it_was_measured_against(tmp_path):
    found = ((0.75, "a", 2), (0.25, "b", 1), (0.5, "a", 1))  # measured at once, they become ready in any order
    ready = [events.ReferenceReady(task, score, 1, "low", False, "reused", seed) for score, task, seed in found]
    observe(tmp_path, START, *ready, events.VariantJudged("ours", 0.5, 1, 2), events.VariantJudged("plain", 0.25, 0, 2), END)
    told = curves(tmp_path)
    assert told["verdict/ours"] == {
        "reference/a": [(0, 0.5), (1, 0.75)],
        "reference/b": [(0, 0.25)],
        "average": [(0, 0.5)],
        "qualified": [(0, 1)],
        "tasks": [(0, 2)],
    }
    assert set(told["verdict/plain"]) == {"average", "qualified", "tasks"}


class Toy(TaskAdapter):
    spec = TaskSpec(
        name="a",
        output="binary",
        input="single-sentence",
        fields=("text",),
        instruction="judge",
        template="{text}\n",
        words={"0": "no", "1": "yes"},
        metric="accuracy",
        licence="none",
        source="made up",
    )

    def rows(self, split):
        return [{"text": f"{'AB'[i % 2]} {split} {i}", "label": str(i % 2)} for i in range({"train": 32, "validation": 16}.get(split, 0))]

    def fields(self, row):
        return {"text": row["text"]}

    def answer(self, row):
        return row["label"]


def test_a_run_that_was_interrupted_says_every_step_once(base_folder, tmp_path):
    toys = Plugin("toys", "toys", "1.0", "loaded")
    boxed = [e for kind in ("filter", "sampler", "scheduler", "method", "launcher", "observer") for e in BOX.entries(kind)]
    registry = Registry([*BOX.plugins, toys], [*boxed, Entry("task", "toys/a", Toy, toys)])
    table = {
        "model": str(base_folder),
        "out": str(tmp_path),
        "tasks": ["toys/*"],
        "method": {"use": "text2text", "max_length": 64, "batch_tokens": 256},
        "scheduler": {
            "use": "mixture",
            "learning_rate": 3e-3,
            "examples_per_step": 8,
            "epochs": 2,
            "sampler": {"use": "instance-balanced"},
        },
        "reference": {"use": "single-task", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 1},
    }
    file, folder = RunFile("toy", {"": RunConfig.model_validate_json(json.dumps(table))}), tmp_path / "toy"

    def call(*, breaks_off):
        trackers = registry.observer(ObserverUse(use="trackers"))

        def emit(event):
            trackers.on_event(event, folder)
            if breaks_off and isinstance(event, events.Stepped) and (event.work, event.step) == ("run/classification", 7):
                raise KeyboardInterrupt

        train(file, registry, Fitting(emit), folder)

    with pytest.raises(KeyboardInterrupt):
        call(breaks_off=True)
    began = int(time.time())
    while int(time.time()) == began:  # TensorBoard orders its files by the second
        time.sleep(0.05)
    call(breaks_off=False)
    told = curves(folder)
    (group,) = [name for name in told if name.startswith("run/")]
    (reference,) = [name for name in told if name.startswith("reference-toys/a/")]
    assert [s for s, _ in told[group]["loss"]] == list(range(1, 9))
    assert [s for s, _ in told[group]["score/toys/a"]] == [4, 8]
    assert [s for s, _ in told[reference]["loss"]] == list(range(1, 5))
    assert [s for s, _ in told["verdict/toy"]["reference/toys/a"]] == [0]


def test_a_service_whose_package_is_missing_is_refused_with_the_command_that_installs_it():
    missing = [name for name in ("wandb", "mlflow") if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all services are installed here")
    with pytest.raises(ConfigError, match=f"pip install {missing[0]}.*installed of those that are asked for: tensorboard"):
        BOX.observer(ObserverUse(use="trackers", to=["tensorboard", missing[0]]))


@pytest.mark.parametrize("to", [["tensorbord"], []])
def test_a_service_that_is_none_is_refused(to):
    with pytest.raises(ConfigError, match="observer 'trackers': to"):
        BOX.observer(ObserverUse(use="trackers", to=to))


def test_a_service_that_fails_is_told_once_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / "trackers").write_text("in the way")
    observe(tmp_path, START, WORK, step(1), step(2), step(1, stage="another"), END)
    assert capsys.readouterr().err.count("tracker tensorboard failed and is left out from here on") == 1


def test_works_that_go_on_at_once_are_a_curve_each_in_one_file_each(tmp_path):
    works = ["reference a", "reference b"]
    begun = [events.WorkStarted(work, 3, 0) for work in works]
    steps = [step(n, work=work, stage="alone") for n in (1, 2, 3) for work in works]
    observe(tmp_path, START, *begun, *steps, *[events.StageEnded(work, "alone", 3, "complete") for work in works], END)
    told = curves(tmp_path)
    assert [[s for s, _ in told[f"reference-{name}/alone"]["loss"]] for name in "ab"] == [[1, 2, 3], [1, 2, 3]]
    assert len(list(tmp_path.rglob("events.out.*"))) == 2


def test_a_service_that_holds_one_curve_is_given_the_others_when_that_one_ends(tmp_path):
    written = []

    class Single:
        """A service as wandb is one, as a list."""

        def __init__(self, curve):
            self.curve = curve
            written.append(("start", curve))

        def log(self, values, *, step):
            written.append((self.curve, step))

        def finish(self):
            written.append(("finish", self.curve))

    class Listed(Trackers):
        def _start(self, service, curve, step, folder):
            self._open[service, curve] = Single(curve)

    trackers = Listed(Trackers.Config.model_construct(to=()))
    trackers.config = Trackers.Config.model_construct(to=("wandb",))
    a, b, c = "a/alone", "b/alone", "c/alone"
    happened = [step(1, work="a", stage="alone"), step(1, work="b", stage="alone"), step(1, work="c", stage="alone")]
    happened += [step(2, work="b", stage="alone"), events.StageEnded("b", "alone", 2, "complete"), step(2, work="a", stage="alone")]
    happened += [events.StageEnded("a", "alone", 2, "complete"), step(2, work="c", stage="alone"), END]
    for event in happened:
        trackers.on_event(event, tmp_path)
    assert [at for what, at in written if what == "start"] == [at for what, at in written if what == "finish"] == [a, b, c]
    assert [line for line in written if line[0] in (a, b, c)] == [(name, n) for name in (a, b, c) for n in (1, 2)]


def test_steps_that_are_taken_back_are_forgotten(tmp_path):
    back = events.RolledBack("ours/classification", "mixture", 3, 1, "steps were skipped")
    observe(tmp_path, START, WORK, step(1), step(2), step(3, loss=9.0), back, step(2, loss=0.25), step(3), END)
    told = curves(tmp_path)["ours/classification/mixture-abcdef"]
    assert told["loss"] == [(1, 0.5), (2, 0.25), (3, 0.5)]


def test_utilisation_is_told_where_the_peak_is_known(tmp_path):
    measured = events.MachineMeasured(1e9, "a clock", 2, "ours/classification")
    counted = events.Stepped("ours/classification", "mixture", 1, 4, 0.5, 1e-3, 200, 0.5, flops=4e8)
    skipped = events.StepSkipped("ours/classification", "mixture", 2, "its loss is nan", math.nan, [("a", 1)])
    observe(tmp_path, START, WORK, measured, counted, skipped, END)
    told = curves(tmp_path)["ours/classification/mixture-abcdef"]
    assert told["utilisation"] == [(1, pytest.approx(0.4))]
    assert told["skipped"] == [(2, 1)]
