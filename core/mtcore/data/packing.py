"""Pack variable-length sequences into rows of bounded length, and lay the rows out as arrays."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAD_SEGMENT = -1


@dataclass(frozen=True)
class Sample:
    """One training sequence: token ids, and where its targets begin (the first id that is predicted, at least 1)."""

    ids: NDArray[np.int32]
    target_start: int
    example: int
    """Position of the example in its optimizer step."""


@dataclass(frozen=True)
class MicroBatch:
    """Packed rows as arrays: R rows of T tokens with N target positions, torch-free.

    `segments_RT` numbers the sequences inside a row (-1 is padding); positions restart at 0 with every sequence.
    Target n is the id `targets_N[n]`, predicted from row `rows_N[n]`, column `columns_N[n]`, for example `examples_N[n]`.
    """

    ids_RT: NDArray[np.int64]
    positions_RT: NDArray[np.int64]
    segments_RT: NDArray[np.int64]
    rows_N: NDArray[np.int64]
    columns_N: NDArray[np.int64]
    targets_N: NDArray[np.int64]
    examples_N: NDArray[np.int64]
    tokens: int
    """Useful tokens, without padding."""
    squared_lengths: int
    """Sum over sequences of length squared: what attention costs."""

    @property
    def padding(self) -> int:
        return int(self.ids_RT.size) - self.tokens


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign sequences to rows of `capacity` tokens by best-fit-decreasing; a longer sequence gets a row of its own.

    Returns, for each row, the indices of its sequences; a pure function of the lengths, with ties broken by index.
    """
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (tokens left, row), ascending: the tightest row that still fits comes first
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        place = bisect_left(space, (length, -1))
        if place < len(space):
            left, row = space.pop(place)
            rows[row].append(index)
        else:
            left, row = max(capacity, length), len(rows)
            rows.append([index])
        insort(space, (left - length, row))
    return rows


def micro_batches(samples: Sequence[Sample], row_tokens: int, batch_tokens: int) -> list[MicroBatch]:
    """Pack samples into rows of `row_tokens` and group rows of similar length into batches of at most `batch_tokens`."""
    rows = pack([len(s.ids) for s in samples], row_tokens)
    widths = [sum(len(samples[i].ids) for i in row) for row in rows]
    batches: list[MicroBatch] = []
    group: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lambda r: (-widths[r], r)):
        width = max(widths[row], max((sum(len(samples[i].ids) for i in g) for g in group), default=0))
        if group and width * (len(group) + 1) > batch_tokens:
            batches.append(_lay_out(samples, group))
            group = []
        group.append(rows[row])
    if group:
        batches.append(_lay_out(samples, group))
    return batches


def _lay_out(samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> MicroBatch:
    width = max(sum(len(samples[i].ids) for i in row) for row in rows)
    shape = (len(rows), width)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments = np.full(shape, PAD_SEGMENT, np.int64)
    targets: list[tuple[int, int, int, int]] = []
    for r, row in enumerate(rows):
        column = 0
        for segment, index in enumerate(row):
            sample = samples[index]
            span = slice(column, column + len(sample.ids))
            ids[r, span], positions[r, span], segments[r, span] = sample.ids, np.arange(len(sample.ids)), segment
            targets.extend((r, column + t - 1, int(sample.ids[t]), sample.example) for t in range(sample.target_start, len(sample.ids)))
            column += len(sample.ids)
    rows_N, columns_N, targets_N, examples_N = np.array(targets, np.int64).T
    lengths = [len(samples[i].ids) for row in rows for i in row]
    return MicroBatch(
        ids_RT=ids,
        positions_RT=positions,
        segments_RT=segments,
        rows_N=rows_N,
        columns_N=columns_N,
        targets_N=targets_N,
        examples_N=examples_N,
        tokens=sum(lengths),
        squared_lengths=sum(n * n for n in lengths),
    )
