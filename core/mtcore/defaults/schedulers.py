"""Stage schedulers: the paper's two stages, one mixture, and each task by itself."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mtcore.contracts import Options, SamplerFactory, StageScheduler
from mtcore.types import SamplerUse, Stage, StageDone, TaskProfile

CAPPED_TEMPERATURE = SamplerUse.model_validate({"use": "temperature", "tau": 2.0, "cap": 20000})
"""The paper's mixture on CLUE (table 6)."""


class Recipe(Options):
    """What every stage of the box needs; the rates are the paper's (table 6), the global batch is ours."""

    learning_rate: float = Field(default=3e-5, gt=0)
    """The highest rate of a stage, after warm-up."""
    examples_per_step: int = Field(default=64, gt=0)
    """Draws an optimizer step, over all processes."""
    evaluate_epochs: float = Field(default=1.0, gt=0)
    """Epochs of a stage between two evaluations."""
    grouping: Literal["mixed", "one-task", "shared-documents"] = "mixed"
    """Whether a step mixes tasks freely, is one task's, or brings rows that share a document together, which changes the order of rows."""


def stage_of(
    name: str,
    profiles: Sequence[TaskProfile],
    use: SamplerUse,
    epochs: float,
    recipe: Recipe,
    samplers: SamplerFactory,
    *,
    patience: int | None = None,
) -> Stage:
    """A stage of these tasks that is so many of the sampler's epochs long."""
    epoch = samplers(use).epoch_draws(profiles)
    return Stage(
        name=name,
        tasks=tuple(p.name for p in profiles),
        sampler=use,
        draws=max(1, round(epoch * epochs)),
        epoch_draws=epoch,
        examples_per_step=recipe.examples_per_step,
        learning_rate=recipe.learning_rate,
        evaluate_every=max(1, round(epoch * recipe.evaluate_epochs)),
        grouping=recipe.grouping,
        patience=patience,
    )


class TwoStage(StageScheduler):
    """High-resource tasks first, then the mixture of all (paper, section 4.2).

    Stage 1 waits for references (or `[resource]`) to say which tasks are high-resource, and is skipped where none is.
    A model that answers some of the tasks already gets one shorter stage of the mixture.
    """

    name = "two-stage"

    class Config(Recipe):
        stage1: SamplerUse = SamplerUse(use="instance-balanced")
        """How the first stage draws the high-resource tasks."""
        stage1_epochs: float = Field(default=1.0, gt=0)
        """Length of the first stage, in its sampler's epochs."""
        stage2: SamplerUse = CAPPED_TEMPERATURE
        """How the second stage draws all tasks."""
        stage2_epochs: float = Field(default=10.0, gt=0)
        """Length of the second stage, in its sampler's epochs."""
        update_epochs: float = Field(default=3.0, gt=0)
        """Epochs of stage 2's mixture in which a live bundle learns new tasks; its own are drawn along, so that they are not forgotten."""

    config: Config

    def next_stage(self, profiles: Sequence[TaskProfile], done: Sequence[StageDone], sampler: SamplerFactory) -> Stage | None:
        if any(p.is_taught for p in profiles):
            return None if done else stage_of("update", profiles, self.config.stage2, self.config.update_epochs, self.config, sampler)
        finished = {d.stage.name for d in done}
        if "high-resource" not in finished and "mixture" not in finished:
            if any(p.resource == "unknown" for p in profiles):
                whole = stage_of("high-resource", profiles, self.config.stage1, self.config.stage1_epochs, self.config, sampler)
                return whole.model_copy(update={"tasks": None, "draws": None, "epoch_draws": whole.draws})
            if high := [p for p in profiles if p.resource == "high"]:
                return stage_of("high-resource", high, self.config.stage1, self.config.stage1_epochs, self.config, sampler)
        if "mixture" not in finished:
            stage = stage_of("mixture", profiles, self.config.stage2, self.config.stage2_epochs, self.config, sampler)
            empty = "" if finished else "no task is high-resource, so stage 1 is empty: this is the method without its two stages"
            return stage.model_copy(update={"note": empty})
        return None


class MixtureStage(StageScheduler):
    """One stage over the mixture of all tasks: the baselines, and the paper's method without its first stage."""

    name = "mixture"

    class Config(Recipe):
        sampler: SamplerUse = CAPPED_TEMPERATURE
        """How the stage draws the tasks."""
        epochs: float = Field(default=10.0, gt=0)
        """Length of the stage, in its sampler's epochs."""
        update_epochs: float = Field(default=3.0, gt=0)
        """Epochs of the mixture in which a live bundle learns new tasks."""

    config: Config

    def next_stage(self, profiles: Sequence[TaskProfile], done: Sequence[StageDone], sampler: SamplerFactory) -> Stage | None:
        if done:
            return None
        is_update = any(p.is_taught for p in profiles)
        name, epochs = ("update", self.config.update_epochs) if is_update else ("mixture", self.config.epochs)
        return stage_of(name, profiles, self.config.sampler, epochs, self.config, sampler)


class SingleTask(StageScheduler):
    """Each task by itself with early stopping: how references are measured, and the baseline that deploys them."""

    name = "single-task"
    alone = True

    class Config(Recipe):
        epochs: float = Field(default=10.0, gt=0)
        """The longest that a task is trained."""
        patience: int | None = Field(default=3, gt=0)
        """Evaluations without a new best after which it stops earlier."""

    config: Config

    def next_stage(self, profiles: Sequence[TaskProfile], done: Sequence[StageDone], sampler: SamplerFactory) -> Stage | None:
        if done:
            return None
        use = SamplerUse(use="instance-balanced")
        return stage_of("single-task", profiles, use, self.config.epochs, self.config, sampler, patience=self.config.patience)
