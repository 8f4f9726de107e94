"""Small files of a run: written whole or not at all; one process at a time works in a folder."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mtcore.errors import RunError, RunLocked

Model = TypeVar("Model", bound=BaseModel)


def write_text(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False))


def read_model(path: Path, model: type[Model]) -> Model:
    """Read what was written as JSON. Raises RunError where the file is damaged or from another version."""
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} is damaged or from another version of mtcore; delete it to have its work done again ({str(error).splitlines()[0]})"
        ) from None


@contextmanager
def locked(folder: Path, *, wanted: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the folder's lock. Where another process has it, call `on_wait` and wait for that one, or raise RunLocked."""
    folder.mkdir(parents=True, exist_ok=True)
    if not wanted:
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if on_wait is not None:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
                return
            raise RunLocked(f"another process is at work in {folder}; wait for it, stop it, or give the run file another name") from None
        yield
