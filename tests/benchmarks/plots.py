"""Plots of what the benchmarks left in runs/benchmarks, as SVG in docs/plots."""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt  # noqa: E402 - after the backend is chosen

ROWS, PLOTS = Path("runs/benchmarks"), Path("docs/plots")


def tasks() -> None:
    """B1: how many times faster than batched scoring, over tasks, with the token ratio dashed."""
    rows = json.loads((ROWS / "tasks.json").read_text())["rows"]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for document in sorted({row["document"] for row in rows}):
        mine = [row for row in rows if row["document"] == document]
        counts = [row["tasks"] for row in mine]
        (line,) = axes.plot(counts, [row["x_batched"] for row in mine], marker="o", label=f"{document} tokens")
        axes.plot(counts, [row["token_ratio"] for row in mine], linestyle="--", color=line.get_color())
    axes.set(xlabel="tasks of one document", ylabel="times faster than batched scoring", xscale="log", yscale="log")
    axes.legend(title="document (dashed: token ratio)")
    PLOTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOTS / "tasks.svg", metadata={"Date": None})


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "mtcore"
    tasks()
