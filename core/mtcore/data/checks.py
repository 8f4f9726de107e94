"""What is wrong or worth knowing in a task's rows before training: leaks, repeats, conflicts, and the floors that cost nothing."""

import fnmatch
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtcore.data.text import answer_texts
from mtcore.errors import DataError
from mtcore.types import Answer, Example, TaskData

MIN_BAG_ROWS = 20


@dataclass(frozen=True)
class DataReport:
    """Findings on one task's rows."""

    leaks: int
    """Validation and test rows whose fields equal a train row's."""
    normalised_leaks: int
    """The same after Unicode, case, white space and punctuation are folded away."""
    repeats: int
    """Train rows that stand there again with the same answer."""
    conflicts: int
    """Train rows that stand there again with another answer."""
    answer_in_input: float | None
    """Share of train rows whose answer word stands in the input; None for generation."""

    def warnings(self, data: TaskData) -> list[str]:
        """The findings in words."""
        rows, told = len(data.train), []
        if self.leaks or self.normalised_leaks:
            told.append(
                f"{self.leaks} of {len(data.validation) + len(data.test)} {held_out_splits(data)} rows are train rows too "
                f"({self.normalised_leaks} up to case, space and punctuation)"
            )
        if self.repeats:
            told.append(f"{self.repeats} of {rows} train rows repeat another")
        if self.conflicts:
            told.append(f"{self.conflicts} of {rows} train rows repeat another's input with another answer")
        if self.answer_in_input is not None and self.answer_in_input > 0.5:
            told.append(f"the answer word stands in the input of {self.answer_in_input:.0%} of train rows")
        if not data.test:
            told.append("no test split: checkpoints are chosen and judged on the same validation rows")
        return told


def check_rows(data: TaskData, *, allow_leaks: Sequence[str] = ()) -> DataReport:
    """Look for leaks, repeats and conflicts. Raises DataError for validation or test rows that are train rows, unless allowed for this task."""
    train = [tuple(e.fields[f] for f in data.spec.fields) for e in data.train]
    held_out = [tuple(e.fields[f] for f in data.spec.fields) for e in (*data.validation, *data.test)]
    known, folded = set(train), {_fold(row) for row in train}
    leaks = sum(row in known for row in held_out)
    if leaks and not any(fnmatch.fnmatch(data.name, pattern) for pattern in allow_leaks):
        raise DataError(
            f"{data.name}: {leaks} of {len(held_out)} {held_out_splits(data)} rows are train rows too, so a score on them measures memory. "
            f"Take them out of one split, or allow it for this task: rows.allow_leaks = [{data.name!r}]"
        )
    answers: dict[tuple[str, ...], set[Answer]] = {}
    repeats = conflicts = 0
    for row, example in zip(train, data.train, strict=True):
        seen = answers.setdefault(row, set())
        repeats += example.answer in seen
        conflicts += bool(seen) and example.answer not in seen
        seen.add(example.answer)
    return DataReport(
        leaks=leaks,
        normalised_leaks=sum(_fold(row) in folded for row in held_out),
        repeats=repeats,
        conflicts=conflicts,
        answer_in_input=_answer_in_input(data),
    )


def held_out_splits(data: TaskData) -> str:
    return "validation and test" if data.test else "validation"


def shared_rows(tasks: Sequence[TaskData]) -> list[str]:
    """Across tasks: warnings for validation inputs of one task that are train inputs of another."""
    train = {t.name: {_fold(tuple(e.fields.values())) for e in t.train} for t in tasks}
    told = []
    for task in tasks:
        inputs = [_fold(tuple(e.fields.values())) for e in task.validation]
        for other in tasks:
            if other.name != task.name and (count := sum(i in train[other.name] for i in inputs)):
                told.append(f"{task.name}: {count} of {len(inputs)} validation inputs are train inputs of {other.name}")
    return told


def majority_answer(data: TaskData) -> Answer:
    """The most frequent train answer, ties to the first seen; for regression the median. What can be had without reading."""
    if data.spec.number_range is not None:
        return float(np.median([float(str(e.answer)) for e in data.train]))
    if data.spec.output == "generation":
        return (Counter(e.answer[0] for e in data.train if isinstance(e.answer, tuple)).most_common(1)[0][0],)
    return Counter(e.answer for e in data.train).most_common(1)[0][0]


def bag_of_words_answers(data: TaskData, examples: Sequence[Example]) -> list[Answer] | None:
    """Answers of a linear model over character n-grams (1 to 3) trained on the same train rows; None where answers are not single labels."""
    if data.spec.output in ("generation", "regression", "multi-label") or len(data.train) < MIN_BAG_ROWS:
        return None
    labels = [str(e.answer) for e in data.train]
    if len(set(labels)) < 2:
        return None
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=1 << 18, alternate_sign=False),
        SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=20, tol=None, random_state=0),
    )
    model.fit([_joined(e) for e in data.train], labels)
    return [str(label) for label in model.predict([_joined(e) for e in examples])]


def _joined(example: Example) -> str:
    return "\n".join(example.fields.values())


def _fold(row: tuple[str, ...]) -> str:
    # a text of nothing but signs stays as it is, or all of them would be equal
    return "\0".join(re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).lower() or text for text in row)


def _answer_in_input(data: TaskData) -> float | None:
    if data.spec.output in ("generation", "regression") or not data.train:
        return None
    # every second piece of a multi-label answer is a separator
    hits = sum(
        any(len(t) > 1 and t in text for t in answer_texts(data.spec, e.answer)[::2] for text in e.fields.values()) for e in data.train
    )
    return hits / len(data.train)
