"""Reports: what was judged, as JSON for programs and as tables for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtcore.evaluation.qualify import Deployment, Verdict, overhead
from mtcore.types import Cost


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
        }


@dataclass(frozen=True)
class GroupOutcome:
    """One model's tasks."""

    name: str
    reason: str
    tasks: Sequence[TaskOutcome]
    stages: Sequence[Mapping[str, Any]] = field(default_factory=list)

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
            "run": self.run,
            "variant": self.variant,
            "model": self.model,
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
                }
                for g in self.groups
            ],
            "average": self.average,
            "qualified": sum(len(g.qualified) for g in self.groups),
            "overhead": self.overhead,
            "deployment": {
                "shared": {group: list(tasks) for group, tasks in self.deployment.shared.items()},
                "single": list(self.deployment.single),
                "overhead": self.deployment.overhead,
            },
            "cost": {phase: cost.model_dump() for phase, cost in self.costs.items()} | {"references_reused": self.reference_reused},
            "warnings": list(self.warnings),
            "failures": self.failures,
            "versions": dict(self.versions),
        }


def task_table(outcome: VariantOutcome) -> list[list[str]]:
    """Header and one line a task."""
    lines = [
        [
            "group",
            "task",
            "metric",
            "reference",
            "score",
            "ratio",
            "qualified",
            "P",
            "95 % of ratio",
            "majority",
            "bag of words",
            "saturates",
            "resource",
        ]
    ]
    for group in outcome.groups:
        for task in group.tasks:
            v = task.verdict
            epochs = "/".join("–" if e is None else str(e) for e in task.saturation_epoch)
            lines.append(
                [
                    group.name,
                    task.name,
                    task.metric,
                    percent(v.reference) if v else "–",
                    percent(v.score) if v else "failed",
                    f"{v.ratio:.3f}" if v and v.ratio is not None else "–",
                    _verdict_word(task),
                    f"{v.p_qualified:.2f}" if v else "–",
                    f"{v.interval[0]:.3f}–{v.interval[1]:.3f}" if v and v.interval else "–",
                    percent(task.floors["majority"]),
                    percent(task.floors["bag-of-words"]),
                    f"epoch {epochs}",
                    task.resource + (" (assumed)" if task.resource_is_assumed else ""),
                ]
            )
    return lines


def comparison_table(outcomes: Sequence[VariantOutcome]) -> list[list[str]]:
    """The paper's table: a line a variant, a column a task; * marks what qualifies."""
    names = list(dict.fromkeys(t.name for o in outcomes for t in o.tasks))
    lines = [["variant", *names, "average", "qualified", "overhead", "deployable"]]
    for outcome in outcomes:
        by_name = {t.name: t for t in outcome.tasks}
        lines.append([outcome.variant or "–"] + [_score_cell(by_name.get(name)) for name in names] + _totals(outcome))
    return lines


def cost_table(outcome: VariantOutcome) -> list[list[str]]:
    lines = [["phase", "steps", "examples", "tokens", "padding", "FLOP", "wall time"]]
    for phase, c in outcome.costs.items():
        share = f"{c.padding / max(1, c.padding + c.tokens):.1%}"
        lines.append([phase, f"{c.steps:,}", f"{c.examples:,}", f"{c.tokens:,}", share, flop(c.flops), f"{c.seconds:,.0f} s"])
    return lines


