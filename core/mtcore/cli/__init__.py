"""The command line: every command is imported when it is called, and not before."""

import os
import sys
from importlib.metadata import EntryPoint

import click

from mtcore import __version__
from mtcore.errors import Interrupted

COMMANDS = {
    "base": ("mtcore.cli.base:base", "Build a small base model from a corpus."),
    "check": ("mtcore.cli.check:check", "Check that a task or a component keeps what it promises."),
    "compare": ("mtcore.cli.compare:compare", "Compare two runs task by task; fails where a qualified task is lost."),
    "doctor": ("mtcore.cli.doctor:doctor", "Say what is in the way of a run, and what to do about it."),
    "new": ("mtcore.cli.new:new", "Write a plugin that works, to be edited."),
    "plan": ("mtcore.cli.plan:plan", "Show what a run would train on, without training."),
    "plugins": ("mtcore.cli.catalogue:plugins", "List installed plugins and what they provide."),
    "predict": ("mtcore.cli.predict:predict", "Answer JSON lines with a bundle."),
    "report": ("mtcore.cli.report:report", "Print the report of a finished run."),
    "show": ("mtcore.cli.show:show", "Print rows of a task as the model sees them."),
    "tasks": ("mtcore.cli.catalogue:tasks", "List the tasks of installed plugins, or those of a run."),
    "train": ("mtcore.cli.train:train", "Run everything: references, stages, verdicts, bundles, report."),
}


class LazyCommands(click.Group):
    """Commands by name: the box's own, and those of the entry-point group `mtcore.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *_plugin_commands()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            return _load(EntryPoint(cmd_name, COMMANDS[cmd_name][0], "mtcore.commands"))
        plugin = _plugin_commands().get(cmd_name)
        return _load(plugin[0]) if plugin else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        rows += [(name, f"From {owner}.") for name, (_, owner) in _plugin_commands().items()]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mtcore")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """One model for many text tasks: tasks are plugins, filtered into groups, measured alone, trained in stages, judged."""


def main() -> None:
    """Run the command line; mtcore's own errors are printed without a traceback and exit with 2."""
    is_debug = "--debug" in sys.argv
    try:
        # one handler for every command: ours are told in a sentence, others are bugs and keep their traceback
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Interrupted as stop:
        print(f"stopped by {stop}; what was done is saved, and the same command goes on from there", file=sys.stderr)
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        from mtcore.errors import MtcoreError

        if is_debug or not isinstance(error, MtcoreError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _plugin_commands() -> dict[str, tuple[EntryPoint, str]]:
    """Commands of distributions that MTCORE_PLUGINS allows, with their owner; a name of the box or of two distributions is nobody's."""
    from importlib.metadata import entry_points

    allowed = os.environ.get("MTCORE_PLUGINS")
    names = None if allowed is None else {_folded(name) for name in allowed.split(",")}
    found: dict[str, list[tuple[EntryPoint, str]]] = {}
    for entry_point in entry_points(group="mtcore.commands"):
        owner = entry_point.dist.name if entry_point.dist else ""
        if names is None or names & {_folded(owner), _folded(entry_point.name)}:
            found.setdefault(entry_point.name, []).append((entry_point, owner))
    return {name: owners[0] for name, owners in found.items() if name not in COMMANDS and len(owners) == 1}


def _folded(name: str) -> str:
    """Distribution names as pip compares them."""
    return name.strip().lower().replace("_", "-").replace(".", "-")


def _load(entry_point: EntryPoint) -> click.Command:
    """Import one command. A command that cannot be imported is told with its owner, like any broken plugin."""
    try:
        command = entry_point.load()
    except (Exception, SystemExit) as error:
        if entry_point.dist is None:
            raise
        raise click.ClickException(
            f"command {entry_point.name!r} of {entry_point.dist.name} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(command, click.Command):
        raise click.ClickException(f"{entry_point.value} is no click command")
    return command
