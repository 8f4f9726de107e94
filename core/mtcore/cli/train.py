"""`mtcore train`: the whole run."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mtcore.cli.common import json_option, load_registry, print_json, print_table, read_run, run_options, update_option
from mtcore.cli.compare import show_comparison
from mtcore.evaluation.report import VariantOutcome
from mtcore.evaluation.tables import comparison_table, cost_table, gathered, task_table
from mtcore.events import Event


@click.command()
@run_options
@click.option("--restart", is_flag=True, help="Drop what these variants have done before (references are kept) and start over.")
@update_option
@json_option
def train(run: Path | None, settings: Sequence[str], chosen: Sequence[str], restart: bool, bundle: Path | None, as_json: bool) -> None:
    """Train RUN.toml: references, stages, verdicts, one bundle a group, a report. The same command resumes.

    Without a run file, every task of every loaded plugin is taken. With --update, RUN.toml names the tasks of BUNDLE and new ones: only the
    new ones are measured, training goes on from BUNDLE, and a successor that loses a qualified task is not published (exit code 1).
    """
    from mtcore.files import require_writable
    from mtcore.fitting import Fitting
    from mtcore.interrupts import listening
    from mtcore.live import read_live
    from mtcore.pipeline import train as train_run
    from mtcore.runfolder import PAGE
    from mtcore.updating import update

    file = read_run(run, settings, chosen)
    live = None if bundle is None else read_live(bundle)
    first = next(iter(file.variants.values()))
    registry = load_registry(first)
    if run is None:
        names = [entry.name for entry in registry.tasks(first.tasks)]
        click.echo(
            f"no run file: training {len(names)} tasks of the installed plugins: {', '.join(names)}.{registry.not_loaded()}", err=True
        )
    folder = Path(first.out) / file.name / (live.workplace if live else "")
    is_main = os.environ.get("RANK", "0") == "0"
    require_writable(folder)
    observers = [registry.observer(use) for use in first.observers] if is_main else []

    def emit(event: Event) -> None:
        for observer in list(observers):
            try:
                observer.on_event(event, folder)
            except Exception as error:  # who only looks on must not end what others wait for
                observers.remove(observer)
                what = f"{type(error).__name__}: {error}"
                click.echo(f"warning: observer {observer.name!r} is told nothing more, because it raised {what}", err=True)

    with listening() as stop:
        fitting = Fitting(emit, is_main, stop, first.distribution)
        if live is None:
            outcomes = train_run(file, registry, fitting, folder, restart=restart)
        else:
            outcomes = [update(file, registry, fitting, folder, live, restart=restart)]
    fitting.leave()
    if as_json and is_main:
        print_json([outcome.as_json() for outcome in outcomes])
    elif is_main:
        for outcome in outcomes:
            show(outcome)
            show_update(outcome)
        if len(outcomes) > 1:
            print_table(comparison_table([outcome.as_json() for outcome in outcomes]), title="variants (score × 100; * qualified)")
        click.echo(f"reports: {folder}")
        if (folder / PAGE).is_file():
            click.echo(f"in a browser: {folder / PAGE}")
    is_refused = any(outcome.update and not outcome.update["is_published"] for outcome in outcomes)
    if is_refused or any(outcome.failures for outcome in outcomes):
        for failure in [f for outcome in outcomes for f in outcome.failures]:
            click.echo(f"failed: {failure}", err=True)
        sys.exit(1)


def show(outcome: VariantOutcome) -> None:
    """Print one variant's verdicts, deployment and cost."""
    print_table(
        _compact(task_table(outcome), with_group=len(outcome.groups) > 1 and not outcome.is_alone), title=f"{outcome.run} {outcome.variant}"
    )
    for group in outcome.groups:
        click.echo(
            f"group {group.name}: {len(group.qualified)} of {len(group.tasks)} qualified, average {100 * group.average:.2f} — {group.reason}"
        )
    shared = (
        "; ".join(f"the {group} model for {', '.join(tasks)}" for group, tasks in outcome.deployment.shared.items()) or "no shared model"
    )
    unready = f" (not ready, at chance or failed alone: {', '.join(outcome.deployment.not_ready)})" if outcome.deployment.not_ready else ""
    single = f"; a model of their own for {', '.join(outcome.deployment.single)}" if outcome.deployment.single else ""
    paper = "–" if outcome.overhead is None else f"{100 * outcome.overhead:.1f} %"
    click.echo(
        f"put online: {shared}{single}{unready}. Deployable overhead {100 * outcome.deployment.overhead:.1f} % (the paper's: {paper})"
    )
    print_table(cost_table(outcome), title="cost")
    for warning in gathered(outcome):
        click.echo(f"warning: {warning}", err=True)


def show_update(outcome: VariantOutcome) -> None:
    """Print how a candidate compares with the live bundle, and where it now lies."""
    if outcome.update is not None:
        show_comparison(outcome.update["comparison"])
        said = "published" if outcome.update["is_published"] else "not published, because a qualified task would be lost"
        click.echo(f"{said}: {outcome.update['path']}; {outcome.update['bundle']} is as it was")


def _compact(table: Sequence[Sequence[str]], *, with_group: bool) -> list[list[str]]:
    """The columns that decide, short enough for a terminal; the report has the others."""
    left_out = {"metric"} if with_group else {"metric", "group"}
    columns = [number for number, name in enumerate(table[0]) if name not in left_out]
    short = {"bag of words": "words", "saturates": "epoch", "95 % of ratio": "95 %"}
    return [[short.get(table[0][c], table[0][c]) for c in columns]] + [
        [line[c].removeprefix("epoch ") for c in columns] for line in table[1:]
    ]
