"""What a refusal looks like on the wire, and the refusals that HTTP itself brings."""

import math
from http import HTTPStatus
from typing import Any, cast

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mtcore_serve.errors import BadRequest, Refused


class WrongMediaType(BadRequest):
    """The body is of another kind than the route takes."""

    code = "unsupported_media_type"
    status = 415


class Misdirected(Refused):
    """The request is for another server, by the name that it was sent to."""

    code = "misdirected"
    status = 421


class TooSlow(Refused):
    """The body did not arrive in time."""

    code = "too_slow"
    status = 408


class Gone(Refused):
    """The client left before its answer: nobody reads this, but the log shows it."""

    code = "client_gone"
    status = 499


TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""How clients of OpenAI's API sort errors; what is not here is an invalid request, or from 500 on the server's."""

HINTS = {
    404: "there is no such route; GET /openapi.json lists those that are",
    405: "this route takes other methods: those that the header Allow names",
}


def headers_of(error: Refused) -> dict[str, str]:
    """The headers that belong to a refusal."""
    headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))} if error.retry_after is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:
        headers["Connection"] = "close"  # after 413 not: closed at once, a client that goes on sending would not see why
    return headers


def refusal(error: Refused) -> Response:
    """The response to a request that is refused."""
    return error_response(error.status, error.code, str(error), headers_of(error))


def error_response(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """One shape on every route; clients of OpenAI's API find in it what they know."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error: dict[str, Any] = {"code": code, "message": message, "type": kind, "param": None}
    return Response(to_json({"error": error}), status, headers, "application/json")


async def on_refused(_: Request, error: Exception) -> Response:
    """For FastAPI: what our routes refuse."""
    return refusal(cast(Refused, error))


async def on_invalid(_: Request, __: Exception) -> Response:
    """For FastAPI: a parameter of a path that is not what the OpenAPI document says; its own answer would repeat it."""
    return refusal(BadRequest("a parameter of the path is not what /openapi.json says"))


async def on_http_error(_: Request, error: Exception) -> Response:
    """For FastAPI: what its router refuses, without the text that it would quote."""
    found = cast(HTTPException, error)
    status = HTTPStatus(found.status_code)
    return error_response(status, status.name.lower(), HINTS.get(status, status.phrase), dict(found.headers or {}))
