"""A listening socket and its connections, which can be left without losing a request that had reached it."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from mtcore_serve.connection import Connection, Shared

BACKLOG = 2048
KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers keep theirs (60), so that it is they who close."""
UNDER_WAY = 0.5
"""Seconds that idle connections are still heard at the end: what their clients sent before they knew is answered."""
TICK = 0.02


class Listener(uvicorn.Server):
    """uvicorn's server with connections of our own, no signals, and an orderly end: `leave` whenever that is seen coming, `should_exit` to go."""

    def __init__(self, app: ASGIApp, *, header_seconds: float, drain_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
        )
        super().__init__(config)
        self.server_state: Shared = Shared(header_seconds)
        self.is_listening = asyncio.Event()
        self.is_lossless = True
        """Whether everything that was asked had its answer in time, once the listener is gone."""
        self._drain_seconds = drain_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are the process's, which has several listeners

    def leave(self) -> None:
        """Go on answering, and tell every client that its connection ends with the answer."""
        self.server_state.is_leaving = True
        for connection in self._connections():
            connection.leave(is_late=False)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening; answer what had reached the socket by then; close."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self.leave()
        await self._stop_listening(sockets or [])
        while self.server_state.connections and loop.time() < begun + self._drain_seconds:
            for connection in self._connections():
                connection.leave(is_late=loop.time() > begun + UNDER_WAY)
            await asyncio.sleep(TICK)
        for connection in self._connections():
            self.is_lossless &= not connection.is_busy
            connection.transport.abort()

    async def _stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        """Close the sockets with nobody left in their queues: the system resets those whom nobody has accepted."""
        queues = [listening.dup() for listening in sockets]
        for server in self.servers:
            server.close()
        for queue in queues:
            queue.setblocking(False)
            with queue:
                await self._accept_all(queue)

    async def _accept_all(self, queue: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = queue.accept()
            except BlockingIOError:
                return
            await loop.connect_accepted_socket(
                lambda: Connection(config=self.config, server_state=self.server_state, app_state={}), accepted
            )

    def _connections(self) -> list[Connection]:
        return [connection for connection in self.server_state.connections if isinstance(connection, Connection)]
