"""Phrases with choices and slots: read from TOML, and written out one way of many."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal

Language = Literal["en", "zh"]

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
NUMBERS = {"room": (100, 900), "number": (1000, 9000), "gate": (1, 20)}
"""Slots that hold a number: the lowest, and how many there are."""


@cache
def phrases(book: str, language: Language) -> Mapping[str, Any]:
    """The phrase book `conversation` or `writing` in a language."""
    return tomllib.loads((files(__package__) / f"{book}-{language}.toml").read_text(encoding="utf-8"))


def pick(rng: Random, options: Sequence[Any]) -> Any:
    """One of the options; by `random()` alone, which gives the same in every version of Python."""
    return options[int(rng.random() * len(options))]


def below(rng: Random, end: int) -> int:
    return int(rng.random() * end)


def write(rng: Random, phrase: str, words: Mapping[str, Sequence[str]], language: Language, **slots: str) -> str:
    """The phrase with every choice made and every slot filled."""
    chosen = CHOICE.sub(lambda found: str(pick(rng, found[1].split("|"))), phrase)
    return SLOT.sub(lambda found: slots[found[1]] if found[1] in slots else _fill(rng, found[1], words, language), chosen)


def _fill(rng: Random, slot: str, words: Mapping[str, Sequence[str]], language: Language) -> str:
    if slot in words:
        return str(pick(rng, words[slot]))
    if slot == "price":
        return f"{10 * (1 + below(rng, 90))} euros" if language == "en" else f"{10 * (1 + below(rng, 90))}元"
    if slot == "time":
        return (
            f"{1 + below(rng, 11)} {pick(rng, ('am', 'pm'))}"
            if language == "en"
            else f"{pick(rng, ('早上', '晚上'))}{1 + below(rng, 11)}点"
        )
    lowest, count = NUMBERS[slot]
    return str(lowest + below(rng, count))
