"""Lay queries out for few forward passes: leading ids that prompts share stand once, then what is each prompt's own, then its label trie."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from mtcore.data.packing import AttentionBlock, pack
from mtcore.data.text import Ids
from mtcore.inference.cache import Prefixes
from mtcore.inference.costs import Costs
from mtcore.inference.prefill import common
from mtcore.inference.trie import LabelTrie


@dataclass(frozen=True)
class Query:
    """A prompt and the label set asked of it."""

    prompt: Ids
    trie: LabelTrie
    stem: int = 0
    """Leading ids that other queries begin with too, now or later: what is worth keeping when it has been read."""

    @property
    def cost(self) -> int:
        return len(self.prompt) + len(self.trie.tokens_M)

    @property
    def kept(self) -> Ids:
        """The stem, without the last token of the prompt: something must be left to ask."""
        return self.prompt[: min(self.stem, len(self.prompt) - 1)]


@dataclass(frozen=True)
class Tree:
    """Queries over the leading ids that their prompts share. A query by itself is all shared but its trie."""

    members: tuple[int, ...]
    shared: int
    held: Prefixes | None = None
    """What is shared, where it has been read already: then it is no part of the sequence."""


@dataclass(frozen=True)
class Forest:
    """Trees in one sequence of T tokens, without padding."""

    members: tuple[int, ...]
    ids_T: NDArray[np.int64]
    positions_T: NDArray[np.int64]
    blocks: tuple[AttentionBlock, ...]
    columns: tuple[NDArray[np.int64], ...]
    """Of every member, where the token of each of its trie's edges is predicted."""
    held: tuple[Prefixes, ...]
    """Of every block whose document is held, that document."""
    stems: tuple[tuple[int, Ids], ...]
    """Stems that are read here, each with the column that it begins at."""


def forests(queries: Sequence[Query], trees: Iterable[Tree], batch_tokens: int, costs: Costs) -> Iterator[Forest]:
    """Lay trees out in sequences of at most `batch_tokens` tokens; a longer query gets one of its own.

    A tree that does not fit is split into several, and each repeats what is shared and not held.
    """
    parts = [part for tree in trees for part in _split(tree, queries, batch_tokens)]
    for members in pack([tokens_of(tree, queries) for tree in parts], batch_tokens):
        yield _lay_out(queries, [parts[i] for i in members], costs)


def over_held(queries: Sequence[Query], trees: Iterable[Tree], costs: Costs, lookup: Callable[[Ids], Prefixes | None]) -> list[Tree]:
    """The same queries, where it costs less over stems that `lookup` finds, which need not be read again."""
    kept: list[Tree] = []
    held: dict[bytes, tuple[Prefixes, list[int]]] = {}
    for tree in trees:
        stems = {i: queries[i].kept for i in tree.members}
        found = {i: prefix for i, stem in stems.items() if len(stem) and (prefix := lookup(stem)) is not None}
        behind = sum(costs.behind(len(stems[i]), queries[i].cost - len(stems[i])) for i in tree.members)
        if len(found) < len(stems) or behind > costs.tree(tree.shared, tokens_of(tree, queries) - tree.shared):
            kept.append(tree)
            continue
        for i, prefix in found.items():
            held.setdefault(stems[i].tobytes(), (prefix, []))[1].append(i)
    return kept + [Tree(tuple(members), int(prefix.lengths[0]), prefix) for prefix, members in held.values()]


def shared_trees(queries: Sequence[Query], costs: Costs) -> list[Tree]:
    """Which prompts stand together.

    Prompts are sorted, so that those with a common beginning are neighbours. Neighbours are joined, those that share most first, wherever
    one tree over all that they share costs less than the trees that they are in.
    """
    keys = [query.prompt.astype(">i4").tobytes() for query in queries]  # big-endian: bytes sort as ids do
    order = sorted(range(len(queries)), key=keys.__getitem__)
    alone = [costs.tree(len(q.prompt), len(q.trie.tokens_M)) for q in queries]
    shares = [common(queries[a].prompt, queries[b].prompt) for a, b in pairwise(order)]
    runs = {
        place: _Run(place, place + 1, queries[i].cost, alone[i], (Tree((i,), len(queries[i].prompt)),)) for place, i in enumerate(order)
    }
    ends = {run.end: run for run in runs.values()}
    for place in sorted(range(len(shares)), key=lambda place: -shares[place]):
        if not shares[place]:
            break
        left, right = ends.pop(place + 1), runs.pop(place + 1)
        tokens, count, shared = left.tokens + right.tokens, right.end - left.start, shares[place]
        together = costs.tree(shared, tokens - count * shared)
        trees = left.trees + right.trees
        if together <= left.cost + right.cost:
            trees = (Tree(tuple(order[left.start : right.end]), shared),)
        runs[left.start] = ends[right.end] = _Run(left.start, right.end, tokens, min(together, left.cost + right.cost), trees)
    return [tree for run in runs.values() for tree in run.trees]


