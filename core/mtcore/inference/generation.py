"""Generate free text greedily, prompts of like length together."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[NDArray[np.int32]],
    max_new_tokens: Sequence[int],
    end: int,
    forbidden: Sequence[int],
    batch_tokens: int,
) -> list[list[int]]:
    """Ids of each prompt's answer up to its end token (not included) or its own limit; `forbidden` ids never come out."""
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    suppressed = sorted(set(forbidden) - {end})
    while order:
        widest = len(prompts[order[0]]) + max_new_tokens[order[0]]
        members, order = order[: max(1, batch_tokens // widest)], order[max(1, batch_tokens // widest) :]
        width = max(len(prompts[i]) for i in members)
        ids_BT = torch.full((len(members), width), end, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, index in enumerate(members):
            ids_BT[row, width - len(prompts[index]) :] = torch.from_numpy(prompts[index].astype(np.int64))
            mask_BT[row, width - len(prompts[index]) :] = 1
        limit = max(max_new_tokens[i] for i in members)
        config = GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            eos_token_id=end,
            pad_token_id=end,
            use_cache=True,
            suppress_tokens=suppressed or None,
        )
        output = model.generate(  # type: ignore[operator]
            ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=config
        )
        for row, index in enumerate(members):
            new = output[row, width:].tolist()[: max_new_tokens[index]]
            answers[index] = new[: new.index(end)] if end in new else new
    return answers
