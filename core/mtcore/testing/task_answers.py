"""Checks of a task's answers and metrics: answers come back from their tokens, and a metric tells right from wrong."""

import random
from collections.abc import Sequence
from unittest import SkipTest

import numpy as np

from mtcore.contracts import Array, Metric
from mtcore.data.text import TextEncoder, answer_texts
from mtcore.errors import ConfigError
from mtcore.inference.trie import LabelTrie, build_trie, next_labels
from mtcore.testing.check import Failed
from mtcore.testing.task import TaskUnderTest
from mtcore.testing.toys import ODD_TEXTS
from mtcore.types import Answer, Example, TaskSpec

SAMPLE = 500
"""Rows that metrics are tried on."""
SURE, NEVER = 0.0, -50.0
"""Log-probabilities of a model that has no doubt."""


def answers_round_trip(task: TaskUnderTest) -> str:
    """Every answer comes back from the tokens it is written in."""
    data = task.data
    read = _reader(task)
    answers = dict.fromkeys(e.answer for e in (*data.train, *data.validation, *data.test))
    for answer in answers:
        taught, back = _taught(task.spec, answer), read(read.written(answer))
        if back != taught and not (task.spec.output == "generation" and _score_alike(task, taught, back, answer)):
            raise Failed(f"{taught!r} is read as {back!r}", "give answers as they can be read back: without white space around them, say")
    return f"different answers: {len(answers):,}"


def answers_fit(task: TaskUnderTest) -> str:
    """Every answer text fits into max_answer_tokens, beyond which a model's answer is cut."""
    data, limit = task.data, task.spec.max_answer_tokens
    if task.base is None:
        raise SkipTest("tokens are counted with a model's tokenizer: mtcore check … --model NAME")
    rows = (*data.train, *data.validation, *data.test)
    longest = max(len(task.encoder.answer_ids(answer_texts(task.spec, e.answer))) for e in rows)
    if longest > limit:
        raise Failed(f"the longest answer takes {longest} tokens, and max_answer_tokens is {limit}", f"set max_answer_tokens = {longest}")
    return f"the longest takes {longest} of {limit} tokens"


def every_answer_scored(task: TaskUnderTest) -> str:
    """Whatever a model says, every metric gives it a finite number."""
    examples = _sample(task)
    outcomes = _outcomes(task)
    for metric in task.metrics:
        for outcome in outcomes:
            found = _tried(metric, task.spec, [outcome] * len(examples), examples)
            if found:
                raise Failed(f"{metric.name} {found} where {outcome!r} is answered", "score any answer, if need be as wrong")
    return f"answers tried: {len(outcomes)}"


def metric_on_gold(task: TaskUnderTest) -> str:
    """The metric is highest on right answers, and lower on shuffled ones."""
    examples, told = _sample(task), []
    right = [_taught(task.spec, e.answer) for e in examples]
    shuffled, distinct = _shuffles(right), list(dict.fromkeys(right))
    if len(distinct) < 2:
        raise SkipTest(f"all {len(right):,} rows that are looked at have one answer, which no order shuffles")
    constant = [[answer] * len(right) for answer in distinct[:20]]
    for metric in task.metrics:
        best = _score(metric, task.spec, right, examples)
        others = [_score(metric, task.spec, wrong, examples) for wrong in shuffled]
        scores = [*others, *(_score(metric, task.spec, wrong, examples) for wrong in constant)]
        highest = max([score for score in scores if np.isfinite(score)], default=best)  # every-answer-scored finds the others
        if not best >= highest - 1e-9:
            raise Failed(
                f"{metric.name} is {best:.4f} on right answers and {highest:.4f} on wrong ones",
                "higher is better: turn its sign",
            )
        if not min(others) < best:
            raise Failed(
                f"{metric.name} is {best:.4f} on right and on shuffled answers alike", "compare each prediction with its own answer"
            )
        told.append(f"{metric.name} {best:.4g}, shuffled {min(others):.4g}")
    return "; ".join(told)


