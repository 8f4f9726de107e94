"""`mtcore show`: rows of a task as the model sees them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click

from mtcore.cli.common import json_option, load_registry, print_json, print_table, read_run
from mtcore.cli.drawing import Page, visible
from mtcore.config import RunConfig
from mtcore.contracts import TaskAdapter
from mtcore.data.anatomy import Anatomy, Token, dissect, label_tokens
from mtcore.data.rows import BadRow, read_rows
from mtcore.data.text import TextEncoder
from mtcore.defaults.text2text import Text2Text
from mtcore.errors import ConfigError, MissingData, ModelError
from mtcore.inference.trie import LabelTrie, build_trie, next_labels
from mtcore.modeling.load import find_base
from mtcore.registry import Entry, Registry
from mtcore.types import Base, Example, Layout, MethodUse, TaskSpec

LABELS = 12
"""How many labels are shown unless all are asked for."""


@click.command()
@click.argument("task")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="train", show_default=True)
@click.option("--count", "rows", type=click.IntRange(1), default=3, show_default=True, help="How many rows, the first valid ones.")
@click.option(
    "--run", type=click.Path(path_type=Path), metavar="RUN.toml", help="Take data folder, model, layout and length from this run file."
)
@click.option("--variant", metavar="NAME", help="Of this variant of the run file.")
@click.option("--model", metavar="MODEL", help="Take this model's tokenizer: a Hub id, a folder, or a built base.")
@click.option("--layout", type=click.Choice(["task-first", "document-first"]), help="Where the document stands.")
@click.option("--full", is_flag=True, help="Leave nothing out of long texts and label sets.")
@json_option
def show(
    task: str,
    split: str,
    rows: int,
    run: Path | None,
    variant: str | None,
    model: str | None,
    layout: Layout | None,
    full: bool,
    as_json: bool,
) -> None:
    """Print rows of TASK (plugin/task, or a task file) as the model sees them: text, token ids, what is cut, where the loss falls.

    Only a tokenizer is needed for ids, and the text is shown without one. On a terminal structure and answer are coloured.
    """
    file = read_run(run, (), (variant,) if variant else ())
    config = next(iter(file.variants.values()))
    registry = load_registry(config)
    entry = find_task(task, registry, config if run else None)
    method = text_method(config, registry, layout)
    base, missing = find_tokenizer(model, config)
    encoder = None if base is None else method.encoder(base)
    adapter = registry.build_task(entry, Path(config.data) if config.data else None)
    found, aside = first_rows(entry.name, adapter, split, rows)
    spec, place = adapter.spec, method.config.layout
    anatomies = dissect(spec, found, place, adapter.render, encoder)
    if as_json:
        print_json(
            {
                "task": entry.name,
                "split": split,
                "layout": place,
                "model": base.name if base else None,
                "why_no_ids": missing or None,
                "max_length": encoder.max_length if encoder else None,
                "set_aside": [asdict(bad) for bad in aside],
                "rows": [row_as_json(anatomy, number) for number, anatomy in enumerate(anatomies)],
                "labels": [label_as_json(label, *found) for label, found in label_tokens(spec, encoder).items()],
            }
        )
        return
    page = Page(full=full)
    page.title(f"{entry.name} · {split} · {place} · " + (f"tokens of {base.name}" if base else "text only"), has_ids=encoder is not None)
    for number, anatomy in enumerate(anatomies, 1):
        page.row(anatomy, number, encoder)
    show_labels(spec, encoder, full=full)
    for bad in aside:
        click.echo(f"set aside: {bad.file}, line {bad.line}: {bad.reason}", err=True)
    if missing:
        click.echo(f"no token ids: {missing}\nOr take another model's tokenizer: --model MODEL", err=True)


def first_rows(name: str, adapter: TaskAdapter, split: str, count: int) -> tuple[list[Example], list[BadRow]]:
    """The first valid rows, and the malformed ones between them. Raises MissingData where no row is valid."""
    found: list[Example] = []
    aside: list[BadRow] = []
    for row in read_rows(name, adapter, split):
        if isinstance(row, BadRow):
            aside.append(row)
        else:
            found.append(row)
        if len(found) == count:
            break
    if not found:
        raise MissingData(
            f"{name}: there are no valid {split} rows" + (f"; {len(aside)} were set aside: {aside[0].reason}" if aside else "")
        )
    return found, aside


def find_task(task: str, registry: Registry, config: RunConfig | None) -> Entry:
    """A task by its name or its file; by its name also where the run's file declares it. Raises ConfigError where a pattern names several."""
    named = registry.tasks(config.tasks) if config else []
    found = [entry for entry in named if entry.name == task] or registry.tasks([task])
    if len(found) > 1:
        raise ConfigError(f"{task!r} names {len(found)} tasks, and one is shown: choose among {', '.join(e.name for e in found)}")
    return found[0]


