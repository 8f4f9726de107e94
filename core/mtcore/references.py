"""References: each task measured alone, kept under the hash of everything that decides the result, and measured again only when that changes."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtcore import events
from mtcore.contracts import Method, StageScheduler
from mtcore.data.stages import StageStream
from mtcore.evaluation.evaluate import statistics
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
    selection_bar: float | None
    """The best score on validation rows: what checkpoints are chosen against, so that test rows have no part in it."""
    failure: str = ""
    """Why there is no score: the task is then failed, and measured again next time."""

    @property
    def bar(self) -> float | None:
        """What the shared model is held to; nothing can be qualified against a reference at chance."""
        return None if self.is_at_chance else self.score


@dataclass(frozen=True)
class Measurement:
    """A reference that is wanted: a task under a seed, and how it is trained alone."""

    name: str
    task: PreparedTask
    profile: TaskProfile
    method: Method
    scheduler: StageScheduler
    described: Mapping[str, Any]
    """Both with their owners and all their options (`Registry.describe`)."""
    base: Base
    seed: int
    keep_weights: bool
    told_seed: int | None
    """The seed where the run that asks has several: names then tell it."""

    @property
    def work(self) -> str:
        return events.reference_work(self.name, self.told_seed)

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the result: rows, spec, metric, base, method, schedule, seed; not source code."""
        return {
            "task": self.task.digest,
            "metric": [self.task.metric.name, self.task.metric.version],
            "base": self.base.digest,
            **self.described,
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

    def has(self, wanted: Measurement) -> bool:
        return (self.folder / wanted.key / "reference.json").is_file()

    def find(self, wanted: Measurement) -> Reference | None:
        """The reference of one task if it was measured before, and its weights are kept where they are wanted."""
        path = self.folder / wanted.key / "reference.json"
        known = read_model(path, Reference) if path.is_file() else None
        is_whole = known is not None and (not wanted.keep_weights or (known.bundle and Path(known.bundle).is_dir()))
        return known if is_whole else None

    def get(self, wanted: Measurement) -> Reference:
        """The reference of one task; interrupted work goes on where it stood.

        Another run that is measuring it is waited for, unless there are several processes: those cannot wait for hours, and RunLocked is raised.
        """
        folder = self.folder / wanted.key
        is_one = os.environ.get("WORLD_SIZE", "1") == "1"
        with locked(folder, wanted=self.fitting.is_main, on_wait=(lambda: self._tell_waiting(wanted.name)) if is_one else None):
            self.fitting.wait()
            if (known := self.find(wanted)) is not None:
                self._ready(wanted, known, "reused")
                return known
            reference = self._measure(wanted, folder)
            self.fitting.wait()
            if self.fitting.is_main:
                if not reference.failure:
                    write_text(folder / "reference.json", reference.model_dump_json(indent=1))
                shutil.rmtree(folder / "work", ignore_errors=True)
                if not wanted.keep_weights:
                    shutil.rmtree(folder / "bundle", ignore_errors=True)
            self._ready(wanted, reference, "measured")
            return reference

    def _measure(self, wanted: Measurement, folder: Path) -> Reference:
        name, task = wanted.name, wanted.task
        fitted = self.fitting.fit(
            wanted.method,
            Group(name=name, reason="measured alone", tasks=(name,)),
            StageStream(
                wanted.scheduler,
                self.registry.sampler,
                [wanted.profile],
                seed=wanted.seed,
                max_steps=None,
                documents=lambda _: task.documents,
            ),
            tasks={name: task},
            base=wanted.base,
            seed=wanted.seed,
            folder=folder / "work",
            bundle=folder / "bundle",
            work=wanted.work,
            fingerprint=wanted.key,
        )
        self.fitting.wait()
        judged = self.fitting.evaluate(wanted.method.load(Path(fitted.bundle), renders({name: task})), {name: task.exam(task.judged_on)})
        curve = tuple(e for done in fitted.done for e in done.evaluations)
        # an epoch of rows need not be a whole number of draws between evaluations: a hundredth over is still that epoch
        saturation = max(1, math.ceil(fitted.chosen.epoch - 0.01)) if fitted.chosen else None
        is_cut_short = bool(fitted.chosen and fitted.chosen == curve[-1] and fitted.done[-1].ended == "complete")
        failure, is_at_chance = judged.failures.get(name, ""), True
        if not failure:
            try:
                is_at_chance = _is_at_chance(task, judged.answers[name], name)
            except Exception as error:
                failure = f"the majority answer cannot be scored: {type(error).__name__}: {error}"
        best = fitted.chosen.average if fitted.chosen else None
        return Reference(
            task=name,
            key=wanted.key,
            seed=wanted.seed,
            score=judged.scores.get(name, 0.0),
            is_at_chance=is_at_chance,
            saturation_epoch=saturation,
            resource=resource_of(saturation, is_cut_short),
            is_cut_short=is_cut_short,
            curve=curve,
            answers=tuple(judged.answers.get(name, ())),
            cost=fitted.cost,
            evaluation_cost=fitted.evaluation_cost,
            bundle=str(Path(fitted.bundle).resolve()) if wanted.keep_weights else None,
            recipe=wanted.recipe,
            selection_bar=None if failure or (is_at_chance and not task.data.test) else best,
            failure=failure,
        )

    def _tell_waiting(self, name: str) -> None:
        self.fitting.emit(events.Warned(name, "another run is measuring its reference; waiting for that one"))

    def _ready(self, wanted: Measurement, reference: Reference, source: Any) -> None:
        self.fitting.emit(
            events.ReferenceReady(
                reference.task,
                reference.score,
                reference.saturation_epoch,
                reference.resource,
                reference.is_at_chance,
                source,
                wanted.told_seed,
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
            profile.model_copy(
                update={"bar": reference.selection_bar, "saturation_epoch": reference.saturation_epoch, "resource": resource}
            )
        )
    return known


def _is_at_chance(task: PreparedTask, answers: Sequence[Answer], name: str) -> bool:
    own = statistics(task.exam(task.judged_on), answers)
    return judge(task.metric, [own], [own], task.floors.majority_statistics, name=name).is_at_chance
