"""The mixture plan: which row of which task stands at every position of a stage; compiled from shares, found at any position at once."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtcore.data.permutation import Ints, key, permute
from mtcore.errors import ConfigError

BLOCK = 4096
"""Slots that are shuffled together; shares are exact at the borders of blocks."""


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
class MixturePlan:
    """The order of one stage, as data.

    The rows of a task follow one endless order fixed by (seed, task name) alone: pass after pass, each a keyed bijection of its rows.
    A stage only decides when the next one is drawn. So adding, dropping or re-weighting a task leaves the row order of every other task
    as it was, and ranks and micro-batches are mere slices of the positions.
    """

    seed: int
    stage: int
    tasks: tuple[PlanTask, ...]
    draws: int
    unit: int = 1
    """Consecutive draws that belong to one task: 1 mixes freely, the examples of a step make every step one task's."""

    def __post_init__(self) -> None:
        if not self.tasks or min(t.rows for t in self.tasks) < 1:
            raise ConfigError(f"a mixture needs tasks that have rows, not {[(t.name, t.rows) for t in self.tasks]}")
        shares = [t.share for t in self.tasks]
        if not (min(shares) >= 0 and abs(sum(shares) - 1) < 1e-9):
            raise ConfigError(f"shares must be at least 0 and sum to 1, not {dict(zip([t.name for t in self.tasks], shares, strict=True))}")

    @property
    def units(self) -> int:
        return -(-self.draws // self.unit)

    def drawn(self) -> dict[str, int]:
        """How often each task is drawn in the whole stage."""
        counts = _apportion(np.array([self.units]), np.array([t.share for t in self.tasks]))[0] * self.unit
        if spare := self.units * self.unit - self.draws:  # the last unit may be cut short
            counts[self.window(self.draws - 1, self.draws).task[0]] -= spare
        return {task.name: int(count) for task, count in zip(self.tasks, counts, strict=True)}

    def window(self, start: int, stop: int) -> Window:
        """The positions [start, stop), at a cost that does not depend on start."""
        stop = min(stop, self.draws)
        first = start // self.unit // BLOCK
        last = max(first, (stop - 1) // self.unit // BLOCK)
        parts = [_block(self, number) for number in range(first, last + 1)]
        offset = first * BLOCK * self.unit
        return Window(*(np.concatenate(column)[start - offset : stop - offset] for column in zip(*parts, strict=True)))

    def blocks(self) -> Iterator[Window]:
        """The whole plan, block by block."""
        span = BLOCK * self.unit
        return (self.window(start, start + span) for start in range(0, self.draws, span))


@lru_cache(maxsize=2)
def _block(plan: MixturePlan, number: int) -> Window:
    """One block of a plan; kept, because hundreds of steps in a row fall on the same one, and each would order every task's rows anew."""
    start, stop = number * BLOCK, min((number + 1) * BLOCK, plan.units)
    before, after = _apportion(np.array([start, stop]), np.array([t.share for t in plan.tasks]))
    counts = after - before
    random = np.random.Philox(key=[key(plan.seed, "slots", plan.stage), number]).random_raw(stop - start)
    slots = np.repeat(np.arange(len(plan.tasks), dtype=np.int32), counts)[np.argsort(random, kind="stable")]
    task = np.repeat(slots, plan.unit)
    row, turn = np.empty(len(task), np.int64), np.empty(len(task), np.int64)
    for index, member in enumerate(plan.tasks):
        mine = np.flatnonzero(task == index)
        if len(mine):
            ordinals = member.first + before[index] * plan.unit + np.arange(len(mine))
            turn[mine] = ordinals // member.rows
            row[mine] = row_order(plan.seed, member.name, member.rows, ordinals)
    return Window(task, row, turn)


def row_order(seed: int, task: str, rows: int, ordinals: Ints) -> Ints:
    """The rows that a task's draws number `ordinals` (from 0, over the whole run) fall on."""
    turns = ordinals // rows
    unique, where = np.unique(turns, return_inverse=True)
    keys = np.array([key(seed, "rows", task, turn) for turn in unique], np.uint64)
    return permute(ordinals % rows, rows, keys[where])


def subset(task: str, split: str, rows: int, count: int) -> Ints:
    """`count` of `rows` row numbers, ascending, chosen once by the task's name: a larger count holds every smaller one."""
    return np.sort(permute(np.arange(min(count, rows), dtype=np.int64), rows, np.array(key("subset", task, split), np.uint64)))


_Node = int | tuple["_Node", float, "_Node", float]
"""A task's index, or two nodes with their weights."""


def _apportion(positions: Ints, shares: NDArray[np.float64]) -> Ints:
    """Draws [positions, tasks] of every task up to each position; they sum to the position, never fall, and follow the shares.

    Positions are halved down a weight-balanced (Huffman) tree of the tasks: at each node the left side gets its rounded part of what
    the node got, the right side the rest. Both never fall as positions grow, so a block's counts are never negative, which cumulative
    largest remainders do not promise for small shares. Where every share times the position is whole, so is the result.
    """
    counts = np.zeros((len(positions), len(shares)), np.int64)
    heap: list[tuple[float, int, _Node]] = [(float(share), index, index) for index, share in enumerate(shares)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (light, _, a), (heavy, number, b) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (light + heavy, len(shares) + number, (a, light, b, heavy)))
    pending: list[tuple[_Node, Ints]] = [(heap[0][2], positions.astype(np.int64))]
    while pending:
        node, given = pending.pop()
        if isinstance(node, tuple):
            a, light, b, heavy = node
            part = np.floor(given * (light / (light + heavy) if light + heavy else 0.5) + 0.5).astype(np.int64)
            pending += [(a, part), (b, given - part)]
        else:
            counts[:, node] = given
    return counts


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