def metric_adds_up(task: TaskUnderTest) -> str:
    """A row's statistics are its own, so that parts add up to the whole."""
    examples = _sample(task)
    right = [_taught(task.spec, e.answer) for e in examples]
    predictions = _shuffles(right)[0]
    middle = max(1, len(examples) // 2)
    for metric in task.metrics:
        whole = _statistics(metric, task.spec, predictions, examples)
        if whole.ndim != 2 or len(whole) != len(examples) or not np.isfinite(whole).all():
            raise Failed(
                f"{metric.name}: statistics of shape {whole.shape} for {len(examples)} rows", "give a finite row of numbers for each row"
            )
        parts = [_statistics(metric, task.spec, predictions[cut], examples[cut]) for cut in (slice(middle), slice(middle, None))]
        if not np.allclose(np.concatenate(parts), whole):
            raise Failed(f"{metric.name}: a row's statistics depend on the other rows", "let each row's numbers come from that row alone")
        sums = np.stack([whole.sum(0), _statistics(metric, task.spec, right, examples).sum(0)])
        scores = metric.score(sums)
        if np.shape(scores) != (2,) or not np.allclose(scores, [metric.score(total) for total in sums]):
            raise Failed(f"{metric.name}: scores of several sums differ from their scores one by one", "index totals as totals[..., i]")
    return f"rows: {len(examples):,}"


class _Reader:
    """Reads answers off tokens as a predictor does, of a model that is sure of each of them."""

    def __init__(self, spec: TaskSpec, encoder: TextEncoder) -> None:
        self._spec, self._encoder = spec, encoder
        self._trie = None if spec.output == "generation" else build_trie(encoder.label_paths(spec), encoder.eos_id)

    def written(self, answer: Answer) -> list[int]:
        return [*self._encoder.answer_ids(answer_texts(self._spec, answer)), self._encoder.eos_id]

    def __call__(self, ids: Sequence[int]) -> Answer:
        if self._trie is None:
            return (self._encoder.decode(ids).strip(),)
        if self._spec.output == "multi-label":
            return self._several(list(ids))
        label = _follow(self._trie, ids)
        return float(label) if self._spec.number_range else label

    def _several(self, ids: list[int]) -> Answer:
        chosen: list[str] = []
        while label := _follow(next_labels(self._spec, self._encoder, chosen), ids):
            ids = ids[
                len(self._encoder.answer_ids([self._spec.separator, self._spec.words[label]] if chosen else [self._spec.words[label]])) :
            ]
            chosen.append(label)
        return tuple(chosen)


def _reader(task: TaskUnderTest) -> _Reader:
    try:
        return _Reader(task.spec, task.encoder)
    except ConfigError:
        raise SkipTest("the answer words cannot be told apart: see words-distinguishable") from None


def _follow(trie: LabelTrie, ids: Sequence[int]) -> str:
    """The label that scoring finds where a model is sure of these ids."""
    prefixes: dict[int, tuple[int, ...]] = {-1: ()}
    for node, (parent, token) in enumerate(zip(trie.parents_M.tolist(), trie.tokens_M.tolist(), strict=True)):
        prefixes[node] = (*prefixes[parent], token)
    paths = [(*prefixes[node], token) for node, token in zip(trie.edge_nodes_E.tolist(), trie.edge_tokens_E.tolist(), strict=True)]
    edges_E = np.array([SURE if tuple(ids[: len(path)]) == path else NEVER for path in paths])
    return trie.labels[int(np.argmax(trie.log_probabilities(edges_E)))]


def _outcomes(task: TaskUnderTest) -> list[Answer]:
    """Answers that a model may give: every label alone and together, or what is read off odd and random tokens."""
    encoder, source = task.encoder, random.Random(0)
    noise = [[source.randrange(3, 250) for _ in range(length)] for length in (0, 1, 7, 40)]
    read = _reader(task)
    if task.spec.output == "generation":
        texts = [text for text in ODD_TEXTS.values() if "\ud800" not in text]
        return [("",), *(read(encoder.answer_ids([text[:2000]])) for text in texts), *(read(ids) for ids in noise)]
    said = [read(ids) for ids in noise]
    if task.spec.output == "multi-label":
        return [*said, (), task.spec.labels, *((label,) for label in task.spec.labels)]
    return [*said, *(task.spec.number_range.numbers() if task.spec.number_range else task.spec.labels)]


def _taught(spec: TaskSpec, answer: Answer) -> Answer:
    """The answer that a model is taught for a row's: the nearest number, the first acceptable text."""
    if spec.number_range is not None:
        return spec.number_range.nearest(float(str(answer)))
    return answer[:1] if spec.output == "generation" and isinstance(answer, tuple) else answer


def _sample(task: TaskUnderTest) -> list[Example]:
    """Held-out rows, evenly spread."""
    rows = task.data.test or task.data.validation
    return list(rows[:: -(-len(rows) // SAMPLE)])


def _shuffles(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Three orders of the answers in which, where they vary, some stand in another's place."""
    found = []
    for seed in range(3):
        order = random.Random(seed).sample(range(len(answers)), len(answers))
        wrong = [answers[i] for i in order]
        found.append(wrong if wrong != list(answers) else [*answers[1:], answers[0]])
    return found


def _score_alike(task: TaskUnderTest, taught: Answer, back: Answer, answer: Answer) -> bool:
    """Whether no metric sees a difference between what was taught and what was read."""
    row = [Example({}, answer)]
    return all(
        np.allclose(_statistics(metric, task.spec, [taught], row), _statistics(metric, task.spec, [back], row)) for metric in task.metrics
    )


def _tried(metric: Metric, spec: TaskSpec, predictions: Sequence[Answer], examples: Sequence[Example]) -> str:
    """What is wrong with a score; empty where it is a number."""
    try:
        value = _score(metric, spec, predictions, examples)
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    return "" if np.isfinite(value) else f"is {value}"


def _statistics(metric: Metric, spec: TaskSpec, predictions: Sequence[Answer], examples: Sequence[Example]) -> Array:
    return metric.statistics(spec, list(predictions), [e.answer for e in examples])


def _score(metric: Metric, spec: TaskSpec, predictions: Sequence[Answer], examples: Sequence[Example]) -> float:
    return float(metric.score(_statistics(metric, spec, predictions, examples).sum(0)))
