"""Connections and listeners: what may be sent and how slowly, and that nothing is lost at the end."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from mtcore_serve.connection import HEADER_BYTES
from mtcore_serve.control import listen_privately
from mtcore_serve.limits import Limits
from mtcore_serve.listener import Listener, turn_away
from mtcore_serve.server import Settings, serve
from starlette.types import Receive, Scope, Send

from mtcore.errors import ModelError

GET = b"GET /now HTTP/1.1\r\nHost: test\r\n\r\n"
LATER = GET.replace(b"/now", b"/later")


class App:
    """Answers at once, but for /later, which waits until it may be answered; to /much with more than a connection holds."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/later":
            self.waiting += 1
            await self.may_answer.wait()
        body = b"ok" * (10_000_000 if scope["path"] == "/much" else 1)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening(app: App, **bounds: float) -> AsyncIterator[tuple[Listener, socket.socket]]:
    """A listener on a free port."""
    bound = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener = Listener(app, **{"header_seconds": 5.0, "drain_seconds": 5.0, **bounds})
    serving = asyncio.create_task(listener.serve([bound]))
    await listener.is_listening.wait()
    try:
        yield listener, bound
    finally:
        serving.cancel()
        bound.close()


async def said(bound: socket.socket, *parts: bytes) -> bytes:
    """All that a client hears until its connection ends, after it has sent everything it wants to."""
    reader, writer = await asyncio.open_connection(*bound.getsockname())
    for part in parts:
        writer.write(part)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


def with_listener(test: Callable[[Listener, socket.socket, App], Awaitable[None]], **bounds: float) -> None:
    async def run() -> None:
        app = App()
        async with listening(app, **bounds) as (listener, bound):
            await test(listener, bound, app)

    uvloop.run(run())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /now HTTP/1.1\r\nHost: te", 408),
        (b"POST /later HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n12345", 408),
        (b"GET /now HTTP/1.1\r\nX: " + b"x" * HEADER_BYTES * 20, 431),
        (b"GET /" + b"x" * HEADER_BYTES * 20, 431),
        (b"GET /now HTTP/1.1\r\n" + b"X: y\r\n" * HEADER_BYTES, 431),
        (b"POST /later HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"X: y\r\n" * HEADER_BYTES, 431),
        (b"POST /later HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * HEADER_BYTES * 20, 431),
        (b"\x16\x03\x01 this is no HTTP\r\n\r\n", 400),
        # as Java's client asks unless it is told not to: the parser would take the body for the other protocol's
        (b"POST /later HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET http:// HTTP/1.1\r\n\r\n", 400),
    ],
    ids=[
        "slow headers",
        "slow body",
        "long header",
        "long path",
        "many headers",
        "trailers",
        "chunk extension",
        "TLS",
        "upgrade",
        "no path",
    ],
)
def test_a_client_that_keeps_no_bound_hears_why(sent: bytes, status: int) -> None:
    async def test(listener: Listener, bound: socket.socket, app: App) -> None:
        answer = await said(bound, sent)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in head
        assert set(json.loads(body)["error"]) >= {"code", "message"}

    with_listener(test, header_seconds=0.1)


