"""Low-rank adapters (LoRA, Hu et al., 2021): peft puts them into a model in place, and they are merged into its weights when it leaves."""

import importlib.util
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from mtcore.errors import ModelError


def add_lora(model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int) -> None:
    """Freeze the model and put adapters into its linear layers, or into those whose names end in one of `targets`; the head stays as it is.

    What an adapted layer adds is alpha / rank times the product of its two matrices, and nothing at first; the seed decides the first of them,
    on every process alike. Raises ModelError without peft, and for targets that name no linear layer.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError("lora needs peft, which is not installed: pip install 'mtcore[peft]'")
    from peft import LoraConfig, inject_adapter_in_model

    found = linear_layers(model)
    missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in found)]
    if missing:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in found}))
        raise ModelError(f"lora.targets: no linear layer of {type(model).__name__} is called {', '.join(missing)}. It has: {known}")
    chosen = [name for name in found if not targets or any(name == t or name.endswith(f".{t}") for t in targets)]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen, bias="none")  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the layers that can be adapted: all linear ones but the head, which is often tied to the embeddings."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]


def has_adapters(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


def merged(model: nn.Module, whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's whole weights under the names of a model without adapters, what these add being added."""
    weights = {name.replace(".base_layer.", "."): value for name, value in whole.items() if ".lora_" not in name}
    for name, down in whole.items():
        layer, found, rest = name.partition(".lora_A.")
        if found:
            up = whole[name.replace(".lora_A.", ".lora_B.")]
            scale = model.get_submodule(layer).scaling[rest.removesuffix(".weight")]  # type: ignore[index]
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * (up @ down)
    return weights
