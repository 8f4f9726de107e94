"""Score label sets: the exact log-probability of every label of many prompts, prompts that share a beginning and their tries in one pass."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from mtcore.inference.cache import PrefixCache, Prefixes
from mtcore.inference.costs import Costs, nominal
from mtcore.inference.forest import Forest, Query, Tree, forests, over_held, shared_trees, tokens_of
from mtcore.modeling.attention import NAME, install, on_device
from mtcore.modeling.flops import model_size
from mtcore.modeling.head import body, head

__all__ = ["Query", "edge_log_probabilities", "score_labels", "softmax"]

LOGITS = 2**25
"""Logits that are held at once (128 MiB in fp32); more are computed in parts."""


@torch.no_grad()
def score_labels(
    model: PreTrainedModel, queries: Sequence[Query], batch_tokens: int, costs: Costs | None = None, texts: PrefixCache | None = None
) -> list[NDArray[np.float64]]:
    """Log-probabilities [L] for each query, in passes of at most `batch_tokens` tokens.

    `costs` decides which prompts are read together; without them it is decided by floating-point operations. Stems that `texts` holds
    are not read again, and those that are read here are kept in it.
    """
    results: list[NDArray[np.float64]] = [np.empty(0)] * len(queries)
    if not queries:
        return results
    if model.config._attn_implementation != NAME:
        install(model)
    costs = costs or nominal(model_size(model))
    trees = shared_trees(queries, costs)
    if texts is not None:
        trees = over_held(queries, trees, costs, texts.lookup)
    trees = [_read_once(model, queries, tree, batch_tokens) for tree in trees]
    for forest in forests(queries, trees, batch_tokens, costs):
        for index, scores in zip(forest.members, _score(model, queries, forest, texts), strict=True):
            results[index] = scores
    return results


def _read_once(model: PreTrainedModel, queries: Sequence[Query], tree: Tree, batch_tokens: int) -> Tree:
    """Where a tree must be split, what it shares is read before, and not with every part."""
    if tree.held or len(tree.members) == 1 or tokens_of(tree, queries) <= batch_tokens:
        return tree
    shared = min(tree.shared, *(len(queries[i].prompt) - 1 for i in tree.members))  # something must be left to ask
    if shared < 1:
        return tree
    return Tree(tree.members, shared, Prefixes.read(model, [queries[tree.members[0]].prompt[:shared]]))


def _score(model: PreTrainedModel, queries: Sequence[Query], forest: Forest, texts: PrefixCache | None) -> list[NDArray[np.float64]]:
    device = model.device
    ids_T, positions_T = (torch.from_numpy(x).to(device, non_blocking=True) for x in (forest.ids_T, forest.positions_T))
    stems = forest.stems if texts is not None else ()
    blocks = on_device(
        forest.blocks,
        device,
        held=[prefix.layers for prefix in forest.held],
        keep=[slice(start, start + len(stem)) for start, stem in stems],
    )
    hidden_TD = body(model, ids_T[None], positions_T[None], blocks)[0]
    if texts is not None:
        for number, (start, stem) in enumerate(stems):
            last_BD = hidden_TD[start + len(stem) - 1 : start + len(stem)]
            texts.add(stem, Prefixes.of([layer[number] for layer in blocks.kept], last_BD))
    tries = [queries[i].trie for i in forest.members]
    edges = edge_log_probabilities(model, hidden_TD, np.concatenate(forest.columns), np.concatenate([t.edge_tokens_E for t in tries]))
    borders = np.cumsum([len(t.edge_nodes_E) for t in tries])[:-1]
    return [trie.log_probabilities(part) for trie, part in zip(tries, np.split(edges, borders), strict=True)]


@torch.no_grad()
def edge_log_probabilities(
    model: PreTrainedModel, hidden_TD: torch.Tensor, columns: NDArray[np.int64], tokens: NDArray[np.int64], logits: int = LOGITS
) -> NDArray[np.float64]:
    """Log-probability of each edge's token at its column; every column's logits are computed once."""
    unique, where = np.unique(columns, return_inverse=True)
    order = np.argsort(where, kind="stable")
    ends = np.cumsum(np.bincount(where, minlength=len(unique)))
    hidden_ND = hidden_TD[torch.from_numpy(unique).to(hidden_TD.device)]
    rows = max(1, logits // model.config.get_text_config().vocab_size)
    parts: list[torch.Tensor] = []
    for start in range(0, len(unique), rows):
        logits_NV = head(model, hidden_ND[start : start + rows]).float()
        mine = order[(ends[start - 1] if start else 0) : ends[start + len(logits_NV) - 1]]
        local, wanted = (torch.from_numpy(x).to(logits_NV.device) for x in (where[mine] - start, tokens[mine]))
        parts.append((logits_NV[local, wanted] - logits_NV.logsumexp(-1)[local]).double())
    edges = np.empty(len(tokens))
    edges[order] = torch.cat(parts).cpu().numpy()
    return edges


def softmax(logs_L: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities [L] over the label set alone."""
    weights = np.exp(logs_L - logs_L.max())
    return np.asarray(weights / weights.sum())
