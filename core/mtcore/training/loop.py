"""The training loop: a generator that yields what happened after every optimizer step and knows nothing of saving or evaluating."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from mtcore.data.packing import MicroBatch
from mtcore.errors import RunError
from mtcore.modeling.head import as_tensors
from mtcore.training import distributed
from mtcore.training.flops import ModelSize


@dataclass(frozen=True)
class StepBatch:
    """What one process contributes to one optimizer step."""

    micro_batches: Sequence[MicroBatch]
    weights: Sequence[float]
    """Weight of each example of this process in the step's loss; over all processes they sum to one. An example of weight 0 only fills."""
    tasks: Sequence[int]
    """Index of each example's task."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, summed over all processes."""

    number: int
    """Steps done in this stage, this one included."""
    loss: float
    """Mean over the step's examples of each example's mean token loss."""
    losses: Mapping[int, tuple[float, int]]
    """Of each task in it: the sum of its examples' losses, and how many they are."""
    learning_rate: float
    gradient_norm: float
    tokens: int
    example_tokens: int
    padding: int
    flops: float
    seconds: float
    skipped: str = ""
    """Why the optimizer did not take this step, where it did not."""
    asked: tuple[bool, ...] = ()
    """What any of the processes asked for while it ran (`Schedule.asks`)."""
    halved: int | None = None
    """The tokens a micro-batch is now held to, where memory ran out."""


