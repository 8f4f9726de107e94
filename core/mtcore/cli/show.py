"""`mtcore show`: rows of a task as the model sees them."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtcore.cli.common import json_option, load_registry, print_json, print_table, read_run
from mtcore.config import RunConfig
from mtcore.data.anatomy import Anatomy, Role, Span, Token, count, dissect, label_tokens
from mtcore.data.rows import BadRow, read_rows
from mtcore.data.text import TextEncoder
from mtcore.defaults.text2text import Text2Text
from mtcore.errors import MissingData, ModelError
from mtcore.inference.trie import LabelTrie, build_trie, next_labels
from mtcore.modeling.load import find_base
from mtcore.registry import Entry, Registry
from mtcore.types import Base, Example, Layout, MethodUse, TaskSpec

if TYPE_CHECKING:
    from rich.text import Text

STYLES: dict[Role, str] = {"structure": "cyan", "user": "", "answer": "bold green"}
BRACKETS: dict[Role, tuple[str, str]] = {"structure": ("", ""), "user": ("[", "]"), "answer": ("{", "}")}
UNDERLINES: dict[Role, str] = {"structure": " ", "user": "~", "answer": "^"}
"""Where there is no colour."""
TEXT_ENDS, TOKEN_ENDS, LABELS = (400, 120), (40, 12), 12
"""What is shown of the beginning and the end of a long user text, in characters and in tokens; and how many labels."""


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
    found: list[Example] = []
    aside: list[BadRow] = []
    for row in read_rows(entry.name, adapter, split):
        if isinstance(row, BadRow):
            aside.append(row)
        else:
            found.append(row)
        if len(found) == rows:
            break
    if not found:
        raise MissingData(
            f"{entry.name}: there are no valid {split} rows" + (f"; {len(aside)} were set aside: {aside[0].reason}" if aside else "")
        )
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
        click.echo(f"no token ids: {missing}", err=True)


def find_task(task: str, registry: Registry, config: RunConfig | None) -> Entry:
    """A task by its name or its file; by its name also where the run's file declares it."""
    named = registry.tasks(config.tasks) if config else []
    return next((entry for entry in named if entry.name == task), None) or registry.tasks([task])[0]


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


class Page:
    """Rows on a terminal: coloured there, with brackets and underlines elsewhere."""

    def __init__(self, *, full: bool) -> None:
        from rich.console import Console

        self.console = Console(width=shutil.get_terminal_size().columns, highlight=False)
        self.is_plain = not self.console.is_terminal or self.console.no_color
        self.full = full

    def title(self, text: str, *, has_ids: bool) -> None:
        from rich.text import Text

        legend = Text(style="dim")
        if self.is_plain:
            legend.append("[user text] {answer} the rest is structure")
            legend.append("; under tokens: ~ user text, ^ the loss falls here" if has_ids else "")
        else:
            legend = Text.assemble(("structure", STYLES["structure"]), "  user text  ", ("answer: the loss falls here", STYLES["answer"]))
        self.console.print(Text(text, style="bold"))
        self.console.print(legend)

    def row(self, anatomy: Anatomy, number: int, encoder: TextEncoder | None) -> None:
        from rich.padding import Padding
        from rich.text import Text

        answer = anatomy.spans[-1].length
        sizes = (
            f": {anatomy.length:,} of {encoder.max_length:,} tokens, {anatomy.length - answer:,} read and {answer:,} learned"
            if encoder
            else ""
        )
        self.console.print()
        self.console.print(Text(f"row {number}{sizes}", style="bold"))
        self.console.print(Padding(self._text(anatomy.spans), (0, 0, 0, 2), expand=False))
        if encoder:
            self.console.print()
            self._tokens(anatomy.spans)
        for span in anatomy.spans:
            if span.cut:
                whole = count(span.cut) + span.length
                lost = visible("".join(token.text for token in span.cut)[:60])
                said = f"! cut: {count(span.cut):,} of {whole:,} tokens of a user text do not fit; it breaks off before “{lost}…”"
                self.console.print(Text(said, style="" if self.is_plain else "red"))

    def _text(self, spans: Sequence[Span]) -> "Text":
        from rich.text import Text

        text = Text()
        for span in spans:
            fed = "".join(token.text for token in span.tokens) if span.cut else span.text
            left, right = BRACKETS[span.role] if self.is_plain else ("", "")
            whole = fed if self.full or span.role != "user" else middle_out(fed, TEXT_ENDS)
            text.append(left + visible(whole) + right, style=STYLES[span.role])
        return text

    def _tokens(self, spans: Sequence[Span]) -> None:
        """Tokens over their ids, as many as fit on a line."""
        from rich.cells import cell_len, set_cell_size
        from rich.text import Text

        line: list[tuple[str, str, Role]] = []
        width = 2

        def print_line() -> None:
            top, ids, under = Text("  "), Text("  "), "  "
            for text, numbers, role in line:
                size = max(cell_len(text), len(numbers))
                top.append(set_cell_size(text, size) + "  ", style=STYLES[role])
                ids.append(numbers.ljust(size) + "  ", style="dim")
                under += UNDERLINES[role] * size + "  "
            for shown in (top, ids, Text(under if self.is_plain else "")):
                shown.rstrip()
                self.console.print(shown, no_wrap=True, crop=False)

        for cell in (cell for span in spans for cell in self._cells(span)):
            size = max(cell_len(cell[0]), len(cell[1])) + 2
            if line and width + size > self.console.width + 2:
                print_line()
                line, width = [], 2
            line.append(cell)
            width += size
        print_line()

    def _cells(self, span: Span) -> Iterable[tuple[str, str, Role]]:
        cells = [(visible(t.text).replace("\n", "\\n").replace(" ", "␣"), " ".join(map(str, t.ids)), span.role) for t in span.tokens]
        head, tail = TOKEN_ENDS
        if self.full or span.role != "user" or len(cells) <= head + tail + 1:
            return cells
        left_out = count(span.tokens[head : len(cells) - tail])
        return [*cells[:head], (f"… {left_out:,} more …", "", span.role), *cells[len(cells) - tail :]]


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
    how = "one word begins another, so the end token belongs to each" if takes_end else "told apart by their words alone"
    what = "first choice" if spec.output == "multi-label" else "choice"
    beside = f"{len(first.tokens_M)} token{'' if len(first.tokens_M) == 1 else 's'} beside the prompt"
    return f"{what} among {len(first.labels)} in one forward pass: {beside}; {how}"


def middle_out(text: str, ends: tuple[int, int]) -> str:
    """A long text without its middle."""
    head, tail = ends
    if len(text) <= head + tail + 40:
        return text
    return f"{text[:head]} … {len(text) - head - tail:,} characters … {text[len(text) - tail :]}"


def visible(text: str) -> str:
    """What a terminal would act upon is written out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
