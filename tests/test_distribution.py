"""Several processes train one model: every engine as one process does, resumable to the same bits, and what cannot be is refused in words."""

import csv
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from click.testing import CliRunner
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from mtcore import events
from mtcore.cli.train import train as train_command
from mtcore.config import Distribution, RunConfig, load_run, validate
from mtcore.contracts import Predictor
from mtcore.data.mixture import MixturePlan, PlanTask
from mtcore.data.stages import CompiledStage
from mtcore.defaults.text2text_fit import step_batches
from mtcore.errors import ConfigError, ModelError, ResumeMismatch, RunError
from mtcore.evaluation.evaluate import Exam
from mtcore.evaluation.metrics import Accuracy
from mtcore.fitting import Fitting
from mtcore.modeling.load import load_model
from mtcore.modeling.lora import add_lora, merged
from mtcore.pipeline import train
from mtcore.plugins import load_plugins
from mtcore.testing import toy_spec
from mtcore.training.distributed import REPLICATED, backward, exchanging, gathered, leave, make_accelerator
from mtcore.training.state import Trainee
from mtcore.types import Example, Mixture, Prediction, Prepared, SamplerUse, Stage

ENGINES = ["ddp", "fsdp", "zero-1", "zero-2", "zero-3"]
TASK = """
name = "{name}"
output = "{output}"
input = "single-sentence"
instruction = "{name}?"
template = "{{text}}\\nAnswer: "
{words}
licence = "none"
source = "made up"

[rows]
file = "{name}.csv"
validation = 0.2
columns = {{ text = "text" }}
answer = "answer"
"""
RUN = """
model = "{base}"
out = "{out}"
tasks = ["tasks/*.toml"]
filter = {{ use = "none" }}
method = {{ use = "text2text", max_length = 64, batch_tokens = 96, weight_decay = 0.1, precision = "{precision}" }}
scheduler = {{ use = "mixture", learning_rate = 2e-3, examples_per_step = 9, epochs = 1, evaluate_epochs = 0.34 }}
reference = {{ use = "single-task", learning_rate = 2e-3, examples_per_step = 9, epochs = 1 }}
observers = []

[distribution]
engine = "{engine}"
offload = "{offload}"

[variants.full]

[variants.lora]
method = {{ lora = {{ rank = 4 }}, gradient_checkpointing = true }}
tasks = ["tasks/kind.toml"]
"""


class Broken(Exception):
    """What a test breaks a fit off with."""


def write_run(folder, base_folder, engine, *, offload="none", precision="fp32"):
    """A run of two small tasks, one of labels and one of free text."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    words = 'words = { no = "no", yes = "yes" }\nmetric = "accuracy"'
    free = 'metric = "exact-match"\nmax_answer_tokens = 3'
    for task, output, rest, answers in (("kind", "binary", words, ("no", "yes")), ("echo", "generation", free, ("ab", "cd"))):
        (folder / f"tasks/{task}.toml").write_text(TASK.format(name=task, output=output, words=rest))
        with (folder / f"tasks/{task}.csv").open("w", newline="") as file:
            rows = [["AB"[i % 2] * (1 + i % 7) + f" {task} {i}", answers[i % 2]] for i in range(30)]
            csv.writer(file).writerows([["text", "answer"], *rows])
    path = folder / "run.toml"
    path.write_text(RUN.format(base=base_folder, out=folder / "out", engine=engine, offload=offload, precision=precision))
    return path


def whole_run(path, emit=lambda event: None, name="run"):
    """`mtcore train` with an ear of our own; returns what was said."""
    run = load_run(path)
    first = next(iter(run.variants.values()))
    heard = []

    def hear(event):
        heard.append(event)
        emit(event)

    fitting = Fitting(hear, is_main=os.environ.get("RANK", "0") == "0", distribution=first.distribution)
    train(run, load_plugins(environment=""), fitting, Path(first.out) / name)
    return heard


class Echo(Predictor):
    """Answers on the first process, and breaks on the others."""

    tasks = {"toy": toy_spec("binary")}

    def prepare(self, request):
        return Prepared(request=request, cost=1, flags={}, payload=None)

    def predict(self, prepared):
        if os.environ.get("RANK", "0") != "0":
            raise Broken("on one process")
        return [{"toy": Prediction("toy", p.request.fields["text"], None, ())} for p in prepared]


def exam():
    spec = Echo.tasks["toy"]
    return Exam(spec, Accuracy(), [Example({spec.fields[0]: str(n % 2)}, str(n % 2)) for n in range(5)])


def losses(heard):
    return [(e.work, e.step, e.loss) for e in heard if isinstance(e, events.Stepped)]


def bundles(folder):
    return {path.parent.relative_to(folder): path for path in sorted(folder.glob("*/seed-1/*/bundle/model.safetensors"))}


@pytest.fixture(scope="module")
def alone(base_folder, tmp_path_factory):
    """The run by one process: its folder and its losses."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, losses(whole_run(write_run(folder, base_folder, "ddp")))


