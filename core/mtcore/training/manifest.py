"""The manifest of a checkpoint: its files with sizes and hashes, and what it was made from; whether a folder is what its manifest says."""

import hashlib
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mtcore import __version__
from mtcore.errors import RunError
from mtcore.types import Frozen

MANIFEST = "MANIFEST.json"


class FileRecord(Frozen):
    size: int
    sha256: str


class Manifest(Frozen):
    """What a checkpoint is."""

    files: dict[str, FileRecord]
    """Every other file, by its path in the folder."""
    about: dict[str, Any]
    """For people: where in a run it was saved, from what, by which versions."""


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write down the files of a folder as they are now."""
    names = _names(folder)
    files = {n: FileRecord(size=(folder / n).stat().st_size, sha256=h) for n, h in zip(names, _hashes(folder, names), strict=True)}
    versions = {
        "mtcore": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    (folder / MANIFEST).write_text(Manifest(files=files, about={**versions, **about}).model_dump_json(indent=1), encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read what a checkpoint says of itself, unverified. Raises RunError where it has no manifest, or a damaged one."""
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is no complete checkpoint: it has no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise RunError(f"{path / MANIFEST} cannot be read ({str(error).splitlines()[0]})") from None


def problem(folder: Path, needed: Iterable[str]) -> str:
    """What keeps a folder from being what its manifest says, or from holding what is needed; empty where nothing does."""
    try:
        listed = read_manifest(folder).files
    except RunError as error:
        return str(error)
    if strange := set(_names(folder)) ^ set(listed):
        name = min(strange)
        return f"{name} is missing" if name in listed else f"{name} is not in the manifest"
    return difference(folder, {**dict.fromkeys(needed), **listed})


def difference(folder: Path, listed: Mapping[str, FileRecord | None]) -> str:
    """What is wrong with the first file that is not as listed; empty where all are."""
    for name, record in listed.items():
        if record is None:
            return f"{name} is not in the manifest"
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (size := (folder / name).stat().st_size) != record.size:
            return f"{name} has {size} bytes of {record.size}"
    for (name, record), found in zip(listed.items(), _hashes(folder, listed), strict=True):
        if record is not None and found != record.sha256:
            return f"{name} is not what was written"
    return ""


def _names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _hashes(folder: Path, names: Collection[str]) -> list[str]:
    """Hashes of files, several at once: an engine leaves one for each process, of many gigabytes."""
    with ThreadPoolExecutor(max(1, min(len(names), os.cpu_count() or 1))) as threads:
        return list(threads.map(_sha256, (folder / name for name in names)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
