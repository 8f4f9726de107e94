"""One worker process: loads the bundles, answers on a listening socket, drains when it is asked to end."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtcore_serve.fleet import Source
from mtcore_serve.limits import Limits


@dataclass(frozen=True)
class Settings:
    """What a worker must know."""

    sources: tuple[Source, ...]
    limits: Limits
    admin: Path
    """The admin socket's path."""
    keys: tuple[str, ...] = ()
    threads: int = 1
    """Threads that a model computes in."""
    metrics_folder: str | None = None


def work(settings: Settings, listening: Sequence[socket.socket]) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code."""
    raise NotImplementedError
