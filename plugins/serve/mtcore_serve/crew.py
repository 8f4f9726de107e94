"""The workers of a server: started, watched and replaced one by one; what is online is changed on all of them or on none."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, cast

from pydantic import TypeAdapter

from mtcore.errors import ModelError, RunError
from mtcore_serve.control import ask
from mtcore_serve.fleet import Source
from mtcore_serve.listener import turn_away
from mtcore_serve.metrics import VARIABLE, forget_worker
from mtcore_serve.server import Settings
from mtcore_serve.worker import UNUSABLE

log = logging.getLogger("mtcore_serve")
BEAT = 0.5
"""Seconds between two looks at a worker."""
PATIENCE = 20.0
"""Seconds in which a worker that serves must say that it lives: far longer than anything should hold Python's lock."""
LOADING = 900.0
"""Seconds in which a worker must have loaded."""
STEADY = 60.0
"""A worker that served for so many seconds has worked; one that dies sooner is replaced after a pause, which doubles each time."""
LONGEST_PAUSE = 30.0
ATTEMPTS = 6
"""Workers in a row that may die young while no other serves."""
MARGIN = 5.0
"""Seconds that a worker has for its end, beside grace and draining."""
NONE_SERVES = "no worker serves at the moment; try again shortly"


@dataclass(eq=False)
class Child:
    """A worker process, and what is known of it."""

    settings: Settings
    process: subprocess.Popen[bytes]
    heard: float = field(default_factory=time.monotonic)
    """When it last said that it lives, or was started."""
    serving_since: float | None = None
    is_stale: bool = False
    """Whether it was ended because it had loaded what is no longer online."""

    async def ask(self, method: str, route: str, body: Mapping[str, Any] | None = None, seconds: float | None = None) -> dict[str, Any]:
        return await ask(self.settings.admin, method, route, body, seconds)


@dataclass
class Successor:
    """A bundle that all workers have prepared, and what share of the requests it sees."""

    source: Source
    may_drop_tasks: bool
    version: str = ""
    canary: float = 0.0
    shadow: float = 0.0

    def body(self) -> dict[str, Any]:
        return {
            "group": self.source.group,
            "folder": str(self.source.folder),
            "qualified": dict(self.source.qualified),
            "may_drop_tasks": self.may_drop_tasks,
        }


