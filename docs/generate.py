"""Write the reference pages from the code: `python docs/generate.py` makes run-file.md and commands.md anew."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mtcore.cli import COMMANDS, cli
from mtcore.config import RunConfig
from mtcore.plugins import load_plugins
from mtcore.registry import KINDS
from mtcore.types import Use

HERE = Path(__file__).parent
NOTE = "<!-- Written by `python docs/generate.py` from the code; a test compares. -->\n\n"
RUN_FILE = """
# The run file

A run file is TOML: it names tasks, a base model and components, and sets their options. Every key has a default; a key that mtcore does not know is
an error that names the nearest one. `--set key.path=value` on the command line sets any of them for once, in the run file and in all its variants.

    model = "tiny"
    tasks = ["clue/*"]
    scheduler = { use = "two-stage", examples_per_step = 32 }

    [variants.even]
    scheduler = { use = "mixture", sampler = { use = "class-balanced" } }

Each `[variants.NAME]` is a run of its own, compared in one table: what stands above the variants, with its keys overridden. A table that names
another component (`use`) replaces the old one whole, so that options of one never reach another; `plugins`, `out`, `observers` and `distribution`
hold for all variants. A relative `data` is relative to the run file.
"""
COMPONENTS = """
## Components

What ships in the box. A component of a plugin is named like one of the box, `{ use = "unimax", max_epochs = 2.0 }`, and as `plugin/name` where two
plugins have one of that name; its options are in its own documentation. A table without `use` sets options of the default component.
"""
COMMAND_PAGE = """
# Commands

Installed plugins may add more; `mtcore --help` lists them all. A command exits with 0 where it did what was asked, with 1 where something of it
failed or a check did not hold, and with 2 where it was asked for what cannot be. `mtcore --debug COMMAND` shows the traceback of an error.
"""
BOUNDS = {"gt": ">\u00a0{}", "ge": "≥\u00a0{}", "lt": "<\u00a0{}", "le": "≤\u00a0{}", "min_length": "at least {}"}
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def main() -> None:
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(HERE / name)


def pages() -> Mapping[str, str]:
    """The generated pages by file name."""
    return {"run-file.md": NOTE + run_file(), "commands.md": NOTE + commands()}


def run_file() -> str:
    """The keys of a run file, and the options of every component in the box."""
    parts = [RUN_FILE.lstrip("\n"), "## Keys\n", key_table(RunConfig)]
    for name, field in RunConfig.model_fields.items():
        if is_table(field.annotation):
            parts += [f"## `[{name}]`\n", f"{first_paragraph(field.annotation)}\n", key_table(field.annotation, f"{name}.")]
    parts.append(COMPONENTS.lstrip("\n"))
    registry = load_plugins(environment="")
    for kind in KINDS:
        parts.append(f"### {kind.capitalize()}s\n")
        for entry in registry.entries(kind):
            parts += [f"#### `{entry.name}`\n", f"{first_paragraph(entry.cls)}\n"]
            parts += [key_table(entry.cls.Config)] if entry.cls.Config.model_fields else []
    return "\n".join(parts)


def commands() -> str:
    """What `--help` of every command says."""
    parts = [COMMAND_PAGE.lstrip("\n")]
    for name in sorted(COMMANDS):
        context = click.Context(cli, info_name="mtcore", terminal_width=120, max_content_width=120, **cli.context_settings)
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(command, parent=context, info_name=name)
        parts.append(f"## mtcore {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


def key_table(model: type[BaseModel], prefix: str = "") -> str:
    meanings = docstrings(model)
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        kind = ", ".join([in_words(field.annotation), *bounds(field)])
        lines.append(f"| `{prefix}{name}` | {kind} | {default(field)} | {meanings.get(name, '')} |")
    return "\n".join(lines) + "\n"


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The texts that stand below the fields of a model, its parents' included."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
            assert isinstance(body, ast.ClassDef)
            found |= dict(_documented(body))
    return found


def _documented(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node, after in zip(body.body, body.body[1:], strict=False):
        match node, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


def in_words(annotation: Any) -> str:
    """What may stand for a key, in the words of TOML."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(in_words(a) for a in arguments if a is not NoneType)
    if origin is tuple:
        return f"list of {in_words(arguments[0])}s"
    if origin is dict:
        return f"table of {in_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Use):
        return annotation.kind
    return "table" if is_table(annotation) else WORDS[annotation]


def bounds(field: FieldInfo) -> list[str]:
    return [text.format(getattr(m, name)) for m in field.metadata for name, text in BOUNDS.items() if hasattr(m, name)]


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not set"
    return "" if is_table(field.annotation) else f"`{as_toml(value)}`"


def as_toml(value: Any) -> str:
    if isinstance(value, Use):
        return f"{{ {', '.join(f'{k} = {as_toml(v)}' for k, v in value.model_dump().items())} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and not issubclass(annotation, Use)


def first_paragraph(cls: Any) -> str:
    """The docstring of a class, up to the first empty line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


if __name__ == "__main__":
    main()
