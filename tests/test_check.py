"""`mtcore check`, as a plugin's author types it."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mtcore.cli.check import check
from mtcore.errors import ConfigError, ModelError, MtcoreError, PluginError, UnknownName

MODULE = '''"""Two tasks, one of them careless, and components of one name."""

from mtcore.contracts import Options, Sampler, StageScheduler, TaskAdapter
from mtcore.data.sources import task_rows
from mtcore.hookspecs import hookimpl
from mtcore.types import Mixture, TaskSpec


class Careful(TaskAdapter):
    spec = TaskSpec(name="careful", output="binary", input="single-sentence", fields=("text",), instruction="Is it?", template="{text}\\n",
                    words={"0": "no", "1": "yes"}, metric="accuracy", licence="CC0-1.0", source="made up")

    def rows(self, split):
        print("reading", split)
        return [{"text": f"{split} {n}", "label": str(n % 2)} for n in range(12)]

    def fields(self, row):
        return {"text": row["text"]}

    def answer(self, row):
        return row["label"]


class Careless(Careful):
    spec = Careful.spec.model_copy(update={"name": "careless", "licence": "TODO"})


class Remote(Careful):
    spec = Careful.spec.model_copy(update={"name": "remote"})

    def rows(self, split):
        return task_rows(self.data, "toys/remote", split)


class Share(Sampler):
    name = "share"

    class Config(Options):
        first: str

    def epoch_draws(self, profiles):
        return sum(p.train_rows for p in profiles)

    def mix(self, profiles, draws, ledger):
        weights = {p.name: 2 if p.name == self.config.first else 1 for p in profiles}
        return Mixture(shares={name: weight / sum(weights.values()) for name, weight in weights.items()})


class ShareStages(StageScheduler):
    name = "share"

    def next_stage(self, profiles, done, sampler):
        return None


@hookimpl
def register_tasks():
    return [Careful, Careless, Remote]


@hookimpl
def register_samplers():
    return [Share]


@hookimpl
def register_schedulers():
    return [ShareStages]
'''


def install(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}_plugin.py").write_text(source, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mtcore]\n{name} = {name}_plugin\n")


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with a working plugin and a broken one, and no data folder."""
    install(tmp_path, "toys", MODULE)
    install(tmp_path, "broken", "import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MTCORE_DATA", raising=False)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("toys_plugin", None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, arguments)


def refused(*arguments: str) -> MtcoreError:
    result = run(*arguments)
    assert isinstance(result.exception, MtcoreError), result.output
    return result.exception


def test_every_check_is_a_line_with_its_mark_name_claim_and_what_was_found() -> None:
    result = run("toys/careful")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0] == "task toys/careful, from toys 1.0"
    assert [line.split()[0] for line in lines[1:-2]] == ["✓"] * 19
    assert lines[3].split(maxsplit=2)[1:] == ["licence-and-source", "The licence and the source of the rows are stated. (CC0-1.0; made up)"]
    assert lines[-2] == "19 checks: 19 passed"


