"""Files and folders of a run: written whole or not at all, and on the disk when they are said to be; one process at a time works in a folder."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mtcore.errors import RunError, RunLocked

Model = TypeVar("Model", bound=BaseModel)


def write_text(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader sees the old file or the new one, after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


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


def put_folder(new: Path, place: Path) -> None:
    """Put the folder `new` in `place`, synced to disk first; an earlier one stands aside as `place.old` until the new one is there."""
    for path in new.rglob("*"):
        sync(path)
    sync(new)
    if place.exists():
        shutil.rmtree(_aside(place), ignore_errors=True)
        place.rename(_aside(place))
    new.rename(place)
    sync(place.parent)
    shutil.rmtree(_aside(place), ignore_errors=True)


def settle_folder(place: Path) -> None:
    """Bring a `put_folder` that was killed to its end: back to the earlier folder where the new one is not in place."""
    if _aside(place).exists():
        if place.exists():
            shutil.rmtree(_aside(place))
        else:
            _aside(place).rename(place)


def _aside(place: Path) -> Path:
    return place.with_name(f"{place.name}.old")


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(folder: Path) -> None:
    """Make the folder where it is missing. Raises RunError where it cannot be made or written to: before hours of work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written to ({error.strerror}: {error.filename}). Name another folder with `out =`, or have its owner, its rights "
            "or its file system changed"
        ) from None


@contextmanager
def locked(folder: Path, *, wanted: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the folder's lock. Where another process has it, call `on_wait` and wait for that one, or raise RunLocked.

    Raises RunError where the folder cannot be written to.
    """
    require_writable(folder)
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