def needs(engine):
    is_missing = engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None
    return pytest.param(engine, marks=pytest.mark.skipif(is_missing, reason="needs DeepSpeed"))


@pytest.mark.parametrize("engine", [needs(engine) for engine in ENGINES])
def test_two_processes_train_what_one_does_and_go_on_to_the_same_bits(engine, alone, base_folder, tmp_path, forks):
    folder, expected = alone
    path = write_run(tmp_path, base_folder, engine)
    done = forks.run("script", tmp_path, __file__, str(path), processes=2)
    assert done["ends"] == [0, 0], done["stderr"]
    heard, again = json.loads((path.parent / "heard.json").read_text())
    assert [(work, step) for work, step, _ in heard] == [(work, step) for work, step, _ in expected]
    assert [loss for *_, loss in heard] == pytest.approx([loss for *_, loss in expected], rel=1e-4)
    # taken up in the middle of its fits, the run takes the same steps to the same bits
    assert dict(steps(again)) == {step: loss for step, loss in steps(heard) if "reference" not in step[0]}
    ours, broken, theirs = (bundles(f) for f in (tmp_path / "out/run", tmp_path / "out/broken", folder / "out/run"))
    assert ours.keys() == broken.keys() == theirs.keys()
    assert {str(name).split("/")[0] for name in ours} == {"full", "lora"}
    for name, path in ours.items():
        assert path.read_bytes() == broken[name].read_bytes()
        mine, other = load_file(path), load_file(theirs[name])
        assert mine.keys() == other.keys()
        for key, weight in mine.items():
            assert weight.dtype == torch.float32
            torch.testing.assert_close(weight, other[key], rtol=0, atol=2e-4)
        answers = [
            json.loads((f / name).parent.joinpath("result.json").read_text())["answers"] for f in (tmp_path / "out/run", folder / "out/run")
        ]
        assert answers[0] == answers[1]
    # where it was taken up: the engine is the one asked for, its shards fit no other, and weights that are frozen are not among them
    for variant in ("full", "lora"):
        kept = tmp_path / f"kept-{variant}"
        about = json.loads((kept / "MANIFEST.json").read_text())["about"]
        assert (about["engine"], about["processes"]) == ("replicated" if engine == "ddp" else engine, 2)
        names = saved_weights(kept)
        assert any("layers.0" in name for name in names)
        assert all(".lora_" in name for name in names) == (variant == "lora")
    if engine != "ddp":
        with pytest.raises(ResumeMismatch, match=f"saved by 2 processes of engine '{engine}', and here are 1 of engine 'replicated'"):
            new_trainee(base_folder).load(tmp_path / "kept-full")


