"""`mtcore check`: whether tasks and components keep what they promise, claim by claim."""

import fnmatch
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from mtcore.cli.common import json_option, load_registry, print_json, print_table
from mtcore.config import is_pattern, merge, nearest, parse_setting
from mtcore.errors import ConfigError, UnknownName
from mtcore.modeling.load import find_base
from mtcore.plugins import GROUP, discover
from mtcore.registry import KINDS, Entry, Registry
from mtcore.testing import (
    Check,
    Outcome,
    filter_checks,
    launcher_checks,
    method_checks,
    observer_checks,
    sampler_checks,
    scheduler_checks,
    task_checks,
)
from mtcore.types import Base

WORDS = {"passed": "passed", "failed": "failed", "skipped": "skipped", "expected": "failed as expected"}
MARKS = {"passed": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("–", "yellow"), "expected": ("✗", "yellow")}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--kind", type=click.Choice(["task", *KINDS]), help="What NAME is, where it names things of several kinds.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the component, as in tau=3.33.")
@click.option("--model", metavar="MODEL", help="Try a task's texts with this model's tokenizer: a Hub id, a folder, or a built base.")
@click.option("--expect", "expected", multiple=True, metavar="CHECK=REASON", help="A check that is known to fail, and why.")
@json_option
def check(
    names: Sequence[str], kind: str | None, settings: Sequence[str], model: str | None, expected: Sequence[str], as_json: bool
) -> None:
    """Check NAME: a task (plugin/task, or the FILE.toml that declares it), a component (temperature) or a pattern (plugin/*).

    Rows are read as in a run, from MTCORE_DATA where a task does not bring its own. Without NAME, what can be checked is listed. Exit code 1: a
    check failed.
    """
    registry = load_registry()
    if not names:
        show_names(registry, kind, as_json=as_json)
        return
    # two files may declare tasks of one name
    entries = {(e.kind, full_name(e), e.plugin.distribution): e for name in names for e in find_entries(registry, name, kind)}
    if model is not None and not any(e.kind == "task" for e in entries.values()):
        raise ConfigError(f"--model is for tasks, and {' and '.join(names)} names none")
    base = None if model is None else find_base(model, Path("runs") / "bases", weights=False)
    reasons, options = parse_expected(expected), parse_options(settings)
    told = []
    for entry in entries.values():
        checks = checks_of(entry, registry, options, base, reasons)
        told.append(tried(entry, checks, is_shown=not as_json))
    if as_json:
        print_json(told)
    sys.exit(1 if any(table["failed"] for table in told) else 0)


def tried(entry: Entry, checks: Sequence[Check], *, is_shown: bool) -> dict[str, Any]:
    """Try an entry's checks, show each outcome as it comes, and return them as JSON."""
    if is_shown:
        click.echo(f"{entry.kind} {full_name(entry)}, from {entry.plugin.distribution} {entry.plugin.version}".rstrip())
    rows: list[dict[str, Any]] = []
    for item in checks:
        with redirect_stdout(sys.stderr):  # what a plugin prints must not end up in our JSON
            outcome = item.outcome()
        is_repeated = outcome.status == "skipped" and any((r["status"], r["found"]) == ("skipped", outcome.found) for r in rows)
        rows.append({"name": item.name, "claim": item.claim, "status": outcome.status, "found": outcome.found, "fix": outcome.fix or None})
        if is_shown:
            show(item, outcome, max(len(c.name) for c in checks), is_repeated=is_repeated)
    counts = Counter(row["status"] for row in rows)
    if is_shown:
        click.echo(f"{len(checks)} checks: {', '.join(f'{counts[s]} {words}' for s, words in WORDS.items() if counts[s])}\n")
    return {
        "name": full_name(entry),
        "kind": entry.kind,
        "distribution": entry.plugin.distribution,
        "failed": counts["failed"],
        "checks": rows,
    }


