"""What a check of the doctor is given, and what it says."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtcore.config import RunConfig
from mtcore.registry import Registry


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: as it should be, worth knowing, or in the way of a run; and what to do about it."""

    status: Literal["fine", "warning", "problem"]
    text: str
    todo: str = ""


@dataclass(frozen=True)
class Subject:
    """What is examined. Nothing is fetched: what is not here is said to be missing."""

    registry: Registry
    configs: Mapping[str, RunConfig]
    """By variant; without a run file, the defaults under the empty name."""
    has_run: bool
    """Whether a run file says what is needed; else what is missing may not be wanted."""
    may_fetch: bool = True
    """Whether a run could reach the Hugging Face Hub."""
    commands: Collection[str] = ()
    """Names of the box's own commands."""

    @property
    def config(self) -> RunConfig:
        """What holds for the whole run."""
        return next(iter(self.configs.values()))

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    def missing(self, text: str, todo: str = "") -> Finding:
        """Something that a run needs is not there."""
        return Finding("problem" if self.has_run else "warning", text, todo)


Check = Callable[[Subject], Iterator[Finding]]
