"""What a task adapter, filter, sampler, stage scheduler, method, predictor, metric and observer promise.

A component is built as `Cls(Config)`: its nested `Config` is strict, frozen and owns its options. Settings go to the constructor,
runtime objects to methods. Samplers and schedulers are pure functions of their arguments: no hidden state, so a resume is exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from mtcore.interrupts import Stop
from mtcore.types import (
    Answer,
    Base,
    Evaluation,
    Fitted,
    Frozen,
    Group,
    Job,
    Layout,
    Ledger,
    MethodUse,
    Mixture,
    Piece,
    Prediction,
    Prepared,
    Preview,
    Render,
    Request,
    Signal,
    Stage,
    StageDone,
    TaskData,
    TaskError,
    TaskProfile,
    TaskSpec,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mtcore.events import Event

Array = NDArray[np.float64]


class Options(Frozen):
    """Base of every component's nested `Config`."""

    indifferent: ClassVar[frozenset[str]] = frozenset()
    """Options that change no result beyond rounding: they are no part of what a reference or a model is known by."""


class Component:
    """Anything that a run file can name."""

    name: ClassVar[str]

    class Config(Options):
        """No options."""

    def __init__(self, config: Any) -> None:
        self.config = config


class Metric(ABC):
    """A score as a function of summed per-row statistics, so that resampling rows is one matrix product."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raise it when the numbers change: references are measured again."""

    @abstractmethod
    def statistics(self, spec: TaskSpec, predictions: Sequence[Answer], answers: Sequence[Answer]) -> Array:
        """Per-row statistics [rows, k]."""

    @abstractmethod
    def score(self, totals: Array) -> Array:
        """Scores [...] from statistics summed over rows [..., k]; higher is better."""


class TaskAdapter(ABC):
    """What a plugin gives for one task: a spec, and where rows come from and what their fields and answers are."""

    spec: ClassVar[TaskSpec]
    metrics: ClassVar[Mapping[str, type[Metric]]] = {}
    """Metrics of this task's own, by name."""

    def __init__(self, data: Path | None = None) -> None:
        """`data` is the folder that the run file or MTCORE_DATA names."""
        self.data = data

    @abstractmethod
    def rows(self, split: str) -> Iterable[Any]:
        """Rows of `train`, `validation` or `test`: mappings, or the `RawRow`s of `mtcore.data.sources`, which know their file and line."""

    @abstractmethod
    def fields(self, row: Any) -> Mapping[str, str]:
        """The row's value of every field of the spec."""

    @abstractmethod
    def answer(self, row: Any) -> Answer:
        """The row's answer: a label of the spec, labels, a number, or a tuple of acceptable texts."""

    # A code-rendered task may override this; serving it then demands the same version of its plugin.
    render: "Callable[[Mapping[str, str], Layout], tuple[Piece, ...]] | None" = None


class TaskFilter(Component, ABC):
    """Splits the tasks into groups that may share one model."""

    @abstractmethod
    def group(self, profiles: Sequence[TaskProfile]) -> Sequence[Group]:
        """Groups that together hold every task once, each with a reason a person can read."""


class Sampler(Component, ABC):
    """Task sizes, and for dynamic samplers what has happened, to the share of each task."""

    needs: ClassVar[frozenset[Signal]] = frozenset()
    """What the ledger must hold for this sampler; empty for static ones."""

    @property
    def every(self) -> int:
        """Draws between two decisions of a sampler that needs signals: it is asked again at each such border."""
        return 4096

    @abstractmethod
    def epoch_draws(self, profiles: Sequence[TaskProfile]) -> int:
        """How many draws one epoch is."""

    @abstractmethod
    def mix(self, profiles: Sequence[TaskProfile], draws: int, ledger: Ledger) -> Mixture:
        """Shares for a stage of `draws` draws; where there are `needs`, for those up to the next border.

        At the start of a stage the ledger may hold nothing yet that is needed.
        """


class StageScheduler(Component, ABC):
    """Says which stage comes next."""

    alone: ClassVar[bool] = False
    """True where every task is trained by itself: the references are then the models."""

    @abstractmethod
    def next_stage(self, profiles: Sequence[TaskProfile], done: Sequence[StageDone], sampler: "SamplerFactory") -> Stage | None:
        """The stage after `done`, or None at the end."""

    def keep(self, done: Sequence[StageDone], evaluations: Sequence[Evaluation]) -> set[str]:
        """Checkpoints that a later stage may start from, beside the newest and the best; `evaluations` are those of the stage at hand."""
        return set()


class SamplerFactory(Protocol):
    """Builds the sampler that a stage names, so that a scheduler can ask for the length of its epoch."""

    def __call__(self, use: Any) -> Sampler: ...


