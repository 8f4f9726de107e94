"""Rows of a task drawn on a terminal: their text, tokens over their ids, what is cut, where the loss falls."""

import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mtcore.data.anatomy import Anatomy, Role, Span, count
from mtcore.data.text import TextEncoder

if TYPE_CHECKING:
    from rich.text import Text

STYLES: dict[Role, str] = {"structure": "cyan", "user": "", "answer": "bold green"}
BRACKETS: dict[Role, tuple[str, str]] = {"structure": ("", ""), "user": ("[", "]"), "answer": ("{", "}")}
UNDERLINES: dict[Role, str] = {"structure": " ", "user": "~", "answer": "^"}
"""Where there is no colour."""
TEXT_ENDS, TOKEN_ENDS = (400, 120), (40, 12)
"""What is shown of the beginning and the end of a long user text, in characters and in tokens."""


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


def middle_out(text: str, ends: tuple[int, int]) -> str:
    """A long text without its middle."""
    head, tail = ends
    if len(text) <= head + tail + 40:
        return text
    return f"{text[:head]} … {len(text) - head - tail:,} characters … {text[len(text) - tail :]}"


def visible(text: str) -> str:
    """What a terminal would act upon is written out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
