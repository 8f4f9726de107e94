"""What the model sees of an example: its pieces with their token ids, what does not fit and is cut, and where the loss falls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mtcore.data.text import TextEncoder, label_texts, text_pair
from mtcore.types import Example, Layout, Render, TaskSpec

Role = Literal["structure", "user", "answer"]
MAX_SHARED = 8
"""Tokens that may share a character; where more together are still no text, they are shown one by one."""


@dataclass(frozen=True)
class Token:
    """One token, or the few that together are text: a character may be cut into several."""

    text: str
    ids: tuple[int, ...]
    names: tuple[str, ...]
    """As the vocabulary writes them."""


@dataclass(frozen=True)
class Span:
    """A stretch of an example with one role: structure and user text are read, the answer is learned (the loss falls on it)."""

    role: Role
    text: str
    """As it is written, cut or not."""
    tokens: tuple[Token, ...] = ()
    """What is fed; an answer ends with the end token."""
    cut: tuple[Token, ...] = ()
    """User text that does not fit."""

    @property
    def length(self) -> int:
        return count(self.tokens)


@dataclass(frozen=True)
class Anatomy:
    """One example, span by span."""

    example: Example
    spans: tuple[Span, ...]

    @property
    def length(self) -> int:
        return sum(span.length for span in self.spans)

    @property
    def cut(self) -> int:
        """Ids left out."""
        return sum(count(span.cut) for span in self.spans)


def dissect(spec: TaskSpec, examples: Sequence[Example], layout: Layout, code: Render | None, encoder: TextEncoder | None) -> list[Anatomy]:
    """Examples as training encodes them; without an encoder, their text alone.

    Raises ConfigError where training would: structure fills the context, or two answer words are one to the tokenizer.
    """
    pairs = [text_pair(spec, e.fields, e.answer, layout, code) for e in examples]
    written = [[*((_role(p.is_user), p.text) for p in pair.prompt), ("answer", "".join(pair.answer))] for pair in pairs]
    if encoder is None:
        return [Anatomy(e, tuple(Span(role, text) for role, text in spans)) for e, spans in zip(examples, written, strict=True)]
    found = []
    for example, texts, laid in zip(examples, written, encoder.lay_out(pairs, encoder.room_for_answers(spec)), strict=True):
        parts = zip(texts, [*laid.pieces, laid.answer], [*laid.cut, []], strict=True)
        spans = [Span(role, text, tuple(tokens(ids, encoder)), tuple(tokens(cut, encoder))) for (role, text), ids, cut in parts]
        found.append(Anatomy(example, tuple(spans)))
    return found


def label_tokens(spec: TaskSpec, encoder: TextEncoder | None) -> dict[str, tuple[str, tuple[Token, ...]]]:
    """Label → its word and the word's tokens; empty for free text. For multi-label, "" is no label at all."""
    texts = {} if spec.output == "generation" else label_texts(spec)
    paths = encoder.label_paths(spec) if encoder and texts else {}
    return {label: (text, tuple(tokens(paths.get(label, ()), encoder)) if encoder else ()) for label, text in texts.items()}


def tokens(ids: Sequence[int], encoder: TextEncoder) -> Iterator[Token]:
    """Ids in the smallest runs that are whole text."""
    start = 0
    while start < len(ids):
        near = ids[start : start + MAX_SHARED]
        run = tuple(near[: next((n for n in range(1, len(near) + 1) if "\ufffd" not in encoder.decode(near[:n])), 1)])
        names = tuple(encoder.token(i) for i in run)
        yield Token(names[0] if run[0] in encoder.control_ids else encoder.decode(run), run, names)
        start += len(run)


def count(shown: Sequence[Token]) -> int:
    return sum(len(token.ids) for token in shown)


def _role(is_user: bool) -> Role:
    return "user" if is_user else "structure"
