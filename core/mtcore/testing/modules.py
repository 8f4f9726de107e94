"""Checks of the module that a class stands in, and of the one that registers it: importing them is fast and loads nothing heavy."""

from typing import Protocol
from unittest import SkipTest

from mtcore.testing.check import Failed
from mtcore.testing.fresh import HEAVY, NOT_IN_A_MODULE, measure_import

MAX_SECONDS = 1.0
TRIES = 2
"""A busy machine may be slow once."""


class InModule(Protocol):
    """A subject that knows its class and the module that registers it: "" for the class's own, None where it stands in none."""

    @property
    def cls(self) -> type: ...

    @property
    def module(self) -> str | None: ...


def import_light(subject: InModule) -> str:
    """Importing the plugin loads neither torch nor transformers nor datasets."""
    _, heavy = _measured(subject)
    if heavy:
        raise Failed(f"importing {_told(subject)} loads {', '.join(heavy)}", "import it inside the function that needs it")
    return f"none of {', '.join(HEAVY)}"


def import_fast(subject: InModule) -> str:
    """Importing the plugin takes less than a second."""
    seconds = min(_until_fast(subject))
    if seconds >= MAX_SECONDS:
        raise Failed(
            f"importing {_told(subject)} takes {seconds:.1f} s", "let importing only define: read, build and download in functions"
        )
    return f"{1000 * seconds:.0f} ms"


def _measured(subject: InModule) -> tuple[float, list[str]]:
    if subject.module is None:
        raise SkipTest(NOT_IN_A_MODULE)
    if subject.cls.__module__ == "__main__":
        raise SkipTest("it stands in the program that is running, which no other process can import")
    return measure_import(_modules(subject))


def _modules(subject: InModule) -> list[str]:
    """The module that registers the class, which may import its own only where it is asked, and its own."""
    return list(dict.fromkeys([subject.module or subject.cls.__module__, subject.cls.__module__]))


def _told(subject: InModule) -> str:
    return " and ".join(_modules(subject))


def _until_fast(subject: InModule) -> list[float]:
    measured: list[float] = []
    while len(measured) < TRIES and min(measured, default=MAX_SECONDS) >= MAX_SECONDS:
        measured.append(_measured(subject)[0])
    return measured