@dataclass(frozen=True)
class _Run:
    """Neighbours in sorted order, and the trees that they are best laid out in."""

    start: int
    end: int
    tokens: int
    cost: float
    trees: tuple[Tree, ...]


def tokens_of(tree: Tree, queries: Sequence[Query]) -> int:
    """Tokens that go through the model's body."""
    return (0 if tree.held else tree.shared) + sum(queries[i].cost - tree.shared for i in tree.members)


def _split(tree: Tree, queries: Sequence[Query], batch_tokens: int) -> Iterator[Tree]:
    if tokens_of(tree, queries) <= batch_tokens:
        yield tree
        return
    room = batch_tokens - (0 if tree.held else tree.shared)
    for part in pack([max(1, queries[i].cost - tree.shared) for i in tree.members], max(1, room)):
        members = tuple(tree.members[k] for k in part)
        yield Tree(members, tree.shared if tree.held or len(members) > 1 else len(queries[members[0]].prompt), tree.held)


def _lay_out(queries: Sequence[Query], trees: Sequence[Tree], costs: Costs) -> Forest:
    shaped = [(_block(tree, queries, costs), tree) for tree in trees]
    shaped.sort(key=lambda pair: (-pair[0].tokens, pair[0].document, pair[0].groups, pair[0].tries))
    ids: list[NDArray[np.integer]] = []
    positions: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    stems: dict[bytes, tuple[int, Ids]] = {}
    start = 0
    for _, tree in shaped:
        if not tree.held:
            for kept in (queries[i].kept for i in tree.members):
                if 0 < len(kept) <= tree.shared:
                    stems.setdefault(kept.tobytes(), (start, kept))
            ids.append(queries[tree.members[0]].prompt[: tree.shared])
            positions.append(np.arange(tree.shared))
            start += tree.shared
        end_of_shared = start
        for index in tree.members:
            prompt, trie = queries[index].prompt, queries[index].trie
            own = len(prompt) - tree.shared
            ids += [prompt[tree.shared :], trie.tokens_M]
            positions += [np.arange(tree.shared, len(prompt)), trie.depths + (len(prompt) - 1)]
            # node -1, the prompt, is its last token: without an own part that of what is shared
            columns.append(np.where(trie.edge_nodes_E + own < 0, end_of_shared - 1, trie.edge_nodes_E + (start + own)))
            start += own + len(trie.tokens_M)
    return Forest(
        members=tuple(i for _, tree in shaped for i in tree.members),
        ids_T=np.concatenate(ids).astype(np.int64),
        positions_T=np.concatenate(positions),
        blocks=tuple(_of_one_shape([block for block, _ in shaped])),
        columns=tuple(columns),
        held=tuple(tree.held for _, tree in shaped if tree.held),
        stems=tuple(stems.values()),
    )


def _block(tree: Tree, queries: Sequence[Query], costs: Costs) -> AttentionBlock:
    """Neighbouring suffixes share a group as long as that costs less than another call. A short prompt by itself stands in its trie's."""
    first = queries[tree.members[0]]
    if len(tree.members) == 1 and not tree.held and costs.is_one_call(tree.shared, first.cost - tree.shared):
        return AttentionBlock(1, 0, ((first.cost,),), ((first.trie.parents,),))
    width = costs.width(tree.shared)
    groups: list[list[int]] = []
    tries: list[list[tuple[int, ...]]] = []
    for query in (queries[i] for i in tree.members):
        length = query.cost - tree.shared
        if not length:  # asked at the end of what is shared
            continue
        if not groups or sum(groups[-1]) + length > width:
            groups.append([])
            tries.append([])
        groups[-1].append(length)
        tries[-1].append(query.trie.parents)
    return AttentionBlock(1, tree.shared, tuple(map(tuple, groups)), tuple(map(tuple, tries)), is_held=tree.held is not None)


def _of_one_shape(blocks: Sequence[AttentionBlock]) -> Iterator[AttentionBlock]:
    """Trees of one shape side by side are one block, which a kernel can take together without moving anything."""
    for block, same in groupby(blocks):
        count = len(list(same))
        yield from [block] * count if block.is_held else [replace(block, count=count)]
