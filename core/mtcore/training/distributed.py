"""Processes: one accelerator, built one way, and checked to be what was asked for."""

import os
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list

from mtcore.errors import RunError

Value = TypeVar("Value")
KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(precision: str = "fp32") -> Accelerator:
    """The accelerator of this process. Launch by torchrun or `accelerate launch` for more than one.

    Raises RunError for a kind of distribution that would silently train unsynchronised replicas here, and for bf16 without the hardware.
    """
    if precision == "bf16" and not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()):
        raise RunError('precision = "bf16" needs a GPU with bf16 units, and there is none here; use "fp32"')
    try:
        accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=not torch.cuda.is_available())
    except ValueError as error:
        if "mixed_precision" not in str(error):
            raise RunError(f"no accelerator can be made: {error}") from None
        raise RunError(
            f"one process cannot train in two precisions: {error}. Put variants of another precision into a run file of their own."
        ) from None
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted or accelerator.distributed_type not in KNOWN:
        raise RunError(
            f"{wanted} processes were launched, and accelerate made {accelerator.num_processes} of them, of type "
            f"{accelerator.distributed_type.value!r}, which would train replicas that do not know each other. "
            f"Supported: {', '.join(k.value for k in KNOWN)}; launch by torchrun."
        )
    return accelerator


def process_state() -> PartialState:
    """This process among those of the run, made as `make_accelerator` makes it: whoever asks first decides for all."""
    return PartialState(cpu=not torch.cuda.is_available())


def wait_for_everyone() -> None:
    """Return when every process of the run is here."""
    process_state().wait_for_everyone()


def agree(value: Value) -> Value:
    """What the first process has, on all of them."""
    wait_for_everyone()
    values = [value]
    if PartialState().num_processes > 1:
        broadcast_object_list(values)
    return values[0]
