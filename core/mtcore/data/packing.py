"""Pack the examples of a step into padding-free sequences, with documents that examples share laid out once."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heapreplace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

CALL_PAIRS = 6000
"""What one more call of an attention kernel costs on a CPU, in query-key pairs (measured, docs/log.md)."""
KEY_PAIRS = 30
"""What one more key costs that is brought to a group of suffixes, in query-key pairs."""


# --- what goes in, what comes out ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One training sequence: token ids, and where its targets begin (the first id that is predicted, at least 1)."""

    ids: Ids
    target_start: int
    example: int
    """Position of the example in its optimizer step."""
    document: int = 0
    """Leading ids that are a document which other samples of the step may share: those whose document has the same ids (0: shares nothing)."""


@dataclass(frozen=True)
class AttentionBlock:
    """Trees of one shape, side by side in the sequence. A tree is a document, then suffixes that continue it and do not see each other.

    Without suffixes it is a plain causal segment. Suffixes are taken in groups: the tokens of a group look at the document and at the
    group through one mask (`visible`), so that short suffixes share a call. A suffix may end in a trie, whose tokens see their ancestors.
    Where the document has no tokens, suffixes are all there is.
    """

    count: int
    document: int
    groups: tuple[tuple[int, ...], ...] = ()
    """Lengths of the suffixes, group by group, in the order in which they stand behind the document."""
    tries: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """Of every suffix the parents of its last tokens, which are a trie below all that stands before them (-1); empty where none has one."""
    is_held: bool = False
    """Whether the document is no part of the sequence, because its keys and values are at hand; of one tree only."""

    @property
    def suffixes(self) -> tuple[int, ...]:
        return tuple(length for group in self.groups for length in group)

    @property
    def tokens(self) -> int:
        """Of one tree."""
        return (0 if self.is_held else self.document) + sum(self.suffixes)

    @property
    def pairs(self) -> int:
        """Query-key pairs that all trees need."""
        hidden = sum(_triangle(len(trie)) - int(ancestry(trie).sum()) for tries in self.tries for trie in tries)
        return self.count * (self._own_pairs + sum(s * self.document + _triangle(s) for s in self.suffixes) - hidden)

    @property
    def longest(self) -> int:
        """The most tokens that one token sees, itself included."""
        tries = [trie for group in self.tries for trie in group] or [()] * len(self.suffixes)
        depths = [int(ancestry(trie).sum(1).max(initial=0)) for trie in tries]
        return self.document + max((s - len(t) + d for s, t, d in zip(self.suffixes, tries, depths, strict=True)), default=0)

    @property
    def masked_pairs(self) -> int:
        """Pairs that are computed beside those, between suffixes of one group and above its diagonal."""
        grouped = sum(sum(group) * (self.document + sum(group)) for group in self.groups)
        return self.count * (self._own_pairs + grouped) - self.pairs

    @property
    def _own_pairs(self) -> int:
        """Of the document."""
        return 0 if self.is_held else _triangle(self.document)

    def visible(self, group: int) -> NDArray[np.bool_]:
        """Which keys (the document, then the group) each token of a group sees: bool [Q, K]."""
        lengths = self.groups[group]
        member_Q = np.repeat(np.arange(len(lengths)), lengths)
        own_QQ = (member_Q[:, None] == member_Q) & np.tri(len(member_Q), dtype=bool)
        if self.tries:
            for end, trie in zip(np.cumsum(lengths).tolist(), self.tries[group], strict=True):
                own_QQ[end - len(trie) : end, end - len(trie) : end] = ancestry(trie)
        return np.concatenate([np.ones((len(member_Q), self.document), bool), own_QQ], axis=1)


@dataclass(frozen=True)
class MicroBatch:
    """One sequence of T tokens with N target positions, torch-free and without padding.

    `blocks` cut the sequence into parts that attend to nothing outside themselves; positions are those in each example.
    Target n is the id `targets_N[n]`, predicted from the hidden state at `columns_N[n]`, for example `examples_N[n]`.
    """

    ids_T: NDArray[np.int64]
    positions_T: NDArray[np.int64]
    blocks: tuple[AttentionBlock, ...]
    columns_N: NDArray[np.int64]
    targets_N: NDArray[np.int64]
    examples_N: NDArray[np.int64]
    example_tokens: int
    """The examples' own lengths together: more than `tokens` where documents are shared."""

    @property
    def tokens(self) -> int:
        """Tokens that go through the model's body."""
        return len(self.ids_T)

    @property
    def padding(self) -> int:
        """Tokens that go through the body and belong to no example: none."""
        return self.tokens - sum(block.count * block.tokens for block in self.blocks)

    @property
    def attention_pairs(self) -> int:
        """Query-key pairs that attention needs: n(n+1)/2 for an example of n tokens by itself."""
        return sum(block.pairs for block in self.blocks)

    @property
    def attention_padding(self) -> int:
        """Pairs that attention by blocks computes beside those it needs."""
        return sum(block.masked_pairs for block in self.blocks)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


