"""The language-model head, applied only where a token is predicted."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from mtcore.data.packing import MicroBatch
from mtcore.errors import ModelError
from mtcore.modeling.attention import segment_mask


class TargetLoss(nn.Module):
    """Mean token loss of every example, with logits computed at target positions and nowhere else."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor], examples: int) -> torch.Tensor:
        """Take the arrays of a `MicroBatch` as tensors and return losses [examples]; examples without targets here count 0."""
        hidden_BTD = body(self.model, batch["ids_RT"], batch["positions_RT"], segment_mask(batch["segments_RT"]))
        logits_NV = head(self.model, hidden_BTD[batch["rows_N"], batch["columns_N"]])
        losses_N = F.cross_entropy(logits_NV.float(), batch["targets_N"], reduction="none")
        zeros_E = losses_N.new_zeros(examples)
        counts_E = zeros_E.index_add(0, batch["examples_N"], torch.ones_like(losses_N))
        return zeros_E.index_add(0, batch["examples_N"], losses_N) / counts_E.clamp(min=1)


def as_tensors(batch: MicroBatch, device: torch.device) -> dict[str, torch.Tensor]:
    names = ("ids_RT", "positions_RT", "segments_RT", "rows_N", "columns_N", "targets_N", "examples_N")
    return {name: torch.from_numpy(getattr(batch, name)).to(device, non_blocking=True) for name in names}


def body(model: PreTrainedModel, ids_BT: torch.Tensor, positions_BT: torch.Tensor, visible_B1TT: torch.Tensor) -> torch.Tensor:
    """Hidden states [B, T, D] of the decoder without its head. `visible` is bool: attention must be sdpa (`load.load_model` sees to it)."""
    output = model.base_model(input_ids=ids_BT, position_ids=positions_BT, attention_mask=visible_B1TT, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def head(model: PreTrainedModel, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] of single positions."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden_ND)
    return logits


@torch.no_grad()
def require_plain_head(model: PreTrainedModel) -> None:
    """Compare body + head with the model's own forward pass on eight tokens.

    Raises ModelError where they differ: an architecture that scales or caps its logits would be trained on other numbers than it serves.
    """
    ids_BT = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    expected_TV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
    hidden_BTD = body(model, ids_BT, torch.arange(8, device=model.device)[None], segment_mask(torch.zeros_like(ids_BT)))
    difference = (head(model, hidden_BTD[0]).float() - expected_TV).abs().max().item()
    tolerance = 1e-3 if expected_TV.dtype == torch.float32 and model.dtype == torch.float32 else 0.25
    if not difference <= tolerance * max(1.0, expected_TV.abs().max().item()):
        raise ModelError(
            f"{type(model).__name__} computes its logits in more steps than body and head (they differ by {difference:.3g} on eight tokens), "
            "so it cannot be trained with the head at targets only. Use a Qwen2 or LLaMA architecture, or another that passes this check."
        )
