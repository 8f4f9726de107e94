"""The training loop: a generator that yields what happened after every optimizer step and knows nothing of saving or evaluating."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from mtcore.data.packing import MicroBatch
from mtcore.modeling.head import as_tensors
from mtcore.training.flops import ModelSize


@dataclass(frozen=True)
class Step:
    """One optimizer step, summed over all processes."""

    number: int
    """Steps done in this stage, this one included."""
    loss: float
    """Mean over the step's examples of each example's mean token loss."""
    learning_rate: float
    gradient_norm: float
    tokens: int
    padding: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class StepBatch:
    """What one process contributes to one optimizer step."""

    micro_batches: Sequence[MicroBatch]
    weights: Sequence[float]
    """Weight of each example of this process in the step's loss; over all processes they sum to one."""


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    *,
    size: ModelSize,
    batch: Callable[[int], StepBatch],
    learning_rate: Callable[[int], float],
    first: int,
    last: int,
    clip: float,
) -> Iterator[Step]:
    """Take the optimizer steps [first, last). `model` is a prepared `TargetLoss`; gradients of a step sum to those of its weighted mean loss."""
    for number in range(first, last):
        started = time.perf_counter()
        model.train()
        rate = learning_rate(number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        step = batch(number)
        loss = backward(model, accelerator, step)
        norm = accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens, padding, flops = count(step, size)
        totals = torch.tensor([loss, tokens, padding, flops], dtype=torch.float64, device=accelerator.device)
        loss, tokens, padding, flops = accelerator.reduce(totals, reduction="sum").tolist()
        yield Step(number + 1, loss, rate, float(norm), int(tokens), int(padding), flops, time.perf_counter() - started)


def backward(model: nn.Module, accelerator: Accelerator, step: StepBatch) -> float:
    """Accumulate the gradients of this process's examples; return its part of the step's loss."""
    weights_E = torch.tensor(step.weights, dtype=torch.float32, device=accelerator.device)
    total = 0.0
    for position, micro_batch in enumerate(step.micro_batches):
        is_last = position == len(step.micro_batches) - 1
        with torch.enable_grad(), _synchronised(model, accelerator, is_last):
            losses_E = model(as_tensors(micro_batch, accelerator.device), len(weights_E))
            loss = (losses_E * weights_E).sum()
            # data-parallel wrappers average gradients over processes; the weights already sum to one over all of them
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.item()
    return total


def _synchronised(model: nn.Module, accelerator: Accelerator, is_last: bool) -> AbstractContextManager[None]:
    """Exchange gradients between processes with the last micro-batch of a step only."""
    return nullcontext() if is_last else accelerator.no_sync(model)


def count(step: StepBatch, size: ModelSize) -> tuple[int, int, float]:
    """Useful tokens, padding and FLOPs of one process's step."""
    tokens = sum(b.tokens for b in step.micro_batches)
    padding = sum(b.padding for b in step.micro_batches)
    flops = sum(size.training_flops(b.tokens, b.squared_lengths, len(b.targets_N)) for b in step.micro_batches)
    return tokens, padding, flops


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