@lru_cache(maxsize=1024)
def ancestry(parents: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which nodes of a trie each of them continues, itself included: bool [M, M]. Parents (-1: none) stand before their children."""
    above_MM = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            above_MM[node] |= above_MM[parent]
    return above_MM


# --- packing ---------------------------------------------------------------------------------------------------------------------------


def pack(lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Assign sequences of at least one token to bins of `capacity` tokens by best-fit-decreasing; a longer one gets a bin of its own.

    Returns, for each bin, the indices of its sequences in the order in which they were placed; a pure function of the lengths, with ties
    broken by index.

    Best fit puts sequences of one length into the tightest bin with room until it has none: a bin with r tokens left takes r // length
    of them in a row. So bins are kept by the tokens that they have left, and each length is placed by slices, all bins of one kind at once.
    """
    lengths_N = np.asarray(lengths, np.int64)
    if not len(lengths_N):
        return []
    order_N = np.argsort(-lengths_N, kind="stable")
    values, counts = np.unique(lengths_N, return_counts=True)
    bin_of_N = np.empty(len(order_N), np.int64)  # in the order of `order_N`
    bins = placed = 0
    left: dict[int, list[NDArray[np.int64]]] = defaultdict(list)  # tokens left → bins, in pieces
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = placed + count
        for room in sorted(r for r in left if r >= length):
            members = np.sort(np.concatenate(left.pop(room)))
            each = room // length
            full, rest = divmod(min(end - placed, len(members) * each), each)
            bin_of_N[placed : placed + full * each] = np.repeat(members[:full], each)
            bin_of_N[placed + full * each : placed + full * each + rest] = members[full : full + 1].repeat(rest)
            placed += full * each + rest
            _put(left, room - each * length, members[:full])
            if rest:
                _put(left, room - rest * length, members[full : full + 1])
            _put(left, room, members[full + bool(rest) :])
            if placed == end:
                break
        if placed < end:
            each = max(1, capacity // length)
            number = -(-(end - placed) // each)
            fresh = np.arange(bins, bins + number)
            rest = end - placed - (number - 1) * each
            bin_of_N[placed:end] = np.repeat(fresh, each)[: end - placed]
            _put(left, max(0, capacity - each * length), fresh[:-1])
            _put(left, max(0, capacity - rest * length), fresh[-1:])
            bins += number
            placed = end
    return _split(order_N[np.argsort(bin_of_N, kind="stable")], np.bincount(bin_of_N))


def _put(left: dict[int, list[NDArray[np.int64]]], room: int, bins: NDArray[np.int64]) -> None:
    if room and len(bins):
        left[room].append(bins)


def _split(values: NDArray[np.int64], counts: NDArray[np.int64]) -> list[list[int]]:
    """Consecutive parts of `values`, as lists: many short ones, for which np.split is slow."""
    everything, ends = values.tolist(), np.cumsum(counts).tolist()
    return [everything[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def deal(samples: Sequence[Sample], processes: int) -> list[list[int]]:
    """Deal samples to processes so that each gets about as many tokens; samples of one document stay together.

    The most costly go first, each to the process with the least so far. Returns ascending indices for each process, none where there are
    fewer documents than processes; a pure function of the samples.
    """
    families = _families(samples)
    costs = [_tokens(samples, family) for family in families]
    hands: list[list[int]] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    heapify(loads)
    for number in sorted(range(len(families)), key=lambda f: (-costs[f], f)):
        load, process = loads[0]
        hands[process] += families[number]
        heapreplace(loads, (load + costs[number], process))
    return [sorted(hand) for hand in hands]


def _families(samples: Sequence[Sample]) -> list[list[int]]:
    """Samples that share a document, together; in the order of their first members."""
    families: dict[object, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        shares = 0 < sample.document < len(sample.ids)
        families[sample.ids[: sample.document].tobytes() if shares else index].append(index)
    return list(families.values())


def _tokens(samples: Sequence[Sample], family: Sequence[int]) -> int:
    """Tokens of the samples with what they share counted once."""
    shared = samples[family[0]].document if len(family) > 1 else 0
    return shared + sum(len(samples[i].ids) - shared for i in family)


# --- micro-batches ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """Samples laid out over one document. A sample by itself is all document."""

    members: tuple[int, ...]
    document: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def block(self) -> AttentionBlock:
        return AttentionBlock(1, self.document, self.groups)


def micro_batches(samples: Sequence[Sample], batch_tokens: int) -> list[MicroBatch]:
    """Lay the samples out as sequences of at most `batch_tokens` tokens; a longer sample gets a sequence of its own.

    Samples that share a document stand in one tree; a tree that does not fit is split into several, and each repeats the document.
    """
    return [_lay_out(samples, trees) for trees in _bins(samples, batch_tokens)]


def count_batches(samples: Sequence[Sample], batch_tokens: int) -> int:
    """How many batches `micro_batches` would lay out."""
    return len(_bins(samples, batch_tokens))


def _bins(samples: Sequence[Sample], batch_tokens: int) -> list[list["_Tree"]]:
    trees = [tree for family in _families(samples) for tree in _trees(samples, family, batch_tokens)]
    return [[trees[i] for i in members] for members in pack([tree.block.tokens for tree in trees], batch_tokens)]


def _trees(samples: Sequence[Sample], family: Sequence[int], batch_tokens: int) -> Iterable[_Tree]:
    document = samples[family[0]].document
    lengths = [len(samples[i].ids) - document for i in family]
    parts = [[0]] if len(family) == 1 else pack(lengths, max(1, batch_tokens - document))
    for part in parts:
        members = tuple(family[i] for i in part)
        if len(members) == 1:
            yield _Tree(members, len(samples[members[0]].ids), ())
        else:
            yield _Tree(members, document, _groups(document, [lengths[i] for i in part]))


def _groups(document: int, suffixes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Group consecutive suffixes so that attention costs least.

    A larger group computes more pairs that its mask hides, a smaller one more often brings the document's keys.
    """
    width = max(1.0, (CALL_PAIRS + KEY_PAIRS * document) ** 0.5)  # tokens of a group: the minimum of (call + keys) / width + width
    groups: list[list[int]] = []
    for length in suffixes:
        if groups and sum(groups[-1]) + length <= width:
            groups[-1].append(length)
        else:
            groups.append([length])
    return tuple(tuple(group) for group in groups)


def _lay_out(samples: Sequence[Sample], trees: Sequence[_Tree]) -> MicroBatch:
    """Trees of one shape side by side, the largest first, which a kernel can take together without moving anything."""
    ordered = sorted(trees, key=lambda tree: (-tree.block.tokens, tree.document, tree.groups))
    ids: list[NDArray[np.int32]] = []
    positions: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    start = 0
    for tree in ordered:
        ids.append(samples[tree.members[0]].ids[: tree.document])
        positions.append(np.arange(tree.document))
        suffix = start + tree.document
        for index in tree.members:
            sample = samples[index]
            ids.append(sample.ids[tree.document :])
            positions.append(np.arange(tree.document, len(sample.ids)))
            before_N = np.arange(sample.target_start - 1, len(sample.ids) - 1)  # the positions that targets are predicted from
            columns.append(before_N + np.where(before_N < tree.document, start, suffix - tree.document))
            suffix += len(sample.ids) - tree.document
        start = suffix
    members = [samples[i] for tree in ordered for i in tree.members]
    return MicroBatch(
        ids_T=np.concatenate(ids).astype(np.int64),
        positions_T=np.concatenate(positions),
        blocks=tuple(
            AttentionBlock(len(list(same)), *shape) for shape, same in groupby(ordered, key=lambda tree: (tree.document, tree.groups))
        ),
        columns_N=np.concatenate(columns),
        targets_N=np.concatenate([s.ids[s.target_start :] for s in members]).astype(np.int64),
        examples_N=np.repeat(np.array([s.example for s in members]), [len(s.ids) - s.target_start for s in members]),
        example_tokens=sum(len(s.ids) for s in members),
    )
