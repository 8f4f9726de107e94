"""The OpenAPI document: bodies that routes read themselves, every refusal, and the key."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mtcore_serve.schemas import ErrorBody

REFERENCE = "#/components/schemas/{model}"
REASONS = {
    401: "No key, or a wrong one.",
    404: "No such task is online.",
    408: "The body did not arrive in time.",
    413: "More bytes, documents, characters or tokens than are taken at once.",
    415: "The body is not JSON in UTF-8.",
    421: "Asked by a name that is neither localhost nor an address.",
    422: "The body cannot be understood, or the model cannot answer it.",
    429: "The queue is full, or the answer would come too late; Retry-After says when to come again.",
    503: "Not ready, or too late; Retry-After says when to come again.",
}
ASKING = (404, 408, 413, 415, 422, 429, 503)
"""What a route can refuse that asks the fleet something."""
WITHOUT_KEY = ("/health", "/ready")


def body(model: type[BaseModel]) -> dict[str, Any]:
    """For `openapi_extra`: that a route reads this model from its body."""
    reference = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses`: what a route can refuse."""
    return {status: {"model": ErrorBody, "description": REASONS[status]} for status in statuses}


def describe_app(app: FastAPI, bodies: Sequence[type[BaseModel]], has_keys: bool) -> None:
    """Have the app serve a document that knows the bodies which its routes read themselves."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, bodies, has_keys)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, bodies: Sequence[type[BaseModel]], has_keys: bool) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema([(model, "validation") for model in bodies], ref_template=REFERENCE)
    document["components"]["schemas"] |= definitions["$defs"]
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    status = 401 if has_keys else 421
    schema = {"$ref": REFERENCE.format(model="ErrorBody")}
    guarded = {str(status): {"description": REASONS[status], "content": {"application/json": {"schema": schema}}}}
    for path, operations in document["paths"].items():
        for operation in operations.values() if not has_keys or path not in WITHOUT_KEY else ():
            operation["responses"] |= guarded
            if has_keys:
                operation["security"] = [{"key": []}]
    return document
