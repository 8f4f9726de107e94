"""Ledgers to try samplers on: from nothing at all to more than was asked for."""

from collections.abc import Mapping, Sequence
from typing import get_args

from mtcore.testing.toys import toy_profiles
from mtcore.types import Evaluation, Ledger, LedgerEntry, Mixture, Signal, TaskProfile

FEW = (120, 4000, 900)


def few() -> list[TaskProfile]:
    return toy_profiles(FEW)


def ledgers(needs: frozenset[Signal]) -> dict[str, Ledger]:
    """What a sampler may find at a border: from nothing at all to more than it asked for."""
    if not needs:
        return {"nothing yet": Ledger()}
    first, *_ = (p.name for p in few())
    return {
        "nothing yet": Ledger(),
        "what it needs": ledger_of(needs),
        "what it needs, twelve times": ledger_of(needs, times=12),
        "only what it does not need": ledger_of(frozenset(get_args(Signal)) - needs),
        "only part of what it needs": ledger_of(frozenset(sorted(needs)[:-1])),
        "all, and of a task that is not of this stage": ledger_of(frozenset(get_args(Signal)), other={"toys/other": 0.5}),
        "one task alone": ledger_of(needs, values=[0.5]),
        "every value alike": ledger_of(needs, values=[0.5, 0.5, 0.5]),
        "every value 0": ledger_of(needs, values=[0.0, 0.0, 0.0]),
        "values far apart": ledger_of(needs, values=[1e-30, 1.0, 1e30]),
        f"an evaluation in which {first} failed": ledger_of(needs, failed=first),
    }


def ledger_of(
    signals: frozenset[Signal],
    values: Sequence[float] = (0.3, 0.5, 0.7),
    *,
    times: int = 1,
    other: Mapping[str, float] = {},
    failed: str | None = None,
) -> Ledger:
    """A stage in which the tasks fare differently, as far as these signals tell."""
    told = {**{p.name: value for p, value in zip(few(), values, strict=False)}, **other}
    shares = {p.name: 1 / len(FEW) for p in few()}
    ledger = Ledger().append(LedgerEntry(stage="toy", number=0, position=0, mixture=Mixture(shares=shares)))
    for time in range(1, times + 1):
        now = {name: value / time for name, value in told.items()}
        if "scores" in signals:
            scores = {name: None if name == failed else min(1.0, value) for name, value in now.items()}
            evaluation = Evaluation(stage="toy", step=time, draws=100 * time, epoch=1.0, scores=scores, qualified=1, average=0.5)
            ledger = ledger.append(LedgerEntry(stage="toy", number=0, position=100 * time, evaluation=evaluation))
        ledger = ledger.append(
            LedgerEntry(
                stage="toy",
                number=0,
                position=100 * time,
                train_losses=now if "train-loss" in signals else {},
                validation_losses=now if "validation-loss" in signals else {},
            )
        )
    return ledger
