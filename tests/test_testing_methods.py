"""Each check of a method finds its own fault and no other; here on a method without a model, as somebody else might write one."""

import json
import random
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtcore.bundle import BundledTask, BundleManifest, read_bundle, write_bundle
from mtcore.contracts import Method, Predictor
from mtcore.data.rows import text_problem
from mtcore.errors import ConfigError, UnknownName
from mtcore.testing import method_checks
from mtcore.types import Answer, Fitted, Prediction, Prepared, Preview, Request, TaskError, TaskSpec


class RulePredictor(Predictor):
    """Answers from a checksum of the text: sound, for others to spoil."""

    def __init__(self, tasks: Mapping[str, TaskSpec]) -> None:
        self._tasks = tasks

    @property
    def tasks(self) -> Mapping[str, TaskSpec]:
        return self._tasks

    def prepare(self, request: Request) -> Prepared:
        for task in request.tasks:
            if task not in self._tasks:
                raise UnknownName(f"no task {task}")
        if problem := text_problem(request.fields.get("text")):
            raise ConfigError(f"text {problem}")
        return Prepared(request, cost=1, flags={}, payload=request.fields["text"])

    def predict(self, prepared: Sequence[Prepared]) -> list[dict[str, Prediction | TaskError]]:
        return [{task: self.answer(task, p.payload, len(prepared)) for task in p.request.tasks} for p in prepared]

    def answer(self, task: str, text: str, batch: int) -> Prediction | TaskError:
        spec, number = self._tasks[task], zlib.crc32(text.encode())
        answer: Answer = ("word",)
        if spec.number_range is not None:
            answer = spec.number_range.numbers()[number % len(spec.number_range.numbers())]
        elif spec.output == "multi-label":
            answer = spec.labels[number % len(spec.labels) :]
        elif spec.words:
            weights = [1 + zlib.crc32(f"{text} {label}".encode()) % 100 for label in spec.labels]
            shares = {label: weight / sum(weights) for label, weight in zip(spec.labels, weights, strict=True)}
            return Prediction(task, max(shares, key=shares.__getitem__), shares)
        return Prediction(task, answer)


class Rule(Method):
    """Learns nothing: sound, for others to spoil."""

    name = "rule"
    predictor: type[RulePredictor] = RulePredictor

    def fit(self, group, stages, workspace, update=None):
        tasks = {name: BundledTask(spec=workspace.tasks[name].spec) for name in group.tasks}
        manifest = BundleManifest(method=self.name, options={}, tasks=tasks, base=workspace.base.name, base_digest=workspace.base.digest)
        write_bundle(workspace.bundle, manifest, lambda folder: None)
        return Fitted(bundle=str(workspace.bundle), done=(), chosen=None)

    def load(self, bundle, renders):
        return self.predictor({name: task.spec for name, task in read_bundle(bundle).tasks.items()})


class LeavesNothing(Rule):
    def fit(self, group, stages, workspace, update=None):
        return Fitted(bundle=str(workspace.folder), done=(), chosen=None)


class DoesNotLoad(Rule):
    def load(self, bundle, renders):
        return json.loads((bundle / "weights.json").read_text())


class Foresees(Rule):
    def preview(self, tasks, base):
        return {"toys/other": Preview(mean_tokens=1.0, truncated=0.0)}


class Shrugs(RulePredictor):
    def answer(self, task, text, batch):
        return TaskError(task, "no idea") if task == "toys/regression" else super().answer(task, text, batch)


class Mumbles(RulePredictor):
    def answer(self, task, text, batch):
        return Prediction(task, "1.5") if task == "toys/regression" else super().answer(task, text, batch)


class Overrates(RulePredictor):
    def answer(self, task, text, batch):
        answer = super().answer(task, text, batch)
        return Prediction(task, answer.answer, {k: 2 * v for k, v in answer.probabilities.items()}) if answer.probabilities else answer


class Contradicts(RulePredictor):
    def answer(self, task, text, batch):
        answer = super().answer(task, text, batch)
        least = min(answer.probabilities, key=answer.probabilities.__getitem__) if answer.probabilities else ""
        return Prediction(task, least, answer.probabilities) if least else answer


