"""Hand a method its workspace and let it fit; the one place where a method meets a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mtcore.config import Distribution
from mtcore.contracts import Judged, Method, Predictor, Stages, Workspace
from mtcore.evaluation.evaluate import Ask, AskingFailed, Exam, evaluate, is_out_of_memory
from mtcore.events import Event
from mtcore.interrupts import Stop
from mtcore.preparation import PreparedTask
from mtcore.types import Answer, Base, Fitted, Group, Prepared, Render

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Fitting:
    """What all fits of a run share."""

    emit: Callable[[Event], None]
    is_main: bool = True
    """Whether this process writes files and speaks; the others only compute."""
    stop: Stop = field(default_factory=Stop)
    distribution: Distribution = field(default_factory=Distribution)
    """How processes share the training of one model."""

    def wait(self) -> None:
        """Wait until every process of the run is here: before files that others may still read go away."""
        from mtcore.training.distributed import wait_for_everyone

        wait_for_everyone()

    def leave(self) -> None:
        """Part from the other processes, when the run is done."""
        from mtcore.training.distributed import leave

        leave()

    def evaluate(self, predictor: Predictor, exams: Mapping[str, Exam], *, in_step: bool = False) -> Judged:
        """Let every process ask its share of the rows, and go by what the first one found: on decisions all must agree.

        `in_step`: every process asks all of them, for a model that none of them holds alone.
        """
        from mtcore.training.distributed import agree

        return agree(evaluate(predictor, exams) if in_step else evaluate(predictor, exams, shared))

    def fit(
        self,
        method: Method,
        group: Group,
        stages: Stages,
        *,
        tasks: Mapping[str, PreparedTask],
        base: Base,
        seed: int,
        folder: Path,
        bundle: Path,
        work: str,
        fingerprint: str,
        bars: Mapping[str, float | None] | None = None,
        update: Path | None = None,
    ) -> Fitted:
        """Fit one group, from the base or from the bundle `update`; checkpoints are chosen on validation rows, against bars where there are any."""
        from mtcore.training.distributed import make_accelerator, release

        made: list[Accelerator] = []

        def accelerator(precision: str) -> "Accelerator":
            made.append(make_accelerator(precision, self.distribution))
            return made[-1]

        exams = {name: task.exam(task.data.validation, (bars or {}).get(name)) for name, task in tasks.items()}
        workspace = Workspace(
            folder=folder,
            bundle=bundle,
            seed=seed,
            tasks={name: task.data for name, task in tasks.items()},
            base=base,
            accelerator=accelerator,
            emit=self.emit,
            evaluate=lambda predictor: self.evaluate(predictor, exams, in_step=self.distribution.shards_weights),
            work=work,
            fingerprint=fingerprint,
            is_main=self.is_main,
            stop=self.stop,
        )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return method.fit(group, stages, workspace, update)
        finally:
            for used in made:
                release(used)


def shared(rows: Sequence[Prepared], ask: Ask) -> list[Answer]:
    """Ask this process's share of the rows, and return the answers to all, in their order, on all processes.

    Raises AskingFailed on all of them where it failed on one.
    """
    from mtcore.training.distributed import gathered, process_state

    rank, processes = process_state().process_index, process_state().num_processes
    if processes == 1:
        return ask(rows)
    mine: list[Answer] = []
    reason, is_full = "", False
    try:
        mine = ask(rows[rank::processes]) if rank < len(rows) else []
    except Exception as error:
        reason, is_full = f"{type(error).__name__}: {error}", is_out_of_memory(error)
    parts = gathered((mine, reason, is_full))
    # memory first: it ends the run, and all processes must go the same way
    for _, said, was_full in sorted(parts, key=lambda part: not part[2]):
        if said:
            raise AskingFailed(said, is_out_of_memory=was_full)
    return [parts[index % processes][0][index // processes] for index in range(len(rows))]


def renders(tasks: Mapping[str, PreparedTask]) -> dict[str, Render]:
    """How the code-rendered ones among the tasks write their prompts."""
    return {name: task.data.render for name, task in tasks.items() if task.data.render}
