"""Words of models: bases, requests, predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtcore.errors import ModelError
from mtcore.types.tasks import Answer


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
    flops: float = 0.0
    """What answering takes, as far as it is known before: less than that where an answer is generated, 0 where the method does not count."""
    document: str = ""
    """Names the text that is read once for all requests with the same name that are predicted together; empty where nothing is shared."""
    document_cost: int = 0
    """The part of `cost` that this reading is."""


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
