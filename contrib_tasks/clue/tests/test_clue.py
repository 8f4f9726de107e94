"""The CLUE tasks read rows as CLUE publishes them, and set nothing right in silence."""

import gzip
import json
import os
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mtcore_clue
import pluggy
import pytest
from mtcore_clue import Afqmc, Csl, Cwsc, Iflytek, Ocnli, Tnews

from mtcore import hookspecs
from mtcore.contracts import TaskAdapter
from mtcore.errors import MissingData
from mtcore.testing import Check, task_checks

TASKS = mtcore_clue.register_tasks()
REAL_DATA = os.environ.get("MTCORE_DATA", "")
KNOWN = {"tnews": {"splits-disjoint": "the official split repeats train sentences in validation"}}
CHECKS = [
    check
    for cls in TASKS
    # without a data folder rows are not looked for on the Hub: tests are offline
    for check in task_checks(cls, data=Path(REAL_DATA or "no data folder"), expected_failures=KNOWN.get(cls.spec.name, {}))
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_tasks_keep_their_promises(check: Check) -> None:
    check()


def write_rows(data: Path, task: str, split: str, *rows: Mapping[str, Any]) -> None:
    folder = data / "clue" / task
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def only_row(adapter: TaskAdapter, split: str = "train") -> Mapping[str, Any]:
    (row,) = adapter.rows(split)
    return row.value


def test_the_plugin_registers_the_six_tasks_through_the_hook() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(mtcore_clue, name="clue")
    manager.check_pending()
    (classes,) = manager.hook.register_tasks()
    assert [cls.spec.name for cls in classes] == ["cwsc", "tnews", "iflytek", "csl", "afqmc", "ocnli"]


def test_output_kinds_and_label_counts_are_those_of_the_benchmark() -> None:
    assert {cls.spec.name: (cls.spec.output, len(cls.spec.words)) for cls in TASKS} == {
        "cwsc": ("binary", 2),
        "tnews": ("multi-class", 15),
        "iflytek": ("multi-class", 119),
        "csl": ("binary", 2),
        "afqmc": ("binary", 2),
        "ocnli": ("multi-class", 3),
    }


def test_input_kinds_split_the_tasks_as_the_paper_does() -> None:
    single = [cls.spec.name for cls in TASKS if cls.spec.input == "single-sentence"]
    pair = [cls.spec.name for cls in TASKS if cls.spec.input == "sentence-pair"]
    assert (single, pair) == (["cwsc", "tnews", "iflytek"], ["csl", "afqmc", "ocnli"])


def test_every_task_is_judged_by_accuracy_and_states_licence_and_source() -> None:
    assert {cls.spec.metric for cls in TASKS} == {"accuracy"}
    assert all(cls.spec.licence and "clue/clue" in cls.spec.source for cls in TASKS)


def test_numbered_labels_stand_in_numeric_order() -> None:
    for cls in (Tnews, Iflytek, Csl, Afqmc):
        assert list(cls.spec.labels) == sorted(cls.spec.labels, key=int)
    assert list(Iflytek.spec.labels) == [str(number) for number in range(119)]


def test_iflytek_names_keep_their_numbers() -> None:
    words = Iflytek.spec.words
    assert [words[label] for label in ("0", "10", "29", "46", "57", "70", "100", "118")] == [
        "打车",
        "社区服务",
        "婚恋社交",
        "视频",
        "视频教育",
        "工具",
        "美颜",
        "其他",
    ]


def test_every_prompt_ends_where_the_answer_begins() -> None:
    assert all(cls.spec.template.endswith("\n答案：") for cls in TASKS)


def test_fields_that_rows_share_are_documents() -> None:
    shared = {cls.spec.name: cls.spec.document_fields for cls in TASKS if cls.spec.document_fields}
    assert shared == {"cwsc": ("text",), "csl": ("abst",), "ocnli": ("sentence1",)}


def test_cwsc_reads_the_two_spans_from_the_target(tmp_path: Path) -> None:
    target = {"span1_text": "小猫", "span1_index": 0, "span2_text": "它", "span2_index": 6}
    write_rows(tmp_path, "cwsc", "train", {"idx": 0, "text": "小猫饿了，所以它叫。", "target": target, "label": "true"})
    adapter = Cwsc(tmp_path)
    row = only_row(adapter)
    assert adapter.fields(row) == {"text": "小猫饿了，所以它叫。", "span1": "小猫", "span2": "它"}
    assert adapter.spec.words[adapter.answer(row)] == "是"


def test_tnews_reads_the_headline_and_its_label(tmp_path: Path) -> None:
    write_rows(tmp_path, "tnews", "train", {"label": "103", "label_desc": "news_sports", "sentence": "主队赢了", "keywords": "主队"})
    adapter = Tnews(tmp_path)
    row = only_row(adapter)
    assert adapter.fields(row) == {"sentence": "主队赢了"}
    assert adapter.spec.words[adapter.answer(row)] == "体育"


def test_iflytek_reads_the_description_and_its_label(tmp_path: Path) -> None:
    write_rows(tmp_path, "iflytek", "train", {"label": "57", "label_des": "视频教育", "sentence": "看视频学画画"})
    adapter = Iflytek(tmp_path)
    row = only_row(adapter)
    assert adapter.fields(row) == {"sentence": "看视频学画画"}
    assert adapter.spec.words[adapter.answer(row)] == row["label_des"]


def test_csl_joins_the_keywords(tmp_path: Path) -> None:
    write_rows(tmp_path, "csl", "train", {"abst": "本文研究桥梁。", "keyword": ["桥梁", "振动"], "label": "0"})
    adapter = Csl(tmp_path)
    row = only_row(adapter)
    assert adapter.fields(row) == {"abst": "本文研究桥梁。", "keyword": "桥梁、振动"}
    assert adapter.answer(row) == "0"


def test_csl_refuses_keywords_that_are_one_text() -> None:
    with pytest.raises(TypeError, match="not a list"):
        Csl().fields({"abst": "本文研究桥梁。", "keyword": "桥梁", "label": "0"})


def test_afqmc_and_ocnli_read_two_sentences(tmp_path: Path) -> None:
    write_rows(tmp_path, "afqmc", "train", {"sentence1": "怎么还款", "sentence2": "如何还钱", "label": "1"})
    write_rows(tmp_path, "ocnli", "train", {"sentence1": "他在跑步", "sentence2": "他在睡觉", "label": "contradiction", "id": 0})
    afqmc, ocnli = Afqmc(tmp_path), Ocnli(tmp_path)
    assert afqmc.fields(only_row(afqmc)) == {"sentence1": "怎么还款", "sentence2": "如何还钱"}
    assert afqmc.spec.words[afqmc.answer(only_row(afqmc))] == "是"
    assert ocnli.fields(only_row(ocnli)) == {"sentence1": "他在跑步", "sentence2": "他在睡觉"}
    assert ocnli.spec.words[ocnli.answer(only_row(ocnli))] == "矛盾"


def test_every_field_of_a_spec_comes_from_its_row() -> None:
    row = {"text": "a", "target": {"span1_text": "b", "span2_text": "c"}, "sentence": "d", "abst": "e", "keyword": ["f"]}
    row |= {"sentence1": "g", "sentence2": "h"}
    for cls in TASKS:
        assert tuple(cls().fields(row)) == cls.spec.fields


def test_a_missing_field_is_an_error_not_an_empty_text() -> None:
    for cls in TASKS:
        with pytest.raises(KeyError):
            cls().fields({"label": "0", "keyword": []})
        with pytest.raises(KeyError):
            cls().answer({"sentence": "没有标签"})


def test_an_invalid_label_comes_through_for_the_core_to_set_aside() -> None:
    assert Ocnli().answer({"label": "-"}) == "-"
    assert Afqmc().answer({"label": -1}) == "-1"
    assert not {"-", "-1"} & set(Ocnli.spec.words)


def test_a_whole_number_is_a_label_and_nothing_else_is_retyped() -> None:
    assert Tnews().answer({"label": 103}) == "103"
    for label in (True, 1.0, None, ["1"]):
        with pytest.raises(TypeError, match="label is"):
            Afqmc().answer({"label": label})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"clue/tnews/validation\.jsonl\.gz"):
        list(Tnews(tmp_path).rows("validation"))


