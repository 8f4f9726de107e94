"""What is online: bundles by version, and which of them answers which task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtcore.registry import Registry
from mtcore.types import Prediction, TaskSpec
from mtcore_serve.errors import Refused
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics


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


class Fleet:
    """All bundles of one process. Everything here runs in the event loop's thread, except models, which have threads of their own."""

    def __init__(self, registry: Registry, limits: Limits, metrics: Metrics) -> None:
        raise NotImplementedError

    @property
    def tasks(self) -> Mapping[str, Online]:
        """Canonical task name → who answers it; stable order."""
        raise NotImplementedError

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken: loaded, not draining, no model given up."""
        raise NotImplementedError

    async def load(self, sources: Sequence[Source]) -> None:
        """Load, verify, warm up and self-test bundles, and put them online together.

        Raises ModelError where one cannot be served, two answer the same task, or a probe is answered otherwise than when it was published;
        what was online stays.
        """
        raise NotImplementedError

    async def answer(self, asked: Sequence[Ask], timeout: float | None = None) -> list[Answered]:
        """Answer documents; all of them or none are accepted.

        Raises Overloaded, NotReady, TooLarge (a request that can never fit), UnknownTask, or Late. One task's failure is an `Unanswerable` in
        its place.
        """
        raise NotImplementedError

    async def prepare(self, source: Source) -> str:
        """Load, verify, warm up and self-test the successor of a group's bundle beside it; returns its version. Nothing online changes."""
        raise NotImplementedError

    async def switch(self, group: str) -> str:
        """Put the prepared successor online at once: later requests go to it, those accepted before are still answered by the old one, which is
        then dropped. Returns the version."""
        raise NotImplementedError

    async def discard(self, group: str) -> None:
        """Drop a prepared successor."""
        raise NotImplementedError

    def share(self, group: str, *, canary: float = 0.0, shadow: float = 0.0) -> None:
        """Let the prepared successor answer a share of the requests (canary), or answer them unseen beside the one that is online (shadow);
        metrics compare the two."""
        raise NotImplementedError

    def status(self) -> Mapping[str, object]:
        """What is online, prepared and waiting, for the admin route: JSON."""
        raise NotImplementedError

    async def drain(self, seconds: float) -> bool:
        """Take nothing more and wait until all that was accepted is answered; whether it was, in that time."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of models and threads."""
        raise NotImplementedError