def test_a_bundle_of_shards_is_read_by_plain_transformers(alone, base_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    (folder, _), (name, *_) = alone, ["lora/seed-1/all/bundle"]
    model, loading = AutoModelForCausalLM.from_pretrained(folder / "out/run" / name, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not any("lora" in key for key, _ in model.named_parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_offers_what_it_offers_and_nothing_else(engine):
    offered = {"ddp": {"none"}, "fsdp": {"none", "all"}, "zero-3": {"none", "optimizer", "all"}}.get(engine, {"none", "optimizer"})
    for offload in ("none", "optimizer", "all"):
        table = {"distribution": {"engine": engine, "offload": offload}}
        if offload in offered:
            assert validate(RunConfig, table, "run").distribution == Distribution(engine=engine, offload=offload)
        else:
            with pytest.raises(ConfigError, match=f"engine '{engine}' offers offload = .* not '{offload}'"):
                validate(RunConfig, table, "run")


def test_no_variant_changes_the_distribution_of_a_run(tmp_path):
    (tmp_path / "run.toml").write_text('[variants.a.distribution]\nengine = "fsdp"\n')
    with pytest.raises(ConfigError, match="distribution hold for the whole run"):
        load_run(tmp_path / "run.toml")


def test_an_engine_that_divides_needs_a_launcher():
    with pytest.raises(RunError, match=r"no launcher started any\. Launch by: torchrun"):
        make_accelerator("fp32", Distribution(engine="fsdp"))


def test_the_command_line_hands_on_the_distribution(base_folder, tmp_path):
    done = CliRunner().invoke(train_command, [str(write_run(tmp_path, base_folder, "zero-3"))])
    assert isinstance(done.exception, RunError)
    assert "'zero-3' divides a model among processes" in str(done.exception)


@pytest.mark.parametrize(
    ("offload", "environment", "words"),
    [
        ("none", {"WORLD_SIZE": "1"}, "and 1 was launched"),
        ("all", {"WORLD_SIZE": "2"}, "spares the memory of GPUs"),
        ("none", {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}, "accelerate launch --cpu"),
    ],
)
def test_what_an_engine_cannot_do_here_is_refused(offload, environment, words, monkeypatch):
    if offload == "all" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for key, value in {"LOCAL_RANK": "0", **environment}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(RunError, match=words):
        make_accelerator("fp32", Distribution(engine="fsdp", offload=offload))


def test_fewer_examples_than_processes_are_refused_before_the_first_step():
    stage = Stage(
        name="mixture",
        tasks=("a",),
        sampler=SamplerUse(use="class-balanced"),
        draws=8,
        epoch_draws=8,
        examples_per_step=2,
        learning_rate=1e-3,
    )
    compiled = CompiledStage(0, stage, Mixture(shares={"a": 1.0}), MixturePlan(1, 0, (PlanTask("a", 8, 1.0),), 8), 4)
    with pytest.raises(ConfigError, match=r"examples_per_step = 2 .* 3 processes were launched"):
        step_batches(compiled, {}, rank=0, processes=3)


def test_shards_fit_no_other_number_of_processes_and_whole_weights_fit_any(base_folder, tmp_path):
    trainee = new_trainee(base_folder)
    trainee.save(tmp_path, "ckpt-0", {"step": 3})
    assert trainee.other_processes(tmp_path / "ckpt-0") == ""
    said_by(tmp_path / "ckpt-0", engine="replicated", processes=8)
    assert "8 processes saved what 1 go on from" in trainee.other_processes(tmp_path / "ckpt-0")
    assert trainee.load(tmp_path / "ckpt-0") == {"step": 3}
    said_by(tmp_path / "ckpt-0", engine="zero-3", processes=8)
    with pytest.raises(ResumeMismatch, match="saved by 8 processes of engine 'zero-3', and here are 1 of engine 'replicated'"):
        trainee.load(tmp_path / "ckpt-0")


def new_trainee(folder):
    return Trainee(load_model(folder), make_accelerator(), weight_decay=0.1, betas=(0.9, 0.98), clip=1.0)


def saved_weights(checkpoint):
    """Names of the weights that lie in a checkpoint, as safetensors and in DeepSpeed's files."""
    plain = [name for path in checkpoint.glob("tensors*.safetensors") for name in load_file(path) if name.startswith("model.")]
    theirs = [torch.load(path, weights_only=False) for path in checkpoint.glob("deepspeed/*_model_states.pt")]
    return {*plain, *(name for own in theirs for name in [*own["module"], *(own["frozen_param_fragments"] or ())])}


def said_by(checkpoint, **about):
    path = checkpoint / "MANIFEST.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "about": {**table["about"], **about}}))


# --- adapters --------------------------------------------------------------------------------------------------------------------------------


def test_adapters_change_nothing_at_first_and_are_merged_into_the_same_answers(base_folder):
    ids = torch.arange(12)[None]
    plain, model = load_model(base_folder), load_model(base_folder)
    add_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=(), seed=1)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (".lora_" in name)
            if ".lora_B." in name:
                parameter.normal_()
    weights = merged(model, dict(model.named_parameters()))
    assert weights.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(weights, strict=False)
    assert (model(ids).logits - load_model(base_folder)(ids).logits).abs().max() > 0.01
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)


def test_adapters_go_where_they_are_told_and_are_seeded_alike(base_folder):
    first, second, other = (load_model(base_folder) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        torch.manual_seed(id(model) % 1000)
        add_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj"), seed=seed)
    adapters = {name: p for name, p in first.named_parameters() if ".lora_A." in name}
    assert {name.split(".")[-4] for name in adapters} == {"q_proj", "v_proj"}
    for name, parameter in adapters.items():
        assert torch.equal(parameter, second.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name))
    with pytest.raises(ModelError, match=r"no linear layer of .* is called w_proj. It has: down_proj, "):
        add_lora(load_model(base_folder), rank=2, alpha=4.0, dropout=0.0, targets=("w_proj",), seed=1)


def test_a_stage_that_begins_anew_begins_with_the_first_adapters(base_folder):
    model = load_model(base_folder)
    add_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=(), seed=1)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainee = Trainee(model, make_accelerator(), weight_decay=0.1, betas=(0.9, 0.98), clip=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    trainee.reset(base_folder)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, first[name])


