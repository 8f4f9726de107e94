"""A task without Python: a TOML file beside a table is a task like any other, and what is wrong in either is told with file and line."""

import csv
import gzip
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mtcore.bundle import read_bundle
from mtcore.cli.catalogue import tasks
from mtcore.config import RowLimits, RunConfig, RunFile, load_run
from mtcore.contracts import TaskAdapter
from mtcore.data.declared import read_task_file
from mtcore.data.rows import digest, read_task
from mtcore.errors import BadRows, ConfigError, DataError, MissingData, ResumeMismatch, UnknownName
from mtcore.evaluation.tables import markdown
from mtcore.fitting import Fitting
from mtcore.pipeline import train
from mtcore.planning import plan_run
from mtcore.plugins import load_plugins
from mtcore.preparation import Preparer
from mtcore.registry import Entry, Plugin, Registry
from mtcore.types import TaskSpec

PAGE = Path(__file__).parent.parent / "docs/declared-tasks.md"
SPEC = """
name = "refund"
output = "binary"
input = "single-sentence"
instruction = "Money back?"
template = "{text}\\nAnswer: "
words = { no = "no", yes = "yes" }
metric = "accuracy"
licence = "none"
source = "made up"
"""
SPLITS = '[rows]\ntrain = "train.csv"\nvalidation = "validation.csv"\n'
LENIENT = RowLimits(bad=0.9)
BOX = load_plugins(environment="")


