"""Read a task's rows, keep the valid ones, and set the others aside with file, line and reason."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtcore.config import RowLimits
from mtcore.contracts import TaskAdapter
from mtcore.data.mixture import subset
from mtcore.data.sources import MAX_SNIPPET, RawRow
from mtcore.errors import BadRows, MissingData
from mtcore.types import Answer, Example, TaskData, TaskSpec

MAX_FIELD = 1 << 18
"""Characters; a longer field is a malformed row."""
MAX_REASON = 300
"""Characters; an error may quote the whole row."""


@dataclass(frozen=True)
class BadRow:
    """A row set aside, and why."""

    task: str
    split: str
    file: str
    line: int
    reason: str
    snippet: str


def read_task(name: str, adapter: TaskAdapter, limits: RowLimits, plugin: str = "") -> tuple[TaskData, list[BadRow]]:
    """Read all splits of a task, in memory, and choose the rows that the run's limits allow.

    Raises MissingData where a needed split is missing or empty, BadRows where more than `limits.bad` of a split is malformed.
    """
    aside: list[BadRow] = []
    splits: dict[str, tuple[Example, ...]] = {}
    for split in ("train", "validation", "test"):
        examples, bad = _read_split(name, adapter, split)
        aside += bad
        if len(bad) > limits.bad * (len(examples) + len(bad)):
            reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(b.reason for b in bad).most_common(3))
            first = bad[0]
            raise BadRows(
                f"{name}: {len(bad)} of {len(examples) + len(bad)} {split} rows are malformed, more than the {limits.bad:.1%} that rows.bad allows. "
                f"Most often: {reasons}. The first is {first.file}, line {first.line}: {first.snippet!r}"
            )
        if not examples and split != "test":
            raise MissingData(f"{name}: no {split} rows at all; a task needs rows to train on and rows to be judged on")
        allowed = math.ceil(len(examples) * limits.fraction) if split == "train" else min(len(examples), limits.validation or len(examples))
        splits[split] = examples if allowed == len(examples) else tuple(examples[i] for i in subset(name, split, len(examples), allowed))
    data = TaskData(name, adapter.spec, splits["train"], splits["validation"], splits["test"], adapter.render, plugin)
    return data, aside


def digest(data: TaskData) -> str:
    """SHA-256 over everything of a task that decides what a model sees: spec and rows, not source code."""
    total = hashlib.sha256(data.spec.model_dump_json().encode())
    for split in (data.train, data.validation, data.test):
        total.update(f"\n{len(split)}\n".encode())
        for example in split:
            total.update(_line(example))
    if data.render is not None and data.train:
        total.update(data.plugin.encode())
    return total.hexdigest()


def digest_rows(examples: Iterable[Example]) -> str:
    """SHA-256 over fields and answers of rows, in their order."""
    total = hashlib.sha256()
    for example in examples:
        total.update(_line(example) + b"\n")
    return total.hexdigest()


def _line(example: Example) -> bytes:
    return json.dumps([dict(example.fields), example.answer], ensure_ascii=False, sort_keys=True).encode()


def read_rows(name: str, adapter: TaskAdapter, split: str) -> Iterator[Example | BadRow]:
    """The rows of a split as they come: valid, or set aside with the reason."""
    for number, row in enumerate(adapter.rows(split), 1):
        raw = row if isinstance(row, RawRow) else RawRow(row, f"{name} {split}", number)
        reason = raw.problem
        if not reason:
            try:
                example = _check(adapter, raw.value)
            except Exception as error:
                reason = str(error) if isinstance(error, _Malformed) else f"{type(error).__name__}: {error}"
            else:
                yield example
        if reason:
            snippet = raw.snippet or _printable(_shown(raw.value), MAX_SNIPPET)
            yield BadRow(name, split, raw.file, raw.line, _printable(reason, MAX_REASON), snippet)


def _read_split(name: str, adapter: TaskAdapter, split: str) -> tuple[tuple[Example, ...], list[BadRow]]:
    examples: list[Example] = []
    aside: list[BadRow] = []
    for row in read_rows(name, adapter, split):
        if isinstance(row, BadRow):
            aside.append(row)
        else:
            examples.append(row)
    return tuple(examples), aside


class _Malformed(Exception):
    """What is wrong with a row."""


def _check(adapter: TaskAdapter, row: Any) -> Example:
    spec = adapter.spec
    fields = adapter.fields(row)
    if missing := [name for name in spec.fields if name not in fields]:
        raise _Malformed(f"field {missing[0]!r} is missing")
    for name in spec.fields:
        if problem := text_problem(fields[name]):
            raise _Malformed(f"field {name!r} {problem}")
    return Example({name: fields[name] for name in spec.fields}, _checked_answer(spec, adapter.answer(row)))


def text_problem(value: object) -> str:
    """Why a value is no usable text; empty where it is one."""
    if not isinstance(value, str):
        return f"is a {type(value).__name__}, not text"
    if not value.strip():
        return "is empty"
    if "\0" in value:
        return "holds a NUL character"
    if len(value) > MAX_FIELD:
        return f"is longer than {MAX_FIELD} characters"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "holds a lone surrogate"
    return ""


def _checked_answer(spec: TaskSpec, answer: Answer) -> Answer:
    if spec.output == "generation":
        if not isinstance(answer, tuple) or not answer:
            raise _Malformed(f"the answer of a generation task is a tuple of acceptable texts, not {answer!r}")
        for text in answer:
            if problem := text_problem(text):
                raise _Malformed(f"an acceptable answer {problem}")
        return answer
    if spec.number_range is not None:
        if isinstance(answer, bool) or not isinstance(answer, (int, float)) or not math.isfinite(answer):
            raise _Malformed(f"the answer {answer!r} is no number")
        if not spec.number_range.low <= answer <= spec.number_range.high:
            raise _Malformed(f"the answer {answer!r} lies outside {spec.number_range.low:g} to {spec.number_range.high:g}")
        return float(answer)
    labels = answer if spec.output == "multi-label" else (answer,)
    if not isinstance(labels, tuple):
        raise _Malformed(f"the answer of a multi-label task is a tuple of labels, not {answer!r}")
    for label in labels:
        if not isinstance(label, str) or label not in spec.words:
            raise _Malformed(f"the label {label!r} is not among the task's {len(spec.words)} labels")
    return tuple(label for label in spec.words if label in labels) if spec.output == "multi-label" else answer


def _shown(row: object) -> str:
    return "" if row is None else str(dict(row) if isinstance(row, Mapping) else row)


def _printable(text: str, length: int) -> str:
    """The beginning of a text that may quote a row, lone surrogates written out: no terminal or log takes them."""
    return text[:length].encode("utf-8", "backslashreplace").decode("utf-8")
