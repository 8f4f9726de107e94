"""What is online: bundles by version, and which of them answers which task."""

import asyncio
import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtcore.errors import ConfigError, ModelError, UnknownName
from mtcore.registry import Registry
from mtcore.types import Prediction, Request, TaskSpec
from mtcore_serve.comparing import compare
from mtcore_serve.device import Device
from mtcore_serve.errors import Conflict, NotReady, Refused, UnknownTask
from mtcore_serve.groups import Group, Live, Spread, require_different
from mtcore_serve.limits import Limits
from mtcore_serve.loading import open_engine
from mtcore_serve.metrics import Metrics
from mtcore_serve.tickets import Answers


@dataclass(frozen=True)
class Online:
    """A task that is answered now."""

    spec: TaskSpec
    group: str
    """The name under which its bundle is online: what `mtcore swap` names."""
    version: str
    """Of the bundle."""
    is_qualified: bool | None = None
    """Whether the run found it good enough; None where a bundle was given without its run."""


@dataclass(frozen=True)
class Ask:
    """One document and what is asked of it. Every field that a task takes is there."""

    fields: Mapping[str, str]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Answered:
    """What one document was answered, by task: by exactly one version of each bundle."""

    answers: Mapping[str, Prediction | Refused]
    versions: Mapping[str, str]
    """Task → version of the bundle that answered."""
    tokens: int = 0


@dataclass(frozen=True)
class Source:
    """A bundle to put online."""

    group: str
    folder: Path
    qualified: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """What one bundle is asked about one document, in as many tasks as fit into a batch."""

    number: int
    """Of the document in its request."""
    request: Request


@dataclass
class _Found:
    """What has come in about one document."""

    answers: dict[str, Prediction | Refused] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tokens: int = 0

    def take(self, version: str, answers: Answers) -> None:
        self.answers.update(answers.by_task)
        self.versions.update(dict.fromkeys(answers.by_task, version))
        self.tokens += answers.tokens


