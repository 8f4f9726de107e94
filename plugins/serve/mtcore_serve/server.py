"""One worker process: loads the bundles, answers on a listening socket, drains when it is asked to end."""

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from mtcore.cli.common import load_registry
from mtcore_serve import access
from mtcore_serve.admin import create_admin
from mtcore_serve.app import create_app
from mtcore_serve.control import listen_privately
from mtcore_serve.errors import NotReady
from mtcore_serve.fleet import Fleet, Source
from mtcore_serve.limits import Limits
from mtcore_serve.listener import Listener
from mtcore_serve.metrics import Metrics
from mtcore_serve.refusals import refusal

log = logging.getLogger("mtcore_serve")
M_ARENA_MAX = -8
"""As glibc's malloc.h has it."""
LOOK = 0.5
"""Seconds between two looks at whether the models are still there."""


@dataclass(frozen=True)
class Settings:
    """What a worker must know."""

    sources: tuple[Source, ...]
    limits: Limits
    admin: Path
    """The admin socket's path."""
    keys: tuple[str, ...] = ()
    threads: int = 1
    """Threads that a model computes in."""
    metrics_folder: str | None = None
    grace: float = 0.0
    """Seconds between the signal to end and the end of accepting: in them /ready says no, so that load balancers turn away."""
    log_level: str = "warning"
    shares_socket: bool = False
    """Whether other workers listen on the same socket."""


def set_logging(level: str) -> None:
    """Log to stderr; of uvicorn only what went wrong: its comings and goings, and what clients send, are no news. Lines of JSON stay bare."""
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    bare = logging.StreamHandler()
    for logger in (access.log, access.failures):
        logger.handlers, logger.propagate = [bare], False
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


class Worker:
    """The fleet of this process and where it is on its way, as its admin socket has it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.state: Literal["loading", "serving", "leaving"] = "loading"

    async def prepare(self, source: Source, *, may_drop_tasks: bool = False) -> str:
        return await self.fleet.prepare(source, may_drop_tasks=may_drop_tasks)

    async def switch(self, group: str) -> str:
        return await self.fleet.switch(group)

    async def discard(self, group: str) -> None:
        await self.fleet.discard(group)

    async def share(self, group: str, *, canary: float = 0.0, shadow: float = 0.0) -> None:
        self.fleet.share(group, canary=canary, shadow=shadow)

    async def status(self) -> Mapping[str, Any]:
        return {"pid": os.getpid(), "state": self.state, **self.fleet.status()}


def work(settings: Settings, listening: Sequence[socket.socket], announce: Callable[[], None] = lambda: None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code: 0 where all that was accepted is answered, else 1.

    The sockets are bound and not listening: until the models are loaded, clients are refused by the system at once. `announce` is called then.
    Raises ModelError where the bundles cannot be served.
    """
    set_logging(settings.log_level)
    _allow_connections()
    _keep_memory_together()
    # torch looks at these when a bundle's method imports it; threads that spin while they wait take the processors from the event loop
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return uvloop.run(_work(settings, listening, announce))


async def _work(settings: Settings, listening: Sequence[socket.socket], announce: Callable[[], None]) -> int:
    asked = asyncio.Event()
    on_signals(asked)
    admin_socket = listen_privately(settings.admin)
    try:
        metrics = Metrics(settings.metrics_folder)
        fleet = Fleet(load_registry(), settings.limits, metrics)
        app = create_app(fleet, settings.limits, metrics, settings.keys)
        return await serve(app, fleet, settings, listening, admin_socket, asked, announce)
    finally:
        settings.admin.unlink(missing_ok=True)


async def serve(
    app: ASGIApp,
    fleet: Fleet,
    settings: Settings,
    listening: Sequence[socket.socket],
    admin_socket: socket.socket,
    asked: asyncio.Event,
    announce: Callable[[], None],
) -> int:
    """Load, listen, wait until it is `asked` to end, drain."""
    limits = settings.limits
    worker = Worker(fleet)
    admin = Listener(create_admin(worker), header_seconds=limits.header_seconds, drain_seconds=0)
    public = Listener(
        _ReadyUntilLeaving(app, worker),
        header_seconds=limits.header_seconds,
        drain_seconds=limits.drain_seconds,
        owns_sockets=not settings.shares_socket,
    )
    administering = asyncio.create_task(admin.serve([admin_socket]))
    try:
        if not await _loaded(fleet, settings.sources, asked):
            return 0
        answering = asyncio.create_task(public.serve(list(listening)))
        await _first(public.is_listening.wait(), answering)
        worker.state = "serving"
        announce()
        is_well = await _watch(fleet, asked)
        worker.state = "leaving"
        public.leave()
        await asyncio.sleep(settings.grace if is_well else 0)
        public.should_exit = True
        await answering
        await fleet.drain(1.0)  # what is computed still, nobody waits for
        if not public.is_lossless:
            log.error("not everything was answered within %g s", limits.drain_seconds)
        return 0 if is_well and public.is_lossless else 1
    finally:
        await fleet.close()
        admin.should_exit = True
        await administering


async def _loaded(fleet: Fleet, sources: Sequence[Source], asked: asyncio.Event) -> bool:
    """Whether the models were loaded before this process was asked to end."""
    loading = asyncio.create_task(fleet.load(sources))
    await _first(asked.wait(), loading)
    if not loading.done():
        loading.cancel()
        return False
    await loading
    return True


async def _watch(fleet: Fleet, asked: asyncio.Event) -> bool:
    """Wait until this process is asked to end, or its models are given up; whether they are well."""
    while not asked.is_set():
        if not fleet.is_ready:
            log.error("a model was given up and does not come back: this process ends, so that a fresh one can take its place")
            return False
        try:
            await asyncio.wait_for(asked.wait(), LOOK)
        except TimeoutError:
            continue
    return True


async def _first(waiting: Any, task: asyncio.Task[Any]) -> None:
    """Wait for the first of the two."""
    other = asyncio.ensure_future(waiting)
    await asyncio.wait({other, task}, return_when=asyncio.FIRST_COMPLETED)
    other.cancel()


def _allow_connections() -> None:
    """As many open files as this user may have: each connection is one, and the usual bound of 1024 is soon reached."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _keep_memory_together() -> None:
    """Threads come and go with bundles; with the arenas of its own that glibc gives each, memory grew from swap to swap."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def on_signals(asked: asyncio.Event) -> None:
    """Set the event at the first SIGTERM or Ctrl-C; the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def first() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        asked.set()

    for number in numbers:
        loop.add_signal_handler(number, first)


class _ReadyUntilLeaving:
    """ASGI middleware: /ready says no as soon as the process is asked to end, while everything else is still answered."""

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        self._app = app
        self._worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_asked = scope["type"] == "http" and scope["path"] == "/ready" and scope["method"] in ("GET", "HEAD")
        app = refusal(NotReady("this server is about to end")) if is_asked and self._worker.state == "leaving" else self._app
        await app(scope, receive, send)
