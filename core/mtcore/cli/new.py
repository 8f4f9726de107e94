"""`mtcore new`: write a plugin that works, to be edited."""

import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

import click

from mtcore.cli.common import load_registry
from mtcore.errors import ConfigError
from mtcore.registry import LOCAL

KINDS = ("task", "sampler", "scheduler", "filter")
LONGEST = 28
"""Characters; names stand in every table."""
SUFFIX = ".in"
"""Template files carry it beyond their names, so that no tool takes them for what they become."""
PARTS = {
    "mtcore_NAME.py": "the {kind}: edit the three places that are numbered",
    "mtcore_NAME/__init__.py": "the {kind}: edit the three places that are numbered",
    "mtcore_NAME/rows": "its rows, made up: put your own in their place",
    "tests/test_NAME.py": "what every {kind} promises, and what this one does",
    "pyproject.toml": "what makes it a plugin",
    "README.md": "how to go on",
}


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option("--folder", default=".", type=click.Path(path_type=Path), help="Where to put the plugin's folder.")
def new(kind: str, name: str, folder: Path) -> None:
    """Write a plugin called NAME: an example that installs, passes its checks, and is edited in three places.

    It needs no network and overwrites nothing.
    """
    folded = fold(name)
    target = folder / (folded if kind == "task" else f"{kind}-{folded}")
    require_free(kind, folded, target)
    try:
        write(kind, folded, target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}): choose another place with --folder") from None
    if folded != name:
        click.echo(f"{name!r} becomes {folded!r}: names are in lower case, with hyphens")
    parts = {part.replace("NAME", underscored(folded)): text.format(kind=kind) for part, text in PARTS.items()}
    lines = {part: text for part, text in parts.items() if (target / part).exists()}
    click.echo(f"{target}: a {kind} that works, to be made yours\n")
    for part, text in lines.items():
        click.echo(f"  {part:{max(map(len, lines))}}  {text}")
    click.echo(f"\nnext:\n  pip install -e {target}\n  mtcore check {folded}/{folded}\n  pytest {target}")


def fold(name: str) -> str:
    """A name as plugins are called: lower case, hyphens. Raises ConfigError for one that cannot be folded so."""
    folded = _folded(name)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", folded) or len(folded) > LONGEST:
        raise ConfigError(
            f"{name!r} cannot name a plugin: use at most {LONGEST} letters a to z, digits and hyphens, a letter first, as in 'refund-requests'"
        )
    return folded


def underscored(name: str) -> str:
    """A folded name as modules are called."""
    return name.replace("-", "_")


def require_free(kind: str, name: str, target: Path) -> None:
    """Raise ConfigError where the folder or the name is taken."""
    if target.exists():
        raise ConfigError(f"{target} exists, and nothing is overwritten: choose another name, or another place with --folder")
    if name == LOCAL:
        raise ConfigError(f"{LOCAL}/NAME is what tasks that files declare are called: choose another name")
    registry = load_registry()
    module = f"mtcore_{underscored(name)}"
    if plugin := next((p for p in registry.plugins if _folded(p.name) == name), None):
        raise ConfigError(f"a plugin called {plugin.name!r} is installed, from {plugin.distribution}: choose another name")
    if kind != "task" and (owner := next((e.plugin for e in registry.entries(kind) if e.name == name), None)):
        raise ConfigError(f"a {kind} called {name!r} is installed, from {owner.distribution}: choose another name")
    if find_spec(module) is not None:
        raise ConfigError(f"a module called {module!r} can be imported already: choose another name")


def write(kind: str, name: str, target: Path) -> None:
    """Fill in the templates of a kind."""
    module = underscored(name)
    words = {"name": name, "module": module, "class_name": "".join(part.capitalize() for part in name.split("-"))}
    for path, text in templates(kind):
        filled = target / path.replace("NAME", module).removesuffix(SUFFIX)
        filled.parent.mkdir(parents=True, exist_ok=True)
        filled.write_text(Template(text).substitute(words) if path.endswith(SUFFIX) else text, encoding="utf-8")


def templates(kind: str) -> Sequence[tuple[str, str]]:
    """The template files of a kind, by their path."""
    root = Path(str(files("mtcore") / "templates" / kind))
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return [(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in found]


def _folded(name: str) -> str:
    return re.sub(r"[-_.\s]+", "-", name.strip()).lower()
