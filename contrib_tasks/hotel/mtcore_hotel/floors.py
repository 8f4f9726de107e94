"""What can be had of the tasks without understanding: the majority, the best single keyword, a bag of words; and the most that can be had."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mtcore.config import RunConfig
from mtcore.preparation import PreparedTask, Preparer
from mtcore.registry import Registry
from mtcore.types import Example, TaskData
from mtcore_hotel.tasks import TASKS

TOKEN = re.compile(r"[a-z]+|[一-龥]+")


class Floor(NamedTuple):
    """A task's line: scores between 0 and 1 on its test rows; None where a label is no single word."""

    task: str
    rows: int
    majority: float
    keyword: float | None
    bag_of_words: float | None
    ceiling: float


def floors(registry: Registry, data: Path | None) -> Iterator[Floor]:
    """The floors and the ceiling of every task, on the rows of a data folder or, without one, at full size."""
    preparer = Preparer(registry, emit=lambda event: None)
    for name, task in TASKS.items():
        config = RunConfig(tasks=(f"hotel/{name}",), data=str(data) if data else None)
        prepared: PreparedTask = preparer.resolve("", config).tasks[f"hotel/{name}"]
        found = prepared.floors
        yield Floor(name, len(prepared.data.train), found.majority, best_keyword(prepared.data), found.bag_of_words, 1 - task.noise)


def best_keyword(data: TaskData) -> float | None:
    """Accuracy on test rows of the rule "with this word one label, without it another", for the word that serves train rows best.

    Words are Latin words and runs of one to three Chinese characters.
    """
    if not data.spec.words or data.spec.output == "multi-label":
        return None
    totals = Counter(str(e.answer) for e in data.train)
    held: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in data.train:
        for word in _words(example):
            held[word][str(example.answer)] += 1

    def right(word: str) -> int:
        return max(held[word].values()) + max((totals - held[word]).values(), default=0)

    word = max(sorted(held), key=right)
    with_it, without = held[word].most_common(1)[0][0], (totals - held[word]).most_common(1)[0][0]
    guesses = [with_it if word in _words(e) else without for e in data.test]
    return sum(guess == e.answer for guess, e in zip(guesses, data.test, strict=True)) / len(data.test)


def _words(example: Example) -> set[str]:
    found: set[str] = set()
    for run in TOKEN.findall(" ".join(example.fields.values()).lower()):
        found |= {run} if run[0].isascii() else {run[i : i + n] for n in (1, 2, 3) for i in range(len(run) - n + 1)}
    return found
