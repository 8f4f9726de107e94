"""Hand a request's documents to the fleet for as long as its client is there, and note what it took."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from mtcore_serve.access import record_of
from mtcore_serve.asking import Asked
from mtcore_serve.fleet import Answered, Fleet
from mtcore_serve.refusals import Gone

Result = TypeVar("Result")


async def answers(request: Request, fleet: Fleet, asked: Sequence[Asked], timeout: float | None = None) -> list[Answered]:
    """What the fleet answers; the body of the request must have been read. Raises what `Fleet.answer` raises, and Gone."""
    record = record_of(request.scope)
    record.documents, record.tasks = len(asked), sum(len(one.ask.tasks) for one in asked)
    answered = await _while_connected(request, fleet.answer([one.ask for one in asked], timeout))
    record.tokens = sum(one.tokens for one in answered)
    return answered


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """After a body, the only thing that a client can say is that it left: the work is then given up, and its place freed."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone("the client left before its answer")
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
