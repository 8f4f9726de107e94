"""Malformed rows are set aside with file, line, reason and snippet; too many stop the task; what is kept is chosen by the task's name alone."""

import gzip
import json
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtcore.config import RowLimits
from mtcore.contracts import TaskAdapter
from mtcore.data.rows import MAX_FIELD, MAX_REASON, digest, read_task, text_problem
from mtcore.data.sources import MAX_SNIPPET, RawRow, task_rows
from mtcore.errors import BadRows, MissingData
from mtcore.types import Example, NumberRange, TaskSpec

LABELS = {"0": "bad", "1": "good"}
LENIENT = RowLimits(bad=0.9)


def make_spec(output="binary", **changes):
    table = {
        "name": "toy",
        "output": output,
        "input": "single-sentence",
        "fields": ("text",),
        "instruction": "How is it?",
        "template": "{text}\n",
        "words": LABELS if output == "binary" else {},
        "metric": "accuracy",
        "licence": "none",
        "source": "made up",
    }
    return TaskSpec(**{**table, **changes})


class Files(TaskAdapter):
    """A plugin's task as plainly as one can write it."""

    spec = make_spec()

    def rows(self, split):
        return task_rows(self.data, "toy", split)

    def fields(self, row):
        return {name: row[name] for name in self.spec.fields}

    def answer(self, row):
        return row["label"]


class Memory(Files):
    """The same with rows that know no file."""

    def __init__(self, train, validation=({"text": "v", "label": "0"},), spec=None):
        super().__init__()
        self.spec = spec or Files.spec
        self.splits = {"train": train, "validation": validation, "test": ()}

    def rows(self, split):
        return self.splits[split]


def good(count):
    return [{"text": f"row {i}", "label": str(i % 2)} for i in range(count)]


def put(folder, split, lines):
    """Rows on disk: objects are written as JSON, text as it is."""
    path = folder / "toy" / f"{split}.jsonl.gz"
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    return path


BAD = {
    "a missing field": ({"label": "0"}, "KeyError: 'text'"),
    "a missing label": ({"text": "a"}, "KeyError: 'label'"),
    "a number for text": ({"text": 3, "label": "0"}, "field 'text' is a int, not text"),
    "a list for text": ({"text": ["a"], "label": "0"}, "field 'text' is a list, not text"),
    "null for text": ({"text": None, "label": "0"}, "field 'text' is a NoneType, not text"),
    "true for text": ({"text": True, "label": "0"}, "field 'text' is a bool, not text"),
    "empty text": ({"text": "", "label": "0"}, "field 'text' is empty"),
    "white text": ({"text": " \n\t　", "label": "0"}, "field 'text' is empty"),
    "NUL": ({"text": "a\0b", "label": "0"}, "field 'text' holds a NUL character"),
    "a lone surrogate": (r'{"text": "a \ud800 b", "label": "0"}', "field 'text' holds a lone surrogate"),
    "a very long field": ({"text": "x" * (MAX_FIELD + 1), "label": "0"}, f"field 'text' is longer than {MAX_FIELD} characters"),
    "a label outside the set": ({"text": "a", "label": "2"}, "the label '2' is not among the task's 2 labels"),
    "a number for a label": ({"text": "a", "label": 1}, "the label 1 is not among the task's 2 labels"),
    "a list for a label": ({"text": "a", "label": ["1"]}, "the label ['1'] is not among"),
    "null for a label": ({"text": "a", "label": None}, "the label None is not among"),
    "a lone surrogate for a label": (r'{"text": "a", "label": "\udfff"}', r"the label '\udfff' is not among"),
    "a NaN label": ('{"text": "a", "label": NaN}', "not a JSON row: NaN is not JSON"),
    "a label too great for a float": ('{"text": "a", "label": 1e400}', "the label inf is not among"),
    "a key twice": ('{"text": "a", "label": "0", "label": "1"}', "not a JSON row: key 'label' stands there twice"),
    "100,000 brackets": ("[" * 100_000, "not a JSON row: maximum recursion depth"),
    "a line that is no object": ('"text"', "a JSON str, not an object"),
}


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_a_malformed_row_is_set_aside_with_file_line_reason_and_snippet_and_the_rest_goes_on(tmp_path, line, reason):
    path = put(tmp_path, "train", [*good(3), line, *good(2)])
    put(tmp_path, "validation", good(1))
    data, (row,) = read_task("toy", Files(tmp_path), LENIENT)
    assert [example.fields["text"] for example in data.train] == ["row 0", "row 1", "row 2", "row 0", "row 1"]
    assert (row.task, row.split, row.file, row.line) == ("toy", "train", str(path), 4)
    assert row.reason.startswith(reason)
    assert row.snippet == (line if isinstance(line, str) else json.dumps(line))[:MAX_SNIPPET]


