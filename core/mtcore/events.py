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
class MachineMeasured:
    """What a work's device can do at most, told when a process begins a work."""

    peak_flops: float
    """Floating-point operations a second, of one device."""
    source: str
    processes: int
    work: str = ""
    """Empty: of all works of the run."""


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
    padding: int = 0
    flops: float = 0.0
    example_tokens: int = 0
    """As in `Cost`."""
    skipped: str = ""
    """Why the optimizer did not take this step; empty where it did."""


@dataclass(frozen=True)
class StepSkipped:
    """A step whose examples were seen and whose update was not made."""

    work: str
    stage: str
    step: int
    reason: str
    loss: float
    rows: Sequence[tuple[str, int]]
    """Task and row number of each of the step's examples."""


@dataclass(frozen=True)
class RolledBack:
    """A stage goes on from an earlier step, whose checkpoint was loaded."""

    work: str
    stage: str
    from_step: int
    to_step: int
    reason: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    work: str
    stage: str
    step: int
    seconds: float
    path: str


@dataclass(frozen=True)
class MicroBatchHalved:
    """The device ran out of memory: fewer tokens go through the model at once from here on, which changes no result."""

    work: str
    batch_tokens: int
    """The new bound."""


@dataclass(frozen=True)
class Interrupted:
    """A signal asked the run to stop; what was done is saved."""

    work: str
    step: int
    signal: str


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
    seed: int | None = None
    """None where the run has one alone: as in the name of the work."""


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
    | MachineMeasured
    | StageStarted
    | Stepped
    | StepSkipped
    | RolledBack
    | Saved
    | MicroBatchHalved
    | Interrupted
    | Evaluated
    | StageEnded
    | ReferenceReady
    | VariantJudged
    | RunEnded
)


def reference_work(task: str, seed: int | None = None) -> str:
    """What measuring a task alone is called as a work, by its seed too where the run has several."""
    return f"reference {task}" + ("" if seed is None else f" seed {seed}")


def is_reference(work: str) -> bool:
    """Whether a work measures a task alone; several of these may go on at once."""
    return work.startswith(reference_work(""))
