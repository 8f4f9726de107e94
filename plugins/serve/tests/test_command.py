"""`mtcore serve` and `mtcore swap` as processes: nothing is lost when a server ends, is swapped, or loses a worker."""

import http.client
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result
from mtcore_serve.starting import HOW, bind, default_threads, read_keys
from mtcore_serve.targets import sources, successor

from mtcore.bundle import BundledTask, BundleManifest, write_bundle
from mtcore.cli import cli
from mtcore.errors import ConfigError, RunError
from mtcore.probes import Probe, Probes
from mtcore.testing.toys import toy_spec

PLUGIN = '''
import os, time
from mtcore.contracts import Method, Options, Predictor
from mtcore.hookspecs import hookimpl
from mtcore.testing.toys import toy_spec
from mtcore.types import Prediction, Prepared

class Says(Predictor):
    """Says one label to everything, after as many seconds as the text says."""
    tasks = {"toys/binary": toy_spec("binary")}
    def __init__(self, label): self.label = label
    def prepare(self, request): return Prepared(request, 4, {"toys/binary": ()}, None)
    def predict(self, prepared): return [self.answer(p.request.fields["text"]) for p in prepared]
    def answer(self, text):
        if text.startswith("wait "): time.sleep(float(text[5:]))
        return {"toys/binary": Prediction("toys/binary", self.label, {label: float(label == self.label) for label in "01"})}

class Saying(Method):
    name = "saying"
    class Config(Options):
        label: str
    def fit(self, *given): raise NotImplementedError
    def load(self, bundle, renders): return Says(self.config.label)

@hookimpl
def register_methods(): return [Saying]
'''


def make_bundle(folder: Path, label: str, probed: str | None = None) -> Path:
    """A bundle that says one label, and was seen to say one when it was published."""
    tasks = {"toys/binary": BundledTask(spec=toy_spec("binary"))}
    probe = Probe(task="toys/binary", fields={"text": "x"}, answer=label, probabilities={probed or label: 1.0})
    text = Probes(probes=(probe,)).model_dump_json()
    manifest = BundleManifest(method="saying", options={"label": label}, tasks=tasks, base="none", base_digest="")
    return write_bundle(folder, manifest, lambda to: (to / "probes.json").write_text(text) and None)


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    admin: Path

    def ask(self, text: str = "now") -> tuple[int, str | None]:
        """Status and answer, on a connection of its own."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        try:
            connection.request("POST", "/v1/predict", json.dumps({"documents": [text]}), {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = json.loads(response.read())
            return response.status, content["results"][0]["answers"]["toys/binary"]["answer"] if response.status == 200 else None
        finally:
            connection.close()

    def swap(self, *words: object) -> Result:
        return CliRunner().invoke(cli, ["swap", "--admin", str(self.admin), *map(str, words)])

    def status(self) -> Any:
        return json.loads(self.swap("--status").output)

    def states(self) -> dict[int, str]:
        """Of several workers, by process."""
        return {worker["pid"]: worker["state"] for worker in self.status()["workers"]}

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


@dataclass(frozen=True)
class Place:
    """Where bundles are, and how servers are started there."""

    folder: Path
    environment: dict[str, str]

    def start(self, *words: object) -> Server:
        command = [sys.executable, "-m", "mtcore", "serve", *map(str, words), "--port", "0"]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        for line in process.stdout or ():
            if found := re.match(r"ready: (\S+) \(admin socket: (.*)\)", line):
                return Server(process, found[1], Path(found[2]))
        raise AssertionError(f"the server ended with {process.wait()}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Bundles of a toy method that needs no torch, which a plugin on the path brings; `zero` and `one` say what they are called."""
    folder = tmp_path_factory.mktemp("serving")
    site = folder / "site" / "saying-1.0.dist-info"
    site.mkdir(parents=True)
    (site.parent / "saying_plugin.py").write_text(PLUGIN)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: saying\nVersion: 1.0\n")
    (site / "entry_points.txt").write_text("[mtcore]\nsaying = saying_plugin\n")
    make_bundle(folder / "zero", "0")
    make_bundle(folder / "one", "1")
    make_bundle(folder / "changed", "1", probed="0")
    environment = {"PYTHONPATH": str(site.parent), "MTCORE_PLUGINS": "saying,mtcore-serve", "XDG_RUNTIME_DIR": str(folder)}
    return Place(folder, {**os.environ, **environment})


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[Server]:
    """One process, with the bundle `zero` as group `toys`."""
    running = place.start(f"toys={place.folder / 'zero'}")
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def pair(place: Place) -> Iterator[Server]:
    """Two workers, with the bundle `zero` as group `toys`."""
    running = place.start(f"toys={place.folder / 'zero'}", "--workers", 2)
    yield running
    assert running.end() == 0


