"""Checkpoints that are complete or absent: tensors in safetensors, all else in JSON, a verified manifest written last."""

import errno
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mtcore.errors import RunError
from mtcore.files import put_folder, settle_folder, sync
from mtcore.training.manifest import difference, problem, read_manifest, write_manifest

STATE, TENSORS = "state.json", "tensors.safetensors"
ESSENTIAL = (STATE, TENSORS)


@dataclass(frozen=True)
class Team:
    """The processes that save and resume together; by default, one alone."""

    rank: int = 0
    size: int = 1
    agree: Callable[[str], str] = str
    """Called by all of them: returns to each, when all have called, the text of the lowest rank that brought one that is not empty."""


def save_checkpoint(
    folder: Path,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    *,
    about: Mapping[str, Any] = {},
    team: Team = Team(),
    more: Callable[[Path], None] | None = None,
) -> Path:
    """Write `folder/name` so that a kill at any moment leaves either all of it or nothing that a reader accepts.

    Every process of the team calls it. The first one's tensors and state are the team's; what others bring is kept by rank. `more` writes an
    engine's own files into the folder it is given. Where one process fails, all raise: RunError where the disk is at fault.
    """

    needed, free = sum(value.numel() * value.element_size() for value in tensors.values()), math.inf

    def begin() -> str:
        nonlocal free
        if team.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_temporaries(folder)
        free = _free(folder)
        temporary = folder / f"{name}.tmp-{secrets.token_hex(4)}"
        if team.rank == 0:
            temporary.mkdir()
        return temporary.name

    def write() -> str:
        if needed > free:  # plain before a byte is written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if team.rank == 0 or tensors:
            save_file({key: value.detach().contiguous().cpu() for key, value in tensors.items()}, temporary / _tensors(team.rank))
        if team.rank == 0:
            (temporary / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        if more is not None:
            more(temporary)
        return ""

    def flush() -> str:
        for path in temporary.rglob("*"):  # of every process, since another machine's are only there on the disk
            sync(path)
        return ""

    def finish() -> str:
        if team.rank == 0:
            write_manifest(temporary, {"processes": team.size, **about})
            put_folder(temporary, folder / name)
        return ""

    def failed(reason: str) -> str:
        return (
            f"{name} cannot be saved in {folder}: {reason}. Process {team.rank} has {needed / 1e6:,.1f} MB to write, and {free / 1e6:,.1f} MB "
            "were free there. The checkpoints before it are intact: free space, or put right what is named here, and type the same command again"
        )

    temporary = folder / _together(team, begin, failed)
    try:
        for phase in (write, flush, finish):
            _together(team, phase, failed)
    except Exception:
        if team.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            settle_folder(folder / name)
        raise
    return folder / name


def load_checkpoint(path: Path, rank: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors that a process of this rank saved, and the state. Raises RunError where they are not what was saved."""
    name = _tensors(rank)
    manifest = read_manifest(path)
    if name not in manifest.files:
        raise RunError(f"{path} holds no {name}: it was saved by {manifest.about.get('processes')} processes. Resume with as many")
    if wrong := difference(path, {part: manifest.files.get(part) for part in (name, STATE)}):
        raise RunError(f"{path} is damaged: {wrong}. Delete that folder and type the same command again")
    return load_file(path / name), json.loads((path / STATE).read_text(encoding="utf-8"))


def newest_checkpoint(
    folder: Path,
    prefix: str,
    *,
    team: Team = Team(),
    needs: Callable[[dict[str, Any]], Iterable[str]] = lambda state: (),
    tell: Callable[[str], None] = warnings.warn,
) -> Path | None:
    """The newest complete checkpoint named `prefix-N`, the same for every process of the team, all of which call it. None: start anew.

    `needs` names the checkpoints beside it without which a state is of no use: where one of them is not complete, an older one is looked for.
    A broken one is kept as `*.corrupt`, and `tell` is called with what is wrong; what a killed save left is cleared away.
    """

    def find() -> str:
        if team.rank or not folder.is_dir():
            return ""
        _drop_temporaries(folder)
        broken = []
        for path in _numbered(folder, prefix):
            if not (wrong := problem(path, ESSENTIAL) or _missing(path, needs)):
                break
            broken.append(f"{path.name} ({wrong}; kept as {_set_aside(path).name})")
        newest = next(iter(_numbered(folder, prefix)), None)
        if broken:
            go_on = f"going on from {newest.name}" if newest else "there is no older one, so that this work starts anew"
            tell(f"{folder}: broken checkpoints: {', '.join(broken)}; {go_on}")
        return newest.name if newest else ""

    name = _together(team, find, lambda reason: f"checkpoints in {folder} cannot be read: {reason}")
    return folder / name if name else None


def is_complete(path: Path) -> bool:
    """Whether the manifest and the files of a checkpoint agree: in names, sizes and hashes."""
    return not problem(path, ESSENTIAL)


def prune(folder: Path, prefix: str, keep: set[str]) -> None:
    """Delete the checkpoints `prefix-N` that are not in `keep`; one process of a team calls it."""
    for path in _numbered(folder, prefix):
        if path.name not in keep:
            path.rename(doomed := path.with_name(f"{path.name}.tmp-pruned"))  # half of a checkpoint shall not look like a broken one
            shutil.rmtree(doomed)


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """Checkpoints of that name, the newest first."""
    found = [p for p in folder.glob(f"{prefix}-*") if p.is_dir() and p.name[len(prefix) + 1 :].isdigit()]
    return sorted(found, key=lambda path: -int(path.name[len(prefix) + 1 :]))


def _free(folder: Path) -> float:
    """Bytes free where the folder is, or will be; some network file systems do not say."""
    disk = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists()))
    return disk.free if disk.total else math.inf


def _tensors(rank: int) -> str:
    return TENSORS if rank == 0 else f"tensors-rank-{rank}.safetensors"


def _missing(path: Path, needs: Callable[[dict[str, Any]], Iterable[str]]) -> str:
    """Which checkpoint beside it a complete one cannot be used without."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return next((f"it needs {name}: {wrong}" for name in needs(state) if (wrong := problem(path.with_name(name), ESSENTIAL))), "")


def _set_aside(path: Path) -> Path:
    """Keep a broken checkpoint where no reader takes it, and never in the place of an earlier one."""
    names = (f"{path.name}.corrupt" if number == 0 else f"{path.name}.{number}.corrupt" for number in count())
    aside = next(p for name in names if not (p := path.with_name(name)).exists())
    path.rename(aside)
    return aside


def _drop_temporaries(folder: Path) -> None:
    """Clear away what killed saves left; called where this process, the only one that makes them, is not saving."""
    for stale in folder.glob("*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    for aside in folder.glob("*.old"):
        settle_folder(aside.with_suffix(""))


def _together(team: Team, work: Callable[[], str], failed: Callable[[str], str]) -> str:
    """Do one phase on every process; what the first one returns is returned to all. Where one fails, all stop with what `failed` says of it."""
    said, problem, cause = "", "", None
    try:
        said = work()
    except Exception as error:
        problem, cause = failed(str(error) or type(error).__name__), error
    if problem := team.agree(problem):
        if cause is not None and not isinstance(cause, (OSError, SafetensorError, RunError)):
            raise cause  # a bug keeps its name
        raise RunError(problem) from cause
    return team.agree(said)
