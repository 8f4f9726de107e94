"""Processes: one accelerator, built one way, and checked to be what was asked for."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from mtcore.errors import RunError

KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(precision: str = "fp32") -> Accelerator:
    """The accelerator of this process. Launch by torchrun or `accelerate launch` for more than one.

    Raises RunError for a kind of distribution that would silently train unsynchronised replicas here, and for bf16 without the hardware.
    """
    if precision == "bf16" and not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()):
        raise RunError('precision = "bf16" needs a GPU with bf16 units, and there is none here; use "fp32"')
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no")
    if accelerator.distributed_type not in KNOWN:
        raise RunError(
            f"distributed training of type {accelerator.distributed_type.value!r} is not supported by this version: "
            f"use one process, or data parallelism launched by torchrun (supported: {', '.join(k.value for k in KNOWN)})."
        )
    return accelerator
