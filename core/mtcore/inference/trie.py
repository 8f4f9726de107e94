"""A set of label paths as a trie laid out for one forward pass: nodes to feed, and where each label's probability is read off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mtcore.data.packing import ancestry
from mtcore.data.text import TextEncoder
from mtcore.types import TaskSpec

Path = tuple[int, ...]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelTrie:
    """M inner nodes of a trie, and E edges from a node (-1: the prompt's last token) to a token.

    Only inner nodes are fed to the model: a token after which nothing is asked needs no forward pass of its own. Where no label is the
    beginning of another, labels are told apart without the end token and their probability is that of their tokens; where one is, the
    end token is part of every label.
    """

    labels: tuple[str, ...]
    tokens_M: Ints
    parents_M: Ints
    edge_nodes_E: Ints
    edge_tokens_E: Ints
    paths_LE: NDArray[np.bool_]
    """Which edges a label's path takes: its log-probability is the sum over them."""

    @cached_property
    def parents(self) -> tuple[int, ...]:
        return tuple(self.parents_M.tolist())

    @cached_property
    def depths(self) -> Ints:
        """How many nodes each node sees, itself included [M]."""
        return np.asarray(ancestry(self.parents).sum(1, dtype=np.int64))

    @cached_property
    def pairs(self) -> int:
        """How many nodes the nodes see, themselves included, summed over nodes: what attention among them costs."""
        return int(self.depths.sum())

    @cached_property
    def asked(self) -> int:
        """Positions whose next token is predicted."""
        return len(np.unique(self.edge_nodes_E))

    def log_probabilities(self, edges_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-probabilities [L] of all labels from those of all edges."""
        return self.paths_LE @ edges_E


def build_trie(paths: Mapping[str, Sequence[int]], end: int) -> LabelTrie:
    """Lay out the paths of a label set. Paths must differ; `end` is the end token's id."""
    ordered = {label: tuple(path) for label, path in paths.items()}
    if not is_prefix_free(list(ordered.values())):
        ordered = {label: (*path, end) for label, path in ordered.items()}
    inner = sorted({path[:cut] for path in ordered.values() for cut in range(1, len(path))}, key=lambda p: (len(p), p))
    number = {(): -1, **{prefix: index for index, prefix in enumerate(inner)}}
    edges = {prefix: index for index, prefix in enumerate(dict.fromkeys(p[:cut] for p in ordered.values() for cut in range(1, len(p) + 1)))}
    taken = np.zeros((len(ordered), len(edges)), bool)
    for row, path in enumerate(ordered.values()):
        taken[row, [edges[path[:cut]] for cut in range(1, len(path) + 1)]] = True
    return LabelTrie(
        labels=tuple(ordered),
        tokens_M=np.array([prefix[-1] for prefix in inner], np.int64),
        parents_M=np.array([number[prefix[:-1]] for prefix in inner], np.int64),
        edge_nodes_E=np.array([number[prefix[:-1]] for prefix in edges], np.int64),
        edge_tokens_E=np.array([prefix[-1] for prefix in edges], np.int64),
        paths_LE=taken,
    )


def next_labels(spec: TaskSpec, encoder: TextEncoder, chosen: Sequence[str]) -> LabelTrie:
    """Multi-label: what may follow the labels chosen so far, a later label of the canonical order or the end (label "")."""
    left = spec.labels[spec.labels.index(chosen[-1]) + 1 :] if chosen else spec.labels
    lead = [spec.separator] if chosen else []
    paths = {label: tuple(encoder.answer_ids([*lead, spec.words[label]])) for label in left}
    end = (encoder.eos_id,) if chosen else tuple(encoder.answer_ids([spec.none_word]))
    return build_trie({**paths, "": end}, encoder.eos_id)


def is_prefix_free(paths: Sequence[Path]) -> bool:
    """Whether no path begins with another."""
    ordered = sorted(paths)
    return all(longer[: len(shorter)] != shorter for shorter, longer in pairwise(ordered))
