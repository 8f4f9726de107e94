"""Tasks declared without Python: a TOML file that holds a task's spec and says which columns of which files its rows are."""

import glob
import hashlib
import json
import re
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from mtcore.config import is_pattern, nearest, validate
from mtcore.contracts import TaskAdapter
from mtcore.data.delimited import DELIMITERS, read_delimited
from mtcore.data.sources import RawRow, read_jsonl
from mtcore.errors import ConfigError, MissingData
from mtcore.types import Answer, Frozen, TaskSpec

SUFFIXES = (*DELIMITERS, ".jsonl")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
SPLIT_KEY = b"mtcore rows"
"""Of no task's own, so that a text which several tasks share is in the same split of all of them."""


class RowFiles(Frozen):
    """Where rows lie: one file a split, or one `file` and the shares of it that are held out. Paths are relative to the TOML file."""

    file: str | None = None
    train: str | None = None
    validation: str | float
    """A file; with `file`, the share of its rows."""
    test: str | float | None = None
    answer: str = "answer"
    """The answer's column."""
    columns: dict[str, str] = {}
    """Field → column, where they have different names."""
    answer_separator: str | None = Field(default=None, min_length=1)
    """What stands between several labels, or several acceptable texts, in one cell of a CSV or TSV file."""

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(name for name in (self.file, self.train, self.validation, self.test) if isinstance(name, str))

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        held_out = [share for share in (self.validation, self.test) if share is not None]
        if (self.file is None) == (self.train is None):
            raise ValueError("name either one `file`, with shares to hold out (validation = 0.1), or `train` and a file for validation")
        wanted, words = (str, "files") if self.file is None else (float, "shares of `file`")
        if not all(isinstance(value, wanted) for value in held_out):
            raise ValueError(f"with `{'train' if self.file is None else 'file'}`, validation and test are {words}, not {held_out}")
        if self.file is not None and not (all(0 < float(s) < 1 for s in held_out) and sum(map(float, held_out)) < 1):
            raise ValueError(f"validation and test are shares between 0 and 1 that leave rows to train on, not {held_out}")
        for name in self.files:
            if Path(name.removesuffix(".gz")).suffix not in SUFFIXES:
                raise ValueError(f"{name!r} is of no kind that is read: {', '.join(SUFFIXES)}, or these with .gz")
        return self


class TaskFile(TaskSpec):
    """A task spec and its rows, as one TOML file."""

    rows: RowFiles

    @model_validator(mode="after")
    def _fits_its_rows(self) -> Self:
        rows, names = self.rows, self.fields
        for name in rows.columns:
            if name not in names:
                raise ValueError(f"rows.columns: {name!r} is no field{nearest(name, names)} Fields: {', '.join(names)}")
        if rows.answer in (read := {rows.columns.get(name, name): name for name in names}):
            raise ValueError(f"column {rows.answer!r} is the answer and field {read[rows.answer]!r} too: the model would read its answer")
        if rows.answer_separator is not None and self.output not in ("multi-label", "generation"):
            raise ValueError(f"rows.answer_separator: a {self.output} task has one answer a row")
        if self.output == "multi-label" and rows.answer_separator is None and any(map(_is_delimited, rows.files)):
            raise ValueError('rows.answer_separator: say what stands between the labels in a cell, as in answer_separator = "|"')
        return self


class DeclaredTask(TaskAdapter):
    """A task that a file declares. A CSV cell is text: nothing is retyped but the number of a regression task."""

    path: ClassVar[Path]
    files: ClassVar[RowFiles]

    def rows(self, split: str) -> Iterable[RawRow]:
        if self.files.file is not None:
            return (row for row in self._read(self.files.file, split) if self._split(row) == split)
        name = getattr(self.files, split)
        return () if name is None else self._read(name, split)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        return {name: row[column] for name, column in self._columns().items() if column in row}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        if self.files.answer not in row:
            raise LookupError(f"column {self.files.answer!r} is missing")
        answer: Any = row[self.files.answer]
        if self.spec.output in ("multi-label", "generation"):
            is_text = isinstance(answer, str) and self.spec.output == "generation"
            if not (is_text or isinstance(answer, list)):
                raise TypeError(f"the answer {answer!r} is no list of {'texts' if self.spec.output == 'generation' else 'labels'}")
            return (answer,) if is_text else tuple(answer)
        if self.spec.words and not isinstance(answer, str):
            raise TypeError(f"the label {answer!r} is a {type(answer).__name__}, and labels are text: write it in quotes")
        return answer  # type: ignore[no-any-return]  # checked against the spec by the one who reads rows

    def _columns(self) -> dict[str, str]:
        return {name: self.files.columns.get(name, name) for name in self.spec.fields}

    def _read(self, name: str, split: str) -> Iterator[RawRow]:
        path = self.path.parent / name
        if not path.is_file():
            beside = sorted(p.name for s in SUFFIXES for p in path.parent.glob(f"*{s}*"))
            raise MissingData(f"{self.path}: no {split} rows: {path} is not there. Beside it: {', '.join(beside) or 'no file of rows'}.")
        if _is_delimited(name):
            yield from map(self._with_answer, read_delimited(path, (*self._columns().values(), self.files.answer)))
        else:
            yield from read_jsonl(path)

    def _with_answer(self, row: RawRow) -> RawRow:
        """A row of cells with its answer as a JSON row has it: several as a list, a number as a number (what is none stays text)."""
        if row.value is None:
            return row
        cell, separator = row.value[self.files.answer], self.files.answer_separator
        answer: Any = cell
        if separator is not None:
            answer = cell.split(separator) if cell else []
        elif self.spec.output == "regression" and NUMBER.fullmatch(cell):
            answer = float(cell)
        return replace(row, value={**row.value, self.files.answer: answer})

    def _split(self, row: RawRow) -> str:
        """The split of a row by its fields alone: equal inputs stay together, and a new row moves no other. Unreadable rows are told once."""
        if row.value is None:
            return "train"
        text = json.dumps([row.value.get(column) for column in self._columns().values()])
        place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=SPLIT_KEY).digest()) / 2**64
        # from both ends, so that changing one share moves no row of the other
        if place < float(self.files.validation):
            return "validation"
        return "test" if place >= 1 - float(self.files.test or 0) else "train"


def find_task_files(pattern: str) -> list[Path]:
    """The files that a path or a pattern of paths names. Raises ConfigError where there is none."""
    path = Path(pattern)
    if path.is_file():
        return [path]
    found = sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file()) if is_pattern(pattern) else []
    if not found:
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) or "none"
        raise ConfigError(f"tasks: no file answers to {pattern!r}. TOML files in {path.parent}: {beside}.")
    return found


def read_task_file(path: Path) -> type[DeclaredTask]:
    """The task that a file declares. Raises ConfigError, which names the file and every wrong key, where it declares none."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a task file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    if isinstance(table.get("template"), str) and "fields" not in table:
        table["fields"] = _placeholders(path, table["template"])
    declared = validate(TaskFile, table, str(path))
    spec = TaskSpec.model_validate(declared.model_dump(exclude={"rows"}))
    return type(spec.name, (DeclaredTask,), {"spec": spec, "path": path, "files": declared.rows, "__doc__": f"Declared by {path}."})


def _placeholders(path: Path, template: str) -> list[str]:
    """The fields of a task that does not list them: what the template names, in its order."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{path}: template: {error}; a brace that is no field is written twice, {{{{ or }}}}") from None


def _is_delimited(name: str) -> bool:
    return Path(name.removesuffix(".gz")).suffix in DELIMITERS
