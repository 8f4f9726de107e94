"""Compare two judged models task by task: scores with intervals, verdicts, and which qualified tasks are lost; the gate of a release."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtcore.contracts import Array
from mtcore.evaluation.qualify import difference_interval

Task = Mapping[str, Any]
"""A task's part of a report."""


@dataclass(frozen=True)
class Judgement:
    """What was found of a model: its report, and the scores on bootstrap samples behind it."""

    name: str
    """What a reader knows it by."""
    report: Mapping[str, Any]
    resampled: Mapping[str, Sequence[float | None]]
    """Task → `Verdict.resampled`; a task is missing where nothing was kept."""

    @property
    def tasks(self) -> dict[str, Task]:
        return {task["name"]: task for group in self.report["groups"] for task in group["tasks"]}

    def as_json(self, shared: Sequence[str]) -> dict[str, Any]:
        """What stands above the tasks; `shared`: the tasks that both sides have, of which alone averages can be compared."""
        scores = [task["score"] or 0.0 for name, task in self.tasks.items() if name in shared]
        return {
            "name": self.name,
            "run": self.report["run"],
            "variant": self.report["variant"],
            "tasks": len(self.tasks),
            "average": self.report["average"],
            "average_of_shared": sum(scores) / len(scores) if scores else None,
            "qualified": self.report["qualified"],
            "overhead": self.report["overhead"],
            "deployable": self.report["deployment"]["overhead"],
            "cost": self.report["cost"]["total shared"],
        }


@dataclass(frozen=True)
class Change:
    """One task, before and after."""

    name: str
    old: Task | None
    new: Task | None
    difference: float | None
    """New score minus old; None where one is missing, or they cannot be compared."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the difference."""
    notes: Sequence[str]

    @property
    def is_lost(self) -> bool:
        """Was qualified, and is not any more: missed, failed, at chance or missing."""
        return bool(self.old and self.old["qualified"]) and not (self.new and self.new["qualified"])

    def falls(self, limit: float) -> bool:
        """Whether the score is lower by more than `limit` with its whole interval; without an interval, the difference decides."""
        highest = self.interval[1] if self.interval else self.difference
        return highest is not None and highest < -limit

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "old": _standing(self.old),
            "new": _standing(self.new),
            "difference": self.difference,
            "interval": list(self.interval) if self.interval else None,
            "lost": self.is_lost,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Comparison:
    """Two judged models side by side."""

    old: Judgement
    new: Judgement
    changes: Sequence[Change]

    @property
    def lost(self) -> list[str]:
        return [change.name for change in self.changes if change.is_lost]

    def fallen(self, limit: float | None) -> list[str]:
        """Tasks whose scores fall by more than `limit` beyond noise; none where there is no limit."""
        return [] if limit is None else [change.name for change in self.changes if change.falls(limit)]

    def as_json(self) -> dict[str, Any]:
        shared = [change.name for change in self.changes if change.old and change.new]
        return {
            "old": self.old.as_json(shared),
            "new": self.new.as_json(shared),
            "tasks": [change.as_json() for change in self.changes],
            "lost": self.lost,
        }


def compare(old: Judgement, new: Judgement) -> Comparison:
    """Compare all tasks that either side has, those of the old one first."""
    names = dict.fromkeys([*old.tasks, *new.tasks])
    return Comparison(old, new, [_change(name, old, new) for name in names])


def _change(name: str, old: Judgement, new: Judgement) -> Change:
    before, after = old.tasks.get(name), new.tasks.get(name)
    if before is None or after is None:
        return Change(name, before, after, None, None, [f"only in {new.name if before is None else old.name}"])
    notes = [f"failed in {side.name}: {task['failure']}" for side, task in ((old, before), (new, after)) if task["failure"]]
    if notes:
        return Change(name, before, after, None, None, notes)
    if _metric(before) != _metric(after):
        told = f"decided by {_metric(before)}, and now by {_metric(after)}: the scores cannot be compared"
        return Change(name, before, after, None, None, [told])
    bars = [f"{100 * task['reference']:.2f}" for task in (before, after)]
    if bars[0] != bars[1]:
        notes.append(f"its own model scored {bars[0]}, and now {bars[1]}")
    difference, interval = after["score"] - before["score"], None
    if without := [side.name for side in (old, new) if not side.resampled.get(name)]:
        notes.append(f"no interval: {' and '.join(without)} kept no samples; the same `mtcore train` again adds them")
    elif len(old.resampled[name]) != len(new.resampled[name]):
        notes.append("no interval: the two were not resampled alike")
    else:
        is_paired = before["data"]["judged_digest"] == after["data"]["judged_digest"]
        interval = difference_interval(_samples(old, name), _samples(new, name), is_paired=is_paired)
        notes += [] if is_paired else ["other rows decide now, so the interval is not a paired one"]
    return Change(name, before, after, difference, interval, notes)


def _metric(task: Task) -> str:
    return f"{task['metric']} (version {task.get('data', {}).get('metric_version', 1)})"  # early reports know no version


def _samples(side: Judgement, name: str) -> Array:
    return np.array([np.nan if score is None else score for score in side.resampled[name]], np.float64)


def _standing(task: Task | None) -> dict[str, Any] | None:
    return None if task is None else {"score": task["score"], "verdict": verdict_word(task)}


def verdict_word(task: Task) -> str:
    """The verdict of a task of a report in a word."""
    if task["failure"]:
        return "failed"
    if task["at_chance"]:
        return "at chance"
    return "yes" if task["qualified"] else "no"