def test_two_files_that_declare_one_name_are_both_checked(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    for name in ("one", "two"):
        Path(f"{name}.toml").write_text(DECLARED)
    assert [table["kind"] for table in json.loads(run("one.toml", "two.toml", "--json").stdout)] == ["task", "task"]


def test_a_failed_check_says_what_was_found_and_how_to_mend_it() -> None:
    result = run("toys/careless")
    mark, found, fix = [line.strip() for line in result.stdout.splitlines()[3:6]]
    assert result.exit_code == 1
    assert mark.startswith("✗  licence-and-source")
    assert found == "found: licence is 'TODO'"
    assert fix.startswith("fix: say under which terms")
    assert "19 checks: 18 passed, 1 failed" in result.stdout


def test_json_is_all_that_stands_on_stdout() -> None:
    result = run("toys/care*", "toys/careful", "--json")
    careful, careless = json.loads(result.stdout)  # though the plugin prints when its rows are read
    assert (careful["name"], careful["kind"], careful["distribution"], careful["failed"]) == ("toys/careful", "task", "toys", 0)
    assert [c["name"] for c in careless["checks"] if c["status"] == "failed"] == ["licence-and-source"]
    assert set(careless["checks"][0]) == {"name", "claim", "status", "found", "fix"}
    assert result.exit_code == 1


def test_without_data_rows_are_not_checked_and_nothing_fails() -> None:
    result = run("toys/remote")
    assert result.exit_code == 0
    assert "skipped: toys/remote: no train rows. Set MTCORE_DATA" in result.stdout
    assert "19 checks: 8 passed, 11 skipped" in result.stdout


DECLARED = """
name = "noise"
output = "binary"
input = "single-sentence"
instruction = "Is it about noise?"
template = "{text}\\nAnswer: "
words = { no = "no", yes = "yes" }
metric = "accuracy"
licence = "CC0-1.0"
source = "made up"
rows = { train = "train.csv", validation = "validation.csv" }
"""


def test_a_task_that_a_file_declares_is_checked_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "noise.toml").write_text(DECLARED, encoding="utf-8")
    for split in ("train", "validation"):
        rows = [f"{split} {n},{['no', 'yes'][n % 2]}" for n in range(10)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,answer", *rows]), encoding="utf-8")
    (told,) = json.loads(run(str(tmp_path / "noise.toml"), "--json").stdout)
    assert told["name"] == "local/noise"
    statuses = {check["name"]: check["status"] for check in told["checks"]}
    in_no_module = {"rows-elsewhere", "picklable", "import-light", "import-fast"}
    assert statuses == {name: "skipped" if name in in_no_module else "passed" for name in statuses}
    (tmp_path / "train.csv").unlink()
    result = run(str(tmp_path / "*.toml"))
    assert result.exit_code == 1
    assert "✗  rows-well-formed" in result.stdout
    assert "task local/noise, from " in result.stdout


def test_a_known_failure_can_be_expected_with_its_reason() -> None:
    result = run("toys/careless", "--expect", "licence-and-source=legal answers in May")
    assert result.exit_code == 0
    assert "failed as expected: licence is 'TODO' (expected: legal answers in May)" in result.stdout
    assert "say why" in str(refused("toys/careless", "--expect", "licence-and-source"))
    assert "no check of careless is called 'licence'" in str(refused("toys/careless", "--expect", "licence=later"))


def test_a_component_is_found_by_its_name_and_tried_with_its_options() -> None:
    assert "sampler defaults/temperature, from mtcore" in run("temperature", "--set", "tau=3.33").stdout
    assert "tau: Input should be greater than 0" in str(refused("defaults/temperature", "--set", "tau=0"))
    assert "task 'toys/careful' has no options" in str(refused("toys/careful", "--set", "tau=2.0"))


def test_a_task_is_tried_with_the_tokenizer_of_a_model(base_folder: Path) -> None:
    assert run("toys/careful", "--model", str(base_folder)).exit_code == 0
    assert isinstance(refused("toys/careful", "--model", "nowhere"), ModelError)
    assert str(refused("temperature", "--model", str(base_folder))) == "--model is for tasks, and temperature names none"


def test_a_name_of_two_kinds_needs_the_kind() -> None:
    assert str(refused("share")) == "'share' is a sampler and a scheduler: say which with --kind sampler"
    assert "first: Field required" in str(refused("share", "--kind", "sampler"))
    assert run("share", "--kind", "sampler", "--set", "first=toys/0").exit_code == 0
    failed = run("toys/share", "--kind", "scheduler", "--json")
    assert [c["name"] for c in json.loads(failed.stdout)[0]["checks"] if c["status"] == "failed"] == ["every-task-trained"]


def test_a_pattern_takes_all_that_a_plugin_brings() -> None:
    told = json.loads(run("toys/*", "--set", "first=toys/0", "--kind", "sampler", "--json").stdout)
    assert [(t["kind"], t["name"]) for t in told] == [("sampler", "toys/share")]


def test_what_is_not_there_is_told_with_the_nearest_names() -> None:
    error = refused("temprature")
    assert isinstance(error, UnknownName)
    assert str(error).startswith("nothing is called 'temprature'; did you mean 'temperature'")
    assert "Not loaded: broken (broken): failed: ModuleNotFoundError" in str(error)
    assert isinstance(refused("toys/careful", "--kind", "sampler"), ConfigError)
    assert isinstance(refused("broken/task"), PluginError)
    assert isinstance(refused("broken/*"), PluginError)


def test_without_a_name_it_lists_what_can_be_checked() -> None:
    listed = json.loads(run("--json").stdout)
    assert {"name": "toys/careful", "kind": "task", "distribution": "toys"} in listed
    assert {e["kind"] for e in listed} == {"task", "filter", "sampler", "scheduler", "method", "launcher", "observer"}
    result = run("--kind", "sampler")
    assert "toys/share" in result.stdout
    assert "toys/careful" not in result.stdout
    assert "not loaded: broken (broken)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["toys/careful"], 0), (["toys/careless"], 1), (["nobody/knows"], 2), (["--kind", "x"], 2)]
)
def test_the_exit_code_says_whether_a_check_failed_or_the_command_was_wrong(
    site: Path, arguments: list[str], code: int, forks: Any, tmp_path: Path
) -> None:
    done = forks.mtcore(tmp_path, "check", *arguments, PYTHONPATH=str(site))
    assert done.returncode == code, done.stderr


def test_checking_a_task_does_not_load_torch(site: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-X", "importtime", "-c", "from mtcore.cli import main; main()", "check", "toys/careful"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "mtcore.testing" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "pytest"}