def test_there_are_no_test_rows_unless_the_data_folder_holds_some(tmp_path: Path) -> None:
    assert [list(cls().rows("test")) for cls in TASKS] == [[]] * 6
    assert list(Tnews(tmp_path).rows("test")) == []
    write_rows(tmp_path, "tnews", "test", {"label": "103", "sentence": "主队赢了"})
    assert only_row(Tnews(tmp_path), "test")["label"] == "103"


COUNTS = {
    "cwsc": (1244, 304),
    "tnews": (52860, 10000),
    "iflytek": (5212, 2599),
    "csl": (19500, 3000),
    "afqmc": (33834, 4316),
    "ocnli": (49929, 2950),
}


@pytest.mark.skipif(not REAL_DATA, reason="MTCORE_DATA is not set")
@pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.spec.name)
def test_every_row_of_the_real_data_is_readable(cls: type[TaskAdapter]) -> None:
    adapter = cls(Path(REAL_DATA))
    placeholders = {name for _, name, _, _ in string.Formatter().parse(cls.spec.template) if name}
    counts = []
    for split in ("train", "validation"):
        rows = [row.value for row in adapter.rows(split)]
        assert all(adapter.answer(row) in cls.spec.words for row in rows)
        assert all(set(adapter.fields(row)) == placeholders and all(adapter.fields(row).values()) for row in rows)
        assert all(cls.spec.words[row["label"]] == row["label_des"] for row in rows if "label_des" in row)
        counts.append(len(rows))
    assert tuple(counts) == COUNTS[cls.spec.name]
