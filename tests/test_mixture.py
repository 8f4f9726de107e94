"""The mixture plan: exact shares, one endless row order a task, any position at once."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtcore.data.documents import NONE, Documents
from mtcore.data.mixture import BLOCK, MixturePlan, PlanTask, passes, row_order, subset
from mtcore.data.permutation import key, permute
from mtcore.errors import ConfigError, RunError


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


GOLDEN = {
    "f9648a7478caac87": MixturePlan(1, 0, (PlanTask("a", 3001, 0.75), PlanTask("b", 977, 0.245), PlanTask("c", 1, 0.005)), 10_000),
    "ef83338601b147a8": MixturePlan(2, 1, tuple(PlanTask(f"suite/{i}", 10 * 4**i, 1 / 8, first=7 * i) for i in range(8)), 20_000),
    "0e27b856db3e3ef6": MixturePlan(3, 0, (PlanTask("a", 100, 0.9), PlanTask("b", 50, 0.1)), 9_001, unit=16),
}


@pytest.mark.parametrize("expected", GOLDEN)
def test_an_order_is_the_same_in_every_version_and_on_every_machine(expected):
    plan = GOLDEN[expected]
    order = hashlib.sha256(b"".join(column.astype("<i8").tobytes() for column in plan.window(0, plan.draws)))
    assert order.hexdigest()[:16] == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40_000), st.sampled_from([1, 7, 64]), st.data())
def test_draws_up_to_any_position_are_counted_without_walking_there(number, draws, unit, data):
    plan = make_plan({f"t{i}": 5 + 300 * i for i in range(number)}, draws=draws, unit=unit)
    until = data.draw(st.integers(0, draws))
    assert list(plan.drawn(until).values()) == np.bincount(plan.window(0, until).task, minlength=number).tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_what_the_ranks_take_is_together_the_whole(ranks):
    plan, step = make_plan({"a": 700, "b": 3000}, draws=5_000), 64
    taken = []
    for start in range(0, plan.draws, step):
        parts = [np.stack(plan.window(start, start + step))[:, rank::ranks] for rank in range(ranks)]
        whole = np.empty((3, min(step, plan.draws - start)), np.int64)
        for rank, part in enumerate(parts):
            whole[:, rank::ranks] = part
        taken.append(whole)
    assert (np.concatenate(taken, axis=1) == np.stack(plan.window(0, plan.draws))).all()


# --- shares that change at borders -------------------------------------------------------------------------------------------------------

SIZES = {"a": 700, "b": 3000, "c": 17}


def changing(every, decided, *, draws, unit=1, sizes=SIZES):
    """A plan whose shares change every so many draws: those that `decided` lists, one after another."""
    tasks = tuple(PlanTask(name, rows, share) for (name, rows), share in zip(sizes.items(), decided[0], strict=True))
    plan = MixturePlan(1, 0, tasks, draws, unit=unit, every=every)
    for shares in decided[1:]:
        plan = plan.changed(shares)
    return plan


def some_shares(number):
    return st.lists(st.floats(0.01, 1), min_size=number, max_size=number).map(lambda w: [x / sum(w) for x in w])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([64, 640, 4096, 9984]), st.lists(some_shares(3), min_size=1, max_size=6), st.integers(1, 30_000))
def test_what_is_decided_does_not_change_with_what_is_decided_later(every, decided, draws):
    decided = decided[: -(-draws // every)]
    whole = np.stack(changing(every, decided, draws=draws).window(0, min(draws, every * len(decided))))
    for number in range(1, len(decided)):
        part = changing(every, decided[:number], draws=draws)
        assert part.known == every * number
        assert (np.stack(part.window(0, part.known)) == whole[:, : part.known]).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([64, 640, 4096, 9984]), st.lists(some_shares(3), min_size=2, max_size=6), st.data())
def test_a_window_of_a_changing_plan_is_a_slice_of_the_whole_and_so_are_its_counts(every, decided, data):
    plan = changing(every, decided, draws=every * len(decided) - 5)
    whole = np.stack(plan.window(0, plan.draws))
    start = data.draw(st.integers(0, plan.draws - 1))
    assert (np.stack(plan.window(start, start + 99)) == whole[:, start : start + 99]).all()
    assert (np.concatenate([np.stack(w) for w in plan.blocks()], axis=1) == whole).all()
    assert list(plan.drawn(start).values()) == np.bincount(whole[0, :start], minlength=3).tolist()


def test_a_tasks_row_order_goes_on_over_borders():
    plan = changing(1000, [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], draws=3000)
    for name, rows in SIZES.items():
        drawn = rows_of(plan, name)
        assert (drawn == row_order(1, name, rows, np.arange(len(drawn)))).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([8, 64, 640]), st.integers(2, 60), st.data())
def test_small_shares_are_made_up_for_over_many_borders(every, spans, data):
    small = data.draw(st.floats(0.0005, 0.02))
    decided = [[1 - 3 * small, 2 * small, small]] * spans
    plan = changing(every, decided, draws=every * spans)
    counts = plan.drawn().values()
    assert sum(counts) == plan.draws
    assert all(abs(count - share * plan.draws) < 3 for count, share in zip(counts, decided[0], strict=True))


def test_a_task_of_share_zero_is_not_drawn_for_what_it_is_owed():
    decided = [[0.985, 0.01, 0.005], [1.0, 0.0, 0.0], [0.985, 0.01, 0.005]]
    plan = changing(64, decided, draws=192)
    assert set(plan.window(64, 128).task) == {0}


def test_one_task_a_step_holds_over_borders():
    plan = changing(64, [[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], draws=128, unit=16)
    assert all(len(set(plan.window(s, s + 16).task)) == 1 for s in range(0, 128, 16))
    with pytest.raises(ConfigError, match="whole units of 16 draws, not every 40"):
        changing(40, [[0.5, 0.3, 0.2]], draws=128, unit=16)


def test_a_position_beyond_the_first_undecided_border_is_refused():
    plan = changing(100, [[0.5, 0.4, 0.1]], draws=1000)
    with pytest.raises(RunError, match="decided up to 100; 101"):
        plan.window(50, 101)
    with pytest.raises(RunError, match="have their shares already"):
        changing(100, [[0.5, 0.4, 0.1]], draws=100).changed([1, 0, 0])


# --- rows of one document together -------------------------------------------------------------------------------------------------------


def with_documents(documents, *, draws, shares=None, first=None):
    keys = {name: np.array(own, np.int64) for name, own in documents.items()}
    plan = make_plan({name: len(own) for name, own in keys.items()}, draws=draws, shares=shares, first=first)
    return replace(plan, documents=Documents(keys))


def keys_of(plan, window):
    return np.array([plan.documents.keys[plan.tasks[t].name][r] for t, r in zip(window.task, window.row, strict=True)])


def neighbours(keys):
    """How many rows stand beside another of their document."""
    same = np.r_[False, (keys[1:] == keys[:-1]) & (keys[1:] != NONE), False]
    return int((same[1:] | same[:-1]).sum())


def test_rows_of_one_document_stand_together_and_tasks_walk_through_documents_in_step():
    pool = np.arange(20_000)
    plan = with_documents({"a": pool, "b": pool[::2], "c": pool[::5]}, draws=34_000)
    shared, free = neighbours(keys_of(plan, plan.window(0, 34_000))), replace(plan, documents=None)
    assert neighbours(keys_of(plan, free.window(0, 34_000))) < 50
    assert shared > 0.8 * (3 * 2_000 + 2 * 8_000 + 2 * 2_000)  # of those whose document another task has


def test_a_document_that_stands_in_a_task_more_than_once_is_one_stretch_of_its_pass():
    plan = with_documents({"a": np.repeat(np.arange(500), 4)}, draws=2000)
    keys = keys_of(plan, plan.window(0, 2000))
    assert np.count_nonzero(np.diff(keys)) == 499


def test_a_row_that_is_drawn_again_is_not_brought_to_its_first_time():
    plan = with_documents({"a": np.arange(40), "b": np.arange(40)}, draws=4000)
    window = plan.window(0, 4000)
    for start in range(0, 3968, 32):
        rows = list(zip(window.task[start : start + 32], window.row[start : start + 32], strict=True))
        assert len(set(rows)) >= 24


def test_grouping_by_documents_leaves_shares_at_the_borders_of_blocks_as_they_were():
    plan = with_documents({"a": np.arange(9000), "b": np.arange(0, 9000, 3)}, draws=3 * BLOCK)
    for border in (BLOCK, 2 * BLOCK, 3 * BLOCK):
        assert plan.drawn(border) == replace(plan, documents=None).drawn(border)


def test_rows_without_a_document_keep_their_places_in_the_bijection():
    own = np.where(np.arange(1000) % 3 == 0, np.arange(1000), NONE)
    arranged = Documents({"a": own}).arranged("a", 1, 0)
    free = row_order(1, "a", 1000, np.arange(1000))
    assert sorted(arranged) == list(range(1000))
    assert (arranged[own[free] == NONE] == free[own[free] == NONE]).all()
    none = with_documents({"a": np.full(300, NONE), "b": np.full(50, NONE)}, draws=700)
    assert (np.stack(none.window(0, 700)) == np.stack(replace(none, documents=None).window(0, 700))).all()


DOCUMENTS = st.lists(st.integers(-1, 40), min_size=1, max_size=120)


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS, DOCUMENTS, st.integers(1, 300))
def test_adding_a_task_leaves_which_rows_a_tasks_draws_fall_on_as_it_was(own, others, draws):
    """At a border every task's draws so far are the first ones of its own order, whatever else is in the plan."""
    alone = with_documents({"a": own}, draws=draws)
    beside = with_documents({"a": own, "z": others}, draws=2 * draws, shares={"a": 0.5, "z": 0.5})
    assert sorted(rows_of(alone, "a")) == sorted(rows_of(beside, "a"))
    turns = -(-draws // len(own))
    order = np.concatenate([Documents({"a": np.array(own)}).arranged("a", 1, turn) for turn in range(turns)])
    assert sorted(rows_of(beside, "a")) == sorted(order[:draws])


def test_a_plan_with_documents_is_data_that_names_them_by_their_digest():
    plan = with_documents({"a": [1, 2, 2]}, draws=6)
    assert json.loads(json.dumps(plan.as_json()))["documents"] == plan.documents.digest
    assert plan == with_documents({"a": [1, 2, 2]}, draws=6)
    assert plan != with_documents({"a": [1, 2, 3]}, draws=6)
    with pytest.raises(ConfigError, match="one key for every row"):
        replace(plan, documents=Documents({"a": np.arange(2)}))


def test_keys_are_the_same_on_every_machine():
    assert key(1, "rows", "clue/tnews", 0) == 8576095573041719945
