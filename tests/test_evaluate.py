"""Evaluation: every row is asked, and one task's failure is that task's alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mtcore.contracts import Metric, Predictor
from mtcore.errors import ConfigError, RunError
from mtcore.evaluation.evaluate import AskingFailed, Exam, evaluate, statistics
from mtcore.evaluation.metrics import Accuracy, MeanMetric
from mtcore.types import Example, Prediction, Prepared, TaskError, TaskSpec

SPEC = TaskSpec(
    name="toy",
    output="binary",
    input="single-sentence",
    fields=("text",),
    instruction="Is it?",
    template="{text}\n",
    words={"0": "no", "1": "yes"},
    metric="accuracy",
    licence="none",
    source="made up",
)


class Toy(Predictor):
    """Answers each task by a function of the text; what the function returns or raises is what happens."""

    def __init__(self, **answers):
        self._answers = answers

    @property
    def tasks(self):
        return dict.fromkeys(self._answers, SPEC)

    def prepare(self, request):
        if not request.fields["text"]:
            raise ConfigError("field 'text' is empty")
        return Prepared(request, cost=len(request.fields["text"]), flags={}, payload=None)

    def predict(self, prepared):
        return [{name: self._outcome(name, p.request.fields["text"]) for name in p.request.tasks} for p in prepared]

    def _outcome(self, name, text):
        answer = self._answers[name](text)
        return answer if isinstance(answer, TaskError) else Prediction(name, answer)


class Raises(Metric):
    name = "raises"

    def statistics(self, spec, predictions, answers):
        raise RuntimeError("no such tokenizer")

    def score(self, totals):
        return totals


class IsNan(MeanMetric):
    name = "is-nan"

    def value(self, spec, prediction, answer):
        return float("nan") if prediction == "1" else 1.0


class OverNothing(Accuracy):
    name = "over-nothing"

    def score(self, totals):
        return np.asarray(totals[..., 0] * np.inf)


class TooFew(Accuracy):
    name = "too-few"

    def statistics(self, spec, predictions, answers):
        return super().statistics(spec, predictions, answers)[1:]


def echo(text):
    """The right answer of every row of `exam`."""
    return text[-1]


def always(answer):
    return lambda text: answer


def exam(metric=None, *, bar=None, rows="0101"):
    examples = [Example({"text": f"row {i}: {answer}"}, answer) for i, answer in enumerate(rows)]
    return Exam(SPEC, metric or Accuracy(), examples, bar)


def test_every_row_is_asked_and_the_answers_are_kept():
    judged = evaluate(Toy(a=echo, b=always("1")), {"a": exam(), "b": exam(rows="0111")})
    assert judged.scores == {"a": 1.0, "b": 0.75}
    assert judged.answers == {"a": ["0", "1", "0", "1"], "b": ["1"] * 4}
    assert judged.failures == {}
    assert judged.average == pytest.approx(0.875)
    assert judged.tokens == 2 * 4 * len("row 0: 0")
    assert judged.seconds >= 0


def test_a_task_without_an_answer_to_one_row_is_failed_with_the_reason_and_the_others_are_scored():
    def breaks_off(text):
        return TaskError("b", "the answer does not end") if text.startswith("row 2") else "0"

    judged = evaluate(Toy(a=echo, b=breaks_off), {"a": exam(), "b": exam()})
    assert judged.failures == {"b": "ValueError: the answer does not end"}
    assert judged.scores == {"a": 1.0}
    assert set(judged.answers) == {"a"}


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (Raises, "RuntimeError: no such tokenizer"),
        (IsNan, "ValueError: metric is-nan gave statistics of shape (4, 2) for 4 rows, with 2 numbers that are NaN or infinite"),
        (OverNothing, "ValueError: metric over-nothing is inf"),
        (TooFew, "ValueError: metric too-few gave statistics of shape (3, 2) for 4 rows, with 0 numbers that are NaN or infinite"),
    ],
)
def test_a_task_whose_metric_raises_or_gives_no_number_is_failed_with_the_reason(metric, reason):
    judged = evaluate(Toy(a=echo, b=echo), {"b": exam(metric()), "a": exam()})
    assert judged.failures == {"b": reason}
    assert judged.scores == {"a": 1.0}
    assert set(judged.answers) == {"a"}


def test_a_row_that_cannot_be_encoded_fails_its_task_alone():
    unreadable = Exam(SPEC, Accuracy(), [Example({"text": "x1"}, "1"), Example({"text": ""}, "0")])
    judged = evaluate(Toy(a=echo, b=echo), {"a": exam(), "b": unreadable})
    assert judged.scores == {"a": 1.0}
    assert judged.failures == {"b": "ConfigError: field 'text' is empty"}


def test_a_predictor_that_raises_or_answers_too_few_rows_fails_the_task_it_was_asked_for():
    class Forgetful(Toy):
        def predict(self, prepared):
            return super().predict(prepared[1:])

    def stops(text):
        raise MemoryError("out of memory")

    judged = evaluate(Toy(a=echo, b=stops), {"a": exam(), "b": exam()})
    assert judged.failures == {"b": "MemoryError: out of memory"}
    assert "a" in judged.scores
    assert evaluate(Forgetful(a=echo), {"a": exam()}).failures.keys() == {"a"}


def test_a_device_without_room_fails_no_task_but_ends_the_run():
    def is_large(text):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(RunError, match=r"out of memory while b was evaluated\. Lower method\.batch_tokens.*Tried to allocate 2 GiB"):
        evaluate(Toy(a=echo, b=is_large), {"a": exam(), "b": exam()})


def test_a_device_without_room_on_another_process_ends_the_run_too():
    def elsewhere(rows, ask):
        raise AskingFailed("OutOfMemoryError: there", is_out_of_memory=True)

    with pytest.raises(RunError, match=r"out of memory while a was evaluated.*OutOfMemoryError: there"):
        evaluate(Toy(a=echo), {"a": exam()}, elsewhere)


ASK = r"""
import os, sys, torch
from mtcore.evaluation.evaluate import AskingFailed
from mtcore.fitting import shared
from mtcore.training.distributed import leave