class Stages(Protocol):
    """The stream of compiled stages that a method walks; torch-free."""

    def next(self, done: Sequence[StageDone], ledger: Ledger) -> "Any | None":
        """The next stage with its mixture and plan (`mtcore.data.stages.CompiledStage`), or None at the end."""

    def extend(self, compiled: Any, ledger: Ledger) -> Any:
        """The compiled stage with the mixture that its sampler decides, from the ledger, at its first undecided border."""

    def keep(self, done: Sequence[StageDone], evaluations: Sequence[Evaluation]) -> set[str]:
        """Checkpoints that a later stage may start from (`StageScheduler.keep`)."""


@dataclass(frozen=True)
class Judged:
    """A predictor evaluated on every validation row: scores by task, reasons where one failed, and the answers."""

    scores: Mapping[str, float]
    failures: Mapping[str, str]
    answers: Mapping[str, Sequence[Answer]]
    qualified: int | None
    average: float
    tokens: int
    seconds: float
    flops: float = 0.0
    """Of all requests (`Prepared.flops`)."""


@dataclass(frozen=True)
class Workspace:
    """Everything a method may touch while it fits: frozen and closed."""

    folder: Path
    bundle: Path
    seed: int
    tasks: Mapping[str, TaskData]
    base: Base
    accelerator: "Callable[[str], Accelerator]"
    """Makes this process's accelerator for a precision, `fp32` or `bf16`."""
    emit: "Callable[[Event], None]"
    evaluate: "Callable[[Predictor], Judged]"
    work: str
    """What this fit is called in events."""
    fingerprint: str
    """Names the configuration and data of this fit: a checkpoint made under another one is refused."""
    is_main: bool = True
    """Whether this process writes what all share; the others only compute."""
    stop: Stop = field(default_factory=Stop)
    """Whether the process was asked to end: a method defers that while it works, saves, and then obeys."""


class Predictor(ABC):
    """A loaded bundle: requests in, answers out."""

    @property
    @abstractmethod
    def tasks(self) -> Mapping[str, TaskSpec]:
        """The tasks it answers."""

    @abstractmethod
    def prepare(self, request: Request) -> Prepared:
        """Encode one request; raises ConfigError for unknown tasks and missing fields."""

    @abstractmethod
    def predict(self, prepared: Sequence[Prepared]) -> list[dict[str, Prediction | TaskError]]:
        """For each request, the answer of every task asked of it; batches by token cost on its own."""

    def warm_up(self) -> None:
        """Get ready for many requests, by measuring what is fastest here; answers stay what they are but for rounding."""
        return


class Method(Component, ABC):
    """A way to get one model for a group of tasks."""

    uses_stages: ClassVar[bool] = True
    """False where there is nothing to schedule: `stages` is then not walked, nor shown by `mtcore plan`."""
    update_keeps: ClassVar[frozenset[str] | None] = None
    """Options that a bundle must share with the run that updates it; None where this method goes on from no bundle."""

    @property
    def reference(self) -> MethodUse | None:
        """How a task is measured alone; None: by this method itself with the same options."""
        return None

    def preview(self, tasks: Mapping[str, TaskData], base: Base) -> Mapping[str, Preview]:
        """What can be said of each task before training, without torch: mean tokens an example, truncation, warnings."""
        return {}

    @abstractmethod
    def fit(self, group: Group, stages: Stages, workspace: Workspace, update: Path | None = None) -> Fitted:
        """Train one model for the group and leave it as a bundle in `workspace.bundle`; `update` is a bundle to start from in the base's place."""

    @abstractmethod
    def load(self, bundle: Path, renders: Mapping[str, Render]) -> Predictor:
        """Load a bundle of this method; `renders` writes the prompts of its code-rendered tasks, and ModelError says where one is missing."""


class Launcher(Component, ABC):
    """Has references measured, which need nothing of each other: several at a time, or by other machines."""

    in_turn: ClassVar[bool] = False
    """True where the run itself does every job, one after another: all that a run of several processes can take."""

    @abstractmethod
    def run(self, jobs: Sequence[Job], emit: "Callable[[Event], None]", stop: Stop) -> Mapping[str, Any]:
        """Have jobs done, each by a `mtcore.worker.Worker`, pass on their events, and return their results by job name.

        A job that is left out is done by the run itself. Where jobs fail the others are done all the same; RunError then names those that
        failed, and why. When `stop` is requested, the workers are told to end and waited for, because they save; then it is obeyed.
        """


class Observer(Component, ABC):
    """Sees what happens, and cannot change it."""

    @abstractmethod
    def on_event(self, event: "Event", folder: Path) -> None:
        """Called for every event of a run; `folder` is the run's."""


__all__ = [
    "Component",
    "Evaluation",
    "Judged",
    "Launcher",
    "Method",
    "Metric",
    "Observer",
    "Options",
    "Predictor",
    "Sampler",
    "SamplerFactory",
    "StageScheduler",
    "Stages",
    "TaskAdapter",
    "TaskFilter",
    "Workspace",
]
