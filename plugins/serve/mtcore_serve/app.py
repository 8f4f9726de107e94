"""The HTTP interface: routes over a fleet."""

from collections.abc import Sequence

from fastapi import FastAPI

from mtcore_serve.fleet import Fleet
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics


def create_app(fleet: Fleet, limits: Limits, metrics: Metrics, keys: Sequence[str] = ()) -> FastAPI:
    """The public app. With keys every route but /health and /ready demands one of them (`Authorization: Bearer KEY`)."""
    raise NotImplementedError
