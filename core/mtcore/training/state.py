"""A model in training as one object that steps, saves and comes back bit for bit, under every engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedModel

from mtcore.data.packing import MicroBatch
from mtcore.errors import ResumeMismatch, RunError
from mtcore.modeling.head import TargetLoss, as_tensors
from mtcore.modeling.load import load_model
from mtcore.modeling.lora import has_adapters, merged
from mtcore.training.checkpoint import Team, load_checkpoint, save_checkpoint
from mtcore.training.distributed import REPLICATED, first_said, is_offloaded
from mtcore.training.flops import model_size
from mtcore.training.loop import Schedule, Step, train
from mtcore.training.manifest import read_manifest
from mtcore.training.weights import Weights, ZeroWeights

Value = TypeVar("Value")


class Engaged(nn.Module):
    """What engines wrap: the model's loss, and anything else that is to run while its weights are at hand."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.loss = TargetLoss(model)

    def forward(self, *arguments: Any, within: Callable[[], None] | None = None) -> Any:
        """The losses of a micro-batch; or call `within`, which may run any part of the model."""
        return self.loss(*arguments) if within is None else within()


class Trainee:
    """Model, optimizer and accelerator together; AdamW with decay on matrices only."""

    def __init__(
        self,
        model: PreTrainedModel,
        accelerator: Accelerator,
        *,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.clip = clip
        asked = self._engine
        self.size = model_size(model)
        self.team = Team(accelerator.process_index, accelerator.num_processes, first_said)
        self._model = model
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._adapters = {name: p.detach().clone() for name, p in trained.items()} if has_adapters(model) else None
        groups = [
            {"params": [p for p in trained.values() if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained.values() if p.dim() < 2], "weight_decay": 0.0},
        ]
        # all of AdamW in one pass over memory, where the engine lets it
        fused = is_offloaded(accelerator) or accelerator.distributed_type in REPLICATED
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, fused=fused)
        if asked == "fsdp":
            layers = {type(module).__name__ for module in model.modules()} & set(model._no_split_modules or ())
            accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(layers)
        self._loss, self._optimizer = accelerator.prepare(Engaged(model), optimizer)
        kind = ZeroWeights if accelerator.distributed_type == DistributedType.DEEPSPEED else Weights
        self._weights = kind(model, self._optimizer, self._loss)
        if self._engine != asked or (asked == "fsdp" and not self._weights.is_sharded):
            sharded = "sharded" if self._weights.is_sharded else "not sharded"
            raise RunError(
                f"engine {asked!r} was asked for, and accelerate prepared {self._engine!r} with weights that are {sharded}: the processes would "
                "train replicas that do not know each other, or save shards that no resume can tell from whole weights. Use accelerate as "
                "constraints.txt pins it"
            )

    @property
    def model(self) -> PreTrainedModel:
        """The model itself; where its weights are sharded it can be run inside `asking` alone."""
        return self._model

    def new_optimizer(self) -> None:
        """Forget all moments, as every stage does when it starts."""
        self._weights.forget()

    def reset(self, folder: Path) -> None:
        """Begin anew from the weights of a model's folder, or from the adapters as they first were."""
        self._weights.put(dict(load_model(folder).named_parameters()) if self._adapters is None else self._adapters)

    def steps(self, schedule: Schedule, first: int, last: int) -> Iterator[Step]:
        """Take the optimizer steps [first, last)."""
        return train(self._loss, self._optimizer, self.accelerator, schedule, size=self.size, first=first, last=last, clip=self.clip)

    @torch.no_grad()
    def losses(self, batches: Sequence[MicroBatch], examples: int) -> torch.Tensor:
        """Mean token loss of every example [examples], with the model as it stands."""
        self._loss.eval()
        device = self.accelerator.device
        return sum((self._loss(as_tensors(batch, device), examples) for batch in batches), torch.zeros(examples, device=device))

    @torch.no_grad()
    def asking(self, ask: Callable[[], Value]) -> Value:
        """Call `ask`, which may run the model in any way, in the precision it is trained in.

        Where weights are sharded, all processes must run it in the same ways.
        """
        self._loss.eval()
        if not self._weights.is_sharded:
            with self.accelerator.autocast():
                return ask()
        said: list[Value] = []
        self._loss(within=lambda: said.append(ask()))
        return said[0]

    def save(self, folder: Path, name: str, state: Mapping[str, Any], about: Mapping[str, Any] = {}) -> None:
        """Write the trained weights, moments, random state and `state` as the checkpoint `folder/name`; all processes call it.

        Weights that are frozen are not in it: they are those that the model was loaded with.
        Where every process has everything the first one writes it, and the others their random state.
        """
        is_writer = self.team.rank == 0 or self._weights.is_sharded
        tensors = self._weights.share() if is_writer else {}
        tensors["random.torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        engine = {"engine": self._engine}
        save_checkpoint(folder, name, tensors, state, about={**engine, **about}, team=self.team, more=self._weights.more)

    def load(self, path: Path, *, optimizer: bool = True) -> dict[str, Any]:
        """Take over the weights of a verified checkpoint, its moments and random state too unless told not to; return its state.

        Raises ResumeMismatch for a checkpoint whose shards are of another engine or of another number of processes.
        """
        about = read_manifest(path).about
        then, processes = about["engine"], about["processes"]
        if then != self._engine or (self._engine != "replicated" and processes != self.team.size):
            raise ResumeMismatch(
                f"{path} was saved by {processes} processes of engine {then!r}, and here are {self.team.size} of engine {self._engine!r}; "
                "its shards fit no other. Launch as many with the same [distribution], or start over with --restart."
            )
        own, state = load_checkpoint(path, self.team.rank if self.team.rank < processes else 0)
        self._weights.take(own if self._weights.is_sharded or self.team.rank == 0 else load_checkpoint(path)[0], path)
        if optimizer:
            torch.set_rng_state(own["random.torch"])
            if torch.cuda.is_available() and "random.cuda" in own:
                torch.cuda.set_rng_state(own["random.cuda"])
        else:
            self.new_optimizer()
        return state

    def other_processes(self, path: Path) -> str:
        """What a user must know before going on from a checkpoint of another number of processes; empty where there is nothing."""
        before = read_manifest(path).about["processes"]
        if before == self.team.size:
            return ""
        return f"{before} processes saved what {self.team.size} go on from: the order of examples is the same, sums are rounded otherwise"

    def export(self, folder: Path) -> None:
        """Write the whole model as plain fp32 safetensors, adapters merged; all processes call it, the first one writes."""
        state = {}
        for name, whole in self._weights.whole():
            if self.accelerator.is_main_process:
                state[name] = whole.float().cpu()
        if self.accelerator.is_main_process:
            self._model.save_pretrained(folder, state_dict=merged(self._model, state))
        self.accelerator.wait_for_everyone()

    @property
    def _engine(self) -> str:
        """Whose shards a checkpoint holds."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return f"zero-{self.accelerator.state.deepspeed_plugin.zero_stage}"
        return "fsdp" if self.accelerator.distributed_type == DistributedType.FSDP else "replicated"
