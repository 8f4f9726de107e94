"""`mtcore compare`: two runs side by side, task by task; its exit code is a release gate."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mtcore.cli.common import json_option, print_json, print_table
from mtcore.evaluation.tables import change_table, percent, sides_table

SHORT = {"95 % of difference": "95 %", "was qualified": "was", "is qualified": "is", "of shared tasks": "shared tasks"}
"""Column headings, short enough for a terminal; reports have the others."""


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--variant", metavar="NAME", help="The variant to compare, where a run has several.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="SHARE",
    help="Fail too where a score is lower by more than SHARE (0.01: one point) with its whole interval.",
)
@json_option
def compare(old: Path, new: Path, variant: str | None, max_drop: float | None, as_json: bool) -> None:
    """Compare two runs: folders, names below runs/, or the folders of single variants. Needs neither plugins nor data.

    Exits with 0 where no task that was qualified in OLD is lost in NEW (no longer qualified, failed or missing), and with 1 where one is.
    Differences carry 95 % bootstrap intervals, paired where the same rows decide.
    """
    from mtcore.evaluation.comparison import compare as compare_judgements
    from mtcore.runfolder import judgement

    comparison = compare_judgements(*(judgement(_folder(side), variant) for side in (old, new)))
    fallen = comparison.fallen(max_drop)
    table = {**comparison.as_json(), "fallen": fallen}
    if as_json:
        print_json(table)
    else:
        show_comparison(table)
        for name in fallen:
            click.echo(f"fallen: {name} by more than {percent(max_drop)} beyond noise", err=True)
    sys.exit(1 if comparison.lost or fallen else 0)


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print both tables, and every task that is lost with what became of it."""
    head, *lines = change_table(comparison)
    title = f"old: {comparison['old']['name']}, new: {comparison['new']['name']} (scores × 100; qualified: was, is)"
    print_table([[SHORT.get(name, name) for name in head], *lines], title=title)
    head, *lines = sides_table(comparison)
    print_table([[SHORT.get(name, name) for name in head], *lines])
    for task in comparison["tasks"]:
        if task["lost"]:
            after = f"scores {percent(task['new']['score'])} (qualified: {task['new']['verdict']})" if task["new"] else "is missing"
            click.echo(f"lost: {task['name']} was qualified with {percent(task['old']['score'])}, now {after}", err=True)
    if not comparison["lost"]:
        click.echo("no task that was qualified is lost")


def _folder(run: Path) -> Path:
    """A folder as it is given, or the run of that name."""
    return run if run.is_dir() or not (Path("runs") / run).is_dir() else Path("runs") / run
