"""What can happen in a run, one dataclass each; observers see these and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mtcore.types import Evaluation, Group, Stage


@dataclass(frozen=True)
class RunStarted:
    run: str
    variants: Sequence[str]
    seeds: Sequence[int]
    resumed: bool


@dataclass(frozen=True)
class RowsRead:
    task: str
    train: int
    validation: int
    quarantined: int


@dataclass(frozen=True)
class Warned:
    about: str
    text: str


@dataclass(frozen=True)
class Grouped:
    variant: str
    groups: Sequence[Group]


@dataclass(frozen=True)
class WorkAhead:
    """Optimizer steps of all work of a variant, at most; variants share their references."""

    steps: Mapping[str, int]


@dataclass(frozen=True)
class WorkStarted:
    """A span of work whose length in optimizer steps is known from here on."""

    work: str
    """`reference clue/tnews`, `ours/classification`."""
    steps: int
    done: int
    fingerprint: str = ""
    """Tells works of one name apart: a reference under another seed, a group whose rows have changed."""


@dataclass(frozen=True)
class StageStarted:
    work: str
    stage: Stage
    steps: int
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Stepped:
    work: str
    stage: str
    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    work: str
    evaluation: Evaluation


@dataclass(frozen=True)
class StageEnded:
    work: str
    stage: str
    steps: int
    ended: str


@dataclass(frozen=True)
class ReferenceReady:
    task: str
    score: float
    saturation_epoch: int | None
    resource: str
    is_at_chance: bool
    source: Literal["measured", "reused"]


@dataclass(frozen=True)
class VariantJudged:
    variant: str
    average: float
    qualified: int
    tasks: int


@dataclass(frozen=True)
class RunEnded:
    run: str
    report: str


Event = (
    RunStarted
    | RowsRead
    | Warned
    | Grouped
    | WorkAhead
    | WorkStarted
    | StageStarted
    | Stepped
    | Evaluated
    | StageEnded
    | ReferenceReady
    | VariantJudged
    | RunEnded
)


def reference_work(task: str) -> str:
    """What measuring a task alone is called as a work."""
    return f"reference {task}"
