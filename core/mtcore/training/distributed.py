"""Processes: one accelerator, built one way, and checked to be what was asked for; and what the loop asks of every engine alike."""

import importlib.util
import os
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from mtcore.config import Distribution
from mtcore.errors import RunError

Value = TypeVar("Value")
REPLICATED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
LAUNCH = "torchrun --nproc-per-node 8 -m mtcore train RUN.toml"


def make_accelerator(precision: str = "fp32", distribution: Distribution | None = None) -> Accelerator:
    """The accelerator of this process for an engine (DDP where none is named). Launch by torchrun or `accelerate launch` for more than one.

    Raises RunError for an engine that cannot be had here, for a kind of distribution that would silently train replicas that do not know each
    other, and for bf16 without the hardware.
    """
    distribution = distribution or Distribution()
    _refuse_what_cannot_be(precision, distribution)
    wanted = {"ddp": REPLICATED, "fsdp": (DistributedType.FSDP,)}.get(distribution.engine, (DistributedType.DEEPSPEED,))
    _forget_engine_not_in(wanted)
    state = process_state()  # before the engine's plugins: accelerate would look for GPUs
    is_bf16 = precision == "bf16"
    try:
        if distribution.engine == "ddp":
            accelerator = Accelerator(mixed_precision="bf16" if is_bf16 else "no", cpu=not torch.cuda.is_available())
        elif distribution.engine == "fsdp":
            accelerator = _fsdp(distribution, is_bf16=is_bf16)
        else:
            accelerator = _deepspeed(distribution, is_bf16=is_bf16)
    except ValueError as error:
        if "mixed_precision" not in str(error):
            raise RunError(f"no accelerator can be made: {error}") from None
        raise RunError(
            f"one process cannot train in two precisions: {error}. Put variants of another precision into a run file of their own."
        ) from None
    if accelerator.num_processes != _launched() or accelerator.distributed_type not in wanted:
        raise RunError(
            f"{_launched()} processes were launched for engine {distribution.engine!r}, and accelerate made {state.num_processes} of them, of type "
            f"{accelerator.distributed_type.value!r}, which would train replicas that do not know each other. Launch by: {LAUNCH}"
        )
    return accelerator


def process_state() -> PartialState:
    """This process among those of the run, made as `make_accelerator` makes it: whoever asks first decides for all."""
    is_cuda = torch.cuda.is_available()
    if not is_cuda:
        # accelerate imports DeepSpeed wherever it is installed, and that would say on stdout what it guesses
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if is_cuda and _launched() > 1 and not torch.distributed.is_initialized():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl")  # what lies in the memory of the host is exchanged there
    return PartialState(cpu=not is_cuda)


def wait_for_everyone() -> None:
    """Return when every process of the run is here."""
    process_state().wait_for_everyone()


def leave() -> None:
    """Part from the other processes when the work is done: one that simply ended would tear the connections of those that have not."""
    if torch.distributed.is_initialized():
        wait_for_everyone()
        torch.distributed.destroy_process_group()


def agree(value: Value) -> Value:
    """What the first process has, on all of them."""
    wait_for_everyone()
    values = [value]
    if PartialState().num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def gathered(value: Value) -> list[Value]:
    """What each process has, by rank, on all of them."""
    state = process_state()
    return [value] if state.num_processes == 1 else gather_object([value])


def first_said(text: str) -> str:
    """The text of the first process that brought one that is not empty, on all of them."""
    return next(filter(None, gathered(text)), "")


def release(accelerator: Accelerator) -> None:
    """Give back what an engine holds, so that the next fit of this process finds the memory free."""
    accelerator.free_memory()


# --- what the loop asks of every engine alike (training/loop.py calls these four and nothing else) --------------------------------------


