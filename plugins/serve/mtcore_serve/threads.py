"""Daemon threads that compute for the event loop, and can be given up."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a job came to: a value, or what it raised."""

    value: Any
    error: BaseException | None
    seconds: float


class Hung(Exception):
    """A job did not return in time; its thread is given up, and whatever it may still return is dropped."""


class Thread:
    """One thread that does jobs in turn. As a daemon it never keeps the process from ending, whatever it is stuck in."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Outcome]] | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True).start()

    async def run(self, job: Callable[[], Any], seconds: float | None = None) -> Outcome:
        """Do a job here. Raises Hung where it takes longer than `seconds`: the thread is then not to be used again."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._jobs.put((job, future))
        done, _ = await asyncio.wait([future], timeout=seconds)
        if not done:
            future.cancel()
            self.end()
            raise Hung(f"no answer in {seconds:g} s")
        return future.result()

    def end(self) -> None:
        """Let the thread end once it is done."""
        self._jobs.put(None)


def where(error: BaseException) -> str:
    """An error without its message, which may hold what a client sent: its type, and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error).__name__ + (f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "")


def _work(jobs: "SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Outcome]] | None]") -> None:
    while (given := jobs.get()) is not None:
        job, future = given
        outcome = _do(job)
        try:
            future.get_loop().call_soon_threadsafe(_settle, future, outcome)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return
        # while it waits for the next job, the thread must not keep a model or an answer alive
        del given, job, future, outcome


def _do(job: Callable[[], Any]) -> Outcome:
    started = time.monotonic()
    try:
        return Outcome(job(), None, time.monotonic() - started)
    except BaseException as error:
        return Outcome(None, error, time.monotonic() - started)


def _settle(future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
