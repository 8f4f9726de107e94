"""Curves as SVG that stands in a page: a task alone over its epochs, and in the shared model over its draws."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT, ALONE_WIDTH, SHARED_WIDTH = 94, 92, 136
LEFT, GAP, RIGHT, TOP, BOTTOM = 24, 10, 5, 13, 15
"""Points: what the panels are high and wide, and what stands around them."""
# colours that no palette holds stand for the page's own, which differ in light and dark
COLOURS = {"#010101": "muted", "#020202": "grid", "#030303": "alone", "#040404": "shared", "#050505": "paper"}
MUTED, GRID, ALONE, SHARED, PAPER = COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7,
    "text.color": MUTED,
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2,
    "ytick.major.size": 0,
    "lines.linewidth": 1.4,
    "lines.markersize": 3,
}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Scores × 100 of one task under one seed, and the point that counts: the saturation epoch, or the checkpoint that was chosen."""

    points: Points
    marked: float | None


@dataclass(frozen=True)
class Shared:
    """A task's curves in the shared model."""

    curves: Sequence[Curve]
    stage_ends: Sequence[float]
    """Draws at which each stage but the last ended."""
    bar: float | None
    """What checkpoints were chosen against: 99 % of the best score alone."""


def task_plot(name: str, alone: Sequence[Curve], shared: Shared | None) -> str:
    """Draw one task. The same arguments give the same text, and no other task's plot has an id in common with it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels: list[tuple[int, Callable[[Axes], None]]] = []
    if alone:
        panels.append((ALONE_WIDTH, lambda axes: _draw_alone(axes, alone)))
    if shared is not None and shared.curves:
        panels.append((SHARED_WIDTH, lambda axes: _draw_shared(axes, shared)))
    width = LEFT + RIGHT + sum(wide for wide, _ in panels) + GAP * (len(panels) - 1)
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure, at, first = Figure(figsize=(width / 72, HEIGHT / 72), facecolor="none"), LEFT, None
        for wide, draw in panels:
            box = (at / width, BOTTOM / HEIGHT, wide / width, (HEIGHT - TOP - BOTTOM) / HEIGHT)
            axes = figure.add_axes(box, sharey=first)
            draw(axes)
            axes.tick_params(labelleft=first is None)
            at, first = at + wide + GAP, first or axes
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(file.getvalue())


def _draw_alone(axes: "Axes", curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    for curve in curves:
        _line(axes, curve, ALONE)
        if curve.marked is not None:
            axes.axvline(curve.marked, color=ALONE, linewidth=0.8, linestyle=(0, (1, 1.5)))
    axes.set_title("alone, by epoch", loc="left", fontsize=7, pad=4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    axes.margins(x=0.06, y=0.12)


def _draw_shared(axes: "Axes", shared: Shared) -> None:
    from matplotlib.ticker import MaxNLocator

    for curve in shared.curves:
        _line(axes, curve, SHARED)
    for end in shared.stage_ends:
        axes.axvline(end, color=MUTED, linewidth=0.6)
    if shared.bar is not None:
        axes.axhline(shared.bar, color=ALONE, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.set_title("shared, by draws", loc="left", fontsize=7, pad=4)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    axes.xaxis.set_major_formatter(lambda draws, _: f"{draws / 1000:g}k" if draws else "0")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    axes.margins(y=0.12)


def _line(axes: "Axes", curve: Curve, colour: str) -> None:
    xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
    axes.plot(xs, ys, color=colour, marker="o", markerfacecolor=PAPER, markeredgewidth=0.8, clip_on=False)
    marked = [(x, y) for x, y in curve.points if x == curve.marked]
    axes.plot([x for x, _ in marked], [y for _, y in marked], color=colour, marker="o", markersize=5, clip_on=False)


def _inline(svg: str) -> str:
    """The svg element alone, sized by the page, in the page's font and colours, and without ids that every figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", svg, flags=re.S)
    svg = re.sub(r'^(<svg [^>]*?)width="[^"]*" height="[^"]*" ', r"\1", svg)
    svg = re.sub(r'<g id="[^"]*"/>', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, name in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", svg)
