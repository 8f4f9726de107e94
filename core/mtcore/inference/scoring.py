"""Score label sets: the exact log-probability of every label of many prompts, each prompt and its trie in one forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from mtcore.inference.trie import LabelTrie
from mtcore.modeling.attention import tree_positions_and_mask
from mtcore.modeling.head import body, head

HEAD_ROWS = 1024
"""Positions whose logits are computed together: bounds memory with large vocabularies."""


@dataclass(frozen=True)
class Query:
    """A prompt and the label set asked of it."""

    prompt: NDArray[np.int32]
    trie: LabelTrie

    @property
    def cost(self) -> int:
        return len(self.prompt) + len(self.trie.tokens_M)


@torch.no_grad()
def score_labels(model: PreTrainedModel, queries: Sequence[Query], batch_tokens: int) -> list[NDArray[np.float64]]:
    """Log-probabilities [L] for each query, batched by length under a budget of padded tokens."""
    results: list[NDArray[np.float64]] = [np.empty(0)] * len(queries)
    for members in _batches(queries, batch_tokens):
        for index, scores in zip(members, _score([queries[i] for i in members], model), strict=True):
            results[index] = scores
    return results


def _batches(queries: Sequence[Query], batch_tokens: int) -> Iterator[list[int]]:
    group: list[int] = []
    for index in sorted(range(len(queries)), key=lambda i: (-queries[i].cost, i)):
        if group and queries[group[0]].cost * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _score(queries: Sequence[Query], model: PreTrainedModel) -> list[NDArray[np.float64]]:
    width = max(q.cost for q in queries)
    ids_BT = np.zeros((len(queries), width), np.int64)
    positions_BT = np.zeros((len(queries), width), np.int64)
    visible_BTT = np.zeros((len(queries), width, width), bool)
    rows, columns, tokens = [], [], []
    for b, query in enumerate(queries):
        length, nodes = len(query.prompt), len(query.trie.tokens_M)
        # the prompt is chunk 0, every node a chunk of its own below its parent
        chunk_of_T = np.concatenate([np.zeros(length, np.int64), np.arange(1, nodes + 1)])
        positions, visible = tree_positions_and_mask(chunk_of_T, np.concatenate([[-1], query.trie.parents_M + 1]))
        ids_BT[b, : query.cost] = np.concatenate([query.prompt, query.trie.tokens_M])
        positions_BT[b, : query.cost] = positions
        visible_BTT[b, : query.cost, : query.cost] = visible
        rows.append(np.full(len(query.trie.edge_nodes_E), b))
        columns.append(query.trie.edge_nodes_E + length)  # node -1, the prompt, is its last token
        tokens.append(query.trie.edge_tokens_E)
    visible_BTT[:, np.arange(width), np.arange(width)] = True  # padding sees itself: a row without any key would be all NaN
    device = model.device
    hidden_BTD = body(
        model,
        torch.from_numpy(ids_BT).to(device),
        torch.from_numpy(positions_BT).to(device),
        torch.from_numpy(visible_BTT)[:, None].to(device),
    )
    edges = _edge_log_probabilities(model, hidden_BTD, np.concatenate(rows), np.concatenate(columns), np.concatenate(tokens))
    borders = np.cumsum([len(q.trie.edge_nodes_E) for q in queries])[:-1]
    return [query.trie.log_probabilities(part) for query, part in zip(queries, np.split(edges, borders), strict=True)]


def _edge_log_probabilities(
    model: PreTrainedModel, hidden_BTD: torch.Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64], tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Log-probability of each edge's token at its position; every position's logits are computed once."""
    flat = torch.from_numpy(rows * hidden_BTD.shape[1] + columns).to(hidden_BTD.device)
    unique, where = torch.unique(flat, return_inverse=True)
    hidden_ND = hidden_BTD.flatten(0, 1)[unique]
    wanted = torch.from_numpy(tokens).to(hidden_BTD.device)
    edges = torch.empty(len(tokens), dtype=torch.float64, device=hidden_BTD.device)
    for start in range(0, len(unique), HEAD_ROWS):
        logits_NV = head(model, hidden_ND[start : start + HEAD_ROWS]).float()
        mine = (where >= start) & (where < start + len(logits_NV))
        local = where[mine] - start
        edges[mine] = (logits_NV[local, wanted[mine]] - logits_NV.logsumexp(-1)[local]).double()
    return edges.cpu().numpy()


def softmax(logs_L: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities [L] over the label set alone."""
    weights = np.exp(logs_L - logs_L.max())
    return np.asarray(weights / weights.sum())
