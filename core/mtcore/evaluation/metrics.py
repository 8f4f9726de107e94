"""Metrics as functions of summed per-row statistics; all are higher-is-better."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from mtcore.config import nearest
from mtcore.contracts import Array, Metric, TaskAdapter
from mtcore.errors import UnknownName
from mtcore.types import Answer, TaskSpec

ROUNDING = 1e-12
"""A spread below this share of the mean square is none."""


class MeanMetric(Metric):
    """A metric that is the mean of one number a row."""

    def statistics(self, spec: TaskSpec, predictions: Sequence[Answer], answers: Sequence[Answer]) -> Array:
        values = np.array([self.value(spec, p, a) for p, a in zip(predictions, answers, strict=True)], np.float64)
        return np.stack([values, np.ones_like(values)], axis=1)

    def score(self, totals: Array) -> Array:
        return np.asarray(totals[..., 0] / totals[..., 1])

    def value(self, spec: TaskSpec, prediction: Answer, answer: Answer) -> float:
        raise NotImplementedError


class Accuracy(MeanMetric):
    """Share of rows answered exactly; for multi-label tasks the whole set must match."""

    name = "accuracy"

    def value(self, spec: TaskSpec, prediction: Answer, answer: Answer) -> float:
        return float(prediction == answer)


class ExactMatch(MeanMetric):
    """Share of texts equal to any acceptable one, after Unicode NFKC, lower case and white space folded away at the ends and to one inside."""

    name = "exact-match"

    def value(self, spec: TaskSpec, prediction: Answer, answer: Answer) -> float:
        return float(_normal(_text(prediction)) in {_normal(text) for text in _texts(answer)})


class NegativeMeanAbsoluteError(MeanMetric):
    """Minus the mean absolute error, in steps of an ordinal scale or in the unit of a regression."""

    name = "negative-mae"

    def value(self, spec: TaskSpec, prediction: Answer, answer: Answer) -> float:
        if spec.number_range is not None:
            return 0.0 - abs(float(str(prediction)) - float(str(answer)))
        return 0.0 - abs(spec.labels.index(str(prediction)) - spec.labels.index(str(answer)))


class MicroF1(Metric):
    """F1 over all labels of all rows together."""

    name = "micro-f1"

    def statistics(self, spec: TaskSpec, predictions: Sequence[Answer], answers: Sequence[Answer]) -> Array:
        sets = [(set(_texts(p)), set(_texts(a))) for p, a in zip(predictions, answers, strict=True)]
        return np.array([[len(p & a), len(p - a), len(a - p)] for p, a in sets], np.float64)

    def score(self, totals: Array) -> Array:
        hits, extra, missed = totals[..., 0], totals[..., 1], totals[..., 2]
        return np.where(hits + extra + missed > 0, 2 * hits / np.maximum(2 * hits + extra + missed, 1), 1.0)


class MacroF1(Metric):
    """Mean over labels of each label's F1; labels that neither stand in the answers nor are predicted do not count."""

    name = "macro-f1"

    def statistics(self, spec: TaskSpec, predictions: Sequence[Answer], answers: Sequence[Answer]) -> Array:
        index = {label: i for i, label in enumerate(spec.labels)}
        table = np.zeros((len(answers), 3 * len(index)))
        for row, (prediction, answer) in enumerate(zip(predictions, answers, strict=True)):
            p, a = set(_texts(prediction)), set(_texts(answer))
            for offset, labels in enumerate((p & a, p - a, a - p)):
                table[row, [3 * index[label] + offset for label in labels]] = 1
        return table

    def score(self, totals: Array) -> Array:
        per_label = totals.reshape(*totals.shape[:-1], -1, 3)
        seen = per_label.sum(-1) > 0
        f1 = 2 * per_label[..., 0] / np.maximum(2 * per_label[..., 0] + per_label[..., 1] + per_label[..., 2], 1)
        return np.asarray((f1 * seen).sum(-1) / np.maximum(seen.sum(-1), 1))


class Pearson(Metric):
    """Pearson correlation of numbers; 0 where either side is constant."""

    name = "pearson"

    def statistics(self, spec: TaskSpec, predictions: Sequence[Answer], answers: Sequence[Answer]) -> Array:
        x = np.array([float(str(p)) for p in predictions])
        y = np.array([float(str(a)) for a in answers])
        return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)

    def score(self, totals: Array) -> Array:
        n, x, y, xx, yy, xy = np.moveaxis(totals, -1, 0)
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        # sums of equal numbers leave rounding errors where their spread is 0
        varies = (spread_x > ROUNDING * n * xx) & (spread_y > ROUNDING * n * yy)
        return np.where(varies, (n * xy - x * y) / np.sqrt(np.where(varies, spread_x * spread_y, 1)), 0.0)


class ChrF(MeanMetric):
    """Sentence chrF (sacrebleu) against the best acceptable text, 0 to 1; characters, so it needs no segmentation for Chinese."""

    name = "chrf"

    def value(self, spec: TaskSpec, prediction: Answer, answer: Answer) -> float:
        from sacrebleu.metrics.chrf import CHRF

        return max(float(CHRF().sentence_score(_text(prediction), [text]).score) for text in _texts(answer)) / 100


METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Accuracy, ExactMatch, NegativeMeanAbsoluteError, MicroF1, MacroF1, Pearson, ChrF)
}


def find_metric(adapter: TaskAdapter, name: str) -> Metric:
    """The adapter's own metric of that name, or one of the box. Raises UnknownName with the nearest names."""
    known = {**METRICS, **adapter.metrics}
    if name not in known:
        near = nearest(name, list(known))
        raise UnknownName(f"task {adapter.spec.name}: no metric is called {name!r}{near} Known: {', '.join(known)}.")
    return known[name]()


def _texts(answer: Answer) -> tuple[str, ...]:
    return answer if isinstance(answer, tuple) else (str(answer),)


def _text(answer: Answer) -> str:
    return _texts(answer)[0] if _texts(answer) else ""


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().lower()
