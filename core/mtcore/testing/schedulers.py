"""The checks of a stage scheduler: stages that end, that can be trained, and that a resumed run meets again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest import SkipTest

from mtcore.contracts import Sampler, SamplerFactory, StageScheduler
from mtcore.data.stages import MOST_STAGES, StageStream
from mtcore.defaults.samplers import ClassBalanced, InstanceBalanced, Temperature
from mtcore.errors import UnknownName
from mtcore.testing.check import Body, Check, Failed, checks
from mtcore.testing.component import SHARED, ComponentUnderTest
from mtcore.testing.scenes import SCENES, Scene
from mtcore.types import Evaluation, Ledger, SamplerUse, Stage, StageDone, TaskProfile


@dataclass(frozen=True)
class SchedulerUnderTest(ComponentUnderTest):
    """A scheduler with the samplers that its stages may name, and the stages it makes where resources are known."""

    sampler: SamplerFactory | None = None

    @property
    def scenes(self) -> dict[str, list[TaskProfile]]:
        """Profiles by name of the scene; one task where the scheduler trains each task by itself."""
        names = list(SCENES)[: 1 if self.cls.alone else None]  # type: ignore[attr-defined]
        return {name: SCENES[name].profiles for name in names}

    @cached_property
    def walks(self) -> dict[str, list[StageDone] | Exception]:
        return {name: self._walked(SCENES[name]) for name in self.scenes}

    @property
    def ended(self) -> dict[str, list[StageDone]]:
        """Stages by scene; skips the check where they never end."""
        if any(isinstance(walk, Exception) for walk in self.walks.values()):
            raise SkipTest("there is no whole list of stages to look at: see terminates")
        return {name: walk for name, walk in self.walks.items() if not isinstance(walk, Exception)}

    def next(self, scheduler: StageScheduler, tasks: Sequence[TaskProfile], done: Sequence[StageDone]) -> Stage | None:
        return scheduler.next_stage(list(tasks), list(done), self.sampler or box_samplers)

    def walk(self, scene: Scene) -> list[StageDone]:
        """All stages, each as if it had been trained and evaluated."""
        scheduler, done = self.build(), list[StageDone]()
        while (stage := self.next(scheduler, scene.profiles, done)) is not None:
            done.append(scene.trained(stage, len(done)))
            if len(done) > MOST_STAGES:
                raise Failed(f"after {MOST_STAGES} stages there is still another", "return None once the stages in `done` are enough")
        return done

    def _walked(self, scene: Scene) -> list[StageDone] | Exception:
        try:
            return self.walk(scene)
        except Exception as error:
            return error


def scheduler_checks(
    cls: type[StageScheduler],
    *,
    options: Mapping[str, Any] = {},
    sampler: SamplerFactory | None = None,
    module: str | None = "",
    expected_failures: Mapping[str, str] = {},
) -> list[Check]:
    """Every check of a scheduler, built with `options`; `sampler` builds the samplers that its stages name (those of the box where not given)."""
    bodies: list[Body] = [
        terminates,
        tasks_are_known,
        every_task_trained,
        numbers_positive,
        decided_with_resources,
        unknown_resources,
        stages_compile,
        starts_are_kept,
        pure,
        resumable,
        *SHARED,
    ]
    return checks(bodies, SchedulerUnderTest(cls, options, module, sampler), cls.name, expected_failures)


def box_samplers(use: SamplerUse) -> Sampler:
    """A sampler of the box by its name."""
    known: dict[str, type[Sampler]] = {cls.name: cls for cls in (InstanceBalanced, ClassBalanced, Temperature)}
    if use.use not in known:
        raise UnknownName(f"no sampler is called {use.use!r} here: pass sampler=… to scheduler_checks. There are {', '.join(known)}.")
    return known[use.use](known[use.use].Config(**use.options))


def terminates(subject: SchedulerUnderTest) -> str:
    """The stages come to an end."""
    for name, walk in subject.walks.items():
        if isinstance(walk, Failed):
            raise Failed(f"{name}: {walk}", walk.fix)
        if isinstance(walk, Exception):
            raise walk
    return "; ".join(f"{name}: {len(walk)}" for name, walk in subject.ended.items())


def tasks_are_known(subject: SchedulerUnderTest) -> str:
    """A stage trains tasks that it was given, each once, and at least one."""
    for name, walk in subject.ended.items():
        known = {p.name for p in subject.scenes[name]}
        for stage in (done.stage for done in walk):
            tasks = stage.tasks or ()
            if strange := sorted(set(tasks) - known):
                raise Failed(
                    f"{name}: stage {stage.name!r} trains {strange[0]}, which it was not given", "choose among the profiles that are passed"
                )
            if len(set(tasks)) < len(tasks) or stage.tasks == ():
                raise Failed(f"{name}: stage {stage.name!r} trains {tasks}", "name each task once, and skip a stage that would have none")
    return f"stages: {sum(map(len, subject.ended.values()))}"


def every_task_trained(subject: SchedulerUnderTest) -> str:
    """Every task is trained in some stage; in an update, every new one."""
    for name, walk in subject.ended.items():
        seen = {task for done in walk for task in done.stage.tasks or ()}
        if left := [p.name for p in subject.scenes[name] if not p.is_taught and p.name not in seen]:
            raise Failed(f"{name}: no stage trains {', '.join(left)}", "let a stage train every task: each of them will be judged")
    return "; ".join(subject.ended)


def numbers_positive(subject: SchedulerUnderTest) -> str:
    """Draws, sizes, rates and spans of a stage are positive."""
    for stage in (done.stage for walk in subject.ended.values() for done in walk):
        table = {
            "draws": stage.draws,
            "epoch_draws": stage.epoch_draws,
            "examples_per_step": stage.examples_per_step,
            "learning_rate": stage.learning_rate,
            "evaluate_every": stage.evaluate_every,
            "patience": stage.patience,
        }
        if wrong := {key: value for key, value in table.items() if value is not None and not (math.isfinite(value) and value > 0)}:
            raise Failed(f"stage {stage.name!r} has {wrong}", "give positive numbers; None where draws or spans are not decided")
    return f"stages: {sum(map(len, subject.ended.values()))}"


def decided_with_resources(subject: SchedulerUnderTest) -> str:
    """Where resources are known, every stage says its tasks and its draws."""
    for name, walk in subject.ended.items():
        for stage in (done.stage for done in walk):
            if stage.tasks is None or stage.draws is None:
                raise Failed(
                    f"{name}: stage {stage.name!r} leaves tasks or draws open", "decide them once no profile's resource is 'unknown'"
                )
    return f"stages: {sum(map(len, subject.ended.values()))}"


def unknown_resources(subject: SchedulerUnderTest) -> str:
    """Where resources are unknown, stages stand open, and nothing raises."""
    unknown = Scene(("unknown",) if subject.cls.alone else ("unknown",) * 3)  # type: ignore[attr-defined]
    try:
        walk = subject.walk(unknown)
    except Failed:
        raise SkipTest("the stages do not end: see terminates") from None
    except Exception as error:
        raise Failed(
            f"{type(error).__name__}: {error}", "return a Stage with tasks=None and draws=None for what is decided by resources"
        ) from error
    undecided = sum(done.stage.tasks is None for done in walk)
    return f"stages: {len(walk)}, {undecided} of them open"


def stages_compile(subject: SchedulerUnderTest) -> str:
    """Every stage can be laid out as a plan."""
    for earlier in (tasks_are_known, numbers_positive, decided_with_resources):
        try:
            earlier(subject)
        except Failed:
            raise SkipTest(f"the stages are wrong already: see {earlier.__name__.replace('_', '-')}") from None
    for name, walk in subject.ended.items():
        stream = StageStream(subject.build(), subject.sampler or box_samplers, subject.scenes[name], seed=1, max_steps=None)
        for number in range(len(walk)):
            try:
                stream.next(walk[:number], Ledger())
            except Exception as error:
                raise Failed(
                    f"{name}: {type(error).__name__}: {error}",
                    "name an installed sampler; start from 'base', 'last' or a checkpoint in `done`",
                ) from error
    return f"stages: {sum(map(len, subject.ended.values()))}"


def starts_are_kept(subject: SchedulerUnderTest) -> str:
    """A checkpoint that a stage starts from was named by `keep` for as long as others were made."""
    named = 0
    for name, walk in subject.ended.items():
        scheduler, made, left = subject.build(), list[Evaluation](), set[str]()
        for number, done in enumerate(walk):
            start = done.stage.start
            if start in {e.checkpoint for e in made}:
                named += 1
                if start not in left:
                    raise Failed(
                        f"{name}: stage {done.stage.name!r} starts from {start!r}, which is gone: keep() did not name it after every evaluation",
                        "let keep() name whatever next_stage may choose, from the evaluation that made it on",
                    )
            for seen in range(len(done.evaluations) + 1):  # 0: a checkpoint between two evaluations
                made += done.evaluations[max(0, seen - 1) : seen]
                always = {made[-1].checkpoint, max(made, key=lambda e: e.rank).checkpoint} if made else set[str]()
                left = (left | always) & (scheduler.keep(walk[:number], done.evaluations[:seen]) | always)
    return f"starts from a checkpoint: {named}"


def pure(subject: SchedulerUnderTest) -> str:
    """A scheduler says the same when it is asked again."""
    for name, walk in subject.ended.items():
        scheduler = subject.build()
        for number in [*range(len(walk) + 1), *reversed(range(len(walk) + 1))]:
            expected = walk[number].stage if number < len(walk) else None
            if (stage := subject.next(scheduler, subject.scenes[name], walk[:number])) != expected:
                raise Failed(
                    f"{name}: after {number} stages it said {_told(expected)} and now says {_told(stage)}",
                    "decide from the arguments alone: what has happened stands in `done`",
                )
    return f"questions: {sum(2 * len(walk) + 2 for walk in subject.ended.values())}"


def resumable(subject: SchedulerUnderTest) -> str:
    """Built anew, with `done` read back from disk, it goes on alike."""
    for name, walk in subject.ended.items():
        for number in range(1, len(walk) + 1):
            kept = [StageDone.model_validate_json(done.model_dump_json()) for done in walk[:number]]
            expected = walk[number].stage if number < len(walk) else None
            try:
                stage = subject.next(subject.build(), subject.scenes[name], kept)
            except Exception as error:
                raise Failed(f"{name}: {type(error).__name__}: {error}", "set attributes in the constructor alone") from error
            if stage != expected:
                raise Failed(
                    f"{name}: after {number} stages it went on with {_told(expected)}, resumed with {_told(stage)}",
                    "set attributes in the constructor alone, and compare by value",
                )
    return f"resumed after stages: {sum(map(len, subject.ended.values()))}"


def _told(stage: Stage | None) -> str:
    return "the end" if stage is None else f"{stage.name!r} ({stage.draws} draws at {stage.learning_rate:g})"
