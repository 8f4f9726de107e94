"""What fresh processes see of a class: what importing its module costs, and which rows it reads there."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mtcore.config import RowLimits
from mtcore.contracts import TaskAdapter
from mtcore.data.rows import digest, read_task
from mtcore.data.sources import RawRow
from mtcore.testing.check import Failed

HEAVY = ("torch", "transformers", "datasets")
FIRST = 5
HASH_SEED = "4711"
NOT_IN_A_MODULE = "it is declared in a file and stands in no module"


def measure_import(modules: Sequence[str]) -> tuple[float, list[str]]:
    """Seconds that importing modules takes in a process that has mtcore loaded, and the heavy packages that come with them."""
    seconds, heavy = _ask("said_of_import", *modules)
    return float(seconds), list(heavy)


def digest_elsewhere(cls: type[TaskAdapter], data: Path | None) -> str:
    """The digest of a task's rows as a process with another hash seed reads them."""
    return str(_ask("said_of_rows", cls.__module__, cls.__qualname__, str(data or "")))


def first_rows_elsewhere(cls: type[TaskAdapter], data: Path | None) -> list[str]:
    """The first rows of a task as read by a spawned process that was handed the class."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(first_rows, cls, data).result()


def first_rows(cls: type[TaskAdapter], data: Path | None) -> list[str]:
    """The first rows of every split, as text that can be compared."""
    adapter, told = cls(data), []
    for split in ("train", "validation", "test"):
        for row in islice(adapter.rows(split), FIRST):
            value = row.value if isinstance(row, RawRow) else row
            told.append(f"{split}: {_told(adapter, value)}")
    return told


def said_of_import(*modules: str) -> tuple[float, list[str]]:
    started = time.perf_counter()
    for module in modules:
        importlib.import_module(module)
    return time.perf_counter() - started, [name for name in HEAVY if name in sys.modules]


def said_of_rows(module: str, qualname: str, data: str) -> str:
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return digest(read_task("task", found(Path(data) if data else None), RowLimits())[0])


def answer() -> None:
    """The other side of `_ask`: call the function of this module that the command line names, and print what it returns."""
    function, *arguments = sys.argv[1:]
    with redirect_stdout(sys.stderr):
        answered = globals()[function](*arguments)
    print(json.dumps(answered))


def _ask(function: str, *arguments: str) -> Any:
    command = [sys.executable, "-c", "from mtcore.testing.fresh import answer; answer()", function, *arguments]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": HASH_SEED}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise Failed(
            f"a fresh process stops with {_last(done.stderr.splitlines())}",
            "let the class stand at the top of a module that can be imported by its name, and let importing it only define",
        )
    return json.loads(done.stdout)


def _last(lines: Sequence[str]) -> str:
    return lines[-1] if lines else "no message"


def _told(adapter: TaskAdapter, value: Any) -> str:
    try:
        return json.dumps([dict(adapter.fields(value)), adapter.answer(value)], ensure_ascii=True, sort_keys=True)
    except Exception as error:  # a malformed row is malformed everywhere
        return f"{type(error).__name__}: {error}"
