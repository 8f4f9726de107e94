"""What a decoder costs: floating-point operations counted from its shapes and from the tokens and query-key pairs that are needed."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelSize:
    """The shapes that decide what a dense decoder costs. Embeddings, norms and biases cost nothing worth counting.

    These are model FLOPs: what the result demands. Scores of pairs that a mask hides, layers that gradient checkpointing computes again and
    padding are the hardware's, and the part of utilisation that is lost.
    """

    body_parameters: int
    """In matrices of the transformer layers, adapters included."""
    trained_body_parameters: int
    """Those of them that are trained: all, or with LoRA the adapters."""
    head_parameters: int
    """Vocabulary times width, tied to the embeddings or not."""
    is_head_trained: bool
    layers: int
    attention_width: int
    """Query heads times their width: keys and values that heads share save parameters, which are counted, but no scores."""
    widest: tuple[int, int]
    """Outputs and inputs of the body's largest matrix."""

    def forward_flops(self, tokens: int, attention_pairs: int, targets: int) -> float:
        """One forward pass: two for each parameter and token, four for each query-key pair and attention width, the head at targets only.

        `attention_pairs`: how many keys each token may see, itself included, summed over tokens: n(n + 1)/2 for a sequence of n.
        """
        attention = 4.0 * self.layers * self.attention_width * attention_pairs
        return 2.0 * self.body_parameters * tokens + attention + 2.0 * self.head_parameters * targets

    def training_flops(self, tokens: int, attention_pairs: int, targets: int) -> float:
        """Forward, the gradients of all activations (as much again; of attention twice as much), and those of what is trained.

        Three times the forward pass where everything is trained, about two thirds of that with LoRA.
        """
        attention = 4.0 * self.layers * self.attention_width * attention_pairs
        trained = self.trained_body_parameters * tokens + self.head_parameters * targets * self.is_head_trained
        return 2.0 * self.forward_flops(tokens, attention_pairs, targets) + attention + 2.0 * trained


def model_size(model: "PreTrainedModel") -> ModelSize:
    """Measure a model before its weights are distributed over processes; one that is wrapped by peft too."""
    from torch import nn

    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    free = {id(head), *(id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding))}
    body = [p for p in model.parameters() if p.dim() == 2 and id(p) not in free]
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    widest = max((tuple(p.shape) for p in body), key=lambda shape: (math.prod(shape), shape))
    return ModelSize(
        body_parameters=sum(p.numel() for p in body),
        trained_body_parameters=sum(p.numel() for p in body if p.requires_grad),
        head_parameters=head.numel(),
        is_head_trained=head.requires_grad,
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * head_width,
        widest=(widest[0], widest[1]),
    )
