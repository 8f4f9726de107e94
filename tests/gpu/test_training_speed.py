"""The training benchmark on a GPU: what the engine makes of a decoder of half a billion parameters."""

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mtcore.modeling.attention import kernel
from mtcore.training.flops import peak

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)), reason="needs a GPU with bf16 units"
)
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_training.py"
WARM_UP, STEPS = 5, 20


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_training", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_training"] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_useful_tokens_keep_a_gpu_at_45_percent_of_its_peak(bench):
    device = torch.device("cuda", torch.cuda.current_device())
    assert kernel(device, torch.bfloat16, dropout=False) != "slices"
    # Qwen2-0.5B by its shapes; enough examples a step that the optimizer, which takes as long whatever a step has, does not decide
    half_billion = bench.Shape(151_936, 896, 4864, 24, 14, 2, tasks=20, batch_tokens=32_768)
    bench.STEP = 512
    trainee, steps, _ = bench.trainee_and_steps(half_billion, bench.pool(half_billion, 4096), precision="bf16")
    for _ in range(WARM_UP):
        next(steps)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    flops = sum(next(steps).flops for _ in range(STEPS))
    torch.cuda.synchronize()
    known = peak(device, "bf16", trainee.size)
    utilisation = flops / (time.perf_counter() - begun) / known.flops_per_second
    assert utilisation >= 0.45, f"{utilisation:.2f} of {known.source}"
