"""Checks of a task's rows: they can be read, they are the same everywhere, no split knows another, and labels are used."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from unittest import SkipTest

from mtcore.data.checks import check_rows, held_out_splits
from mtcore.data.rows import digest
from mtcore.errors import BadRows, MissingData, MtcoreError
from mtcore.testing.check import Failed
from mtcore.testing.fresh import NOT_IN_A_MODULE, digest_elsewhere, first_rows, first_rows_elsewhere
from mtcore.testing.task import TaskUnderTest
from mtcore.types import Example, TaskData

SHOWN = 5
"""Labels that a message lists."""


def rows_well_formed(task: TaskUnderTest) -> str:
    """Rows can be read, and at most 1 % of a split is malformed."""
    if task.absent and task.module is not None and not (task.folder and task.folder.is_dir()):
        raise SkipTest(task.absent)  # a task that a file declares says there where its rows are
    if task.absent:
        raise Failed(task.absent, "put the rows there, or let rows() look elsewhere")
    if isinstance(task.reading, BadRows):
        raise Failed(str(task.reading), "mend these rows, or what says what a row means: fields() and answer(), or the task file")
    if isinstance(task.reading, MissingData):
        raise Failed(
            str(task.reading),
            "see that there are rows for 'train' and for 'validation': from rows(), or in the files and shares of the task file",
        )
    if isinstance(task.reading, MtcoreError):
        raise Failed(str(task.reading), "mend the file that the message names")
    if isinstance(task.reading, Exception):
        raise task.reading
    data, aside = task.reading
    reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(bad.reason for bad in aside).most_common(3))
    told = f"; {len(aside)} set aside: {reasons} (first: {aside[0].file}, line {aside[0].line})" if aside else ""
    return f"{len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test{told}"


def splits_disjoint(task: TaskUnderTest) -> str:
    """No row stands in two splits, be it in other case, space or punctuation."""
    data = task.data
    found = [
        _shared(data, f"{held_out_splits(data)} rows are train rows"),
        _shared(replace(data, train=data.validation, validation=data.test, test=()), "test rows are validation rows"),
    ]
    if any(found):
        fix = "take them out of one split; where a published split is to stay, rows.allow_leaks in the run file lets the task train"
        raise Failed("; ".join(filter(None, found)), fix)
    return f"{len(data.validation) + len(data.test):,} held-out rows"


def labels_used(task: TaskUnderTest) -> str:
    """Every label of the spec answers some row."""
    data = task.data
    if unused := sorted(set(task.spec.labels) - _labels((*data.train, *data.validation, *data.test))):
        raise Failed(
            f"no row is answered with {_some(unused)}", "take the label out of words, or add rows; an unused word still costs probability"
        )
    return ", ".join(task.spec.labels[:SHOWN]) + (" …" if len(task.spec.labels) > SHOWN else "")


def labels_in_train(task: TaskUnderTest) -> str:
    """Every label that validation or test rows ask for stands in train rows."""
    data = task.data
    if unseen := sorted(_labels((*data.validation, *data.test)) - _labels(data.train)):
        raise Failed(f"train rows never show {_some(unseen)}", "move rows between the splits: what is never shown cannot be learned")
    return f"labels in train rows: {len(_labels(data.train))}"


def rows_repeat(task: TaskUnderTest) -> str:
    """Reading the rows again gives the same rows in the same order."""
    before = digest(task.data)
    again = TaskUnderTest(task.cls, task.folder, task.base, task.module)
    if digest(again.data) != before:
        raise Failed(
            "the second reading differs from the first", "let rows() depend on nothing but its split; draw from random.Random(a fixed seed)"
        )
    return f"digest {before[:12]}"


def rows_elsewhere(task: TaskUnderTest) -> str:
    """A process with another hash seed reads the same rows in the same order."""
    before = digest(task.data)
    if task.module is None:
        raise SkipTest(NOT_IN_A_MODULE)
    if digest_elsewhere(task.cls, task.folder) != before:
        raise Failed("another process reads other rows", "let no order come from a set, a hash or a folder listing: sort it")
    return f"digest {before[:12]}"


def picklable(task: TaskUnderTest) -> str:
    """A spawned process can be handed the class, and reads the same rows."""
    here = first_rows(task.cls, task.folder) if task.data else []
    if task.module is None:
        raise SkipTest(NOT_IN_A_MODULE)
    try:
        there = first_rows_elsewhere(task.cls, task.folder)
    except Exception as error:
        raise Failed(
            f"{type(error).__name__}: {error}", "let the class stand at the top of a module that can be imported by its name"
        ) from error
    if here != there:
        raise Failed(
            f"here {here[:1]}, there {there[:1]}", "let rows() use nothing that this process alone knows, such as a module's variables"
        )
    return f"{len(here)} rows"


def _shared(data: TaskData, what: str) -> str:
    """How many held-out rows are train rows; empty where none is."""
    report = check_rows(data, allow_leaks=["*"])
    count = max(report.leaks, report.normalised_leaks)
    return f"{count:,} of {len(data.validation) + len(data.test):,} {what} too, {report.leaks:,} of them sign by sign" if count else ""


def _labels(examples: Sequence[Example]) -> set[str]:
    return {label for e in examples for label in (e.answer if isinstance(e.answer, tuple) else (str(e.answer),))}


def _some(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:SHOWN])) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
