"""Ray keeps what every launcher promises, on a cluster of this machine alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mtcore.errors import RunError
from mtcore.interrupts import Stop
from mtcore.testing import launcher_checks
from mtcore.types import Job

ray = pytest.importorskip("ray", reason="ray is not installed: pip install ./plugins/launcher-ray")
Ray = pytest.importorskip("mtcore_ray").Ray
DIES_ONCE = """
import os, pathlib, signal

def do(data, emit, stop):
    tries = pathlib.Path(data["tries"])
    with tries.open("a") as file:
        file.write(".")
    if len(tries.read_text()) == 1:
        (out,) = {int(path.name) for path in pathlib.Path("/proc/self/fd").iterdir() if "pipe:" in ends(path)} - {0}
        os.write(out, b'{"result": [1, 2')  # and dies in the middle of it
        os.kill(os.getpid(), signal.SIGKILL)
    return len(tries.read_text())

def ends(path):
    return os.readlink(path) if os.path.lexists(path) else ""
"""


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of two processors, whose workers can import the module `ours`."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "ours.py").write_text(DIES_ONCE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("check", launcher_checks(Ray), ids=str)
def test_the_launcher_keeps_its_promises(check):
    check()


def test_a_job_whose_worker_died_is_done_again_as_often_as_is_allowed(tmp_path: Path) -> None:
    jobs = [Job(name=name, call="ours:do", data={"tries": str(tmp_path / name)}) for name in ("a", "b")]
    assert Ray(Ray.Config(max_retries=1)).run(jobs[:1], lambda event: None, Stop()) == {"a": 2}
    with pytest.raises(RunError, match="b: killed by SIGKILL"):
        Ray(Ray.Config(max_retries=0)).run(jobs[1:], lambda event: None, Stop())
