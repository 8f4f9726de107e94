"""What `mtcore show` prints is what training encodes: the same ids, the same cut, the loss in the same place."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from mtcore.cli.show import show
from mtcore.config import RowLimits
from mtcore.data.anatomy import tokens
from mtcore.data.rows import read_task
from mtcore.data.text import TextEncoder
from mtcore.defaults.text2text import Text2Text
from mtcore.errors import ConfigError, MissingData, ModelError, UnknownName
from mtcore.modeling.load import find_base
from mtcore.registry import declared_entry

SPEC = """
name = "mood"
output = "binary"
input = "single-sentence"
instruction = "判断情感"
template = "文本：{text}\\n答案："
words = { 0 = "很差", 1 = "很好" }
metric = "accuracy"
licence = "none"
source = "made up"

[rows]
train = "mood.jsonl"
validation = "mood.jsonl"
"""
ROWS = [
    {"text": "这家酒店的服务态度不错，[房间]也很干净。", "answer": "1"},
    {"text": "bad <|endoftext|> 🙂 {news}", "answer": "0"},
    {"text": "公园散步" * 200, "answer": "1"},
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a declared task and a run file."""
    monkeypatch.chdir(tmp_path)
    for name in ("MTCORE_DATA", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    Path("mood.toml").write_text(SPEC, encoding="utf-8")
    write(ROWS)
    return tmp_path


def write(rows):
    Path("mood.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shown(*arguments, env=None):
    result = CliRunner().invoke(show, list(arguments), env=env)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def as_json(*arguments):
    return json.loads(shown(*arguments, "--json").stdout)


def ids(row):
    return [i for span in row["spans"] for i in span["ids"]]


@pytest.mark.parametrize("max_length", [1024, 64])
def test_the_ids_and_the_loss_are_those_of_training(place, base_folder, max_length):
    from mtcore.defaults.text2text_fit import encode_rows

    Path("run.toml").write_text(
        f'model = "{base_folder}"\ntasks = ["mood.toml"]\nmethod = {{ use = "text2text", max_length = {max_length} }}\n'
    )
    entry = declared_entry(Path("mood.toml"))
    data, _ = read_task(entry.name, entry.cls(), RowLimits())
    method = Text2Text(Text2Text.Config(max_length=max_length))
    trained = encode_rows(data, data.train, method.encoder(find_base(str(base_folder), place)), method.config)
    table = as_json("local/mood", "--run", "run.toml")
    assert table["max_length"] == min(max_length, 256)
    for row, encoded in zip(table["rows"], trained, strict=True):
        assert ids(row) == [*encoded.prompt.tolist(), *encoded.answer.tolist()]
        assert row["loss_on"] == len(encoded.answer)
        assert row["cut"] == encoded.cut
        assert row["spans"][-1]["role"] == "answer"
        assert row["spans"][-1]["tokens"][-1] == "<|endoftext|>"
    assert table["rows"][2]["cut"] > 0


def test_what_fits_and_what_is_cut_make_up_the_user_text(place, base_folder):
    (row,) = [row for row in as_json("mood.toml", "--model", str(base_folder))["rows"] if row["cut"]]
    (user,) = [span for span in row["spans"] if span["role"] == "user"]
    encoder = Text2Text(Text2Text.Config()).encoder(find_base(str(base_folder), place))
    assert user["ids"] + user["cut"] == encoder.user_ids([user["text"]])[0]
    told = re.sub(r"\s+", " ", shown("mood.toml", "--model", str(base_folder)).stdout)
    assert f"! cut: {len(user['cut']):,} of {len(user['ids'] + user['cut']):,} tokens of a user text do not fit" in told


def test_user_text_is_never_shown_as_a_control_token(place, base_folder):
    row = as_json("mood.toml", "--model", str(base_folder))["rows"][1]
    (user,) = [span for span in row["spans"] if span["role"] == "user"]
    assert 0 not in user["ids"]
    assert "<|endoftext|>" not in user["tokens"]
    assert ids(row).count(0) == 1


def test_every_token_stands_over_its_ids_and_the_loss_is_marked(place, base_folder):
    out = shown("mood.toml", "--model", str(base_folder), "--count", "2").stdout
    lines = out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    told, learned = [], ""
    for top, numbers, under in zip(lines, lines[1:], lines[2:], strict=False):
        if re.fullmatch(r"  [\d ]*\d", numbers):
            for found in re.finditer(r"\d+(?: \d+)*", numbers):
                told += map(int, found.group().split())
                if under[found.start() : found.start() + 1] == "^":
                    learned += word_at(top, found.start())
    rows = as_json("mood.toml", "--model", str(base_folder), "--count", "2")["rows"]
    assert told == [i for row in rows for i in ids(row)]
    assert learned == "很好<|endoftext|>很差<|endoftext|>"


def word_at(line, column):
    """The word that begins in a column of a line, wide characters taking two."""
    (start,) = [i for i in range(len(line)) if cell_len(line[:i]) == column]
    return line[start:].split("  ")[0]


def test_text_is_bracketed_where_there_is_no_colour_and_coloured_where_there_is(place, base_folder):
    plain = shown("mood.toml", "--count", "1").stdout
    assert "文本：[这家酒店的服务态度不错，[房间]也很干净。]" in plain
    assert "答案：{很好}" in plain
    assert "\x1b" not in plain
    colour = shown("mood.toml", "--count", "1", "--model", str(base_folder), env={"FORCE_COLOR": "1"}).stdout
    assert "\x1b[1;32m很好\x1b[0m" in colour
    assert "{很好}" not in colour
    assert "^" not in colour


def test_what_a_terminal_would_act_upon_is_written_out(place, base_folder):
    write([{"text": "a\x1b[2Jb\r\x07\u202ec", "answer": "0"}])
    out = shown("mood.toml", "--model", str(base_folder)).stdout
    assert "a\\x1b[2Jb\\r\\x07\\u202ec" in out
    assert not set("\x1b\r\x07\u202e") & set(out)


def test_without_a_base_the_text_is_shown_with_the_way_to_get_one(place):
    result = shown("mood.toml", "--count", "1")
    assert "{很好}" in result.stdout
    assert "mtcore base tiny --corpus" in result.stderr
    table = as_json("mood.toml")
    assert table["model"] is None
    assert "mtcore base tiny" in table["why_no_ids"]
    assert ids(table["rows"][0]) == []
    with pytest.raises(ModelError, match="nowhere"):
        shown("mood.toml", "--model", "nowhere")


def test_the_layout_is_the_run_files_unless_another_is_asked_for(place, base_folder):
    Path("mood.toml").write_text(SPEC.replace("[rows]", 'document_fields = ["text"]\n[rows]'), encoding="utf-8")
    Path("run.toml").write_text(f'model = "{base_folder}"\ntasks = ["mood.toml"]\nmethod = {{ layout = "document-first" }}\n')
    assert as_json("local/mood", "--run", "run.toml")["rows"][0]["spans"][0]["role"] == "user"
    assert as_json("local/mood", "--run", "run.toml", "--layout", "task-first")["rows"][0]["spans"][0]["role"] == "structure"
    assert as_json("mood.toml", "--layout", "document-first")["layout"] == "document-first"


def test_a_method_with_prompts_of_its_own_is_told(place, base_folder):
    Path("run.toml").write_text(f'model = "{base_folder}"\ntasks = ["mood.toml"]\nmethod = {{ use = "few-shot" }}\n')
    assert "'few-shot' writes prompts of its own" in shown("local/mood", "--run", "run.toml").stderr


def test_long_texts_lose_their_middle_unless_all_is_asked_for(place, base_folder):
    arguments = ("mood.toml", "--model", str(base_folder))
    short, full = shown(*arguments).stdout, shown(*arguments, "--full").stdout
    assert re.search(r"… \d+ more …", short)
    assert "more …" not in full
    assert len(full.splitlines()) > len(short.splitlines())


def test_rows_that_are_set_aside_are_told_and_not_counted(place):
    write([{"text": "", "answer": "1"}, *ROWS, {"text": "never reached"}])
    result = shown("mood.toml", "--count", "1")
    assert "set aside: mood.jsonl, line 1: field 'text' is empty" in result.stderr
    assert "never reached" not in result.stderr
    assert "这家酒店" in result.stdout
    write([{"text": "", "answer": "1"}])
    with pytest.raises(MissingData, match="no valid train rows; 1 were set aside: field 'text' is empty"):
        shown("mood.toml")
    with pytest.raises(MissingData, match="no valid test rows"):
        shown("mood.toml", "--split", "test")


def test_a_pattern_of_several_tasks_is_refused_with_their_names(place):
    Path("gloom.toml").write_text(SPEC.replace("mood", "gloom"), encoding="utf-8")
    with pytest.raises(ConfigError, match="names 2 tasks, and one is shown: choose among local/gloom, local/mood"):
        shown("*.toml")


def test_a_variant_without_a_run_file_is_refused(place):
    with pytest.raises(UnknownName, match="without a run file there is no variant 'ours'"):
        shown("mood.toml", "--variant", "ours")


@pytest.mark.parametrize(
    ("spec", "answer", "labels", "told"),
    [
        ({}, "1", ["0", "1"], "choice among 2: one forward pass"),
        (
            {"binary": "multi-label", "words =": 'none_word = "无"\nwords ='},
            ["1"],
            ["0", "1", ""],
            "first choice among 3: one forward pass",
        ),
        (
            {"binary": "regression", 'words = { 0 = "很差", 1 = "很好" }': "number_range = { low = 0, high = 99, step = 1 }"},
            1,
            [str(i) for i in range(100)],
            "and 88 more labels (--full)",
        ),
        ({"binary": "generation", 'words = { 0 = "很差", 1 = "很好" }': ""}, "好", [], ""),
    ],
    ids=["binary", "multi-label", "regression", "generation"],
)
def test_the_words_of_a_label_set_are_shown_as_tokens(place, base_folder, spec, answer, labels, told):
    text = SPEC
    for old, new in spec.items():
        text = text.replace(old, new)
    Path("mood.toml").write_text(text, encoding="utf-8")
    write([{"text": "a", "answer": answer}])
    table = as_json("mood.toml", "--model", str(base_folder))
    assert [label["label"] for label in table["labels"]] == labels
    assert all(label["ids"] for label in table["labels"])
    assert told in shown("mood.toml", "--model", str(base_folder)).stdout


def test_words_that_training_would_refuse_are_refused(place, base_folder):
    spec = SPEC.replace("binary", "multi-label").replace("words", 'none_word = "无"\nwords')
    Path("mood.toml").write_text(spec.replace('"很差"', '"x"').replace('"很好"', '"x#"'), encoding="utf-8")
    write([{"text": "a", "answer": ["1"]}])
    with pytest.raises(ConfigError, match="answer word 'x' begins 'x#'"):
        shown("mood.toml", "--model", str(base_folder))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
@settings(max_examples=100, deadline=None)
def test_tokens_are_joined_to_whole_characters_and_none_is_lost(base_folder, text):
    encoder = TextEncoder(base_folder / "tokenizer.json", 0, 256)
    given_ids = encoder.user_ids([text])[0]
    found = list(tokens(given_ids, encoder))
    assert [i for token in found for i in token.ids] == given_ids
    assert "".join(token.text for token in found) == text
    assert all(len(token.ids) <= 4 * max(1, len(token.text)) for token in found)


def test_showing_needs_no_torch():
    code = "import sys; from mtcore.cli.show import show; print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