class Crew:
    """The workers, and what they serve now."""

    def __init__(self, settings: Settings, workers: int, listening: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._listening = list(listening)
        self._children: list[Child | None] = [None] * workers
        self._names = count(1)
        self._online = {source.group: source for source in settings.sources}
        self._successors: dict[str, Successor] = {}
        self._changing = asyncio.Lock()
        """One change at a time: it has to reach every worker, and those that are started meanwhile."""
        self._is_ending = False
        self.is_complete = asyncio.Event()
        """Set once all workers have served at the same time."""

    async def keep(self, place: int) -> None:
        """Start a worker, watch it, start another in its place, until the crew ends."""
        young = 0
        while not self._is_ending:
            self._children[place] = child = self._start()
            await self._watch(child)
            code = await asyncio.to_thread(child.process.wait)
            self._clear(child)
            if self._is_ending:
                return
            if child.is_stale:
                continue
            has_worked = child.serving_since is not None and time.monotonic() - child.serving_since > STEADY
            young = 0 if has_worked else young + 1
            how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
            if code == UNUSABLE and not self.is_complete.is_set():
                raise ModelError("the workers cannot load what is to be served: the reason stands above")
            if young >= ATTEMPTS and not self._serving():
                raise RunError(f"{young} workers in a row ended soon after they were started, the last with {how}; nothing serves any more")
            pause = min(LONGEST_PAUSE, 2 ** (young - 2)) if young > 1 else 0
            log.warning("worker %d ended (%s); another is started%s", child.process.pid, how, f" in {pause:g} s" if pause else "")
            await asyncio.sleep(pause)

    async def end(self) -> bool:
        """Have all workers drain and end; whether they did without losing a request."""
        self._is_ending = True
        children = [child for child in self._children if child is not None and child.process.poll() is None]
        stopping = [asyncio.create_task(self._stop(child)) for child in children]
        await asyncio.sleep(self._settings.grace)
        for listening in self._listening:
            turn_away(listening)
            listening.close()  # the workers have theirs, and the last to close it has emptied its queue
        codes = await asyncio.gather(*stopping)
        return all(code == 0 or child.serving_since is None for child, code in zip(children, codes, strict=True))

    async def prepare(self, source: Source, *, may_drop_tasks: bool = False) -> str:
        """On all workers or on none."""
        async with self._changing:
            if source.group not in self._online:
                raise RunError(f"no group is called {source.group!r}; online are {', '.join(self._online)}")
            if waiting := self._successors.get(source.group):
                raise RunError(f"version {waiting.version} is prepared for {source.group} already; promote or discard it first")
            successor = Successor(source, may_drop_tasks)
            answers = await self._everywhere("/prepare", successor.body())
            failures = [answer for answer in answers if isinstance(answer, RunError)]
            versions = {answer["version"] for answer in answers if isinstance(answer, dict)}
            if failures or len(versions) != 1:
                await self._everywhere("/discard", {"group": source.group})
                raise failures[0] if failures else RunError("the workers read different bundles there; try again once it is written")
            (successor.version,) = versions
            self._successors[source.group] = successor
            return successor.version

    async def switch(self, group: str) -> str:
        """On all workers; one that fails to, or is still loading, is replaced by one that loads what is online then."""
        async with self._changing:
            successor = self._prepared(group)
            children = self._serving()
            if not children:
                raise RunError(NONE_SERVES)
            self._online[group] = self._successors.pop(group).source
            loading = [child for child in self._children if child is not None and child.serving_since is None]
            answers = await asyncio.gather(*(_answer(child, "/switch", {"group": group}) for child in children))
            failed = [child for child, answer in zip(children, answers, strict=True) if isinstance(answer, RunError)]
            await asyncio.gather(*map(self._replace, [*loading, *failed]))
            return successor.version

    async def discard(self, group: str) -> None:
        async with self._changing:
            self._prepared(group)
            await self._everywhere("/discard", {"group": group})
            del self._successors[group]

    async def share(self, group: str, *, canary: float = 0.0, shadow: float = 0.0) -> None:
        async with self._changing:
            successor = self._prepared(group)
            answers = await self._everywhere("/share", {"group": group, "canary": canary, "shadow": shadow})
            for answer in answers:
                if isinstance(answer, RunError):
                    raise answer
            successor.canary, successor.shadow = canary, shadow

    async def status(self) -> Mapping[str, Any]:
        children = [child for child in self._children if child is not None]
        answers = await asyncio.gather(*(child.ask("GET", "/status", seconds=4 * BEAT) for child in children), return_exceptions=True)
        silent = [{"pid": child.process.pid, "state": "silent"} for child in children]
        return {"pid": os.getpid(), "workers": [a if isinstance(a, dict) else s for a, s in zip(answers, silent, strict=True)]}

    def _start(self) -> Child:
        name = self._settings.admin.with_suffix(f".{next(self._names)}")
        settings = replace(self._settings, admin=name, sources=tuple(self._online.values()), shares_socket=True)
        numbers = [listening.fileno() for listening in self._listening]
        folder = self._settings.metrics_folder
        process = subprocess.Popen(
            # a fresh interpreter: torch does not outlive a fork
            [sys.executable, "-m", "mtcore_serve.worker", *map(str, numbers)],
            stdin=subprocess.PIPE,
            pass_fds=numbers,
            env={**os.environ, **({VARIABLE: folder} if folder else {})},
            # in a group of its own: Ctrl-C on a terminal reaches the supervisor, and from there each worker once
            process_group=0,
        )
        stdin = cast(Any, process.stdin)
        # and stays open: by its end the worker learns that nobody watches over it any more
        stdin.write(TypeAdapter(Settings).dump_json(settings) + b"\n")
        stdin.flush()
        return Child(settings, process)

    async def _watch(self, child: Child) -> None:
        """Return when a worker has ended; one that is silent for too long is made to."""
        while child.process.poll() is None:
            await asyncio.sleep(BEAT)
            try:
                state = (await child.ask("GET", "/status", seconds=PATIENCE))["state"]
                child.heard = time.monotonic()
                if state == "serving" and child.serving_since is None:
                    await self._catch_up(child)
            except RunError:
                patience = LOADING if child.serving_since is None else PATIENCE
                if time.monotonic() - child.heard > patience and not self._is_ending:
                    log.error("worker %d has not answered for %g s and is ended", child.process.pid, patience)
                    child.process.kill()
                    return

    async def _catch_up(self, child: Child) -> None:
        """Have a worker that just began to serve prepare what the others have prepared; one that cannot is replaced when they switch."""
        async with self._changing:
            for group, successor in self._successors.items():
                shares = {"group": group, "canary": successor.canary, "shadow": successor.shadow}
                for route, body in (("/prepare", successor.body()), ("/share", shares)):
                    if isinstance(failure := await _answer(child, route, body), RunError):
                        log.warning("worker %d: %s: %s", child.process.pid, route, failure)
            child.serving_since = time.monotonic()
        if len(self._serving()) == len(self._children):
            self.is_complete.set()

    async def _everywhere(self, route: str, body: Mapping[str, Any]) -> list[dict[str, Any] | RunError]:
        """What every worker that serves answers. Raises RunError where none does."""
        children = self._serving()
        if not children:
            raise RunError(NONE_SERVES)
        return list(await asyncio.gather(*(_answer(child, route, body) for child in children)))

    async def _replace(self, child: Child) -> None:
        """End a worker that does not have what is online."""
        child.is_stale = True
        await self._stop(child)

    async def _stop(self, child: Child) -> int:
        """Have a worker drain and end; its exit code."""
        child.process.terminate()
        ended = asyncio.create_task(asyncio.to_thread(child.process.wait))
        if not (await asyncio.wait({ended}, timeout=self._settings.grace + self._settings.limits.drain_seconds + MARGIN))[0]:
            child.process.kill()
        return await ended

    def _serving(self) -> list[Child]:
        return [child for child in self._children if child is not None and child.serving_since is not None and child.process.poll() is None]

    def _prepared(self, group: str) -> Successor:
        if group not in self._successors:
            raise RunError(f"nothing is prepared for group {group!r}: prepare a bundle first; online are {', '.join(self._online)}")
        return self._successors[group]

    def _clear(self, child: Child) -> None:
        cast(Any, child.process.stdin).close()
        child.settings.admin.unlink(missing_ok=True)
        if self._settings.metrics_folder:
            forget_worker(self._settings.metrics_folder, child.process.pid)


async def _answer(child: Child, route: str, body: Mapping[str, Any]) -> dict[str, Any] | RunError:
    try:
        return await child.ask("POST", route, body, LOADING)
    except RunError as error:
        return error
