"""The mixture plan: which row of which task stands at every position of a stage; compiled from shares, found at any position at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtcore.data.apportion import apportion
from mtcore.data.documents import NONE, Documents, together
from mtcore.data.permutation import Ints, key, permute, row_key
from mtcore.errors import ConfigError, RunError

BLOCK = 4096
"""Slots that are shuffled together; shares are exact at the borders of blocks."""
AT_ONCE = 16
"""Blocks that are compiled together where all are wanted: most of what a block costs is not its draws."""


class Window(NamedTuple):
    """Consecutive positions of a plan: index of the task, row, and how many times the task's rows were all seen before."""

    task: NDArray[np.int32]
    row: Ints
    turn: Ints


@dataclass(frozen=True)
class PlanTask:
    """A task in a plan: its rows, its share of the draws, and its draws in earlier stages, which its row order goes on from."""

    name: str
    rows: int
    share: float
    first: int = 0


@dataclass(frozen=True)
class Span:
    """Draws between two borders of a stage whose shares change."""

    shares: tuple[float, ...]
    """Of each task, as they were decided."""
    before: tuple[int, ...]
    """Draws of each task in earlier spans of the stage."""
    owed: tuple[float, ...]
    """What its shares in earlier spans would have given each task beyond these whole draws: made up for in this one."""


