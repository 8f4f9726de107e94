"""Lay texts out to be read in one pass without padding: leading ids that several of them share stand once."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mtcore.data.packing import CALL_PAIRS, KEY_PAIRS, AttentionBlock
from mtcore.data.text import Ids

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Texts in one sequence of T tokens."""

    ids_T: Ints
    positions_T: Ints
    blocks: tuple[AttentionBlock, ...]
    columns: tuple[Ints, ...]
    """Where the tokens of each text stand; beginnings that are at hand stand behind the sequence."""
    held: tuple[int, ...]
    """Of every beginning at hand, in the order in which they stand, a text that begins with it."""


def lay_out(texts: Sequence[Ids], held: Sequence[int]) -> Layout:
    """Texts of one family stand in one tree. Of each text, so many leading ids are at hand and are not laid out."""
    shaped = [(_block(tree, texts), tree) for tree in _over_held(texts, held)]
    shaped.sort(key=lambda pair: (-pair[0].tokens, pair[0].document, pair[0].groups))
    ids: list[Ids] = []
    positions: list[Ints] = []
    columns = [np.empty(0, np.int64)] * len(texts)
    start, behind = 0, sum(block.tokens for block, _ in shaped)
    for _, tree in shaped:
        first = behind if tree.is_held else start
        shared = np.arange(first, first + tree.shared)
        if tree.is_held:
            behind += tree.shared
        else:
            ids.append(texts[tree.members[0]][: tree.shared])
            positions.append(np.arange(tree.shared))
            start += tree.shared
        for index in tree.members:
            own = texts[index][tree.shared :]
            ids.append(own)
            positions.append(np.arange(tree.shared, len(texts[index])))
            columns[index] = np.concatenate([shared, np.arange(start, start + len(own))])
            start += len(own)
    blocks: list[AttentionBlock] = []
    for block, same in groupby(block for block, _ in shaped):
        count = len(list(same))
        blocks += [block] * count if block.is_held else [replace(block, count=count)]
    return Layout(
        ids_T=np.concatenate(ids).astype(np.int64),
        positions_T=np.concatenate(positions),
        blocks=tuple(blocks),
        columns=tuple(columns),
        held=tuple(tree.members[0] for _, tree in shaped if tree.is_held),
    )


def families(texts: Sequence[Ids]) -> list[tuple[int, ...]]:
    """Texts that are read together, those of the longest first."""
    members = [tree.members for tree in _trees(texts)]
    return sorted(members, key=lambda family: (-max(len(texts[i]) for i in family), family))


def admit(waiting: deque[int], reach: Sequence[int], rows: Sequence[int], batch_tokens: int) -> list[int]:
    """Take from those that wait as many as may stand beside `rows`: all, times the farthest reach, within the budget; or one, where none is."""
    joining: list[int] = []
    farthest = max((reach[i] for i in rows), default=0)
    while waiting:
        farthest = max(farthest, reach[waiting[0]])
        count = len(rows) + len(joining)
        if count and (count + 1) * farthest > batch_tokens:
            break
        joining.append(waiting.popleft())
    return joining


@dataclass(frozen=True)
class _Tree:
    members: tuple[int, ...]
    shared: int
    is_held: bool = False


def _trees(texts: Sequence[Ids]) -> Iterator[_Tree]:
    """Neighbours in sorted order stand together while what they share is at least half of each."""
    keys = [text.astype(">i4").tobytes() for text in texts]  # big-endian: bytes sort as ids do
    members: tuple[int, ...] = ()
    shared = longest = 0
    for index in sorted(range(len(texts)), key=keys.__getitem__):
        longest = max(longest, len(texts[index]))
        now = min(shared, common(texts[members[-1]], texts[index])) if members else longest
        if 2 * now < longest:
            yield _Tree(members, shared)
            members, now, longest = (), len(texts[index]), len(texts[index])
        members, shared = (*members, index), now
    if members:
        yield _Tree(members, shared)


def _over_held(texts: Sequence[Ids], held: Sequence[int]) -> Iterator[_Tree]:
    beginnings: dict[bytes, list[int]] = {}
    for index, text in enumerate(texts):
        beginnings.setdefault(text[: held[index]].tobytes(), []).append(index)
    new = beginnings.pop(b"", [])
    for tree in _trees([texts[i] for i in new]):
        yield _Tree(tuple(new[i] for i in tree.members), tree.shared)
    for members in beginnings.values():
        yield _Tree(tuple(members), held[members[0]], is_held=True)


def common(one: Ids, other: Ids) -> int:
    """How many leading ids are the same."""
    shorter = min(len(one), len(other))
    differ = one[:shorter] != other[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


def _block(tree: _Tree, texts: Sequence[Ids]) -> AttentionBlock:
    """Suffixes share a group up to the width at which attention costs least (data/packing.py)."""
    width = (CALL_PAIRS + KEY_PAIRS * tree.shared) ** 0.5
    groups: list[list[int]] = []
    for own in filter(None, (len(texts[i]) - tree.shared for i in tree.members)):
        if groups and sum(groups[-1]) + own <= width:
            groups[-1].append(own)
        else:
            groups.append([own])
    return AttentionBlock(1, tree.shared, tuple(map(tuple, groups)), is_held=tree.is_held)
