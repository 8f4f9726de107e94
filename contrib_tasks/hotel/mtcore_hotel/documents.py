"""Pools of documents: the n-th conversation, review, ride or email of a source, always the same, and always in the same split."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from mtcore_hotel.hearing import heard
from mtcore_hotel.phrases import Language
from mtcore_hotel.scenarios import Scenario, Source, draw
from mtcore_hotel.writing import sequel, written

SPLITS = ("train", "train", "train", "train", "train", "train", "train", "train", "validation", "test")
SEQUELS = 0.7
"""Share of an archive's documents that something was written after."""


@dataclass(frozen=True)
class Document:
    """A text, and the scenario that it was written from."""

    name: str
    language: Language
    scenario: Scenario
    text: str

    @property
    def split(self) -> str:
        """By the text itself, signs and case aside: equal texts meet in one split, whatever task asks for them."""
        folded = re.sub(r"[\W_]+", "", self.text).lower()
        return SPLITS[hashlib.blake2b(folded.encode(), digest_size=4).digest()[0] % len(SPLITS)]


def documents(
    source: Source, world: str = "rows", wanted: Callable[[str, Scenario], bool] = lambda name, scenario: True
) -> Iterator[Document]:
    """The documents of a source that are wanted, without end. `world` separates pools that must have nothing in common."""
    number = 0
    while True:
        name = f"{source}-{number}"
        rng = Random(f"{world} {name}")
        language, scenario = draw(rng, source)
        if wanted(name, scenario):
            text = written(rng, language, scenario)
            yield Document(name, language, scenario, heard(rng, text, language) if source == "phone" else text)
        number += 1


def archive(source: Source) -> Iterator[str]:
    """A company's archive of a source, which shares no document with the rows of the tasks: texts, most of them with what was written after."""
    for document in documents(source, world="archive"):
        rng = Random(f"sequel {document.name}")
        has_sequel = rng.random() < SEQUELS
        yield document.text + ("\n" + sequel(rng, document.language, document.scenario) if has_sequel else "")
