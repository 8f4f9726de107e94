"""Prepare: read and check the rows of every task that a configuration names, and describe them as profiles; needs no torch."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mtcore import events
from mtcore.bundle import bundled
from mtcore.config import RowLimits, RunConfig
from mtcore.contracts import Array, Launcher, Method, Metric, StageScheduler, TaskFilter
from mtcore.data.checks import DataReport, bag_of_words_answers, check_rows, majority_answer, shared_rows
from mtcore.data.documents import document_keys
from mtcore.data.permutation import Ints
from mtcore.data.rows import BadRow, digest, read_task
from mtcore.data.stages import CompiledStage, StageStream, walk
from mtcore.errors import ConfigError
from mtcore.evaluation.evaluate import Exam, score, statistics
from mtcore.evaluation.metrics import find_metric
from mtcore.live import LiveBundle, Update, plan_update
from mtcore.registry import Entry, Plugin, Registry
from mtcore.types import Example, Group, MethodUse, TaskData, TaskProfile, Use

Emit = Callable[[events.Event], None]


@dataclass(frozen=True)
class Floors:
    """What can be scored without a language model, on the rows that decide."""

    majority: float
    bag_of_words: float | None
    majority_statistics: Array


@dataclass(frozen=True)
class PreparedTask:
    """A task with its rows, what was found in them, and how it is scored."""

    data: TaskData
    plugin: Plugin
    metric: Metric
    beside: Mapping[str, Metric]
    findings: DataReport
    quarantined: Sequence[BadRow]

    @property
    def digest(self) -> str:
        return self.data.digest

    @property
    def judged_on(self) -> tuple[Example, ...]:
        """The rows of the verdict: test where there is one, else validation."""
        return self.data.test or self.data.validation

    @property
    def warnings(self) -> list[str]:
        told = self.findings.warnings(self.data)
        if self.quarantined:
            told.insert(0, f"{len(self.quarantined)} malformed rows set aside (first: {self.quarantined[0].reason})")
        return told

    @cached_property
    def floors(self) -> Floors:
        exam = Exam(self.data.spec, self.metric, self.judged_on)
        majority = statistics(exam, [majority_answer(self.data)] * len(self.judged_on))
        words = bag_of_words_answers(self.data, self.judged_on)
        return Floors(
            majority=score(exam, [majority_answer(self.data)] * len(self.judged_on)),
            bag_of_words=None if words is None else score(exam, words),
            majority_statistics=majority,
        )

    @cached_property
    def documents(self) -> Ints:
        """The document of every train row, for stages that bring rows of one document together."""
        return document_keys(self.data)

    def exam(self, examples: Sequence[Example], bar: float | None = None) -> Exam:
        return Exam(self.data.spec, self.metric, examples, bar)


@dataclass(frozen=True)
class Resolved:
    """One variant with its components built, its rows read and its tasks grouped: all that is known without a model."""

    name: str
    config: RunConfig
    method: Method
    scheduler: StageScheduler
    reference: MethodUse
    """How tasks are measured alone: by the method that the variant's method names, else by itself."""
    tasks: Mapping[str, PreparedTask]
    profiles: Sequence[TaskProfile]
    groups: Sequence[Group]
    stages: Mapping[str, Sequence[CompiledStage]]
    """By group: what is known of its stages before references."""
    components: Mapping[str, Any]
    """Method, scheduler and filter with all their options, defaults included."""
    warnings: Sequence[str]
    ahead: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    """Optimizer steps by work (`reference clue/tnews`, `ours/classification`), at most: patience may end it sooner."""
    update: Update | None = field(default=None, kw_only=True)
    """The live bundle that training starts from, and what of it changes; only its group is then there."""


