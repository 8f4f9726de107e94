"""How far a fit has come: everything beside tensors that going on after an interruption needs."""

from collections.abc import Mapping
from typing import Any

from mtcore.training.guard import Guard
from mtcore.types import Cost, Evaluation, Frozen, Ledger, StageDone


class Progress(Frozen):
    """Part of every checkpoint; the stage at hand is the one after `done`."""

    fingerprint: str
    saved: int = 0
    """Checkpoints written so far: the number in the next one's name."""
    step: int = 0
    """Steps done in the stage at hand."""
    is_begun: bool = False
    """Whether the stage at hand has its weights to start from."""
    done: tuple[StageDone, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    """Of the stage at hand."""
    ledger: Ledger = Ledger()
    cost: Cost = Cost()
    """Training in the stage at hand."""
    evaluation_cost: Cost = Cost()
    losses: dict[str, tuple[float, int]] = {}
    """Of each task, the sum of its examples' losses since the sampler last asked, and how many they are."""
    guard: Guard = Guard()
    anchor: str = ""
    """The checkpoint to go back to: of the last evaluation, or of the stage's beginning; "" is the origin. Not one of the clock or of a signal,
    or what happens by chance would decide which weights a fit goes on from."""
    lost: tuple[str, ...] = ()
    """Checkpoints of evaluations that were found damaged: none of them can be the best."""
    avoided: tuple[tuple[int, int], ...] = ()
    """Steps [first, last) of the stage at hand that are passed over, because the model went wrong in them."""

    def with_(self, changes: Mapping[str, Any]) -> "Progress":
        return self.model_copy(update=dict(changes))

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the most qualified tasks, then the highest average; the earliest of equals."""
        return max((e for e in self.everything if e.checkpoint not in self.lost), key=lambda e: e.rank, default=None)

    @property
    def everything(self) -> list[Evaluation]:
        """All evaluations, in their order."""
        return [e for d in self.done for e in d.evaluations] + list(self.evaluations)

    def evaluated_at(self, step: int) -> bool:
        return any(e.step == step for e in self.evaluations)

    def with_losses(self, losses: Mapping[str, tuple[float, int]]) -> "Progress":
        """Add the losses of a step."""
        added = {
            task: (self.losses.get(task, (0.0, 0))[0] + total, self.losses.get(task, (0.0, 0))[1] + count)
            for task, (total, count) in losses.items()
        }
        return self.with_({"losses": {**self.losses, **added}})

    def passed_over(self, step: int) -> int:
        """The first step from `step` on that is not to be passed over."""
        for first, last in self.avoided:
            if first <= step < last:
                return self.passed_over(last)
        return step
