"""Checkpoints are complete or absent, whatever happens to the disk or to one of several processes."""

import json
import os
import threading

import pytest
import torch

from mtcore.errors import RunError
from mtcore.training.checkpoint import Team, is_complete, load_checkpoint, newest_checkpoint, prune, save_checkpoint
from mtcore.training.manifest import MANIFEST, read_manifest

TENSORS = {"weight": torch.arange(6.0), "moment": torch.ones(2, 3)}


def saved(folder, *numbers):
    for number in numbers:
        save_checkpoint(folder, f"ckpt-{number}", TENSORS, {"step": number})
    return folder / f"ckpt-{numbers[-1]}"


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def newest(folder, **arguments):
    """The newest checkpoint, and what is told."""
    told = []
    return newest_checkpoint(folder, "ckpt", tell=told.append, **arguments), " ".join(told)


def test_what_is_saved_comes_back(tmp_path):
    path = save_checkpoint(tmp_path / "new", "ckpt-0", TENSORS, {"step": 7, "text": "天"}, about={"stage": "mixture"})
    tensors, state = load_checkpoint(path)
    assert state == {"step": 7, "text": "天"}
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert newest(tmp_path / "new") == (path, "")
    assert newest(tmp_path / "empty") == (None, "")


def test_the_manifest_tells_files_origin_and_versions(tmp_path):
    manifest = read_manifest(save_checkpoint(tmp_path, "ckpt-0", TENSORS, {}, about={"stage": "mixture", "step": 3}))
    assert set(manifest.files) == {"tensors.safetensors", "state.json"}
    assert manifest.files["state.json"].size == 2
    assert manifest.about["torch"] == torch.__version__
    assert {"mtcore", "transformers", "python"} <= set(manifest.about)
    assert (manifest.about["processes"], manifest.about["stage"], manifest.about["step"]) == (1, "mixture", 3)


def test_a_checkpoint_of_ten_is_newer_than_one_of_nine(tmp_path):
    saved(tmp_path, 9, 10)
    assert newest(tmp_path)[0].name == "ckpt-10"


def rewritten(path, change):
    table = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(change(table)))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def unlisted(table):
    del table["files"]["tensors.safetensors"]
    return table


