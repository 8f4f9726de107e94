"""The checks of a sampler: shares of the tasks it is given, from nothing but what it is given."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args
from unittest import SkipTest

from mtcore.contracts import Sampler
from mtcore.testing.check import Body, Check, Failed, checks
from mtcore.testing.component import SHARED, ComponentUnderTest
from mtcore.testing.ledgers import FEW, few, ledger_of, ledgers
from mtcore.testing.toys import OUTPUTS, toy_profiles
from mtcore.types import Ledger, Mixture, Signal, TaskProfile

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
        any_ledger,
        borders_positive,
        *SHARED,
    ]
    return checks(bodies, ComponentUnderTest(cls, options, module), cls.name, expected_failures)


def shares_name_the_tasks(subject: ComponentUnderTest) -> str:
    """Shares are given to the tasks at hand, to all of them and to no other."""
    _require_names(_mix(subject), few())
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
    _require_weights(_mix(subject))
    return f"weights: {len(_mix(subject).loss_weights)}"


def _require_weights(mixture: Mixture) -> None:
    weights = mixture.loss_weights
    if strange := sorted(set(weights) - {p.name for p in few()}):
        raise Failed(f"loss weights for {', '.join(strange)}", "give weights to tasks of the stage alone")
    if wrong := {name: weight for name, weight in weights.items() if not (math.isfinite(weight) and weight > 0)}:
        raise Failed(f"loss weights {wrong}", "give positive weights; a task that is not to be trained gets share 0")


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
    return f"{subject.build().epoch_draws(few()):,} draws of {sum(FEW):,} rows"


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
            for ledger in ledgers(sampler.needs).values():
                sampler.mix(toy_profiles(sizes), 7, ledger)
    if _said(sampler) != before:
        raise Failed(
            f"first {before}, later {_said(sampler)}", "set no attributes outside the constructor: what has happened stands in the ledger"
        )
    return f"asked {2 + len(SETS) * len(ledgers(sampler.needs))} times"


def order_independent(subject: ComponentUnderTest) -> str:
    """Shares and epochs do not depend on the order of the tasks."""
    sampler, profiles = subject.build(), few()
    backwards = profiles[::-1]
    for ledger in ledgers(sampler.needs).values():
        try:
            shares, other = (sampler.mix(p, 1000, ledger).shares for p in (profiles, backwards))
        except Exception:  # any-ledger says so
            continue
        if any(abs(shares[name] - other[name]) > ROUNDING for name in shares):
            fix = "go by names and sizes, never by positions; sort where an order is needed"
            raise Failed(f"{shares} and, named backwards, {other}", fix)
    epochs = [sampler.epoch_draws(p) for p in (profiles, backwards)]
    if epochs[0] != epochs[1]:
        raise Failed(f"an epoch of {epochs[0]:,} draws and, named backwards, {epochs[1]:,}", "go by names and sizes, never by positions")
    return "forwards and backwards"


def ledger_as_declared(subject: ComponentUnderTest) -> str:
    """A sampler looks at nothing in the ledger but what it declares as its needs."""
    sampler = subject.build()
    others = frozenset(get_args(Signal)) - sampler.needs
    if not others:
        raise SkipTest("it needs all that a ledger can hold")
    plain = ledger_of(frozenset()) if sampler.needs else Ledger()
    if sampler.mix(few(), 1000, plain) != sampler.mix(few(), 1000, ledger_of(others)):
        raise Failed(
            f"shares change with {', '.join(sorted(others))}, which it does not declare",
            "declare what is looked at: needs = frozenset({'scores'}), say",
        )
    return f"without and with {', '.join(sorted(others))}"


def any_ledger(subject: ComponentUnderTest) -> str:
    """Shares and loss weights are sound whatever the ledger holds so far."""
    sampler = subject.build()
    if not sampler.needs:
        raise SkipTest("it needs nothing of the ledger")
    found = ledgers(sampler.needs)
    for name, ledger in found.items():
        try:
            mixture = sampler.mix(few(), 1000, ledger)
            _require_names(mixture, few())
            _require_distribution(mixture)
            _require_weights(mixture)
        except Exception as error:
            fix = error.fix if isinstance(error, Failed) else "fall back on shares by size where the ledger says too little"
            raise Failed(f"{name}: {_told(error)}", fix) from error
    return "; ".join(found)


def borders_positive(subject: ComponentUnderTest) -> str:
    """Two decisions lie a whole number of at least one draw apart."""
    if not subject.build().needs:
        raise SkipTest("it decides once, at a stage's start")
    every: object = subject.build().every
    if not isinstance(every, int) or every < 1:
        raise Failed(f"it is asked every {every!r} draws", "return a whole number, such as the default of 4096")
    return f"every {every:,} draws"


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
        _require_names(_mix(subject), few())
        _require_distribution(_mix(subject))
    except Failed:
        raise SkipTest("shares of three tasks are wrong already") from None


def _mix(subject: ComponentUnderTest, draws: int = 1000) -> Mixture:
    mixture: Mixture = subject.build().mix(few(), draws, Ledger())
    return mixture


def _said(sampler: Sampler) -> str:
    said = [sampler.mix(few(), 1000, Ledger()).model_dump_json()]
    if sampler.needs:
        said.append(sampler.mix(few(), 1000, ledger_of(sampler.needs)).model_dump_json())
    return f"{sampler.epoch_draws(few())} draws, {' and then '.join(said)}"


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
