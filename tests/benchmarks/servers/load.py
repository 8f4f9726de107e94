"""An open-loop load generator: arrivals are sent at their time whether or not earlier ones were answered, over kept connections."""

import asyncio
import math
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

NEVER = math.inf
"""The latency of what was refused, failed or not answered."""


@dataclass(frozen=True)
class Call:
    """One HTTP request, ready to be sent."""

    port: int
    message: bytes


@dataclass(frozen=True)
class Arrival:
    """Something that is asked at one moment, in seconds from the start of its run: answered once all its calls are."""

    at: float
    calls: tuple[Call, ...]
    answers: int
    """Answers of tasks that it asks for."""


@dataclass
class Measured:
    """What became of the arrivals of a run."""

    latencies: list[float] = field(default_factory=list)
    """Of each arrival, from when it was due; NEVER where a call of it was not answered with status 200."""
    statuses: Counter[int] = field(default_factory=Counter)
    answers: int = 0
    """Answers of tasks that came."""
    generator_cpu: float = 0.0
    """Processor seconds that the generator took."""
    latest_send: float = 0.0
    """By how much an arrival was sent too late, at most."""
    is_given_up: bool = False
    """Arrivals waited for so long that the run was cut short."""

    def percentile(self, share: float) -> float:
        """The latency that this share of the arrivals did not exceed; the next greater one where it lies between two."""
        return float(np.percentile(self.latencies, 100 * share, method="higher")) if self.latencies else NEVER


def message(path: str, body: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


class _Connection(asyncio.Protocol):
    """A kept connection with one call at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._end = 0
        self._start = 0
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by its class

    def ask(self, data: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        assert self.transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._buffer.clear()
        self._end = 0
        self.transport.write(data)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._end:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            lines = bytes(self._buffer[:head]).lower().split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
            if length is None:
                self._fail(ConnectionError("an answer without a length"))
                return
            self._start, self._end = head + 4, head + 4 + length
        if len(self._buffer) >= self._end and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            if not waiting.done():
                waiting.set_result((int(self._buffer[9:12]), bytes(self._buffer[self._start : self._end])))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._fail(exc or ConnectionError("closed"))

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


class Client:
    """Connections to servers of this machine: as many as there are calls under way, used again and again."""

    def __init__(self) -> None:
        self._free: dict[int, list[_Connection]] = {}

    async def ask(self, call: Call) -> tuple[int, bytes]:
        """Status and body; raises OSError where the connection breaks."""
        free = self._free.setdefault(call.port, [])
        while free and free[-1].transport is None:
            free.pop()
        connection = free.pop() if free else (await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", call.port))[1]
        answer = await connection.ask(call.message)
        free.append(connection)
        return answer

    async def open_loop(self, arrivals: Sequence[Arrival], lead: float, give_up: float) -> Measured:
        """Send arrivals at their time. Those of the first `lead` seconds warm up and are not counted; a run whose oldest unanswered arrival
        has waited `give_up` seconds sends nothing more, and what it did not send counts as never answered."""
        measured = Measured()
        loop = asyncio.get_running_loop()
        begun, cpu = loop.time() + 0.05, _cpu()
        waiting: dict[asyncio.Task[None], float] = {}

        async def answered(arrival: Arrival, due: float) -> None:
            statuses = await asyncio.gather(*(self._status(call) for call in arrival.calls))
            if arrival.at >= lead:
                is_answered = all(status == 200 for status in statuses)
                measured.statuses.update(statuses)
                measured.latencies.append(loop.time() - due if is_answered else NEVER)
                measured.answers += arrival.answers * is_answered

        for number, arrival in enumerate(arrivals):
            due = begun + arrival.at
            if (pause := due - loop.time()) > 0:
                await asyncio.sleep(pause)
            measured.latest_send = max(measured.latest_send, loop.time() - due)
            task = loop.create_task(answered(arrival, due))
            waiting[task] = due
            task.add_done_callback(lambda done: waiting.pop(done))
            oldest = next(iter(waiting.values()), due)
            if loop.time() - oldest > give_up:
                measured.is_given_up = True
                measured.latencies += [NEVER] * (len(arrivals) - number - 1)
                break
        measured.generator_cpu = _cpu() - cpu
        while waiting:
            await asyncio.wait(list(waiting))
        return measured

    async def closed_loop(self, calls: Sequence[tuple[Call, ...]], concurrency: int, seconds: float) -> list[float]:
        """So many arrivals under way at any time, the last of them begun after so many seconds; the latencies of those that were answered."""
        end = time.monotonic() + seconds
        latencies: list[float] = []
        pending = iter(calls * 1000)

        async def consumer() -> None:
            for own in pending:
                begun = time.monotonic()
                if begun >= end:
                    return
                statuses = await asyncio.gather(*(self._status(call) for call in own))
                if all(status == 200 for status in statuses):
                    latencies.append(time.monotonic() - begun)

        await asyncio.gather(*(consumer() for _ in range(concurrency)))
        return latencies

    async def _status(self, call: Call) -> int:
        try:
            return (await self.ask(call))[0]
        except OSError:
            return 0

    def close(self) -> None:
        for connection in (c for free in self._free.values() for c in free):
            if connection.transport is not None:
                connection.transport.close()
        self._free.clear()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