class Fleet:
    """All bundles of one process. Everything here runs in the event loop's thread, except models, which have threads of their own."""

    def __init__(self, registry: Registry, limits: Limits, metrics: Metrics) -> None:
        self._registry, self._limits, self._metrics = registry, limits, metrics
        self._device = Device(limits.batch_tokens)
        self._groups: dict[str, Group] = {}
        self._tasks: Mapping[str, Online] = {}
        self._accepted = 0
        self._nothing_open = asyncio.Event()
        self._nothing_open.set()
        self._is_draining = False
        self._shadows: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> Mapping[str, Online]:
        """Canonical task name → who answers it; stable order."""
        return self._tasks

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken: loaded, not draining, no model given up."""
        return bool(self._groups) and not self._is_draining and all(group.live.engine.is_healthy for group in self._groups.values())

    async def load(self, sources: Sequence[Source]) -> None:
        """Load, verify, warm up and self-test bundles, and put them online together.

        Raises ModelError where one cannot be served, two answer the same task, or a probe is answered otherwise than when it was published;
        what was online stays.
        """
        names = [*self._groups, *(source.group for source in sources)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"two bundles under the name {', '.join(sorted(twice))}; give each a name of its own, or swap the one online")
        loaded: list[Live] = []
        try:
            for source in sources:
                loaded.append(await self._open(source))
                require_different([group.live for group in self._groups.values()] + loaded)
        except BaseException:
            for live in loaded:
                live.engine.close()
            raise
        for live in loaded:
            self._groups[live.group] = Group(live)
            self._metrics.online(live.group, live.version, is_online=True)
        self._refresh()

    async def answer(self, asked: Sequence[Ask], timeout: float | None = None) -> list[Answered]:
        """Answer documents; all of them or none are accepted.

        Raises Overloaded, NotReady, TooLarge (a request that can never fit), UnknownTask, or Late. One task's failure is an `Unanswerable` in
        its place.
        """
        begun = time.monotonic()
        seconds = min(timeout or self._limits.deadline, self._limits.deadline)
        try:
            shares = self._shares(asked)
            for live, parts in shares.items():
                live.engine.check([part.request for part in parts], seconds)
        except Refused as error:
            self._metrics.refused(error.code)
            raise
        futures = {live: live.engine.submit([part.request for part in parts], begun + seconds) for live, parts in shares.items()}
        self._accepted += 1
        self._nothing_open.clear()
        try:
            await asyncio.gather(*(future for some in futures.values() for future in some))
        except Refused as error:
            self._metrics.refused(error.code)
            raise
        finally:
            for some in futures.values():
                for future in some:
                    future.cancel()
            self._accepted -= 1
            if not self._accepted:
                self._nothing_open.set()
        found = [_Found() for _ in asked]
        for live, parts in shares.items():
            for part, future in zip(parts, futures[live], strict=True):
                found[part.number].take(live.version, future.result())
        self._count(shares, found, time.monotonic() - begun)
        self._look_again(shares, found)
        return [
            Answered({task: one.answers[task] for task in ask.tasks}, one.versions, one.tokens)
            for ask, one in zip(asked, found, strict=True)
        ]

    async def prepare(self, source: Source, *, may_drop_tasks: bool = False) -> str:
        """Load, verify, warm up and self-test the successor of a group's bundle beside it; returns its version. Nothing online changes.

        Raises ModelError where it cannot be served, or lacks a task that is answered now and `may_drop_tasks` is not said; Conflict where
        there is a successor already.
        """
        group = self._group(source.group)
        group.require_room()
        group.is_preparing = True
        try:
            successor = await self._open(source)
            try:
                others = [other.live for name, other in self._groups.items() if name != source.group]
                require_different([*others, successor])
                lacking = sorted(set(group.live.tasks) - set(successor.tasks))
                if lacking and not may_drop_tasks:
                    raise ModelError(f"{source.folder} does not answer {', '.join(lacking)}, which {source.group} answers now")
            except BaseException:
                successor.engine.close()
                raise
            group.successor = successor
        finally:
            group.is_preparing = False
        return successor.version

    async def switch(self, group: str) -> str:
        """Put the prepared successor online at once: later requests go to it, those accepted before are still answered by the old one, which is
        then dropped. Returns the version."""
        old, successor = self._group(group).live, self._group(group).require_successor()
        if not successor.engine.is_healthy:
            raise Conflict(f"the successor of {group} was given up by the watchdog; discard it")
        require_different([*(other.live for name, other in self._groups.items() if name != group), successor])  # others switched since
        self._groups[group] = Group(successor)
        self._metrics.online(group, old.version, is_online=False)
        self._metrics.online(group, successor.version, is_online=True)
        self._refresh()
        old.engine.retire()
        return successor.version

    async def discard(self, group: str) -> None:
        """Drop a prepared successor."""
        mine = self._group(group)
        mine.require_successor().engine.retire()
        self._groups[group] = Group(mine.live)

    def share(self, group: str, *, canary: float = 0.0, shadow: float = 0.0) -> None:
        """Let the prepared successor answer a share of the requests (canary), or answer them unseen beside the one that is online (shadow);
        metrics compare the two."""
        mine = self._group(group)
        mine.require_successor()
        if not (0 <= canary <= 1 and 0 <= shadow <= 1):
            raise ConfigError(f"shares are between 0 and 1, not canary {canary:g} and shadow {shadow:g}")
        mine.canary, mine.shadow = Spread(canary), Spread(shadow)

    def status(self) -> Mapping[str, object]:
        """What is online, prepared and waiting, for the admin route: JSON."""
        return {
            "ready": self.is_ready,
            "draining": self._is_draining,
            "open_requests": self._accepted,
            "groups": {name: group.status() for name, group in self._groups.items()},
        }

    async def drain(self, seconds: float) -> bool:
        """Take nothing more and wait until all that was accepted is answered; whether it was, in that time."""
        self._is_draining = True
        try:
            await asyncio.wait_for(self._nothing_open.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Let go of models and threads."""
        self._is_draining = True
        for task in self._shadows:
            task.cancel()
        for group in self._groups.values():
            for live in (group.live, group.successor):
                if live is not None:
                    live.engine.close()
        self._groups, self._tasks = {}, {}

    # --- requests -----------------------------------------------------------------------------------------------------------------

    def _shares(self, asked: Sequence[Ask]) -> dict[Live, list[_Part]]:
        """Which bundle answers what of which document. One request sees one bundle of a group, whatever is switched meanwhile."""
        if not self.is_ready:
            raise NotReady("nothing is taken here now: bundles are being loaded, drained or replaced; ask again")
        wanted: dict[str, dict[int, list[str]]] = {}
        """Tasks by group and document."""
        for number, ask in enumerate(asked):
            for task in dict.fromkeys(ask.tasks):
                if task not in self._tasks:
                    raise UnknownTask(f"a task is asked for that nothing here answers; online: {', '.join(self._tasks)}")
                wanted.setdefault(self._tasks[task].group, {}).setdefault(number, []).append(task)
        shares: dict[Live, list[_Part]] = {}
        for name, documents in wanted.items():
            live = self._groups[name].choose(list({task: None for tasks in documents.values() for task in tasks}))
            shares[live] = [
                _Part(number, part)
                for number, tasks in documents.items()
                for part in live.engine.parts(Request(asked[number].fields, tuple(tasks)))
            ]
        return shares

    def _count(self, shares: Iterable[Live], found: Iterable[_Found], seconds: float) -> None:
        for live in shares:
            group = self._groups.get(live.group)
            self._metrics.answered(live.group, "canary" if group and live is group.successor else "online", seconds)
        for one in found:
            for task, answer in one.answers.items():
                if isinstance(answer, Refused):
                    self._metrics.refused(answer.code)
                else:
                    self._metrics.answer(task, one.versions[task], is_truncated="truncated" in answer.flags)

    def _look_again(self, shares: Mapping[Live, Sequence[_Part]], found: Sequence[_Found]) -> None:
        """Let successors answer unseen what was just answered, where they are to and nothing waits that somebody wants."""
        for live, parts in shares.items():
            group = self._groups.get(live.group)
            if group is None or group.successor is None or live is not group.live or not group.shadow.takes():
                continue
            if self._device.is_busy:
                self._metrics.shadow(live.group, "dropped")
                continue
            answered = [
                (Request(part.request.fields, tasks), found[part.number].answers)
                for part in parts
                if (tasks := group.common(part.request.tasks))
            ]
            if not answered:
                continue
            task = asyncio.get_running_loop().create_task(compare(group.successor, answered, self._limits, self._metrics))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    # --- bundles ------------------------------------------------------------------------------------------------------------------

    async def _open(self, source: Source) -> Live:
        engine, tasks = await open_engine(
            source.group, source.folder, self._registry, limits=self._limits, metrics=self._metrics, device=self._device
        )
        if self._is_draining:  # nobody would close it any more
            engine.close()
            raise Conflict(f"{source.folder} is not put online: this server is about to end")
        # what is loaded stays: looking through it for garbage again and again would stop all requests for a tenth of a second
        gc.collect()
        gc.freeze()
        return Live(source.group, source.folder, source.qualified, engine, tasks)

    def _group(self, name: str) -> Group:
        if name not in self._groups:
            raise UnknownName(f"nothing is online under the name asked for; online: {', '.join(self._groups) or 'nothing'}")
        return self._groups[name]

    def _refresh(self) -> None:
        self._tasks = {
            task: Online(spec, name, group.live.version, group.live.qualified.get(task))
            for name, group in self._groups.items()
            for task, spec in group.live.tasks.items()
        }
