"""Steps that go wrong: which are skipped, when to go back, and when to give up; decided from losses alone, alike on every process."""

import math
from collections.abc import Mapping

from mtcore.types import Frozen

SPIKE = 10.0
"""A loss so many times the expected one is a spike."""
LEAST = 0.1
"""Losses are expected to be at least this: near 0, a hard example is ten times the mean and nothing is wrong."""
KNOWN = 4
"""Steps that a task must have been seen in before a loss can be called unexpected."""
MEMORY = 0.9
"""Weight of the past in a task's expected loss."""
IN_A_ROW, OF_MANY, MANY = 3, 8, 64
"""Skipped steps after which to go back: so many in a row, or so many of the last 64."""
MOST_ROLLBACKS = 2


class Guard(Frozen):
    """What has been seen of a fit's losses; part of every checkpoint, so that a resumed fit decides as the first one would have."""

    means: dict[str, float] = {}
    """Expected loss of each task's examples."""
    seen: dict[str, int] = {}
    skipped: tuple[bool, ...] = ()
    """Of the last steps, whether each was skipped."""
    rollbacks: int = 0

    def objection(self, loss: float, shares: Mapping[str, float]) -> str:
        """Why a step with this loss must not be taken, or "" if it may; `shares` are the tasks' weights in it."""
        if not math.isfinite(loss):
            return f"its loss is {loss}"
        if any(self.seen.get(task, 0) < KNOWN for task in shares):
            return ""
        expected = max(LEAST, sum(share * self.means[task] for task, share in shares.items()))
        return f"its loss is {loss:.3g}, where {expected:.3g} was to be expected of its tasks" if loss > SPIKE * expected else ""

    def after(self, losses: Mapping[str, float], objection: str) -> "Guard":
        """Remember a step: the mean loss of each of its tasks, or that it was skipped."""
        skipped = (*self.skipped, bool(objection))[-MANY:]
        if objection:
            return self.model_copy(update={"skipped": skipped})
        known = {task: MEMORY * self.means[task] + (1 - MEMORY) * loss if task in self.means else loss for task, loss in losses.items()}
        seen = {task: self.seen.get(task, 0) + 1 for task in losses}
        return self.model_copy(update={"means": {**self.means, **known}, "seen": {**self.seen, **seen}, "skipped": skipped})

    @property
    def must_go_back(self) -> bool:
        return self.skipped[-IN_A_ROW:].count(True) == IN_A_ROW or self.skipped.count(True) >= OF_MANY

    @property
    def must_give_up(self) -> bool:
        """Whether going back has been tried often enough."""
        return self.rollbacks >= MOST_ROLLBACKS

    def gone_back(self) -> "Guard":
        """After a roll back nothing is expected: the losses that were may have been part of what went wrong."""
        return Guard(rollbacks=self.rollbacks + 1)
