"""The admin interface: a small app, for a Unix socket of its own, over one process's fleet or over all workers alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field

from mtcore.errors import MtcoreError
from mtcore.types import Frozen
from mtcore_serve.fleet import Source


class Managed(Protocol):
    """What can be administered: the fleet of one process, or all workers alike. `Fleet` says what each does."""

    async def prepare(self, source: Source, *, may_drop_tasks: bool = False) -> str: ...

    async def switch(self, group: str) -> str: ...

    async def discard(self, group: str) -> None: ...

    async def share(self, group: str, *, canary: float = 0.0, shadow: float = 0.0) -> None: ...

    async def status(self) -> Mapping[str, Any]: ...


class Named(Frozen):
    """A group that is online."""

    group: str


class Successor(Named):
    """A bundle that is to follow the one online."""

    folder: str
    qualified: dict[str, bool] = {}
    may_drop_tasks: bool = False
    """Whether it may lack tasks that are answered now."""


class Share(Named):
    """What part of the requests a prepared successor sees."""

    canary: float = Field(default=0.0, ge=0, le=1)
    shadow: float = Field(default=0.0, ge=0, le=1)


def create_admin(managed: Managed) -> FastAPI:
    """Routes that prepare, switch and discard bundles, set shares, and tell the status. A refusal is 409 with its text as `error`."""
    admin = FastAPI(title="mtcore serve, admin", docs_url=None, redoc_url=None, openapi_url=None)

    @admin.post("/prepare")
    async def prepare(body: Successor) -> Mapping[str, Any]:
        source = Source(body.group, Path(body.folder), body.qualified)
        version = await managed.prepare(source, may_drop_tasks=body.may_drop_tasks)
        return {"group": body.group, "version": version}

    @admin.post("/switch")
    async def switch(body: Named) -> Mapping[str, Any]:
        return {"group": body.group, "version": await managed.switch(body.group)}

    @admin.post("/discard")
    async def discard(body: Named) -> Mapping[str, Any]:
        await managed.discard(body.group)
        return {"group": body.group}

    @admin.post("/share")
    async def share(body: Share) -> Mapping[str, Any]:
        await managed.share(body.group, canary=body.canary, shadow=body.shadow)
        return {"group": body.group, "canary": body.canary, "shadow": body.shadow}

    @admin.get("/status")
    async def status() -> Mapping[str, Any]:
        return await managed.status()

    @admin.exception_handler(MtcoreError)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 409)

    @admin.exception_handler(RequestValidationError)
    async def misunderstood(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"{request.url.path} cannot be asked so: {error}"}, 422)

    return admin
