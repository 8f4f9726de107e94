"""What a device can do at most: peaks of known GPUs from their data sheets, of everything else from matrix products timed here."""

import re
import time
from dataclasses import dataclass
from functools import cache

import torch

from mtcore.modeling.flops import ModelSize, model_size

__all__ = ["ModelSize", "Peak", "model_size", "peak"]

SHEETS: dict[str, tuple[float | None, float]] = {
    "H200 NVL": (835.5, 60.0),
    "H200": (989.5, 66.9),
    "H100 NVL": (835.5, 60.0),
    "H100 PCIe": (756.5, 51.0),
    "H100": (989.5, 66.9),
    "GH200": (989.5, 66.9),
    "A100": (312.0, 19.5),
    "A30": (165.0, 10.3),
    "A40": (149.7, 37.4),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "V100-SXM2": (None, 15.7),
    "V100-PCIE": (None, 14.0),
    "T4": (None, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}
"""TFLOP/s of bf16 tensor cores (dense, sums in fp32; None: without) and of fp32 without TF32, from NVIDIA's data sheets and white papers.

Keys are whole words of `torch.cuda.get_device_name`, the more particular first: an A10G is no A10.
"""
LESSER = r"\w| D\b| Ti\b| SUPER| Laptop|.* MIG "
"""What in a name after a key tells of another device, or of a slice of it."""
SIDE = {"cpu": 1024, "cuda": 4096}
"""Rows of the matrix products that are timed, and the most columns: larger ones are no faster, and take long."""
SECONDS = 0.15
"""How long to time them."""


@dataclass(frozen=True)
class Peak:
    """The most floating-point operations a second that one device can do, and where that is known from."""

    flops_per_second: float
    source: str


def peak(device: torch.device, precision: str, size: ModelSize) -> Peak:
    """The peak of this process's device in `fp32` or `bf16`; one that no data sheet here knows is timed at the model's own shapes.

    A timed peak is the best of several products within a fraction of a second, on the threads that torch is using: what a step could
    reach at most, if it were nothing but its largest matrix product.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if (known := data_sheet(name, precision)) is not None:
        return Peak(known, f"{name}, {precision}, by its data sheet")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = SIDE.get(device.type, SIDE["cpu"])
    outputs, inputs = (min(side, rows) for side in size.widest)
    threads = torch.get_num_threads()
    best = _least_seconds(rows, inputs, outputs, dtype, device, threads)
    where = name or f"{threads} thread{'' if threads == 1 else 's'}"
    return Peak(2.0 * rows * inputs * outputs / best, f"{precision} matrix products of {rows} × {inputs} × {outputs}, timed on {where}")


def data_sheet(name: str, precision: str) -> float | None:
    """Peak of a GPU by its name; None where it is not known here."""
    for key, (bf16, fp32) in SHEETS.items():
        if re.search(rf"\b{key}(?!{LESSER})", name + " "):
            found = bf16 if precision == "bf16" else fp32
            return None if found is None else found * 1e12
    return None


@cache
def _least_seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Seconds of a product; timed once in a process, which may measure a hundred references one after another."""
    left, right = torch.ones(rows, inputs, dtype=dtype, device=device), torch.ones(inputs, outputs, dtype=dtype, device=device)
    times: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(times) < 4 or time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(left, right)
        if left.is_cuda:
            torch.cuda.synchronize(left.device)
        times.append(time.perf_counter() - started)
    return min(times[1:])  # the first warms up