def exchanging(accelerator: Accelerator, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Around forward and backward of a micro-batch: where every process keeps whole gradients they are exchanged with the last one of a step only.

    FSDP, ZeRO-2 and ZeRO-3 exchange with every micro-batch, so that a process only ever keeps its shard of what has been summed; DeepSpeed is
    told by `backward`.
    """
    exchanges_once = accelerator.distributed_type in REPLICATED
    return accelerator.no_sync(model) if exchanges_once and not is_last else nullcontext()


def can_begin_anew(accelerator: Accelerator) -> bool:
    """Whether a step whose gradients are half done can be begun anew: not where other processes wait in it, nor where DeepSpeed has reduced some."""
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    return accelerator.num_processes == 1 and not is_deepspeed


def backward(accelerator: Accelerator, model: Any, loss: torch.Tensor, is_last: bool) -> None:
    """Add the gradients of this process's part of the step's loss; over all processes and micro-batches the parts sum to the loss."""
    # every engine averages gradients over processes; the weights already sum to one over all of them
    loss = loss * accelerator.num_processes
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # not through accelerate: it would take the optimizer's step with the last micro-batch, before anyone has seen the norm
        model.set_gradient_accumulation_boundary(is_last)
        model.backward(loss)
    else:
        accelerator.backward(loss)


def clip_gradients(accelerator: Accelerator, model: Any, most: float) -> float:
    """Scale the whole gradient down to a norm of `most`; return the norm it had, over all processes."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        model.optimizer.clip_grad = most  # it scales within its step
        return _zero_norm(model.optimizer)
    norm = accelerator.clip_grad_norm_(model.parameters(), most)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def take_step(accelerator: Accelerator, optimizer: torch.optim.Optimizer, *, is_taken: bool) -> None:
    """Let the optimizer step, or drop the gradients without a step."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        engine = accelerator.deepspeed_engine_wrapped.engine
        if not is_taken:
            _spoil(engine.optimizer)
        engine.step()
        return
    if is_taken:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# --- engines ------------------------------------------------------------------------------------------------------------------------------


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _forget_engine_not_in(wanted: tuple[DistributedType, ...]) -> None:
    """Let this process begin anew where an earlier fit of it had another engine, which accelerate keeps in its states and the environment."""
    if AcceleratorState._shared_state and AcceleratorState().distributed_type not in wanted:
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
            os.environ.pop(name, None)


def _refuse_what_cannot_be(precision: str, distribution: Distribution) -> None:
    if precision == "bf16" and not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()):
        raise RunError('precision = "bf16" needs a GPU with bf16 units, and there is none here; use "fp32"')
    if distribution.engine == "ddp":
        return
    asked = f"distribution.engine = {distribution.engine!r}"
    if "LOCAL_RANK" not in os.environ:
        raise RunError(f"{asked} divides a model among processes, and no launcher started any. Launch by: {LAUNCH}")
    if _launched() == 1 and distribution.offload == "none":
        raise RunError(
            f"{asked} divides a model among processes, and 1 was launched. Launch more, or leave the section out; "
            "to train on one GPU and in the memory of the host, set distribution.offload."
        )
    if distribution.engine == "fsdp" and distribution.offload != "none" and not torch.cuda.is_available():
        raise RunError(
            f"{asked} with offload = {distribution.offload!r} spares the memory of GPUs, and there is none here; leave offload out"
        )
    if distribution.engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise RunError(f"{asked} needs DeepSpeed, which is not installed: pip install 'mtcore[deepspeed]'")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        raise RunError(f"{asked} cannot be had under `accelerate launch --cpu`. Launch by: {LAUNCH}")


def _fsdp(distribution: Distribution, *, is_bf16: bool) -> Accelerator:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_offload=distribution.offload == "all",
        mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32) if is_bf16 else None,
    )
    accelerator = Accelerator(mixed_precision="bf16" if is_bf16 else "no", cpu=not torch.cuda.is_available(), fsdp_plugin=plugin)
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate enters FSDP from its GPU types alone and would train unsynchronised replicas here; what it does once entered runs
        # on a mesh of processors as well. Every state it makes later copies the type from PartialState, where it writes it down on GPUs too
        accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin  # and not that of an earlier fit
    return accelerator


def _deepspeed(distribution: Distribution, *, is_bf16: bool) -> Accelerator:
    from deepspeed import comm, ops
    from deepspeed.utils import logger
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    for handler in logger.handlers:
        handler.setStream(sys.stderr)  # stdout is for results
    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # processors exchange by gloo: its own way would be compiled first, for a minute
    with redirect_stdout(sys.stderr):
        comm.init_distributed(auto_mpi_discovery=False, verbose=False)
    logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of calls that are DeepSpeed's, at every step
    stage, offload = int(distribution.engine[-1]), distribution.offload
    config: dict[str, Any] = {
        # steps are cut, weighted and accumulated by the loop
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {
            "stage": stage,
            "offload_optimizer": {"device": "none" if offload == "none" else "cpu"},
            "offload_param": {"device": "cpu" if offload == "all" else "none"},
        },
        "torch_autocast": {"enabled": is_bf16, "dtype": "bfloat16"},
        # torch's AdamW on the host too: DeepSpeed's own needs a compiler, and does not resume to the same bits
        "zero_force_ds_cpu_optimizer": False,
    }
    if AcceleratorState._shared_state and AcceleratorState().distributed_type == DistributedType.DEEPSPEED:
        accelerator = Accelerator()
        plugin = accelerator.state.deepspeed_plugin
    else:
        plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)
        accelerator = Accelerator(deepspeed_plugin=plugin)
    plugin.deepspeed_config.update(config)
    unset_hf_deepspeed_config()  # or transformers would load every model in parts, those that are only asked too
    return accelerator


def is_offloaded(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed's optimizer steps in the memory of the host."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return False
    return bool(accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["offload_optimizer"]["device"] == "cpu")


def _zero_norm(zero: Any) -> float:
    """Norm of the averaged gradients that lie ready for DeepSpeed's step; infinite where one is no number."""
    if hasattr(zero, "scaled_global_norm"):
        return float(zero.scaled_global_norm())
    from deepspeed.runtime.utils import combine_grad_norm_groups

    return float(combine_grad_norm_groups(zero._get_norm_groups()))


def _spoil(zero: Any) -> None:
    """Make the gradients non-finite: DeepSpeed then cleans up after them and takes no step."""
    for gradients in zero.averaged_gradients.values():
        for gradient in gradients or ():
            gradient.fill_(float("nan"))
    norms = getattr(zero, "norm_for_param_grads", {})
    for key in norms:
        norms[key] = torch.tensor(float("nan"))
