"""What commands share: run files, plugins, tables, JSON. Plugin commands may use it too."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mtcore.config import RunConfig, RunFile, load_run
from mtcore.errors import UnknownName
from mtcore.plugins import load_plugins
from mtcore.registry import Registry

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else.")


def run_options(command: Command) -> Command:
    """RUN.toml, --set, --variant: what every command on a run file takes."""
    for option in (
        click.option("--variant", "chosen", multiple=True, metavar="NAME", help="Only this variant of the run file; may be repeated."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a key of the run file, as in scheduler.stage2.tau=3.33."
        ),
        click.argument("run", required=False, type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


def update_option(command: Command) -> Command:
    """--update BUNDLE."""
    return click.option(
        "--update",
        "bundle",
        type=click.Path(path_type=Path),
        metavar="BUNDLE",
        help="Go on from this live bundle: add or replace tasks of it.",
    )(command)


def read_run(run: Path | None, settings: Sequence[str], chosen: Sequence[str] = ()) -> RunFile:
    """Read a run file with MTCORE_DATA as its default data folder, and keep the chosen variants."""
    file = load_run(run, settings=settings, data=os.environ.get("MTCORE_DATA"))
    for name in chosen:
        if name not in file.variants:
            if run is None:
                raise UnknownName(f"without a run file there is no variant {name!r}")
            raise UnknownName(f"{run} has no variant {name!r}; it has {', '.join(v for v in file.variants if v) or 'none'}")
    return RunFile(file.name, {name: config for name, config in file.variants.items() if not chosen or name in chosen}, file.own)


def load_registry(config: RunConfig | None = None) -> Registry:
    """Load the plugins that the environment and the run file allow."""
    rules = config.plugins if config else None
    return load_plugins(
        environment=os.environ.get("MTCORE_PLUGINS"), allow=rules.allow if rules else None, deny=rules.deny if rules else ()
    )


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


LONG = 30
"""Characters; a longer cell is text, and may be folded."""


def print_table(lines: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a header and lines as a table that fits the terminal; only columns of long texts are folded."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(lines[0]):
        cells = [line[number] for line in lines]
        widest = max(map(len, cells))
        is_number, is_short = all(_is_number(cell) for cell in cells[1:]), widest <= LONG
        table.add_column(
            name, justify="right" if is_number else "left", overflow="fold", no_wrap=is_short, min_width=widest if is_short else None
        )
    for line in lines[1:]:
        table.add_row(*[Text(cell) for cell in line])
    console = Console(width=None if os.isatty(1) else 200)
    # rather a line that the terminal breaks than a number that is cut
    console.width = max(console.width, Console(width=1000).measure(table).minimum)
    console.print(table)


def _is_number(cell: str) -> bool:
    return not cell.strip("0123456789.,%–-* s") or cell in ("unknown", "failed")
