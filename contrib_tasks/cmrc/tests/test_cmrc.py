"""CMRC 2018 reads both forms of its rows, and its metrics agree with cases computed by hand."""

import gzip
import json
import os
from pathlib import Path

import mtcore_cmrc
import numpy as np
import pluggy
import pytest
from mtcore_cmrc import TOKEN, Cmrc2018, CmrcExactMatch, CmrcF1, clean

from mtcore import hookspecs
from mtcore.contracts import Metric
from mtcore.testing import Check, task_checks
from mtcore.types import Answer

REAL_DATA = os.environ.get("MTCORE_DATA", "")
# without a data folder rows are not looked for on the Hub: tests are offline
CHECKS = task_checks(Cmrc2018, data=Path(REAL_DATA or "no data folder"))


def score(metric: type[Metric], predictions: list[Answer], answers: list[Answer]) -> float:
    return float(metric().score(metric().statistics(Cmrc2018.spec, predictions, answers).sum(axis=0)))


def both(prediction: str, *references: str) -> tuple[float, float]:
    return score(CmrcExactMatch, [prediction], [references]), score(CmrcF1, [prediction], [references])


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_task_keeps_its_promises(check: Check) -> None:
    check()


# --- the task -------------------------------------------------------------------------------------------------------------------------


def test_the_plugin_registers_its_task_through_the_hook() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(mtcore_cmrc, name="cmrc")
    manager.check_pending()
    assert manager.hook.register_tasks() == [[Cmrc2018]]


def test_the_spec_names_metrics_that_the_task_brings() -> None:
    assert set(Cmrc2018.metrics) == {Cmrc2018.spec.metric, *Cmrc2018.spec.beside} == {"cmrc-em", "cmrc-f1"}