def test_bad_rows_of_every_split_are_set_aside(tmp_path):
    for split in ("train", "validation", "test"):
        put(tmp_path, split, [*good(2), "[]"])
    data, aside = read_task("toy", Files(tmp_path), LENIENT)
    assert [row.split for row in aside] == ["train", "validation", "test"]
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 2, 2)


def test_a_field_that_the_adapter_leaves_out_is_a_missing_field():
    class Forgetful(Memory):
        def fields(self, row):
            return {}

    with pytest.raises(BadRows, match="2 × field 'text' is missing"):
        read_task("toy", Forgetful(good(2)), LENIENT)


@pytest.mark.parametrize("row", [{"text": "", "label": "0"}, {"text": "x" * 10_000}, None, 7, "text"])
def test_a_row_that_knows_no_file_is_named_by_its_number_and_shown(row):
    _, (aside,) = read_task("toy", Memory([*good(2), row]), LENIENT)
    assert (aside.file, aside.line) == ("toy train", 3)
    assert aside.snippet == ("" if row is None else str(row)[:MAX_SNIPPET])


def test_a_row_of_the_hub_is_shown_though_it_was_never_a_line():
    _, (aside,) = read_task("toy", Memory([*good(2), RawRow({"text": "", "label": "0"}, "owner/set", 7)]), LENIENT)
    assert (aside.file, aside.line, aside.snippet) == ("owner/set", 7, "{'text': '', 'label': '0'}")


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from(" \n　\0\ud800\udfffa") | st.characters(), max_size=4))
def test_text_is_usable_exactly_if_it_can_be_written_and_read(text):
    try:
        writable = text.encode("utf-8").decode("utf-8") == text
    except UnicodeEncodeError:
        writable = False
    assert (text_problem(text) == "") == (writable and bool(text.strip()) and "\0" not in text)


# --- too many, too few ----------------------------------------------------------------------------------------------------------------


def test_one_bad_row_in_a_hundred_is_tolerated_and_two_are_not(tmp_path):
    put(tmp_path, "validation", good(1))
    put(tmp_path, "train", [*good(99), "[]"])
    data, aside = read_task("toy", Files(tmp_path), RowLimits())
    assert (len(data.train), len(aside)) == (99, 1)
    put(tmp_path, "train", [*good(98), "[]", "[]"])
    with pytest.raises(BadRows, match=r"2 of 100 train rows are malformed, more than the 1\.0% that rows\.bad allows"):
        read_task("toy", Files(tmp_path), RowLimits())


def test_too_many_bad_rows_are_told_by_their_top_reasons_and_the_first_place(tmp_path):
    lines = ["[]"] * 4 + [{"text": "", "label": "0"}] * 6 + [{"text": "a", "label": "9"}] * 5 + [{"label": "0"}]
    path = put(tmp_path, "train", [*good(7), *lines])
    put(tmp_path, "validation", good(1))
    with pytest.raises(BadRows) as error:
        read_task("toy", Files(tmp_path), RowLimits())
    told = str(error.value)
    assert "16 of 23" in told
    tops = [told.index(top) for top in ("6 × field 'text' is empty", "5 × the label '9'", "4 × a JSON list, not an object")]
    assert tops == sorted(tops)
    assert "KeyError" not in told
    assert f"The first is {path}, line 8: '[]'" in told


def test_bad_validation_rows_stop_the_task_too(tmp_path):
    put(tmp_path, "train", good(200))
    put(tmp_path, "validation", [*good(5), "[]"])
    with pytest.raises(BadRows, match="1 of 6 validation rows"):
        read_task("toy", Files(tmp_path), RowLimits())


