"""Several workers on one socket, with one admin socket, and one signal that ends them all."""

import asyncio
import socket
from collections.abc import Callable, Sequence

import uvloop

from mtcore_serve.admin import create_admin
from mtcore_serve.control import listen_privately
from mtcore_serve.crew import Crew
from mtcore_serve.listener import Listener
from mtcore_serve.server import Settings, on_signals, set_logging


def supervise(settings: Settings, workers: int, listening: Sequence[socket.socket], announce: Callable[[], None] = lambda: None) -> int:
    """Serve with several workers until SIGTERM or Ctrl-C; returns the exit code as `work` does. `announce` is called when all of them serve.

    Raises ModelError where the bundles cannot be served, RunError where workers die as soon as they are started.
    """
    set_logging(settings.log_level)
    return uvloop.run(_supervise(settings, workers, listening, announce))


async def _supervise(settings: Settings, workers: int, listening: Sequence[socket.socket], announce: Callable[[], None]) -> int:
    asked = asyncio.Event()
    on_signals(asked)
    crew = Crew(settings, workers, listening)
    admin_socket = listen_privately(settings.admin)
    admin = Listener(create_admin(crew), header_seconds=settings.limits.header_seconds, drain_seconds=0)
    administering = asyncio.create_task(admin.serve([admin_socket]))
    announcing = asyncio.create_task(crew.is_complete.wait())
    announcing.add_done_callback(lambda done: None if done.cancelled() else announce())
    keeping = [asyncio.create_task(crew.keep(place)) for place in range(workers)]
    ending = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({ending, *keeping}, return_when=asyncio.FIRST_COMPLETED)
        is_lossless = await crew.end()
        for keeper in keeping:
            if keeper.done():
                keeper.result()  # raises what ended it
        return 0 if is_lossless else 1
    finally:
        for task in (announcing, ending, *keeping):
            task.cancel()
        admin.should_exit = True
        await administering
        settings.admin.unlink(missing_ok=True)