DAMAGE = {
    "torn weights": (lambda p: os.truncate(p / "tensors.safetensors", 40), "tensors.safetensors has 40 bytes of "),
    "a flipped bit": (lambda p: flip(p / "tensors.safetensors"), "tensors.safetensors is not what was written"),
    "empty weights": (lambda p: os.truncate(p / "tensors.safetensors", 0), "tensors.safetensors has 0 bytes"),
    "no weights": (lambda p: (p / "tensors.safetensors").unlink(), "tensors.safetensors is missing"),
    "a cut state": (lambda p: os.truncate(p / "state.json", 5), "state.json has 5 bytes of 11"),
    "an empty state": (lambda p: os.truncate(p / "state.json", 0), "state.json has 0 bytes"),
    "another state": (lambda p: (p / "state.json").write_text('{"step": 1}'), "state.json is not what was written"),
    "no manifest": (lambda p: (p / MANIFEST).unlink(), "it has no MANIFEST.json"),
    "an empty manifest": (lambda p: os.truncate(p / MANIFEST, 0), "MANIFEST.json cannot be read"),
    "a manifest that is no table": (lambda p: rewritten(p, lambda table: [table]), "MANIFEST.json cannot be read"),
    "a manifest of NULs": (lambda p: (p / MANIFEST).write_bytes(b"\0" * 99), "MANIFEST.json cannot be read"),
    "a manifest that is not UTF-8": (lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe"), "MANIFEST.json cannot be read"),
    "a manifest with a file that is not there": (
        lambda p: rewritten(p, lambda t: {**t, "files": {**t["files"], "more": t["files"]["state.json"]}}),
        "more is missing",
    ),
    "a file that the manifest does not know": (lambda p: (p / "extra.bin").write_text("?"), "extra.bin is not in the manifest"),
    "a manifest without the weights": (lambda p: rewritten(p, unlisted), "tensors.safetensors is not in the manifest"),
    "neither weights nor a word of them": (
        lambda p: (rewritten(p, unlisted), (p / "tensors.safetensors").unlink()),
        "tensors.safetensors is not in the manifest",
    ),
    "an empty folder": (lambda p: [f.unlink() for f in p.iterdir()], "it has no MANIFEST.json"),
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_a_broken_checkpoint_is_kept_aside_and_the_one_before_it_is_taken(tmp_path, damage, problem):
    path = saved(tmp_path, 0, 1, 2)
    damage(path)
    assert not is_complete(path)
    left = {p.name: p.read_bytes() for p in path.iterdir()}
    found, told = newest(tmp_path)
    assert found == tmp_path / "ckpt-1"
    assert names(tmp_path) == ["ckpt-0", "ckpt-1", "ckpt-2.corrupt"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "ckpt-2.corrupt").iterdir()} == left
    assert problem in told
    assert "going on from ckpt-1" in told


def test_where_no_checkpoint_is_complete_the_work_starts_anew_and_says_so(tmp_path):
    for number in (0, 1):
        (saved(tmp_path, number) / MANIFEST).unlink()
    found, told = newest(tmp_path)
    assert found is None
    assert "ckpt-1" in told
    assert "ckpt-0" in told
    assert told.endswith("there is no older one, so that this work starts anew")
    assert names(tmp_path) == ["ckpt-0.corrupt", "ckpt-1.corrupt"]


def test_what_was_broken_before_is_never_overwritten(tmp_path):
    for content in ("first", "second", "third"):
        path = saved(tmp_path, 0)
        (path / "state.json").write_text(content)
        newest(tmp_path)
    assert names(tmp_path) == ["ckpt-0.1.corrupt", "ckpt-0.2.corrupt", "ckpt-0.corrupt"]
    assert [(tmp_path / name / "state.json").read_text() for name in names(tmp_path)] == ["second", "third", "first"]


def test_who_asks_for_nothing_to_be_told_is_warned_all_the_same(tmp_path):
    (saved(tmp_path, 0) / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="this work starts anew"):
        newest_checkpoint(tmp_path, "ckpt")


def test_what_killed_saves_left_is_cleared_away(tmp_path):
    saved(tmp_path, 0)
    for name in ("ckpt-1.tmp-0a", "ckpt-1.tmp-0b", "ckpt-0.tmp-pruned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors.safetensors").write_bytes(b"half")
    assert newest(tmp_path) == (tmp_path / "ckpt-0", "")
    assert names(tmp_path) == ["ckpt-0"]


def test_a_checkpoint_whose_replacement_was_killed_is_found(tmp_path):
    saved(tmp_path, 0).rename(tmp_path / "ckpt-0.old")
    assert newest(tmp_path)[0] == tmp_path / "ckpt-0"
    assert is_complete(tmp_path / "ckpt-0")


def test_a_checkpoint_is_replaced_by_one_of_its_name(tmp_path):
    saved(tmp_path, 0)
    save_checkpoint(tmp_path, "ckpt-0", {}, {"step": 5})
    assert load_checkpoint(tmp_path / "ckpt-0") == ({}, {"step": 5})
    assert names(tmp_path) == ["ckpt-0"]


def test_pruning_keeps_what_it_is_told_to_and_what_is_broken(tmp_path):
    saved(tmp_path, 0, 1, 2, 3)
    (tmp_path / "ckpt-3.corrupt").mkdir()
    prune(tmp_path, "ckpt", keep={"ckpt-1", "ckpt-3"})
    assert names(tmp_path) == ["ckpt-1", "ckpt-3", "ckpt-3.corrupt"]
    assert is_complete(tmp_path / "ckpt-1")


def test_a_checkpoint_is_not_taken_without_the_one_it_needs(tmp_path):
    saved(tmp_path, 0, 1, 2, 3)
    (tmp_path / "ckpt-1" / "state.json").write_text("{}")
    found, told = newest(tmp_path, needs=lambda state: ["ckpt-1"] if state["step"] == 3 else [f"ckpt-{state['step']}"])
    assert found == tmp_path / "ckpt-2"
    assert "ckpt-3 (it needs ckpt-1: state.json has 2 bytes of 11" in told


def test_a_damaged_checkpoint_is_not_loaded(tmp_path):
    flip(saved(tmp_path, 0) / "tensors.safetensors")
    with pytest.raises(RunError, match=r"ckpt-0 is damaged: tensors\.safetensors is not what was written"):
        load_checkpoint(tmp_path / "ckpt-0")


def test_what_cannot_fit_on_the_disk_is_refused_before_it_is_written_and_the_last_checkpoint_stays(tmp_path):
    saved(tmp_path, 0)
    with pytest.raises(
        RunError, match=r"ckpt-1 cannot be saved in .*No space left on device\. Process 0 has 4,000,000,000\.0 MB to write"
    ) as e:
        save_checkpoint(tmp_path, "ckpt-1", {"weight": torch.zeros(1).expand(10**15)}, {})
    assert "free space, or put right what is named here, and type the same command again" in str(e.value)
    assert names(tmp_path) == ["ckpt-0"]
    assert is_complete(tmp_path / "ckpt-0")


# --- several processes ------------------------------------------------------------------------------------------------------------------


def together(size, work):
    """What each of several processes returns or raises, played by threads that meet as processes do."""
    barrier, brought, ends = threading.Barrier(size, timeout=20), [""] * size, [None] * size

    def play(rank):
        def agree(text):
            brought[rank] = text
            barrier.wait()
            said = next(filter(None, brought), "")
            barrier.wait()
            return said

        try:
            ends[rank] = work(Team(rank, size, agree))
        except Exception as error:
            ends[rank] = error

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_every_process_gets_back_what_it_saved(tmp_path):
    def engine(team):
        return lambda folder: (
            (folder / "engine" / str(team.rank)).mkdir(parents=True)
            or (folder / "engine" / str(team.rank) / "shard").write_text(str(team.rank))
        )

    together(3, lambda t: save_checkpoint(tmp_path, "ckpt-0", {"part": torch.tensor([t.rank])}, {"step": 1}, team=t, more=engine(t)))
    path = tmp_path / "ckpt-0"
    assert names(tmp_path) == ["ckpt-0"]
    assert is_complete(path)
    assert [int(load_checkpoint(path, rank)[0]["part"]) for rank in range(3)] == [0, 1, 2]
    assert {f"engine/{rank}/shard" for rank in range(3)} <= set(read_manifest(path).files)
    with pytest.raises(RunError, match=r"holds no tensors-rank-3\.safetensors: it was saved by 3 processes"):
        load_checkpoint(path, 3)


def test_processes_that_bring_nothing_leave_no_file(tmp_path):
    together(2, lambda team: save_checkpoint(tmp_path, "ckpt-0", {} if team.rank else TENSORS, {}, team=team))
    assert names(tmp_path / "ckpt-0") == [MANIFEST, "state.json", "tensors.safetensors"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_where_one_process_cannot_write_all_of_them_stop_and_the_last_checkpoint_stays(tmp_path, failing):
    saved(tmp_path, 0)

    def save(team):
        def more(folder):
            if team.rank == failing:
                raise OSError(5, "Input/output error")

        return save_checkpoint(tmp_path, "ckpt-1", TENSORS, {}, team=team, more=more)

    ends = together(3, save)
    assert [type(end) for end in ends] == [RunError] * 3
    assert len(set(map(str, ends))) == 1
    assert f"Input/output error. Process {failing} has" in str(ends[0])
    assert names(tmp_path) == ["ckpt-0"]


def test_a_bug_in_one_process_keeps_its_name_and_stops_the_others(tmp_path):
    first, second = together(2, lambda team: save_checkpoint(tmp_path, "ckpt-0", {}, {"loss": float("nan")}, team=team))
    assert isinstance(first, ValueError)
    assert isinstance(second, RunError)
    assert names(tmp_path) == []


def test_all_processes_go_on_from_the_same_checkpoint_and_one_of_them_clears_up(tmp_path):
    saved(tmp_path, 0, 1)
    (tmp_path / "ckpt-1" / MANIFEST).unlink()
    (tmp_path / "ckpt-2.tmp-0a").mkdir()
    assert together(3, lambda team: newest(tmp_path, team=team)[0]) == [tmp_path / "ckpt-0"] * 3
    assert names(tmp_path) == ["ckpt-0", "ckpt-1.corrupt"]


def test_a_process_that_is_not_the_first_never_clears_up_what_the_first_may_be_writing(tmp_path):
    (tmp_path / "ckpt-2.tmp-0a").mkdir()
    newest_checkpoint(tmp_path, "ckpt", team=Team(1, 2, lambda text: text))
    assert names(tmp_path) == ["ckpt-2.tmp-0a"]
