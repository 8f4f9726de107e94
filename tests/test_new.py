"""What `mtcore new` writes works before it is touched: it is clean, keeps its promises, passes its own tests, and travels as a wheel."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtcore.cli.new import KINDS, fold, new
from mtcore.errors import ConfigError

ROOT = Path(__file__).parent.parent
FOLDERS = {"task": "refunds", "sampler": "sampler-refunds", "scheduler": "scheduler-refunds", "filter": "filter-refunds"}
LONGEST = "customer-service-refunds-now"


def python(*arguments: str, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with `path` in front of what is importable, no other plugin and no data folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MTCORE_", "PYTEST_"))}
    environment |= {"MTCORE_PLUGINS": "refunds"} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def written(kind: str, folder: Path, name: str = "refunds") -> str:
    result = CliRunner().invoke(new, [kind, name, "--folder", str(folder)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(new, arguments)
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_own_tests(kind: str, tmp_path: Path) -> None:
    written(kind, tmp_path)
    folder = tmp_path / FOLDERS[kind]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", folder=folder, path=folder)
    assert "passed" in done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    # what is asked of samplers that decide by the ledger has nothing to ask of one that does not
    assert all("needs nothing of the ledger" in line or "decides once" in line for line in skipped), skipped
    assert not skipped or kind == "sampler"


@pytest.mark.parametrize("name", ["x", LONGEST])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_clean(kind: str, name: str, tmp_path: Path) -> None:
    written(kind, tmp_path, name)
    for command in (["check"], ["format", "--check"]):
        python("-m", "ruff", *command, "--no-cache", ".", folder=tmp_path)


def test_a_wheel_of_a_new_task_works_where_its_folder_is_not(tmp_path: Path) -> None:
    written("task", tmp_path)
    site, away = tmp_path / "site", tmp_path / "away"
    away.mkdir()
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(away), ".", folder=tmp_path / "refunds")
    (wheel,) = away.glob("*.whl")
    assert wheel.name == "mtcore_refunds-0.1.0-py3-none-any.whl"
    python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel), folder=away)
    (tmp_path / "refunds").rename(tmp_path / "gone")
    command = ["-c", "from mtcore.cli import main; main()"]
    tasks = json.loads(python(*command, "tasks", "--count", "--json", folder=away, path=site).stdout)
    (mine,) = [task for task in tasks if task["name"] == "refunds/refunds"]
    assert (mine["train_rows"], mine["validation_rows"], mine["status"]) == (64, 24, "read")
    (told,) = json.loads(python(*command, "check", "refunds/refunds", "--json", folder=away, path=site).stdout)
    assert Counter(check["status"] for check in told["checks"]) == {"passed": 19}
    plugins = json.loads(python(*command, "plugins", "--json", folder=away, path=site).stdout)
    assert ["mtcore-refunds", "0.1.0", "loaded"] in [[p["distribution"], p["version"], p["status"]] for p in plugins]


@pytest.mark.parametrize("kind", ["sampler", "scheduler", "filter"])
def test_a_new_component_is_made_a_wheel_of_its_module(kind: str, tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    written(kind, tmp_path, "Refunds_by Hand")
    builder = WheelBuilder(str(tmp_path / f"{kind}-refunds-by-hand"))
    assert [file.distribution_path for file in builder.recurse_included_files()] == ["mtcore_refunds_by_hand.py"]
    assert builder.metadata.core.name == f"mtcore-{kind}-refunds-by-hand"
    assert builder.metadata.core.entry_points == {"mtcore": {"refunds-by-hand": "mtcore_refunds_by_hand"}}


def test_the_wheel_of_mtcore_holds_every_template() -> None:
    from hatchling.builders.wheel import WheelBuilder

    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    templates = {path.relative_to(ROOT / "core").as_posix() for path in (ROOT / "core/mtcore/templates").rglob("*") if path.is_file()}
    assert len(templates) == 8 + 3 * 4 - 1
    assert templates <= packed


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_shows_the_three_places_to_edit_and_the_commands_to_type(kind: str, tmp_path: Path) -> None:
    screen = written(kind, tmp_path)
    (module,) = [path for path in (tmp_path / FOLDERS[kind]).rglob("*.py") if "tests" not in path.parts]
    assert re.findall(r"# (\d)\. ", module.read_text(encoding="utf-8")) == ["1", "2", "3"]
    part = module.relative_to(tmp_path / FOLDERS[kind])
    assert f"{part}  the {kind}: edit the three places that are numbered" in re.sub("  +", "  ", screen)
    assert screen.endswith(
        f"next:\n  pip install -e {tmp_path / FOLDERS[kind]}\n  mtcore check refunds/refunds\n  pytest {tmp_path / FOLDERS[kind]}\n"
    )
    shown = [tmp_path / FOLDERS[kind] / line.split()[0] for line in screen.split("\n\n")[1].splitlines()]
    assert all(path.exists() for path in shown)
    files = [path for path in (tmp_path / FOLDERS[kind]).rglob("*") if path.is_file()]
    assert all(any(path == part or part in path.parents for part in shown) for path in files)


def test_the_pyproject_of_a_new_plugin_is_short_and_complete(tmp_path: Path) -> None:
    written("task", tmp_path)
    text = (tmp_path / "refunds/pyproject.toml").read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line]) <= 15
    assert tomllib.loads(text)["project"]["entry-points"] == {"mtcore": {"refunds": "mtcore_refunds"}}


def test_the_rows_of_a_new_task_are_balanced_and_not_read_off_one_word() -> None:
    rows = [
        json.loads(line)
        for path in sorted((ROOT / "core/mtcore/templates/task").rglob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert Counter(row["label"] for row in rows) == {"yes": 56, "no": 56}
    words = Counter((word, row["label"]) for row in rows for word in set(re.findall(r"[a-z]+", row["text"].lower())))
    best = max((words[word, "yes"] - words[word, "no"]) / 56 for word, _ in words)
    assert best < 0.5


def test_names_are_folded_to_lower_case_and_hyphens(tmp_path: Path) -> None:
    assert fold(" Refund_Requests.v2 ") == "refund-requests-v2"
    screen = written("task", tmp_path, "Refund_Requests")
    assert screen.startswith("'Refund_Requests' becomes 'refund-requests'")
    assert "class RefundRequestsTask(TaskAdapter)" in (tmp_path / "refund-requests/mtcore_refund_requests/__init__.py").read_text()


@pytest.mark.parametrize("name", ["", "9lives", "退款", "a/b", "../up", "-", "a!", "x" * 29, "naïve"])
def test_a_name_that_no_module_can_have_is_refused(name: str, tmp_path: Path) -> None:
    assert "cannot name a plugin" in refused("task", "--folder", str(tmp_path), "--", name)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    written("filter", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "exists, and nothing is overwritten" in refused("filter", "refunds", "--folder", str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_name_that_is_taken_is_refused_with_its_owner(tmp_path: Path) -> None:
    assert "a plugin called 'defaults' is installed, from mtcore" in refused("task", "Defaults", "--folder", str(tmp_path))
    assert "a sampler called 'temperature' is installed, from mtcore" in refused("sampler", "temperature", "--folder", str(tmp_path))


def test_the_name_of_tasks_that_files_declare_is_refused(tmp_path: Path) -> None:
    assert "local/NAME is what tasks that files declare are called" in refused("task", "local", "--folder", str(tmp_path))


def test_a_place_that_cannot_be_written_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "choose another place with --folder" in refused("task", "refunds", "--folder", str(tmp_path / "file"))


def test_a_name_whose_module_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mtcore_refunds.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert "a module called 'mtcore_refunds' can be imported already" in refused("task", "refunds", "--folder", str(tmp_path))
