"""Draw what the benchmarks left in `runs/benchmarks/*.json`, as the SVG files of `docs/plots/`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, PLOTS = Path("runs/benchmarks"), Path("docs/plots")
GREY, GRID = "#808080", "#80808040"
"""To be read on white and on black."""
BLUE, ORANGE, GREEN = "#4878b8", "#d08040", "#5a9e6f"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mtcore",  # the same figures are the same bytes
    "font.size": 8,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.titlesize": 8,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
}


def draw(name: str, panels: Sequence[Callable[["Axes"], None]], size: tuple[float, float] = (2.6, 2.3)) -> Path:
    """One SVG with panels side by side, each of that size in inches; the first one explains the colours."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(size[0] * len(panels), size[1]), layout="constrained", facecolor="none")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes)
        figure.axes[0].legend(fontsize=7)
        PLOTS.mkdir(parents=True, exist_ok=True)
        figure.savefig(PLOTS / name, metadata={"Date": None})
    return PLOTS / name


def tasks(result: dict[str, Any]) -> list[Path]:
    """B1: how many times faster than batched scoring, over tasks, with the token ratio dashed."""
    rows = result["rows"]

    def panel(axes: "Axes") -> None:
        for document in sorted({row["document"] for row in rows}):
            mine = [row for row in rows if row["document"] == document]
            counts = [row["tasks"] for row in mine]
            (line,) = axes.plot(counts, [row["x_batched"] for row in mine], "o-", label=f"{document} tokens (dashed: token ratio)")
            axes.plot(counts, [row["token_ratio"] for row in mine], "--", color=line.get_color())
        axes.set(xlabel="tasks of one document", ylabel="times faster than batched scoring", xscale="log", yscale="log")

    return [draw("tasks.svg", [panel], (5, 3.4))]


def server(result: dict[str, Any]) -> list[Path]:
    """B7: latency against throughput, and what one server and many cost."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    made = []
    if "against_peers" in result:
        systems = result["against_peers"]["systems"]
        bounds = result["against_peers"]["bounds"]

        def latency(mix: str) -> Callable[["Axes"], None]:
            def panel(axes: "Axes") -> None:
                for (name, system), colour in zip(systems.items(), (GREY, ORANGE, BLUE), strict=True):
                    points = [(p["offered"], 1000 * p["p99"]) for p in system["mixes"][mix]["points"] if p["p99"] is not None]
                    axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
                for bound in {round(b, 3) for b in bounds[mix].values()}:
                    axes.axhline(1000 * bound, color=GREY, linewidth=0.8, linestyle=":")
                axes.set(title=mix, xlabel="answers a second", ylabel="P99, ms", yscale="log", xlim=(0, None))
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(ScalarFormatter())
                axes.yaxis.set_minor_formatter(NullFormatter())

            return panel

        made.append(draw("server-latency.svg", [latency(mix) for mix in bounds]))
    if "one_against_many" in result:
        rows = result["one_against_many"]["rows"]
        counts = [row["tasks"] for row in rows]

        def cost(title: str, value: Callable[[dict[str, Any]], float | None]) -> Callable[["Axes"], None]:
            def panel(axes: "Axes") -> None:
                for side, name, colour in (("separate", "a server a task", ORANGE), ("together", "one server", BLUE)):
                    points = [(n, v) for n, row in zip(counts, rows, strict=True) if (v := value(row[side])) is not None]
                    if points:
                        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
                axes.set(title=title, xlabel="tasks", xticks=counts, ylim=(0, None))

            return panel

        panels = [
            cost("memory, GiB", lambda side: side["memory"]["pss"] / 1024),
            cost("core-seconds a 1,000 answers", lambda side: side["best"] and side["best"]["core_seconds_per_1000"]),
            cost("answers a second at equal P99", lambda side: side["best"] and side["best"]["offered"]),
        ]
        made.append(draw("server-cost.svg", panels))
    return made


DRAWN = {"tasks.json": tasks, "server.json": server}
"""Who draws which result."""


def main() -> None:
    for name, drawing in DRAWN.items():
        if (RESULTS / name).is_file():
            for path in drawing(json.loads((RESULTS / name).read_text())):
                print(path)


if __name__ == "__main__":
    main()
