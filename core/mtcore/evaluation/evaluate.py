"""Ask a predictor every row of its tasks, and score the answers; one task's failure is that task's alone."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mtcore.contracts import Array, Judged, Metric, Predictor
from mtcore.errors import RunError
from mtcore.evaluation.qualify import reaches
from mtcore.types import Answer, Example, Prediction, Prepared, Request, TaskSpec


@dataclass(frozen=True)
class Exam:
    """The rows that a task is judged on, and how."""

    spec: TaskSpec
    metric: Metric
    examples: Sequence[Example]
    bar: float | None = None
    """The reference score; None while there is none, or it is at chance."""


Ask = Callable[[Sequence[Prepared]], list[Answer]]


class AskingFailed(Exception):
    """A process that was asked part of the rows failed; the text is that process's own."""

    def __init__(self, text: str, *, is_out_of_memory: bool = False) -> None:
        super().__init__(text)
        self.is_out_of_memory = is_out_of_memory


class OutOfMemory(RunError):
    """The device had no room for the rows of a task: nothing is known of the task, and no score may stand for it."""

    def __init__(self, task: str, error: str) -> None:
        super().__init__(
            f"out of memory while {task} was evaluated. Lower method.batch_tokens, which changes no result, or method.max_length; the same command "
            f"goes on from the last checkpoint ({error})"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is torch's; torch itself need not be here."""
    return any((c.__module__, c.__name__) == ("torch", "OutOfMemoryError") for c in type(error).__mro__)


def evaluate(
    predictor: Predictor,
    exams: Mapping[str, Exam],
    together: Callable[[Sequence[Prepared], Ask], list[Answer]] = lambda rows, ask: ask(rows),
) -> Judged:
    """Answer and score all rows. A task whose row, parser or metric raises, or whose score is no number, is failed with the reason.

    `together` may have others ask part of a task's rows; it returns the answers to all of them, or raises AskingFailed. Where memory runs out
    on a device, OutOfMemory is raised.
    """
    started = time.perf_counter()
    scores: dict[str, float] = {}
    failures: dict[str, str] = {}
    answers: dict[str, list[Answer]] = {}
    tokens, flops = 0, 0.0
    for name, exam in exams.items():
        try:
            prepared = [predictor.prepare(Request(example.fields, (name,))) for example in exam.examples]
            answers[name] = together(prepared, partial(_answers, predictor, name))
            tokens += sum(p.cost for p in prepared)
            flops += sum(p.flops for p in prepared)
            scores[name] = score(exam, answers[name])
        except Exception as error:
            if is_out_of_memory(error) or (isinstance(error, AskingFailed) and error.is_out_of_memory):
                raise OutOfMemory(name, str(error)) from error
            failures[name] = str(error) if isinstance(error, AskingFailed) else f"{type(error).__name__}: {error}"
            answers.pop(name, None)
    bars = {name: exam.bar for name, exam in exams.items() if exam.bar is not None}
    return Judged(
        scores=scores,
        failures=failures,
        answers=answers,
        qualified=sum(bool(reaches(scores.get(name, -math.inf), bar)) for name, bar in bars.items()) if bars else None,
        average=float(np.mean([scores.get(name, 0.0) for name in exams])) if exams else 0.0,
        tokens=tokens,
        flops=flops,
        seconds=time.perf_counter() - started,
    )


def statistics(exam: Exam, answers: Sequence[Answer]) -> Array:
    """Per-row statistics of answers; raises ValueError where they hold no numbers."""
    table = exam.metric.statistics(exam.spec, answers, [e.answer for e in exam.examples])
    if table.shape[0] != len(exam.examples) or not np.isfinite(table).all():
        raise ValueError(
            f"metric {exam.metric.name} gave statistics of shape {table.shape} for {len(exam.examples)} rows, "
            f"with {np.count_nonzero(~np.isfinite(table))} numbers that are NaN or infinite"
        )
    return table


def score(exam: Exam, answers: Sequence[Answer]) -> float:
    """Score of answers; raises ValueError where it is no number."""
    value = float(exam.metric.score(statistics(exam, answers).sum(0)))
    if not math.isfinite(value):
        raise ValueError(f"metric {exam.metric.name} is {value}")
    return value


def _answers(predictor: Predictor, name: str, prepared: Sequence[Prepared]) -> list[Answer]:
    answers: list[Answer] = []
    for result in predictor.predict(prepared):
        outcome = result[name]
        if not isinstance(outcome, Prediction):
            raise ValueError(outcome.reason)
        answers.append(outcome.answer)
    return answers
