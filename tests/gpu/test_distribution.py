"""Every engine on real GPUs, with offload and bf16: what a machine without them cannot show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parents[1] / "test_distribution.py"
sys.path.insert(0, str(WORKER.parent))

from test_distribution import bundles, losses, whole_run, write_run  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def launch(path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, str(WORKER), str(path)], env=dict(os.environ), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((path.parent / "heard.json").read_text())


@pytest.fixture(scope="module")
def alone(base_folder, tmp_path_factory):
    """The run by one process on one GPU."""
    return losses(whole_run(write_run(tmp_path_factory.mktemp("alone"), base_folder, "ddp")))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("engine", "offload"),
    [
        ("ddp", "none"),
        ("fsdp", "none"),
        ("fsdp", "all"),
        ("zero-1", "none"),
        ("zero-2", "none"),
        ("zero-2", "optimizer"),
        ("zero-3", "none"),
        ("zero-3", "all"),
    ],
)
def test_two_gpus_train_what_one_does(engine, offload, precision, alone, base_folder, tmp_path):
    heard, again = launch(write_run(tmp_path, base_folder, engine, offload=offload, precision=precision))
    assert [(work, step) for work, step, _ in heard] == [(work, step) for work, step, _ in alone]
    near = 1e-3 if precision == "fp32" else 3e-2
    assert [loss for *_, loss in heard] == pytest.approx([loss for *_, loss in alone], rel=near)
    # kernels of GPUs add up in any order, so that taken up work is only nearly the same
    steps = {(work, step): loss for work, step, loss in heard}
    assert all(loss == pytest.approx(steps[work, step], rel=near) for work, step, loss in again)
    assert bundles(tmp_path / "out/run").keys() == bundles(tmp_path / "out/broken").keys()
