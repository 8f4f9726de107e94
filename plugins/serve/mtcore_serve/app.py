"""The HTTP interface: routes over a fleet."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mtcore_serve import __doc__ as title
from mtcore_serve.access import Access
from mtcore_serve.asking import Asked, asked_of
from mtcore_serve.calling import answers
from mtcore_serve.description import ASKING, body, describe_app, refused
from mtcore_serve.errors import BadRequest, NotReady, Refused
from mtcore_serve.fleet import Answered, Fleet, Online
from mtcore_serve.guard import Guard, Keys
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics
from mtcore_serve.openai import ChatRequest, openai_routes
from mtcore_serve.page import page_routes
from mtcore_serve.refusals import on_http_error, on_invalid, on_refused
from mtcore_serve.schemas import (
    PredictRequest,
    PredictResponse,
    Status,
    TaskList,
    TaskRequest,
    TaskResponse,
    as_answer,
    as_problem,
    describe,
    read,
)


def create_app(fleet: Fleet, limits: Limits, metrics: Metrics, keys: Sequence[str] = ()) -> FastAPI:
    """The public app. With keys every route but /health and /ready demands one of them (`Authorization: Bearer KEY`)."""
    admitted = Keys(keys)
    # documentation pages of FastAPI load scripts from elsewhere, and a redirect would repeat what the client wrote
    app = FastAPI(
        title="mtcore",
        description=title,
        version=version("mtcore-serve"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(_predictions(fleet, limits))
    app.include_router(openai_routes(fleet, limits))
    app.include_router(_states(fleet, metrics))
    app.include_router(page_routes(fleet, limits, admitted), include_in_schema=False)
    app.add_exception_handler(Refused, on_refused)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_middleware(Guard, limits=limits, keys=admitted)
    app.add_middleware(Access, metrics=metrics)
    describe_app(app, [PredictRequest, TaskRequest, ChatRequest], has_keys=bool(admitted))
    return app


def _predictions(fleet: Fleet, limits: Limits) -> APIRouter:
    router = APIRouter(tags=["predictions"])

    @router.post("/v1/predict", response_model=PredictResponse, openapi_extra=body(PredictRequest), responses=refused(*ASKING))
    async def predict(request: Request) -> Response:
        """Answer documents: each is read once for all tasks that are asked of it."""
        asked = await read(request, PredictRequest)
        online = fleet.tasks
        documents = asked_of(asked.documents, None if asked.tasks == "all" else asked.tasks, online, limits)
        answered = await answers(request, fleet, documents, asked.timeout)
        results = [_result(one, got, online, asked.top) for one, got in zip(documents, answered, strict=True)]
        return _json({"results": results, "usage": {"tokens": sum(got.tokens for got in answered)}})

    @router.post("/v1/tasks/{task:path}:predict", response_model=TaskResponse, openapi_extra=body(TaskRequest), responses=refused(*ASKING))
    async def predict_task(request: Request, task: Annotated[str, Path(min_length=1, max_length=256)]) -> Response:
        """Answer one document for one task."""
        asked = await read(request, TaskRequest)
        document = asked.text if asked.fields is None else asked.fields
        if document is None or None not in (asked.text, asked.fields):
            raise BadRequest("give either fields or text")
        online = fleet.tasks
        (answered,) = await answers(request, fleet, asked_of([document], [task], online, limits, "the document"), asked.timeout)
        answer = answered.answers[task]
        if isinstance(answer, Refused):
            raise answer
        usage = {"usage": {"tokens": answered.tokens}}
        return _json(as_answer(online[task].spec, answer, answered.versions[task], asked.top) | usage)

    @router.get("/v1/tasks", response_model=TaskList)
    async def tasks() -> Response:
        """Every task that is online, what it takes and what it answers."""
        return _json({"tasks": [describe(name, online) for name, online in fleet.tasks.items()]})

    return router


def _states(fleet: Fleet, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["state"])

    @router.get("/health", response_model=Status)
    async def health() -> Response:
        """That the process lives."""
        return _json({"status": "alive"})

    @router.get("/ready", response_model=Status, responses=refused(503))
    async def ready() -> Response:
        """That requests are taken: to be asked by whatever sends them."""
        if not fleet.is_ready:
            raise NotReady("this worker takes no requests: it loads, drains, or has given up a model")
        return _json({"status": "ready"})

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics_text() -> Response:
        """What is counted and timed, in Prometheus's text format."""
        text, kind = metrics.render()
        return Response(text, headers={"Content-Type": kind})

    return router


def _result(asked: Asked, answered: Answered, online: Mapping[str, Online], top: int | None) -> dict[str, Any]:
    found = {
        task: as_problem(answer) if isinstance(answer, Refused) else as_answer(online[task].spec, answer, answered.versions[task], top)
        for task in asked.ask.tasks
        for answer in [answered.answers[task]]
    }
    return {"answers": found, "skipped": asked.skipped}


def _json(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")
