"""What computes: the models of one process take turns on it, in the order in which they asked."""

import asyncio
import math
from typing import Protocol


class Model(Protocol):
    """As far as its neighbours must know it."""

    @property
    def group(self) -> str: ...

    @property
    def backlog(self) -> float:
        """Seconds that what waits for it and what it computes will take."""

    @property
    def waiting_tokens(self) -> int: ...

    @property
    def waiting_requests(self) -> int: ...

    def seconds(self, tokens: int) -> float:
        """How long it computes so many tokens."""


class Device:
    """Two models that compute at once are slower than one after the other; on a GPU they would also need the memory of both."""

    def __init__(self, batch_tokens: int) -> None:
        self.turn = asyncio.Lock()
        """Handed on in the order of asking."""
        self.models: list[Model] = []
        self._batch_tokens = batch_tokens

    def expected(self, model: Model, tokens: int) -> float:
        """Seconds until a model has answered a request of so many tokens that would come now.

        The others are let in between its batches, each for one of theirs.
        """
        turns = math.ceil((model.waiting_tokens + tokens) / self._batch_tokens)
        others = sum(min(other.backlog, turns * other.seconds(self._batch_tokens)) for other in self.models if other is not model)
        return model.backlog + model.seconds(tokens) + others

    def waiting(self, group: str) -> tuple[int, int]:
        """Requests and tokens that wait for any model of a group."""
        mine = [model for model in self.models if model.group == group]
        return sum(model.waiting_requests for model in mine), sum(model.waiting_tokens for model in mine)

    @property
    def is_busy(self) -> bool:
        """Whether anything waits."""
        return any(model.waiting_requests for model in self.models)