@dataclass(frozen=True)
class Schedule:
    """What the steps of a stage are made of; all functions of the step's number alone."""

    batch: Callable[[int, int], StepBatch]
    """This process's part of a step, in micro-batches of at most so many tokens."""
    learning_rate: Callable[[int], float]
    tasks: Sequence[str]
    batch_tokens: int
    objection: Callable[[float, Mapping[str, float]], str] = lambda loss, shares: ""
    """Why a step of this loss must not be taken (`Guard.objection`)."""
    asks: Callable[[], Sequence[bool]] = lambda: ()
    """What this process would have the caller do after the step; what one asks for, all are told."""


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    schedule: Schedule,
    *,
    size: ModelSize,
    first: int,
    last: int,
    clip: float,
) -> Iterator[Step]:
    """Take the optimizer steps [first, last). `model` is a prepared `TargetLoss`; gradients of a step sum to those of its weighted mean loss."""
    batch_tokens = schedule.batch_tokens
    for number in range(first, last):
        started = time.perf_counter()
        model.train()
        rate = schedule.learning_rate(number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch, losses_E, fitting = backward_within_memory(model, optimizer, accelerator, schedule, number, batch_tokens)
        totals = summed(batch, losses_E, size, len(schedule.tasks), schedule.asks(), accelerator)
        reason = schedule.objection(totals.loss, totals.shares(schedule.tasks))
        norm = math.nan
        if not reason:
            norm = distributed.clip_gradients(accelerator, model, clip)
            reason = "" if math.isfinite(norm) else f"the norm of its gradient is {norm}"
        distributed.take_step(accelerator, optimizer, is_taken=not reason)
        yield Step(
            number=number + 1,
            loss=totals.loss,
            losses=totals.by_task,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=totals.tokens,
            example_tokens=totals.example_tokens,
            padding=totals.padding,
            flops=totals.flops,
            seconds=time.perf_counter() - started,
            skipped=reason,
            asked=totals.asked,
            halved=fitting if fitting < batch_tokens else None,
        )
        batch_tokens = fitting


def backward_within_memory(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, schedule: Schedule, number: int, batch_tokens: int
) -> tuple[StepBatch, torch.Tensor, int]:
    """Accumulate a step's gradients; where memory runs out, begin it anew in micro-batches half as large. Returns the size that fits, too."""
    while True:
        batch = schedule.batch(number, batch_tokens)
        try:
            return batch, backward(model, accelerator, batch), batch_tokens
        except torch.OutOfMemoryError as error:
            largest = max(b.tokens for b in batch.micro_batches)
            is_least = all(len(set(b.examples_N.tolist())) == 1 for b in batch.micro_batches)
            if is_least or not distributed.can_begin_anew(accelerator):
                why = "one example alone does not fit" if is_least else "a step of several processes, or of DeepSpeed, cannot be begun anew"
                raise RunError(
                    f"out of memory with {largest} tokens at once, and {why}. Lower method.batch_tokens (now {batch_tokens}) or "
                    "method.max_length, set method.gradient_checkpointing = true, or shard the model ([distribution]); "
                    f"the same command goes on from the last checkpoint ({error})"
                ) from None
            batch_tokens = largest // 2
        distributed.take_step(accelerator, optimizer, is_taken=False)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def backward(model: nn.Module, accelerator: Accelerator, step: StepBatch) -> torch.Tensor:
    """Accumulate the gradients of this process's examples; return their losses [examples]."""
    weights_E = torch.tensor(step.weights, dtype=torch.float32, device=accelerator.device)
    total_E = torch.zeros_like(weights_E)
    for position, micro_batch in enumerate(step.micro_batches):
        is_last = position == len(step.micro_batches) - 1
        with torch.enable_grad(), distributed.exchanging(accelerator, model, is_last):
            losses_E = model(as_tensors(micro_batch, accelerator.device), len(weights_E))
            distributed.backward(accelerator, model, (losses_E * weights_E).sum(), is_last)
        total_E += losses_E.detach()
    return total_E


@dataclass(frozen=True)
class Totals:
    """A step summed over all processes."""

    loss: float
    tokens: int
    example_tokens: int
    padding: int
    flops: float
    by_task: Mapping[int, tuple[float, int]]
    weights: Mapping[int, float]
    asked: tuple[bool, ...]

    def shares(self, tasks: Sequence[str]) -> dict[str, float]:
        """Weight of each task in the step's loss."""
        return {tasks[index]: weight for index, weight in self.weights.items()}


def summed(step: StepBatch, losses_E: torch.Tensor, size: ModelSize, tasks: int, asks: Sequence[bool], accelerator: Accelerator) -> Totals:
    """What the step was, in one exchange between processes."""
    device = accelerator.device
    losses_E = losses_E.double()
    weights_E = torch.tensor(step.weights, dtype=torch.float64, device=device)
    task_E = torch.tensor(step.tasks, dtype=torch.int64, device=device)
    counts_E = (weights_E > 0).double()
    zeros_K = torch.zeros(tasks, dtype=torch.float64, device=device)
    by_task_3K = torch.cat([zeros_K.index_add(0, task_E, part) for part in (losses_E * counts_E, counts_E, weights_E)])
    batches = step.micro_batches
    flops = sum(size.training_flops(b.tokens, b.attention_pairs, len(b.targets_N)) for b in batches)
    counted = [sum(b.tokens for b in batches), sum(b.example_tokens for b in batches), sum(b.padding for b in batches), flops, *asks]
    own = torch.cat([(losses_E * weights_E).sum()[None], torch.tensor(counted, dtype=torch.float64, device=device), by_task_3K])
    every = accelerator.reduce(own, reduction="sum").tolist()
    sums, counts, weights = (every[len(every) - 3 * tasks :][k * tasks : (k + 1) * tasks] for k in range(3))
    present = [index for index in range(tasks) if counts[index]]
    return Totals(
        loss=every[0],
        tokens=int(every[1]),
        example_tokens=int(every[2]),
        padding=int(every[3]),
        flops=every[4],
        by_task={index: (sums[index], int(counts[index])) for index in present},
        weights={index: weights[index] for index in present},
        asked=tuple(value > 0 for value in every[5 : 5 + len(asks)]),
    )


def warm_up_then_decay(peak: float, steps: int, warm_up: float, decay: str) -> Callable[[int], float]:
    """Learning rate of each step: linear warm-up over a share of the steps, then `constant`, `linear` or `cosine` decay to zero."""
    rising = round(steps * warm_up)

    def rate(step: int) -> float:
        if step < rising:
            return peak * (step + 1) / rising
        done = (step - rising) / max(1, steps - rising)
        if decay == "linear":
            return peak * max(0.0, 1 - done)
        if decay == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return peak

    return rate
