"""Words of tasks: their specs, texts, rows and answers."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from mtcore.types.frozen import Frozen

OutputKind = Literal["binary", "ordinal", "multi-class", "multi-label", "regression", "generation"]
InputKind = Literal["single-sentence", "sentence-pair", "passage-question", "conversation"]
Layout = Literal["task-first", "document-first"]
Resource = Literal["high", "low", "unknown"]

Answer = str | float | tuple[str, ...]
"""A label; a number; several labels in canonical order; or, for generation, every text that counts as right (predictions: one text)."""


MAX_NUMBERS = 1000


class NumberRange(Frozen):
    """The numbers that a regression task may answer: low, low + step, …, high."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    step: float = Field(gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high or len(self.numbers()) > MAX_NUMBERS:
            raise ValueError(
                f"numbers go from low up to high in at most {MAX_NUMBERS} steps, not from {self.low} to {self.high} by {self.step}"
            )
        return self

    def numbers(self) -> list[float]:
        count = min(round((self.high - self.low) / self.step), MAX_NUMBERS + 1)
        return [round(self.low + i * self.step, 10) + 0.0 for i in range(count + 1)]  # + 0.0: no minus zero

    def nearest(self, number: float) -> float:
        """The number of the range that a model is taught for any other."""
        return min(self.numbers(), key=lambda n: (abs(n - number), n))


class TaskSpec(Frozen):
    """A task as pure data: enough to encode requests and read answers, so a bundle serves it without the plugin."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    output: OutputKind
    input: InputKind
    fields: tuple[str, ...] = Field(min_length=1)
    document_fields: tuple[str, ...] = ()
    """Fields that other tasks may share: in document-first layout they stand before the instruction."""
    instruction: str
    """The task-specific text prefix; structure, so it may hold control tokens."""
    template: str
    """How the fields are laid out, with one {placeholder} a field, up to where the answer begins."""
    words: dict[str, str] = {}
    """Label → answer word. The order is the canonical order (and, for ordinal tasks, the scale)."""
    none_word: str = ""
    """Multi-label: the word for no label at all."""
    separator: str = "、"
    """Multi-label: what stands between two answer words."""
    number_range: NumberRange | None = None
    max_answer_tokens: int = Field(default=64, gt=0)
    """Generation: where an answer that does not end by itself is cut."""
    metric: str
    """What decides qualification; the name of a metric of the adapter or of mtcore."""
    beside: tuple[str, ...] = ()
    """Metrics reported beside it."""
    licence: str
    source: str

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.words)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        parsed = [(name, form, conversion) for _, name, form, conversion in string.Formatter().parse(self.template) if name is not None]
        if any(not name or form or conversion for name, form, conversion in parsed):
            raise ValueError("template: a placeholder is a field's name in braces and nothing else, as in {text}")
        placeholders = [name for name, _, _ in parsed]
        if sorted(placeholders) != sorted(self.fields):
            raise ValueError(
                f"template holds {{{'}, {'.join(placeholders)}}}; fields are {', '.join(self.fields)}: each must stand there once"
            )
        if unknown := set(self.document_fields) - set(self.fields):
            raise ValueError(f"document_fields {sorted(unknown)} are not among fields {list(self.fields)}")
        for line in self.template.split("\n"):
            named = {name for _, name, _, _ in string.Formatter().parse(line) if name}
            if named & set(self.document_fields) and named - set(self.document_fields):
                raise ValueError(f"template line {line!r} mixes document fields with others; give document fields lines of their own")
        if self.output in ("binary", "ordinal", "multi-class", "multi-label"):
            least = {"binary": 2, "multi-label": 1}.get(self.output, 2)
            if len(self.words) < least or (self.output == "binary" and len(self.words) != 2):
                raise ValueError(
                    f"a {self.output} task needs {'exactly' if self.output == 'binary' else 'at least'} {least} words, not {len(self.words)}"
                )
            answers = [*self.words.values(), *([self.none_word] if self.output == "multi-label" else [])]
            if not all(answers) or len(set(answers)) != len(answers):
                raise ValueError("answer words (and none_word, for multi-label) must be present and differ from each other")
        elif self.words:
            raise ValueError(f"a {self.output} task has no answer words")
        if (self.output == "regression") != (self.number_range is not None):
            raise ValueError("number_range belongs to regression tasks, and each of them needs one")
        return self


@dataclass(frozen=True)
class Piece:
    """A stretch of prompt text: structure (may hold control tokens), or user text (can never become one)."""

    text: str
    is_user: bool = False
    is_document: bool = False
    """Part of what tasks share in document-first layout."""


Render = Callable[[Mapping[str, str], Layout], tuple[Piece, ...]]


@dataclass(frozen=True)
class TextPair:
    """The text-to-text form of an example: the prompt, and the pieces of its answer."""

    prompt: tuple[Piece, ...]
    answer: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """One valid row: its fields and its answer."""

    fields: Mapping[str, str]
    answer: Answer


@dataclass(frozen=True)
class TaskData:
    """A task with its valid rows in memory, as methods see it."""

    name: str
    spec: TaskSpec
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...] = ()
    render: Render | None = None
    """How a code-rendered task writes its prompt; None: by the spec."""
    plugin: str = ""
    """Which plugin and version the code is from."""
    digest: str = ""
    """Names spec and rows, and the code of a code-rendered task."""


class TaskProfile(Frozen):
    """What filters, samplers and schedulers know of a task."""

    name: str
    spec: TaskSpec
    train_rows: int
    validation_rows: int
    resource: Resource = "unknown"
    resource_is_assumed: bool = False
    bar: float | None = None
    """The reference's score on validation rows; None while there is none, or it is at chance."""
    saturation_epoch: int | None = None
    is_taught: bool = False
    """The model that training starts from answers it already."""


class Group(Frozen):
    """Tasks that share one model, and why."""

    name: str
    reason: str
    tasks: tuple[str, ...]