@dataclass
class Preparer:
    """Resolves variants; reads each task once, however many of them use it."""

    registry: Registry
    emit: Emit
    live: LiveBundle | None = None
    """What is to be updated; None where models start from the base."""
    _read: dict[tuple[str, str | None, RowLimits], PreparedTask] = field(default_factory=dict)

    def resolve(self, name: str, config: RunConfig) -> Resolved:
        """Build every component that a variant names, read and check its rows, group its tasks.

        Raises what is wrong with any of them: nothing that can be known before training is left to be found in it.
        """
        method, scheduler = self.registry.method(config.method), self.registry.scheduler(config.scheduler)
        reference = method.reference or config.method
        self.registry.method(reference)
        _require_launcher(self.registry.launcher(config.launcher))
        alone = self.registry.scheduler(config.reference)
        if not alone.alone:
            raise ConfigError(
                f"reference = {{ use = {alone.name!r} }}: a reference is trained by a scheduler for single tasks, such as 'single-task'"
            )
        if scheduler.alone:
            _require_reference(config, method)
        task_filter = self.registry.filter(config.filter)
        tasks = {entry.name: self._task(entry, config) for entry in self.registry.tasks(config.tasks)}
        known = profiles(tasks, config)
        groups = group_tasks(task_filter, known)
        update = None
        if self.live is not None:
            update = plan_update(self.live, method, scheduler, groups, {name: bundled(task.data) for name, task in tasks.items()})
            groups, tasks = [update.group], {name: task for name, task in tasks.items() if name in update.group.tasks}
            known = [p.model_copy(update={"is_taught": p.name in update.kept}) for p in known if p.name in tasks]
        if scheduler.alone:
            groups = [Group(name=t, reason="each task has a model of its own", tasks=(t,)) for group in groups for t in group.tasks]
        warnings = [f"{task}: {text}" for task, t in tasks.items() for text in t.warnings] + shared_rows([t.data for t in tasks.values()])
        warnings += update.warnings if update else ()
        warnings += self.registry.missed(config.tasks)
        stages = {g.name: self._stages(g, known, tasks, alone if scheduler.alone else scheduler, method, config) for g in groups}
        ahead: dict[str, int] = {}
        for p in known:
            works = (events.reference_work(p.name, told_seed(seed, config)) for seed in config.seeds)
            ahead |= dict.fromkeys(works, self._reference_steps(p, tasks, alone, config, warnings))
        for group in groups if method.uses_stages and not scheduler.alone else ():
            ahead |= {
                group_work(name, group, seed, config): self._most_steps(group, known, tasks, scheduler, config) for seed in config.seeds
            }
        uses: dict[str, Use] = {
            "method": config.method,
            "scheduler": config.scheduler,
            "filter": config.filter,
            "reference": config.reference,
        }
        components = {kind: self.registry.describe(use) for kind, use in uses.items()}
        return Resolved(
            name, config, method, scheduler, reference, tasks, known, groups, stages, components, warnings, ahead=ahead, update=update
        )

    def _stages(
        self,
        group: Group,
        known: Sequence[TaskProfile],
        tasks: Mapping[str, PreparedTask],
        scheduler: StageScheduler,
        method: Method,
        config: RunConfig,
    ) -> list[CompiledStage]:
        if not method.uses_stages:
            return []
        members = [p for p in known if p.name in group.tasks]
        cap = None if scheduler.alone else config.max_steps
        return walk(self._stream(scheduler, members, tasks, config, cap))

    def _most_steps(
        self, group: Group, known: Sequence[TaskProfile], tasks: Mapping[str, PreparedTask], scheduler: StageScheduler, config: RunConfig
    ) -> int:
        """Steps of a group's stages if every task that is not yet measured turns out to be high-resource."""
        members = [p.model_copy(update={"resource": "high"}) if p.resource == "unknown" else p for p in known if p.name in group.tasks]
        return sum(compiled.steps or 0 for compiled in walk(self._stream(scheduler, members, tasks, config, config.max_steps)))

    def _reference_steps(
        self, profile: TaskProfile, tasks: Mapping[str, PreparedTask], alone: StageScheduler, config: RunConfig, warnings: list[str]
    ) -> int:
        """Compile a reference's stages to see that they can be, and say where its epochs cannot be told apart."""
        stages = walk(self._stream(alone, [profile], tasks, config, None))
        for compiled in stages:
            if compiled.stage.examples_per_step >= 2 * profile.train_rows:
                size = compiled.stage.examples_per_step
                warnings.append(
                    f"{profile.name}: {profile.train_rows} rows are passed twice within the {size} of one step: its epochs cannot be told apart"
                )
        return sum(compiled.steps or 0 for compiled in stages)

    def _stream(
        self,
        scheduler: StageScheduler,
        members: Sequence[TaskProfile],
        tasks: Mapping[str, PreparedTask],
        config: RunConfig,
        max_steps: int | None,
    ) -> StageStream:
        seed, documents = config.seeds[0], lambda name: tasks[name].documents
        return StageStream(scheduler, self.registry.sampler, members, seed=seed, max_steps=max_steps, documents=documents)

    def _task(self, entry: Entry, config: RunConfig) -> PreparedTask:
        for known in self._read.values():
            if known.data.name == entry.name and known.plugin.distribution != entry.plugin.distribution:
                raise ConfigError(
                    f"variants take {entry.name} from {known.plugin.distribution} and from {entry.plugin.distribution}, and a comparison over "
                    "them would compare different tasks; give one of them another name"
                )
        key = (entry.name, config.data, config.rows)
        if key not in self._read:
            adapter = self.registry.build_task(entry, Path(config.data) if config.data else None)
            metric = find_metric(adapter, adapter.spec.metric)
            beside = {name: find_metric(adapter, name) for name in adapter.spec.beside}
            data, aside = read_task(entry.name, adapter, config.rows, f"{entry.plugin.distribution} {entry.plugin.version}")
            self.emit(events.RowsRead(entry.name, len(data.train), len(data.validation), len(aside)))
            findings = check_rows(data, allow_leaks=config.rows.allow_leaks)
            prepared = PreparedTask(replace(data, digest=digest(data)), entry.plugin, metric, beside, findings, aside)
            for warning in prepared.warnings:
                self.emit(events.Warned(entry.name, warning))
            self._read[key] = prepared
        return self._read[key]


