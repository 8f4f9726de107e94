"""The training wing: steps, processes, checkpoints, rates."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mtcore.data.mixture import MixturePlan, PlanTask
from mtcore.data.stages import CompiledStage
from mtcore.data.text import Encoded
from mtcore.defaults.text2text import Text2TextConfig
from mtcore.defaults.text2text_fit import evaluation_marks, step_batches
from mtcore.modeling.load import load_model
from mtcore.training.checkpoint import is_complete, newest_checkpoint, prune, save_checkpoint
from mtcore.training.loop import warm_up_then_decay
from mtcore.training.state import Trainee
from mtcore.types import Mixture, SamplerUse, Stage


def compiled(*, draws=50, size=8, loss_weights=None):
    tasks = (PlanTask("a", 30, 0.5), PlanTask("b", 20, 0.5))
    stage = Stage(
        name="mixture",
        tasks=("a", "b"),
        sampler=SamplerUse(use="class-balanced"),
        draws=draws,
        epoch_draws=draws,
        examples_per_step=size,
        learning_rate=1e-3,
    )
    mixture = Mixture(shares={"a": 0.5, "b": 0.5}, loss_weights=loss_weights or {})
    return CompiledStage(0, stage, mixture, MixturePlan(1, 0, tasks, draws), -(-draws // size))


def encoded(rows, offset):
    return [Encoded(np.arange(1, 4 + i % 5, dtype=np.int32), np.array([offset + i, 0], np.int32)) for i in range(rows)]


ROWS = {"a": encoded(30, 100), "b": encoded(20, 200)}


def targets(batch, example):
    return [int(t) for m in batch.micro_batches for t, e in zip(m.targets_N, m.examples_N, strict=True) if e == example]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_parts_of_all_processes_are_the_step_of_one(processes):
    stage, config = compiled(loss_weights={"a": 3.0}), Text2TextConfig(row_tokens=16, batch_tokens=32)
    whole = step_batches(stage, ROWS, config, rank=0, processes=1)
    parts = [step_batches(stage, ROWS, config, rank=rank, processes=processes) for rank in range(processes)]
    for step in range(stage.steps):
        expected = {tuple(targets(whole(step), i)): w for i, w in enumerate(whole(step).weights)}
        batches = [part(step) for part in parts]
        found = {tuple(targets(b, i)): w for b in batches for i, w in enumerate(b.weights) if w}
        assert found == pytest.approx(expected)
        assert sum(sum(b.weights) for b in batches) == pytest.approx(1)


def test_a_process_without_an_example_in_the_last_step_takes_part_with_weight_zero():
    batch = step_batches(compiled(draws=9), ROWS, Text2TextConfig(), rank=1, processes=2)(1)
    assert batch.weights == [0.0]
    assert batch.micro_batches


def test_evaluations_fall_on_whole_epochs_and_on_the_end():
    stage = compiled(draws=100).stage.model_copy(update={"epoch_draws": 33, "evaluate_every": 33})
    assert evaluation_marks(stage, 100) == {5: 1.0, 9: 2.0, 13: 3.0} | {13: 3.0}


def test_a_rate_rises_over_its_warm_up_and_falls_to_zero():
    rate = warm_up_then_decay(1.0, 100, 0.1, "linear")
    assert [rate(0), rate(9), rate(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert rate(99) == pytest.approx(1 / 90)
    assert warm_up_then_decay(1.0, 2, 0.0, "linear")(0) == 1.0
    assert warm_up_then_decay(1.0, 10, 0.0, "constant")(9) == 1.0


def test_a_checkpoint_is_complete_or_not_taken(tmp_path):
    tensors = {"weight": torch.arange(6.0)}
    for number in range(3):
        save_checkpoint(tmp_path, f"ckpt-{number}", tensors, {"step": number})
    (tmp_path / "ckpt-2" / "tensors.safetensors").write_bytes(b"torn")
    (tmp_path / "ckpt-9.tmp-1").mkdir()
    assert newest_checkpoint(tmp_path, "ckpt") == tmp_path / "ckpt-1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt-0", "ckpt-1", "ckpt-2.corrupt"]
    prune(tmp_path, "ckpt", keep={"ckpt-1"})
    assert is_complete(tmp_path / "ckpt-1")
    assert not (tmp_path / "ckpt-0").exists()


def test_training_goes_on_from_a_checkpoint_to_the_same_bits(base_folder, tmp_path):
    stage = compiled()
    batch = step_batches(stage, {k: encoded(len(v), 5) for k, v in ROWS.items()}, Text2TextConfig(), rank=0, processes=1)
    rate = warm_up_then_decay(1e-2, stage.steps, 0.1, "cosine")

    def trainee():
        return Trainee(load_model(base_folder), Accelerator(cpu=True), weight_decay=0.1, betas=(0.9, 0.98), clip=1.0)

    whole = trainee()
    losses = [step.loss.hex() for step in whole.steps(batch, rate, 0, stage.steps)]
    first = trainee()
    begun = [step.loss.hex() for step in first.steps(batch, rate, 0, 3)]
    first.save(tmp_path, "ckpt-0", {"step": 3})
    second = trainee()
    assert second.load(tmp_path / "ckpt-0") == {"step": 3}
    assert begun + [step.loss.hex() for step in second.steps(batch, rate, 3, stage.steps)] == losses
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_bases_own_generation_defaults_change_no_answer(base_folder, tmp_path):
    import json
    import shutil

    from mtcore.inference.generation import generate

    shutil.copytree(base_folder, tmp_path / "base")
    path = tmp_path / "base/generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 5.0, "do_sample": True, "temperature": 3.0}))
    prompts = [np.array([5, 6, 7], np.int32), np.array([9] * 8, np.int32)]
    plain, odd = (generate(load_model(f), prompts, [6, 6], 0, [1, 2], 64) for f in (base_folder, tmp_path / "base"))
    assert plain == odd
    assert not {1, 2} & {token for answer in plain for token in answer}
