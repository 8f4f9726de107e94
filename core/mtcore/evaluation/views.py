"""What the page says of reports: verdicts, sentences, rows of tables; no HTML."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mtcore.evaluation.comparison import verdict_word
from mtcore.evaluation.qualify import BAR

Report = Mapping[str, Any]
"""A variant's report as JSON, or a part of it."""
SURE = 0.95


@dataclass(frozen=True)
class Status:
    """A verdict as a word, a sign and a tone: never by colour alone."""

    word: str
    sign: str
    tone: str


STATUSES = {
    "yes": Status("go live", "✓", "live"),
    "no": Status("not yet", "↓", "missed"),
    "at chance": Status("at chance", "≈", "chance"),
    "failed": Status("failed", "✕", "failed"),
}
"""From the most welcome to the least, which is their order on the page."""


def status(task: Report) -> Status:
    return STATUSES[verdict_word(task)]


def tasks_of(report: Report) -> list[Report]:
    return [task for group in report["groups"] for task in group["tasks"]]


def main_report(reports: Sequence[Report]) -> Report:
    """The report that stands at the top: the most qualified tasks in shared models, then the highest average, then the first."""
    return max(reports, key=lambda r: (not r["is_alone"], r["qualified"], r["average"]))


# --- the answer ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedModel:
    """A shared model and the tasks that go live on it."""

    group: str
    tasks: Sequence[str]
    of: int
    bundles: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What to put online."""

    shared: Sequence[SharedModel]
    own: Sequence[str]
    """Tasks whose own model is ready, and must stay."""
    not_ready: Mapping[str, Status]
    """Tasks that nothing serves yet."""


def plan(report: Report) -> Plan:
    deployment, by_name = report["deployment"], {task["name"]: task for task in tasks_of(report)}
    return Plan(
        shared=[
            SharedModel(g["name"], deployment["shared"][g["name"]], len(g["tasks"]), [b["folder"] for b in g["bundles"]])
            for g in report["groups"]
            if g["name"] in deployment["shared"]
        ],
        own=[name for name in deployment["single"] if name not in deployment["not_ready"]],
        not_ready={name: status(by_name[name]) for name in deployment["not_ready"]},
    )


def headline(report: Report) -> str:
    """The answer in one sentence."""
    total, told = len(tasks_of(report)), plan(report)
    live, models = sum(len(model.tasks) for model in told.shared), len(told.shared)
    if report["is_alone"]:
        return f"{len(told.own)} of {count(total, 'task')} can go live, each on a model of its own; nothing is shared"
    if not live:
        return f"None of {count(total, 'task')} can go live on a shared model yet"
    saved = f" instead of {count(live, 'model')} of their own" if live > models else ""
    return f"{live} of {count(total, 'task')} can go live on {count(models, 'shared model')}{saved}"


def explanation(report: Report) -> str:
    """What serving all tasks takes, and how sure the verdicts are."""
    total, told = len(tasks_of(report)), plan(report)
    own, shared = len(told.own) + len(told.not_ready), len(told.shared)
    parts = ([count(shared, "shared model")] if shared else []) + ([f"{own} of a single task"] if own else [])
    text = f"Serving {'the one task' if total == 1 else f'all {total} tasks'} takes {count(shared + own, 'model')}: {' and '.join(parts)}"
    text += f", of which {len(told.not_ready)} {'is' if len(told.not_ready) == 1 else 'are'} not ready." if told.not_ready else "."
    live = [task for task in tasks_of(report) if task["qualified"]]
    if live and not report["is_alone"]:
        sure = sum(task["p_qualified"] >= SURE for task in live)
        text += f" Of the {len(live)} that can go live, {sure or 'none'} {'reaches' if sure < 2 else 'reach'} the bar, {100 * BAR:.0f} % of"
        text += f" {'its' if sure < 2 else 'their'} own model's score, with a probability of {100 * SURE:.0f} % or more."
    return text


def average_of_references(report: Report) -> float:
    """What the tasks' own models score on average; a failed task counts 0, as it does in every average."""
    return fmean(task["reference"] or 0.0 for task in tasks_of(report))


# --- tables ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskGroup:
    """Tasks under one heading, the best verdicts first."""

    name: str
    reason: str
    average: float
    tasks: Sequence[Report]


def task_groups(report: Report) -> list[TaskGroup]:
    """A report's groups; where every task is its own model, all of them under one heading."""
    groups = [TaskGroup(g["name"], g["reason"], g["average"], by_verdict(g["tasks"])) for g in report["groups"]]
    if not report["is_alone"]:
        return groups
    return [TaskGroup("single tasks", "each task has a model of its own", report["average"], by_verdict(tasks_of(report)))]


def by_verdict(tasks: Sequence[Report]) -> list[Report]:
    """Tasks with the most welcome verdicts first, else by name."""
    order = list(STATUSES.values())
    return sorted(tasks, key=lambda task: (order.index(status(task)), task["name"]))


