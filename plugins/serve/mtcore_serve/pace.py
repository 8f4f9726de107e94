"""What requests will cost before they are encoded, and how long tokens take: measured on the way, so that refusing is cheap."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from mtcore.types import Prepared, Request, TaskSpec

RARE = "𓀀"
"""A sign that costs as many tokens as any."""
LONG = 16_384
RECENT = 0.2
"""Weight of the newest measurement."""


@dataclass(frozen=True)
class Shape:
    """What one task costs: with next to no text, and at most, where longer texts are cut."""

    least: int
    most: int | None


@dataclass
class Pace:
    """Of one model."""

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    shares: bool = False
    """Whether tasks that are asked of the same text read it once."""
    tokens_a_character: float = 1.0
    seconds_a_token: float = 0.0
    """0 until something was computed."""

    def estimate(self, request: Request) -> int:
        """Tokens that a request will cost, from its characters."""
        return int(sum(tokens for _, tokens in self._parts(request, math.inf))) + 1

    def parts(self, request: Request, budget: int) -> list[Request]:
        """A request as requests for some of its tasks each, none of which should cost more than a budget unless a single task does."""
        return [Request(request.fields, tuple(tasks)) for tasks, _ in self._parts(request, budget)]

    def encoded(self, prepared: Prepared) -> None:
        """Learn from what a request came to cost; from one that was cut there is nothing to learn."""
        text = characters(prepared.request)
        if text == 0 or any(prepared.flags.values()):
            return
        least = sum(self.shapes.get(task, Shape(0, None)).least for task in prepared.request.tasks)
        times = 1 if self.shares else len(prepared.request.tasks)
        # a long text says more than a short one
        weight = RECENT * min(1.0, text / 1000)
        self.tokens_a_character += weight * (max(0, prepared.cost - least) / (times * text) - self.tokens_a_character)

    def computed(self, tokens: int, seconds: float, budget: int) -> None:
        """Learn from a batch; a full one says more than a small one, whose time is mostly that of the call."""
        measured = seconds / max(1, tokens)
        weight = RECENT * min(1.0, tokens / budget) if self.seconds_a_token else 1.0
        self.seconds_a_token += weight * (measured - self.seconds_a_token)

    def _parts(self, request: Request, budget: float) -> Iterator[tuple[list[str], float]]:
        """The tasks of each part and what it costs; in one pass, since a client may ask hundreds of tasks of every document."""
        text = characters(request) * self.tokens_a_character
        tasks: list[str] = []
        tokens = read = 0.0
        for task in request.tasks:
            shape = self.shapes.get(task, Shape(0, None))
            mine = text if shape.most is None else min(text, shape.most - shape.least)
            if tasks and tokens + shape.least + max(0.0, mine - read) > budget:
                yield tasks, tokens
                tasks, tokens, read = [], 0.0, 0.0
            tasks.append(task)
            tokens += shape.least + max(0.0, mine - read)
            if self.shares:
                read = max(read, mine)
        yield tasks, tokens


def characters(request: Request) -> int:
    """Of all texts of a request."""
    return sum(map(len, request.fields.values()))


def measure(specs: Mapping[str, TaskSpec], prepare: Callable[[Request], Prepared]) -> Pace:
    """Learn what the tasks of a model cost at least and at most, from a sign and from a text that is too long."""
    shapes = {}
    shares = False
    for name, spec in specs.items():
        short = prepare(Request(dict.fromkeys(spec.fields, "."), (name,)))
        long = prepare(Request(dict.fromkeys(spec.fields, RARE * LONG), (name,)))
        shapes[name] = Shape(short.cost, long.cost if long.flags.get(name) else None)
        shares = shares or bool(short.document)
    return Pace(shapes, shares)
