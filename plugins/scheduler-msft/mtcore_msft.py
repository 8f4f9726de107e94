"""mSFT (Koh et al., 2026): train rounds of the mixture; the task that overfits first is left out, and its best checkpoint is gone on from."""

from collections.abc import Sequence

from pydantic import Field

from mtcore.contracts import SamplerFactory, StageScheduler
from mtcore.defaults.schedulers import Recipe, stage_of
from mtcore.hookspecs import hookimpl
from mtcore.types import Evaluation, SamplerUse, Stage, StageDone, TaskProfile

UPDATE = "update"


class Msft(StageScheduler):
    """Rounds of equal budget. A task overfits in a round when all its scores after its best one are lower.

    The tasks whose best comes first are left out, and the next round begins at that checkpoint without them; where no task overfits, it begins
    where the round ended, with the same tasks. It ends when too few tasks are left, or after `most_rounds`.
    """

    name = "msft"

    class Config(Recipe):
        sampler: SamplerUse = SamplerUse(use="instance-balanced")
        """How a round draws its tasks."""
        budget_epochs: float = Field(default=1.0, gt=0)
        """C: the length of a round, in the epochs of the sampler over the round's tasks."""
        evaluate_epochs: float = Field(default=0.25, gt=0)
        """Epochs of a round between two evaluations."""
        least_tasks: int = Field(default=1, ge=1)
        """End when fewer tasks are left."""
        most_rounds: int = Field(default=20, ge=1, le=50)
        """End after so many rounds."""
        update_epochs: float = Field(default=3.0, gt=0)
        """Epochs of the mixture of all tasks in which a live bundle learns new ones: an update has no rounds."""

    config: Config

    def next_stage(self, profiles: Sequence[TaskProfile], done: Sequence[StageDone], sampler: SamplerFactory) -> Stage | None:
        config = self.config
        if any(p.is_taught for p in profiles):
            return None if done else stage_of(UPDATE, profiles, config.sampler, config.update_epochs, config, sampler)
        if not done:
            first = stage_of("round-1", profiles, config.sampler, config.budget_epochs, config, sampler)
            later = f"after round-1, for at most {config.most_rounds - 1} rounds, evaluations decide which tasks go on, and from which checkpoint"
            return first.model_copy(update={"note": later if config.most_rounds > 1 else ""})
        if len(done) == config.most_rounds or not done[-1].evaluations:
            return None
        tasks, start = after(done)
        if len(tasks) < config.least_tasks:
            return None
        active = [p for p in profiles if p.name in tasks]
        stage = stage_of(f"round-{len(done) + 1}", active, config.sampler, config.budget_epochs, config, sampler)
        left_out = [name for name in done[-1].stage.tasks or () if name not in tasks]
        note = (
            f"{stage.name} goes on from {start}, where {', '.join(left_out)} scored best, without {'it' if len(left_out) == 1 else 'them'}"
        )
        return stage.model_copy(update={"start": start, "note": note if left_out else ""})

    def keep(self, done: Sequence[StageDone], evaluations: Sequence[Evaluation]) -> set[str]:
        if any(e.stage == UPDATE for e in evaluations):
            return set()
        if not done:
            points, tasks = list(evaluations), {task for e in evaluations for task in e.scores}
        else:
            active, start = after(done)
            points, tasks = points_of(done, start, evaluations), set(active)
        curves = [curve(points, task) for task in tasks]
        begun_at = [] if evaluations else points  # until the round has an evaluation of its own, a resumed run begins it anew
        return {points[max(scores)[1]].checkpoint for scores in curves if scores} | {e.checkpoint for e in begun_at}


def after(done: Sequence[StageDone]) -> tuple[tuple[str, ...], str]:
    """The tasks that go on after the last round, and where from: `last`, or the checkpoint at which the tasks left out scored best."""
    stage = done[-1].stage
    tasks = stage.tasks or ()
    points = points_of(done[:-1], stage.start, done[-1].evaluations)
    curves = {task: curve(points, task) for task in tasks}
    peaks = {task: max(scores)[1] for task, scores in curves.items() if scores and max(scores) != scores[-1]}
    if not peaks:
        return tasks, "last"
    first = min(peaks.values())
    return tuple(task for task in tasks if peaks.get(task) != first), points[first].checkpoint


def points_of(done: Sequence[StageDone], start: str, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluation that a round began at, unless it began at the base, and those of its own."""
    earlier = [e for d in done for e in d.evaluations]
    begun_at = earlier[-1:] if start == "last" else [e for e in earlier if e.checkpoint == start]
    return [*begun_at, *evaluations]


def curve(points: Sequence[Evaluation], task: str) -> list[tuple[float, int]]:
    """A task's scores and the numbers of their points, where it was scored: the greatest is its best, the latest of equals."""
    return [(score, number) for number, point in enumerate(points) if (score := point.scores.get(task)) is not None]


@hookimpl
def register_schedulers() -> list[type[StageScheduler]]:
    return [Msft]