@dataclass(frozen=True)
class StageTable:
    """What the stages of a group drew, under all seeds that drew alike."""

    title: str
    stages: Sequence[Report]
    rows: Sequence[tuple[str, Sequence[Report | None], float]]
    """Task, what each stage drew of it, and its passes in all."""
    largest: float
    """The largest share, which fills a bar."""


def stage_tables(report: Report) -> list[StageTable]:
    tables = []
    for group in report["groups"]:
        alike: list[tuple[list[int], list[Report]]] = []
        for seed in dict.fromkeys(stage["seed"] for stage in group["stages"]):
            stages = [stage for stage in group["stages"] if stage["seed"] == seed]
            same = next((seeds for seeds, others in alike if _drew(others) == _drew(stages)), None)
            if same is None:
                alike.append(([seed], stages))
            else:
                same.append(seed)
        for seeds, stages in alike:
            under = f", seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if len(report["seeds"]) > 1 else ""
            rows = []
            for name in dict.fromkeys(name for stage in stages for name in stage["tasks"]):
                drawn = [stage["tasks"].get(name) for stage in stages]
                rows.append((name, drawn, sum(d["passes"] for d in drawn if d)))
            tables.append(StageTable(group["name"] + under, stages, rows, max(d["share"] for _, drawn, _ in rows for d in drawn if d)))
    return tables


def _drew(stages: Sequence[Report]) -> list[Any]:
    return [[stage[key] for key in ("name", "steps", "ended", "note", "tasks", "learning_rate")] for stage in stages]


def warning_lines(report: Report, known: Sequence[str] = ()) -> list[tuple[list[str], str]]:
    """Warnings that are not yet known: the tasks of which the same is said (none where it is about no task), and what is said."""
    names = {task["name"] for task in tasks_of(report)}
    said: dict[str, list[str]] = {}
    for warning in report["warnings"]:
        if warning not in known:
            about, _, text = warning.partition(": ")
            said.setdefault(text if about in names else warning, []).extend([about] if about in names else [])
    # what differs in numbers alone stands together
    alike = {text: re.sub(r"\d+", "", text) for text in said}
    most = {kind: max(len(said[text]) for text in said if alike[text] == kind) for kind in alike.values()}
    return [(said[text], text) for text in sorted(said, key=lambda text: (-most[alike[text]], alike[text], -len(said[text])))]


def data_lines(reports: Sequence[Report]) -> list[tuple[str, Report, list[str]]]:
    """Every task with its data, and the variants that use just these rows where not all variants with the task do."""
    lines: list[tuple[str, Report, list[str]]] = []
    for report in reports:
        for task in tasks_of(report):
            found = next((line for line in lines if line[0] == task["name"] and line[1]["digest"] == task["data"]["digest"]), None)
            if found is None:
                lines.append((task["name"], task["data"], [report["variant"]]))
            else:
                found[2].append(report["variant"])
    names = [name for name, _, _ in lines]
    return [(name, data, variants if names.count(name) > 1 else []) for name, data, variants in sorted(lines, key=lambda line: line[0])]


def bases(reports: Sequence[Report]) -> list[tuple[str, Report]]:
    """Every base that a variant started from, once."""
    return [(digest[1], base) for digest, base in {(r["base"]["digest"], r["model"]): r["base"] for r in reports}.items()]


def versions(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Every package with its version, or all its versions where the reports were written under several."""
    names = sorted({name for report in reports for name in report["versions"]})
    return [(name, " and ".join(sorted({r["versions"][name] for r in reports if name in r["versions"]}))) for name in names]


@dataclass(frozen=True)
class CostGroup:
    """Phases of a run, and their sum."""

    name: str
    phases: Mapping[str, Report]
    total: Report


def cost_groups(report: Report) -> list[CostGroup]:
    """What measuring every task alone took, and what the shared models took beside it."""
    cost = {phase: c for phase, c in report["cost"].items() if isinstance(c, Mapping)}
    alone = {phase: cost[phase] for phase in ("references", "reference evaluation") if phase in cost}
    shared = {phase: c for phase, c in cost.items() if phase not in alone and not phase.startswith("total ")}
    groups = [CostGroup("each task alone", alone, cost["total single-task"])]
    return groups if report["is_alone"] else [*groups, CostGroup("shared models", shared, cost["total shared"])]


def own_cost(report: Report) -> Report:
    """What a variant's own models took."""
    return cost_groups(report)[-1].total


def side_by_side(reports: Sequence[Report]) -> list[tuple[str, list[Report | None]]]:
    """Every task with what became of it in every variant."""
    by_name = [{task["name"]: task for task in tasks_of(report)} for report in reports]
    return [(name, [tasks.get(name) for tasks in by_name]) for name in sorted({name for tasks in by_name for name in tasks})]


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
