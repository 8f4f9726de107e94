"""Reports: what was judged, as data and as JSON for programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtcore.evaluation.qualify import Deployment, Verdict, overhead
from mtcore.types import Cost

FORMAT = 3
"""Of report.json; raised when pages need what earlier reports do not hold."""


@dataclass(frozen=True)
class TaskOutcome:
    """One task's line."""

    name: str
    metric: str
    verdict: Verdict | None
    """None where the task failed."""
    failure: str
    floors: Mapping[str, float | None]
    beside: Mapping[str, float | None]
    """Other metrics; None where one failed, which leaves the verdict as it is."""
    saturation_epoch: Sequence[int | None]
    resource: str
    resource_is_assumed: bool
    data: Mapping[str, Any]
    """Where its rows are from, under what licence, how many there are and which of them decide."""
    references: Sequence[Mapping[str, Any]]
    """Its own model under each seed: score, saturation epoch, curve."""

    def as_json(self) -> dict[str, Any]:
        v = self.verdict
        return {
            "name": self.name,
            "metric": self.metric,
            "reference": v.reference if v else None,
            "score": v.score if v else None,
            "ratio": v.ratio if v else None,
            "qualified": bool(v and v.is_qualified),
            "p_qualified": v.p_qualified if v else None,
            "interval": list(v.interval) if v and v.interval else None,
            "at_chance": v.is_at_chance if v else None,
            "saturation_epoch": self.saturation_epoch[0] if len(set(self.saturation_epoch)) == 1 else list(self.saturation_epoch),
            "resource": self.resource,
            "resource_is_assumed": self.resource_is_assumed,
            "floors": dict(self.floors),
            "beside": dict(self.beside),
            "failure": self.failure or None,
            "data": dict(self.data),
            "references": list(self.references),
        }


@dataclass(frozen=True)
class GroupOutcome:
    """One model's tasks."""

    name: str
    reason: str
    tasks: Sequence[TaskOutcome]
    stages: Sequence[Mapping[str, Any]] = field(default_factory=list)
    bundles: Mapping[int, str] = field(default_factory=dict)
    """Seed → folder of the model; empty where every task is its own model."""

    @property
    def qualified(self) -> list[str]:
        return [t.name for t in self.tasks if t.verdict and t.verdict.is_qualified]

    @property
    def average(self) -> float:
        """Unweighted mean over tasks; a failed task counts 0."""
        return sum(t.verdict.score if t.verdict else 0.0 for t in self.tasks) / len(self.tasks)


@dataclass(frozen=True)
class VariantOutcome:
    """Everything that one variant left to say."""

    run: str
    variant: str
    model: str
    base: Mapping[str, str | None]
    """Digest of the base's files, and its revision where it is from the Hub."""
    method: str
    seeds: Sequence[int]
    groups: Sequence[GroupOutcome]
    deployment: Deployment
    is_alone: bool
    cost: Mapping[str, Cost]
    """Phase → cost; `references` first."""
    reference_reused: int
    warnings: Sequence[str]
    versions: Mapping[str, str]
    update: Mapping[str, Any] | None = None
    """Where a live bundle was updated: which one, what changed in it, how the two compare, and whether the candidate was published."""

    @property
    def tasks(self) -> list[TaskOutcome]:
        return [t for g in self.groups for t in g.tasks]

    @property
    def average(self) -> float:
        return sum(t.verdict.score if t.verdict else 0.0 for t in self.tasks) / len(self.tasks)

    @property
    def overhead(self) -> float | None:
        return overhead([len(g.qualified) for g in self.groups], alone=self.is_alone)

    @property
    def resampled(self) -> dict[str, list[float | None]]:
        """Task → its score on every bootstrap sample, None where a metric is no number: what a later comparison sets against its own."""
        return {t.name: [s if math.isfinite(s) else None for s in t.verdict.resampled] for t in self.tasks if t.verdict}

    @property
    def failures(self) -> list[str]:
        return [f"{t.name}: {t.failure}" for t in self.tasks if t.failure]

    @property
    def costs(self) -> dict[str, Cost]:
        """Phases and the two sums that are compared: each task alone, and the shared models with the references they need."""
        alone = ("references", "reference evaluation")
        stages = sum((c for phase, c in self.cost.items() if phase not in alone), Cost())
        references = sum((self.cost[phase] for phase in alone if phase in self.cost), Cost())
        return {**self.cost, "total single-task": references, "total shared": stages, "total references + shared": references + stages}

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run": self.run,
            "variant": self.variant,
            "model": self.model,
            "base": dict(self.base),
            "is_alone": self.is_alone,
            "method": self.method,
            "seeds": list(self.seeds),
            "groups": [
                {
                    "name": g.name,
                    "reason": g.reason,
                    "tasks": [t.as_json() for t in g.tasks],
                    "average": g.average,
                    "qualified": len(g.qualified),
                    "overhead": overhead([len(g.qualified)], alone=self.is_alone),
                    "stages": list(g.stages),
                    "bundles": [{"seed": seed, "folder": folder} for seed, folder in g.bundles.items()],
                }
                for g in self.groups
            ],
            "average": self.average,
            "qualified": sum(len(g.qualified) for g in self.groups),
            "overhead": self.overhead,
            "deployment": {
                "shared": {group: list(tasks) for group, tasks in self.deployment.shared.items()},
                "single": list(self.deployment.single),
                "not_ready": list(self.deployment.not_ready),
                "overhead": self.deployment.overhead,
            },
            "cost": {phase: _cost(cost) for phase, cost in self.costs.items()} | {"references_reused": self.reference_reused},
            "warnings": list(self.warnings),
            "failures": self.failures,
            "versions": dict(self.versions),
            "update": self.update,
        }


def _cost(cost: Cost) -> dict[str, Any]:
    rates = {"saved": cost.saved, "tokens_per_second": cost.tokens_per_second, "utilisation": cost.utilisation}
    return {**cost.model_dump(mode="json"), **rates}
