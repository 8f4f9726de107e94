"""Leaks, repeats and conflicts are found before training, and the floors are what can be had without a language model."""

import pytest

from mtcore.data.checks import MIN_BAG_ROWS, bag_of_words_answers, check_rows, majority_answer, shared_rows
from mtcore.errors import DataError
from mtcore.types import Example, NumberRange, TaskData, TaskSpec

WORDS = {"0": "bad", "1": "good"}


def task(train, validation=(("held out", "0"),), test=(), name="toy", **changes):
    """A task from (text, answer) pairs; with several fields, from (texts, answer)."""
    table = {
        "name": "toy",
        "output": "binary",
        "input": "single-sentence",
        "fields": ("text",),
        "instruction": "How is it?",
        "words": WORDS,
        "metric": "accuracy",
        "licence": "none",
        "source": "made up",
        **changes,
    }
    spec = TaskSpec(**{"template": "\n".join(f"{{{field}}}" for field in table["fields"]), **table})

    def examples(rows):
        return tuple(Example(dict(zip(spec.fields, [t] if isinstance(t, str) else t, strict=True)), answer) for t, answer in rows)

    return TaskData(name, spec, examples(train), examples(validation), examples(test))


# --- leaks ----------------------------------------------------------------------------------------------------------------------------


def test_a_validation_row_that_is_a_train_row_is_an_error_that_says_what_to_do():
    leaky = task([("one", "0"), ("two", "1")], [("two", "0"), ("three", "1")], name="zh/toy")
    with pytest.raises(DataError, match=r"zh/toy: 1 of 2 validation rows are train rows too.*rows\.allow_leaks = \['zh/toy'\]"):
        check_rows(leaky)


@pytest.mark.parametrize("patterns", [("zh/toy",), ("other", "zh/*"), ("*",)])
def test_a_leak_that_is_allowed_for_the_task_is_counted_and_warned_of(patterns):
    leaky = task([("one", "0"), ("two", "1")], [("two", "0"), ("three", "1")], name="zh/toy")
    report = check_rows(leaky, allow_leaks=patterns)
    assert (report.leaks, report.normalised_leaks) == (1, 1)
    assert any("1 of 2 validation rows are train rows too" in warning for warning in report.warnings(leaky))


@pytest.mark.parametrize("patterns", [("toy",), ("en/*",), ("zh",)])
def test_a_leak_that_is_allowed_for_other_tasks_only_is_an_error(patterns):
    with pytest.raises(DataError):
        check_rows(task([("one", "0")], [("one", "0")], name="zh/toy"), allow_leaks=patterns)


def test_a_row_leaks_only_if_all_its_fields_do():
    rows = {"fields": ("first", "second"), "input": "sentence-pair"}
    report = check_rows(task([(("a", "b"), "0"), (("c", "d"), "0")], [(("a", "d"), "0"), (("b", "a"), "0")], **rows))
    assert (report.leaks, report.normalised_leaks) == (0, 0)
    with pytest.raises(DataError):
        check_rows(task([(("a", "b"), "0")], [(("a", "b"), "1")], **rows))


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("The hotel", "the HOTEL"),
        ("The hotel", "The   hotel\n"),
        ("很好，不错。", "很好,不错!"),
        ("ＡＢＣ１２", "abc12"),
        ("snake_case", "snake case"),
        ("ﬁne", "fine"),
    ],
)
def test_case_space_punctuation_and_width_hide_no_leak(train, validation):
    data = task([(train, "0"), ("another", "1")], [(validation, "0")])
    report = check_rows(data)
    assert (report.leaks, report.normalised_leaks) == (0, 1)
    assert "0 of 1 validation rows are train rows too (1 up to case, space and punctuation)" in report.warnings(data)


@pytest.mark.parametrize(("train", "validation"), [("很好", "很坏"), ("😀", "😡"), ("？", "！"), ("1.5", "1.6")])
def test_rows_that_differ_in_more_are_no_leaks(train, validation):
    assert check_rows(task([(train, "0")], [(validation, "0")])).normalised_leaks == 0


def test_validation_inputs_that_another_task_trains_on_are_told():
    first = task([("a cat", "0"), ("a dog", "1")], [("a cow", "0"), ("a pig", "0")], name="first")
    second = task([("A cow!", "0"), ("a hen", "1")], [("a dog", "0"), ("a cat", "1"), ("an owl", "1")], name="second")
    third = task([("a fish", "0")], [("a bird", "0")], name="third")
    assert shared_rows([first, second, third]) == [
        "first: 1 of 2 validation inputs are train inputs of second",
        "second: 2 of 3 validation inputs are train inputs of first",
    ]
    assert shared_rows([first]) == []


# --- repeats, conflicts, answers in the input -----------------------------------------------------------------------------------------


def test_repeats_and_conflicts_are_counted_and_never_an_error():
    data = task([("a", "0"), ("a", "0"), ("a", "1"), ("a", "1"), ("b", "1"), ("b ", "1")])
    report = check_rows(data)
    assert (report.repeats, report.conflicts) == (2, 1)
    told = report.warnings(data)
    assert "2 of 6 train rows repeat another" in told
    assert "1 of 6 train rows repeat another's input with another answer" in told


