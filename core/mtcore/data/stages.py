"""Turn what a scheduler decides into compiled stages: tasks, mixture, plan; a stream that needs no torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mtcore.contracts import Sampler, SamplerFactory, StageScheduler
from mtcore.data.documents import Documents
from mtcore.data.mixture import MixturePlan, PlanTask
from mtcore.data.permutation import Ints
from mtcore.errors import ConfigError, MtcoreError, RunError
from mtcore.types import Evaluation, Ledger, Mixture, Signal, Stage, StageDone, TaskProfile


@dataclass(frozen=True)
class CompiledStage:
    """A stage with its mixture and, where it is decided, its plan."""

    number: int
    stage: Stage
    mixture: Mixture | None
    """What is in force at the stage's start, and for static samplers throughout."""
    plan: MixturePlan | None
    steps: int | None
    needs: frozenset[Signal] = frozenset()
    """What its sampler is told at every border; empty where shares never change."""
    later: tuple[Mixture, ...] = ()
    """What came into force at its first border, its second, …, as far as that is decided."""

    @property
    def decided(self) -> tuple[Mixture, MixturePlan, int]:
        """Mixture, plan and steps of a stage that can be trained; raises RunError for one that waits for references."""
        if self.mixture is None or self.plan is None or self.steps is None:
            raise RunError(f"stage {self.stage.name!r} is not decided: it needs references, or [resource] in the run file")
        return self.mixture, self.plan, self.steps

    def border_after(self, draws: int) -> int | None:
        """The next position at which the sampler is asked again; None where it is not, or not before the stage's end."""
        if self.plan is None or self.plan.every is None:
            return None
        border = (draws // self.plan.every + 1) * self.plan.every
        return border if border < self.plan.draws else None

    @property
    def undecided(self) -> int | None:
        """The border from which on shares are still to be decided (`StageStream.extend`); None where all are."""
        return None if self.plan is None or self.plan.known == self.plan.draws else self.plan.known

    def mixture_at(self, draws: int) -> Mixture:
        """What is in force for the draw at this position: its loss weights are those of the step that begins there."""
        first, plan, _ = self.decided
        number = 0 if plan.every is None else draws // plan.every
        if not 0 <= draws < plan.known:
            raise RunError(f"stage {self.stage.name!r} is decided for draws up to {plan.known:,}; {draws:,} is asked for")
        return (first, *self.later)[number]

    def extended(self, mixture: Mixture) -> "CompiledStage":
        """This stage with the mixture of its first undecided border."""
        _, plan, _ = self.decided
        return replace(self, plan=plan.changed([mixture.shares[t.name] for t in plan.tasks]), later=(*self.later, mixture))


class StageStream:
    """Walks a scheduler's stages for one group of tasks under one cap of optimizer steps.

    `documents` gives the document of every train row of a task (`mtcore.data.documents.document_keys`); it is asked by stages that bring
    rows of one document together, and by no others.
    """

    def __init__(
        self,
        scheduler: StageScheduler,
        sampler: SamplerFactory,
        profiles: Sequence[TaskProfile],
        *,
        seed: int,
        max_steps: int | None,
        documents: Callable[[str], Ints] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._sampler = sampler
        self._profiles = {p.name: p for p in profiles}
        self._seed = seed
        self._max_steps = max_steps
        self._documents = documents

    def keep(self, done: Sequence[StageDone], evaluations: Sequence[Evaluation]) -> set[str]:
        """Checkpoints that a later stage may start from."""
        return self._scheduler.keep(done, evaluations)

    def next(self, done: Sequence[StageDone], ledger: Ledger) -> CompiledStage | None:
        """The stage after `done`, cut short where the cap on steps ends it, or None at the end.

        What the ledger says was in force in this stage is taken from there and never asked for again.
        """
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
        compiled = self._compile(stage, done, ledger)
        while compiled.undecided is not None and (mixture := _used(ledger, compiled.number, compiled.undecided)) is not None:
            compiled = compiled.extended(self._sound(mixture, compiled.stage))
        return compiled

    def extend(self, compiled: CompiledStage, ledger: Ledger) -> CompiledStage:
        """`compiled` with one more mixture, which its sampler decides from the ledger, at its first undecided border.

        The caller notes it in the ledger as `LedgerEntry(stage=…, number=compiled.number, position=border, mixture=compiled.later[-1])`.
        The length of a stage is decided at its start: `Mixture.draws` is not looked at here.
        """
        if (border := compiled.undecided) is None:
            raise RunError(f"stage {compiled.stage.name!r} has no border at which its shares are still to be decided")
        return compiled.extended(self._mixture(compiled.stage, compiled.number, border, ledger))

    def replay(self, done: Sequence[StageDone], ledger: Ledger) -> list[CompiledStage]:
        """The stages that were done, with all the mixtures that the ledger says were in force."""
        stages = (self.next(done[:number], ledger) for number in range(len(done)))
        return [compiled for compiled in stages if compiled is not None]

    def _compile(self, stage: Stage, done: Sequence[StageDone], ledger: Ledger) -> CompiledStage:
        known = {e.checkpoint for d in done for e in d.evaluations}
        if stage.start not in ("base", "last") and stage.start not in known:
            raise ConfigError(
                f"stage {stage.name!r} starts from {stage.start!r}, which is neither 'base' nor 'last' nor a checkpoint of an earlier stage "
                f"({', '.join(sorted(known)) or 'there is none'})"
            )
        profiles = [self._profiles[name] for name in stage.tasks or ()]
        mixture, sampler = self._mixture(stage, len(done), 0, ledger), self._sampler(stage.sampler)
        if stage.draws is None:
            return CompiledStage(len(done), stage, mixture, None, None, sampler.needs)
        if mixture.draws is not None:
            stage = stage.model_copy(update={"draws": min(stage.draws, mixture.draws)})
        documents = self._shared(stage)
        if documents is not None and not documents.is_shared:
            stage = stage.model_copy(update={"note": "; ".join(filter(None, [stage.note, "no two rows share a document"]))})
        before = {p.name: sum(d.draws.get(p.name, 0) for d in done) for p in profiles}
        plan = MixturePlan(
            seed=self._seed,
            stage=len(done),
            tasks=tuple(PlanTask(p.name, p.train_rows, mixture.shares[p.name], before[p.name]) for p in profiles),
            draws=int(stage.draws or 0),
            unit=stage.examples_per_step if stage.grouping == "one-task" else 1,
            every=_border_distance(sampler, stage),
            documents=documents,
        )
        return CompiledStage(len(done), stage, mixture, plan, -(-plan.draws // stage.examples_per_step), sampler.needs)

    def _shared(self, stage: Stage) -> Documents | None:
        if stage.grouping != "shared-documents":
            return None
        if self._documents is None:
            raise ConfigError(f"stage {stage.name!r} groups rows by shared documents; its stream was given no documents")
        return Documents({name: self._documents(name) for name in stage.tasks or ()})

    def _mixture(self, stage: Stage, number: int, position: int, ledger: Ledger) -> Mixture:
        """What is in force from a position on: what the ledger says was, or what the sampler says now."""
        if (used := _used(ledger, number, position)) is not None:
            return self._sound(used, stage)
        profiles = [self._profiles[name] for name in stage.tasks or ()]
        return self._sound(self._sampler(stage.sampler).mix(profiles, stage.draws or stage.epoch_draws or 1, ledger), stage)

    def _sound(self, mixture: Mixture, stage: Stage) -> Mixture:
        shares = mixture.shares
        if sorted(shares) != sorted(stage.tasks or ()) or not (abs(sum(shares.values()) - 1) <= 1e-9 and min(shares.values()) >= 0):
            raise ConfigError(
                f"sampler {stage.sampler.use!r} must give each of {list(stage.tasks or ())} a share of at least 0, together 1; it gave {shares}"
            )
        wrong = {n: w for n, w in mixture.loss_weights.items() if n not in shares or not (math.isfinite(w) and w > 0)}
        if wrong:
            raise ConfigError(
                f"sampler {stage.sampler.use!r} must give loss weights that are finite and above 0, to none but {list(stage.tasks or ())}; it gave "
                f"{wrong}. A task that is not to be trained gets share 0"
            )
        return mixture


def _used(ledger: Ledger, number: int, position: int) -> Mixture | None:
    """The mixture that came into force at a position of a stage, where it did."""
    return next((e.mixture for e in ledger.entries if e.mixture is not None and (e.number, e.position) == (number, position)), None)


def _border_distance(sampler: Sampler, stage: Stage) -> int | None:
    """Draws between two borders: whole optimizer steps, so that no step is divided between two mixtures."""
    if not sampler.needs:
        return None
    if sampler.every < 1:
        raise ConfigError(f"sampler {sampler.name!r} is asked again every {sampler.every} draws; that must be at least 1")
    return -(-sampler.every // stage.examples_per_step) * stage.examples_per_step


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
