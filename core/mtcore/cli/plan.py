"""`mtcore plan`: what a run would train on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mtcore.cli.common import json_option, load_registry, print_json, print_table, read_run, run_options, update_option
from mtcore.errors import ConfigError, MtcoreError
from mtcore.live import read_live, require_one_model
from mtcore.planning import plan_run, write_order
from mtcore.preparation import Preparer


@click.command()
@run_options
@click.option(
    "--order",
    type=click.Path(path_type=Path),
    metavar="FILE.parquet",
    help="Write the order of all draws: stage, position, task, row, pass.",
)
@update_option
@json_option
def plan(run: Path | None, settings: Sequence[str], chosen: Sequence[str], order: Path | None, bundle: Path | None, as_json: bool) -> None:
    """Show groups, stages and draws of RUN.toml, without training and without loading torch.

    With several variants, JSON output is the plan of what stands above them, and one plan a variant, by name, under `variants`.
    """
    file = read_run(run, settings, chosen)
    if bundle is not None:
        require_one_model(file)
    registry = load_registry(next(iter(file.variants.values())))
    preparer = Preparer(registry, lambda event: None, None if bundle is None else read_live(bundle))
    plans = {name: plan_run(config, registry, preparer) for name, config in file.variants.items()}
    if order is not None:
        if len(plans) > 1:
            raise ConfigError(f"--order writes one variant: choose it with --variant ({', '.join(plans)})")
        rows = write_order(next(iter(plans.values())), order)
        is_open = "" if rows else ": no stage is decided before references; [resource] in the run file decides it"
        if rows and any(group.is_changing for group in next(iter(plans.values())).groups):
            is_open = ": as far as shares are decided before training"
        click.echo(f"{rows:,} draws written to {order}{is_open}", err=True)
    if as_json:
        tables = {name: p.as_json() for name, p in plans.items()}
        if len(tables) > 1 and file.own is not None:
            try:
                own = plan_run(file.own, registry, preparer).as_json()
            except MtcoreError as error:  # only the variants need to make sense
                own = {"groups": [], "warnings": [f"what stands above the variants is no run of its own: {error}"]}
            print_json({**own, "variants": tables})
        else:
            print_json(next(iter(tables.values())))
        return
    for name, p in plans.items():
        _show(name, p.as_json())
        if p.estimate is not None:
            click.echo(f"{name + ': ' if name else ''}{p.estimate}")
        config = file.variants[name]
        count = len(config.seeds) * sum(len(g.group.tasks) for g in p.groups)
        options = "".join(f", {key} = {value}" for key, value in config.launcher.options.items())
        click.echo(f"{name + ': ' if name else ''}references: {count}, by launcher {config.launcher.use}{options}")


def _show(variant: str, table: dict[str, Any]) -> None:
    for group in table["groups"]:
        click.echo(f"{variant + ': ' if variant else ''}group {group['name']} — {group['reason']}")
        for stage in group["stages"]:
            lines = [["task", "share", "draws", "passes", "never seen", "token share (estimated)"]]
            if isinstance(stage["tasks"], dict):
                lines += [[name, *(_cell(t[key], form) for key, form in FORMS.items())] for name, t in stage["tasks"].items()]
            else:
                lines.append(["known after references"] + ["unknown"] * len(FORMS))
            print_table(lines, title=f"stage {stage['name']}, {_cell(stage['steps'], ',')} steps" + GROUPINGS[stage["grouping"]])
            if (changes := stage["shares_change"]) is not None:
                needs, every = " and ".join(changes["needs"]), _cell(changes["every"], ",")
                click.echo(f"  these are the shares at its start: they change every {every} draws with {needs}")
        if not group["stages"]:
            click.echo(f"  nothing to train: {', '.join(group['tasks'])}")
    for warning in table["warnings"]:
        click.echo(f"warning: {warning}", err=True)


GROUPINGS = {"mixed": "", "one-task": ", every step of one task", "shared-documents": ", rows of one document together"}
FORMS = {"share": ".4f", "draws": ",", "passes": ".2f", "unseen": ".1%", "token_share": ".1%"}


def _cell(value: Any, form: str) -> str:
    return value if isinstance(value, str) else format(value, form)
