"""A model in training as one object that steps, saves and comes back bit for bit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from mtcore.modeling.head import TargetLoss
from mtcore.training.checkpoint import load_checkpoint, save_checkpoint
from mtcore.training.flops import model_size
from mtcore.training.loop import Step, StepBatch, train


class Trainee:
    """Model, optimizer and accelerator together; AdamW with decay on matrices only."""

    def __init__(
        self, model: PreTrainedModel, accelerator: Accelerator, *, weight_decay: float, betas: tuple[float, float], clip: float
    ) -> None:
        self.accelerator = accelerator
        self.clip = clip
        self.size = model_size(model)
        self._loss = accelerator.prepare(TargetLoss(model))
        parameters = [p for p in self._loss.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizer = accelerator.prepare(torch.optim.AdamW(groups, lr=0.0, betas=betas))

    @property
    def model(self) -> PreTrainedModel:
        model: PreTrainedModel = self.accelerator.unwrap_model(self._loss).model
        return model

    def new_optimizer(self) -> None:
        """Forget all moments, as every stage does when it starts."""
        self._optimizer.state.clear()

    def steps(self, batch: Callable[[int], StepBatch], learning_rate: Callable[[int], float], first: int, last: int) -> Iterator[Step]:
        return train(
            self._loss,
            self._optimizer,
            self.accelerator,
            size=self.size,
            batch=batch,
            learning_rate=learning_rate,
            first=first,
            last=last,
            clip=self.clip,
        )

    def save(self, folder: Path, name: str, state: dict[str, Any]) -> None:
        """Write weights, moments, random state and `state` as the checkpoint `folder/name`; the main process writes, all wait."""
        if self.accelerator.is_main_process:
            tensors = {f"model.{key}": value for key, value in self._named().items()}
            for index, parameter in enumerate(self._parameters()):
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    tensors[f"optimizer.{index}.{key}"] = value
            tensors["random.torch"] = torch.get_rng_state()
            if torch.cuda.is_available():
                tensors["random.cuda"] = torch.cuda.get_rng_state()
            save_checkpoint(folder, name, tensors, state)
        self.accelerator.wait_for_everyone()

    def load(self, path: Path, *, optimizer: bool = True) -> dict[str, Any]:
        """Take over the weights of a verified checkpoint, its moments and random state too unless told not to; return its state."""
        tensors, state = load_checkpoint(path)
        with torch.no_grad():
            for key, parameter in self._named().items():
                parameter.copy_(tensors[f"model.{key}"])
        if optimizer:
            for index, parameter in enumerate(self._parameters()):
                mine = {k.split(".", 2)[2]: v for k, v in tensors.items() if k.startswith(f"optimizer.{index}.")}
                self._optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in mine.items()}
            torch.set_rng_state(tensors["random.torch"])
            if torch.cuda.is_available() and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"])
        return state

    def _named(self) -> dict[str, torch.Tensor]:
        """Parameters by name; tied ones appear once."""
        return dict(self.model.named_parameters())

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]
