"""What stands under one name: the bundle that is online, its prepared successor, and the share of requests that the successor sees."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtcore.errors import ModelError
from mtcore.types import TaskSpec
from mtcore_serve.engine import Engine
from mtcore_serve.errors import Conflict


@dataclass(eq=False)
class Live:
    """A bundle in memory."""

    group: str
    folder: Path
    qualified: Mapping[str, bool]
    engine: Engine
    tasks: Mapping[str, TaskSpec]

    @property
    def version(self) -> str:
        return self.engine.version

    def status(self) -> Mapping[str, object]:
        """As JSON."""
        engine = self.engine
        return {
            "version": self.version,
            "folder": str(self.folder),
            "tasks": list(self.tasks),
            "is_healthy": engine.is_healthy,
            "abandoned": engine.abandoned,
            "waiting_requests": engine.waiting_requests,
            "waiting_tokens": engine.waiting_tokens,
            "open_requests": engine.outstanding,
            "tokens_a_second": round(1 / engine.pace.seconds_a_token) if engine.pace.seconds_a_token else None,
        }


@dataclass
class Spread:
    """Takes an even share of what comes: every nth, without chance."""

    share: float = 0.0
    seen: int = 0

    def takes(self) -> bool:
        """Whether this one is taken."""
        self.seen += 1
        return int(self.seen * self.share) > int((self.seen - 1) * self.share)


@dataclass
class Group:
    """A name under which bundles follow each other."""

    live: Live
    successor: Live | None = None
    is_preparing: bool = False
    canary: Spread = field(default_factory=Spread)
    shadow: Spread = field(default_factory=Spread)

    def choose(self, tasks: Sequence[str]) -> Live:
        """Who answers the next request, in which these tasks are asked: one bundle all of them."""
        successor = self.successor
        if successor is None or not successor.engine.is_healthy or len(self.common(tasks)) < len(tasks):
            return self.live
        return successor if self.canary.takes() else self.live

    def common(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Those that the successor is asked and answers in the same form as the bundle online, so that it may stand in for it."""
        new = self.successor.tasks if self.successor else {}
        return tuple(task for task in tasks if task in new and _form(new[task]) == _form(self.live.tasks[task]))

    def require_room(self) -> None:
        """Raise Conflict where there is a successor already."""
        if self.is_preparing or self.successor is not None:
            what = f"version {self.successor.version} is prepared" if self.successor else "a bundle is being prepared"
            raise Conflict(f"{what} for {self.live.group} already; switch to it or discard it first")

    def require_successor(self) -> Live:
        """The prepared one; Conflict where there is none."""
        if self.successor is None:
            raise Conflict(f"no successor of {self.live.group} is prepared; prepare one first")
        return self.successor

    def status(self) -> Mapping[str, object]:
        """As JSON."""
        return {
            "online": self.live.status(),
            "prepared": self.successor.status() if self.successor else None,
            "is_preparing": self.is_preparing,
            "canary": self.canary.share,
            "shadow": self.shadow.share,
        }


def _form(spec: TaskSpec) -> tuple[object, ...]:
    return spec.fields, spec.output


def require_different(lives: Iterable[Live]) -> None:
    """Raise ModelError where two bundles answer the same task: nothing says which of them is meant."""
    owners: dict[str, Live] = {}
    for live in lives:
        for task in live.tasks:
            other = owners.setdefault(task, live)
            if other is not live:
                raise ModelError(f"{other.folder} and {live.folder} both answer {task}; serve one of them, or one without that task")
