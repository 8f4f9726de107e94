"""A check: one claim, tried by itself; it passes, fails with what was found and the fix, or is skipped with the reason."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from unittest import SkipTest

from mtcore.config import nearest
from mtcore.errors import UnknownName

Status = Literal["passed", "failed", "skipped", "expected"]
Body = Callable[[Any], str]
"""Looks at one subject and says what it saw; raises Failed, or SkipTest where it cannot tell. Its docstring is the claim."""


class Failed(Exception):
    """The claim does not hold: what was found, and how to mend it."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.fix = fix


@dataclass(frozen=True)
class Outcome:
    """What became of a check."""

    status: Status
    found: str
    """What was seen; for a skipped check, why it could not be tried."""
    fix: str = ""
    error: BaseException | None = None


@dataclass(frozen=True)
class Check:
    """One claim about one subject. `outcome()` says what became of it; in a test, calling it raises what is wrong, or skips."""

    subject: str
    name: str
    claim: str
    body: Callable[[], str]
    expected: str = ""
    """Why this check is known to fail; empty where it is to pass."""

    def __str__(self) -> str:
        return f"{self.subject}:{self.name}"

    def outcome(self) -> Outcome:
        outcome = self._tried()
        if not self.expected or outcome.status == "skipped":
            return outcome
        if outcome.status == "passed":
            return Outcome("failed", f"it passes, and was expected to fail: {self.expected}", "take it out of the expected failures")
        return Outcome("expected", f"{outcome.found} (expected: {self.expected})")

    def __call__(self) -> None:
        __tracebackhide__ = True  # for pytest: what was found tells more than the lines of the kit
        outcome = self.outcome()
        if outcome.status == "failed":
            raise AssertionError(f"{self}: {self.claim}\n  found: {outcome.found}\n  fix: {outcome.fix}") from outcome.error
        if outcome.status != "passed":
            raise SkipTest(outcome.found)  # pytest and unittest both know it

    def _tried(self) -> Outcome:
        try:
            return Outcome("passed", self.body())
        except SkipTest as skipped:
            return Outcome("skipped", str(skipped))
        except Failed as failed:
            return Outcome("failed", str(failed), failed.fix, failed)
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
            return Outcome("failed", found, "it must not raise here; the file and line say where it did", error)


def checks(bodies: Sequence[Body], subject: Any, name: str, expected_failures: Mapping[str, str]) -> list[Check]:
    """A check for each body, in order, called as the body is. Raises UnknownName where a failure of something else is expected."""
    named = {body.__name__.replace("_", "-"): body for body in bodies}
    for expected in expected_failures:
        if expected not in named:
            raise UnknownName(f"no check of {name} is called {expected!r}{nearest(expected, list(named))} There are: {', '.join(named)}.")
    return [
        Check(name, key, (body.__doc__ or key).split("\n")[0], partial(body, subject), expected_failures.get(key, ""))
        for key, body in named.items()
    ]
