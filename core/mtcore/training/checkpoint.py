"""Checkpoints that are complete or absent: tensors in safetensors, all else in JSON, a verified manifest written last."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MANIFEST = "MANIFEST.json"


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
    """Write `folder/name` so that a kill at any moment leaves either all of it or nothing that a reader accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / name, folder / f"{name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file({key: value.detach().contiguous().cpu() for key, value in tensors.items()}, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps(state, allow_nan=False))
    files = {path.name: _sync_and_hash(path) for path in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps({"files": files}))
    _sync_and_hash(temporary / MANIFEST)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync_folder(folder)
    return final


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the state of one verified checkpoint."""
    return load_file(path / "tensors.safetensors"), json.loads((path / "state.json").read_text())


def newest_checkpoint(folder: Path, prefix: str) -> Path | None:
    """The newest checkpoint named `prefix-N` whose manifest verifies; broken ones are set aside as `*.corrupt`, stale temporaries removed."""
    for stale in folder.glob("*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    for path in sorted(_numbered(folder, prefix), key=lambda p: -int(p.name.rsplit("-", 1)[1])):
        if is_complete(path):
            return path
        with suppress(FileNotFoundError):  # another process of this run may have been faster
            path.rename(path.with_name(path.name + ".corrupt"))
    return None


def is_complete(path: Path) -> bool:
    """Whether every file that the manifest lists is there with its size and hash."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        return all(_hash(path / name) == recorded for name, recorded in files.items())
    except (OSError, ValueError, KeyError):
        return False


def prune(folder: Path, prefix: str, keep: set[str]) -> None:
    """Delete the checkpoints `prefix-N` that are not in `keep`."""
    for path in _numbered(folder, prefix):
        if path.name not in keep:
            shutil.rmtree(path)


def _numbered(folder: Path, prefix: str) -> Iterator[Path]:
    return (p for p in folder.glob(f"{prefix}-*") if p.is_dir() and p.name[len(prefix) + 1 :].isdigit())


def _hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _hash(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
