"""`mtcore doctor`: whether this machine and installation will do, for a run file or in general."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtcore.cli.common import json_option, load_registry, print_json, read_run
from mtcore.errors import MtcoreError

if TYPE_CHECKING:
    from mtcore.doctor import Finding

MARKS = {"fine": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "bold red")}
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path), metavar="[RUN.toml]")
@json_option
def doctor(run: Path | None, as_json: bool) -> None:
    """Look at packages, devices, folders, plugins, base and rows, and say what to do; with RUN.toml, at what that run needs.

    Nothing is trained and nothing fetched. Exit code 1: something is in the way of a run.
    """
    may_fetch = not any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)
    os.environ.update(dict.fromkeys(OFFLINE, "1"))  # before anything reads it: to look must not fetch
    from mtcore.cli import COMMANDS
    from mtcore.doctor import Finding, Subject, examine

    told: list[tuple[str, Finding]] = []

    def tell(name: str, finding: Finding) -> None:
        told.append((name, finding))
        if not as_json:
            show(name, finding)

    try:
        configs, is_read = read_run(run, ()).variants, run is not None
    except MtcoreError as error:
        tell("run", Finding("problem", str(error), "correct the run file; the rest is looked at without it"))
        configs, is_read = read_run(None, ()).variants, False
    registry = load_registry(next(iter(configs.values())))
    for name, finding in examine(Subject(registry, configs, is_read, may_fetch, COMMANDS)):
        tell(name, finding)
    counts = {status: sum(f.status == status for _, f in told) for status in MARKS}
    if as_json:
        rows = [{"check": name, "status": f.status, "text": f.text, "todo": f.todo or None} for name, f in told]
        print_json({"problems": counts["problem"], "warnings": counts["warning"], "findings": rows})
    else:
        click.echo(", ".join(f"{counts[status]} {status}{'' if counts[status] == 1 else 's'}" for status in ("problem", "warning")))
    sys.exit(1 if counts["problem"] else 0)


def show(name: str, finding: "Finding") -> None:
    """Print one finding: its mark, what was looked at, what was found, what to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    mark, style = MARKS[finding.status]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(min_width=10)
    grid.add_column(overflow="fold")
    text = Text(finding.text)
    text.append(f"\n→ {finding.todo}" if finding.todo else "", style="bold")
    grid.add_row(Text(mark, style=style), Text(name), text)
    Console(width=None if os.isatty(1) else 200, highlight=False).print(grid)
