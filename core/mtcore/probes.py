"""Probes: a few requests that a bundle carries with its own answers, so that whoever loads it can see that it still answers them so."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mtcore.bundle import put_text
from mtcore.contracts import Predictor
from mtcore.data.text import label_texts
from mtcore.errors import ModelError
from mtcore.files import read_model
from mtcore.types import Answer, Frozen, Prediction, Request, TaskError, TaskSpec

FILE = "probes.json"
EACH = 3
"""Probes a task."""
TOLERANCE = 0.02
"""By how much a probability may differ between machines and kernels; a wrong weight moves it further."""


class Probe(Frozen):
    """One request, and what the bundle answered when it was published."""

    task: str
    fields: dict[str, str]
    answer: Answer
    probabilities: dict[str, float] | None


class Probes(Frozen):
    """What `probes.json` holds."""

    probes: tuple[Probe, ...]


def write_probes(folder: Path, predictor: Predictor) -> None:
    """Have a bundle answer its probes and keep the answers in it. Their texts are made from the specs: no row of anybody's data is in them."""
    asked = [Request(fields, (name,)) for name, spec in predictor.tasks.items() for fields in _texts(spec)]
    probes = []
    for request, outcome in zip(asked, _answers(predictor, asked), strict=True):
        if not isinstance(outcome, Prediction):
            raise ModelError(f"{folder}: {request.tasks[0]} cannot answer its probe: {outcome}")
        answer = outcome.answer if outcome.probabilities is not None else ()
        probabilities = None if outcome.probabilities is None else dict(outcome.probabilities)
        probes.append(Probe(task=request.tasks[0], fields=dict(request.fields), answer=answer, probabilities=probabilities))
    put_text(folder, FILE, Probes(probes=tuple(probes)).model_dump_json(indent=1))


def read_probes(folder: Path) -> tuple[Probe, ...]:
    """The probes of a bundle; none where it was published without."""
    return read_model(folder / FILE, Probes).probes if (folder / FILE).is_file() else ()


def disagreements(predictor: Predictor, probes: Sequence[Probe]) -> list[str]:
    """Which probes are answered otherwise than they were, in words. Free text must only be answered: machines may well differ in it."""
    found = []
    for probe, outcome in zip(probes, _answers(predictor, [Request(p.fields, (p.task,)) for p in probes]), strict=True):
        if not isinstance(outcome, Prediction):
            found.append(f"{probe.task}: no answer ({outcome})")
        elif probe.probabilities is not None:
            now = outcome.probabilities or {}
            furthest = max((abs(now.get(k, 0.0) - probe.probabilities.get(k, 0.0)) for k in {*now, *probe.probabilities}), default=0.0)
            if not furthest <= TOLERANCE:
                found.append(f"{probe.task}: answered {probe.answer!r} when published and {outcome.answer!r} now (off by {furthest:.3g})")
    return found


def _answers(predictor: Predictor, requests: Sequence[Request]) -> list[Prediction | str]:
    known = [request for request in requests if request.tasks[0] in predictor.tasks]
    results = iter(predictor.predict([predictor.prepare(request) for request in known]))
    answers: list[Prediction | str] = []
    for request in requests:
        (name,) = request.tasks
        outcome = next(results)[name] if name in predictor.tasks else TaskError(name, "the bundle does not answer this task")
        answers.append(outcome.reason if isinstance(outcome, TaskError) else outcome)
    return answers


def _texts(spec: TaskSpec) -> list[dict[str, str]]:
    """Fields that speak of the task's own answers: different texts for different probes, the same ones every time."""
    words = [*islice((text for text in label_texts(spec).values() if text), EACH)] if spec.output != "generation" else []
    return [{field: f"{spec.instruction} {field} {word}".strip() for field in spec.fields} for word in [*words, "1", "2", "3"][:EACH]]
