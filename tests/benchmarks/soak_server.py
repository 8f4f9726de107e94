"""Try to make a server lose a request: SIGTERM and swaps under load, ten times its capacity, poison and slow clients.

    python tests/benchmarks/soak_server.py runs/demo/seed-1/classification/bundle

It starts servers of its own, on free ports, and takes about ten minutes. It prints a line a trial and exits with 1 where a promise did not hold.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from mtcore_serve.control import ask

from mtcore.bundle import put_text, read_bundle

CLIENTS = 16
DEADLINE = 2.0
"""Of the server under overload: what it accepts must be answered by then."""
BATCH = 0.5
"""Seconds that a batch which is computed when a deadline passes may still take: it is answered all the same."""
FEW = 0.01
"""Share of the requests accepted that may find their deadline passed in the queue, since estimates err."""
FAST = 0.05
"""Seconds in which a refusal must be there."""
FLAT = 48.0
"""MiB by which memory may differ between the second quarter of a trial and its end."""


class Lost(Exception):
    """A connection was made, a request sent, and no whole answer came."""


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: str
    body: bytes
    begun: float
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def version(self) -> str:
        """Of the one bundle that answered."""
        (version,) = {answer["version"] for result in self.json["results"] for answer in result["answers"].values()}
        return str(version)


class Caller:
    """One keep-alive connection. Small on purpose: a load generator must not be what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        """Raises OSError where nobody listens any more: nothing is lost then."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, request: bytes) -> Answer:
        """Send one request on the open connection, or on a new one."""
        await self.connect()
        reader, writer = self._streams or (None, None)
        assert reader is not None
        assert writer is not None
        begun = time.perf_counter()
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            found = re.search(r"content-length: (\d+)", head)
            body = await reader.readexactly(int(found[1]) if found else 0)
        except (OSError, EOFError) as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from None
        if "connection: close" in head:
            self.close()
        return Answer(int(head.split()[1]), head, body, begun, time.perf_counter() - begun)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def post(path: str, body: object) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        path.encode(),
        len(content),
        content,
    )


def get(path: str) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()


@dataclass
class Server:
    """A server in a process of its own."""

    process: asyncio.subprocess.Process
    port: int
    admin: Path
    fields: Sequence[str] = ()
    """Of all its tasks."""

    def request(self, generator: random.Random, documents: int = 1) -> bytes:
        """All tasks of documents that nobody asked before."""
        made = [
            {name: f"{generator.random()} " + "the room was fine " * generator.randint(1, 8) for name in self.fields}
            for _ in range(documents)
        ]
        return post("/v1/predict", {"documents": made})

    @property
    def memory(self) -> float:
        """MiB."""
        resident = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return resident * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def end(self) -> int:
        self.process.terminate()
        return await self.process.wait()


@asynccontextmanager
async def serving(bundle: Path, *options: str) -> AsyncIterator[Server]:
    """A server with the bundle as group `it`."""
    words = [sys.executable, "-m", "mtcore", "serve", f"it={bundle}", "--port", "0", *options]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    found = None
    while found is None and (line := (await process.stdout.readline()).decode()):
        found = re.match(r"ready: \S+:(\d+) \(admin socket: (.*)\)", line)
    if found is None:
        sys.exit(f"the server ended with {await process.wait()}")
    server = Server(process, int(found[1]), Path(found[2]))
    caller = Caller(server.port)
    tasks = (await caller.ask(get("/v1/tasks"))).json["tasks"]
    caller.close()
    server.fields = sorted({name for task in tasks for name in task["fields"]})
    try:
        yield server
    finally:
        if process.returncode is None:
            await server.end()


@dataclass
class Tally:
    """What clients met."""

    answers: list[Answer] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    turned_away: int = 0
    """Connections that the system refused: nobody had accepted anything."""

    def statuses(self) -> Mapping[int, int]:
        return Counter(answer.status for answer in self.answers)


async def load(server: Server, tally: Tally, stop: asyncio.Event, seed: int, *, keeps: bool = True, documents: int = 1) -> None:
    """One client that asks, waits for its answer, and asks again, until it may not or nobody listens."""
    generator, caller = random.Random(seed), Caller(server.port)
    while not stop.is_set():
        try:
            await caller.connect()
        except OSError:
            tally.turned_away += 1
            return
        try:
            tally.answers.append(await caller.ask(server.request(generator, documents)))
        except Lost as lost:
            tally.lost.append(str(lost))
        if not keeps:
            caller.close()
    caller.close()


async def sigterms(bundle: Path, times: int, *options: str) -> dict[str, Any]:
    """SIGTERM under load: every request that was sent is answered, nothing is reset, the exit code is 0."""
    tally, codes, seconds = Tally(), Counter[int](), []
    generator = random.Random(1)
    for turn in range(times):
        # a slow machine must not be taken for a lost request
        async with serving(bundle, "--set", "deadline=60", *options) as server:
            stop = asyncio.Event()
            # half of the clients make a new connection for every request: those stand in the listening socket's queue
            clients = [asyncio.create_task(load(server, tally, stop, 1000 * turn + n, keeps=n % 2 == 0)) for n in range(CLIENTS)]
            await asyncio.sleep(generator.uniform(0.5, 1.5))
            begun = time.perf_counter()
            codes[await server.end()] += 1
            seconds.append(time.perf_counter() - begun)
            await asyncio.gather(*clients)
    held = not tally.lost and set(tally.statuses()) == {200} and set(codes) == {0}
    return {
        "trial": "SIGTERM under load" + (f", {' '.join(options)}" if options else ""),
        "held": held,
        "sigterms": times,
        "answers": len(tally.answers),
        "statuses": dict(tally.statuses()),
        "lost": len(tally.lost),
        "how": tally.lost[:3],
        "exit codes": dict(codes),
        "median seconds to end": round(statistics.median(seconds), 2),
    }


async def swaps(bundle: Path, times: int, *options: str) -> dict[str, Any]:
    """Swaps under load: each answer from one version; none of the old one to what was asked after the swap; nothing fails."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(shutil.copytree(bundle, Path(folder) / name)) for name in ("even", "odd")]
        for copy in copies:
            put_text(copy, "NAME", copy.name)
        versions = [read_bundle(copy).version for copy in copies]
        async with serving(copies[0], "--set", "deadline=60", *options) as server:
            tally, stop, switched = Tally(), asyncio.Event(), []
            clients = [asyncio.create_task(load(server, tally, stop, n, keeps=n % 2 == 0, documents=3)) for n in range(CLIENTS // 2)]
            for turn in range(1, times + 1):
                await ask(server.admin, "POST", "/prepare", {"group": "it", "folder": str(copies[turn % 2])})
                asked = time.perf_counter()
                version = (await ask(server.admin, "POST", "/switch", {"group": "it"}))["version"]
                switched.append((asked, time.perf_counter(), version))
                await asyncio.sleep(0.1)
            stop.set()
            await asyncio.gather(*clients)
            memory = server.memory
    good = [answer for answer in tally.answers if answer.status == 200]
    stale = 0
    for (_, done, version), (after, _, _) in zip(switched, [*switched[1:], (float("inf"), 0.0, "")], strict=True):
        stale += sum(done < a.begun < a.begun + a.seconds < after and a.version != version for a in good)
    counts = Counter(answer.version for answer in good)
    held = not tally.lost and len(good) == len(tally.answers) and not stale and set(counts) == set(versions)
    return {
        "trial": "swaps under load" + (f", {' '.join(options)}" if options else ""),
        "held": held,
        "swaps": times,
        "answers": len(good),
        "by version": dict(counts),
        "statuses": dict(tally.statuses()),
        "lost": len(tally.lost),
        "from the old version after a swap": stale,
        "memory MiB": round(memory),
    }


async def overload(bundle: Path, seconds: float) -> dict[str, Any]:
    """Ten times as many requests as it can answer, each sent when it is due, whatever becomes of the others."""
    async with serving(bundle, "--set", f"deadline={DEADLINE}") as server:
        capacity = await measured(server)
        tally, memory, states, idle = Tally(), [], [], [Caller(server.port) for _ in range(64)]
        generator = random.Random(2)
        requests = [server.request(generator) for _ in range(4096)]
        pending: set[asyncio.Task[None]] = set()

        async def send(request: bytes) -> None:
            caller = idle.pop() if idle else Caller(server.port)
            try:
                tally.answers.append(await caller.ask(request))
            except (Lost, OSError) as error:
                tally.lost.append(repr(error))
            idle.append(caller)

        async def look() -> None:
            caller = Caller(server.port)
            while True:
                for path in ("/health", "/metrics", "/ready"):
                    states.append(await caller.ask(get(path)))
                memory.append(server.memory)
                await asyncio.sleep(0.25)

        looking = asyncio.create_task(look())
        begun, sent, behind = time.perf_counter(), 0, 0.0
        while (now := time.perf_counter() - begun) < seconds:
            due = int(now * capacity * 10)
            behind = max(behind, (due - sent) / (capacity * 10))
            for _ in range(due - sent):
                task = asyncio.create_task(send(requests[sent % len(requests)]))
                pending.add(task)
                task.add_done_callback(pending.discard)
                sent += 1
            await asyncio.sleep(0.001)
        while pending:
            await asyncio.wait(pending)
        looking.cancel()
        for caller in idle:
            caller.close()
    accepted = [answer.seconds for answer in tally.answers if answer.status == 200]
    refused = [answer for answer in tally.answers if answer.status == 429]
    late = [answer for answer in tally.answers if answer.status == 503]
    is_told = all("retry-after:" in answer.headers for answer in [*refused, *late])
    growth = max(memory[-len(memory) // 4 :]) - max(memory[len(memory) // 4 : len(memory) // 2])
    is_there = all(state.status == 200 for state in states)
    held = (
        not tally.lost
        and len(accepted) + len(refused) + len(late) == sent
        and len(late) <= FEW * (len(accepted) + len(late))
        and percentile(accepted, 99) <= DEADLINE + BATCH
        and percentile([answer.seconds for answer in refused], 99) <= FAST
        and is_told
        and growth < FLAT
        and is_there
    )
    return {
        "trial": "ten times its capacity",
        "held": held,
        "seconds": seconds,
        "capacity, requests/s": round(capacity, 1),
        "sent/s": round(sent / seconds, 1),
        "sent late by at most, s": round(behind, 3),
        "answered/s": round(len(accepted) / seconds, 1),
        "refused": len(refused),
        "accepted and late": len(late),
        "statuses": dict(tally.statuses()),
        "lost": len(tally.lost),
        "how": tally.lost[:3],
        "P99 of answers, s": round(percentile(accepted, 99), 3),
        "against the deadline and a batch, s": DEADLINE + BATCH,
        "refusals, ms, P50 P99 max": [round(1000 * percentile([a.seconds for a in refused], p), 1) for p in (50, 99, 100)],
        "Retry-After on all": is_told,
        "health and metrics, ms, P99 max": [round(1000 * percentile([a.seconds for a in states], p), 1) for p in (99, 100)],
        "memory MiB, growth": [round(memory[-1]), round(growth, 1)],
    }


async def measured(server: Server) -> float:
    """Requests a second that it answers when there are always some waiting."""
    tally, stop = Tally(), asyncio.Event()
    begun = time.perf_counter()
    clients = [asyncio.create_task(load(server, tally, stop, 10_000 + n)) for n in range(CLIENTS)]
    await asyncio.sleep(5)
    stop.set()
    await asyncio.gather(*clients)
    good = [answer for answer in tally.answers if answer.status == 200]
    if not good:
        sys.exit(f"within {DEADLINE:g} s nothing is answered here even where nothing is too much: {dict(tally.statuses())}")
    return len(good) / (max(a.begun + a.seconds for a in good) - begun)


def poison(fields: Sequence[str]) -> list[bytes]:
    """Whole requests that must be refused, and parts of requests after which nothing comes."""
    text = "x" * 20

    def document(value: object) -> dict[str, object]:
        return {"documents": [dict.fromkeys(fields, value)]}

    raw = [
        b'{"documents": ["\\ud800"]}',
        b'{"documents": ["a"], "timeout": NaN}',
        b'{"documents": ["a"], "timeout": 1e400}',
        b'{"documents": ["\xff\xfe"]}',
        b"[" * 100_000,
        b'{"documents": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"",
        b"null",
        b"\0" * 100,
        b'{"documents": ["a"], "tasks": ["../../etc/passwd"]}',
        b'{"documents": ["a"], "tasks": 7}',
        b'{"documents": []}',
        b"9" * 5000,
    ]
    made = [document(7), document(None), document([text]), document("x" * 600_000), {"documents": [text] * 10_000}, {"nothing": text}]
    posts = [post("/v1/predict", body) for body in [*raw, *made]]
    posts += [post("/v1/tasks/%2e%2e/%2e%2e:predict", {"text": text}), post("/v1/chat/completions", {"model": "no", "messages": 1})]
    huge = (
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 200000000\r\n\r\n" + b" " * 20_000_000
    )
    chunks = (
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"400\r\n%s\r\n" % (b" " * 1024) * 4096
    )
    headers = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Y: z\r\n" * 100_000
    endless = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Y: " + b"z" * 2_000_000
    return [
        *posts,
        huge,
        chunks,
        headers,
        endless,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        post("/nowhere", {}),
    ]


SLOW = [
    b"GET /health HTTP/1.1\r\nHos",
    b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
]


async def poisoned(bundle: Path, rounds: int) -> dict[str, Any]:
    """Bodies that cannot be understood and clients that do not finish: always 4xx, never 5xx, and memory stays flat."""
    async with serving(bundle, "--set", "header_seconds=1") as server:
        tally, memory = Tally(), []

        async def send(part: bytes) -> None:
            caller = Caller(server.port)
            try:
                tally.answers.append(await caller.ask(part))
            except Lost as lost:
                tally.lost.append(f"{part[:60]!r}: {lost}")
            caller.close()

        async def leave(part: bytes) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(part)
            await asyncio.sleep(0.01)
            writer.close()

        good = Tally()
        stop = asyncio.Event()
        client = asyncio.create_task(load(server, good, stop, 7))
        for _ in range(rounds):
            parts = poison(server.fields)
            await asyncio.gather(*(send(part) for part in [*parts, *SLOW * 20]), *(leave(part[: len(part) // 2]) for part in parts))
            memory.append(server.memory)
        stop.set()
        await client
    growth = max(memory[-len(memory) // 4 :]) - max(memory[len(memory) // 4 : len(memory) // 2])
    statuses = tally.statuses()
    held = not tally.lost and not good.lost and all(400 <= status < 500 for status in statuses) and growth < FLAT
    held &= set(good.statuses()) == {200}
    return {
        "trial": "poison and slow clients",
        "held": held,
        "requests": len(tally.answers),
        "statuses": dict(sorted(statuses.items())),
        "without an answer": len(tally.lost),
        "how": tally.lost[:3],
        "good requests beside them": dict(good.statuses()),
        "memory MiB, growth": [round(memory[-1]), round(growth, 1)],
    }


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sigterms", type=int, default=20)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--overload", type=float, default=30, help="seconds")
    parser.add_argument("--poison", type=int, default=12, help="rounds")
    parser.add_argument("--workers", type=int, default=2, help="of the trials that are made with several too; 1 leaves them out")
    arguments = parser.parse_args()
    several = ["--workers", str(arguments.workers)]
    trials: list[Callable[[], Awaitable[dict[str, Any]]]] = []
    for options in [[], *([several] if arguments.workers > 1 else [])]:
        trials += [lambda o=options: sigterms(arguments.bundle, arguments.sigterms, *o)] * (arguments.sigterms > 0)
        trials += [lambda o=options: swaps(arguments.bundle, arguments.swaps, *o)] * (arguments.swaps > 0)
    trials += [lambda: overload(arguments.bundle, arguments.overload)] * (arguments.overload > 0)
    trials += [lambda: poisoned(arguments.bundle, arguments.poison)] * (arguments.poison > 0)
    rows = []
    for trial in trials:
        row = await trial()
        rows.append(row)
        print(f"{'held' if row['held'] else 'DID NOT HOLD'}: {row['trial']}")
        for name, value in row.items():
            if name not in ("trial", "held") and value != []:
                print(f"    {name}: {value}")
        sys.stdout.flush()
    path = Path("runs/benchmarks/soak.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    path.write_text(json.dumps({"bundle": str(arguments.bundle), **machine, "trials": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["held"] for row in rows) else 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(uvloop.run(main()))
