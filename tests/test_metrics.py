"""Metrics: by hand, against references, and as functions of summed statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from mtcore.contracts import TaskAdapter
from mtcore.errors import UnknownName
from mtcore.evaluation.metrics import METRICS, Accuracy, ChrF, ExactMatch, MacroF1, MicroF1, NegativeMeanAbsoluteError, Pearson, find_metric
from mtcore.types import NumberRange, TaskSpec


def make_spec(output="multi-class", labels="abcd", **changes):
    table = {
        "name": "toy",
        "output": output,
        "input": "single-sentence",
        "fields": ("text",),
        "instruction": "Say which.",
        "template": "{text}\n",
        "words": {} if output in ("generation", "regression") else {label: label.upper() for label in labels},
        "none_word": "none" if output == "multi-label" else "",
        "number_range": NumberRange(low=0, high=10, step=0.5) if output == "regression" else None,
        "metric": "accuracy",
        "licence": "none",
        "source": "made up",
    }
    return TaskSpec(**{**table, **changes})


SPECS = {output: make_spec(output) for output in ("multi-class", "ordinal", "multi-label", "regression", "generation")}
LABELS = SPECS["multi-class"].labels
ANSWERS = {
    "multi-class": st.sampled_from(LABELS),
    "ordinal": st.sampled_from(LABELS),
    "multi-label": st.sets(st.sampled_from(LABELS)).map(lambda chosen: tuple(sorted(chosen))),
    "regression": st.sampled_from(SPECS["regression"].number_range.numbers()),
    "generation": st.text("今天气 a", max_size=6).map(lambda text: (text,)),
}
FITTING = [
    (Accuracy, "multi-class"),
    (Accuracy, "multi-label"),
    (ExactMatch, "generation"),
    (NegativeMeanAbsoluteError, "ordinal"),
    (NegativeMeanAbsoluteError, "regression"),
    (MicroF1, "multi-class"),
    (MicroF1, "multi-label"),
    (MacroF1, "multi-class"),
    (MacroF1, "multi-label"),
    (Pearson, "regression"),
    (ChrF, "generation"),
]


def score(metric, predictions, answers, output="multi-class"):
    return float(metric.score(metric.statistics(SPECS[output], predictions, answers).sum(0)))


def pairs(rows, *, seed, several=False):
    """Random answers, and predictions that agree with half of them."""
    random = np.random.default_rng(seed)

    def drawn():
        if several:
            return [tuple(label for label in LABELS if random.random() < 0.4) for _ in range(rows)]
        return list(random.choice(LABELS, rows))

    answers, others = drawn(), drawn()
    return [a if random.random() < 0.5 else o for a, o in zip(answers, others, strict=True)], answers


# --- additivity: what the bootstrap rests on ------------------------------------------------------------------------------------------


def test_every_metric_of_the_box_is_tested_for_additivity():
    assert {metric.name for metric, _ in FITTING} == set(METRICS)


@pytest.mark.parametrize(("metric", "output"), FITTING, ids=lambda value: getattr(value, "name", value))
def test_the_score_of_summed_statistics_over_any_split_of_rows_is_the_score_of_the_whole(metric, output):
    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(ANSWERS[output], ANSWERS[output]), min_size=2, max_size=12), st.data())
    def check(rows, data):
        predictions, answers = zip(*rows, strict=True)
        cut = data.draw(st.integers(1, len(rows) - 1))
        parts = [metric().statistics(SPECS[output], predictions[part], answers[part]) for part in (slice(cut), slice(cut, None))]
        assert [len(part) for part in parts] == [cut, len(rows) - cut]
        together = float(metric().score(sum(part.sum(0) for part in parts)))
        assert together == pytest.approx(score(metric(), predictions, answers, output), abs=1e-9)

    check()


@pytest.mark.parametrize(("metric", "output"), FITTING, ids=lambda value: getattr(value, "name", value))
def test_scores_of_many_resamples_at_once_are_the_scores_of_each(metric, output):
    predictions, answers = (["a", "b", "c", "a"], ["a", "b", "d", "c"])
    if output == "regression":
        predictions, answers = [1.0, 2.0, 4.0, 4.5], [1.5, 2.0, 3.0, 9.0]
    if output in ("multi-label", "generation"):
        predictions, answers = [(p,) for p in predictions], [(a,) for a in answers]
    table = metric().statistics(SPECS[output], predictions, answers)
    counts = np.array([[1, 1, 1, 1], [4, 0, 0, 0], [0, 2, 1, 1]], np.float64)
    assert metric().score(counts @ table) == pytest.approx([float(metric().score(c @ table)) for c in counts])


# --- accuracy -------------------------------------------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_rows_answered_exactly():
    assert score(Accuracy(), ["a", "b", "c", "a"], ["a", "b", "a", "b"]) == 0.5


def test_a_multi_label_row_counts_only_where_the_whole_set_matches():
    predictions = [("a", "b"), ("a",), ("a", "b", "c"), (), ("d",)]
    answers = [("a", "b"), ("a", "b"), ("a", "b"), (), ()]
    assert score(Accuracy(), predictions, answers, "multi-label") == 2 / 5


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_fewer_predictions_than_answers_are_refused(metric):
    with pytest.raises(ValueError, match=r"longer|shape"):
        metric().statistics(make_spec(labels="12"), ["1"], ["1", "2"])


# --- exact match ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "acceptable"),
    [
        ("ＡＢＣ１２３", "abc123"),
        ("㈱", "(株)"),
        ("  北京　 ", "北京"),
        ("New\n\tYork", "new york"),
        ("ﬁne", "FINE"),
    ],
)
def test_exact_match_folds_width_case_and_white_space(prediction, acceptable):
    assert score(ExactMatch(), [(prediction,)], [(acceptable,)], "generation") == 1


@pytest.mark.parametrize(("prediction", "acceptable"), [("北 京", "北京"), ("北京。", "北京"), ("", "北京")])
def test_exact_match_does_not_fold_inner_spaces_away_nor_punctuation(prediction, acceptable):
    assert score(ExactMatch(), [(prediction,)], [(acceptable,)], "generation") == 0


def test_any_acceptable_text_is_an_exact_match():
    assert score(ExactMatch(), [("1905年",), ("昨天",)], [("一九〇五年", "1905年"), ("今天", "明天")], "generation") == 0.5


# --- mean absolute error --------------------------------------------------------------------------------------------------------------


def test_ordinal_errors_are_counted_in_steps_of_the_scale():
    assert score(NegativeMeanAbsoluteError(), ["a", "d", "b"], ["a", "a", "c"], "ordinal") == pytest.approx(-(0 + 3 + 1) / 3)


def test_regression_errors_are_in_the_unit_of_the_numbers():
    assert score(NegativeMeanAbsoluteError(), [1.5, 2.0], [1.0, 4.0], "regression") == pytest.approx(-1.25)


def test_no_error_at_all_is_a_plain_zero():
    for predictions, output in ((["a", "b"], "ordinal"), ([1.0, 2.5], "regression")):
        assert str(score(NegativeMeanAbsoluteError(), predictions, predictions, output)) == "0.0"


# --- F1 -------------------------------------------------------------------------------------------------------------------------------


def test_f1_by_hand():
    predictions, answers = [("a", "b"), ("a",), ()], [("a",), ("b",), ("c",)]
    # hits 1 (a); predicted wrongly 2 (b, a); missed 2 (b, c)
    assert score(MicroF1(), predictions, answers, "multi-label") == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))
    # a: 1 hit, 1 wrong; b: 1 wrong, 1 missed; c: 1 missed; d nowhere
    assert score(MacroF1(), predictions, answers, "multi-label") == pytest.approx((2 / 3 + 0 + 0) / 3)


@pytest.mark.parametrize("seed", range(5))
def test_f1_agrees_with_scikit_learn_on_single_labels(seed):
    predictions, answers = pairs(60, seed=seed)
    assert score(MicroF1(), predictions, answers) == pytest.approx(f1_score(answers, predictions, average="micro"))
    assert score(MacroF1(), predictions, answers) == pytest.approx(f1_score(answers, predictions, average="macro"))


@pytest.mark.parametrize("seed", range(5))
def test_f1_agrees_with_scikit_learn_on_several_labels(seed):
    predictions, answers = pairs(60, seed=seed, several=True)
    binary = MultiLabelBinarizer(classes=LABELS).fit(answers)
    expected = {how: f1_score(binary.transform(answers), binary.transform(predictions), average=how) for how in ("micro", "macro")}
    assert score(MicroF1(), predictions, answers, "multi-label") == pytest.approx(expected["micro"])
    assert score(MacroF1(), predictions, answers, "multi-label") == pytest.approx(expected["macro"])


def test_a_label_that_is_nowhere_does_not_pull_macro_f1_down():
    assert score(MacroF1(), ["a", "b"], ["a", "b"]) == 1


def test_nothing_to_find_and_nothing_found_is_a_perfect_micro_f1():
    assert score(MicroF1(), [(), ()], [(), ()], "multi-label") == 1


# --- Pearson --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_pearson_agrees_with_numpy(seed):
    random = np.random.default_rng(seed)
    x = random.normal(5, 2, 80)
    y = 0.5 * x + random.normal(0, 1, 80)
    assert score(Pearson(), list(x), list(y), "regression") == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_pearson_of_a_line_is_one_and_of_a_falling_line_minus_one():
    assert score(Pearson(), [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], "regression") == pytest.approx(1)
    assert score(Pearson(), [1.0, 2.0, 3.0], [6.0, 4.0, 2.0], "regression") == pytest.approx(-1)


@settings(deadline=None)
@given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(1, 50))
def test_pearson_is_zero_where_either_side_is_constant(constant, first, rows):
    same, other, varied = [constant / 100] * rows, [first / 100] * rows, [(first + number) / 100 for number in range(rows)]
    for x, y in ((same, varied), (varied, same), (same, other)):
        assert score(Pearson(), x, y, "regression") == 0


# --- chrF -----------------------------------------------------------------------------------------------------------------------------


def test_chrf_of_the_same_text_is_one_and_of_nothing_shared_zero():
    assert score(ChrF(), [("今天天气很好",)], [("今天天气很好",)], "generation") == pytest.approx(1)
    assert score(ChrF(), [("甲乙丙丁",)], [("天地人和",)], "generation") == 0


def test_chrf_takes_the_best_acceptable_text():
    one = score(ChrF(), [("今天很好",)], [("今天天气很好",)], "generation")
    assert 0 < one < 1
    assert score(ChrF(), [("今天很好",)], [("完全不同", "今天天气很好")], "generation") == pytest.approx(one)


# --- finding one ----------------------------------------------------------------------------------------------------------------------


class Lenient(Accuracy):
    name = "lenient"

    def value(self, spec, prediction, answer):
        return 1.0


class Adapter(TaskAdapter):
    spec = make_spec()
    metrics = {"lenient": Lenient, "accuracy": Lenient}

    def rows(self, split):
        return ()

    def fields(self, row):
        return {}

    def answer(self, row):
        return ""


def test_a_task_may_bring_its_own_metric_even_under_a_name_of_the_box():
    assert isinstance(find_metric(Adapter(), "lenient"), Lenient)
    assert isinstance(find_metric(Adapter(), "accuracy"), Lenient)
    assert isinstance(find_metric(Adapter(), "micro-f1"), MicroF1)


def test_an_unknown_metric_names_the_task_and_the_nearest_known_ones():
    with pytest.raises(UnknownName, match=r"task toy: no metric is called 'macro-f'; did you mean 'macro-f1' or .*\? Known: accuracy,"):
        find_metric(Adapter(), "macro-f")


def test_an_unknown_metric_that_is_near_none_names_all():
    with pytest.raises(UnknownName, match=r"no metric is called 'zzz'\. Known: accuracy, .*lenient\."):
        find_metric(Adapter(), "zzz")
