"""Requests that were accepted, and whoever waits for their answers."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtcore.types import Prepared, Request
from mtcore_serve.errors import Refused
from mtcore_serve.guarded import ByTask


@dataclass(frozen=True)
class Answers:
    """What one request came to, by task."""

    by_task: ByTask
    tokens: int


@dataclass(eq=False)
class Ticket:
    """A request that was accepted. Cancelling `future` gives its place away."""

    request: Request
    future: asyncio.Future[Answers]
    encoded: Prepared | None = None

    def settle(self, result: Answers | Refused) -> None:
        """Tell who waits, if anybody still does."""
        if self.future.done():
            return
        if isinstance(result, Refused):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


@dataclass(frozen=True)
class Alike:
    """Requests that ask the same, as one of a batch."""

    tickets: Sequence[Ticket]
    is_sound: Callable[[], bool]

    @property
    def prepared(self) -> Prepared:
        """Of any of them."""
        encoded = self.tickets[0].encoded
        if encoded is None:
            raise RuntimeError("a request was taken before it was encoded")
        return encoded

    @property
    def is_wanted(self) -> bool:
        """Whether it is worth computing."""
        return self.is_sound() and not all(ticket.future.done() for ticket in self.tickets)

    def answer(self, by_task: ByTask) -> None:
        """Tell all of them."""
        for ticket in self.tickets:
            ticket.settle(Answers(by_task, self.prepared.cost))

    def give_up(self, error: Refused) -> None:
        """Refuse those that have no answer yet."""
        for ticket in self.tickets:
            ticket.settle(error)