def test_clean_rows_with_a_test_split_call_for_no_warning():
    data = task([("a", "0"), ("b", "1")], test=[("c", "1")])
    assert check_rows(data).warnings(data) == []


def test_a_task_that_is_chosen_and_judged_on_the_same_rows_is_warned_of():
    data = task([("a", "0"), ("b", "1")])
    assert check_rows(data).warnings(data) == ["no test split: checkpoints are chosen and judged on the same validation rows"]


def test_an_answer_word_that_stands_in_the_input_is_counted():
    data = task([("a good day", "1"), ("a bad day", "0"), ("so bad, it is", "0"), ("a good one", "0")])
    report = check_rows(data)
    assert report.answer_in_input == 0.75
    assert "the answer word stands in the input of 75% of train rows" in report.warnings(data)
    rare = task([("a good day", "1"), ("a day", "0")])
    assert not any("answer word" in warning for warning in check_rows(rare).warnings(rare))


def test_any_word_of_several_labels_counts_and_their_separator_does_not():
    labels = {"output": "multi-label", "words": {"s": "sea", "a": "air"}, "none_word": "none", "separator": ", "}
    report = check_rows(task([("here, there", ("s", "a")), ("by air, then", ("s", "a")), ("a, b", ()), ("none, really", ())], **labels))
    assert report.answer_in_input == 0.5


def test_numbers_and_free_texts_are_not_looked_for_in_the_input():
    scale = NumberRange(low=0, high=5, step=1)
    assert check_rows(task([("3 stars", 3.0)], output="regression", words={}, number_range=scale)).answer_in_input is None
    assert check_rows(task([("by the sea", ("sea",))], output="generation", words={})).answer_in_input is None


# --- floors ---------------------------------------------------------------------------------------------------------------------------


def test_the_majority_answer_is_the_most_frequent_and_of_equals_the_first_seen():
    assert majority_answer(task([("a", "0"), ("b", "1"), ("c", "1")])) == "1"
    assert majority_answer(task([("a", "1"), ("b", "0"), ("c", "0"), ("d", "1")])) == "1"


def test_the_majority_answer_fits_every_output_kind():
    labels = {"output": "multi-label", "words": {"s": "sea", "a": "air"}, "none_word": "none"}
    assert majority_answer(task([("a", ("s",)), ("b", ()), ("c", ())], **labels)) == ()
    assert majority_answer(task([("a", ("x", "y")), ("b", ("y",)), ("c", ("x",))], output="generation", words={})) == ("x",)
    scale = NumberRange(low=0, high=10, step=1)
    assert majority_answer(task([("a", 1.0), ("b", 2.0), ("c", 9.0)], output="regression", words={}, number_range=scale)) == 2.0


def test_a_bag_of_words_solves_a_task_that_one_word_decides():
    train = [(f"the {'lovely' if i % 2 else 'dreadful'} room {i}", str(i % 2)) for i in range(60)]
    held_out = [(f"a {'lovely' if i % 2 else 'dreadful'} view {i}", str(i % 2)) for i in range(20)]
    data = task(train, held_out)
    assert bag_of_words_answers(data, data.validation) == [answer for _, answer in held_out]


def test_a_bag_of_words_reads_every_field_and_chinese_too():
    labels = {
        "output": "multi-class",
        "words": {"体": "体育", "财": "财经", "娱": "娱乐"},
        "fields": ("title", "body"),
        "input": "sentence-pair",
    }
    about = {"体": "球赛", "财": "股票", "娱": "电影"}
    rows = [((f"新闻{i}", f"今天的{about[label]}很多"), label) for i in range(12) for label in about]
    data = task(rows, [(("号外", f"明天的{word}"), label) for label, word in about.items()], **labels)
    assert bag_of_words_answers(data, data.validation) == list(about)


def test_the_bag_of_words_answers_the_same_twice():
    data = task([(f"row {i * 7919 % 101}", str(i % 2)) for i in range(40)], [(f"row {i}", "0") for i in range(30)])
    assert bag_of_words_answers(data, data.validation) == bag_of_words_answers(data, data.validation)


def test_there_is_no_bag_of_words_without_single_labels_or_enough_rows():
    rows = [(f"row {i}", str(i % 2)) for i in range(MIN_BAG_ROWS)]
    asked = task(rows).validation
    assert bag_of_words_answers(task(rows), asked) is not None
    assert bag_of_words_answers(task(rows[:-1]), asked) is None
    assert bag_of_words_answers(task([(text, "0") for text, _ in rows]), asked) is None
    assert bag_of_words_answers(task([(text, (label,)) for text, label in rows], output="generation", words={}), asked) is None
    assert bag_of_words_answers(task([(text, (label,)) for text, label in rows], output="multi-label", none_word="none"), asked) is None
    scale = NumberRange(low=0, high=1, step=1)
    numbers = task([(text, float(label)) for text, label in rows], output="regression", words={}, number_range=scale)
    assert bag_of_words_answers(numbers, asked) is None