def test_a_row_from_a_file_gives_its_fields_and_each_acceptable_text_once(tmp_path: Path) -> None:
    answers = [{"text": "三只", "answer_start": 3}, {"text": "三只猫", "answer_start": 3}, {"text": "三只", "answer_start": 3}]
    row = {"id": "X", "title": "猫", "context": "院里有三只猫。", "question": "有几只猫？", "answers": answers}
    (tmp_path / "clue" / "cmrc2018").mkdir(parents=True)
    with gzip.open(tmp_path / "clue" / "cmrc2018" / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    task = Cmrc2018(tmp_path)
    (found,) = task.rows("train")
    assert task.fields(found.value) == {"context": "院里有三只猫。", "question": "有几只猫？"}
    assert task.answer(found.value) == ("三只", "三只猫")


def test_a_row_from_the_hub_gives_the_same_answer() -> None:
    assert Cmrc2018().answer({"answers": {"text": ["三只", "三只猫", "三只"], "answer_start": [3, 3, 3]}}) == ("三只", "三只猫")


def test_a_row_without_fields_or_answers_is_an_error() -> None:
    with pytest.raises(KeyError):
        Cmrc2018().fields({"context": "院里有三只猫。"})
    with pytest.raises(KeyError):
        Cmrc2018().answer({"context": "院里有三只猫。"})
    for answers in (None, "三只", [], ["三只"], {"text": "三只"}, {"text": []}, {"answer_start": [3]}):
        with pytest.raises(TypeError):
            Cmrc2018().answer({"answers": answers})


# --- the metrics: exact match and F1, by hand -----------------------------------------------------------------------------------------


def test_an_equal_text_scores_one() -> None:
    assert both("北京大学", "北京大学") == (1, 1)


def test_a_part_scores_by_the_tokens_it_shares() -> None:
    # 4 of 4 tokens are right, 4 of 7 are found: 2 · 4 / (4 + 7)
    assert both("北京大学", "北京大学图书馆") == (0, pytest.approx(8 / 11))


def test_only_the_longest_run_counts() -> None:
    # the same four characters, but no two of them in the same order: one shared, 2 · 1 / (4 + 4)
    assert both("学大京北", "北京大学") == (0, pytest.approx(1 / 4))
    # 天气 and 很好 both match; one run of two counts: 2 · 2 / (4 + 5)
    assert both("天气很好", "天气真很好") == (0, pytest.approx(4 / 9))


def test_nothing_in_common_scores_zero() -> None:
    assert both("上海", "北京") == (0, 0)


def test_case_outer_blanks_and_listed_punctuation_do_not_count() -> None:
    assert both("  《红楼梦》。 ", "红楼梦") == (1, 1)
    assert both("“小王”：去；来！", "小王去来") == (1, 1)
    assert both("Wi-Fi", "wifi") == (1, 1)


def test_punctuation_outside_the_list_counts() -> None:
    # a half-width comma is one more token: 2 · 2 / (3 + 2)
    assert both("你好,", "你好") == (0, pytest.approx(4 / 5))
    # the list's "……" has two characters and never equals one, so an ellipsis stays: 2 · 1 / (2 + 1)
    assert both("好…", "好") == (0, pytest.approx(2 / 3))


def test_blanks_inside_count_for_exact_match_only() -> None:
    assert both("GPU 训练", "gpu训练") == (0, 1)


def test_chinese_is_cut_into_characters_and_the_rest_into_words() -> None:
    assert TOKEN.findall(clean("用GPU训练3.5小时, it's 3,000 steps（大约）")) == [
        *("用", "gpu", "训", "练", "3.5", "小", "时", ",", "it's", "3,000", "steps", "大", "约"),
    ]
    assert TOKEN.findall("a,b (25℃).") == ["a", ",", "b", "(", "25℃", ")", "."]


def test_a_foreign_word_is_one_token() -> None:
    # 使 用 gpu 训 练 3.5 小 时 against 用 gpu 训 练 3.5 小 时: 2 · 7 / (8 + 7)
    assert both("使用GPU训练 3.5 小时", "用gpu训练3.5小时") == (0, pytest.approx(14 / 15))
    # harry potter against harry: 2 · 1 / (2 + 1); a part of a word is nothing
    assert both("Harry Potter", "harry") == (0, pytest.approx(2 / 3))
    assert both("Harry", "Harrys") == (0, 0)


def test_the_best_reference_counts() -> None:
    # against 一七三一年: 2 · 1 / (2 + 5); against 1731年: 1
    assert both("1731年", "一七三一年", "1731年") == (1, 1)
    # against 十月一日: 2 · 2 / (2 + 4); against 十月一: 2 · 2 / (2 + 3)
    assert both("十月", "十月一日", "十月一") == (0, pytest.approx(4 / 5))


def test_an_unanswered_row_counts_zero_and_stays_in_the_denominator() -> None:
    predictions: list[Answer] = ["北京", "", "  "]
    answers: list[Answer] = [("北京",), ("上海",), ("广州",)]
    assert score(CmrcExactMatch, predictions, answers) == pytest.approx(1 / 3)
    assert score(CmrcF1, predictions, answers) == pytest.approx(1 / 3)


def test_an_unanswered_row_is_wrong_even_where_nothing_is_left_of_the_reference() -> None:
    assert both("", "《》") == (0, 0)


def test_a_prediction_of_punctuation_alone_scores_zero() -> None:
    assert both("。", "北京") == (0, 0)


def test_a_prediction_may_be_text_or_a_tuple_of_one() -> None:
    for metric in (CmrcExactMatch, CmrcF1):
        assert score(metric, ["北京", ("北京",)], [("北京",), ("北京",)]) == 1


def test_a_prediction_that_is_not_one_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="unpack"):
        score(CmrcF1, [("北京", "上海")], [("北京",)])
    with pytest.raises(TypeError, match="not text"):
        score(CmrcF1, [1.0], [("北京",)])


def test_scores_come_from_summed_statistics_of_any_shape() -> None:
    metric = CmrcExactMatch()
    rows = metric.statistics(Cmrc2018.spec, ["北京", "上海"], [("北京",), ("广州",)])
    assert rows.tolist() == [[1, 1], [0, 1]]
    resampled = np.array([[2, 0], [1, 1], [0, 2]]) @ rows
    assert metric.score(resampled).tolist() == [1, 0.5, 0]


@pytest.mark.skipif(not REAL_DATA, reason="MTCORE_DATA is not set")
def test_every_row_of_the_real_data_is_readable_and_its_own_answer_scores_one() -> None:
    task, counts = Cmrc2018(Path(REAL_DATA)), []
    for split in ("train", "validation"):
        rows = [row.value for row in task.rows(split)]
        answers: list[Answer] = [task.answer(row) for row in rows]
        assert all(all(task.fields(row).values()) for row in rows)
        assert score(CmrcExactMatch, [texts[-1] for texts in answers], answers) == 1
        assert score(CmrcF1, [texts[-1] for texts in answers], answers) == 1
        counts.append(len(rows))
    assert counts == [9642, 3219]
