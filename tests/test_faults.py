"""Kills at every file event, torn files, a full disk: the same call goes on by itself, to the same bits."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mtcore.bundle import read_bundle
from mtcore.training.checkpoint import is_complete

KILLED = -9


class Forks:
    """Runs of `faults/forks.py`: each begins at once, and is killed where it is told to be."""

    def __init__(self, base_folder: Path) -> None:
        self.base = str(base_folder)
        command = [sys.executable, str(Path(__file__).parent / "faults" / "forks.py")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, scene: str, folder: Path, *arguments: Any, **job: Any) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"scene": scene, "folder": str(folder), "arguments": arguments, **job}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def fit(self, folder: Path, *arguments: Any, **job: Any) -> dict[str, Any]:
        return self.run("fit", folder, self.base, *arguments, **job)

    def finish(self, folder: Path, **job: Any) -> str:
        """What a run leaves that is not killed."""
        ended = self.fit(folder, **job)
        assert set(ended["ends"]) == {0}, "\n".join(ended["printed"])
        return weights(folder / "bundle")


@pytest.fixture(scope="module")
def forks(base_folder: Path) -> Iterator[Forks]:
    forks = Forks(base_folder)
    yield forks
    forks.process.stdin.close()
    assert forks.process.wait(timeout=30) == 0


def weights(bundle: Path) -> str:
    """SHA-256 of all parameters of a bundle that is whole."""
    read_bundle(bundle)
    total = hashlib.sha256()
    with safe_open(bundle / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            total.update(name.encode() + file.get_tensor(name).numpy().tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The weights of a run that nothing disturbs, and its file events."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = forks.fit(folder)
    assert ended["ends"] == [0], ended["printed"]
    return weights(folder / "bundle"), ended["events"]


def assert_no_checkpoint_is_broken(work: Path) -> None:
    """What a kill leaves is complete, or does not look like a checkpoint."""
    for path in work.glob("ckpt-*"):
        assert ".tmp-" in path.name or path.suffix == ".old" or is_complete(path), path


def test_a_run_killed_at_any_file_event_goes_on_to_the_same_bits(forks, whole, tmp_path):
    bits, events = whole
    assert len(events) > 40
    for kill in range(1, len(events) + 1):
        folder = tmp_path / str(kill)
        killed = forks.fit(folder, kill=kill)
        assert killed["ends"] == [KILLED], killed["printed"]
        assert_no_checkpoint_is_broken(folder / "work")
        assert forks.finish(folder) == bits, events[kill - 1]
        assert not [p.name for p in folder.rglob("*") if ".tmp" in p.name or p.name.endswith((".old", ".corrupt"))]


def test_a_file_that_was_being_written_when_the_power_went_is_not_missed(forks, whole, tmp_path):
    bits, events = whole
    torn = [number for number, event in enumerate(events, 1) if "tmp" in event and not event.startswith("os.re")]
    for kill in torn:
        folder = tmp_path / str(kill)
        assert forks.fit(folder, kill=kill, tear=True)["ends"] == [KILLED]
        assert forks.finish(folder) == bits, events[kill - 1]


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(forks, whole, tmp_path):
    folder, launches = tmp_path / "run", 0
    while True:  # each launch gets one event further than the one before it
        launches += 1
        if forks.fit(folder, kill=launches)["ends"] != [KILLED]:
            break
    assert launches > 8
    assert weights(folder / "bundle") == whole[0]


def kill_points(events, count):
    """Some of the events, spread evenly, the one before a checkpoint takes its name among them."""
    renames = [number for number, event in enumerate(events, 1) if event.startswith("os.rename")]
    return sorted({*range(2, len(events), len(events) // count), renames[1]})


@pytest.mark.parametrize("victim", [0, 1, -1], ids=["the first", "the second", "both"])
def test_where_one_of_two_processes_is_killed_the_other_ends_and_both_go_on_to_the_same_bits(forks, tmp_path, victim):
    undisturbed = forks.fit(tmp_path / "whole", processes=2)
    assert undisturbed["ends"] == [0, 0], undisturbed["printed"]
    bits = weights(tmp_path / "whole" / "bundle")
    for kill in kill_points(undisturbed["events"], 3):
        folder = tmp_path / str(kill)
        ends = forks.fit(folder, processes=2, kill=kill, victim=victim)["ends"]
        assert "hung" not in ends
        assert KILLED in ends
        assert 0 not in ends or victim != -1
        assert forks.finish(folder, processes=2) == bits


BREAKS = {
    "torn weights": lambda path: os.truncate(path / "tensors.safetensors", 5000),
    "a cut state": lambda path: os.truncate(path / "state.json", 100),
    "no manifest": lambda path: (path / "MANIFEST.json").unlink(),
}


@pytest.mark.parametrize("damage", BREAKS.values(), ids=BREAKS)
def test_a_broken_newest_checkpoint_costs_time_and_no_bit(forks, whole, tmp_path, damage):
    bits, events = whole
    folder = tmp_path / "run"
    last = max(number for number, event in enumerate(events, 1) if event.startswith("os.rename work"))
    forks.fit(folder, kill=last)
    newest = max((p for p in (folder / "work").glob("ckpt-*") if ".tmp-" not in p.name), key=lambda p: int(p.name[5:]))
    damage(newest)
    ended = forks.fit(folder)
    assert ended["ends"] == [0]
    assert "broken checkpoints: " + newest.name in ended["printed"][0]
    assert weights(folder / "bundle") == bits
    assert newest.with_name(newest.name + ".corrupt").is_dir()


def test_where_every_checkpoint_is_broken_the_work_starts_anew_and_says_so(forks, whole, tmp_path):
    bits, events = whole
    folder = tmp_path / "run"
    forks.fit(folder, kill=len(events))
    for path in (folder / "work").glob("ckpt-*"):
        (path / "tensors.safetensors").write_bytes(b"")
    ended = forks.fit(folder)
    assert ended["ends"] == [0]
    assert "this work starts anew" in ended["printed"][0]
    assert weights(folder / "bundle") == bits


def test_a_full_disk_stops_the_run_with_a_sentence_and_leaves_the_last_checkpoint(forks, whole, tmp_path):
    bits, events = whole
    folder = tmp_path / "run"
    second = [number for number, event in enumerate(events, 1) if event.startswith("os.rename work/ckpt-1.tmp")]
    forks.fit(folder, kill=second[0])
    full = forks.fit(folder, 20_000)
    assert full["ends"] == [1]
    assert "mtcore.errors.RunError: ckpt-1 cannot be saved in" in full["printed"][0]
    assert "type the same command again" in full["printed"][0]
    assert [p.name for p in (folder / "work").glob("ckpt-*")] == ["ckpt-0"]
    assert is_complete(folder / "work" / "ckpt-0")
    assert forks.finish(folder) == bits
