"""The checks of a sampler: shares of the tasks it is given, from nothing but what it is given."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from unittest import SkipTest

from mtcore.contracts import Sampler
from mtcore.testing.check import Body, Check, Failed, checks
from mtcore.testing.component import SHARED, ComponentUnderTest
from mtcore.testing.toys import OUTPUTS, toy_profiles
from mtcore.types import Evaluation, Ledger, LedgerEntry, Mixture, TaskProfile

FEW = (120, 4000, 900)
SETS: Mapping[str, Sequence[int]] = {
    "one task": (500,),
    "two equal tasks": (300, 300),
    "a hundred tasks": tuple(range(100, 10_100, 100)),
    "very unequal tasks": (1, 40, 10_000_000),
}
BUDGETS = (1, 10, 5_000, 10_000_000)
ROUNDING = 1e-9


def sampler_checks(
    cls: type[Sampler],
    *,
    options: Mapping[str, Any] = {},
    module: str | None = "",
    expected_failures: Mapping[str, str] = {},
) -> list[Check]:
    """Every check of a sampler, built with `options` as a run file gives them. Tasks are called toys/0, toys/1, …"""
    bodies: list[Body] = [
        shares_name_the_tasks,
        shares_sum_to_one,
        any_number_of_tasks,
        loss_weights_fit,
        draws_within_budget,
        epoch_draws_positive,
        deterministic,
        pure,
        order_independent,
        ledger_as_declared,
        *SHARED,
    ]
    return checks(bodies, ComponentUnderTest(cls, options, module), cls.name, expected_failures)


def shares_name_the_tasks(subject: ComponentUnderTest) -> str:
    """Shares are given to the tasks at hand, to all of them and to no other."""
    _require_names(_mix(subject), _few())
    return f"{len(FEW)} tasks"


def shares_sum_to_one(subject: ComponentUnderTest) -> str:
    """Shares are numbers of at least 0 that sum to 1."""
    _require_distribution(_mix(subject))
    return ", ".join(f"{share:.3f}" for share in _mix(subject).shares.values())


def any_number_of_tasks(subject: ComponentUnderTest) -> str:
    """One task, two, a hundred, and tasks of very unequal sizes all get shares."""
    _skip_unless_sound(subject)
    for name, sizes in SETS.items():
        profiles = toy_profiles(sizes, outputs=OUTPUTS)
        try:
            mixture = subject.build().mix(profiles, sum(sizes), Ledger())
            _require_names(mixture, profiles)
            _require_distribution(mixture)
        except Exception as error:
            fix = error.fix if isinstance(error, Failed) else "count on no number of tasks, and divide by nothing that may be 0"
            raise Failed(f"{name}: {_told(error)}", fix) from error
    return ", ".join(SETS)


def loss_weights_fit(subject: ComponentUnderTest) -> str:
    """Loss weights, where there are any, are positive numbers for tasks at hand."""
    weights = _mix(subject).loss_weights
    if strange := sorted(set(weights) - {p.name for p in _few()}):
        raise Failed(f"loss weights for {', '.join(strange)}", "give weights to tasks of the stage alone")
    if wrong := {name: weight for name, weight in weights.items() if not (math.isfinite(weight) and weight > 0)}:
        raise Failed(f"loss weights {wrong}", "give positive weights; a task that is not to be trained gets share 0")
    return f"weights: {len(weights)}"


def draws_within_budget(subject: ComponentUnderTest) -> str:
    """A stage may be shortened, to one draw at least, and never lengthened."""
    for budget in BUDGETS:
        draws = _mix(subject, budget).draws
        if draws is not None and not 1 <= draws <= budget:
            raise Failed(f"of {budget:,} draws it makes {draws:,}", "return draws=None, or between 1 and what was asked for")
    return f"{len(BUDGETS)} budgets"


def epoch_draws_positive(subject: ComponentUnderTest) -> str:
    """An epoch is a whole number of at least one draw."""
    for sizes in (FEW, *SETS.values()):
        draws: object = subject.build().epoch_draws(toy_profiles(sizes))
        if not isinstance(draws, int) or draws < 1:
            raise Failed(f"an epoch of tasks of {sizes[:3]} rows is {draws!r} draws", "return max(1, int(…))")
    return f"{subject.build().epoch_draws(_few()):,} draws of {sum(FEW):,} rows"


def deterministic(subject: ComponentUnderTest) -> str:
    """Two samplers with the same options say the same."""
    first, second = _said(subject.build()), _said(subject.build())
    if first != second:
        raise Failed(f"one says {first}, the other {second}", "draw no random numbers and look at no clock: shares are exact, not drawn")
    return "two samplers"


def pure(subject: ComponentUnderTest) -> str:
    """It says the same after it was asked other things."""
    sampler = subject.build()
    before = _said(sampler)
    for sizes in SETS.values():
        with suppress(Exception):  # any-number-of-tasks says so
            sampler.epoch_draws(toy_profiles(sizes))
            sampler.mix(toy_profiles(sizes), 7, Ledger())
    if _said(sampler) != before:
        raise Failed(
            f"first {before}, later {_said(sampler)}", "set no attributes outside the constructor: what has happened stands in the ledger"
        )
    return f"asked {2 + len(SETS)} times"


def order_independent(subject: ComponentUnderTest) -> str:
    """Shares and epochs do not depend on the order of the tasks."""
    sampler, profiles = subject.build(), _few()
    backwards = profiles[::-1]
    shares, other = (sampler.mix(p, 1000, Ledger()).shares for p in (profiles, backwards))
    if any(abs(shares[name] - other[name]) > ROUNDING for name in shares) or sampler.epoch_draws(profiles) != sampler.epoch_draws(
        backwards
    ):
        raise Failed(f"{shares} and, named backwards, {other}", "go by names and sizes, never by positions; sort where an order is needed")
    return "forwards and backwards"


def ledger_as_declared(subject: ComponentUnderTest) -> str:
    """A sampler that declares no needs does not look at the ledger."""
    if needs := subject.build().needs:
        raise SkipTest(f"it needs {', '.join(sorted(needs))}")
    sampler = subject.build()
    if sampler.mix(_few(), 1000, Ledger()) != sampler.mix(_few(), 1000, _ledger()):
        raise Failed("shares change with what has happened", "declare what is looked at: needs = frozenset({'scores'}), say")
    return "with and without evaluations"


def _require_names(mixture: Mixture, profiles: Sequence[TaskProfile]) -> None:
    asked = {p.name for p in profiles}
    if missing := sorted(asked - set(mixture.shares)):
        raise Failed(f"no share for {missing[0]}", "give every task a share; 0 is one")
    if strange := sorted(set(mixture.shares) - asked):
        raise Failed(
            f"a share for {strange[0]}, which is not asked about", "give shares to the profiles that are passed, under their names"
        )


def _require_distribution(mixture: Mixture) -> None:
    total = math.fsum(mixture.shares.values())
    if not all(share >= 0 for share in mixture.shares.values()) or not abs(total - 1) <= ROUNDING:
        raise Failed(f"shares sum to {total}, the least is {min(mixture.shares.values())}", "divide weights of at least 0 by their sum")


def _skip_unless_sound(subject: ComponentUnderTest) -> None:
    try:
        _require_names(_mix(subject), _few())
        _require_distribution(_mix(subject))
    except Failed:
        raise SkipTest("shares of three tasks are wrong already") from None


def _few() -> list[TaskProfile]:
    return toy_profiles(FEW)


def _mix(subject: ComponentUnderTest, draws: int = 1000) -> Mixture:
    mixture: Mixture = subject.build().mix(_few(), draws, Ledger())
    return mixture


def _said(sampler: Sampler) -> str:
    return f"{sampler.epoch_draws(_few())} draws, {sampler.mix(_few(), 1000, Ledger()).model_dump_json()}"


def _ledger() -> Ledger:
    """An evaluation in which the tasks fare differently."""
    scores: dict[str, float | None] = {p.name: 0.3 + 0.2 * number for number, p in enumerate(_few())}
    evaluation = Evaluation(
        stage="toy", step=10, draws=100, epoch=1.0, scores=scores, qualified=1, average=0.5, losses={p.name: 1.0 for p in _few()}
    )
    return Ledger().append(LedgerEntry(stage="toy", number=0, position=100, evaluation=evaluation))


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
