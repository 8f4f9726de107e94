"""Ray keeps what every launcher promises, and serves a bundle, on a cluster of this machine alone."""

import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from mtcore.bundle import BundledTask, BundleManifest, read_bundle, write_bundle
from mtcore.errors import ConfigError, RunError
from mtcore.interrupts import Stop
from mtcore.testing import launcher_checks, toy_base, toy_spec
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


@pytest.fixture(scope="module")
def online():
    """The module that serves on Ray."""
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed: pip install './plugins/launcher-ray[serve]'")
    pytest.importorskip("mtcore_serve", reason="mtcore-serve is not installed: pip install ./plugins/serve")
    return pytest.importorskip("mtcore_ray_serve")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tasks = {"toys/binary": BundledTask(spec=toy_spec("binary"))}
    manifest = BundleManifest(method="text2text", options={"max_length": 64}, tasks=tasks, base="toy", base_digest="")
    return write_bundle(tmp_path / "bundle", manifest, lambda folder: toy_base(folder, context=64))


def test_a_bundle_is_served_by_ray_with_its_keys_bounds_and_version(online, bundle: Path, tmp_path: Path) -> None:
    from ray import serve

    (tmp_path / "keys").write_text("a key of the test's own\n".replace(" ", "-"), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def ask(text: str, **headers: str) -> tuple[int, dict]:
        body = json.dumps({"documents": [text]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict", body, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            return error.code, json.load(error)

    serve.start(http_options={"port": port})
    try:
        arguments = {"targets": f"toys={bundle}", "keys": tmp_path / "keys", "cpus": 0.5, "limits": {"text_characters": 100}}
        serve.run(online.app(online.Arguments(**arguments)))
        assert ask("it is wet")[0] == 401
        key = {"Authorization": "Bearer a-key-of-the-test's-own"}
        assert ask("wet " * 100, **key)[0] == 413
        status, answered = ask("it is wet", **key)
        assert status == 200
        answer = answered["results"][0]["answers"]["toys/binary"]
        assert answer["version"] == read_bundle(bundle).version
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
    finally:
        serve.shutdown()


def test_nothing_is_served_openly_by_accident(online, bundle: Path) -> None:
    with pytest.raises(ValidationError, match="keys"):
        online.Arguments(targets=str(bundle))
    result = CliRunner().invoke(online.serve_ray, ["--host", "0.0.0.0", str(bundle)])
    assert isinstance(result.exception, ConfigError)
    assert "demands a key" in str(result.exception)