def markdown(outcome: VariantOutcome) -> str:
    """The report of one variant as a plain Markdown page."""
    deployment = outcome.deployment
    shared = "; ".join(f"{group} for {', '.join(tasks)}" for group, tasks in deployment.shared.items()) or "none"
    parts = [
        f"# {outcome.run}{f' · {outcome.variant}' if outcome.variant else ''}",
        f"Model {outcome.model}, method {outcome.method}, seeds {', '.join(map(str, outcome.seeds))}. Scores are × 100.",
        "## Verdicts",
        markdown_table(task_table(outcome)),
        *[
            f"Group **{g.name}**: {g.reason}. Average {percent(g.average)}, {len(g.qualified)} of {len(g.tasks)} qualified."
            for g in outcome.groups
        ],
        f"Average {percent(outcome.average)}; qualified {sum(len(g.qualified) for g in outcome.groups)} of {len(outcome.tasks)}; "
        f"overhead {percent(outcome.overhead)} % (the paper's: 1 over the most qualified tasks of one model), "
        f"deployable {percent(deployment.overhead)} %.",
        "## Deployment",
        f"Shared models: {shared}.\n\nTasks that keep a model of their own: {', '.join(deployment.single) or 'none'}.",
        "## Stages",
        markdown_table(_stage_table(outcome)) if any(g.stages for g in outcome.groups) else "Nothing was trained.",
        "## Cost",
        markdown_table(cost_table(outcome)),
        f"References reused from earlier work: {outcome.reference_reused}.",
        "## Warnings",
        "\n".join(f"- {' '.join(w.split())}" for w in [*outcome.failures, *gathered(outcome)]) or "None.",
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in outcome.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def comparison_markdown(run: str, outcomes: Sequence[VariantOutcome]) -> str:
    """All variants of a run side by side."""
    costs = [["variant", "steps", "tokens", "FLOP", "wall time"]]
    for outcome in outcomes:
        c = outcome.costs["total shared"]
        costs.append([outcome.variant or "–", f"{c.steps:,}", f"{c.tokens:,}", flop(c.flops), f"{c.seconds:,.0f} s"])
    chance = sorted({t.name for o in outcomes for t in o.tasks if t.verdict and t.verdict.is_at_chance})
    note = f"At chance alone, so nothing can be qualified against them: {', '.join(chance)}.\n\n" if chance else ""
    return (
        f"# {run}: variants\n\nScores × 100; * marks tasks that reach 99 % of their own single-task model.\n\n"
        f"{markdown_table(comparison_table(outcomes))}\n\n{note}## Cost of training the shared models\n\n{markdown_table(costs)}\n"
    )


def gathered(outcome: VariantOutcome) -> list[str]:
    """The warnings, with the tasks of which the same is said on one line."""
    tasks = {t.name for t in outcome.tasks}
    said: dict[str, list[str]] = {}
    for warning in outcome.warnings:
        about, _, text = warning.partition(": ")
        said.setdefault(text if about in tasks else warning, []).append(about)
    return [f"{', '.join(names)}: {text}" if names[0] in tasks else text for text, names in said.items()]


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [[_cell(text) for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def _cell(text: str) -> str:
    """A text as one cell of a Markdown table: on one line, and nothing in it ends the cell."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").splitlines())


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def flop(value: float) -> str:
    """Floating-point operations with a unit: 3.1 T."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= 0.9995 * size:  # what three digits round up to the next unit
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _verdict_word(task: TaskOutcome) -> str:
    if task.verdict is None:
        return "failed"
    if task.verdict.is_at_chance:
        return "at chance"
    return "yes" if task.verdict.is_qualified else "no"


def _score_cell(task: TaskOutcome | None) -> str:
    if task is None:
        return "–"
    return "failed" if task.verdict is None else percent(task.verdict.score) + ("*" if task.verdict.is_qualified else "")


def _totals(outcome: VariantOutcome) -> list[str]:
    qualified = str(sum(len(g.qualified) for g in outcome.groups))
    return [percent(outcome.average), qualified, percent(outcome.overhead), percent(outcome.deployment.overhead)]


def _stage_table(outcome: VariantOutcome) -> list[list[str]]:
    lines = [["group", "seed", "stage", "ended", "steps", "task", "share", "draws", "passes"]]
    for group in outcome.groups:
        for stage in group.stages:
            for name, task in stage["tasks"].items():
                numbers = [f"{task['share']:.4f}", f"{task['draws']:,}", f"{task['passes']:.2f}"]
                lines.append([group.name, str(stage["seed"]), stage["name"], stage["ended"], f"{stage['steps']:,}", name, *numbers])
    return lines