def test_a_task_without_validation_rows_says_where_they_should_be(tmp_path):
    put(tmp_path, "train", good(5))
    with pytest.raises(MissingData, match=r"toy: no validation rows.*toy/validation\.jsonl\.gz"):
        read_task("toy", Files(tmp_path), RowLimits())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_an_error_that_says_what_a_task_needs(tmp_path, split):
    put(tmp_path, "train", good(5))
    put(tmp_path, "validation", good(5))
    put(tmp_path, split, [])
    with pytest.raises(MissingData, match=f"no {split} rows at all; a task needs rows to train on and rows to be judged on"):
        read_task("toy", Files(tmp_path), RowLimits())


def test_an_empty_test_split_is_none(tmp_path):
    for split, count in (("train", 5), ("validation", 5), ("test", 0)):
        put(tmp_path, split, good(count))
    assert read_task("toy", Files(tmp_path), RowLimits())[0].test == ()


def test_what_an_adapter_says_of_a_row_can_always_be_written_and_stays_short():
    class Quoting(Memory):
        def answer(self, row):
            if row["label"] == "?":
                raise ValueError(f"cannot read {row['note']}")
            return row["label"]

    notes = ["x" * 10_000, "a \ud800"]
    _, aside = read_task("toy", Quoting([*good(4), *({"text": "a", "label": "?", "note": note} for note in notes)]), LENIENT)
    assert aside[0].reason == ("ValueError: cannot read " + notes[0])[:MAX_REASON]
    assert aside[1].reason == r"ValueError: cannot read a \ud800"
    for row in aside:
        (row.reason + row.snippet).encode("utf-8")


# --- answers --------------------------------------------------------------------------------------------------------------------------

WORDS = {"c": "sea", "a": "air", "b": "land"}
KINDS = {
    "binary": make_spec(),
    "ordinal": make_spec("ordinal", words=WORDS),
    "multi-class": make_spec("multi-class", words=WORDS),
    "multi-label": make_spec("multi-label", words=WORDS, none_word="none"),
    "regression": make_spec("regression", number_range=NumberRange(low=0, high=5, step=0.5)),
    "generation": make_spec("generation"),
}
RIGHT = [
    ("binary", "1", "1"),
    ("ordinal", "b", "b"),
    ("multi-class", "c", "c"),
    ("multi-label", (), ()),
    ("multi-label", ("a",), ("a",)),
    ("multi-label", ("b", "c"), ("c", "b")),
    ("multi-label", ("b", "a", "b"), ("a", "b")),
    ("regression", 3, 3.0),
    ("regression", 0.0, 0.0),
    ("regression", 5, 5.0),
    ("generation", ("sea",), ("sea",)),
    ("generation", ("sea", "the sea"), ("sea", "the sea")),
]
WRONG = [
    ("binary", "good", "the label 'good' is not among the task's 2 labels"),
    ("binary", True, "the label True is not among"),
    ("ordinal", 1, "the label 1 is not among the task's 3 labels"),
    ("multi-class", ("a",), "the label ('a',) is not among"),
    ("multi-label", "a", "the answer of a multi-label task is a tuple of labels, not 'a'"),
    ("multi-label", ["a"], "the answer of a multi-label task is a tuple of labels, not ['a']"),
    ("multi-label", ("a", "z"), "the label 'z' is not among"),
    ("multi-label", (["a"],), "the label ['a'] is not among"),
    ("regression", "3", "the answer '3' is no number"),
    ("regression", True, "the answer True is no number"),
    ("regression", float("nan"), "the answer nan is no number"),
    ("regression", float("inf"), "the answer inf is no number"),
    ("regression", None, "the answer None is no number"),
    pytest.param("regression", 10**400, "OverflowError", id="regression-a number too great"),
    ("regression", 5.5, "the answer 5.5 lies outside 0 to 5"),
    ("regression", -0.1, "the answer -0.1 lies outside 0 to 5"),
    ("generation", "sea", "the answer of a generation task is a tuple of acceptable texts, not 'sea'"),
    ("generation", (), "the answer of a generation task is a tuple of acceptable texts, not ()"),
    ("generation", ("sea", ""), "an acceptable answer is empty"),
    ("generation", ("sea", 3), "an acceptable answer is a int, not text"),
    ("generation", ("\udc00",), "an acceptable answer holds a lone surrogate"),
    ("generation", ("a\0",), "an acceptable answer holds a NUL character"),
]
FIRST = {"binary": "0", "ordinal": "a", "multi-class": "a", "multi-label": ("a",), "regression": 1.0, "generation": ("air",)}


