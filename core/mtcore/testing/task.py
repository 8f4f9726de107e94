"""A task under test: its adapter, its rows read once, and the tokenizer that its texts are tried with."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest

from mtcore.config import RowLimits
from mtcore.contracts import Metric, TaskAdapter
from mtcore.data.rows import BadRow, read_task
from mtcore.data.text import TextEncoder, text_pair
from mtcore.errors import MissingData, UnknownName
from mtcore.evaluation.metrics import find_metric
from mtcore.testing.toys import toy_tokenizer
from mtcore.types import Base, Layout, Piece, TaskData, TaskSpec

MAX_LENGTH = 1 << 15
"""Tokens of a prompt; enough for every text but the longest, which must be cut."""


@dataclass(frozen=True)
class TaskUnderTest:
    """What the checks of a task look at."""

    cls: type[TaskAdapter]
    folder: Path | None
    base: Base | None
    module: str | None
    """The module that registers the task; "" for the class's own, None for a task that a file declares."""

    @property
    def spec(self) -> TaskSpec:
        return self.cls.spec

    @cached_property
    def adapter(self) -> TaskAdapter:
        return self.cls(self.folder)

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metric that decides and those beside it; skips the check where one of them is not known."""
        try:
            return [find_metric(self.adapter, name) for name in (self.spec.metric, *self.spec.beside)]
        except UnknownName:
            raise SkipTest("a metric is not known: see metrics-exist") from None

    @cached_property
    def absent(self) -> str:
        """Why there is nothing to read; empty where there is."""
        try:
            for split in ("train", "validation"):
                next(iter(self.adapter.rows(split)), None)
        except MissingData as error:
            return str(error)
        except Exception:
            return ""  # reading them will meet it again, and say so
        return ""

    @cached_property
    def reading(self) -> tuple[TaskData, list[BadRow]] | Exception:
        """The rows that are valid and those set aside, or why they could not be read: nothing is read twice."""
        try:
            return read_task(self.spec.name, self.adapter, RowLimits())
        except Exception as error:
            return error

    @property
    def data(self) -> TaskData:
        """The valid rows; skips the check where they cannot be had."""
        if self.absent or isinstance(self.reading, Exception):
            raise SkipTest("there are no rows to look at: see rows-well-formed")
        return self.reading[0]

    @cached_property
    def encoder(self) -> TextEncoder:
        if self.base is not None:
            return TextEncoder(self.base.folder / "tokenizer.json", self.base.eos_id, min(MAX_LENGTH, self.base.context))
        with TemporaryDirectory() as folder:
            return TextEncoder(toy_tokenizer(Path(folder)), 0, MAX_LENGTH)

    def prompt(self, fields: Mapping[str, str], layout: Layout = "task-first") -> tuple[Piece, ...]:
        return text_pair(self.spec, fields, None, layout, self.adapter.render).prompt
