"""A hundred task plugins at once: all are found and planned, and a broken one among them disturbs no other."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COUNT = 100
BENCHMARK = Path(__file__).parent / "benchmarks" / "bench_plugins.py"
NAMES = [f"many-{number:03}/praise" for number in range(1, COUNT + 1)]
BROKEN = 42


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the metadata and modules of a hundred installed distributions: the benchmark's."""
    spec = importlib.util.spec_from_file_location("bench_plugins", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    folder = tmp_path_factory.mktemp("many") / "site"
    assert benchmark.install_tasks(folder, COUNT) == NAMES
    (folder.parent / "run.toml").write_text(benchmark.RUN, encoding="utf-8")
    return folder


@pytest.fixture
def with_a_broken_one(site: Path):
    """The same folder while one of its modules cannot be imported."""
    module = site / f"many_{BROKEN:03}.py"
    whole = module.read_text(encoding="utf-8")
    module.write_text("import not_there_at_all", encoding="utf-8")
    yield site
    module.write_text(whole, encoding="utf-8")


def mtcore(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("MTCORE_")}
    environment = {**keep, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}  # a module written twice in a second must be read twice
    command = [sys.executable, "-m", "mtcore", *arguments]
    return subprocess.run(command, env=environment, cwd=site.parent, capture_output=True, text=True, timeout=120)


def answered(run: subprocess.CompletedProcess[str]) -> Any:
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_hundred_plugins_are_found_and_their_tasks_listed(site: Path) -> None:
    found = {plugin["name"]: plugin["status"] for plugin in answered(mtcore(site, "plugins", "--json"))}
    assert {name: status for name, status in found.items() if name.startswith("many-")} == {
        name.partition("/")[0]: "loaded" for name in NAMES
    }
    listed = [task["name"] for task in answered(mtcore(site, "tasks", "--json"))]
    assert [name for name in listed if name.startswith("many-")] == NAMES


def test_a_hundred_tasks_stand_in_one_plan_with_equal_shares(site: Path) -> None:
    plan = mtcore(site, "plan", "run.toml", "--json")
    (group,) = answered(plan)["groups"]
    assert group["tasks"] == NAMES
    (mixture,) = [stage for stage in group["stages"] if stage["name"] == "mixture"]
    assert list(mixture["tasks"]) == NAMES
    assert [task["draws"] for task in mixture["tasks"].values()] == [36] * COUNT


def test_what_is_said_once_of_a_hundred_tasks_is_one_line(site: Path) -> None:
    told = mtcore(site, "plan", "run.toml")
    warnings = told.stderr.splitlines()
    assert warnings
    assert len(warnings) < 5, told.stderr[:2000]


def test_one_broken_plugin_among_a_hundred_is_one_line_and_stops_only_the_run_that_names_it(with_a_broken_one: Path) -> None:
    broken, others = NAMES[BROKEN - 1], [name for name in NAMES if name != NAMES[BROKEN - 1]]
    found = {plugin["name"]: plugin["status"] for plugin in answered(mtcore(with_a_broken_one, "plugins", "--json"))}
    assert [name for name, status in found.items() if status != "loaded"] == [f"many-{BROKEN:03}"]
    tasks = mtcore(with_a_broken_one, "tasks")
    assert tasks.returncode == 0
    assert [line for line in tasks.stderr.splitlines() if "not_there_at_all" in line] == tasks.stderr.splitlines()
    assert len(tasks.stderr.splitlines()) == 1
    plan = answered(mtcore(with_a_broken_one, "plan", "run.toml", "--json"))
    assert plan["groups"][0]["tasks"] == others
    assert [f"many-{BROKEN:03}" in warning for warning in plan["warnings"]].count(True) == 1, "a pattern that would have taken it tells so"
    named = mtcore(with_a_broken_one, "plan", "run.toml", "--set", f'tasks=["{broken}"]')
    assert named.returncode == 2
    assert "not_there_at_all" in named.stderr
