"""Documents that rows share: a key for the document of every row, and the order of rows in which tasks walk through documents in step."""

import hashlib
from collections.abc import Mapping

import numpy as np

from mtcore.data.permutation import Ints, key, permute, row_key, scramble
from mtcore.types import TaskData

NONE = -1
"""The key of a row without a document."""


def document_keys(task: TaskData) -> Ints:
    """The document of every train row: equal where their texts are, in this task or another; NONE where a row has none."""
    if task.render is None and not task.spec.document_fields:
        return np.full(len(task.train), NONE, np.int64)
    if task.render is None:
        texts = ["".join(f"{example.fields[name]}\n" for name in task.spec.document_fields) for example in task.train]
    else:
        prompts = [task.render(example.fields, "document-first") for example in task.train]
        texts = ["".join(piece.text for piece in prompt if piece.is_document) for prompt in prompts]
    return np.array([_key(text) for text in texts], np.int64)


def _key(text: str) -> int:
    if not text.strip():
        return NONE
    # 63 bits, so that no key is NONE; lone surrogates are text like any other
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1


class Documents:
    """The documents of a stage's rows, by task; equal where all keys are."""

    def __init__(self, keys: Mapping[str, Ints]) -> None:
        self.keys = dict(keys)
        digest = hashlib.sha256()
        for name in sorted(keys):
            digest.update(f"{name}\0{len(keys[name])}\0".encode() + keys[name].astype("<i8").tobytes())
        self.digest = digest.hexdigest()
        self._has_any = {name: bool((own != NONE).any()) for name, own in keys.items()}
        self._arranged: dict[str, tuple[int, int, Ints]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Documents) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def is_shared(self) -> bool:
        """Whether any two rows have the same document."""
        every = np.concatenate([own[own != NONE] for own in self.keys.values()]) if self.keys else np.empty(0, np.int64)
        return len(np.unique(every)) < len(every)

    def has_any(self, task: str) -> bool:
        return self._has_any[task]

    def arranged(self, task: str, seed: int, turn: int) -> Ints:
        """One pass over a task's rows: those with a document stand by its keyed hash, which is the same in every task; the others keep their
        places in the keyed bijection. Each task's last pass is kept, because it is walked through block by block."""
        known = self._arranged.get(task)
        if known is None or known[:2] != (seed, turn):
            own = self.keys[task]
            arranged = permute(np.arange(len(own)), len(own), np.array(row_key(seed, task, turn), np.uint64))
            rows, places = np.flatnonzero(own != NONE), np.flatnonzero(own[arranged] != NONE)
            hashes = scramble(own[rows].astype(np.uint64), np.full(len(rows), key(seed, "documents", turn), np.uint64), 0)
            arranged[places] = rows[np.argsort(hashes, kind="stable")]
            known = self._arranged[task] = (seed, turn, arranged)
        return known[2]


def together(keys: Ints, rows: Ints) -> Ints:
    """An order of positions in which equal documents are adjacent, each where its first row stood; those without one keep to themselves.

    `rows` tells rows of all tasks apart. One that is drawn again is not brought to its first time: a step gains nothing from a row twice.
    """
    by_row = np.argsort(rows, kind="stable")
    begins = np.r_[True, np.diff(rows[by_row]) != 0]
    time = np.empty_like(rows)
    time[by_row] = np.arange(len(rows)) - np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))
    _, document = np.unique(keys, return_inverse=True)
    _, first, group = np.unique(document * len(rows) + time, return_index=True, return_inverse=True)
    return np.argsort(np.where(keys == NONE, np.arange(len(keys)), first[group]), kind="stable")
