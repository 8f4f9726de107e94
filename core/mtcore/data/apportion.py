"""Whole draws from shares: how many draws of every task fall before each position; they sum to the position and never fall."""

import heapq
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def apportion(positions: Ints, shares: tuple[float, ...]) -> Ints:
    """Draws [positions, tasks] of every task up to each position; they sum to the position, never fall, and follow the shares.

    Positions are halved down a weight-balanced (Huffman) tree of the tasks: at each node the left side gets its rounded part of what
    the node got, the right side the rest. Both never fall as positions grow, so a block's counts are never negative, which cumulative
    largest remainders do not promise for small shares. Where every share times the position is whole, so is the result.
    """
    root, levels = _tree(shares)
    given = np.zeros((2 * len(shares) - 1, len(positions)), np.int64)
    given[root] = positions
    for level in levels:
        part = np.floor(given[level.node] * level.part[:, None] + 0.5).astype(np.int64)
        given[level.left], given[level.right] = part, given[level.node] - part
    return given[: len(shares)].T


class _Level(NamedTuple):
    """Inner nodes of one depth: their numbers, their children's, and the left child's part of what a node gets."""

    node: Ints
    left: Ints
    right: Ints
    part: NDArray[np.float64]


@lru_cache(maxsize=16)
def _tree(shares: tuple[float, ...]) -> tuple[int, Sequence[_Level]]:
    """The root and the levels below it; nodes are numbered, the tasks first."""
    heap = [(share, index, index) for index, share in enumerate(shares)]
    heapq.heapify(heap)
    children: dict[int, tuple[int, int, float]] = {}
    while len(heap) > 1:
        (light, _, a), (heavy, rank, b) = heapq.heappop(heap), heapq.heappop(heap)
        node = len(shares) + len(children)
        children[node] = (a, b, light / (light + heavy) if light + heavy else 0.5)
        heapq.heappush(heap, (light + heavy, len(shares) + rank, node))
    root, levels = heap[0][2], []
    nodes = [root] if root in children else []
    while nodes:
        left, right, part = zip(*(children[node] for node in nodes), strict=True)
        levels.append(_Level(np.array(nodes), np.array(left), np.array(right), np.array(part)))
        nodes = [child for child in (*left, *right) if child in children]
    return root, levels
