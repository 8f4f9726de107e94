"""Around every request: an id, one line of log, one count, and an end to exceptions; nothing of what was sent is written down."""

import json
import logging
import secrets
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtcore_serve.metrics import Metrics
from mtcore_serve.refusals import error_response

log = logging.getLogger("mtcore_serve.access")
failures = logging.getLogger("mtcore_serve.failures")

KEY = "mtcore_serve.record"


@dataclass
class Record:
    """What is known of a request beside its route and status."""

    id: str
    documents: int = 0
    tasks: int = 0
    """Answers asked for, of all documents together."""
    tokens: int = 0


def record_of(scope: Scope) -> Record:
    """The record of the request at hand."""
    record: Record = scope[KEY]
    return record


class Access:
    """ASGI middleware, outside of all others."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[KEY] = Record(secrets.token_hex(8))
        begun = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = record.id
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            # an exception's text may quote a request, its place in the code cannot
            place = "".join(traceback.format_tb(error.__traceback__))
            failures.error(json.dumps({"request_id": record.id, "error": type(error).__name__, "traceback": place}))
            if not status:
                await error_response(500, "internal", "the server failed; its log knows this request by its id")(scope, receive, answer)
        finally:
            self._write(scope, record, status or 499, time.perf_counter() - begun)

    def _write(self, scope: Scope, record: Record, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.request(route, status, seconds)
        if log.isEnabledFor(logging.INFO):
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": record.id,
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 2),
                "documents": record.documents,
                "tasks": record.tasks,
                "tokens": record.tokens,
            }
            log.info(json.dumps(line))
