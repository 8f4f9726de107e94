"""What a run will take is said from shapes and steps, and its time only where a run here has shown the pace."""

import json
import math
import os

import pytest

from mtcore.config import RunConfig
from mtcore.contracts import TaskAdapter
from mtcore.estimates import Estimate, Pace, base_size, configured_shapes, disk, newest_pace, parameters, weight_shapes
from mtcore.modeling.flops import model_size
from mtcore.modeling.load import find_base, load_model
from mtcore.planning import plan_run
from mtcore.plugins import load_plugins
from mtcore.preparation import Preparer
from mtcore.registry import Entry, Plugin, Registry
from mtcore.testing import toy_spec

BOX = load_plugins(environment="")


class Toy(TaskAdapter):
    spec = toy_spec("binary")

    def rows(self, split):
        return [{"text": f"{split} {n:02}", "label": str(n % 2)} for n in range({"train": 32, "validation": 16}.get(split, 0))]

    def fields(self, row):
        return {"text": row["text"]}

    def answer(self, row):
        return row["label"]


@pytest.fixture
def planned(base_folder, tmp_path):
    """Plan a run of one toy task with changes, its reference for so many epochs."""
    toys = Plugin("toys", "toys", "1.0", "loaded")
    kinds = ("filter", "sampler", "scheduler", "method", "launcher", "observer")
    registry = Registry([*BOX.plugins, toys], [*(e for kind in kinds for e in BOX.entries(kind)), Entry("task", "toys/a", Toy, toys)])

    def plan(epochs, **changes):
        sizes = {"learning_rate": 1e-3, "examples_per_step": 8}
        table = {
            "model": str(base_folder),
            "out": str(tmp_path),
            "tasks": ["toys/a"],
            "scheduler": {"use": "mixture", **sizes, "epochs": 1, "sampler": {"use": "instance-balanced"}},
            "reference": {"use": "single-task", **sizes, "epochs": epochs},
        }
        config = RunConfig.model_validate_json(json.dumps(table | changes))
        return plan_run(config, registry, Preparer(registry, lambda event: None))

    return plan


def test_the_shapes_of_a_base_are_those_of_the_model_that_is_loaded_from_it(base_folder):
    base, model = find_base(str(base_folder), base_folder), load_model(base_folder)
    assert base_size(base.config, weight_shapes(base)) == model_size(model)
    assert parameters(base) == sum(p.numel() for p in model.parameters())


def test_a_configuration_alone_tells_the_matrices(base_folder):
    base = find_base(str(base_folder), base_folder)
    assert sorted(configured_shapes(base.config)) == sorted(shape for shape in weight_shapes(base) if len(shape) == 2)
    assert configured_shapes({"model_type": "gpt2"}) == []


def test_the_parameters_of_a_large_model_are_those_that_its_makers_tell():
    qwen2_7b = {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "tie_word_embeddings": False,
    }
    shapes = configured_shapes(qwen2_7b)
    assert sum(map(math.prod, shapes)) == pytest.approx(7.61e9, rel=0.002)
    assert base_size(qwen2_7b, shapes).body_parameters == pytest.approx(6.53e9, rel=0.002)


def test_an_epoch_takes_the_training_of_its_draws_and_one_evaluation(planned, base_folder):
    model = model_size(load_model(base_folder))
    plans = [planned(epochs) for epochs in (1, 2, 3)]
    length = round(plans[0].previews["toys/a"].mean_tokens)
    pairs = length * (length + 1) // 2
    epoch = 32 * model.training_flops(length, pairs, 2) + 16 * model.forward_flops(length, pairs, 2)
    # the group is trained for an epoch, and the reference for one, two and three
    assert [plan.estimate.flops for plan in plans] == [pytest.approx(n * epoch) for n in (2, 3, 4)]
    assert planned(2, seeds=[1, 2]).estimate.flops == pytest.approx(6 * epoch)


def test_the_disk_holds_models_and_all_checkpoints_that_are_there_at_once(planned, base_folder):
    count = parameters(find_base(str(base_folder), base_folder))
    assert disk(10, 1) == 40 + 4 * 120
    assert planned(1).estimate.disk == disk(count, 1)
    assert planned(1, keep_reference_weights=True, seeds=[1, 2]).estimate.disk == disk(count, 4)


def write_report(folder, *, model="tiny", flops=6e9, seconds=2.0, age=0):
    folder.mkdir(parents=True)
    cost = {"total references + shared": {"flops": flops, "seconds": seconds}}
    path = folder / "report.json"
    path.write_text(json.dumps({"run": folder.name, "model": model, "cost": cost}))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_the_pace_is_that_of_the_newest_run_with_the_same_model(tmp_path):
    assert newest_pace(tmp_path, "tiny") is None
    write_report(tmp_path / "old", age=10)
    write_report(tmp_path / "run" / "variant", flops=8e9, age=5)
    write_report(tmp_path / "other", model="large")
    write_report(tmp_path / "idle", flops=0.0)
    assert newest_pace(tmp_path, "tiny") == Pace("variant", 4e9)


def test_time_is_told_only_where_it_was_measured():
    told = str(Estimate(3.1e15, 31_270_400, None))
    assert told == (
        "at most 3.1 PFLOP, references included; how long that takes is unknown: no run here has measured this model; "
        "about 31.3 MB on the disk, without checkpoints that a scheduler keeps for later stages"
    )
    measured = Estimate(2.4e14, None, Pace("demo", 1e11))
    assert str(measured) == "at most 240 TFLOP, references included; about 40 min at the 100 GFLOP/s of run demo"
    assert measured.as_json()["seconds"] == pytest.approx(2400)
    assert "is unknown" in str(Estimate(None, None, Pace("demo", 1e11)))