def test_a_checkpoint_of_adapters_holds_no_weight_of_the_base_and_brings_the_whole_model_back(base_folder, tmp_path):
    def adapted(seed):
        model = load_model(base_folder)
        add_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=(), seed=seed)
        return Trainee(model, make_accelerator(), weight_decay=0.1, betas=(0.9, 0.98), clip=1.0)

    first, second = adapted(seed=1), adapted(seed=2)
    first.save(tmp_path, "ckpt-0", {"step": 3})
    assert saved_weights(tmp_path / "ckpt-0") == {f"model.{n}" for n, p in first.model.named_parameters() if p.requires_grad}
    assert second.load(tmp_path / "ckpt-0", optimizer=False) == {"step": 3}
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, second.model.get_parameter(name))


def steps(heard):
    return [((work, step), loss) for work, step, loss in heard]


# --- what every process of a launch does (this file, run as a script) ---------------------------------------------------------------------


def worker(path):
    """Do a whole run; do it again, broken off in the middle of a fit of either variant and taken up; leave what was heard."""
    heard = whole_run(path)
    again = []

    def break_off(variant):
        def hear(event):
            again.append(event)
            if isinstance(event, events.Stepped) and event.work.startswith(variant) and event.step == 3:
                raise Broken

        return hear

    for variant in ("full", "lora"):
        with pytest.raises(Broken):
            whole_run(path, break_off(variant), name="broken")
        if os.environ["RANK"] == "0":
            (newest, *_) = sorted(path.parent.glob(f"out/broken/{variant}/**/MANIFEST.json"), key=os.path.getmtime, reverse=True)
            shutil.copytree(newest.parent, path.parent / f"kept-{variant}")
    whole_run(path, again.append, name="broken")
    failed = Fitting(heard.append).evaluate(Echo(), {"toy": exam()}).failures
    assert failed == {"toy": "Broken: on one process"}, failed
    if os.environ["RANK"] == "0":
        (path.parent / "heard.json").write_text(json.dumps([losses(heard), losses(again)]))
    change_engines(path)
    leave()


def change_engines(path):
    """Under another engine a process begins anew; under FSDP it keeps shards of gradients alone, and misses an engine that accelerate forgets."""
    first = next(iter(load_run(path).variants.values()))
    engine, base = first.distribution.engine, Path(first.model)
    accelerator = new_trainee(base).accelerator
    assert accelerator.distributed_type in REPLICATED
    assert gathered(accelerator.process_index) == [0, 1]
    accelerator = make_accelerator(first.method.precision, first.distribution)
    assert (accelerator.distributed_type in REPLICATED) == (engine == "ddp")
    if engine == "fsdp":
        model = load_model(base)
        model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        with exchanging(accelerator, model, is_last=False):
            backward(accelerator, model, model(torch.arange(12, device=accelerator.device)[None]).logits.mean(), is_last=False)
        assert all(isinstance(p.grad, DTensor) for p in model.parameters())
        accelerator = make_accelerator(first.method.precision, first.distribution)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        with pytest.raises(RunError, match="'fsdp' was asked for, and accelerate prepared 'replicated' with weights that are sharded"):
            Trainee(load_model(base), accelerator, weight_decay=0.1, betas=(0.9, 0.98), clip=1.0)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
