"""`mtcore plugins` and `mtcore tasks`: what is installed."""

import os
from pathlib import Path
from typing import Any, cast

import click

from mtcore.cli.common import json_option, load_registry, print_json, print_table
from mtcore.config import RowLimits
from mtcore.contracts import TaskAdapter
from mtcore.data.rows import read_task
from mtcore.errors import MtcoreError
from mtcore.registry import Entry, Registry

PROVIDED = ("tasks", "filters", "samplers", "schedulers", "methods", "observers", "commands")


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
@json_option
def tasks(count: bool, as_json: bool) -> None:
    """List the tasks of installed plugins."""
    registry = load_registry()
    rows = [_describe(entry, registry, count=count) for entry in registry.entries("task")]
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


def _describe(entry: Entry, registry: Registry, *, count: bool) -> dict[str, Any]:
    spec = cast(type[TaskAdapter], entry.cls).spec
    folder = os.environ.get("MTCORE_DATA")
    train = validation = None
    status = "loaded"
    if count:
        try:
            data, aside = read_task(entry.name, registry.build_task(entry, Path(folder) if folder else None), RowLimits())
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
