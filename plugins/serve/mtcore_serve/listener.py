"""A listening socket and its connections, which can be left without losing a request that had reached it."""

import asyncio
import ctypes
import logging
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from mtcore_serve.connection import Connection, Shared

log = logging.getLogger("mtcore_serve")
BACKLOG = 2048
KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers keep theirs (60), so that it is they who close."""
UNDER_WAY = 0.5
"""Seconds at the end in which what is under way still arrives: connections that are being made, requests on connections that were idle."""
TICK = 0.02


class Listener(uvicorn.Server):
    """uvicorn's server with connections of our own, no signals, and an orderly end: `leave` whenever that is seen coming, `should_exit` to go."""

    def __init__(self, app: ASGIApp, *, header_seconds: float, drain_seconds: float, owns_sockets: bool = False) -> None:
        """`owns_sockets`: no other process listens on them, so that whoever wants a new connection may be turned away before they are closed."""
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
        self._owns_sockets = owns_sockets

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
        for listening in sockets or () if self._owns_sockets else ():
            turn_away(listening)
        await asyncio.sleep(min(UNDER_WAY, self._drain_seconds))
        await self.stop_listening(sockets or [])
        while self.server_state.connections and loop.time() < begun + self._drain_seconds:
            for connection in self._connections():
                connection.leave(is_late=loop.time() > begun + UNDER_WAY)
            await asyncio.sleep(TICK)
        for connection in self._connections():
            self.is_lossless &= not connection.is_busy
            connection.transport.abort()

    async def stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        """Close the sockets with nobody left in their queues: when the last copy is closed, the system resets those whom nobody has accepted."""
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


SO_ATTACH_FILTER = 26
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""A filter of packets as Linux takes them: load the flags of TCP; where SYN is set take nothing, else all."""


def turn_away(listening: socket.socket) -> bool:
    """Have the system ignore whoever wants a new connection, while those that are being made are finished; whether it can.

    A client asks again after a second, and is refused then, for nobody listens any more. Without this a connection could be made in the very
    moment between the last look into the queue and the end of the socket, and be reset.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_SYN))
    try:
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(DROP_SYN), ctypes.addressof(code)))
    except OSError as error:
        log.info("new connections cannot be turned away on this system: %s", error)
        return False
    return True
