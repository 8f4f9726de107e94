"""Scenes that a stage scheduler is tried in: tasks, and what becomes of them in every stage."""

from collections.abc import Mapping
from dataclasses import dataclass

from mtcore.testing.toys import toy_profiles
from mtcore.types import Cost, Evaluation, Mixture, Resource, Stage, StageDone, TaskProfile

ROWS = 200


@dataclass(frozen=True)
class Scene:
    """Tasks that a scheduler is asked about, and what becomes of them."""

    resources: tuple[Resource, ...]
    taught: int = 0
    """How many of them the model answers already."""
    overfits: bool = False
    """In every stage another task is best at the first evaluation and falls; elsewhere all rise."""

    @property
    def profiles(self) -> list[TaskProfile]:
        tasks = toy_profiles([ROWS * (number + 1) for number in range(len(self.resources))], self.resources)
        return [p.model_copy(update={"is_taught": number < self.taught}) for number, p in enumerate(tasks)]

    def trained(self, stage: Stage, number: int) -> StageDone:
        """A stage as a run would leave it, the `number`-th from 0: every task drawn alike, evaluated twice."""
        tasks, names, draws = self.profiles, stage.tasks or (), stage.draws or 0
        falling = tasks[number % len(tasks)].name if self.overfits else None
        evaluations = [
            Evaluation(
                stage=stage.name,
                step=step,
                draws=draws * part // 2,
                epoch=part / 2,
                scores={p.name: 0.5 + (-0.1 if p.name == falling else 0.1) * part for p in tasks},
                qualified=part,
                average=0.5 + 0.1 * part,
                losses={p.name: 1.0 / part for p in tasks},
                checkpoint=f"ckpt-{2 * number + part}",
            )
            for part, step in ((1, 10), (2, 20))
        ]
        return StageDone(
            stage=stage,
            mixture=Mixture(shares={name: 1 / len(names) for name in names}),
            steps=20 if names else 0,
            draws={name: draws // len(names) for name in names},
            evaluations=tuple(evaluations) if names else (),
            ended="complete",
            cost=Cost(steps=20, examples=draws),
        )


SCENES: Mapping[str, Scene] = {
    "one task": Scene(("high",)),
    "high- and low-resource tasks": Scene(("high", "low", "low", "high")),
    "low-resource tasks alone": Scene(("low", "low", "low")),
    "high-resource tasks alone": Scene(("high", "high")),
    "tasks that overfit in turn": Scene(("low", "high", "low"), overfits=True),
    "a task added to a live bundle": Scene(("low", "high", "low"), taught=2),
}
