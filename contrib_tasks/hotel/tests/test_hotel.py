"""The hotel suite: the same rows for everyone, labels that follow from scenarios, and no shortcut to them."""

import gzip
import hashlib
import json
import pickle
import re
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner
from mtcore_hotel.command import hotel
from mtcore_hotel.documents import archive, documents
from mtcore_hotel.floors import best_keyword
from mtcore_hotel.hearing import MISHEARD
from mtcore_hotel.phrases import phrases
from mtcore_hotel.scenarios import TOPICS, Conversation
from mtcore_hotel.tasks import ADAPTERS, TASKS, WORDS, HotelTask

from mtcore.config import RowLimits
from mtcore.data.checks import bag_of_words_answers, check_rows
from mtcore.data.rows import read_task
from mtcore.data.text import answer_texts
from mtcore.types import TaskData

TABLE_8 = {
    "rc-a": 17059, "rc-i": 6056, "uc-a": 1950, "uc-i": 8624, "pg-a": 2341, "pg-i": 2108, "id": 6884, "csa": 5011, "nr-a": 40397,
    "nr-i": 19726, "hs": 1328, "idm": 1200, "csqr": 2489, "see": 9314, "rtc": 8447, "csc": 8168, "ec": 6564, "cs": 1822,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks' rows at a small scale, written by the suite's own command."""
    data = tmp_path_factory.mktemp("rows")
    result = CliRunner().invoke(hotel, ["rows", str(data), "--scale", "0.02", "--least", "200", "--held-out", "200"])
    assert result.exit_code == 0, result.output
    return data


@pytest.fixture(scope="module")
def tasks(folder: Path) -> dict[str, TaskData]:
    return {a.task.name: read_task(f"hotel/{a.task.name}", a(folder), RowLimits(bad=0.0))[0] for a in ADAPTERS}


def test_there_are_the_tasks_of_the_paper_in_its_sizes() -> None:
    assert {name: task.rows for name, task in TASKS.items()} == TABLE_8
    assert [a.task.name for a in ADAPTERS if a.spec.output == "generation"] == ["cs"]


def test_the_same_rows_come_out_everywhere_and_always() -> None:
    rows = TASKS["pg-a"].made(scale=0.05, held_out=20)
    made = json.dumps({split: list(rows.split(split)) for split in rows.sizes}, ensure_ascii=False)
    assert hashlib.sha256(made.encode()).hexdigest() == "0f66883358b3c385923f0313e40f96efae48e5522bae3ec9add890c12b4d6d92"


def test_writing_rows_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    arguments = ["rows", str(tmp_path), "--scale", "0.02", "--least", "200", "--held-out", "200", "--task", "rc-i"]
    assert CliRunner().invoke(hotel, arguments).exit_code == 0
    for split in ("train", "validation", "test"):
        path = Path("hotel") / "rc-i" / f"{split}.jsonl.gz"
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


def test_sizes_keep_the_proportions_down_to_the_least(tasks: dict[str, TaskData]) -> None:
    assert {name: len(data.train) for name, data in tasks.items()} == {name: max(-(-rows // 50), 200) for name, rows in TABLE_8.items()}
    assert {len(split) for data in tasks.values() for split in (data.validation, data.test)} == {200}


def test_no_held_out_row_is_a_train_row_of_any_task(tasks: dict[str, TaskData]) -> None:
    for data in tasks.values():
        assert check_rows(data).normalised_leaks == 0
    texts = {
        split: {t for d in tasks.values() for e in getattr(d, split) for t in e.fields.values()}
        for split in ("train", "validation", "test")
    }
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def test_one_conversation_carries_labels_of_several_tasks(tasks: dict[str, TaskData]) -> None:
    labelled = Counter(e.fields["conversation"] for name in ("nr-i", "rc-i", "see", "csqr", "cs", "id") for e in tasks[name].train)
    assert sum(count > 1 for count in labelled.values()) > 50
    assert max(labelled.values()) >= 4


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_labels_differ_from_the_truth_exactly_as_often_as_stated(task: HotelTask) -> None:
    found = list(islice(documents(task.source), 4000))
    wrong = sum(set(_labels(task.label(d))) != set(_labels(task.truth(d))) for d in found) / len(found)
    assert wrong == pytest.approx(task.noise, abs=0.015)


@pytest.mark.parametrize("task", [t for t in TASKS.values() if WORDS[t.name]], ids=lambda t: t.name)
def test_every_label_occurs_and_none_is_nearly_all(task: HotelTask) -> None:
    truths = [task.truth(d) for d in islice(documents(task.source, wanted=task.wants), 1500)]
    counts = Counter(label for truth in truths for label in _labels(truth))
    assert set(counts) == set(WORDS[task.name])
    assert min(counts.values()) > 0.03 * len(truths)
    assert Counter(truths).most_common(1)[0][1] < 0.75 * len(truths)


@pytest.mark.parametrize("name", [n for n, t in TASKS.items() if WORDS[n] and t.source not in ("reviews", "rides")])
def test_neither_a_keyword_nor_a_bag_of_words_decides_a_label(tasks: dict[str, TaskData], name: str) -> None:
    data, ceiling = tasks[name], 1 - TASKS[name].noise
    keyword, bag = best_keyword(data), bag_of_words_answers(data, data.test)
    assert keyword is not None
    assert keyword < ceiling - 0.1
    assert bag is not None
    assert sum(guess == e.answer for guess, e in zip(bag, data.test, strict=True)) / len(data.test) < ceiling - 0.05


@pytest.mark.parametrize("topic", TOPICS)
def test_what_happened_decides_the_label_and_not_who_was_asked(topic: str) -> None:
    told = {"yes": True, "no": False, "claim confirmed": True, "claim denied": False, "inverse confirmed": False, "inverse denied": True}
    for way, is_so in told.items():
        assert Conversation({topic: way}, (0, 0), True, True, True).happened(topic) is is_so  # type: ignore[dict-item]
    assert not Conversation({}, (0, 0), True, True, True).happened(topic)


def test_service_and_agitation_are_counted() -> None:
    assert Conversation({}, (2, 2), True, True, True).agitation == 5
    assert Conversation({}, (0, 0), False, False, False).agitation == 1
    assert Conversation({}, (0, 0), True, False, True).quality == 3
    assert Conversation({"insult": "yes"}, (0, 0), True, True, True).quality == 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_was_misheard_can_be_told_from_what_was_said(language: str) -> None:
    said = " ".join(_strings([phrases("conversation", language), phrases("writing", language)])).lower()  # type: ignore[arg-type]
    wrong = list(MISHEARD[language].values())  # type: ignore[index]
    assert len(set(wrong)) == len(wrong)
    for form in wrong:
        assert not re.search(rf"\b{form}\b" if language == "en" else form, said), form
    for right in MISHEARD[language]:  # type: ignore[index]
        assert right in said, f"{right} is never said"


def test_phone_conversations_hold_no_punctuation_and_some_wrong_words() -> None:
    said = [re.split(": |：", line, maxsplit=1)[1] for d in islice(documents("phone"), 500) for line in d.text.split("\n")]
    assert not [line for line in said if re.search("[,.!?，。！？]", line)]
    assert sum(" booking" in line for line in said) > sum("bo king" in line for line in said) > 10


def test_both_languages_are_spoken_everywhere() -> None:
    for source in ("phone", "chat", "reviews", "rides", "mail"):
        languages = Counter(d.language for d in islice(documents(source), 400))  # type: ignore[arg-type]
        assert min(languages["en"], languages["zh"]) > 150


def test_every_slot_and_choice_is_filled() -> None:
    for source in ("phone", "chat", "reviews", "rides", "mail"):
        for document in islice(documents(source), 2000):  # type: ignore[arg-type]
            assert not re.search(r"[\[\]{}|]", document.text), document.text


def test_the_archive_has_no_document_of_the_rows_and_often_tells_what_came_after(tasks: dict[str, TaskData]) -> None:
    rows = {e.fields["conversation"] for split in ("train", "validation", "test") for e in getattr(tasks["nr-i"], split)}
    texts = list(islice(archive("chat"), 3000))
    assert not [text for text in texts if any(text.startswith(row) for row in rows)]
    noted = sum(bool(re.search("[Nn]ote: |备注：", text.split("\n")[-1])) for text in texts)
    assert 0.65 < noted / len(texts) < 0.75


def test_the_command_writes_raw_text_for_a_base(tmp_path: Path) -> None:
    assert CliRunner().invoke(hotel, ["text", str(tmp_path), "--documents", "100"]).exit_code == 0
    lines = [json.loads(line) for path in sorted(tmp_path.glob("*.jsonl.gz")) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(lines) == 100
    assert all(set(line) == {"text"} for line in lines)


def test_without_a_data_folder_rows_are_made_at_full_size() -> None:
    adapter = next(a for a in ADAPTERS if a.task.name == "idm")
    assert len(list(adapter().rows("train"))) == 1200
    assert len(list(adapter().rows("test"))) == 500


def test_the_first_rows_are_there_at_once_and_the_order_of_reading_changes_none() -> None:
    rows, other = TASKS["uc-a"].made(), TASKS["uc-a"].made()
    first = next(rows.split("train"))
    test = list(islice(other.split("test"), 50))
    assert first == next(other.split("train"))
    assert test == list(islice(rows.split("test"), 50))


def test_adapters_can_be_pickled() -> None:
    for adapter in ADAPTERS:
        assert pickle.loads(pickle.dumps(adapter)) is adapter


def test_an_unknown_task_is_told_with_those_there_are(tmp_path: Path) -> None:
    result = CliRunner().invoke(hotel, ["rows", str(tmp_path), "--task", "rc"])
    assert "no task 'rc'" in str(result.exception)
    assert "rc-a" in str(result.exception)


def test_summaries_are_written_in_the_language_of_the_conversation() -> None:
    spoken: defaultdict[str, list[str]] = defaultdict(list)
    for document in islice(documents("chat"), 300):
        (text,) = TASKS["cs"].truth(document)  # type: ignore[misc]
        spoken[document.language].append(text)
    assert all(text.isascii() for text in spoken["en"])
    assert not any(re.search("[a-z]", text) for text in spoken["zh"])


def test_multi_label_answers_are_words_in_canonical_order(tasks: dict[str, TaskData]) -> None:
    spec = tasks["rtc"].spec
    several = next(e for e in tasks["rtc"].train if len(e.answer) > 1)  # type: ignore[arg-type]
    assert [w for w in answer_texts(spec, several.answer) if w != ", "] == [w for w in spec.words if w in several.answer]  # type: ignore[operator]


def _labels(answer: object) -> tuple[str, ...]:
    return answer if isinstance(answer, tuple) else (str(answer),)


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [s for v in (value.values() if isinstance(value, dict) else value) for s in _strings(v)]  # type: ignore[attr-defined]
