"""Kills at every file event, torn files, a full disk: the same call goes on by itself, to the same bits."""

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mtcore.bundle import read_bundle
from mtcore.training.checkpoint import is_complete

KILLED = -9


class Fits:
    """Fits of toys, each of which begins at once and is killed where it is told to be."""

    def __init__(self, forks: Any, base_folder: Path) -> None:
        self.run, self.base = forks.run, str(base_folder)

    def fit(self, folder: Path, *arguments: Any, **job: Any) -> dict[str, Any]:
        return self.run("fit", folder, self.base, *arguments, **job)

    def finish(self, folder: Path, **job: Any) -> str:
        """What a fit leaves that is not killed."""
        ended = self.fit(folder, **job)
        assert set(ended["ends"]) == {0}, "\n".join(ended["stderr"])
        return weights(folder / "bundle")


@pytest.fixture(scope="module")
def fits(forks: Any, base_folder: Path) -> Fits:
    return Fits(forks, base_folder)


def weights(bundle: Path) -> str:
    """SHA-256 of all parameters of a bundle that is whole."""
    read_bundle(bundle)
    total = hashlib.sha256()
    with safe_open(bundle / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            total.update(name.encode() + file.get_tensor(name).numpy().tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def whole(fits: Fits, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The weights of a run that nothing disturbs, and its file events."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = fits.fit(folder)
    assert ended["ends"] == [0], ended["stderr"]
    return weights(folder / "bundle"), ended["events"]


def assert_no_checkpoint_is_broken(work: Path) -> None:
    """What a kill leaves is complete, or does not look like a checkpoint."""
    for path in work.glob("ckpt-*"):
        assert ".tmp-" in path.name or path.suffix == ".old" or is_complete(path), path


def test_a_run_killed_at_any_file_event_goes_on_to_the_same_bits(fits, whole, tmp_path):
    bits, events = whole
    assert len(events) > 30
    for kill, event in enumerate(events, 1):
        folder = tmp_path / str(kill)
        # where a file is about to be opened, those that were just written are torn besides, as by a power cut
        killed = fits.fit(folder, kill=kill, tear=event.startswith("open"))
        assert killed["ends"] == [KILLED], killed["stderr"]
        assert_no_checkpoint_is_broken(folder / "work")
        assert fits.finish(folder) == bits, event
        assert not [p.name for p in folder.rglob("*") if ".tmp" in p.name or p.name.endswith((".old", ".corrupt"))]


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(fits, whole, tmp_path):
    folder, launches = tmp_path / "run", 0
    while True:  # each launch gets one event further than the one before it
        launches += 1
        if fits.fit(folder, kill=launches)["ends"] != [KILLED]:
            break
    assert launches > 8
    assert weights(folder / "bundle") == whole[0]


def kill_points(events, count):
    """Some of the events, spread evenly, the one before a checkpoint takes its name among them."""
    renames = [number for number, event in enumerate(events, 1) if event.startswith("os.rename")]
    return sorted({*range(2, len(events), len(events) // count), renames[1]})


@pytest.fixture(scope="module")
def whole_of_two(fits: Fits, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The same of a run of two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    ended = fits.fit(folder, processes=2)
    assert ended["ends"] == [0, 0], ended["stderr"]
    return weights(folder / "bundle"), ended["events"]


@pytest.mark.parametrize("victim", [0, 1, -1], ids=["the first", "the second", "both"])
def test_where_one_of_two_processes_is_killed_the_other_ends_and_both_go_on_to_the_same_bits(fits, whole_of_two, tmp_path, victim):
    bits, events = whole_of_two
    for kill in kill_points(events, 2):
        folder = tmp_path / str(kill)
        ends = fits.fit(folder, processes=2, kill=kill, victim=victim)["ends"]
        assert "hung" not in ends
        assert KILLED in ends
        assert fits.finish(folder, processes=2) == bits, events[kill - 1]


BREAKS = {
    "torn weights": lambda path: os.truncate(path / "tensors.safetensors", 5000),
    "a cut state": lambda path: os.truncate(path / "state.json", 100),
    "no manifest": lambda path: (path / "MANIFEST.json").unlink(),
}


@pytest.mark.parametrize("damage", BREAKS.values(), ids=BREAKS)
def test_a_broken_newest_checkpoint_costs_time_and_no_bit(fits, whole, tmp_path, damage):
    bits, events = whole
    folder = tmp_path / "run"
    last = max(number for number, event in enumerate(events, 1) if event.startswith("os.rename work"))
    fits.fit(folder, kill=last)
    newest = max((p for p in (folder / "work").glob("ckpt-*") if ".tmp-" not in p.name), key=lambda p: int(p.name[5:]))
    damage(newest)
    ended = fits.fit(folder)
    assert ended["ends"] == [0]
    assert "broken checkpoints: " + newest.name in ended["stdout"][0]
    assert weights(folder / "bundle") == bits
    assert newest.with_name(newest.name + ".corrupt").is_dir()


def test_where_every_checkpoint_is_broken_the_work_starts_anew_and_says_so(fits, whole, tmp_path):
    bits, events = whole
    folder = tmp_path / "run"
    fits.fit(folder, kill=len(events))
    for path in (folder / "work").glob("ckpt-*"):
        (path / "tensors.safetensors").write_bytes(b"")
    ended = fits.fit(folder)
    assert ended["ends"] == [0]
    assert "this work starts anew" in ended["stdout"][0]
    assert weights(folder / "bundle") == bits


def test_a_full_disk_stops_the_run_with_a_sentence_and_leaves_the_last_checkpoint(fits, whole, tmp_path):
    bits, events = whole
    folder = tmp_path / "run"
    second = [number for number, event in enumerate(events, 1) if event.startswith("os.rename work/ckpt-1.tmp")]
    fits.fit(folder, kill=second[0])
    full = fits.fit(folder, 20_000)
    assert full["ends"] == [1]
    assert "mtcore.errors.RunError: ckpt-1 cannot be saved in" in full["stderr"][0]
    assert "type the same command again" in full["stderr"][0]
    assert [p.name for p in (folder / "work").glob("ckpt-*")] == ["ckpt-0"]
    assert is_complete(folder / "work" / "ckpt-0")
    assert fits.finish(folder) == bits


# --- the command ------------------------------------------------------------------------------------------------------------------------

TASK = """
name = "{name}"
output = "binary"
input = "single-sentence"
instruction = "Is it {name}?"
template = "{{text}}\\nAnswer: "
words = {{ no = "no", yes = "yes" }}
metric = "accuracy"
licence = "none"
source = "made up"

[rows]
train = "{name}-train.csv"
validation = "{name}-validation.csv"
"""

RUN = """
model = "{model}"
tasks = ["one.toml", "two.toml", "three.toml"]
observers = []
method = {{ use = "text2text", max_length = 64, batch_tokens = 512 }}
scheduler = {{ use = "two-stage", learning_rate = 1e-2, examples_per_step = 8, stage2_epochs = 1 }}
reference = {{ use = "single-task", learning_rate = 1e-2, examples_per_step = 8, epochs = 2 }}

[resource]
"local/one" = "high"
"""


def write_run(folder: Path, model: str) -> None:
    folder.mkdir()
    (folder / "run.toml").write_text(RUN.format(model=model), encoding="utf-8")
    for name in ("one", "two", "three"):
        (folder / f"{name}.toml").write_text(TASK.format(name=name), encoding="utf-8")
        for split, rows in (("train", 16), ("validation", 8)):
            lines = [f"{split} {number} of {name},{('no', 'yes')[number % 2]}" for number in range(rows)]
            (folder / f"{name}-{split}.csv").write_text("\n".join(["text,answer", *lines]) + "\n", encoding="utf-8")


def left_by(folder: Path) -> Any:
    """The scores of a finished run's tasks, alone and together, and the bits of its weights."""
    report = json.loads((folder / "runs/run/report.json").read_text(encoding="utf-8"))
    tasks = [
        {key: task[key] for key in ("name", "score", "reference", "qualified")} for group in report["groups"] for task in group["tasks"]
    ]
    references = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("runs/references/*/reference.json"))]
    alone = [(r["task"], r["score"], r["saturation_epoch"], r["answers"]) for r in references]
    return tasks, alone, {str(path.relative_to(folder)): weights(path.parent) for path in folder.glob("runs/run/**/mtcore.json")}


def test_a_command_killed_a_dozen_times_ends_as_if_it_had_not_been(forks, base_folder, tmp_path):
    box = {**os.environ, "MTCORE_PLUGINS": ""}
    write_run(tmp_path / "whole", str(base_folder))
    undisturbed = forks.run("command", tmp_path / "whole", "train", "run.toml", environment=box)
    assert undisturbed["ends"] == [0], undisturbed["stderr"]
    expected = left_by(tmp_path / "whole")
    assert (len(expected[0]), len(expected[1]), len(expected[2])) == (3, 3, 1)
    folder, moments, kills = tmp_path / "killed", random.Random(7), 0
    write_run(folder, str(base_folder))
    while kills < 12:
        kill = moments.randint(3, len(undisturbed["events"]) // 4)
        ended = forks.run("command", folder, "train", "run.toml", environment=box, kill=kill)
        if ended["ends"] != [KILLED]:
            break
        kills += 1
    assert kills >= 8
    last = forks.run("command", folder, "train", "run.toml", environment=box)
    assert last["ends"] == [0], last["stderr"]
    assert left_by(folder) == expected
