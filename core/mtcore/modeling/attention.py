"""Which token may see which, stated as an explicit mask: isolated segments for packed rows, trees for label tries."""

import numpy as np
import torch
from numpy.typing import NDArray


def segment_mask(segments_BT: torch.Tensor) -> torch.Tensor:
    """Causal attention that never crosses a segment.

    Takes segment numbers [B, T]; returns bool [B, 1, T, T], true where the query (third axis) may see the key (fourth).
    The mask is always passed: without one, transformers guesses at packing from position ids, and with any other mask it does not.
    """
    width = segments_BT.shape[1]
    causal_TT = torch.ones(width, width, dtype=torch.bool, device=segments_BT.device).tril()
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return (same_BTT & causal_TT)[:, None]


def tree_positions_and_mask(chunk_of_T: NDArray[np.int64], parents_C: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Positions [T] and visibility bool [T, T] of tokens laid out as a forest of chunks.

    A chunk is a run of consecutive tokens; `parents_C[c]` is the chunk it continues (-1: none) and stands before it. A token sees
    the earlier tokens of its own chunk and all tokens of the chunks above; its position counts exactly those.
    """
    chunks = len(parents_C)
    above_CC = np.zeros((chunks, chunks), bool)
    for chunk, parent in enumerate(parents_C):
        if parent >= 0:
            above_CC[chunk] = above_CC[parent]
        above_CC[chunk, chunk] = True
    visible_TT = above_CC[chunk_of_T][:, chunk_of_T]
    visible_TT &= np.tri(len(chunk_of_T), dtype=bool)
    return visible_TT.sum(1).astype(np.int64) - 1, visible_TT
