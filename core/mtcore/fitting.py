"""Hand a method its workspace and let it fit; the one place where a method meets a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mtcore.contracts import Judged, Method, Predictor, Stages, Workspace
from mtcore.evaluation.evaluate import Exam, evaluate
from mtcore.events import Event
from mtcore.preparation import PreparedTask
from mtcore.types import Base, Fitted, Group, Render


@dataclass(frozen=True)
class Fitting:
    """What all fits of a run share."""

    emit: Callable[[Event], None]
    is_main: bool = True
    """Whether this process writes files and speaks; the others only compute."""

    def wait(self) -> None:
        """Wait until every process of the run is here: before files that others may still read go away."""
        from mtcore.training.distributed import wait_for_everyone

        wait_for_everyone()

    def evaluate(self, predictor: Predictor, exams: Mapping[str, Exam]) -> Judged:
        """Evaluate on every process, and go by what the first one found: on decisions all must agree."""
        from mtcore.training.distributed import agree

        return agree(evaluate(predictor, exams))

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
        from mtcore.training.distributed import make_accelerator

        exams = {name: task.exam(task.data.validation, (bars or {}).get(name)) for name, task in tasks.items()}
        workspace = Workspace(
            folder=folder,
            bundle=bundle,
            seed=seed,
            tasks={name: task.data for name, task in tasks.items()},
            base=base,
            accelerator=make_accelerator,
            emit=self.emit,
            evaluate=lambda predictor: self.evaluate(predictor, exams),
            work=work,
            fingerprint=fingerprint,
            is_main=self.is_main,
        )
        folder.mkdir(parents=True, exist_ok=True)
        return method.fit(group, stages, workspace, update)


def renders(tasks: Mapping[str, PreparedTask]) -> dict[str, Render]:
    """How the code-rendered ones among the tasks write their prompts."""
    return {name: task.data.render for name, task in tasks.items() if task.data.render}
