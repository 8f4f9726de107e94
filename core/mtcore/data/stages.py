"""Turn what a scheduler decides into compiled stages: tasks, mixture, plan; a stream that needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtcore.contracts import Sampler, SamplerFactory, StageScheduler
from mtcore.data.mixture import MixturePlan, PlanTask
from mtcore.errors import ConfigError, MtcoreError, RunError
from mtcore.types import Evaluation, Ledger, Mixture, Stage, StageDone, TaskProfile


@dataclass(frozen=True)
class CompiledStage:
    """A stage with its mixture and, where it is decided, its plan."""

    number: int
    stage: Stage
    mixture: Mixture | None
    plan: MixturePlan | None
    steps: int | None

    @property
    def decided(self) -> tuple[Mixture, MixturePlan, int]:
        """Mixture, plan and steps of a stage that can be trained; raises RunError for one that waits for references."""
        if self.mixture is None or self.plan is None or self.steps is None:
            raise RunError(f"stage {self.stage.name!r} is not decided: it needs references, or [resource] in the run file")
        return self.mixture, self.plan, self.steps


class StageStream:
    """Walks a scheduler's stages for one group of tasks under one cap of optimizer steps."""

    def __init__(
        self, scheduler: StageScheduler, sampler: SamplerFactory, profiles: Sequence[TaskProfile], *, seed: int, max_steps: int | None
    ) -> None:
        self._scheduler = scheduler
        self._sampler = sampler
        self._profiles = {p.name: p for p in profiles}
        self._seed = seed
        self._max_steps = max_steps

    def keep(self, done: Sequence[StageDone], evaluations: Sequence[Evaluation]) -> set[str]:
        """Checkpoints that a later stage may start from."""
        return self._scheduler.keep(done, evaluations)

    def next(self, done: Sequence[StageDone], ledger: Ledger) -> CompiledStage | None:
        """The stage after `done`, cut short where the cap on steps ends it, or None at the end."""
        left = None if self._max_steps is None else self._max_steps - sum(d.steps for d in done)
        stage = self._scheduler.next_stage(list(self._profiles.values()), done, self._sampler)
        if stage is None or (left is not None and left <= 0):
            return None
        if stage.tasks is None:
            return CompiledStage(len(done), stage, None, None, None)
        if stage.draws is not None and left is not None:
            # an earlier stage that is not decided yet may take any part of its longest length from the cap
            open_steps = sum(-(-(d.stage.epoch_draws or 0) // d.stage.examples_per_step) for d in done if d.stage.tasks is None)
            is_open = open_steps > 0 and stage.draws > (left - open_steps) * stage.examples_per_step
            draws = None if is_open else min(stage.draws, left * stage.examples_per_step)
            stage = stage.model_copy(update={"draws": draws})
        return self._compile(stage, done, ledger)

    def _compile(self, stage: Stage, done: Sequence[StageDone], ledger: Ledger) -> CompiledStage:
        known = {e.checkpoint for d in done for e in d.evaluations}
        if stage.start not in ("base", "last") and stage.start not in known:
            raise ConfigError(
                f"stage {stage.name!r} starts from {stage.start!r}, which is neither 'base' nor 'last' nor a checkpoint of an earlier stage "
                f"({', '.join(sorted(known)) or 'there is none'})"
            )
        profiles = [self._profiles[name] for name in stage.tasks or ()]
        mixture = self._mixture(self._sampler(stage.sampler), profiles, stage, ledger)
        if stage.draws is None:
            return CompiledStage(len(done), stage, mixture, None, None)
        if mixture.draws is not None:
            stage = stage.model_copy(update={"draws": min(stage.draws, mixture.draws)})
        before: Mapping[str, int] = {p.name: sum(d.draws.get(p.name, 0) for d in done) for p in profiles}
        plan = MixturePlan(
            seed=self._seed,
            stage=len(done),
            tasks=tuple(PlanTask(p.name, p.train_rows, mixture.shares[p.name], before[p.name]) for p in profiles),
            draws=int(stage.draws or 0),
            unit=stage.examples_per_step if stage.grouping == "one-task" else 1,
        )
        return CompiledStage(len(done), stage, mixture, plan, -(-plan.draws // stage.examples_per_step))

    def _mixture(self, sampler: Sampler, profiles: Sequence[TaskProfile], stage: Stage, ledger: Ledger) -> Mixture:
        if sampler.needs:
            raise ConfigError(
                f"sampler {sampler.name!r} changes shares with {', '.join(sorted(sampler.needs))}; "
                "this version compiles a stage's shares once, at its start"
            )
        mixture = sampler.mix(profiles, stage.draws or stage.epoch_draws or 1, ledger)
        names = [p.name for p in profiles]
        if sorted(mixture.shares) != sorted(names) or abs(sum(mixture.shares.values()) - 1) > 1e-9 or min(mixture.shares.values()) < 0:
            raise ConfigError(
                f"sampler {sampler.name!r} must give each of {names} a share of at least 0, together 1; it gave {mixture.shares}"
            )
        return mixture


MOST_STAGES = 50


def walk(stream: StageStream) -> list[CompiledStage]:
    """The stages that can be told before any of them has run, open ones taken as passed.

    Raises what is wrong with them. A scheduler that decides by evaluations cannot be followed beyond its first stage: there the walk ends.
    """
    done: list[StageDone] = []
    stages: list[CompiledStage] = []
    while len(stages) < MOST_STAGES:
        try:
            compiled = stream.next(done, Ledger())
        except MtcoreError:
            raise
        except Exception:
            if not stages:
                raise
            break
        if compiled is None:
            break
        stages.append(compiled)
        done.append(
            StageDone(
                stage=compiled.stage,
                mixture=compiled.mixture or Mixture(shares={}),
                steps=compiled.steps or 0,
                draws=compiled.plan.drawn() if compiled.plan else {},
                evaluations=(),
                ended="complete",
            )
        )
    return stages