def test_a_client_that_says_nothing_does_not_keep_its_connection() -> None:
    async def test(listener: Listener, bound: socket.socket, app: App) -> None:
        assert await said(bound) == b""
        assert await said(bound, b"\r\n") == b""
        assert (await said(bound, b"GET /now HTTP/1.1\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 ")

    with_listener(test, header_seconds=0.1)


def test_a_client_that_does_not_take_its_answer_is_let_go() -> None:
    async def test(listener: Listener, bound: socket.socket, app: App) -> None:
        with socket.create_connection(bound.getsockname()) as client:
            client.sendall(GET.replace(b"/now", b"/much"))
            while not listener.server_state.connections:
                await asyncio.sleep(0.01)
            while listener.server_state.connections:
                await asyncio.sleep(0.01)

    with_listener(test, header_seconds=0.1)


def test_whoever_is_in_the_queue_when_listening_ends_is_answered() -> None:
    async def test(listener: Listener, bound: socket.socket, app: App) -> None:
        address = bound.getsockname()
        # nothing is awaited in between, so the system has these connections and the listener does not know of them
        clients = [socket.create_connection(address) for _ in range(20)]
        for client in clients:
            client.sendall(GET)
        await listener.stop_listening([bound])
        for client in clients:
            assert (await asyncio.to_thread(client.recv, 1000)).startswith(b"HTTP/1.1 200 ")
            client.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    with_listener(test)


def test_at_the_end_new_connections_are_turned_away_and_those_that_are_there_are_answered() -> None:
    async def test(listener: Listener, bound: socket.socket, app: App) -> None:
        with socket.create_connection(bound.getsockname()) as before:
            if not turn_away(bound):
                pytest.skip("this system cannot do it")
            with pytest.raises(TimeoutError):
                socket.create_connection(bound.getsockname(), timeout=0.05)
            before.sendall(GET)
            assert (await asyncio.to_thread(before.recv, 1000)).startswith(b"HTTP/1.1 200 ")

    with_listener(test)


def test_what_is_asked_or_on_its_way_is_answered_and_idle_connections_are_closed() -> None:
    async def test(listener: Listener, bound: socket.socket, app: App) -> None:
        idle, asking, pipelining, slow = [await asyncio.open_connection(*bound.getsockname()) for _ in range(4)]
        asking[1].write(LATER)
        pipelining[1].write(LATER + GET)
        slow[1].write(GET[:10])
        while app.waiting < 2:
            await asyncio.sleep(0)
        leaving = asyncio.create_task(listener.shutdown([bound]))
        assert await asyncio.wait_for(idle[0].read(), 5) == b""
        slow[1].write(GET[10:])
        assert (await asyncio.wait_for(slow[0].read(), 5)).startswith(b"HTTP/1.1 200 ")
        assert not leaving.done()
        app.may_answer.set()
        assert (await asyncio.wait_for(asking[0].read(), 5)).count(b"HTTP/1.1 200 ") == 1
        assert (await asyncio.wait_for(pipelining[0].read(), 5)).count(b"HTTP/1.1 200 ") == 2
        await leaving
        assert listener.is_lossless
        for _, writer in (idle, asking, pipelining, slow):
            writer.close()

    with_listener(test)


def test_what_is_not_answered_when_draining_ends_is_told() -> None:
    async def test(listener: Listener, bound: socket.socket, app: App) -> None:
        asking = asyncio.create_task(said(bound, LATER))
        while not app.waiting:
            await asyncio.sleep(0)
        await listener.shutdown([bound])
        assert not listener.is_lossless
        assert await asking == b""
        app.may_answer.set()

    with_listener(test, drain_seconds=0.05)


def test_from_the_first_word_of_the_end_on_connections_end_with_their_answers() -> None:
    async def test(listener: Listener, bound: socket.socket, app: App) -> None:
        before = await asyncio.open_connection(*bound.getsockname())
        before[1].write(GET)
        assert b"connection: close" not in await before[0].readuntil(b"ok")
        listener.leave()
        before[1].write(GET)
        assert b"connection: close" in await asyncio.wait_for(before[0].read(), 5)
        assert b"connection: close" in await said(bound, GET)
        before[1].close()

    with_listener(test)


class Sound:
    """A fleet as far as a worker needs one, which is sound until it is told otherwise."""

    def __init__(self) -> None:
        self.is_ready = True
        self.is_closed = False

    async def load(self, sources: object) -> None:
        if sources:
            raise ModelError("no bundle")

    async def drain(self, seconds: float) -> bool:
        return True

    async def close(self) -> None:
        self.is_closed = True

    def status(self) -> dict[str, object]:
        return {}


@asynccontextmanager
async def working(folder: Path, **changes: Any) -> AsyncIterator[tuple[asyncio.Task[int], asyncio.Event, Sound, socket.socket]]:
    """A worker over a sound fleet, which listens."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    settings = Settings(**({"sources": (), "limits": Limits(), "admin": folder / "admin.sock"} | changes))
    fleet, asked, is_there = Sound(), asyncio.Event(), asyncio.Event()
    worker = asyncio.create_task(serve(App(), fleet, settings, [bound], listen_privately(settings.admin), asked, is_there.set))
    there = asyncio.create_task(is_there.wait())
    await asyncio.wait({worker, there}, return_when=asyncio.FIRST_COMPLETED)
    yield worker, asked, fleet, bound
    there.cancel()
    worker.cancel()
    with suppress(asyncio.CancelledError, ModelError):
        await worker


def test_in_its_grace_a_server_says_that_it_is_not_ready_and_answers_all_else(tmp_path: Path) -> None:
    async def test() -> None:
        async with working(tmp_path, grace=1000.0) as (_, asked, _, bound):
            ready = GET.replace(b"/now", b"/ready")
            last = b"\r\nConnection: close\r\n\r\n"
            assert (await said(bound, ready[:-4] + last)).startswith(b"HTTP/1.1 200 ")
            asked.set()
            while not (answer := await said(bound, ready[:-4] + last)).startswith(b"HTTP/1.1 503 "):
                pass
            assert b"not_ready" in answer
            assert (await said(bound, GET)).startswith(b"HTTP/1.1 200 ")

    uvloop.run(test())


def test_a_worker_whose_models_are_given_up_ends_with_an_error(tmp_path: Path) -> None:
    async def test() -> None:
        async with working(tmp_path) as (worker, _, fleet, _):
            fleet.is_ready = False
            assert await worker == 1
            assert fleet.is_closed

    uvloop.run(test())


def test_until_it_has_loaded_a_worker_does_not_listen(tmp_path: Path) -> None:
    async def test() -> None:
        async with working(tmp_path, sources=("bad",)) as (worker, _, _, bound):
            with pytest.raises(ModelError):
                await worker
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(bound.getsockname())

    uvloop.run(test())