class Moody(RulePredictor):
    def __init__(self, tasks):
        super().__init__(tasks)
        self.mood = random.SystemRandom().random()

    def answer(self, task, text, batch):
        return Prediction(task, (str(self.mood),)) if task == "toys/generation" else super().answer(task, text, batch)


class Crowded(RulePredictor):
    def answer(self, task, text, batch):
        return Prediction(task, (f"one of {batch}",)) if task == "toys/generation" else super().answer(task, text, batch)


class Guesses(RulePredictor):
    def prepare(self, request):
        known = tuple(task if task in self._tasks else next(iter(self._tasks)) for task in request.tasks)
        return super().prepare(Request(request.fields, known))


class FillsIn(RulePredictor):
    def prepare(self, request):
        return super().prepare(Request({"text": "nothing", **request.fields}, request.tasks))


class Narrow(RulePredictor):
    def answer(self, task, text, batch):
        text.encode("gbk")
        return super().answer(task, text, batch)


class Credulous(RulePredictor):
    def prepare(self, request):
        text = request.fields.get("text")
        return super().prepare(Request({"text": text.replace("\0", " ")}, request.tasks) if text else request)


class Spills(RulePredictor):
    """Answers all requests of a batch like its oddest."""

    def predict(self, prepared):
        answers = super().predict(prepared)
        if any("<script>" in p.payload for p in prepared):
            return [{task: TaskError(task, "bad batch") for task in answer} for answer in answers]
        return answers


def with_(predictor: type[RulePredictor]) -> type[Method]:
    return type(predictor.__name__, (Rule,), {"predictor": predictor})


FAULTS: list[tuple[type[Method], str]] = [
    (LeavesNothing, "leaves-a-bundle"),
    (DoesNotLoad, "leaves-a-bundle"),
    (Foresees, "previews-its-tasks"),
    (with_(Shrugs), "answers-every-task"),
    (with_(Mumbles), "answers-are-valid"),
    (with_(Overrates), "probabilities-sum-to-one"),
    (with_(Contradicts), "probabilities-sum-to-one"),
    (with_(Moody), "answers-repeat"),
    (with_(Crowded), "answers-alone-as-in-a-batch"),
    (with_(Guesses), "refuses-unknown-tasks"),
    (with_(FillsIn), "refuses-missing-fields"),
    (with_(Narrow), "survives-odd-requests"),
    (with_(Credulous), "survives-odd-requests"),
    (with_(Spills), "survives-odd-requests"),
]


def failed(cls: type[Method], **arguments: Any) -> list[str]:
    # a class that is made on the spot has no name to be pickled by
    return [c.name for c in method_checks(cls, module=None, **arguments) if c.name != "picklable" and c.outcome().status == "failed"]


@pytest.mark.parametrize(("cls", "name"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault_of_a_method_is_found_by_its_check_alone(cls: type[Method], name: str) -> None:
    assert failed(cls) == [name]


def test_a_sound_method_passes_every_check() -> None:
    outcomes = {check.name: check.outcome().status for check in method_checks(Rule, module=None)}
    assert {name for name, status in outcomes.items() if status != "passed"} == {"import-light", "import-fast"}


def test_a_method_is_tried_on_the_output_kinds_that_it_can_learn() -> None:
    class Labels(Rule):
        def fit(self, group, stages, workspace, update=None):
            if strange := [name for name in group.tasks if not workspace.tasks[name].spec.words]:
                raise ConfigError(f"{strange[0]} has no labels")
            return super().fit(group, stages, workspace, update)

    assert failed(Labels) == ["leaves-a-bundle"]
    assert failed(Labels, outputs=("binary", "multi-class", "ordinal")) == []


def test_a_workspace_of_a_check_goes_when_it_is_no_longer_used() -> None:
    checks = method_checks(Rule)
    folder = Path(checks[0].body.args[0].bundle).parent  # type: ignore[attr-defined]
    assert checks[0].outcome().status == "passed"
    assert folder.is_dir()
    del checks
    assert not folder.exists()