def ask(rows):
    if os.environ["RANK"] == "0":
        raise ValueError("of its own")
    raise torch.OutOfMemoryError("no room")

try:
    shared([1, 2, 3], ask)
except AskingFailed as failure:
    os.write(1, f"{failure.is_out_of_memory} {failure}\n".encode())  # at once, or two processes write into one line
leave()
"""


def test_where_one_process_has_no_room_all_of_them_are_told_so(tmp_path):
    (tmp_path / "ask.py").write_text(ASK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "ask.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert sorted(done.stdout.splitlines()) == ["True OutOfMemoryError: no room"] * 2, done.stderr


def test_a_task_that_the_predictor_leaves_out_is_failed():
    class Silent(Toy):
        def predict(self, prepared):
            return [{} for _ in prepared]

    assert evaluate(Silent(a=echo), {"a": exam()}).failures == {"a": "KeyError: 'a'"}


def test_a_program_that_is_stopped_does_stop():
    def interrupted(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Toy(a=interrupted), {"a": exam()})


def test_a_failed_task_counts_zero_in_the_average():
    judged = evaluate(Toy(a=echo, b=echo, c=always("1")), {"a": exam(), "b": exam(Raises()), "c": exam()})
    assert judged.average == pytest.approx((1 + 0 + 0.5) / 3)


def test_the_average_is_over_tasks_and_not_over_rows():
    judged = evaluate(Toy(a=echo, b=always("1")), {"a": exam(rows="01" * 50), "b": exam(rows="00")})
    assert judged.average == 0.5


def test_tasks_qualify_against_their_bars():
    # half right against bars just above and exactly at what half is 99 % of
    tasks = {"met": exam(bar=0.5 / 0.99), "missed": exam(bar=0.5051), "without": exam()}
    assert evaluate(Toy(**dict.fromkeys(tasks, always("1"))), tasks).qualified == 1
    assert evaluate(Toy(**dict.fromkeys(tasks, echo)), tasks).qualified == 2


def test_a_bar_below_zero_is_to_be_reached_itself():
    class Minus(MeanMetric):
        name = "minus"

        def value(self, spec, prediction, answer):
            return -float(prediction != answer)

    for bar, qualified in ((-0.5, 1), (-0.4999, 0), (0.0, 0), (-1.0, 1)):
        assert evaluate(Toy(a=always("1")), {"a": exam(Minus(), bar=bar)}).qualified == qualified


def test_a_failed_task_never_qualifies():
    assert evaluate(Toy(a=echo, b=echo), {"a": exam(bar=0.1), "b": exam(Raises(), bar=-5.0)}).qualified == 1


def test_without_any_bar_nothing_is_said_about_qualification():
    assert evaluate(Toy(a=echo), {"a": exam()}).qualified is None


def test_statistics_of_answers_are_a_line_a_row():
    assert statistics(exam(), ["0", "0", "0", "0"]).tolist() == [[1, 1], [0, 1], [1, 1], [0, 1]]
