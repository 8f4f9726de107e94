"""What many tests share: a tiny base with random weights, a small task, rows on disk, commands that begin at once."""

import gc
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from mtcore.testing import toy_base
from mtcore.types import TaskSpec

# toys are too small to be worth a second thread, and two test processes on two cores would fight over them
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a build server must not fail by luck; anywhere else new examples are welcome
settings.register_profile("build", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("build")


def pytest_collection_finish() -> None:
    """Spare collections of garbage what was imported: every fit ends with one, which would take longer than the fit of a toy."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-architecture base with random weights and a byte-level tokenizer of 400 tokens."""
    return toy_base(tmp_path_factory.mktemp("bases") / "toy", context=256)


class Forks:
    """Runs of `faults/forks.py`: each begins at once, in processes forked from one that has imported everything, and is killed where it is told."""

    def __init__(self, reports: Path) -> None:
        self.reports, self.count = reports, 0
        command = [sys.executable, str(Path(__file__).parent / "faults" / "forks.py")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, scene: str, folder: Path, *arguments: Any, **job: Any) -> dict[str, Any]:
        """What became of a job, as `faults/forks.py` describes both."""
        folder.mkdir(exist_ok=True)
        self.count += 1
        report = str(self.reports / str(self.count))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"scene": scene, "folder": str(folder), "report": report, "arguments": arguments, **job}) + "\n"
        )
        self.process.stdin.flush()
        for line in self.process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if answer["report"] == report:  # and not that of a test which did not wait for it any longer
                return answer
        raise AssertionError("faults/forks.py has ended")

    def mtcore(self, folder: Path, *arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        """`mtcore ARGUMENTS`, typed in the folder."""
        told = self.run("command", folder, *arguments, stdin=stdin, environment={**os.environ, **environment})
        return subprocess.CompletedProcess(arguments, told["ends"][0], told["stdout"][0], told["stderr"][0])

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(timeout=30) == 0


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Commands and fits that do not wait for imports, which take longer than what a toy is asked to do."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.end()


def make_spec(**changes: Any) -> TaskSpec:
    """A binary task on one field, with changes."""
    table: dict[str, Any] = {
        "name": "toy",
        "output": "binary",
        "input": "single-sentence",
        "fields": ("text",),
        "instruction": "判断情感",
        "template": "文本：{text}\n答案：",
        "words": {"0": "差", "1": "好"},
        "metric": "accuracy",
        "licence": "none",
        "source": "made up",
    }
    return TaskSpec(**{**table, **changes})


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as gzipped JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path
