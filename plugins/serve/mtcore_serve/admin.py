"""The admin interface of one worker: a small app on a Unix socket of its own, which only the server's user can open."""

from fastapi import FastAPI

from mtcore_serve.fleet import Fleet


def create_admin(fleet: Fleet) -> FastAPI:
    """Routes that prepare, switch and discard bundles, set shares, and tell the status."""
    raise NotImplementedError