def read_answer(kind, answer):
    rows = [{"text": "a", "label": FIRST[kind]}]
    return read_task("toy", Memory([*rows, {"text": "b", "label": answer}], rows, KINDS[kind]), LENIENT)


@pytest.mark.parametrize(("kind", "given", "kept"), RIGHT)
def test_a_right_answer_is_kept_several_labels_in_canonical_order(kind, given, kept):
    data, aside = read_answer(kind, given)
    assert not aside
    assert data.train[1] == Example({"text": "b"}, kept)
    assert type(data.train[1].answer) is type(kept)


@pytest.mark.parametrize(("kind", "given", "reason"), WRONG)
def test_a_wrong_answer_is_never_retyped_but_set_aside(kind, given, reason):
    data, (aside,) = read_answer(kind, given)
    assert len(data.train) == 1
    assert aside.reason.startswith(reason)


@given(st.lists(st.sampled_from(sorted(WORDS)), unique=True), st.randoms())
def test_the_order_of_labels_in_a_row_does_not_matter(labels, random):
    shuffled = random.sample(labels, len(labels))
    answers = [read_answer("multi-label", tuple(order))[0].train[1].answer for order in (labels, shuffled)]
    assert answers[0] == answers[1] == tuple(label for label in WORDS if label in labels)


# --- which rows -----------------------------------------------------------------------------------------------------------------------


def read(count, limits, name="toy"):
    return read_task(name, Memory(good(count), good(count)), limits)[0]


def numbers(examples):
    return [int(example.fields["text"].split()[1]) for example in examples]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_smaller_fraction_keeps_rows_of_the_larger_one_in_their_order(count, one, other):
    small, large = (numbers(read(count, RowLimits(fraction=fraction)).train) for fraction in sorted((one, other)))
    assert 1 <= len(small) <= len(large) <= count
    assert set(small) <= set(large)
    assert small == sorted(small)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 250), st.integers(1, 250))
def test_a_smaller_number_of_validation_rows_are_among_the_larger(count, one, other):
    small, large = (numbers(read(count, RowLimits(validation=limit)).validation) for limit in sorted((one, other)))
    assert len(small) == min(count, one, other)
    assert set(small) <= set(large)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.lists(st.tuples(st.sampled_from(["a", "b", "zh/c"]), st.integers(1, 50)), max_size=3))
def test_the_rows_of_a_task_do_not_depend_on_other_tasks(count, others):
    limits = RowLimits(fraction=0.3)
    alone = read(count, limits)
    for name, rows in others:
        read(rows, limits, name)
    assert read(count, limits) == alone


def test_tasks_of_different_names_and_splits_of_one_task_choose_different_rows():
    chosen = [numbers(read(1000, RowLimits(fraction=0.1), name).train) for name in ("one", "two")]
    chosen.append(numbers(read(1000, RowLimits(validation=100), "one").validation))
    assert [len(rows) for rows in chosen] == [100] * 3
    assert all(len(set(a) & set(b)) < 50 for a, b in combinations(chosen, 2))


def test_the_chosen_rows_stay_the_same_from_version_to_version():
    assert numbers(read(40, RowLimits(fraction=0.2)).train) == [9, 10, 11, 14, 19, 25, 31, 38]


# --- digest ---------------------------------------------------------------------------------------------------------------------------


def test_the_digest_changes_with_whatever_a_model_sees():
    base = Memory(good(4))
    changed = [
        Memory(good(5)),
        Memory(good(4)[::-1]),
        Memory([*good(3), {"text": "row 3", "label": "0"}]),
        Memory([*good(3), {"text": "row 3 ", "label": "1"}]),
        Memory(good(4), good(2)),
        Memory(good(4), spec=make_spec(instruction="How was it?")),
        Memory(good(4), spec=make_spec(words={"0": "bad", "1": "great"})),
    ]
    digests = [digest(read_task("toy", adapter, RowLimits())[0]) for adapter in (base, *changed)]
    assert len(set(digests)) == len(digests)
    assert digest(read_task("toy", Memory(good(4)), RowLimits())[0]) == digests[0]


def test_rows_set_aside_and_keys_that_no_field_reads_leave_the_digest_alone():
    plain = digest(read_task("toy", Memory(good(4)), LENIENT)[0])
    more = [{**row, "id": number} for number, row in enumerate(good(4))]
    assert digest(read_task("toy", Memory([*more, {"text": ""}]), LENIENT)[0]) == plain