@dataclass(frozen=True)
class MixturePlan:
    """The order of one stage, as data.

    The rows of a task follow one endless order fixed by (seed, task name) alone: pass after pass, each a keyed bijection of its rows.
    A stage only decides when the next one is drawn. So adding, dropping or re-weighting a task leaves the row order of every other task
    as it was, and ranks and micro-batches are mere slices of the positions. Where shares change, they do so at borders that are known from
    the start, and positions up to the first undecided border are as good as any.
    """

    seed: int
    stage: int
    tasks: tuple[PlanTask, ...]
    draws: int
    unit: int = 1
    """Consecutive draws that belong to one task: 1 mixes freely, the examples of a step make every step one task's."""
    every: int | None = None
    """Draws from one border to the next; None where shares never change."""
    later: tuple[Span, ...] = ()
    """The spans after the first that are decided."""
    documents: Documents | None = None
    """Where rows that share a document are to stand together: the order of each task's rows then goes by documents, the same in all tasks."""

    def __post_init__(self) -> None:
        if not self.tasks or min(t.rows for t in self.tasks) < 1:
            raise ConfigError(f"a mixture needs tasks that have rows, not {[(t.name, t.rows) for t in self.tasks]}")
        for span in (self._span(0), *self.later[-1:]):
            if not (min(span.shares) >= 0 and abs(sum(span.shares) - 1) < 1e-9):
                shares = dict(zip([t.name for t in self.tasks], span.shares, strict=True))
                raise ConfigError(f"shares must be at least 0 and sum to 1, not {shares}")
        if self.every is not None and (self.every < 1 or self.every % self.unit):
            raise ConfigError(f"shares change after whole units of {self.unit} draws, not every {self.every}")
        if self.documents is not None and {t.name: t.rows for t in self.tasks} != {n: len(k) for n, k in self.documents.keys.items()}:
            raise ConfigError("documents must be those of the plan's tasks, one key for every row")

    def __hash__(self) -> int:
        return hash((self.seed, self.stage, self.draws, len(self.tasks), len(self.later)))

    @property
    def known(self) -> int:
        """Draws whose shares are decided: all, or those up to the first border that nothing is decided at."""
        return self.draws if self.every is None else min(self.draws, self.every * (1 + len(self.later)))

    def changed(self, shares: Sequence[float]) -> "MixturePlan":
        """This plan with the shares of the first undecided span."""
        if self.known == self.draws:
            raise RunError(f"all {self.draws:,} draws of this stage have their shares already")
        number = len(self.later)
        decided, begun = np.array(self._span(number).shares), self.known - self._length(number)
        owed = np.array(self._span(number).owed) + decided * (self.known - begun)
        before = self._counts(self.known)
        owed -= before - np.array(self._span(number).before)
        span = Span(tuple(float(share) for share in shares), tuple(before.tolist()), tuple(owed.tolist()))
        return replace(self, later=(*self.later, span))

    def drawn(self, until: int | None = None) -> dict[str, int]:
        """How often each task is drawn in the first `until` draws, or in all that are decided; costs a block at most."""
        counts = self._counts(self.known if until is None else until)
        return {task.name: int(count) for task, count in zip(self.tasks, counts, strict=True)}

    def window(self, start: int, stop: int) -> Window:
        """The positions [start, stop), at a cost that does not depend on start; RunError where some are not decided yet."""
        stop = self._within(stop)
        parts = []
        while start < stop:
            number, offset = divmod(start, self.every or self.draws)
            block, skipped = divmod(offset, BLOCK * self.unit)
            part = _block(self, number, block)
            taken = slice(skipped, skipped + stop - start)
            parts.append([column[taken] for column in part])
            start += len(parts[-1][0])
        if not parts:
            return Window(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))
        return Window(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def blocks(self) -> Iterator[Window]:
        """All that is decided, in order, several blocks at once."""
        many = max(1, AT_ONCE // self.unit)
        for number in range(1 + len(self.later)):
            blocks = -(-self._length(number) // (BLOCK * self.unit))
            for first in range(0, blocks, many):
                window = _compiled(self, number, first, min(blocks, first + many))
                rest = self._length(number) - first * BLOCK * self.unit  # the last unit may be cut short
                yield Window(window.task[:rest], window.row[:rest], window.turn[:rest])

    def as_json(self) -> dict[str, Any]:
        """The plan as data; documents by their digest."""
        plain = replace(self, documents=None)
        return {**asdict(plain), "documents": self.documents.digest if self.documents else None}

    def _within(self, position: int) -> int:
        position = min(position, self.draws)
        if position > self.known:
            raise RunError(
                f"draws of stage {self.stage} are decided up to {self.known:,}; {position:,} are asked for before the shares are"
            )
        return position

    def _span(self, number: int) -> Span:
        if number:
            return self.later[number - 1]
        return Span(tuple(t.share for t in self.tasks), (0,) * len(self.tasks), (0.0,) * len(self.tasks))

    def _length(self, number: int) -> int:
        """Draws of a span."""
        return self.draws if self.every is None else min(self.every, self.draws - number * self.every)

    def _edges(self, number: int, blocks: Ints) -> Ints:
        """Draws [blocks, tasks] of every task in a span before each of these blocks, in units."""
        span, length = self._span(number), self._length(number)
        shares = np.array(span.shares)
        wanted = np.where(shares > 0, np.maximum(0.0, shares * length + np.array(span.owed)), 0.0)
        rates = tuple((wanted / wanted.sum()).tolist()) if number else span.shares
        return apportion(np.minimum(blocks * BLOCK, -(-length // self.unit)), rates)

    def _counts(self, until: int) -> Ints:
        until = self._within(until)
        number = min(until // (self.every or self.draws), len(self.later))
        block, rest = divmod(until - number * (self.every or self.draws), BLOCK * self.unit)
        counts: Ints = np.array(self._span(number).before) + self._edges(number, np.array([block]))[0] * self.unit
        if rest:
            counts += np.bincount(self.window(until - rest, until).task, minlength=len(self.tasks))
        return counts


@lru_cache(maxsize=2)
def _block(plan: MixturePlan, number: int, block: int) -> Window:
    """One block of a span; kept, because hundreds of steps in a row fall on the same one, and each would order every task's rows anew."""
    return _compiled(plan, number, block, block + 1)


def _compiled(plan: MixturePlan, number: int, first: int, last: int) -> Window:
    """The blocks [first, last) of a span, its last unit whole: shares give each block its slots, a counter-based generator shuffles them."""
    edges = plan._edges(number, np.arange(first, last + 1))
    counts = np.diff(edges, axis=0)
    slots = np.repeat(np.tile(np.arange(len(plan.tasks), dtype=np.int32), last - first), counts.ravel())
    shuffled, start = np.empty_like(slots), 0
    own = key(plan.seed, "slots", plan.stage, *([number] if number else []))
    for block, length in zip(range(first, last), counts.sum(axis=1).tolist(), strict=True):
        random = np.random.Philox(key=[own, block]).random_raw(length)
        shuffled[start : start + length] = slots[start : start + length][np.argsort(random, kind="stable")]
        start += length
    task = np.repeat(shuffled, plan.unit)
    begun = np.array([t.first for t in plan.tasks]) + np.array(plan._span(number).before) + edges[0] * plan.unit
    window = _with_rows(plan, task, begun, counts.sum(axis=0) * plan.unit)
    if plan.documents is None:
        return window
    length = BLOCK * plan.unit
    return _regrouped(plan, plan.documents, window, [slice(i, i + length) for i in range(0, len(task), length)])


def _with_rows(plan: MixturePlan, task: NDArray[np.int32], begun: Ints, counts: Ints) -> Window:
    """Rows for slots: each task's, in their order, from its draw number `begun` on."""
    by_task = np.argsort(task.astype(np.uint16) if len(plan.tasks) <= 2**16 else task, kind="stable")  # radix sort of 16 bits
    ordinals = np.arange(len(task)) + np.repeat(begun - (np.cumsum(counts) - counts), counts)
    row, turn = np.empty(len(task), np.int64), np.empty(len(task), np.int64)
    row[by_task], turn[by_task] = _rows(plan.seed, plan.tasks, counts, ordinals, plan.documents)
    return Window(task, row, turn)


def _rows(seed: int, tasks: Sequence[PlanTask], counts: Ints, ordinals: Ints, documents: Documents | None = None) -> tuple[Ints, Ints]:
    """Rows and passes of draws, `counts` of each task in turn, all tasks in one array operation."""
    sizes = np.repeat(np.array([t.rows for t in tasks]), counts)
    turns, positions = np.divmod(ordinals, sizes)
    number = np.repeat(np.arange(len(tasks)), counts)
    begins = np.flatnonzero(np.r_[True, (np.diff(turns) != 0) | (np.diff(number) != 0)]) if len(turns) else np.empty(0, np.int64)
    lengths = np.diff(np.r_[begins, len(turns)])
    runs = [(tasks[of], turn) for of, turn in zip(number[begins].tolist(), turns[begins].tolist(), strict=True)]
    keys = np.array([row_key(seed, task.name, turn) for task, turn in runs], np.uint64)
    rows = permute(positions, sizes, np.repeat(keys, lengths))
    if documents is not None:
        for (task, turn), begin, length in zip(runs, begins.tolist(), lengths.tolist(), strict=True):
            if documents.has_any(task.name):
                run = slice(begin, begin + length)
                rows[run] = documents.arranged(task.name, seed, turn)[positions[run]]
    return rows, turns


def _regrouped(plan: MixturePlan, documents: Documents, window: Window, blocks: Sequence[slice]) -> Window:
    """Each block's draws, rows of one document side by side."""
    keys = np.full(len(window.task), NONE, np.int64)
    for number, task in enumerate(plan.tasks):
        mine = np.flatnonzero(window.task == number)
        keys[mine] = documents.keys[task.name][window.row[mine]]
    rows = window.row * len(plan.tasks) + window.task
    order = np.concatenate([block.start + together(keys[block], rows[block]) for block in blocks])
    return Window(window.task[order], window.row[order], window.turn[order])


def row_order(seed: int, task: str, rows: int, ordinals: Ints) -> Ints:
    """The rows that a task's draws number `ordinals` (from 0, over the whole run) fall on."""
    return _rows(seed, [PlanTask(task, rows, 1.0)], np.array([len(ordinals)]), ordinals)[0]


def subset(task: str, split: str, rows: int, count: int) -> Ints:
    """`count` of `rows` row numbers, ascending, chosen once by the task's name: a larger count holds every smaller one."""
    return np.sort(permute(np.arange(min(count, rows), dtype=np.int64), rows, np.array(key("subset", task, split), np.uint64)))


def passes(drawn: Mapping[str, int], tasks: tuple[PlanTask, ...]) -> dict[str, tuple[float, float]]:
    """For each task, how many passes its draws are, and the share of its rows never seen (earlier stages counted)."""
    return {t.name: (drawn[t.name] / t.rows, max(0.0, 1 - (t.first + drawn[t.name]) / t.rows)) for t in tasks}


OFTEN, RARELY = 20.0, 0.5
"""Passes over a task that are many, and the share of its rows never seen that is large: both are worth a warning."""


def extremes(drawn: Mapping[str, int], rows: Mapping[str, int], before: Mapping[str, int]) -> list[str]:
    """What a reader must know of draws: tasks seen very often, and tasks of which most rows are never seen."""
    told = []
    for name, draws in drawn.items():
        if draws / rows[name] > OFTEN:
            told.append(f"{name}: every row is seen {draws / rows[name]:.1f} times")
        if (unseen := 1 - (before.get(name, 0) + draws) / rows[name]) > RARELY:
            told.append(f"{name}: {unseen:.0%} of its rows are never seen")
    return told
