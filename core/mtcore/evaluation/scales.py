"""Scales of the page's plots: where a score, a ratio and its interval stand on a line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Task = Mapping[str, Any]
"""A task's part of a report."""
WIDEST = 1.5
"""Ratios above it are drawn at the edge: one tiny reference must not press all others together."""


@dataclass(frozen=True)
class Scale:
    """A line from low to high; positions on it are in per cent of its length."""

    low: float
    high: float
    ticks: Sequence[float]

    def at(self, value: float) -> float:
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Interval:
    """A ratio with its interval on a scale, for eyes and for ears."""

    low: float
    high: float
    at: float
    is_cut: bool
    """Some of it lies beyond the scale, and is drawn at its edge."""


def ratio_scale(tasks: Sequence[Task]) -> Scale:
    """A scale that holds the bar and the intervals of all tasks, as far as they lie between 0 and WIDEST."""
    values = [v for task in tasks for v in [*(task["interval"] or ()), task["ratio"]] if v is not None]
    low, high = max(0.0, min([0.95, *values])), min(WIDEST, max([1.04, *values]))
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if (high - low) / step <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, [round(n * step, 4) for n in range(first, last + 1)])


def score_scale(tasks: Sequence[Task]) -> Scale:
    """A scale from nothing to everything; lower where a score is below nothing."""
    values = [v for task in tasks for v in (task["score"], task["reference"], *task["floors"].values()) if v is not None]
    low, high = min([0.0, *values]), max([1.0, *values])
    return Scale(low, high, [low + n * (high - low) / 4 for n in range(5)])


def interval(task: Task, scale: Scale) -> Interval | None:
    """Where a task's ratio lies; None where it has none."""
    if task["ratio"] is None:
        return None
    low, high = task["interval"] or (task["ratio"], task["ratio"])
    ends = [low, high, task["ratio"]]
    return Interval(scale.at(low), scale.at(high), scale.at(task["ratio"]), min(ends) < scale.low or max(ends) > scale.high)
