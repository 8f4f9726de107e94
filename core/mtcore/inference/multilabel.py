"""Answer multi-label tasks: at every turn the next label of the canonical order, or the end."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from mtcore.data.text import TextEncoder
from mtcore.inference.scoring import Query, score_labels, softmax
from mtcore.inference.trie import next_labels
from mtcore.types import TaskSpec


def choose_labels(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.int32]], specs: Sequence[TaskSpec], encoder: TextEncoder, batch_tokens: int
) -> list[dict[str, float]]:
    """Of each prompt the labels chosen, with the probability of each among what could stand in its place; none of them is the word for none."""
    chosen: list[dict[str, float]] = [{} for _ in prompts]
    grown = list(prompts)
    open_ones = list(range(len(prompts)))
    while open_ones:
        queries = [Query(grown[k], next_labels(specs[k], encoder, list(chosen[k]))) for k in open_ones]
        still_open = []
        for k, query, logs_L in zip(open_ones, queries, score_labels(model, queries, batch_tokens), strict=True):
            best = int(np.argmax(logs_L))
            label = query.trie.labels[best]
            if label:
                words = specs[k].words
                added = encoder.answer_ids([specs[k].separator, words[label]] if chosen[k] else [words[label]])
                grown[k] = np.concatenate([grown[k], np.array(added, np.int32)])
                chosen[k][label] = float(softmax(logs_L)[best])
                still_open.append(k)
        open_ones = still_open
    return chosen
