"""Weights and moments of a model in training, whole or by this process's share, whichever engine holds them."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

TAG = "deepspeed"
"""What DeepSpeed's own folder in a checkpoint is called."""


class Weights:
    """Weights and moments where every process has its tensors at hand: whole ones (DDP, one process), or its shards of them (FSDP)."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, engine: Any) -> None:
        self._model = model
        self._optimizer = optimizer
        self._engine = engine
        self.is_sharded = self._is_sharded()
        self._has_frozen = not all(p.requires_grad for p in model.parameters())

    def _is_sharded(self) -> bool:
        return any(isinstance(p, DTensor) for p in self._model.parameters())

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        """Parameters by name, as they rest; tied ones once."""
        if self.is_sharded:
            self._engine.reshard()  # FSDP leaves its outermost weights whole when something was asked of the model
        return list(self._model.named_parameters())

    @torch.no_grad()
    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter by name, whole; tied ones once. All processes go through it together."""
        for name, parameter in self._named():
            yield name, (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()

    @torch.no_grad()
    def put(self, whole: Mapping[str, torch.Tensor]) -> None:
        """Replace parameters by whole ones, which every process brings."""
        for name, parameter in self._named():
            if name in whole:
                value = whole[name].to(parameter.device)
                parameter.copy_(
                    distribute_tensor(value, parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else value
                )

    def forget(self) -> None:
        """Empty the optimizer."""
        self._optimizer.state.clear()

    def share(self) -> dict[str, torch.Tensor]:
        """What this process saves: weights that are trained by name, moments by the parameter's number in the optimizer."""
        share = {f"model.{name}": _local(p) for name, p in self._named() if p.requires_grad}
        for index, parameter in enumerate(self._trained()):
            for key, value in self._optimizer.state.get(parameter, {}).items():
                share[f"optimizer.{index}.{key}"] = _local(value)
        return share

    @torch.no_grad()
    def take(self, share: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Take over what this process saved; what is not trained stays as it is."""
        for name, parameter in self._named():
            if parameter.requires_grad:
                _local(parameter).copy_(share[f"model.{name}"])
        for index, parameter in enumerate(self._trained()):
            mine = {k.split(".", 2)[2]: v for k, v in share.items() if k.startswith(f"optimizer.{index}.")}
            counter = parameter.device if self._optimizer.param_groups[0]["fused"] else "cpu"
            self._optimizer.state[parameter] = {k: v.to(counter) if k == "step" else _like(v, parameter) for k, v in mine.items()}

    def more(self, folder: Path) -> None:
        """Write what the engine saves by itself."""

    def _trained(self) -> list[torch.Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]


class ZeroWeights(Weights):
    """Weights and moments that DeepSpeed divides: it saves and loads them itself."""

    def _is_sharded(self) -> bool:
        return any(hasattr(p, "ds_tensor") for p in self._model.parameters())

    @torch.no_grad()
    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._model.named_parameters():
            with self._gathered(parameter, writer=None):
                yield name, parameter.detach().clone()

    @torch.no_grad()
    def put(self, whole: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            if name in whole:
                with self._gathered(parameter, writer=0):
                    parameter.copy_(whole[name].to(parameter.device))
        self._engine.optimizer.refresh_fp32_params()

    def forget(self) -> None:
        self._engine.optimizer.optimizer.state.clear()

    def share(self) -> dict[str, torch.Tensor]:
        return {}

    def take(self, share: Mapping[str, torch.Tensor], folder: Path) -> None:
        self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not self._has_frozen)

    def more(self, folder: Path) -> None:
        # DeepSpeed leaves a frozen weight out under its first name only, and a tied head is the second name of the embeddings
        hook = self._engine.module.register_state_dict_post_hook(_drop_frozen)
        try:
            self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
        finally:
            hook.remove()

    def _gathered(self, parameter: torch.Tensor, *, writer: int | None) -> AbstractContextManager[None]:
        if not hasattr(parameter, "ds_tensor"):
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        gathered: AbstractContextManager[None] = GatheredParameters([parameter], modifier_rank=writer)
        return gathered


def _drop_frozen(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, _metadata: Any) -> None:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(local: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a moment as a tensor that is divided like its parameter."""
    local = local.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
