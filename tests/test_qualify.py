"""Verdicts: the bar, chance, the paired bootstrap, overheads."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtcore.evaluation.metrics import Accuracy, NegativeMeanAbsoluteError, Pearson
from mtcore.evaluation.qualify import RESAMPLES, deployment, judge, overhead, reaches, resampled_counts


def marks(right, rows):
    """Statistics of accuracy where the first `right` rows are answered rightly."""
    return table(np.arange(rows) < right)


def table(values):
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)


def scattered(right, rows, *, seed):
    """The same, with the right answers in random places."""
    return marks(right, rows)[np.random.default_rng(seed).permutation(rows)]


def verdict(reference, shared, majority, *, name="toy", metric=None):
    as_seeds = [s if isinstance(s, list) else [s] for s in (reference, shared)]
    return judge(metric or Accuracy(), *as_seeds, majority, name=name)


# --- the bar --------------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 5000))
def test_the_bar_is_exactly_99_hundredths_of_the_reference(rows, reference, score):
    assume(max(reference, score) <= rows)
    assert bool(reaches(score / rows, reference / rows)) == (100 * score >= 99 * reference)


def test_rounding_takes_the_bar_from_no_score_that_stands_on_it():
    on_it = [(rows, hundreds) for rows in range(100, 3001, 100) for hundreds in range(1, rows // 100 + 1)]
    assert all(reaches(99 * hundreds / rows, 100 * hundreds / rows) for rows, hundreds in on_it)
    assert not all(99 * hundreds / rows >= 0.99 * (100 * hundreds / rows) for rows, hundreds in on_it)


@pytest.mark.parametrize(("right", "expected"), [(197, False), (198, True), (199, True), (300, True)])
def test_a_task_qualifies_from_the_first_row_that_reaches_the_bar(right, expected):
    v = verdict(marks(200, 300), marks(right, 300), marks(100, 300))
    assert v.is_qualified == expected
    assert v.ratio == pytest.approx(right / 200)


def test_a_ratio_that_only_rounds_to_the_bar_does_not_reach_it():
    assert not reaches(0.98999, 1.0)
    v = verdict(marks(750, 1000), marks(742, 1000), marks(500, 1000))
    assert f"{v.ratio:.2f}" == "0.99"
    assert not v.is_qualified


# --- chance ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [0, 100, 150, 152])
def test_nothing_qualifies_against_a_reference_at_chance(right):
    v = verdict(scattered(right, 300, seed=1), marks(300, 300), scattered(150, 300, seed=2))
    assert v.is_at_chance
    assert not v.is_qualified
    assert v.p_qualified == 0
    assert v.score == 1


def test_a_reference_that_is_the_majority_answer_is_at_chance():
    assert verdict(marks(150, 300), marks(150, 300), marks(150, 300)).is_at_chance


def test_a_clearly_better_reference_is_not_at_chance():
    v = verdict(scattered(240, 300, seed=1), scattered(240, 300, seed=3), scattered(150, 300, seed=2))
    assert not v.is_at_chance
    assert v.is_qualified


def test_a_lead_over_chance_that_a_few_rows_carry_is_no_lead():
    assert verdict(scattered(26, 40, seed=1), marks(40, 40), scattered(20, 40, seed=2)).is_at_chance
    assert not verdict(scattered(650, 1000, seed=1), marks(1000, 1000), scattered(500, 1000, seed=2)).is_at_chance


def test_a_model_that_always_says_the_same_number_is_at_chance():
    random = np.random.default_rng(1)
    gold = list(random.normal(size=200))
    constant, other, near = (Pearson().statistics(None, p, gold) for p in ([0.1] * 200, [0.3] * 200, [g + 0.1 for g in gold]))
    assert verdict(constant, near, other, metric=Pearson()).is_at_chance
    assert not verdict(near, near, other, metric=Pearson()).is_at_chance


# --- references at or below zero ------------------------------------------------------------------------------------------------------


def test_a_reference_below_zero_has_no_ratio_and_is_itself_the_bar():
    random = np.random.default_rng(1)
    reference, majority = table(-random.random(200)), table(-5 - random.random(200))
    better, equal, worse = (
        verdict(reference, reference + np.array([d, 0]), majority, metric=NegativeMeanAbsoluteError()) for d in (0.1, 0, -0.1)
    )
    assert [v.is_qualified for v in (better, equal, worse)] == [True, True, False]
    assert [v.p_qualified for v in (better, equal, worse)] == [1, 1, 0]
    assert {(v.ratio, v.interval, v.is_at_chance) for v in (better, equal, worse)} == {(None, None, False)}


def test_a_perfect_mean_error_of_zero_has_no_ratio():
    v = verdict(table(np.zeros(50)), table(np.zeros(50)), table(np.full(50, -1.0)), metric=NegativeMeanAbsoluteError())
    assert v.ratio is None
    assert v.is_qualified


# --- how sure -------------------------------------------------------------------------------------------------------------------------


def test_identical_answers_are_surely_qualified_at_a_ratio_of_one():
    same = scattered(200, 300, seed=1)
    v = verdict(same, same, scattered(100, 300, seed=2))
    assert (v.p_qualified, v.interval, v.ratio) == (1, (1, 1), 1)


def test_p_is_high_far_above_the_bar_low_far_below_it_and_open_near_it():
    reference, majority = scattered(700, 1000, seed=1), scattered(300, 1000, seed=2)
    above, near, below = (verdict(reference, scattered(right, 1000, seed=3), majority) for right in (850, 693, 550))
    assert above.p_qualified > 0.99
    assert 0.3 < near.p_qualified < 0.7
    assert below.p_qualified < 0.01


@pytest.mark.parametrize("right", [550, 693, 700, 850])
def test_the_interval_of_the_ratio_holds_the_ratio(right):
    v = verdict(scattered(700, 1000, seed=1), scattered(right, 1000, seed=3), scattered(300, 1000, seed=2))
    assert v.interval[0] < v.ratio < v.interval[1]


def test_rows_are_resampled_in_pairs_so_that_shared_mistakes_leave_less_doubt():
    reference, majority = scattered(700, 1000, seed=1), scattered(300, 1000, seed=2)
    alike = reference.copy()
    alike[np.flatnonzero(reference[:, 0])[:10], 0] = 0  # ten rows worse, all other answers the same
    paired, apart = verdict(reference, alike, majority), verdict(reference, scattered(690, 1000, seed=3), majority)
    assert paired.ratio == apart.ratio
    assert paired.interval[1] - paired.interval[0] < (apart.interval[1] - apart.interval[0]) / 3


def test_more_rows_leave_less_doubt():
    few = verdict(scattered(70, 100, seed=1), scattered(70, 100, seed=3), scattered(30, 100, seed=2))
    many = verdict(scattered(1400, 2000, seed=1), scattered(1400, 2000, seed=3), scattered(600, 2000, seed=2))
    assert many.interval[1] - many.interval[0] < (few.interval[1] - few.interval[0]) / 2


def test_the_same_answers_get_the_same_verdict_every_time():
    sides = scattered(200, 300, seed=1), scattered(195, 300, seed=3), scattered(100, 300, seed=2)
    assert verdict(*sides) == verdict(*sides)
    assert verdict(*sides).p_qualified != verdict(*sides, name="other").p_qualified


def test_the_order_of_rows_changes_nothing_but_noise():
    sides = scattered(700, 1000, seed=1), scattered(694, 1000, seed=3), scattered(300, 1000, seed=2)
    order = np.random.default_rng(5).permutation(1000)
    before, after = verdict(*sides), verdict(*(side[order] for side in sides))
    assert (before.score, before.reference, before.ratio, before.is_qualified) == (
        after.score,
        after.reference,
        after.ratio,
        after.is_qualified,
    )
    assert before.p_qualified == pytest.approx(after.p_qualified, abs=0.05)
    assert before.interval == pytest.approx(after.interval, abs=0.01)


# --- several seeds --------------------------------------------------------------------------------------------------------------------


def test_seeds_are_judged_by_their_means():
    v = verdict([marks(200, 300), marks(220, 300)], [marks(190, 300), marks(226, 300)], marks(100, 300))
    assert v.reference == pytest.approx(210 / 300)
    assert v.score == pytest.approx(208 / 300)
    assert v.is_qualified
    assert not verdict([marks(200, 300), marks(220, 300)], [marks(190, 300), marks(225, 300)], marks(100, 300)).is_qualified


def test_a_mean_over_seeds_that_stands_on_the_bar_reaches_it():
    rights = [(100, 99), (200, 198), (300, 297)]
    v = verdict([marks(r, 304) for r, _ in rights], [marks(s, 304) for _, s in rights], marks(20, 304))
    assert v.is_qualified


def test_several_seeds_leave_less_doubt_than_one():
    references, shared = ([scattered(700, 1000, seed=s) for s in seeds] for seeds in (range(5), range(10, 15)))
    majority = scattered(300, 1000, seed=99)
    one, five = verdict(references[0], shared[0], majority), verdict(references, shared, majority)
    assert five.interval[1] - five.interval[0] < one.interval[1] - one.interval[0]


# --- the bootstrap itself -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**64 - 1))
def test_every_resample_holds_as_many_rows_as_there_are(rows, seed):
    counts = resampled_counts(rows, seed)
    assert counts.shape == (RESAMPLES, rows)
    assert (counts.sum(1) == rows).all()
    assert (counts == np.round(counts)).all()
    assert counts.min() >= 0


def test_every_row_is_drawn_once_on_average():
    assert resampled_counts(100, 7).mean(0) == pytest.approx(np.ones(100), abs=0.15)
    assert (resampled_counts(100, 7) == resampled_counts(100, 7)).all()
    assert (resampled_counts(100, 7) != resampled_counts(100, 8)).any()


def test_seeds_that_disagree_widen_the_interval():
    reference, majority = marks(80, 100), marks(10, 100)
    alike = judge(Accuracy(), [reference] * 3, [reference] * 3, majority, name="toy")
    apart = judge(Accuracy(), [reference] * 3, [marks(70, 100), marks(80, 100), marks(90, 100)], majority, name="toy")
    assert alike.interval == (1, 1)
    assert apart.interval[0] < 0.95 < 1.05 < apart.interval[1]
    assert apart.p_qualified < 1


# --- overhead and deployment ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qualified", "percent"),
    [
        ([5], "20.0"),  # table 1, both base models: ours
        ([4], "25.0"),
        ([3], "33.3"),
        ([2], "50.0"),
        ([9], "11.1"),  # table 3
        ([8], "12.5"),
        ([6], "16.7"),
        ([11], "9.1"),
        ([7, 1, 2], "14.3"),  # table 5: 10 tasks in three models
        ([2, 3], "33.3"),  # table 9, SS and BM: ours, 5 tasks in two models
        ([2, 2], "50.0"),  # table 9, SS: instance-balanced, 4 tasks
    ],
)
def test_the_overhead_is_the_papers(qualified, percent):
    assert f"{100 * overhead(qualified):.1f}" == percent


def test_single_task_models_have_the_whole_overhead_and_none_qualified_has_none():
    assert overhead([1, 1, 1], alone=True) == overhead([0], alone=True) == 1
    assert overhead([0]) is None
    assert overhead([0, 0]) is None
    assert overhead([]) is None


def test_eleven_of_seventeen_tasks_in_one_model_leave_seven_models_online():
    tasks = [f"t{i}" for i in range(17)]
    plan = deployment({"all": tasks[:11]}, tasks)
    assert plan.overhead == 7 / 17
    assert plan.shared == {"all": tasks[:11]}
    assert plan.single == tasks[11:]


def test_a_shared_model_in_which_nothing_qualifies_is_not_put_online():
    plan = deployment({"a": ["x"], "b": []}, ["x", "y"])
    assert plan.shared == {"a": ["x"]}
    assert plan.single == ["y"]
    assert plan.overhead == 1
    assert deployment({}, ["x", "y"]).overhead == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=20))
def test_a_deployment_serves_every_task_exactly_once(members):
    tasks = [f"t{i}" for i in range(len(members))]
    qualified = {g: [t for t, (group, reaches_bar) in zip(tasks, members, strict=True) if group == g and reaches_bar] for g in "abc"}
    plan = deployment(qualified, tasks)
    assert sorted([*plan.single, *(t for served in plan.shared.values() for t in served)]) == sorted(tasks)
    assert plan.overhead == (len(plan.shared) + len(plan.single)) / len(tasks)
    assert 0 < plan.overhead <= 1
