"""What a request must have before any route sees it: a key, and a body that is small enough and arrives in time."""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtcore_serve.errors import Overloaded, Refused, TooLarge, Unauthorised
from mtcore_serve.limits import Limits
from mtcore_serve.refusals import Gone, Misdirected, TooSlow, refusal

OPEN = {("GET", "/health"), ("GET", "/ready"), ("GET", "/"), ("POST", "/")}
"""Without a key here. The page asks for it in its form, and answers nothing without."""


class Keys:
    """The keys that are admitted, as digests of one length, so that comparing takes the same time whatever is compared."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._digests)

    def admit(self, key: bytes) -> bool:
        """Whether this is one of them, or none is asked for."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them: no early end
        return not matches or any(matches)


class Room:
    """The memory that bodies may take together, each until its request is answered."""

    def __init__(self, size: int) -> None:
        self._free = size

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Gives what takes room for so many bytes more, or raises Overloaded; all is free again at the end."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._free:
                raise Overloaded("the bodies of other requests fill the memory that there is for them; ask again later", 1.0)
            self._free -= size
            taken += size

        try:
            yield take
        finally:
            self._free += taken


class Guard:
    """ASGI middleware. A body is read whole before the app is called, and no byte further than the bound."""

    def __init__(self, app: ASGIApp, limits: Limits, keys: Keys) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        size = max(limits.bodies_bytes, limits.body_bytes)
        self._rooms = {is_known: Room(size) for is_known in (True, False)}  # apart: who has no key cannot crowd out who has one

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            if not self._keys and _is_led_here(scope, headers):
                raise Misdirected(
                    "a server without keys is asked as localhost or by its address, not by another name; --key-file gives it keys"
                )
            is_known = self._keys.admit(_bearer(headers))
            if not is_known and (scope["method"], scope["path"]) not in OPEN:
                raise Unauthorised("send a key of this server as Authorization: Bearer KEY")
            with self._rooms[is_known].body() as take:
                if scope["method"] == "POST":
                    receive = _replay(await self._body(headers, receive, take), receive)
                await self._app(scope, receive, send)
        except Refused as error:
            await refusal(error)(scope, receive, send)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, take: Callable[[int], None]) -> bytes:
        most = self._limits.body_bytes
        too_large = TooLarge(f"a body has at most {most} bytes")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > most):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.header_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone("the client left before its body was there")
                    piece = message.get("body", b"")
                    if len(body) + len(piece) > most:
                        raise too_large
                    take(len(piece))
                    body += piece
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {self._limits.header_seconds:g} s") from None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _bearer(headers: dict[bytes, bytes]) -> bytes:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _is_led_here(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether a browser came to loopback by a public name: a site can point its own name here, and its pages may then read what is answered."""
    name = headers.get(b"host", b"").lower().partition(b":")[0].rstrip(b".")  # of an IPv6 address a bracket is left
    is_public = b"." in name and not name.endswith(b".localhost") and not name.replace(b".", b"").isdigit()
    server = (scope.get("server") or ("", None))[0]
    return is_public and (server.startswith("127.") or server in ("::1", "localhost"))


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and after it whatever comes: that the client leaves."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message
