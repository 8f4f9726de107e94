"""Generate free text greedily, prompts of any lengths together: who has ended leaves the batch, and who waits takes the place."""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from mtcore.inference.cache import PrefixCache, Prefixes
from mtcore.inference.prefill import admit, families
from mtcore.modeling.head import head

THINNED = 0.75
"""A batch closes its ranks once no more than this share of it still grows: that copies keys and values, so not at every end."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[NDArray[np.int32]],
    max_new_tokens: Sequence[int],
    end: int,
    forbidden: Sequence[int],
    batch_tokens: int,
    held: PrefixCache | None = None,
    stems: Sequence[int] = (),
) -> list[list[int]]:
    """Ids of each prompt's answer up to its end token (not included) or its own limit; `forbidden` ids never come out.

    `batch_tokens` bounds what may stand in the batch at once: its rows times the longest prompt with its answer. With `held`, the first
    `stems` tokens of each prompt are not read where they are held, and kept where they are read.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    never = torch.tensor(sorted(set(forbidden) - {end}), dtype=torch.long, device=model.device)
    reach = [len(prompt) + limit for prompt, limit in zip(prompts, max_new_tokens, strict=True)]
    waiting = deque(i for family in families(prompts) for i in family if max_new_tokens[i] > 0)
    rows: list[int] = []  # whose text stands in which row
    growing: list[int] = []  # rows that have not ended
    parts: list[Prefixes] = []
    while growing or waiting:
        if len(growing) <= THINNED * len(rows):
            parts = [part.take(growing) for part in parts if growing]
            rows = [rows[row] for row in growing]
            joining = admit(waiting, reach, rows, batch_tokens)
            if joining:
                new = [prompts[i] for i in joining]
                parts.append(held.read(model, new, [stems[i] for i in joining]) if held else Prefixes.read(model, new))
                rows += joining
            parts, growing = [Prefixes.join(parts) if len(parts) > 1 else parts[0]], list(range(len(rows)))
        (texts,) = parts
        logits_BV = head(model, texts.last_BD).float()
        logits_BV[:, never] = -torch.inf
        next_B = logits_BV.argmax(1).cpu().numpy()
        for row in growing:
            if next_B[row] != end:
                answers[rows[row]].append(int(next_B[row]))
        growing = [row for row in growing if next_B[row] != end and len(answers[rows[row]]) < max_new_tokens[rows[row]]]
        if growing:
            parts = [texts.extend(model, next_B[:, None])[1]]
    return answers