@pytest.mark.parametrize("kind", ["server", "pair"])
def test_a_swap_changes_who_answers_and_a_bad_bundle_changes_nothing(kind: str, place: Place, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(kind)
    assert {server.ask() for _ in range(10)} == {(200, "0")}
    for bad, why in (("changed", "otherwise than when it was published"), ("nowhere", "neither a bundle")):
        refused = server.swap("toys", place.folder / bad)
        assert refused.exception is not None
        assert why in str(refused.exception)
    assert "toys" in str(server.swap("others", place.folder / "one").exception)
    assert {server.ask() for _ in range(10)} == {(200, "0")}
    swapped = server.swap("toys", place.folder / "one")
    assert swapped.exit_code == 0, swapped.output
    assert {server.ask() for _ in range(10)} == {(200, "1")}
    assert server.swap("toys", place.folder / "zero", "--shadow", 1).exit_code == 0
    assert {server.ask() for _ in range(10)} == {(200, "1")}
    assert server.swap("toys", "--canary", 1).exit_code == 0
    assert {server.ask() for _ in range(10)} == {(200, "0")}
    assert server.swap("toys", "--discard").exit_code == 0
    assert server.swap("toys", "--promote").exception is not None
    assert server.swap("toys", place.folder / "zero").exit_code == 0
    assert {server.ask() for _ in range(10)} == {(200, "0")}


def test_the_admin_socket_is_its_users_alone(server: Server) -> None:
    assert stat.S_IMODE(server.admin.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.admin.parent.stat().st_mode) == 0o700


def test_what_was_accepted_before_the_end_is_answered(place: Place) -> None:
    server = place.start(place.folder / "zero", "--grace", 0.2)
    with ThreadPoolExecutor(4) as clients:
        # one that computes, and others that wait behind it
        asked = [clients.submit(server.ask, f"wait {seconds}") for seconds in (0.5, 0.01, 0.02, 0.03)]
        while server.status()["open_requests"] < len(asked):
            pass
        server.process.terminate()
        assert [each.result() for each in asked] == [(200, "0")] * len(asked)
    assert server.process.wait(20) == 0
    assert not server.admin.parent.exists()


def test_a_worker_that_is_killed_is_replaced_while_requests_go_on(pair: Server) -> None:
    before = pair.states()
    assert list(before.values()) == ["serving", "serving"]
    killed = next(iter(before))
    os.kill(killed, signal.SIGKILL)
    while killed in (now := pair.states()) or set(now.values()) != {"serving"}:
        assert pair.ask() == (200, "0")


def test_a_bundle_that_cannot_be_served_ends_the_start(place: Place) -> None:
    command = [sys.executable, "-m", "mtcore", "serve", str(place.folder / "changed"), "--port", "0", "--workers", "2"]
    ended = subprocess.run(command, env=place.environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "otherwise than when it was published" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_where_others_can_reach_it_a_key_is_demanded(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match="--key-file"):
            bind(host, 0, ())
    bind("127.0.0.1", 0, ()).close()
    bind("0.0.0.0", 0, ("k" * 20,)).close()
    assert "token_urlsafe" in HOW


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a" * 20 + "\n\n" + "b" * 20 + "\n")
    assert read_keys(file, "c" * 20) == ("a" * 20, "b" * 20, "c" * 20)
    assert read_keys(None, None) == ()
    for text in ("", "short\n", "a key that has spaces\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="token_urlsafe"):
            read_keys(file, None)


def test_a_port_that_is_taken_is_named() -> None:
    with bind("127.0.0.1", 0, ()) as taken:
        taken.listen()
        with pytest.raises(RunError, match=str(taken.getsockname()[1])):
            bind("127.0.0.1", taken.getsockname()[1], ())


def test_threads_are_shared_out_among_workers() -> None:
    assert default_threads(1) >= default_threads(2) >= default_threads(10_000) == 1


def put_run(folder: Path, groups: Sequence[str]) -> Path:
    """As much of a finished run as serving needs."""
    (folder / "resolved.json").parent.mkdir(parents=True)
    (folder / "resolved.json").write_text(json.dumps({"variants": {"": {}}}))
    told = [{"name": name, "tasks": [{"name": "toys/binary", "qualified": name == "a"}]} for name in groups]
    (folder / "report.json").write_text(json.dumps({"variant": "", "seeds": [3], "groups": told}))
    for name in groups:
        make_bundle(folder / "seed-3" / name / "bundle", "0")
    return folder


def test_groups_are_called_as_in_their_run_and_bundles_as_their_folder_or_as_one_says(tmp_path: Path) -> None:
    run, bundle = put_run(tmp_path / "run", ["a", "b"]), make_bundle(tmp_path / "mine", "1")
    file = tmp_path / "run.toml"
    file.write_text(f'out = "{tmp_path}"\n')
    places = {"a": run / "seed-3/a/bundle", "b": run / "seed-3/b/bundle"}
    for target in (run, file):
        found = sources([str(target)])
        assert {source.group: source.folder for source in found} == places
        assert [source.qualified["toys/binary"] for source in found] == [True, False]
    assert [source.group for source in sources([str(places["b"]), str(bundle), f"other={bundle}"])] == ["b", "mine", "other"]
    with pytest.raises(ConfigError, match=f"NAME={places['a']}"):
        sources([str(run), str(places["a"])])
    assert successor("b", str(run)).folder == places["b"]
    assert successor("b", str(bundle)).folder == bundle
    with pytest.raises(ConfigError, match="it has a, b"):
        successor("c", str(run))
