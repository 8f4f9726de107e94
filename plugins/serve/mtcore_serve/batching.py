"""Which of the waiting requests go through a model together: oldest first, documents read once, within a budget of tokens."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(eq=False)
class Waiting(Generic[Item]):
    """A request that waits; as itself, never as its value, in sets and comparisons."""

    item: Item
    key: Hashable
    """Equal for requests that ask the same."""
    deadline: float
    cost: int
    """In tokens: estimated until `ready`."""
    document: str = ""
    document_cost: int = 0
    is_ready: bool = False
    """Whether it is encoded, so that it can be taken."""


@dataclass(frozen=True)
class Batch(Generic[Item]):
    """What leaves the queue together."""

    chosen: Sequence[Sequence[Waiting[Item]]] = ()
    """Requests that are computed together; those in one inner sequence ask the same and are computed once."""
    late: Sequence[Waiting[Item]] = ()
    """Past their deadlines: no work is spent on them."""
    tokens: int = 0
    """What the chosen cost, documents that they share counted once."""


class Queue(Generic[Item]):
    """Requests in the order of their arrival. Every one leaves exactly once: in a batch or removed."""

    def __init__(self) -> None:
        self.tokens = 0
        """That all which wait cost; what asks the same and what reads the same counted once."""
        self._waiting: dict[Waiting[Item], None] = {}
        self._alike: dict[Hashable, dict[Waiting[Item], None]] = {}
        """By key."""
        self._readers: dict[str, dict[Hashable, None]] = {}
        """Keys of those that are ready, by document."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting[Item]]:
        return iter(self._waiting)

    @property
    def has_ready(self) -> bool:
        return any(one.is_ready for one in self._waiting)

    def alike(self, key: Hashable) -> Waiting[Item] | None:
        """The oldest that asks the same."""
        return next(iter(self._alike.get(key, ())), None)

    def every(self, key: Hashable) -> list[Waiting[Item]]:
        """All that ask the same."""
        return list(self._alike.get(key, ()))

    def add(self, one: Waiting[Item]) -> None:
        """Let a request wait. One that asks the same as another must cost the same, and be ready exactly where the other is."""
        if one in self._waiting:
            raise ValueError("a request waits once")
        self._waiting[one] = None
        if one.key not in self._alike:
            self._alike[one.key] = {}
            self._count(one)
        self._alike[one.key][one] = None

    def encoded(self, key: Hashable, cost: int, document: str, document_cost: int) -> None:
        """Let all that ask this be taken from now on, at the cost that is now known."""
        alike = self._alike.get(key)
        if not alike:
            return
        self._discount(next(iter(alike)))
        for one in alike:
            one.cost, one.document, one.document_cost, one.is_ready = cost, document, document_cost, True
        self._count(next(iter(alike)))

    def remove(self, one: Waiting[Item]) -> bool:
        """Take one out; whether it was still there."""
        if one not in self._waiting:
            return False
        del self._waiting[one]
        del self._alike[one.key][one]
        if not self._alike[one.key]:
            del self._alike[one.key]
            self._discount(one)
        return True

    def take(self, now: float, budget: int) -> Batch[Item]:
        """Take the oldest request that is ready and whatever fits in beside it: first what shares its document, then by age.

        The batch keeps to the budget, unless the oldest alone is beyond it; as the oldest is always in, nothing waits for ever.
        """
        late = [one for one in self._waiting if one.deadline <= now]
        for one in late:
            self.remove(one)
        keys: dict[Hashable, None] = {}
        tried: set[Hashable] = set()
        documents: set[str] = set()
        tokens = 0
        for oldest in self._waiting:
            if not oldest.is_ready or oldest.key in tried:
                continue
            for key in (oldest.key, *self._readers.get(oldest.document, ())):
                if key in tried:
                    continue
                tried.add(key)
                one = next(iter(self._alike[key]))
                price = one.cost - (one.document_cost if one.document in documents else 0)
                if not keys or tokens + price <= budget:
                    keys[key] = None
                    documents |= {one.document} - {""}
                    tokens += price
            if tokens >= budget:
                break
        chosen = [list(self._alike[key]) for key in keys]
        for group in chosen:
            for one in group:
                self.remove(one)
        return Batch(chosen, late, tokens)

    def _count(self, one: Waiting[Item]) -> None:
        readers = self._readers.setdefault(one.document, {}) if one.is_ready and one.document else None
        self.tokens += one.cost - (one.document_cost if readers else 0)
        if readers is not None:
            readers[one.key] = None

    def _discount(self, one: Waiting[Item]) -> None:
        readers = self._readers.get(one.document) if one.is_ready and one.document else None
        if readers is not None:
            del readers[one.key]
            if not readers:
                del self._readers[one.document]
        self.tokens -= one.cost - (one.document_cost if readers else 0)
