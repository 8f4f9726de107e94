"""What a step costs: floating-point operations counted from the model's shapes."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelSize:
    """The shapes that decide what a decoder costs."""

    body_parameters: int
    """Parameters of the transformer layers, without embeddings and head."""
    head_parameters: int
    """Vocabulary times width."""
    layers: int
    attention_width: int
    """Query heads times their width."""

    def forward_flops(self, tokens: int, squared_lengths: int, targets: int) -> float:
        """One forward pass: two per parameter and token, causal attention over each sequence, the head at targets only."""
        attention = 2.0 * self.layers * self.attention_width * squared_lengths
        return 2.0 * self.body_parameters * tokens + attention + 2.0 * self.head_parameters * targets

    def training_flops(self, tokens: int, squared_lengths: int, targets: int) -> float:
        """Forward and backward: three times the forward pass."""
        return 3.0 * self.forward_flops(tokens, squared_lengths, targets)


def model_size(model: PreTrainedModel) -> ModelSize:
    config = model.config.get_text_config()
    embeddings: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    body = sum(p.numel() for p in model.base_model.parameters()) - embeddings.numel()
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(body, model.get_output_embeddings().weight.numel(), config.num_hidden_layers, config.num_attention_heads * head_width)
