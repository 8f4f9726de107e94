"""A real server for the tests of HTTP: a fleet over a toy model, behind two doors, one of which asks for a key."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import uvicorn
import uvloop
from mtcore_serve.app import create_app
from mtcore_serve.fleet import Fleet, Source
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics

from mtcore.bundle import BundledTask, BundleManifest, write_bundle
from mtcore.contracts import Method, Predictor
from mtcore.registry import Entry, Plugin, Registry
from mtcore.testing.toys import toy_spec
from mtcore.types import Prediction, Prepared, Request, TaskSpec

KEY = "a key of this server"
LIMITS = Limits(body_bytes=100_000, documents=4, text_characters=2000, header_seconds=0.5)


def toy_tasks() -> dict[str, TaskSpec]:
    """A task of every kind of output, and one of two fields; what is called topic has more labels than are shown at once."""
    pair = {"fields": ("premise", "hypothesis"), "input": "sentence-pair", "template": "{premise}\n{hypothesis}\nAnswer: "}
    long = {"words": {label: label for label in ("art", "law", "sea", "sky", "war", "tea", "oil", "ice")}}
    specs = [
        *(toy_spec(output) for output in ("binary", "ordinal", "multi-label", "regression", "generation")),
        toy_spec("multi-class").model_copy(update=long),
        toy_spec("binary").model_copy(update={"name": "pair"} | pair),
    ]
    return {f"toys/{spec.name}": spec for spec in specs}


class ToyPredictor(Predictor):
    """The label that is first in alphabetical order; a text that says so makes it fail."""

    @property
    def tasks(self) -> Mapping[str, TaskSpec]:
        return toy_tasks()

    def prepare(self, request: Request) -> Prepared:
        flags = {task: ("truncated",) if any(len(text) > 1000 for text in request.fields.values()) else () for task in request.tasks}
        return Prepared(request, 10 * len(request.tasks), flags, None)

    def predict(self, prepared: Sequence[Prepared]) -> list[dict[str, Prediction]]:
        return [{task: self._answer(task, p) for task in p.request.tasks} for p in prepared]

    def _answer(self, task: str, prepared: Prepared) -> Prediction:
        spec, flags = self.tasks[task], tuple(prepared.flags[task])
        if any("explode" in prepared.request.fields[field] for field in spec.fields):
            raise ValueError(str(prepared.request.fields))
        if spec.output == "generation":
            return Prediction(task, ("<b>a & b</b>",), None, flags)
        labels = ["0.5", "0", "1", "1.5", "2"] if spec.number_range else sorted(spec.labels)
        probabilities = {label: (0.75 if i == 0 else 0.25 / (len(labels) - 1)) for i, label in enumerate(labels)}
        answer = {"regression": 0.5, "multi-label": (labels[0],)}.get(spec.output, labels[0])
        return Prediction(task, answer, probabilities, flags)


class ToyMethod(Method):
    """Loads the toy, whatever is in the bundle."""

    name = "toy"

    def fit(self, *_: object) -> None:  # type: ignore[override]
        raise NotImplementedError

    def load(self, bundle: Path, renders: Mapping[str, object]) -> Predictor:
        return ToyPredictor()


@dataclass(frozen=True)
class Doors:
    """Where the server is."""

    open: str
    locked: str


@pytest.fixture(scope="session")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """URLs of a running server, without and with a key."""
    bundle = tmp_path_factory.mktemp("bundles") / "toys"
    tasks = {name: BundledTask(spec=spec) for name, spec in toy_tasks().items()}
    write_bundle(bundle, BundleManifest(method="toy", options={}, tasks=tasks, base="none", base_digest=""), lambda _: None)
    registry = Registry([], [Entry("method", "toy", ToyMethod, Plugin("toys", "toys", "1", "loaded"))])
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    urls = Doors(*(f"http://127.0.0.1:{s.getsockname()[1]}" for s in sockets))
    servers: Future[list[uvicorn.Server]] = Future()

    async def serve() -> None:
        metrics = Metrics()
        fleet = Fleet(registry, LIMITS, metrics)
        await fleet.load([Source("toys", bundle, {"toys/binary": True, "toys/pair": False})])
        apps = [create_app(fleet, LIMITS, metrics, keys) for keys in ((), (KEY, "another"))]
        both = [uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None, lifespan="off", ws="none")) for app in apps]
        servers.set_result(both)
        await asyncio.gather(*(server.serve(sockets=[s]) for server, s in zip(both, sockets, strict=True)))
        await fleet.close()

    thread = threading.Thread(target=uvloop.run, args=(serve(),), daemon=True)
    thread.start()
    running = servers.result(timeout=30)
    yield urls
    for server in running:
        server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture(scope="session")
def http() -> Iterator[httpx2.Client]:
    """A client for all tests: to make one takes longer than to use it."""
    with httpx2.Client(timeout=10) as client:
        yield client
