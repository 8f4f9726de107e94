"""Steps that go wrong: what is skipped, when a fit goes back, when it gives up."""

import math

import pytest

from mtcore.training.guard import IN_A_ROW, KNOWN, MOST_ROLLBACKS, OF_MANY, Guard


def seen(losses, times=KNOWN):
    guard = Guard()
    for _ in range(times):
        guard = guard.after(losses, "")
    return guard


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_never_taken(loss):
    assert Guard().objection(loss, {"a": 1.0})
    assert seen({"a": 1.0}).objection(loss, {"a": 1.0})


def test_ten_times_the_expected_loss_is_a_spike():
    guard = seen({"a": 1.0})
    assert not guard.objection(9.9, {"a": 1.0})
    assert "1 was to be expected" in guard.objection(10.1, {"a": 1.0})


def test_nothing_is_expected_of_a_task_that_was_hardly_seen():
    assert not seen({"a": 1.0}, times=KNOWN - 1).objection(1e6, {"a": 1.0})
    assert not seen({"a": 1.0}).objection(1e6, {"a": 0.5, "new": 0.5})


def test_a_task_whose_losses_are_high_by_nature_is_no_spike_among_easy_ones():
    guard = seen({"easy": 0.2, "hard": 5.0})
    assert not guard.objection(5.0, {"hard": 1.0})
    assert guard.objection(5.0, {"easy": 1.0})


def test_near_zero_a_hard_example_is_no_spike():
    assert not seen({"a": 1e-4}).objection(0.9, {"a": 1.0})


def test_what_was_skipped_is_not_learnt_from():
    guard = seen({"a": 1.0}).after({"a": 50.0}, "spike")
    assert guard.means == {"a": 1.0}


def test_several_skipped_in_a_row_or_many_in_all_are_a_reason_to_go_back():
    guard = seen({"a": 1.0})
    for _ in range(IN_A_ROW):
        assert not guard.must_go_back
        guard = guard.after({}, "nan")
    assert guard.must_go_back
    guard = seen({"a": 1.0})
    for number in range(OF_MANY):
        assert not guard.must_go_back
        guard = guard.after({}, "nan").after({"a": 1.0}, "") if number < OF_MANY - 1 else guard.after({}, "nan")
    assert guard.must_go_back


def test_going_back_is_bounded_and_forgets_what_was_expected():
    guard = seen({"a": 1.0})
    for _ in range(MOST_ROLLBACKS):
        assert not guard.must_give_up
        guard = guard.gone_back()
    assert guard.must_give_up
    assert not guard.means


def test_a_guard_survives_json_bit_for_bit():
    guard = seen({"a": 1 / 3, "b": 0.1}).after({}, "nan")
    assert Guard.model_validate_json(guard.model_dump_json()) == guard
