"""The language-model head, applied only where a token is predicted."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mtcore.data.packing import MicroBatch, Sample, micro_batches
from mtcore.errors import ModelError
from mtcore.modeling.attention import Blocks, install, on_device

LOGITS = 2**26
"""Logits that are held at once in training (256 MiB in fp32, some times that with their gradients); more are computed in parts."""


@dataclass(frozen=True)
class Tensors:
    """A `MicroBatch` on a device."""

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    blocks: Blocks
    columns_N: torch.Tensor
    targets_N: torch.Tensor
    examples_N: torch.Tensor


def as_tensors(batch: MicroBatch, device: torch.device) -> Tensors:
    arrays = (batch.ids_T, batch.positions_T, batch.columns_N, batch.targets_N, batch.examples_N)
    ids_T, positions_T, columns_N, targets_N, examples_N = (torch.from_numpy(a).to(device, non_blocking=True) for a in arrays)
    return Tensors(ids_T, positions_T, on_device(batch.blocks, device), columns_N, targets_N, examples_N)


class TargetLoss(nn.Module):
    """Mean token loss of every example, with logits computed at target positions and nowhere else."""

    def __init__(self, model: PreTrainedModel, logits: int = LOGITS) -> None:
        super().__init__()
        install(model)
        self.model = model
        self.logits = logits

    def forward(self, batch: Tensors, examples: int) -> torch.Tensor:
        """Return losses [examples]; examples without targets here count 0."""
        hidden_TD = body(self.model, batch.ids_T[None], batch.positions_T[None], batch.blocks)[0]
        losses_N = self._token_losses(hidden_TD[batch.columns_N], batch.targets_N)
        zeros_E = losses_N.new_zeros(examples)
        counts_E = zeros_E.index_add(0, batch.examples_N, torch.ones_like(losses_N))
        return zeros_E.index_add(0, batch.examples_N, losses_N) / counts_E.clamp(min=1)

    def _token_losses(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """Parts whose logits are too many to be kept are computed again in the backward pass."""
        rows = max(1, self.logits // self.model.config.get_text_config().vocab_size)
        if len(targets_N) <= rows:
            return self._part(hidden_ND, targets_N)
        parts = zip(torch.split(hidden_ND, rows), torch.split(targets_N, rows), strict=True)
        return torch.cat([checkpoint(self._part, hidden, targets, use_reentrant=False) for hidden, targets in parts])

    def _part(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(self.model, hidden_ND).float(), targets_N, reduction="none")


def body(model: PreTrainedModel, ids_BT: torch.Tensor, positions_BT: torch.Tensor, visible: Blocks | torch.Tensor) -> torch.Tensor:
    """Hidden states [B, T, D] of the decoder without its head.

    `visible` says which token may see which: the blocks of a packed sequence (`attention.install` lets the model take them), or
    bool [B, 1, T, T], true where the query (third axis) may see the key (fourth). One of them is always passed: without a mask,
    transformers guesses at packing from position ids. With blocks it is a mask of one element, which nothing looks at.
    """
    packed = {"blocks": visible} if isinstance(visible, Blocks) else {}
    mask = visible if isinstance(visible, torch.Tensor) else torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids_BT.device)
    output = model.base_model(input_ids=ids_BT, position_ids=positions_BT, attention_mask=mask, use_cache=False, **packed)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def head(model: PreTrainedModel, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] of single positions."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden_ND)
    return logits


@torch.no_grad()
def require_plain_head(model: PreTrainedModel) -> None:
    """Compare body and head over a packed sequence with the model's own forward pass over its examples: three of eight tokens, of which two
    share five.

    Raises ModelError where they differ: an architecture that scales or caps its logits, or looks past the blocks of a packed sequence,
    would be trained on other numbers than it serves.
    """
    name = type(model).__name__
    use = "Use a Qwen2 or LLaMA architecture, or another that passes this check."
    ids_38 = np.random.default_rng(0).integers(0, model.config.get_text_config().vocab_size, (3, 8), np.int32)
    ids_38[2, :5] = ids_38[1, :5]
    ids_BT = torch.from_numpy(ids_38.astype(np.int64)).to(model.device)
    expected_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    tolerance = max(1.0, expected_BTV.abs().max().item()) * (1e-3 if model.dtype == torch.float32 else 0.25)

    causal_TT = torch.ones(8, 8, dtype=torch.bool, device=model.device).tril()
    hidden_BTD = body(model, ids_BT, torch.arange(8, device=model.device)[None], causal_TT[None, None])
    difference = (head(model, hidden_BTD).float() - expected_BTV).abs().max().item()
    if not difference <= tolerance:
        raise ModelError(
            f"{name} computes its logits in more steps than body and head (they differ by {difference:.3g} on eight tokens), "
            f"so it cannot be trained with the head at targets only. {use}"
        )
    (batch,) = micro_batches([Sample(ids_T, 1, example, document=5 * (example > 0)) for example, ids_T in enumerate(ids_38)], 24)
    packed = as_tensors(batch, model.device)
    try:
        hidden_TD = body(model, packed.ids_T[None], packed.positions_T[None], packed.blocks)[0]
    except (TypeError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{name} does not take packed sequences ({type(error).__name__}: {error}), so it cannot be trained. {use}"
        ) from error
    predicted_N = packed.positions_T[packed.columns_N]
    difference = (head(model, hidden_TD[packed.columns_N]).float() - expected_BTV[packed.examples_N, predicted_N]).abs().max().item()
    if not difference <= tolerance:
        raise ModelError(
            f"{name} does not keep the examples of a packed sequence apart (logits differ by {difference:.3g} from those of each by itself), "
            f"so it cannot be trained. {use}"
        )
