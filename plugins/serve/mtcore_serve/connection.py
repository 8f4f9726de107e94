"""One HTTP connection: uvicorn's, with bounds on what headers may weigh and on how long a request may take to arrive; it can be asked to leave."""

import asyncio
from typing import Literal, NoReturn

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from mtcore_serve.refusals import error_response

HEADER_BYTES = 32 * 1024
"""Of a request's line and headers together; the parser itself knows no bound."""
LINGER = 1.0
"""Seconds that a refused client has to read why: closing while it is still sending would be a reset, which may take the answer from it."""
CODES = {400: "bad_request", 408: "too_slow", 431: "too_large"}


class Shared(ServerState):
    """What all connections of a listener know."""

    def __init__(self, header_seconds: float) -> None:
        super().__init__()
        self.header_seconds = header_seconds
        self.is_leaving = False
        """Answers say that their connection closes, so that clients go elsewhere with what they ask next."""


class Connection(HttpToolsProtocol):
    """A client has `header_seconds` from a request's first byte to the end of its headers, twice as long from there to the end of a body that the
    app leaves unread, and three times as long to take its answer."""

    server_state: Shared
    _stage: Literal["idle", "headers", "body"] = "idle"
    """What of a request is arriving."""
    _timer: asyncio.TimerHandle | None = None
    """For what arrives."""
    _unread: asyncio.TimerHandle | None = None
    """For what leaves."""
    _is_parting = False
    """It is refused; what still comes is not looked at."""
    _header_bytes = 0
    _unparsed = 0
    """Bytes since the parser last made something of them: an endless header, trailer or chunk extension."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        self._heard()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(3 * self.server_state.header_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._heard()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._is_parting:
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > HEADER_BYTES and self._stage != "idle":
            self.refuse(431, f"more than {HEADER_BYTES} bytes of headers")
        if self._stage == "idle" and not self.is_busy and self._timer is None and self.timeout_keep_alive_task is None:
            self._wait()  # bytes that begin no request have ended uvicorn's own waiting

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stage, self._header_bytes = "headers", 0
        self._wait()

    def on_url(self, url: bytes) -> None:
        self._weigh(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._weigh(len(name) + len(value))
        if self._stage == "headers":  # a trailer is none of the request's headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stage, self._unparsed = "body", 0
        self._wait(2)
        if self.parser.should_upgrade() and {name for name, _ in self.headers} & {b"content-length", b"transfer-encoding"}:
            self._end(400, "only HTTP/1.1 is spoken here, and the client asks to change over to another protocol: have it not ask")
        super().on_headers_complete()
        if self.server_state.is_leaving:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stage, self._unparsed = "idle", 0
        self._rest()
        super().on_message_complete()

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def leave(self, *, is_late: bool) -> None:
        """Close as soon as what is asked, or about to be, is answered; where nothing is, once it is late."""
        if self.is_busy:
            self.cycle.keep_alive = False
        elif is_late and self._stage != "headers":
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, "this is no HTTP request that can be understood")

    def refuse(self, status: int, message: str) -> None:
        """Answer in the app's place, listen no more, and close."""
        if self._is_parting or self.transport.is_closing():
            return
        body = bytes(error_response(status, CODES[status], message).body)
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self._is_parting = True
        self._rest()
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER, self.transport.abort)

    def _weigh(self, taken: int) -> None:
        self._unparsed = 0
        self._header_bytes += taken
        if self._header_bytes > HEADER_BYTES:
            self._end(431, f"more than {HEADER_BYTES} bytes of headers")

    def _end(self, status: int, message: str) -> NoReturn:
        """Refuse, and stop the parser that is calling."""
        self.refuse(status, message)
        raise ValueError(message)

    def _wait(self, times: int = 1) -> None:
        self._rest()
        self._timer = self.loop.call_later(times * self.server_state.header_seconds, self._give_up)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _heard(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _give_up(self) -> None:
        """Too much time has passed: nothing was asked, or something arrives too slowly."""
        self._timer = None
        if self._stage == "headers" and self.is_busy:  # behind a request that is being answered
            self.cycle.keep_alive = False
        elif self._stage == "idle" or (self._stage == "body" and self.cycle.response_started):
            self.transport.close()
        else:
            if self.is_busy:  # for the app, which waits for the body, the client is gone
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.refuse(408, "the request did not arrive in time")
