"""Files and folders are written whole or not at all, one process works in a folder, and a folder that cannot be written to is told at once."""

import fcntl
import os
import sys
import tempfile
from pathlib import Path

import pytest

from mtcore.bundle import BundleManifest, read_bundle, write_bundle
from mtcore.config import RunFile
from mtcore.errors import RunError, RunLocked
from mtcore.files import locked, put_folder, require_writable, settle_folder, write_text
from mtcore.fitting import Fitting
from mtcore.pipeline import train
from mtcore.registry import Registry


def synced_before(action, monkeypatch):
    """Do something; for every rename in it, the inodes that were synced to the disk before, and the file or folder that was renamed."""
    synced, renames, is_on = set(), [], True
    fsync = os.fsync

    def noting(descriptor):
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def hook(event, arguments):
        if is_on and event == "os.rename":
            path = Path(arguments[0])
            renames.append((frozenset(synced), {p.stat().st_ino: str(p) for p in (path, *path.rglob("*"))}))

    monkeypatch.setattr(os, "fsync", noting)
    sys.addaudithook(hook)
    action()
    is_on = False
    return renames, synced


def test_a_file_is_on_the_disk_before_it_takes_its_name_and_its_name_before_the_call_returns(tmp_path, monkeypatch):
    ((before, moved),), after = synced_before(lambda: write_text(tmp_path / "result.json", "{}"), monkeypatch)
    assert set(moved) <= before
    assert tmp_path.stat().st_ino in after


def test_a_folder_is_on_the_disk_before_it_takes_its_name_and_its_name_before_the_call_returns(tmp_path, monkeypatch):
    new = tmp_path / "new"
    (new / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (new / name).write_text(name)
    ((before, moved),), after = synced_before(lambda: put_folder(new, tmp_path / "place"), monkeypatch)
    assert len(moved) == 4
    assert set(moved) <= before
    assert tmp_path.stat().st_ino in after


def test_a_bundle_is_replaced_by_a_whole_one(tmp_path):
    manifest = BundleManifest(method="toy", options={}, tasks={}, base="toy", base_digest="")
    for text in ("first", "second"):
        write_bundle(tmp_path / "bundle", manifest, lambda folder, text=text: (folder / "weights").write_text(text))
    assert read_bundle(tmp_path / "bundle").files.keys() == {"weights"}
    assert (tmp_path / "bundle/weights").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_at_every_moment_of_a_replacement_the_earlier_folder_or_the_new_one_is_there(tmp_path):
    place, new, seen, is_on = tmp_path / "place", tmp_path / "new", [], True

    def hook(event, arguments):
        if is_on and event in ("os.rename", "os.remove", "os.rmdir"):
            whole = [p for p in (place, tmp_path / "place.old") if p.is_dir() and len(list(p.iterdir())) == 2]
            seen.append({(p / "a").read_text() for p in whole})

    for text in ("first", "second"):
        new.mkdir()
        for name in "ab":
            (new / name).write_text(text)
        if text == "second":
            sys.addaudithook(hook)
        put_folder(new, place)
    is_on = False
    assert len(seen) >= 3
    assert all(seen)


@pytest.mark.parametrize("is_new_there", [True, False])
def test_a_replacement_that_was_killed_is_brought_to_its_end(tmp_path, is_new_there):
    for name in ("place.old", "place")[: 1 + is_new_there]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    settle_folder(tmp_path / "place")
    assert [p.name for p in tmp_path.iterdir()] == ["place"]
    assert (tmp_path / "place/file").read_text() == ("place" if is_new_there else "place.old")


def test_a_folder_below_a_file_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/runs cannot be written to \(Not a directory: .*Name another folder with `out =`"):
        require_writable(tmp_path / "file" / "runs")


def as_nobody(action) -> str:
    """What an action says in a process that may not do what root may."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            action()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as said:
        return said.read()


def test_a_folder_without_the_right_to_write_is_refused_and_nothing_is_left_in_one_that_has_it():
    with tempfile.TemporaryDirectory() as name:
        mine = Path(name)
        mine.chmod(0o755 if os.geteuid() == 0 else 0o555)
        for folder in (mine, mine / "runs"):
            assert as_nobody(lambda folder=folder: require_writable(folder)).startswith(
                f"RunError: {folder} cannot be written to (Permission"
            )
        mine.chmod(0o777)
        assert as_nobody(lambda: require_writable(mine)) == "nothing"
        assert list(mine.iterdir()) == []


NOTHING = RunFile("toy", {}), Registry([], []), Fitting(lambda event: None)
"""A run that would fail at once if it were begun: there is not even a variant."""


def test_a_second_run_in_a_folder_is_refused_before_anything_is_read_or_loaded(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunLocked, match="another process is at work"):
            train(*NOTHING, tmp_path)


def test_a_run_in_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_read_or_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written to"):
        train(*NOTHING, tmp_path / "file" / "run")


def test_a_lock_ends_with_its_holder(tmp_path):
    with locked(tmp_path), pytest.raises(RunLocked), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
