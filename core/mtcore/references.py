"""References: each task measured alone, kept under the hash of everything that decides the result, and measured again only when that changes."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtcore import events
from mtcore.config import RunConfig
from mtcore.contracts import Method, StageScheduler
from mtcore.data.stages import StageStream
from mtcore.errors import ConfigError, RunError
from mtcore.evaluation.evaluate import evaluate, statistics
from mtcore.evaluation.qualify import judge
from mtcore.files import write_text
from mtcore.fitting import Fitting
from mtcore.preparation import PreparedTask
from mtcore.registry import Registry
from mtcore.types import Answer, Base, Cost, Evaluation, Frozen, Group, MethodUse, Resource, TaskProfile

HIGH_FROM_EPOCH = 5
"""A task that saturates in this epoch or later is high-resource (paper, section 4.2; exactly 5 is ours)."""


class Reference(Frozen):
    """The single-task result of one task under one seed."""

    task: str
    key: str
    seed: int
    score: float
    """On the rows of the verdict."""
    is_at_chance: bool
    saturation_epoch: int | None
    resource: Resource
    is_cut_short: bool
    """The best epoch is the last one allowed: more epochs might have been better."""
    curve: tuple[Evaluation, ...]
    answers: tuple[Answer, ...]
    cost: Cost
    evaluation_cost: Cost
    bundle: str | None
    recipe: dict[str, Any]

    @property
    def bar(self) -> float | None:
        """What the shared model is held to; nothing can be qualified against a reference at chance."""
        return None if self.is_at_chance else self.score


@dataclass(frozen=True)
class ReferenceStore:
    """Measures references, or finds them measured, in `folder/KEY/`."""

    folder: Path
    registry: Registry
    fitting: Fitting

    def get(
        self, name: str, task: PreparedTask, profile: TaskProfile, config: RunConfig, use: MethodUse, base: Base, seed: int
    ) -> Reference:
        """The reference of one task; interrupted work goes on where it stood."""
        method, scheduler = self.registry.method(use), self.registry.scheduler(config.reference)
        recipe = _recipe(task, method, scheduler, base, seed)
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / key / "reference.json"
        if path.is_file():
            reference = Reference.model_validate_json(path.read_text(encoding="utf-8"))
            if not config.keep_reference_weights or (reference.bundle and Path(reference.bundle).is_dir()):
                self._ready(reference, "reused")
                return reference
        reference = self._measure(name, task, profile, config, method, scheduler, base, seed, key, recipe)
        if self.fitting.is_main:
            write_text(path, reference.model_dump_json(indent=1))
            shutil.rmtree(path.parent / "work", ignore_errors=True)
            if not config.keep_reference_weights:
                shutil.rmtree(path.parent / "bundle", ignore_errors=True)
        self._ready(reference, "measured")
        return reference

    def _measure(
        self,
        name: str,
        task: PreparedTask,
        profile: TaskProfile,
        config: RunConfig,
        method: Method,
        scheduler: StageScheduler,
        base: Base,
        seed: int,
        key: str,
        recipe: Mapping[str, Any],
    ) -> Reference:
        folder = self.folder / key
        fitted = self.fitting.fit(
            method,
            Group(name=name, reason="measured alone", tasks=(name,)),
            StageStream(scheduler, self.registry.sampler, [profile], seed=seed, max_steps=None),
            tasks={name: task},
            base=base,
            seed=seed,
            folder=folder / "work",
            bundle=folder / "bundle",
            work=f"reference {name}",
            fingerprint=key,
        )
        judged = evaluate(method.load(Path(fitted.bundle)), {name: task.exam(task.judged_on)})
        if name in judged.failures:
            raise RunError(
                f"reference {name}: {judged.failures[name]}. Without a reference the task cannot be judged; mend its metric or take it out."
            )
        curve = tuple(e for done in fitted.done for e in done.evaluations)
        # an epoch of rows need not be a whole number of draws between evaluations: a hundredth over is still that epoch
        saturation = max(1, math.ceil(fitted.chosen.epoch - 0.01)) if fitted.chosen else None
        is_cut_short = bool(fitted.chosen and fitted.chosen == curve[-1] and fitted.done[-1].ended == "complete")
        own = statistics(task.exam(task.judged_on), judged.answers[name])
        verdict = judge(task.metric, [own], [own], task.floors.majority_statistics, name=name)
        return Reference(
            task=name,
            key=key,
            seed=seed,
            score=judged.scores[name],
            is_at_chance=verdict.is_at_chance,
            saturation_epoch=saturation,
            resource=resource_of(saturation, is_cut_short),
            is_cut_short=is_cut_short,
            curve=curve,
            answers=tuple(judged.answers[name]),
            cost=fitted.cost,
            evaluation_cost=fitted.evaluation_cost,
            bundle=fitted.bundle if config.keep_reference_weights else None,
            recipe=dict(recipe),
        )

    def _ready(self, reference: Reference, source: Any) -> None:
        self.fitting.emit(
            events.ReferenceReady(
                reference.task, reference.score, reference.saturation_epoch, reference.resource, reference.is_at_chance, source
            )
        )


def resource_of(saturation_epoch: int | None, is_cut_short: bool) -> Resource:
    """High where the best epoch is the fifth or later, or the last one allowed; low before; unknown where nothing was trained."""
    if saturation_epoch is None:
        return "unknown"
    return "high" if saturation_epoch >= HIGH_FROM_EPOCH or is_cut_short else "low"


def with_references(profiles: Sequence[TaskProfile], references: Mapping[str, Reference]) -> list[TaskProfile]:
    """Profiles completed with what was measured; an assumed resource stays as the run file says."""
    known = []
    for profile in profiles:
        reference = references[profile.name]
        resource = profile.resource if profile.resource_is_assumed else reference.resource
        known.append(
            profile.model_copy(update={"bar": reference.bar, "saturation_epoch": reference.saturation_epoch, "resource": resource})
        )
    return known


def _recipe(task: PreparedTask, method: Method, scheduler: StageScheduler, base: Base, seed: int) -> dict[str, Any]:
    if not scheduler.alone:
        raise ConfigError(
            f"reference = {{ use = {scheduler.name!r} }}: a reference is trained by a scheduler for single tasks, such as 'single-task'"
        )
    return {
        "task": task.digest,
        "metric": [task.metric.name, task.metric.version],
        "base": base.digest,
        "method": [method.name, json.loads(method.config.model_dump_json())],
        "scheduler": [scheduler.name, json.loads(scheduler.config.model_dump_json())],
        "seed": seed,
    }
