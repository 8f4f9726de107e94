"""`mtcore plugins` and `mtcore tasks`: what is installed, or what a run file names."""

from pathlib import Path
from typing import Any, cast

import click

from mtcore.cli.common import json_option, load_registry, print_json, print_table, read_run
from mtcore.config import RowLimits, RunConfig
from mtcore.contracts import TaskAdapter
from mtcore.data.rows import read_task
from mtcore.errors import MtcoreError
from mtcore.registry import Entry, Registry

PROVIDED = ("tasks", "filters", "samplers", "schedulers", "methods", "launchers", "observers", "commands")


@click.command()
@json_option
def plugins(as_json: bool) -> None:
    """List installed plugins: what they provide, and why one is not loaded."""
    found = load_registry().plugins
    rows = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "provides": {kind: list(plugin.provides.get(kind, ())) for kind in PROVIDED},
            "status": plugin.status,
            "error": plugin.error or None,
        }
        for plugin in found
    ]
    if as_json:
        print_json(rows)
        return
    lines = [["plugin", "distribution", "version", "status", "provides"]]
    for plugin in found:
        provided = "; ".join(f"{kind}: {', '.join(names)}" for kind in PROVIDED if (names := plugin.provides.get(kind)))
        lines.append([plugin.name, plugin.distribution, plugin.version, plugin.status, plugin.error or provided])
    print_table(lines)


@click.command()
@click.option("--count", is_flag=True, help="Read the rows and count them (MTCORE_DATA names the data folder).")
@click.option("--run", type=click.Path(path_type=Path), metavar="RUN.toml", help="List the tasks that this run file names.")
@json_option
def tasks(count: bool, run: Path | None, as_json: bool) -> None:
    """List the tasks of installed plugins, or those of a run, which a file may declare."""
    configs = list(read_run(run, ()).variants.values())
    registry = load_registry(configs[0])
    named = registry.tasks([task for config in configs for task in config.tasks]) if run else registry.entries("task")
    rows = [_describe(entry, registry, configs[0] if count else None) for entry in named]
    if as_json:
        print_json(rows)
        return
    lines = [["task", "output", "input", "labels", "metric", "train", "validation", "status"]]
    for row in rows:
        counts = ["–" if row[key] is None else f"{row[key]:,}" for key in ("train_rows", "validation_rows")]
        kinds = [row[key] for key in ("name", "output", "input")]
        lines.append([*kinds, str(len(row["labels"]) or "–"), row["metric"], *counts, row["status"]])
    print_table(lines)
    for plugin in registry.plugins:
        if plugin.status != "loaded":
            click.echo(f"not loaded: {plugin.name} ({plugin.distribution}): {plugin.status}: {plugin.error}", err=True)


def _describe(entry: Entry, registry: Registry, read: RunConfig | None) -> dict[str, Any]:
    """A task as the list has it; its rows are counted where it is said from where they are read."""
    spec = cast(type[TaskAdapter], entry.cls).spec
    train = validation = None
    status = "loaded"
    if read is not None:
        try:
            adapter = registry.build_task(entry, Path(read.data) if read.data else None)
            data, aside = read_task(entry.name, adapter, RowLimits(bad=read.rows.bad))
            train, validation, status = len(data.train), len(data.validation), f"read, {len(aside)} rows set aside" if aside else "read"
        except MtcoreError as error:
            status = str(error)
        except Exception as error:  # a plugin's own code may raise anything: its task says so, and the others are still listed
            status = f"{type(error).__name__}: {error}"
    return {
        "name": entry.name,
        "plugin": entry.plugin.name,
        "distribution": entry.plugin.distribution,
        "output": spec.output,
        "input": spec.input,
        "labels": list(spec.labels),
        "metric": spec.metric,
        "train_rows": train,
        "validation_rows": validation,
        "status": status,
    }
