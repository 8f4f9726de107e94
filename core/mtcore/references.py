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
from mtcore.contracts import Method, StageScheduler
from mtcore.data.stages import StageStream
from mtcore.evaluation.evaluate import evaluate, statistics
from mtcore.evaluation.qualify import judge
from mtcore.files import locked, read_model, write_text
from mtcore.fitting import Fitting, renders
from mtcore.preparation import PreparedTask
from mtcore.registry import Registry
from mtcore.types import Answer, Base, Cost, Evaluation, Frozen, Group, Resource, TaskProfile

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
    failure: str = ""
    """Why there is no score: the task is then failed, and measured again next time."""

    @property
    def bar(self) -> float | None:
        """What the shared model is held to; nothing can be qualified against a reference at chance."""
        return None if self.is_at_chance else self.score

    @property
    def selection_bar(self) -> float | None:
        """The same on validation rows: what checkpoints are chosen against, so that test rows have no part in it."""
        return None if self.is_at_chance else max((e.average for e in self.curve), default=self.score)


@dataclass(frozen=True)
class Measurement:
    """A reference that is wanted: a task under a seed, and how it is trained alone."""

    name: str
    task: PreparedTask
    profile: TaskProfile
    method: Method
    scheduler: StageScheduler
    base: Base
    seed: int
    keep_weights: bool

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the result: rows, spec, metric, base, method, schedule, seed; not source code."""
        return {
            "task": self.task.digest,
            "metric": [self.task.metric.name, self.task.metric.version],
            "base": self.base.digest,
            "method": [self.method.name, json.loads(self.method.config.model_dump_json())],
            "scheduler": [self.scheduler.name, json.loads(self.scheduler.config.model_dump_json())],
            "seed": self.seed,
        }

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ReferenceStore:
    """Measures references, or finds them measured, in `folder/KEY/`."""

    folder: Path
    registry: Registry
    fitting: Fitting

    def get(self, wanted: Measurement) -> Reference:
        """The reference of one task; interrupted work goes on where it stood, and another run that is measuring it is waited for."""
        folder = self.folder / wanted.key
        path = folder / "reference.json"
        with locked(folder, wanted=self.fitting.is_main, wait=True):
            self.fitting.wait()
            known = read_model(path, Reference) if path.is_file() else None
            if known is not None and (not wanted.keep_weights or (known.bundle and Path(known.bundle).is_dir())):
                self._ready(known, "reused")
                return known
            reference = self._measure(wanted, folder)
            self.fitting.wait()
            if self.fitting.is_main:
                if not reference.failure:
                    write_text(path, reference.model_dump_json(indent=1))
                shutil.rmtree(folder / "work", ignore_errors=True)
                if not wanted.keep_weights:
                    shutil.rmtree(folder / "bundle", ignore_errors=True)
            self._ready(reference, "measured")
            return reference

    def _measure(self, wanted: Measurement, folder: Path) -> Reference:
        name, task = wanted.name, wanted.task
        fitted = self.fitting.fit(
            wanted.method,
            Group(name=name, reason="measured alone", tasks=(name,)),
            StageStream(wanted.scheduler, self.registry.sampler, [wanted.profile], seed=wanted.seed, max_steps=None),
            tasks={name: task},
            base=wanted.base,
            seed=wanted.seed,
            folder=folder / "work",
            bundle=folder / "bundle",
            work=f"reference {name}",
            fingerprint=wanted.key,
        )
        self.fitting.wait()
        judged = evaluate(wanted.method.load(Path(fitted.bundle), renders({name: task})), {name: task.exam(task.judged_on)})
        curve = tuple(e for done in fitted.done for e in done.evaluations)
        # an epoch of rows need not be a whole number of draws between evaluations: a hundredth over is still that epoch
        saturation = max(1, math.ceil(fitted.chosen.epoch - 0.01)) if fitted.chosen else None
        is_cut_short = bool(fitted.chosen and fitted.chosen == curve[-1] and fitted.done[-1].ended == "complete")
        failure = judged.failures.get(name, "")
        return Reference(
            task=name,
            key=wanted.key,
            seed=wanted.seed,
            score=judged.scores.get(name, 0.0),
            is_at_chance=bool(failure) or _is_at_chance(task, judged.answers[name], name),
            saturation_epoch=saturation,
            resource=resource_of(saturation, is_cut_short),
            is_cut_short=is_cut_short,
            curve=curve,
            answers=tuple(judged.answers.get(name, ())),
            cost=fitted.cost,
            evaluation_cost=fitted.evaluation_cost,
            bundle=str(Path(fitted.bundle).resolve()) if wanted.keep_weights else None,
            recipe=wanted.recipe,
            failure=failure,
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


def _is_at_chance(task: PreparedTask, answers: Sequence[Answer], name: str) -> bool:
    own = statistics(task.exam(task.judged_on), answers)
    return judge(task.metric, [own], [own], task.floors.majority_statistics, name=name).is_at_chance
