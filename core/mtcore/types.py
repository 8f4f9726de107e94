"""The words of mtcore as plain data: tasks, answers, stages, what has happened, what it cost."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mtcore.errors import ModelError

OutputKind = Literal["binary", "ordinal", "multi-class", "multi-label", "regression", "generation"]
InputKind = Literal["single-sentence", "sentence-pair", "passage-question", "conversation"]
Layout = Literal["task-first", "document-first"]
Signal = Literal["train-loss", "validation-loss", "scores"]
Resource = Literal["high", "low", "unknown"]
Kind = Literal["filter", "sampler", "scheduler", "method", "observer"]

Answer = str | float | tuple[str, ...]
"""A label; a number; several labels in canonical order; or, for generation, every text that counts as right (predictions: one text)."""


class Frozen(BaseModel):
    """Strict, immutable data that knows its way to JSON and back."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# --- tasks ---------------------------------------------------------------------------------------------------------------------------


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


# --- components named in a run file ---------------------------------------------------------------------------------------------------


class Use(BaseModel):
    """A component by name, with its options still unresolved: `{ use = "temperature", tau = 2.0 }`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: ClassVar[Kind]
    use: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class FilterUse(Use):
    kind = "filter"


class SamplerUse(Use):
    kind = "sampler"


class SchedulerUse(Use):
    kind = "scheduler"


class MethodUse(Use):
    kind = "method"


class ObserverUse(Use):
    kind = "observer"


# --- stages and what has happened in them ----------------------------------------------------------------------------------------------


class Cost(Frozen):
    """What a piece of work took."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    padding: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in Cost.model_fields})


class Mixture(Frozen):
    """What a sampler decides: shares that sum to one, weights on losses, and, where it must, a shorter run."""

    shares: dict[str, float]
    loss_weights: dict[str, float] = {}
    """Weight of a task's examples in the loss (1 where absent); a step's loss is Σ wℓ / Σ w."""
    draws: int | None = None
    """Fewer draws than asked for, because the sampler's own limits leave no more."""
    note: str = ""


class Stage(Frozen):
    """A span of training. `tasks` or `draws` are None while they cannot be known yet (before references)."""

    name: str
    tasks: tuple[str, ...] | None
    sampler: SamplerUse
    draws: int | None
    epoch_draws: int | None
    """What one epoch of this stage is, in draws."""
    examples_per_step: int
    learning_rate: float
    grouping: Literal["mixed", "one-task"] = "mixed"
    evaluate_every: int | None = None
    """Draws between two evaluations; the end of the stage is always evaluated."""
    patience: int | None = None
    """End the stage after so many evaluations without a new best."""
    start: str = "last"
    """`base`, `last`, or the name of a checkpoint of an earlier stage."""
    note: str = ""
    """What a reader of the report must know about this stage."""


class Evaluation(Frozen):
    """Scores at one point of a stage, and the checkpoint that holds the weights."""

    stage: str
    step: int
    draws: int
    epoch: float
    scores: dict[str, float | None]
    """None where a task's metric or parser failed."""
    qualified: int | None
    """How many tasks reach their bar; None while there are no bars."""
    average: float
    losses: dict[str, float] = {}
    checkpoint: str = ""

    @property
    def rank(self) -> tuple[int, float]:
        """Most qualified tasks first, then the macro average."""
        return (self.qualified or 0, self.average)


class StageDone(Frozen):
    """A finished stage."""

    stage: Stage
    mixture: Mixture
    steps: int
    draws: dict[str, int]
    evaluations: tuple[Evaluation, ...]
    ended: Literal["complete", "patience"]
    cost: Cost = Cost()


class LedgerEntry(Frozen):
    """One thing that happened: a mixture that came into force, or an evaluation."""

    stage: str
    position: int
    mixture: Mixture | None = None
    evaluation: Evaluation | None = None


class Ledger(Frozen):
    """What has happened so far that later decisions may use; append-only."""

    entries: tuple[LedgerEntry, ...] = ()

    def append(self, entry: LedgerEntry) -> "Ledger":
        return Ledger(entries=(*self.entries, entry))


class Fitted(Frozen):
    """What a method leaves: the bundle's folder, its history, and what evaluating took along the way."""

    bundle: str
    done: tuple[StageDone, ...]
    chosen: Evaluation | None
    evaluation_cost: Cost = Cost()

    @property
    def cost(self) -> Cost:
        """Training in all stages."""
        return sum((d.cost for d in self.done), Cost())


# --- models and requests --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """A base model as a frozen input: where its files are, and the hash that names their content."""

    name: str
    folder: Path
    digest: str
    config: dict[str, Any]

    @property
    def eos_id(self) -> int:
        """The id that ends an answer."""
        eos = self.config.get("eos_token_id")
        if isinstance(eos, list) and eos:
            eos = eos[0]
        if not isinstance(eos, int):
            raise ModelError(f"{self.folder / 'config.json'} names no eos_token_id, so answers could not end; add it there")
        return eos

    @property
    def context(self) -> int:
        """The most tokens the model can see at once."""
        return int(self.config.get("max_position_embeddings") or 1 << 30)


@dataclass(frozen=True)
class Request:
    """One set of fields and the tasks asked of it."""

    fields: Mapping[str, str]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A request encoded: its cost in tokens, and what had to be done to it (`truncated`), by task."""

    request: Request
    cost: int
    flags: Mapping[str, tuple[str, ...]]
    payload: Any


@dataclass(frozen=True)
class Prediction:
    """A task's answer to a request; probabilities over labels where the task has labels."""

    task: str
    answer: Answer
    probabilities: Mapping[str, float] | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskError:
    """Why a task has no answer to a request."""

    task: str
    reason: str


@dataclass(frozen=True)
class Preview:
    """What a method can say of a task before training."""

    mean_tokens: float
    truncated: float
    """Share of rows whose user text does not fit and is cut."""
    warnings: tuple[str, ...] = ()
