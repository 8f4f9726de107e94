"""The plan of a run: groups, stages, and what every task will be drawn, as far as it is decided; nothing is trained, torch is not loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtcore.config import RunConfig
from mtcore.data.mixture import MixturePlan, extremes, passes
from mtcore.data.stages import CompiledStage
from mtcore.errors import ModelError
from mtcore.estimates import Estimate, estimate
from mtcore.modeling.load import find_base
from mtcore.preparation import Preparer
from mtcore.registry import Registry
from mtcore.types import Group, Preview

UNKNOWN = "unknown"


@dataclass(frozen=True)
class PlannedGroup:
    group: Group
    stages: Sequence[CompiledStage]

    @property
    def decided(self) -> int:
        """How many stages come before the first one that waits for references, or for what its sampler is to be told."""
        return next((n for n, stage in enumerate(self.stages) if stage.plan is None or stage.undecided), len(self.stages))

    @property
    def is_changing(self) -> bool:
        """Whether a sampler decides on the way: the order is then known up to its first border."""
        return any(stage.undecided for stage in self.stages)


@dataclass(frozen=True)
class RunPlan:
    """What one variant would do."""

    groups: Sequence[PlannedGroup]
    previews: Mapping[str, Preview]
    warnings: Sequence[str]
    estimate: Estimate | None = None
    """What it will take; None where the base is not here."""

    def as_json(self) -> dict[str, Any]:
        warnings = list(self.warnings)
        groups = []
        for planned in self.groups:
            stages = [self._stage(stage, is_open=number > planned.decided) for number, stage in enumerate(planned.stages)]
            warnings += [w for stage in planned.stages for w in _draw_warnings(planned.group, stage)]
            group = planned.group
            groups.append({"name": group.name, "reason": group.reason, "tasks": list(group.tasks), "stages": stages})
        return {"groups": groups, "warnings": warnings, "estimate": self.estimate.as_json() if self.estimate else None}

    def plans(self) -> Iterator[tuple[str, str, MixturePlan]]:
        """Group, stage and plan of everything that is decided, the last as far as it is: a stage after it begins where that one will leave
        each task's rows."""
        for planned in self.groups:
            for stage in planned.stages[: planned.decided + 1]:
                if stage.plan is not None:
                    yield planned.group.name, stage.stage.name, stage.plan

    def _stage(self, compiled: CompiledStage, *, is_open: bool) -> dict[str, Any]:
        """One stage as JSON; `is_open`: an earlier stage is not decided to its end, so which rows are left unseen is unknown.

        Of a stage whose shares change, the shares at its start are known, and how often each task will be drawn is not.
        """
        stage, plan = compiled.stage, compiled.plan if compiled.undecided is None else None
        shares = compiled.mixture.shares if compiled.mixture else {}
        drawn = plan.drawn() if plan else {}
        seen = passes(drawn, plan.tasks) if plan else {}
        tokens = {name: count * self.previews[name].mean_tokens for name, count in drawn.items() if name in self.previews}
        total = sum(tokens.values())
        tasks: Any = UNKNOWN
        if stage.tasks is not None:
            tasks = {
                name: {
                    "share": shares.get(name, UNKNOWN),
                    "draws": drawn.get(name, UNKNOWN),
                    "passes": seen[name][0] if name in seen else UNKNOWN,
                    "unseen": seen[name][1] if name in seen and not is_open else UNKNOWN,
                    "token_share": tokens[name] / total if total and name in tokens else UNKNOWN,
                }
                for name in stage.tasks
            }
        steps = UNKNOWN if compiled.steps is None else compiled.steps
        every = compiled.plan.every if compiled.plan else None
        changes = {"needs": sorted(compiled.needs), "every": every or UNKNOWN} if compiled.needs else None
        return {"name": stage.name, "steps": steps, "grouping": stage.grouping, "shares_change": changes, "tasks": tasks}


def plan_run(config: RunConfig, registry: Registry, preparer: Preparer) -> RunPlan:
    """Walk a variant's stages as far as they are decided before references (or further, where `[resource]` says)."""
    resolved = preparer.resolve("", config)
    warnings, previews, expected = list(resolved.warnings), {}, None
    try:
        base = find_base(config.model, Path(config.out) / "bases", weights=False)
        previews = dict(resolved.method.preview({name: task.data for name, task in resolved.tasks.items()}, base))
        warnings += [f"{name}: {text}" for name, preview in previews.items() for text in preview.warnings]
        expected = estimate(resolved, previews, base, registry)
    except ModelError as error:
        warnings.append(f"token shares are unknown: {error}")
    planned = [PlannedGroup(group, resolved.stages[group.name]) for group in resolved.groups]
    if any(stage.stage.tasks is None for group in planned for stage in group.stages):
        warnings.append("which tasks are high-resource is unknown before references are measured; [resource] in the run file assumes it")
    if assumed := [f"{p.name} {p.resource}" for p in resolved.profiles if p.resource_is_assumed]:
        warnings.append(f"resources are assumed, not measured: {', '.join(assumed)}")
    return RunPlan(planned, previews, warnings, expected)


def write_order(plan: RunPlan, path: Path) -> int:
    """Write the order of everything that is decided as Parquet: stage, position, task, row, pass; return the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("stage", pa.string()),
            ("position", pa.int64()),
            ("task", pa.string()),
            ("row", pa.int64()),
            ("pass", pa.int64()),
            ("group", pa.string()),
        ]
    )
    rows = 0
    with pq.ParquetWriter(path, schema) as file:
        for group, stage, mixture in plan.plans():
            names, position = [t.name for t in mixture.tasks], 0
            for window in mixture.blocks():
                count = len(window.task)
                columns = [
                    [stage] * count,
                    range(position, position + count),
                    [names[i] for i in window.task],
                    window.row,
                    window.turn,
                    [group] * count,
                ]
                file.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
                position += count
            rows += position
    return rows


def _draw_warnings(group: Group, compiled: CompiledStage) -> list[str]:
    if compiled.plan is None:
        return []
    told = [note for note in (compiled.stage.note, compiled.mixture.note if compiled.mixture else "") if note]
    tasks = compiled.plan.tasks
    if compiled.undecided is None:
        told += extremes(compiled.plan.drawn(), {t.name: t.rows for t in tasks}, {t.name: t.first for t in tasks})
    return [f"group {group.name}, stage {compiled.stage.name}: {text}" for text in told]
