"""The training wing: steps, processes, checkpoints, rates."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mtcore.data.mixture import MixturePlan, PlanTask
from mtcore.data.stages import CompiledStage
from mtcore.data.text import Encoded
from mtcore.defaults.text2text_fit import require_budget, step_batches
from mtcore.errors import ConfigError
from mtcore.modeling.load import load_model
from mtcore.training.loop import Schedule, warm_up_then_decay
from mtcore.training.state import Trainee
from mtcore.training.walk import evaluation_marks
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
    stage = compiled(loss_weights={"a": 3.0})
    whole = step_batches(stage, ROWS, rank=0, processes=1)
    parts = [step_batches(stage, ROWS, rank=rank, processes=processes) for rank in range(processes)]
    for step in range(stage.steps):
        one = whole(step, 32)
        expected = {tuple(targets(one, i)): (weight, one.tasks[i]) for i, weight in enumerate(one.weights)}
        batches = [part(step, 16) for part in parts]
        found = {tuple(targets(b, i)): (weight, b.tasks[i]) for b in batches for i, weight in enumerate(b.weights) if weight}
        assert found.keys() == expected.keys()
        assert all(found[key] == pytest.approx(expected[key]) for key in found)
        assert sum(sum(b.weights) for b in batches) == pytest.approx(1)
        assert len({len(b.micro_batches) for b in batches}) == 1, "sharded engines must go through the model equally often everywhere"


def test_a_process_without_an_example_in_the_last_step_takes_part_with_weight_zero():
    batch = step_batches(compiled(draws=9), ROWS, rank=1, processes=2)(1, 64)
    assert batch.weights == [0.0]
    assert len(batch.tasks) == 1
    assert batch.micro_batches


def test_rows_that_share_a_document_are_one_tree_of_a_step_wherever_they_are_dealt():
    document = np.arange(50, 60, dtype=np.int32)
    rows = [Encoded(np.concatenate([document, [100 + i]]).astype(np.int32), np.array([i, 0], np.int32), document=10) for i in range(30)]
    stage = compiled()
    for rank in range(2):
        batch = step_batches(stage, {"a": rows, "b": rows[:20]}, rank=rank, processes=2)(0, 200)
        assert sum(b.tokens for b in batch.micro_batches) in (10 + 8 * 3, 13), "all eight on one process, a filler on the other"


def test_a_budget_below_the_longest_example_is_told_with_its_row():
    require_budget(ROWS, 10)
    with pytest.raises(ConfigError, match=r"batch_tokens = 8, but the longest example \(b, train row 19\) has 9 tokens"):
        require_budget(ROWS, 8)


def test_evaluations_fall_on_whole_epochs_and_on_the_end():
    stage = compiled(draws=100).stage.model_copy(update={"epoch_draws": 33, "evaluate_every": 33})
    assert evaluation_marks(stage, 100) == {5: 1.0, 9: 2.0, 13: 3.0} | {13: 3.0}


def test_a_rate_rises_over_its_warm_up_and_falls_to_zero():
    rate = warm_up_then_decay(1.0, 100, 0.1, "linear")
    assert [rate(0), rate(9), rate(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert rate(99) == pytest.approx(1 / 90)
    assert warm_up_then_decay(1.0, 2, 0.0, "linear")(0) == 1.0
    assert warm_up_then_decay(1.0, 10, 0.0, "constant")(9) == 1.0


def test_training_goes_on_from_a_checkpoint_to_the_same_bits(base_folder, tmp_path):
    stage = compiled()
    batch = step_batches(stage, {k: encoded(len(v), 5) for k, v in ROWS.items()}, rank=0, processes=1)
    schedule = Schedule(batch, warm_up_then_decay(1e-2, stage.steps, 0.1, "cosine"), ("a", "b"), 64)

    def trainee():
        return Trainee(load_model(base_folder), Accelerator(cpu=True), weight_decay=0.1, betas=(0.9, 0.98), clip=1.0)

    whole = trainee()
    losses = [step.loss.hex() for step in whole.steps(schedule, 0, stage.steps)]
    first = trainee()
    begun = [step.loss.hex() for step in first.steps(schedule, 0, 3)]
    first.save(tmp_path, "ckpt-0", {"step": 3})
    second = trainee()
    assert second.load(tmp_path / "ckpt-0") == {"step": 3}
    assert begun + [step.loss.hex() for step in second.steps(schedule, 3, stage.steps)] == losses
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