def declare(folder, rows=SPLITS, spec=SPEC, name="refund.toml"):
    """A task file, and a validation file that most tests do not look at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "validation.csv").write_text("text,answer\nv,no\n", encoding="utf-8")
    (folder / name).write_text(spec + rows, encoding="utf-8")
    return folder / name


def read(path):
    return read_task("local/refund", read_task_file(path)(), LENIENT)


def split_of(path):
    data, _ = read(path)
    return {e.fields["text"]: split for split in ("train", "validation", "test") for e in getattr(data, split)}


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


# --- the page ------------------------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_is_a_run_that_can_be_planned(tmp_path):
    blocks = re.findall(r"^`([\w./-]+)`, .*:\n\n((?:    .*\n|\n)+)", PAGE.read_text(encoding="utf-8"), re.M)
    for name, block in blocks:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(re.sub(r"^    ", "", block, flags=re.M).strip() + "\n", encoding="utf-8")
    assert [name for name, _ in blocks] == ["tasks/refund.csv", "tasks/refund.toml", "run.toml"]
    with (tmp_path / "tasks/refund.csv").open("a", encoding="utf-8") as file:  # four rows are too few to be split
        file.writelines(f"{i},message {i},{'yes' if i % 2 else 'no'}\n" for i in range(100))
    (config,) = load_run(tmp_path / "run.toml").variants.values()
    (entry,) = BOX.tasks(config.tasks[1:])
    data, aside = read_task(entry.name, entry.cls(), RowLimits())
    assert entry.name in config.resource
    assert aside == []
    by_text = {e.fields["text"]: e.answer for e in (*data.train, *data.validation, *data.test)}
    assert len(by_text) == 104
    assert by_text["Please refund order 4711.\nIt never arrived."] == "yes"
    planned = plan_run(config.model_copy(update={"tasks": config.tasks[1:]}), BOX, Preparer(BOX, lambda event: None))
    assert [g.group.tasks for g in planned.groups] == [("local/refund",)]


def test_every_key_that_the_page_shows_is_one(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    split = re.search(r"^    \[rows\]\n    train(?:.*\n)+?\n", page, re.M).group(0)
    path = declare(tmp_path, re.sub(r"^    ", "", split, flags=re.M))
    assert read_task_file(path).files.files == ("refund-train.jsonl.gz", "refund-validation.jsonl", "refund-test.csv")


# --- the spec ------------------------------------------------------------------------------------------------------------------------


class Written(TaskAdapter):
    """The same task as a plugin would bring it."""

    spec = TaskSpec(
        name="refund",
        output="binary",
        input="single-sentence",
        fields=("text",),
        instruction="Money back?",
        template="{text}\nAnswer: ",
        words={"no": "no", "yes": "yes"},
        metric="accuracy",
        licence="none",
        source="made up",
    )

    def rows(self, split):
        return {"train": [{"text": "a", "answer": "no"}], "validation": [{"text": "v", "answer": "no"}]}.get(split, ())

    def fields(self, row):
        return {"text": row["text"]}

    def answer(self, row):
        return row["answer"]


def test_a_declared_task_and_the_same_task_in_python_share_their_references(tmp_path):
    path = declare(tmp_path)
    (tmp_path / "train.csv").write_text("answer,text\nno,a\n", encoding="utf-8")
    declared, _ = read(path)
    written, _ = read_task("other/refund", Written(), LENIENT)
    assert digest(declared) == digest(written)
    (tmp_path / "train.csv").write_text("answer,text\nyes,a\n", encoding="utf-8")
    assert digest(read(path)[0]) != digest(written)
    (tmp_path / "train.csv").write_text("answer,text\nno,a\n", encoding="utf-8")
    path.write_text(path.read_text().replace("Money back?", "Money?"))
    assert digest(read(path)[0]) != digest(written)


ONE_FILE = '[rows]\nfile = "rows.csv"\nvalidation = 0.2\n'
FAULTS = {
    "a key is misspelt": (SPEC.replace("instruction", "instrution"), SPLITS, "did you mean 'instruction'"),
    "a key of rows is misspelt": (SPEC, SPLITS.replace("train", "trian"), "unknown key 'rows.trian'; did you mean 'train'"),
    "a number stands for text": (SPEC.replace('"accuracy"', "1"), SPLITS, "metric: Input should be a valid string"),
    "there are no rows": (SPEC, "", "rows: Field required"),
    "a template has an open brace": (SPEC.replace("{text}", "{text"), SPLITS, "template:"),
    "fields are not the template's": (SPEC + 'fields = ["body"]\n', SPLITS, "fields are body"),
    "a label's word is missing": (SPEC.replace(', yes = "yes"', ""), SPLITS, "needs exactly 2 words, not 1"),
    "rows are one file and several": (SPEC, SPLITS + 'file = "rows.csv"\n', "name either one `file`"),
    "validation is neither share nor file": (SPEC, '[rows]\nfile = "rows.csv"\n', "rows.validation"),
    "a share stands beside files": (SPEC, SPLITS + "test = 0.1\n", "with `train`, validation and test are files"),
    "a file stands beside shares": (SPEC, ONE_FILE + 'test = "t.csv"\n', "with `file`, validation and test are shares"),
    "shares leave nothing to train on": (SPEC, ONE_FILE + "test = 0.8\n", "leave rows to train on"),
    "a share is none": (SPEC, ONE_FILE.replace("0.2", "0.0"), "shares between 0 and 1"),
    "rows are of an unknown kind": (SPEC, SPLITS.replace("train.csv", "train.xlsx"), "'train.xlsx' is of no kind that is read: .csv"),
    "a column is for no field": (SPEC, SPLITS + 'columns = { txt = "body" }\n', "'txt' is no field; did you mean 'text'"),
    "the answer is read as a field": (SPEC, SPLITS + 'answer = "text"\n', "the model would read its answer"),
    "one answer is to be separated": (SPEC, SPLITS + 'answer_separator = "|"\n', "a binary task has one answer a row"),
    "several answers are not separated": (
        SPEC.replace("binary", "multi-label") + 'none_word = "none"\n',
        SPLITS,
        "say what stands between the labels",
    ),
    "it is no TOML": (SPEC, "[rows", "is not TOML"),
}


@pytest.mark.parametrize(("spec", "rows", "told"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_file_is_told_by_its_name_and_the_fault(tmp_path, spec, rows, told):
    path = declare(tmp_path, rows, spec)
    with pytest.raises(ConfigError, match=re.escape(told)) as error:
        BOX.tasks([str(path)])
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 600


# --- rows ----------------------------------------------------------------------------------------------------------------------------


def test_cells_are_quoted_as_in_csv_and_come_as_they_are(tmp_path):
    path = declare(tmp_path)
    cells = ['a "quoted", cell', "two\r\nlines", " spaces ", "中文，逗号", "0012", "#no comment"]
    with (tmp_path / "train.csv").open("w", encoding="utf-8-sig", newline="") as file:  # with the mark that spreadsheets write
        csv.writer(file).writerows([["n", "text", "answer"], *[[i, cell, "yes"] for i, cell in enumerate(cells)]])
    data, aside = read(path)
    assert [e.fields["text"] for e in data.train] == cells
    assert aside == []


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl", "train.csv.gz", "train.tsv.gz", "train.jsonl.gz"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = declare(tmp_path, SPLITS.replace("train.csv", name))
    table = [{"text": "a,b\tc", "answer": "yes"}, {"text": "二", "answer": "no"}]
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt", encoding="utf-8", newline="") as file:
        if "jsonl" in name:
            file.writelines(json.dumps(row) + "\n" for row in table)
        else:
            writer = csv.DictWriter(file, ["answer", "text"], delimiter="\t" if "tsv" in name else ",")
            writer.writeheader()
            writer.writerows(table)
    data, aside = read(path)
    assert [(e.fields["text"], e.answer) for e in data.train] == [("a,b\tc", "yes"), ("二", "no")]
    assert aside == []


def test_a_bad_record_is_set_aside_with_its_line_and_the_rest_goes_on(tmp_path):
    path = declare(tmp_path)
    (tmp_path / "train.csv").write_bytes(
        b"text,answer\r\n"
        b'"first\r\nrecord",yes\r\n'  # lines 2 and 3
        b"short\r\n"
        b"too,many,cells\r\n"
        b'a"b,yes\r\n'  # a quote inside a cell that is not quoted is a quote
        b'"a"b,yes\r\n'
        b"\xb9\xfe,no\r\n"  # GBK
        b"\r\n"
        b",yes\r\n"
        b"what,maybe\r\n"
        b"last,no\r\n"
        b'"open,yes\r\n'
    )
    data, aside = read(path)
    assert [e.fields["text"] for e in data.train] == ["first\r\nrecord", 'a"b', "last"]
    assert [(bad.line, bad.reason.split(":")[0].split(";")[0]) for bad in aside] == [
        (4, "cells do not fit the columns"),
        (5, "cells do not fit the columns"),
        (7, "not a record"),
        (8, "not UTF-8"),
        (10, "field 'text' is empty"),
        (11, "the label 'maybe' is not among the task's 2 labels"),
        (13, "not a record"),
    ]
    assert {bad.file for bad in aside} == {str(tmp_path / "train.csv")}
    assert aside[3].snippet == "\\xb9\\xfe,no"


def test_every_line_that_an_open_quote_takes_with_it_is_set_aside(tmp_path):
    path = declare(tmp_path)
    rows = [f"text {n},yes\n" for n in range(1000)]
    (tmp_path / "train.csv").write_text("text,answer\n" + "".join([*rows[:500], '"open,yes\n', *rows[501:]]), encoding="utf-8")
    with pytest.raises(BadRows, match=r"500 of 1,?000 train rows are malformed.*line 502"):
        read_task("local/refund", read_task_file(path)(), RowLimits())


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip), max_size=8))
@settings(max_examples=60)
def test_any_text_that_csv_can_hold_is_read_back(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    path = declare(folder)
    write_csv(folder / "train.csv", [["text", "answer"], ["first", "no"], *[[text, "yes"] for text in texts]])
    data, aside = read(path)
    assert [e.fields["text"] for e in data.train] == ["first", *texts]
    assert aside == []


def test_a_file_that_breaks_off_stops_the_reading(tmp_path):
    path = declare(tmp_path, SPLITS.replace("train.csv", "train.csv.gz"))
    whole = gzip.compress(b"text,answer\n" + b"".join(b"row %d,no\n" % i for i in range(20000)))
    (tmp_path / "train.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train\.csv\.gz breaks off after \d{4,} lines .* fetch it again"):
        read(path)


HEADERS = {
    "a column is missing": (b"body,answer\na,no\n", "there is no column 'text'. Its first line names 'body', 'answer'"),
    "a needed column stands there twice": (b"text,answer,text\na,no,b\n", "names 'text' more than once"),
    "the file is empty": (b"", "is empty"),
    "it is in another encoding": ("文本,text,answer\n".encode("gbk"), "not UTF-8"),
    "it is UTF-16": ("text,answer\na,no\n".encode("utf-16"), "not UTF-8"),
    "it cannot be read": (b'"text"x,answer\n', "its first line"),
}


@pytest.mark.parametrize(("content", "told"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be_used_stops_the_task(tmp_path, content, told):
    path = declare(tmp_path)
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(told)) as error:
        read(path)
    assert str(tmp_path / "train.csv") in str(error.value)


def test_a_file_that_is_not_there_is_told_with_what_lies_beside_it(tmp_path):
    path = declare(tmp_path, SPLITS.replace("train.csv", "trian.csv"))
    with pytest.raises(MissingData, match=r"no train rows: .*trian\.csv is not there\. Beside it: validation\.csv"):
        read(path)


def test_too_many_bad_rows_stop_the_task_with_the_first(tmp_path):
    path = declare(tmp_path)
    write_csv(tmp_path / "train.csv", [["text", "answer"], ["a", "no"], ["b", "1"]])
    with pytest.raises(BadRows, match=r"the label '1' is not among.*train\.csv, line 3"):
        read_task("local/refund", read_task_file(path)(), RowLimits())


def test_a_column_may_be_called_otherwise(tmp_path):
    path = declare(tmp_path, SPLITS + 'answer = "refund?"\ncolumns = { text = "the message" }\n')
    for split in ("train", "validation"):
        write_csv(tmp_path / f"{split}.csv", [["refund?", "text", "the message"], ["yes", "not this", split]])
    data, _ = read(path)
    assert [(e.fields["text"], e.answer) for e in data.train] == [("train", "yes")]


# --- answers -------------------------------------------------------------------------------------------------------------------------


def answers(folder, spec, rows, cells, name="train.csv"):
    """The answers of a task whose train rows hold these cells (or JSON values), and the reasons of what was set aside."""
    path = declare(folder, SPLITS.replace("train.csv", name) + rows, spec)
    table = [{"text": "first", "answer": cells[0]}, *[{"text": f"row {i}", "answer": cell} for i, cell in enumerate(cells[1:])]]
    if name.endswith(".jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    else:
        write_csv(folder / name, [["text", "answer"], *[row.values() for row in table]])
    write_csv(folder / "validation.csv", [["text", "answer"], ["v", cells[0] if isinstance(cells[0], str) else "3"]])
    data, aside = read(path)
    return [e.answer for e in data.train], [bad.reason for bad in aside]


TOPICS = SPEC.replace("binary", "multi-label").replace("{ no", '{ food = "food", no') + 'none_word = "none"\n'
NUMBERS = SPEC.replace("binary", "regression").replace(
    'words = { no = "no", yes = "yes" }', "number_range = { low = 1, high = 5, step = 1 }"
)
FREE = SPEC.replace("binary", "generation").replace('words = { no = "no", yes = "yes" }', "")


def test_several_labels_stand_in_one_cell_and_come_in_canonical_order(tmp_path):
    right, wrong = answers(tmp_path, TOPICS, 'answer_separator = "|"\n', ["yes|food", "", "no", "yes | no"])
    assert right == [("food", "yes"), (), ("no",)]
    assert wrong == ["the label 'yes ' is not among the task's 3 labels"]


def test_several_labels_are_a_list_in_json(tmp_path):
    path = declare(tmp_path, '[rows]\ntrain = "train.jsonl"\nvalidation = "train.jsonl"\n', TOPICS)
    rows = [{"text": "a", "answer": ["yes", "food"]}, {"text": "b", "answer": []}, {"text": "c", "answer": "yes"}, {"text": "d"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data, aside = read(path)
    assert [e.answer for e in data.train] == [("food", "yes"), ()]
    assert [bad.reason for bad in aside[:2]] == [
        "TypeError: the answer 'yes' is no list of labels",
        "LookupError: column 'answer' is missing",
    ]


def test_a_number_is_read_from_a_cell_and_what_is_none_is_set_aside(tmp_path):
    right, wrong = answers(tmp_path, NUMBERS, "", ["3", "2.5", "1e0", "3,5", "nan", "1_0", "３", " 3", "7", ""])
    assert right == [3.0, 2.5, 1.0]
    assert len(wrong) == 7
    assert wrong[0] == "the answer '3,5' is no number"
    assert "outside 1 to 5" in wrong[5]


def test_a_number_in_json_is_a_number_and_text_is_none(tmp_path):
    right, wrong = answers(tmp_path, NUMBERS, "", [3, 2.5, "3", True], name="train.jsonl")
    assert right == [3.0, 2.5]
    assert wrong == ["the answer '3' is no number", "the answer True is no number"]


def test_free_text_may_have_several_acceptable_answers(tmp_path):
    right, wrong = answers(tmp_path, FREE, 'answer_separator = " / "\n', ["Paris / the capital", "one", ""])
    assert right == [("Paris", "the capital"), ("one",)]
    assert len(wrong) == 1
    assert answers(tmp_path, FREE, "", ["Paris / the capital"])[0] == [("Paris / the capital",)]
    assert answers(tmp_path, FREE, "", ["3", ["a", "b"], "c", 4], name="train.jsonl") == (
        [("3",), ("a", "b"), ("c",)],
        ["TypeError: the answer 4 is no list of texts"],
    )


def test_a_label_that_is_a_number_in_json_is_told_how_to_be_written(tmp_path):
    right, wrong = answers(tmp_path, SPEC, "", ["no", 1, None], name="train.jsonl")
    assert right == ["no"]
    assert wrong[0] == "TypeError: the label 1 is a int, and labels are text: write it in quotes"


# --- shares --------------------------------------------------------------------------------------------------------------------------


def test_rows_are_held_out_by_their_fields_alone(tmp_path):
    rows = [[f"message {i}", "yes" if i % 2 else "no"] for i in range(2000)]
    path = declare(tmp_path, '[rows]\nfile = "rows.csv"\nvalidation = 0.2\ntest = 0.1\n')
    write_csv(tmp_path / "rows.csv", [["text", "answer"], *rows])
    before = split_of(path)
    sizes = {split: list(before.values()).count(split) for split in ("train", "validation", "test")}
    assert sum(sizes.values()) == 2000
    assert 350 < sizes["validation"] < 450
    assert 150 < sizes["test"] < 250
    other = [[f"other {i}", "no"] for i in range(500)]
    write_csv(tmp_path / "rows.csv", [["text", "answer"], *other, *reversed(rows)])
    after = split_of(path)
    assert {text: after[text] for text in before} == before


def test_equal_texts_stay_together_whatever_their_answers(tmp_path):
    path = declare(tmp_path, ONE_FILE)
    write_csv(tmp_path / "rows.csv", [["text", "answer"], *[[f"m {i % 50}", answer] for i in range(100) for answer in ("yes", "no")]])
    data, _ = read(path)
    train, held_out = ({e.fields["text"] for e in rows} for rows in (data.train, data.validation))
    assert len(data.train) + len(data.validation) == 200
    assert held_out
    assert not train & held_out


def test_a_text_is_in_the_same_split_of_every_task(tmp_path):
    first = declare(tmp_path, ONE_FILE)
    second = declare(
        tmp_path, ONE_FILE + 'columns = { body = "text" }\n', SPEC.replace("refund", "other").replace("{text}", "{body}"), "b.toml"
    )
    write_csv(tmp_path / "rows.csv", [["text", "answer"], *[[f"m {i}", "yes"] for i in range(200)]])
    data, _ = read_task("local/other", read_task_file(second)(), LENIENT)
    assert {e.fields["body"] for e in data.validation} == {text for text, split in split_of(first).items() if split == "validation"}


def test_another_share_for_test_moves_no_row_of_validation(tmp_path):
    path = declare(tmp_path, ONE_FILE)
    write_csv(tmp_path / "rows.csv", [["text", "answer"], *[[f"m {i}", "yes"] for i in range(300)]])
    before = split_of(path)
    after = split_of(declare(tmp_path, ONE_FILE + "test = 0.3\n"))
    assert {t for t, s in before.items() if s == "validation"} == {t for t, s in after.items() if s == "validation"}
    assert "test" in after.values()


def test_an_unreadable_row_of_a_shared_file_is_told_once(tmp_path):
    path = declare(tmp_path, ONE_FILE)
    write_csv(tmp_path / "rows.csv", [["text", "answer"], *[[f"m {i}", "yes"] for i in range(50)], ["short"]])
    assert [(bad.split, bad.line) for bad in read(path)[1]] == [("train", 52)]


# --- in a run ------------------------------------------------------------------------------------------------------------------------


def test_a_task_file_is_relative_to_the_run_file_and_a_setting_to_the_working_directory(tmp_path):
    folder = tmp_path / "a [1]"  # signs that mean something in a pattern
    declare(folder / "tasks")
    run = folder / "run.toml"
    run.write_text('tasks = ["tasks/*.toml"]\n[variants.one]\ntasks = ["tasks/refund.toml"]\n[variants.other]\n')
    file = load_run(run)
    assert [[e.name for e in BOX.tasks(c.tasks)] for c in (file.variants["one"], file.variants["other"])] == [["local/refund"]] * 2
    assert file.variants["one"].tasks == (str(folder / "tasks/refund.toml"),)
    assert load_run(run, settings=['tasks=["x.toml"]']).variants["one"].tasks == ("x.toml",)


def test_a_pattern_and_a_name_may_mean_the_same_file(tmp_path):
    path = declare(tmp_path)
    (tmp_path / "x").mkdir()
    (entry,) = BOX.tasks([str(path), str(tmp_path / "*.toml"), str(tmp_path / "x/../refund.toml")])
    assert (entry.name, entry.plugin.name, entry.plugin.distribution) == ("local/refund", "local", str(path))
    assert re.fullmatch("sha256:[0-9a-f]{16}", entry.plugin.version)


def test_what_answers_to_nothing_is_an_error(tmp_path):
    declare(tmp_path)
    for name in ("refnd.toml", "*x.toml", "nowhere/*.toml"):
        with pytest.raises(ConfigError, match=re.escape(f"no file answers to '{tmp_path / name}'")):
            BOX.tasks([str(tmp_path / name)])
    with pytest.raises(UnknownName, match=r"named by the file: 'FOLDER/NAME\.toml'"):
        BOX.tasks(["local/refund"])


def test_two_files_may_not_declare_one_name(tmp_path):
    one, other = declare(tmp_path / "a"), declare(tmp_path / "b")
    with pytest.raises(ConfigError, match="both declare local/refund") as error:
        BOX.tasks([str(one), str(other)])
    assert str(one) in str(error.value)
    assert str(other) in str(error.value)


def test_two_variants_may_not_mean_different_tasks_by_one_name(tmp_path):
    preparer = Preparer(BOX, lambda event: None)
    for folder in ("a", "b"):
        path = declare(tmp_path / folder)
        write_csv(path.parent / "train.csv", [["text", "answer"], ["t", "no"]])
    preparer.resolve("a", RunConfig(tasks=(str(tmp_path / "a/refund.toml"),)))
    with pytest.raises(ConfigError, match="variants take local/refund from"):
        preparer.resolve("b", RunConfig(tasks=(str(tmp_path / "b/refund.toml"),)))


def test_a_plugin_called_local_and_a_file_cannot_be_named_in_one_run(tmp_path):
    plugin = Plugin("local", "their-local", "1.0", "loaded")
    theirs = type("Theirs", (Written,), {"spec": Written.spec.model_copy(update={"name": "theirs"})})
    registry = Registry([plugin], [Entry("task", "local/refund", Written, plugin), Entry("task", "local/theirs", theirs, plugin)])
    path = str(declare(tmp_path))
    assert [e.name for e in registry.tasks([path])] == ["local/refund"]
    assert len(registry.tasks(["local/*"])) == 2
    for named in (["local/theirs", path], ["local/refund", path], [path, "local/*"]):
        with pytest.raises(ConfigError, match="their-local"):
            registry.tasks(named)


def run_file(folder, base_folder, **changes):
    table = {
        "model": str(base_folder),
        "out": str(folder / "runs"),
        "tasks": [str(folder / "tasks/*.toml")],
        "method": {"use": "text2text", "max_length": 64, "batch_tokens": 256},
        "scheduler": {"use": "mixture", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 1},
        "reference": {"use": "single-task", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 1},
        **changes,
    }
    return RunFile("declared", {"": RunConfig.model_validate_json(json.dumps(table))})


def test_the_tasks_of_a_run_are_listed_and_counted(tmp_path):
    declare(tmp_path / "tasks")
    write_csv(tmp_path / "tasks/train.csv", [["text", "answer"], ["a", "no"], ["b", "yes"], ["c"]])
    (tmp_path / "run.toml").write_text('tasks = ["tasks/refund.toml"]\nrows = { bad = 0.5 }\n')
    done = CliRunner().invoke(tasks, ["--run", str(tmp_path / "run.toml"), "--count", "--json"])
    (row,) = json.loads(done.stdout)
    assert (row["name"], row["plugin"], row["train_rows"], row["validation_rows"]) == ("local/refund", "local", 2, 1)
    assert row["status"] == "read, 1 rows set aside"


def test_a_declared_task_is_trained_judged_and_served_without_its_file(base_folder, tmp_path):
    path = declare(tmp_path / "tasks", ONE_FILE + "test = 0.2\n")
    write_csv(path.parent / "rows.csv", [["text", "answer"], *[[f"{'AB'[i % 2]} message {i}", ("no", "yes")[i % 2]] for i in range(60)]])
    folder = tmp_path / "runs/declared"
    (outcome,) = train(run_file(tmp_path, base_folder), BOX, Fitting(lambda event: None), folder)
    (entry,) = BOX.tasks([str(path)])
    known = f"{path} {entry.plugin.version}"
    assert json.loads((folder / "resolved.json").read_text())["tasks"]["local/refund"]["plugin"] == known
    assert outcome.as_json()["versions"][str(path)] == entry.plugin.version
    assert "local/refund" in markdown(outcome)
    # the same run goes on where its task file has moved, and answers without it
    (tmp_path / "tasks").rename(tmp_path / "moved")
    (again,) = train(run_file(tmp_path, base_folder, tasks=[str(tmp_path / "moved/*.toml")]), BOX, Fitting(lambda event: None), folder)
    assert again.reference_reused == 1
    bundle = folder / "seed-1/classification/bundle"
    assert read_bundle(bundle).tasks["local/refund"].spec == entry.cls.spec
    with pytest.raises(ResumeMismatch, match="tasks: was"):
        train(run_file(tmp_path, base_folder, tasks=[str(tmp_path / "moved/refund.toml")]), BOX, Fitting(lambda event: None), folder)