def text_method(config: RunConfig, registry: Registry, layout: Layout | None) -> Text2Text:
    """The run's method, where its prompts are those of the box's text-to-text method; else that one as it comes."""
    method = registry.method(config.method)
    if not isinstance(method, Text2Text):
        click.echo(f"method {method.name!r} writes prompts of its own; shown are those of 'text2text'", err=True)
        method = registry.method(MethodUse(use=f"defaults/{Text2Text.name}"))
    options = Text2Text.Config.model_validate(method.config)
    return Text2Text(options if layout is None else options.model_copy(update={"layout": layout}))


def find_tokenizer(model: str | None, config: RunConfig) -> tuple[Base | None, str]:
    """The base whose tokenizer is used, or why there is none; a model that was asked for has to be there."""
    try:
        return find_base(model or config.model, Path(config.out) / "bases", weights=False), ""
    except ModelError as error:
        if model is not None:
            raise
        return None, str(error)


def row_as_json(anatomy: Anatomy, number: int) -> dict[str, Any]:
    def spelled(tokens: Iterable[Token]) -> dict[str, Any]:
        known = list(tokens)
        return {"ids": [i for t in known for i in t.ids], "tokens": [n for t in known for n in t.names]}

    spans = [{"role": s.role, "text": s.text, **spelled(s.tokens), "cut": spelled(s.cut)["ids"]} for s in anatomy.spans]
    answer = anatomy.example.answer
    return {
        "row": number,
        "fields": dict(anatomy.example.fields),
        "answer": list(answer) if isinstance(answer, tuple) else answer,
        "spans": spans,
        "length": anatomy.length,
        "loss_on": anatomy.spans[-1].length,
        "cut": anatomy.cut,
    }


def label_as_json(label: str, word: str, tokens: Sequence[Token]) -> dict[str, Any]:
    return {"label": label, "word": word, "ids": [i for t in tokens for i in t.ids], "tokens": [n for t in tokens for n in t.names]}


def show_labels(spec: TaskSpec, encoder: TextEncoder | None, *, full: bool) -> None:
    """Print the words that answers are chosen from, and what telling them apart takes."""
    labels = label_tokens(spec, encoder)
    if not labels:
        return
    click.echo()
    shown = list(labels.items()) if full else list(islice(labels.items(), LABELS))
    lines = [["label", "word", "tokens", "ids"] if encoder else ["label", "word"]]
    for label, (word, tokens) in shown:
        ids = " ".join(str(i) for t in tokens for i in t.ids)
        lines.append([label or "(none)", word, *([" ".join(visible(t.text) for t in tokens), ids] if encoder else [])])
    print_table(lines)
    if len(shown) < len(labels):
        click.echo(f"and {len(labels) - len(shown)} more labels (--full)")
    if encoder:
        click.echo(trie_in_words(spec, encoder))


def trie_in_words(spec: TaskSpec, encoder: TextEncoder) -> str:
    first: LabelTrie = (
        next_labels(spec, encoder, ()) if spec.output == "multi-label" else build_trie(encoder.label_paths(spec), encoder.eos_id)
    )
    takes_end = encoder.eos_id in first.edge_tokens_E
    end = "the end token is part of each" if takes_end else "no end token is needed"
    what = "first choice" if spec.output == "multi-label" else "choice"
    more = f"{len(first.tokens_M)} token{'' if len(first.tokens_M) == 1 else 's'} more"
    return f"{what} among {len(first.labels)}: one forward pass with {more}; {end}"
