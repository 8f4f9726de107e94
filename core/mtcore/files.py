"""Small files of a run: written whole or not at all; one process at a time works in a folder."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtcore.errors import RunLocked


def write_text(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False))


@contextmanager
def locked(folder: Path, *, wanted: bool = True) -> Iterator[None]:
    """Hold the folder's lock. Raises RunLocked where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not wanted:
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunLocked(f"another process is at work in {folder}; wait for it, stop it, or give the run file another name") from None
        yield