def told_seed(seed: int, config: RunConfig) -> int | None:
    """A seed as names tell it: where the run has several."""
    return seed if len(config.seeds) > 1 else None


def group_work(variant: str, group: Group, seed: int, config: RunConfig) -> str:
    """What fitting a group is called in events."""
    return f"{variant or 'run'}/{group.name}" + (f" seed {seed}" if len(config.seeds) > 1 else "")


def _require_launcher(launcher: Launcher) -> None:
    """The processes of a run of several train one model together: none of them can have others measure."""
    if not launcher.in_turn and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"launcher {launcher.name!r} starts processes of its own, and this run has {os.environ['WORLD_SIZE']} already: measure references with "
            "it in a run of one process first, which this one then finds, or take launcher 'in-turn'"
        )


def _require_reference(config: RunConfig, method: Method) -> None:
    """A scheduler that trains each task alone takes the references as its models: it cannot mean other ones."""
    if method.reference is not None:
        raise ConfigError(
            f"method {method.name!r} has no single-task models of its own; take scheduler {config.scheduler.use!r} with {method.reference.use!r}"
        )
    if config.scheduler.options and config.scheduler != config.reference:
        raise ConfigError(
            f"scheduler {config.scheduler.use!r} takes the references as its models, so its options are those of `reference`: "
            f"{config.reference.options}, not {config.scheduler.options}"
        )


def profiles(tasks: Mapping[str, PreparedTask], config: RunConfig) -> list[TaskProfile]:
    """What is known of the tasks before references: sizes, and resources where the run file assumes them."""
    if unknown := sorted(set(config.resource) - set(tasks)):
        raise ConfigError(f"[resource] names {', '.join(unknown)}, which the run does not train (tasks: {', '.join(tasks)})")
    return [
        TaskProfile(
            name=name,
            spec=task.data.spec,
            train_rows=len(task.data.train),
            validation_rows=len(task.data.validation),
            resource=config.resource.get(name, "unknown"),
            resource_is_assumed=name in config.resource,
        )
        for name, task in tasks.items()
    ]


def group_tasks(task_filter: TaskFilter, task_profiles: Sequence[TaskProfile]) -> list[Group]:
    """The filter's groups; raises ConfigError unless they hold every task exactly once and names are distinct."""
    groups = list(task_filter.group(task_profiles))
    members = sorted(task for group in groups for task in group.tasks)
    for group in groups:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", group.name):
            raise ConfigError(
                f"filter {task_filter.name!r} named a group {group.name!r}; it names a folder: use letters, digits, '-', '_' and '.'"
            )
    if members != sorted(p.name for p in task_profiles) or len({g.name for g in groups}) != len(groups):
        raise ConfigError(
            f"filter {task_filter.name!r} must put every task into exactly one group of its own name; it gave {[(g.name, g.tasks) for g in groups]}"
        )
    return groups
