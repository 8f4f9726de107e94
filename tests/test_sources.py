"""A line that cannot be read is set aside with its file, line, reason and snippet, and the rest goes on."""

import gzip
import json
import os

import pytest

from mtcore.data.sources import MAX_LINE, MAX_SNIPPET, HubSource, read_jsonl, task_rows
from mtcore.errors import DataError, MissingData

GOOD = b'{"text": "fine"}'

UNREADABLE = {
    "not UTF-8": (b'{"text": "\xff\xfe"}', "not UTF-8 at byte 10"),
    "another encoding": ('{"text": "天气"}'.encode("gb18030"), "not UTF-8"),
    "two bytes a character": ('{"text": "天气"}'.encode("utf-16"), "not UTF-8"),
    "a bare NUL": (b'{"text": "a\0b"}', "not a JSON row"),
    "nothing but NULs": (b"\0" * 20, "not a JSON row"),
    "half a row": (b'{"text": "a', "not a JSON row"),
    "two rows on one line": (GOOD + GOOD, "not a JSON row"),
    "NaN": (b'{"text": "a", "label": NaN}', "NaN is not JSON"),
    "infinity": (b'{"text": "a", "label": -Infinity}', "-Infinity is not JSON"),
    "a key twice": (b'{"text": "a", "text": "b"}', "key 'text' stands there twice"),
    "a key twice, deep inside": (b'{"text": "a", "more": [{"x": 1, "x": 1}]}', "key 'x' stands there twice"),
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, "not a JSON row: maximum recursion depth"),
    "deep objects": (b'{"a":' * 100_000, "not a JSON row: maximum recursion depth"),
    "a number of 5000 digits": (b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "not a JSON row"),
    "a list": (b'["text"]', "a JSON list, not an object"),
    "a number": (b"17", "a JSON int, not an object"),
    "null": (b"null", "a JSON NoneType, not an object"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize(("line", "problem"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_line_is_set_aside_and_the_rest_goes_on(tmp_path, line, problem, suffix):
    path = tmp_path / f"train{suffix}"
    content = b"\n".join([GOOD, line, GOOD]) + b"\n"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    first, bad, last = read_jsonl(path)
    assert first.value == last.value == {"text": "fine"}
    assert (first.line, bad.line, last.line) == (1, 2, 3)
    assert bad.value is None
    assert bad.file == str(path)
    assert problem in bad.problem
    assert 0 < len(bad.snippet.encode()) <= MAX_SNIPPET * len(r"\xff")


def test_a_line_of_ten_megabytes_is_set_aside_unread(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(GOOD + b"\n" + b'{"text": "' + b"x" * 10_000_000 + b'"}\n' + GOOD + b"\n")
    first, bad, last = read_jsonl(path)
    assert (first.problem, last.problem, last.line) == ("", "", 3)
    assert bad.problem == f"longer than {MAX_LINE} bytes"
    assert len(bad.snippet) == MAX_SNIPPET


@pytest.mark.parametrize("end", [b"\n", b""])
def test_the_longest_line_that_is_allowed_is_read(tmp_path, end):
    path = tmp_path / "train.jsonl"
    frame = len(b'{"text": ""}')
    path.write_bytes(
        b"".join(b'{"text": "' + b"x" * (length - frame) + b'"}' + e for length, e in ((MAX_LINE, b"\n"), (MAX_LINE + 1, end)))
    )
    allowed, longer = read_jsonl(path)
    assert len(allowed.value["text"]) == MAX_LINE - frame
    assert longer.value is None


def read_to_the_break(path):
    """The rows before a file breaks off, and what is said of it."""
    rows = []
    with pytest.raises(DataError, match="the archive is cut off or damaged; fetch it again") as raised:
        rows.extend(read_jsonl(path))
    return rows, str(raised.value)


def test_a_truncated_gzip_file_stops_where_it_breaks_and_says_how_much_was_read(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    # random text, so that half of the bytes are about half of the rows
    whole = b"".join(json.dumps({"text": os.urandom(30).hex()}).encode() + b"\n" for _ in range(400))
    compressed = gzip.compress(whole)
    path.write_bytes(compressed[: len(compressed) // 2])
    rows, said = read_to_the_break(path)
    assert 100 < len(rows) < 300
    assert [row.value for row in rows] == [json.loads(line) for line in whole.splitlines()[: len(rows)]]
    assert said.startswith(f"{path} breaks off after {len(rows)} lines (")


def test_a_file_that_breaks_off_inside_a_long_line_is_stopped_at_too(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD + b"\n" + b"x" * 3 * MAX_LINE + b"\n" + GOOD + b"\n")[:-20])
    (_, long), _ = read_to_the_break(path)
    assert long.problem.startswith("longer than")


def damaged(compressed, kind):
    header, body = compressed[:10], compressed[10:]
    return {
        "not gzip at all": GOOD + b"\n",
        "a block that cannot be": header + b"\xff" * len(body),
        "a wrong checksum": compressed[:-8] + b"\0\0\0\0" + compressed[-4:],
    }[kind]


@pytest.mark.parametrize("kind", ["not gzip at all", "a block that cannot be", "a wrong checksum"])
def test_a_damaged_gzip_file_is_stopped_at(tmp_path, kind):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(damaged(gzip.compress(GOOD + b"\n"), kind))
    rows, _ = read_to_the_break(path)
    assert all(row.problem == "" for row in rows)


def test_blank_lines_are_no_rows_but_keep_their_numbers(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n  \r\n" + GOOD + b"\r\n\n" + GOOD)
    assert [(row.line, row.problem) for row in read_jsonl(path)] == [(3, ""), (5, "")]


def test_a_snippet_never_holds_what_cannot_be_written(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes("天".encode() * 100 + b"\n" + b"\xed\xa0\x80\n")
    for row in read_jsonl(path):
        assert row.snippet.encode("utf-8")


def test_rows_are_found_zipped_or_plain_the_zipped_ones_first(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.jsonl").write_bytes(b'{"text": "plain"}\n')
    assert [row.value["text"] for row in task_rows(tmp_path, "toy", "train")] == ["plain"]
    (tmp_path / "toy" / "train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "zipped"}\n'))
    assert [row.value["text"] for row in task_rows(tmp_path, "toy", "train")] == ["zipped"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_missing_rows_are_an_error_that_names_every_place(tmp_path, split):
    with pytest.raises(MissingData) as error:
        list(task_rows(tmp_path, "some/toy", split, HubSource("owner/set")))
    for place in (str(tmp_path), f"some/toy/{split}.jsonl.gz", f"some/toy/{split}.jsonl ", "owner/set", "MTCORE_DATA", "`data =`"):
        assert place in str(error.value)


def test_missing_rows_without_any_place_to_look_say_what_to_set():
    with pytest.raises(MissingData, match=r"Set MTCORE_DATA or `data =` to a folder that holds toy/train\.jsonl\.gz"):
        list(task_rows(None, "toy", "train"))


def test_a_missing_test_split_is_empty(tmp_path):
    assert list(task_rows(tmp_path, "toy", "test", HubSource("owner/set"))) == []
    assert list(task_rows(None, "toy", "test")) == []


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A data set as the Hub has them, in a folder: `datasets` reads both alike."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    folder = tmp_path / "set" / "of" / "rows"
    folder.mkdir(parents=True)
    for split, labels in (("train", [1, 0, -1, None]), ("validation", [0])):
        rows = datasets.Dataset.from_dict({"text": ["t"] * len(labels), "label": labels}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


def test_rows_of_the_hub_have_names_for_class_numbers(hub_folder):
    hub = HubSource(str(hub_folder), splits={"validation": "validation"})
    assert [row.value["label"] for row in task_rows(None, "toy", "train", hub)] == ["good", "bad", -1, None]
    assert {row.file for row in task_rows(None, "toy", "validation", hub)} == {str(hub_folder)}
    assert list(task_rows(None, "toy", "test", hub)) == []


def test_a_split_that_the_hub_has_not_got_is_an_error_that_names_every_place(hub_folder):
    with pytest.raises(MissingData) as error:
        list(task_rows(None, "toy", "validation", HubSource(str(hub_folder), splits={"validation": "dev"})))
    for place in ("MTCORE_DATA", "`data =`", str(hub_folder), "'dev'", "toy/validation.jsonl.gz"):
        assert place in str(error.value)


def test_a_data_set_that_is_nowhere_is_an_error_that_says_why(tmp_path):
    with pytest.raises(MissingData, match=r"is not to be had from the Hugging Face Hub \(\w+: .+\)"):
        list(task_rows(None, "toy", "train", HubSource(str(tmp_path / "no" / "such" / "set"))))
