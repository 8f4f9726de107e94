"""Toys that many tests share: a tiny base with random weights, a small task, rows on disk."""

import gzip
import json
import os
from collections.abc import Iterable, Mapping
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


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-architecture base with random weights and a byte-level tokenizer of 400 tokens."""
    return toy_base(tmp_path_factory.mktemp("bases") / "toy", context=256)


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
