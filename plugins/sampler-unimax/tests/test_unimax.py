"""UniMax keeps what every sampler promises, and its shares are right by hand."""

import pytest
from mtcore_unimax import UniMax

from mtcore.testing import sampler_checks
from mtcore.types import Ledger, TaskProfile, TaskSpec

SPEC = TaskSpec(
    name="t",
    output="binary",
    input="single-sentence",
    fields=("text",),
    instruction="Is it?",
    template="{text}",
    words={"0": "no", "1": "yes"},
    metric="accuracy",
    licence="none",
    source="made up",
)


@pytest.mark.parametrize("check", [*sampler_checks(UniMax), *sampler_checks(UniMax, options={"passes": 0.5})], ids=str)
def test_the_sampler_keeps_its_promises(check):
    check()


def profiles(**sizes: int) -> list[TaskProfile]:
    return [TaskProfile(name=name, spec=SPEC, train_rows=rows, validation_rows=1) for name, rows in sizes.items()]


def mix(draws: int, passes: float, **sizes: int):
    return UniMax(UniMax.Config(passes=passes)).mix(profiles(**sizes), draws, Ledger())


def test_a_budget_that_no_task_exhausts_is_spread_evenly():
    assert mix(300, 5, a=1000, b=2000, c=100).shares == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


def test_a_small_task_stops_at_its_passes_and_leaves_the_rest_to_the_others():
    mixture = mix(1000, 2, small=50, large=10_000, larger=20_000)
    assert mixture.shares == pytest.approx({"small": 0.1, "large": 0.45, "larger": 0.45})
    assert mixture.draws is None


def test_a_budget_beyond_all_passes_shortens_the_run_and_says_so():
    mixture = mix(10_000, 2, a=100, b=300)
    assert mixture.draws == 800
    assert "shortened from 10,000" in mixture.note
    assert mixture.shares == pytest.approx({"a": 0.25, "b": 0.75})