def find_entries(registry: Registry, name: str, kind: str | None) -> list[Entry]:
    """What a name or a pattern means among the tasks and components of the registry.

    Raises UnknownName with the nearest names, PluginError where it is of a broken plugin, ConfigError where it may be of several kinds.
    """
    entries = [e for k in ("task", *KINDS) if kind in (None, k) for e in registry.entries(k)]
    if is_pattern(name):
        if found := [e for e in entries if fnmatch.fnmatchcase(full_name(e), name)]:
            return found
    elif kinds := sorted({e.kind for e in entries if e.kind != "task" and name in (e.name, full_name(e))}):
        if len(kinds) > 1:
            raise ConfigError(f"{name!r} is a {' and a '.join(kinds)}: say which with --kind {kinds[0]}")
        return [registry.find(kinds[0], name)]
    try:
        return registry.tasks([name]) if kind in (None, "task") else [registry.find(kind, name)]
    except UnknownName:
        near = nearest(name, [n for e in entries for n in (e.name, full_name(e))])
        what = f"no {kind}" if kind else "nothing"
        raise UnknownName(f"{what} is called {name!r}{near} `mtcore check` lists what can be checked.{registry.not_loaded()}") from None


def full_name(entry: Entry) -> str:
    return entry.name if entry.kind == "task" else f"{entry.plugin.name}/{entry.name}"


def checks_of(
    entry: Entry, registry: Registry, options: Mapping[str, Any], base: Base | None, expected_failures: Mapping[str, str]
) -> list[Check]:
    """The checks of an entry. It is registered by a module where an installed distribution ships it; a task that a file declares is not."""
    modules = {(point.name, owner): point.module for point, owner, _ in discover(GROUP)}
    module = modules.get((entry.plugin.name, entry.plugin.distribution))
    if entry.kind == "task":
        if options:
            raise ConfigError(f"--set is for components; task {entry.name!r} has no options")
        folder = os.environ.get("MTCORE_DATA")
        data = Path(folder) if folder else None
        return task_checks(entry.cls, data=data, base=base, module=module, expected_failures=expected_failures)
    if entry.kind == "scheduler":
        return scheduler_checks(entry.cls, options=options, sampler=registry.sampler, module=module, expected_failures=expected_failures)
    simple = {
        "filter": filter_checks,
        "sampler": sampler_checks,
        "method": method_checks,
        "launcher": launcher_checks,
        "observer": observer_checks,
    }
    return simple[entry.kind](entry.cls, options=options, module=module, expected_failures=expected_failures)


def parse_expected(settings: Sequence[str]) -> dict[str, str]:
    """CHECK=REASON as a mapping; a reason is required."""
    expected = {}
    for setting in settings:
        name, _, reason = setting.partition("=")
        if not reason.strip():
            raise ConfigError(f"--expect {setting!r}: say why, as in --expect splits-disjoint='the published split repeats rows'")
        expected[name] = reason.strip()
    return expected


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE as a component's table in a run file."""
    table: dict[str, Any] = {}
    for setting in settings:
        table = merge(table, parse_setting(setting))
    return table


def show(item: Check, outcome: Outcome, width: int, *, is_repeated: bool = False) -> None:
    """Print one check: its mark, name and claim, and what was found; where it failed, how to mend it.

    What was found stands behind the claim of a check that passed where there is room, and is not said again where it `is_repeated`.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if os.isatty(1) else 200, highlight=False)
    mark, style = MARKS[outcome.status]
    text = Text(item.claim, overflow="fold")
    if outcome.status == "passed":
        seen = Text(f" ({outcome.found})", style="dim")
        text.append(seen if cell_len(item.claim + seen.plain) <= console.width - width - 7 else "")
    elif is_repeated:
        text.append(f" ({WORDS[outcome.status]} likewise)", style=style)
    else:
        said = "found" if outcome.status == "failed" else WORDS[outcome.status]
        text.append(f"\n{said}: {outcome.found}", style=style)
        text.append(f"\nfix: {outcome.fix}" if outcome.fix else "")
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=3, justify="right")
    grid.add_column(min_width=width)
    grid.add_column()
    grid.add_row(Text(mark, style=style), Text(item.name), text)
    with console.capture() as printed:
        console.print(grid)
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def show_names(registry: Registry, kind: str | None, *, as_json: bool) -> None:
    """Print what can be checked."""
    entries = [e for k in ("task", *KINDS) if kind in (None, k) for e in registry.entries(k)]
    if as_json:
        print_json([{"name": full_name(e), "kind": e.kind, "distribution": e.plugin.distribution} for e in entries])
        return
    print_table([["kind", "name", "distribution"], *([e.kind, full_name(e), e.plugin.distribution] for e in entries)])
    for plugin in registry.plugins:
        if plugin.status != "loaded":
            click.echo(f"not loaded: {plugin.name} ({plugin.distribution}): {plugin.status}: {plugin.error}", err=True)
