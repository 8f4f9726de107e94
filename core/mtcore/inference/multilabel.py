"""Answer multi-label tasks: at every turn the next label of the canonical order, or the end, over a prompt that is read once."""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from mtcore.data.packing import ancestry
from mtcore.data.text import Ids, TextEncoder
from mtcore.inference.cache import PrefixCache, Prefixes
from mtcore.inference.prefill import admit, families
from mtcore.inference.scoring import edge_log_probabilities, softmax
from mtcore.inference.trie import LabelTrie, next_labels
from mtcore.types import TaskSpec


class Grammar:
    """The answers of a multi-label task: what may follow each label. Tries are laid out when they are first asked for."""

    def __init__(self, spec: TaskSpec, encoder: TextEncoder) -> None:
        self.room = encoder.room_for_answers(spec)
        """Ids that the longest answer may take."""
        self._spec = spec
        self._encoder = encoder
        self._tries: dict[str, LabelTrie] = {}

    def after(self, label: str) -> LabelTrie:
        """What may follow a label ("": the prompt), with "" for the end."""
        if label not in self._tries:
            self._tries[label] = next_labels(self._spec, self._encoder, [label] if label else [])
        return self._tries[label]

    def ids(self, label: str, before: str) -> list[int]:
        """The label's word as it stands behind another label, or first."""
        return self._encoder.answer_ids([*([self._spec.separator] if before else []), self._spec.words[label]])


@torch.no_grad()
def choose_labels(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    grammars: Sequence[Grammar],
    batch_tokens: int,
    held: PrefixCache | None = None,
    stems: Sequence[int] = (),
) -> list[dict[str, float]]:
    """Of each prompt the labels chosen, with the probability of each among what could stand in its place; none of them is the word for none.

    With `held`, the first `stems` tokens of each prompt are not read where they are held, and kept where they are read.
    """
    reach = [len(p) + g.room + len(g.after("").tokens_M) for p, g in zip(prompts, grammars, strict=True)]
    waiting = deque(i for family in families(prompts) for i in family)
    chosen: list[dict[str, float]] = [{} for _ in prompts]
    while waiting:
        rows = admit(waiting, reach, [], batch_tokens)
        new = [prompts[i] for i in rows]
        texts = held.read(model, new, [stems[i] for i in rows]) if held else Prefixes.read(model, new)
        last = dict.fromkeys(rows, "")
        added: dict[int, list[int]] = {i: [] for i in rows}
        while rows:
            tries = [grammars[i].after(last[i]) for i in rows]
            texts, scores = _ask(model, texts, [added[i] for i in rows], tries)
            growing = []
            for row, (i, trie, logs_L) in enumerate(zip(rows, tries, scores, strict=True)):
                best = int(np.argmax(logs_L))
                if label := trie.labels[best]:
                    chosen[i][label] = float(softmax(logs_L)[best])
                    added[i] = grammars[i].ids(label, last[i])
                    last[i] = label
                    if any(grammars[i].after(label).labels):
                        growing.append(row)
            texts, rows = texts.take(growing), [rows[row] for row in growing]
    return chosen


def _ask(
    model: PreTrainedModel, texts: Prefixes, added: Sequence[Sequence[int]], tries: Sequence[LabelTrie]
) -> tuple[Prefixes, list[NDArray[np.float64]]]:
    """The texts with what was added to each; and of each the log-probabilities [L] of what its trie says may follow, in the same pass."""
    stem, nodes = max(map(len, added)), max(len(trie.tokens_M) for trie in tries)
    states_BMD = texts.last_BD[:, None]  # node -1 of each trie
    if stem + nodes:
        ids_BT = np.zeros((len(texts), stem + nodes), np.int64)
        visible_BTT = np.zeros((len(texts), stem + nodes, stem + nodes), bool)
        visible_BTT[:, :stem, :stem] = np.tri(stem, dtype=bool)
        visible_BTT[:, range(stem, stem + nodes), range(stem, stem + nodes)] = True  # padding must see something
        for row, (word, trie) in enumerate(zip(added, tries, strict=True)):
            end = stem + len(trie.tokens_M)
            ids_BT[row, : len(word)], ids_BT[row, stem:end] = word, trie.tokens_M
            visible_BTT[row, stem:end, : len(word)] = True
            visible_BTT[row, stem:end, stem:end] = ancestry(trie.parents)
        hidden_BTD, texts = texts.extend(model, ids_BT, visible_BTT, np.array([len(word) for word in added]))
        states_BMD = torch.cat([texts.last_BD[:, None], hidden_BTD[:, stem:]], dim=1)
    columns = np.concatenate([row * (1 + nodes) + 1 + trie.edge_nodes_E for row, trie in enumerate(tries)])
    edges = edge_log_probabilities(model, states_BMD.flatten(0, 1), columns, np.concatenate([trie.edge_tokens_E for trie in tries]))
    borders = np.cumsum([len(trie.edge_nodes_E) for trie in tries])[:-1]
    return texts, [trie.log_probabilities(part) for trie, part in zip(tries, np.split(edges, borders), strict=True)]
