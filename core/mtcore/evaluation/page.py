"""The page of a run: every variant's report as one HTML file that needs nothing beside itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mtcore import __version__
from mtcore.errors import RunError
from mtcore.evaluation import scales, views
from mtcore.evaluation.plots import Curve, Shared, task_plot
from mtcore.evaluation.qualify import BAR
from mtcore.evaluation.report import FORMAT
from mtcore.evaluation.tables import change_table, cost_note, flop, percent, span, speed, utilisation
from mtcore.evaluation.views import Report

FOLDED_FROM = 25
"""So many plots of tasks are folded away until a reader wants them."""


@dataclass(frozen=True)
class Panel:
    """A task's curves: as a plot, and in words."""

    task: str
    caption: str
    words: str
    svg: Markup


def page(run: str, reports: Sequence[Report], resolved: Mapping[str, Any]) -> str:
    """Render the reports of all variants and what the run resolved to. Raises RunError for reports that do not hold what the page shows."""
    if old := [report["variant"] or "its one variant" for report in reports if report.get("format") != FORMAT]:
        raise RunError(
            f"the report of {', '.join(old)} in run {run} was written by an earlier version of mtcore; "
            "run the same `mtcore train` again, which only writes reports anew"
        )
    main = views.main_report(reports)
    others = [report for report in reports if report is not main]
    environment = Environment(
        loader=PackageLoader("mtcore.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "flop": flop,
        "speed": speed,
        "utilisation": utilisation,
        "ratio": lambda value: "–" if value is None else f"{value:.3f}",
        "whole": lambda value: f"{value:,}",
        "span": span,
        "epochs": _epochs,
        "json": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    }
    return environment.get_template("report.html").render(
        run=run,
        reports=[main, *others],
        main=main,
        others=others,
        view=views,
        scales=scales,
        panels={report["variant"]: _panels(report, None if report is main else main) for report in reports},
        change_table=change_table,
        cost_note=cost_note,
        configurations=resolved["variants"],
        plugins=resolved["plugins"],
        folded_from=FOLDED_FROM,
        bar=BAR,
        version=__version__,
    )


def _panels(report: Report, main: Report | None) -> list[Panel]:
    """The plots of a variant's tasks; of references only those that differ from the main variant's, which are shown there."""
    shown = {task["name"]: task["references"] for task in views.tasks_of(main)} if main else {}
    panels = []
    for group in report["groups"]:
        for task in views.by_verdict(group["tasks"]):
            references = [] if shown.get(task["name"]) == task["references"] else task["references"]
            alone = [curve for reference in references if (curve := _alone(reference)).points]
            shared = _shared(task, group["stages"])
            if alone or shared.curves:
                panels.append(_panel(report, task, alone, shared))
    return panels


def _panel(report: Report, task: Report, alone: Sequence[Curve], shared: Shared) -> Panel:
    words = [f"Alone: best {max(y for _, y in c.points):.1f} in epoch {c.marked:g} of {c.points[-1][0]:g}." for c in alone]
    words += [
        f"In the shared model: {c.points[0][1]:.1f} after {c.points[0][0]:,.0f} draws, {c.points[-1][1]:.1f} after {c.points[-1][0]:,.0f}."
        for c in shared.curves
    ]
    resource = f"{task['resource']}-resource" + (" (assumed)" if task["resource_is_assumed"] else "")
    return Panel(
        task=task["name"],
        caption=f"saturates in epoch {_epochs(task['saturation_epoch'])}, {resource}",
        words=" ".join(words),
        svg=Markup(task_plot(f"{report['variant']} {task['name']}", alone, shared)),  # drawn of numbers alone
    )


def _alone(reference: Report) -> Curve:
    """A reference's curve; the first of its best points is the one that counts."""
    points = [(point["epoch"], 100 * point["score"]) for point in reference["curve"] if point["score"] is not None]
    return Curve(points, max(points, key=lambda point: point[1])[0] if points else None)


def _shared(task: Report, stages: Sequence[Report]) -> Shared:
    """A task's curve under each seed, over the draws of all stages."""
    curves: list[Curve] = []
    ends: list[int] = []
    for seed in dict.fromkeys(stage["seed"] for stage in stages):
        points: list[tuple[float, float]] = []
        marked, before, ends = None, 0, []
        for stage in (stage for stage in stages if stage["seed"] == seed):
            for evaluation in stage["evaluations"]:
                if (score := evaluation["scores"].get(task["name"])) is not None:
                    points.append((before + evaluation["draws"], 100 * score))
                    marked = points[-1][0] if evaluation["is_chosen"] else marked
            before += sum(drawn["draws"] for drawn in stage["tasks"].values())
            ends.append(before)
        curves += [Curve(points, marked)] if points else []
    bars = [reference["selection_bar"] for reference in task["references"] if reference["selection_bar"] is not None]
    return Shared(curves, ends[:-1], 100 * BAR * fmean(bars) if bars else None)


def _epochs(epochs: int | Sequence[int | None] | None) -> str:
    return "/".join("–" if epoch is None else str(epoch) for epoch in (epochs if isinstance(epochs, Sequence) else [epochs]))
