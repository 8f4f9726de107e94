"""The mixture plan: exact shares, one endless row order a task, any position at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtcore.data.mixture import BLOCK, MixturePlan, PlanTask, passes, row_order, subset
from mtcore.data.permutation import key, permute
from mtcore.errors import ConfigError


def make_plan(sizes, *, draws, seed=1, shares=None, unit=1, first=None, stage=0):
    total = sum(sizes.values())
    shares = shares or {name: rows / total for name, rows in sizes.items()}
    tasks = tuple(PlanTask(name, rows, shares[name], (first or {}).get(name, 0)) for name, rows in sizes.items())
    return MixturePlan(seed=seed, stage=stage, tasks=tasks, draws=draws, unit=unit)


def rows_of(plan, name):
    """The rows of one task in the order in which they are drawn."""
    window = plan.window(0, plan.draws)
    return window.row[window.task == [t.name for t in plan.tasks].index(name)]


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_keyed_order_holds_every_row_once(size, number):
    order = permute(np.arange(size, dtype=np.int64), size, np.array(number, np.uint64))
    assert sorted(order) == list(range(size))


def test_two_passes_and_two_tasks_are_ordered_differently():
    first, second = row_order(1, "a", 1000, np.arange(1000)), row_order(1, "a", 1000, np.arange(1000, 2000))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).mean() > 0.9
    assert (first != row_order(1, "b", 1000, np.arange(1000))).mean() > 0.9
    assert (first != row_order(2, "a", 1000, np.arange(1000))).mean() > 0.9


def test_a_keyed_order_looks_shuffled():
    order = row_order(1, "a", 10_000, np.arange(10_000))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=30), st.integers(1, 30_000))
def test_draws_sum_to_the_stage_and_follow_the_shares(weights, draws):
    shares = {f"t{i}": w / sum(weights) for i, w in enumerate(weights)}
    drawn = make_plan(dict.fromkeys(shares, 50), draws=draws, shares=shares).drawn()
    assert sum(drawn.values()) == draws
    assert all(abs(drawn[name] - share * draws) < 2 for name, share in shares.items())


def test_one_instance_balanced_epoch_holds_every_row_of_every_task_once():
    sizes = {"a": 3001, "b": 977, "c": 12}
    plan = make_plan(sizes, draws=sum(sizes.values()))
    assert all(sorted(rows_of(plan, name)) == list(range(rows)) for name, rows in sizes.items())


def test_shares_hold_inside_the_stage_and_not_only_at_its_end():
    plan = make_plan({"a": 100, "b": 100}, shares={"a": 0.9, "b": 0.1}, draws=5 * BLOCK)
    counts = [(plan.window(0, (k + 1) * BLOCK).task == 1).sum() for k in range(5)]
    assert counts == pytest.approx([0.1 * (k + 1) * BLOCK for k in range(5)], abs=1)


def test_the_counts_of_the_order_are_the_counts_that_are_printed():
    for unit in (1, 8):
        plan = make_plan({"a": 70, "b": 30, "c": 7}, draws=BLOCK + 1003, unit=unit)
        window = plan.window(0, plan.draws)
        assert plan.drawn() == {t.name: int((window.task == i).sum()) for i, t in enumerate(plan.tasks)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20_000), st.integers(0, 500))
def test_a_window_is_a_slice_of_the_whole(start, length):
    plan = make_plan({"a": 700, "b": 3000, "c": 17}, draws=20_000)
    whole = np.stack(plan.window(0, plan.draws))
    if start < plan.draws and length:
        assert (np.stack(plan.window(start, start + length)) == whole[:, start : start + length]).all()


def test_a_window_is_the_callers_own():
    plan = MixturePlan(1, 0, (PlanTask("a", 5, 1.0),), 100)
    before = plan.window(0, 10).row.copy()
    plan.window(0, 10).row[:] = -1
    assert (plan.window(0, 10).row == before).all()


def test_blocks_are_the_whole_plan():
    plan = make_plan({"a": 700, "b": 3000}, draws=2 * BLOCK + 5)
    assert (np.concatenate([w.row for w in plan.blocks()]) == plan.window(0, plan.draws).row).all()


def test_adding_a_task_leaves_the_row_order_of_every_other_task_as_it_was():
    small = make_plan({"a": 501, "b": 1203}, draws=9000)
    large = make_plan({"a": 501, "b": 1203, "z": 99}, shares={"a": 0.2, "b": 0.1, "z": 0.7}, draws=9000)
    for name in ("a", "b"):
        before, after = rows_of(small, name), rows_of(large, name)
        assert (before[: len(after)] == after[: len(before)]).all()


def test_a_later_stage_goes_on_where_an_earlier_one_left_a_tasks_rows():
    first = make_plan({"a": 100}, draws=70)
    second = make_plan({"a": 100, "b": 50}, draws=60, first={"a": 70}, stage=1)
    together = np.concatenate([rows_of(first, "a"), rows_of(second, "a")])
    assert (together == row_order(1, "a", 100, np.arange(len(together)))).all()


def test_one_task_a_step_means_that_every_step_is_of_one_task():
    plan = make_plan({"a": 100, "b": 50}, draws=320, unit=16)
    assert all(len(set(plan.window(s, s + 16).task)) == 1 for s in range(0, 320, 16))


def test_a_position_a_billion_draws_in_is_found_without_walking_there():
    # walking a billion draws would not end within the time limit of a test
    plan = make_plan({f"t{i}": 100_000 for i in range(100)}, draws=10**12)
    window = plan.window(10**9, 10**9 + 64)
    for index, task in enumerate(plan.tasks):
        mine = window.row[window.task == index]
        ordinals = np.arange(10**7 - BLOCK, 10**7 + BLOCK)
        assert set(mine) <= set(row_order(1, task.name, task.rows, ordinals))
    assert set(window.turn) <= {99, 100}


def test_passes_and_rows_never_seen_count_earlier_stages():
    tasks = (PlanTask("a", 100, 0.5, first=60), PlanTask("b", 100, 0.5))
    assert passes({"a": 30, "b": 30}, tasks) == {"a": (0.3, pytest.approx(0.1)), "b": (0.3, pytest.approx(0.7))}


def test_a_task_without_rows_or_shares_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ConfigError, match="have rows"):
        make_plan({"a": 0}, shares={"a": 1.0}, draws=1)
    with pytest.raises(ConfigError, match="sum to 1"):
        make_plan({"a": 5}, shares={"a": 0.5}, draws=1)


def test_a_subset_of_rows_is_fixed_by_the_tasks_name_and_nested():
    small, large = subset("clue/x", "train", 1000, 50), subset("clue/x", "train", 1000, 400)
    assert set(small) <= set(large)
    assert list(small) == sorted(small)
    assert set(small) != set(subset("clue/y", "train", 1000, 50))


def test_keys_are_the_same_on_every_machine():
    assert key(1, "rows", "clue/tnews", 0) == 8576095573041719945
