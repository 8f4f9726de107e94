"""A whole run on toys: references, stages, verdicts, bundles, reports; what is reused, resumed and refused."""

import json
import random
from pathlib import Path

import pytest

from mtcore import events
from mtcore.bundle import read_bundle
from mtcore.config import RunConfig, RunFile
from mtcore.contracts import TaskAdapter
from mtcore.defaults.samplers import ClassBalanced
from mtcore.defaults.schedulers import MixtureStage
from mtcore.errors import ConfigError, ModelError, ResumeMismatch, RunError
from mtcore.evaluation.metrics import Accuracy
from mtcore.fitting import Fitting
from mtcore.pipeline import train
from mtcore.plugins import load_plugins
from mtcore.probes import read_probes
from mtcore.references import Reference
from mtcore.registry import Entry, Plugin, Registry
from mtcore.runfolder import published
from mtcore.types import MethodUse, Piece, TaskSpec

TOYS = Plugin("toys", "toys", "1.0", "loaded")


def toy_task(name, *, words=("差", "好"), rows=48, output="binary", flip=0.0, **changes):
    """A task whose answer can be read off one character, with a share of wrong labels."""
    labels = {str(i): word for i, word in enumerate(words)}

    def made(split):
        source = random.Random(f"{name} {split} {rows}")
        for number in range(rows if split == "train" else 24 if split == "validation" else 0):
            label = source.randrange(len(words))
            wrong = source.random() < flip
            filler = "".join(source.choices("天地人和春夏秋冬", k=source.randrange(2, 12)))
            answer = str(source.randrange(len(words)) if wrong else label)
            yield {"text": f"{filler}{number}{split}{'ABCDEF'[label]}", "label": answer if output != "generation" else (words[label],)}

    class Toy(TaskAdapter):
        spec = TaskSpec(
            **{
                "name": name,
                "output": output,
                "input": "single-sentence",
                "fields": ("text",),
                "instruction": f"任务{name}",
                "template": "{text}\n答案：",
                "words": {} if output == "generation" else labels,
                "metric": "exact-match" if output == "generation" else "accuracy",
                "max_answer_tokens": 4,
                "licence": "none",
                "source": "made up",
                **changes,
            }
        )

        def rows(self, split):
            return made(split)

        def fields(self, row):
            return {"text": row["text"]}

        def answer(self, row):
            return row["label"]

    return Entry("task", f"toys/{name}", Toy, TOYS)


def registry_with(*tasks):
    installed = load_plugins(environment="")
    boxed = [e for kind in ("filter", "sampler", "scheduler", "method", "launcher", "observer") for e in installed.entries(kind)]
    return Registry([*installed.plugins, TOYS], [*boxed, *tasks])


def run_file(base_folder: Path, out: Path, variants=None, **changes) -> RunFile:
    table = {
        "model": str(base_folder),
        "out": str(out),
        "tasks": ["toys/*"],
        "method": {"use": "text2text", "max_length": 64, "batch_tokens": 256},
        "scheduler": {"use": "two-stage", "learning_rate": 3e-3, "examples_per_step": 8, "stage2_epochs": 1},
        "reference": {"use": "single-task", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 2},
        "observers": [],
        **changes,
    }
    configs = {name: RunConfig.model_validate_json(json.dumps({**table, **v})) for name, v in (variants or {"": {}}).items()}
    return RunFile("toy", configs)


def run(file, registry, seen=None):
    folder = Path(next(iter(file.variants.values())).out) / file.name
    return train(file, registry, Fitting((seen if seen is not None else []).append), folder)


def sources(seen):
    return {e.task: e.source for e in seen if isinstance(e, events.ReferenceReady)}


def test_a_run_leaves_verdicts_a_report_and_a_bundle(base_folder, tmp_path):
    file = run_file(base_folder, tmp_path, resource={"toys/a": "high", "toys/b": "low"})
    (outcome,) = run(file, registry_with(toy_task("a"), toy_task("b", words=("一", "二", "三"), output="multi-class", rows=24)))
    report = json.loads((tmp_path / "toy" / "report.json").read_text())
    assert {"run", "variant", "model", "method", "seeds", "groups", "deployment", "cost", "warnings"} <= set(report)
    (group,) = report["groups"]
    assert [t["name"] for t in group["tasks"]] == ["toys/a", "toys/b"]
    assert [s["name"] for s in group["stages"]] == ["high-resource", "mixture"]
    assert group["stages"][0]["tasks"].keys() == {"toys/a"}
    assert report["cost"]["references"]["steps"] == 18
    assert report["cost"]["stage high-resource"]["examples"] == 48
    assert report["cost"]["stage mixture"]["flops"] > 0
    assert (tmp_path / "toy" / "report.md").read_text().startswith("# toy")
    assert "toys/b" in (tmp_path / "toy" / "report.html").read_text()
    assert "README.md" in read_bundle(tmp_path / "toy" / "seed-1" / "classification" / "bundle").files
    (model,) = published(tmp_path / "toy")
    assert model.bundle == tmp_path / "toy" / "seed-1" / "classification" / "bundle"
    assert model.qualified == {t["name"]: t["qualified"] for t in group["tasks"]}
    assert {p.task for p in read_probes(model.bundle)} == {"toys/a", "toys/b"}
    with pytest.raises(RunError, match="seeds 1"):
        published(tmp_path / "toy", seed=2)
    assert json.loads((tmp_path / "toy" / "seed-1" / "classification" / "plan.json").read_text())[0]["draws"] == 48
    assert outcome.average == pytest.approx(sum(t["score"] for t in group["tasks"]) / 2)


def test_a_llama_base_with_an_untied_head_is_trained_by_the_same_code(base_folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    llama = tmp_path / "llama"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=400, max_position_embeddings=256, eos_token_id=0, bos_token_id=None, tie_word_embeddings=False, **sizes)
    LlamaForCausalLM(config).save_pretrained(llama)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llama / name).write_bytes((base_folder / name).read_bytes())
    (outcome,) = run(run_file(llama, tmp_path), registry_with(toy_task("a"), toy_task("g", output="generation")))
    assert [g.name for g in outcome.groups] == ["classification", "generation"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "toy/seed-1/classification/bundle")
    assert type(model) is LlamaForCausalLM
    before = LlamaForCausalLM.from_pretrained(llama)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


def test_a_second_run_reuses_everything_and_says_the_same(base_folder, tmp_path):
    file, registry = run_file(base_folder, tmp_path), registry_with(toy_task("a"), toy_task("b"))
    run(file, registry)
    before = json.loads((tmp_path / "toy" / "report.json").read_text())
    seen = []
    run(file, registry, seen)
    after = json.loads((tmp_path / "toy" / "report.json").read_text())
    assert sources(seen) == {"toys/a": "reused", "toys/b": "reused"}
    assert not any(isinstance(e, events.Stepped) for e in seen)
    assert before["groups"] == after["groups"]


def test_a_changed_task_alone_is_measured_again(base_folder, tmp_path):
    run(run_file(base_folder, tmp_path), registry_with(toy_task("a"), toy_task("b")))
    seen = []
    run(run_file(base_folder, tmp_path), registry_with(toy_task("a"), toy_task("b", rows=40)), seen)
    assert sources(seen) == {"toys/a": "reused", "toys/b": "measured"}
    seen = []
    run(run_file(base_folder, tmp_path), registry_with(toy_task("a", instruction="别的任务"), toy_task("b", rows=40)), seen)
    assert sources(seen) == {"toys/a": "measured", "toys/b": "reused"}


def test_rows_that_change_while_a_model_is_in_training_begin_it_anew_and_say_so(base_folder, tmp_path):
    class Killed(BaseException):
        pass

    def kill(event):
        if isinstance(event, events.Stepped) and not event.work.startswith("reference"):
            raise Killed

    file = run_file(base_folder, tmp_path)
    file = RunFile(file.name, {name: config.model_copy(update={"tasks": ("toys/a",)}) for name, config in file.variants.items()})
    with pytest.raises(Killed):
        train(file, registry_with(toy_task("a")), Fitting(kill), tmp_path / "toy")
    seen = []
    run(file, registry_with(toy_task("a", rows=40)), seen)
    assert any(isinstance(e, events.Warned) and "begins anew" in e.text for e in seen)
    assert not list((tmp_path / "toy/seed-1/classification").glob("work-*"))


def test_a_variant_that_is_run_alone_joins_the_comparison_of_the_others(base_folder, tmp_path):
    mixture = {"use": "mixture", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 1}
    variants = {"alone": {"scheduler": {"use": "single-task"}}, "mixed": {"scheduler": mixture}}
    whole, registry = run_file(base_folder, tmp_path, variants), registry_with(toy_task("a"))
    for name in variants:
        run(RunFile("toy", {name: whole.variants[name]}), registry)
    comparison = json.loads((tmp_path / "toy" / "comparison.json").read_text())
    assert [v["variant"] for v in comparison["variants"]] == ["alone", "mixed"]


def test_a_restart_drops_the_work_of_its_own_variant_and_no_other(base_folder, tmp_path):
    mixture = {"use": "mixture", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 1}
    variants = {"first": {"scheduler": mixture}, "second": {"scheduler": mixture}}
    whole, registry = run_file(base_folder, tmp_path, variants), registry_with(toy_task("a"))
    run(whole, registry)
    kept = (tmp_path / "toy/first/seed-1/classification/result.json").stat().st_mtime_ns
    changed = run_file(base_folder, tmp_path, {"second": {"scheduler": {**mixture, "epochs": 2}}})
    train(changed, registry, Fitting(lambda e: None), tmp_path / "toy", restart=True)
    assert (tmp_path / "toy/first/seed-1/classification/result.json").stat().st_mtime_ns == kept
    report = json.loads((tmp_path / "toy/second/report.json").read_text())
    assert report["groups"][0]["stages"][0]["steps"] == 12


def test_a_task_whose_metric_raises_is_failed_and_the_others_are_judged(base_folder, tmp_path):
    broken = toy_task("b", metric="mine")

    class Mine(Accuracy):
        def statistics(self, spec, predictions, answers):
            raise RuntimeError("no such dictionary")

    broken.cls.metrics = {"mine": Mine}
    (outcome,) = run(run_file(base_folder, tmp_path), registry_with(toy_task("a"), broken))
    by_name = {t.name: t for t in outcome.tasks}
    assert by_name["toys/a"].verdict is not None
    assert by_name["toys/b"].failure == "RuntimeError: no such dictionary"
    assert outcome.failures
    assert json.loads((tmp_path / "toy/report.json").read_text())["groups"][0]["tasks"][1]["qualified"] is False


def test_a_task_may_write_its_own_prompts(base_folder, tmp_path):
    coded = toy_task("c")
    coded.cls.render = lambda self, fields, layout: (Piece("选择："), Piece(fields["text"], is_user=True), Piece("\n答案："))
    (outcome,) = run(run_file(base_folder, tmp_path), registry_with(coded))
    assert outcome.tasks[0].verdict is not None
    bundle = read_bundle(tmp_path / "toy/seed-1/classification/bundle")
    assert bundle.tasks["toys/c"].code == "toys 1.0"
    method = load_plugins(environment="").method(MethodUse.model_validate({"use": bundle.method, **bundle.options}))
    with pytest.raises(ModelError, match=r"code of toys 1\.0"):
        method.load(tmp_path / "toy/seed-1/classification/bundle", {})


def test_test_rows_decide_verdicts_and_have_no_part_in_choosing_checkpoints(base_folder, tmp_path):
    entry = toy_task("a")
    splits = entry.cls.rows
    entry.cls.rows = lambda self, split: (
        [{**r, "text": r["text"] + "!"} for r in splits(self, "validation")][:10] if split == "test" else splits(self, split)
    )
    (outcome,) = run(run_file(base_folder, tmp_path), registry_with(entry))
    (path,) = (tmp_path / "references").glob("*/reference.json")
    reference = Reference.model_validate_json(path.read_text())
    assert len(reference.answers) == 10
    if reference.selection_bar is not None:
        assert reference.selection_bar == max(e.average for e in reference.curve)
    assert not any("no test split" in w for w in outcome.warnings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheduler": {"use": "single-task", "epochs": 3}}, "takes the references as its models"),
        ({"scheduler": {"use": "single-task"}, "method": {"use": "few-shot"}}, "no single-task models of its own"),
        ({"reference": {"use": "mixture"}}, "a scheduler for single tasks"),
        ({"filter": {"use": "none"}, "resource": {"toys/z": "high"}}, "toys/z"),
    ],
)
def test_what_can_be_wrong_before_training_is_found_before_any_reference_is_measured(base_folder, tmp_path, changes, said):
    seen = []
    with pytest.raises(ConfigError, match=said):
        run(run_file(base_folder, tmp_path, **changes), registry_with(toy_task("a")), seen)
    assert not any(isinstance(e, events.WorkStarted) for e in seen)


def test_a_scheduler_that_waits_for_evaluations_is_followed_as_far_as_it_goes(base_folder, tmp_path):
    class Until(MixtureStage):
        name = "until"

        def next_stage(self, profiles, done, sampler):
            if not done:
                return super().next_stage(profiles, done, sampler)
            return None if done[-1].evaluations[-1].average >= 0 else super().next_stage(profiles, [], sampler)

    entry = Entry("scheduler", "until", Until, TOYS)
    use = {"use": "until", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 1}
    (outcome,) = run(run_file(base_folder, tmp_path, scheduler=use), registry_with(toy_task("a"), entry))
    assert len(outcome.groups[0].stages) == 1


def test_two_plugins_may_each_have_a_component_of_one_name(base_folder, tmp_path):
    other = Plugin("others", "others", "2.0", "loaded")
    twins = [Entry("sampler", "twin", type("Twin", (ClassBalanced,), {"name": "twin"}), owner) for owner in (TOYS, other)]
    use = {"use": "mixture", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 1, "sampler": {"use": "others/twin"}}
    (outcome,) = run(run_file(base_folder, tmp_path, scheduler=use), registry_with(toy_task("a"), *twins))
    assert outcome.versions["others"] == "2.0"


class Stop(Exception):
    """What an interruption looks like from inside."""


def interrupted(file, registry, after):
    """Break off at the first step after more than `after` evaluations."""
    seen = []

    def emit(event):
        seen.append(event)
        if sum(isinstance(e, events.Evaluated) for e in seen) > after and isinstance(event, events.Stepped):
            raise Stop

    folder = Path(next(iter(file.variants.values())).out) / file.name
    with pytest.raises(Stop):
        train(file, registry, Fitting(emit), folder)
    return seen


def weights(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.glob("**/bundle/model.safetensors"))}


@pytest.mark.parametrize("after", [0, 2, 4])
def test_interrupted_work_goes_on_from_its_last_evaluation_to_the_same_weights(base_folder, tmp_path, after):
    registry = registry_with(toy_task("a"), toy_task("b"))
    whole = run_file(base_folder, tmp_path / "whole", resource={"toys/a": "high", "toys/b": "low"})
    run(whole, registry)
    broken = run_file(base_folder, tmp_path / "broken", resource={"toys/a": "high", "toys/b": "low"})
    first = interrupted(broken, registry, after)
    second = []
    run(broken, registry, second)
    steps = [sum(isinstance(e, events.Stepped) for e in part) for part in (first, second)]
    assert sum(steps) <= 12 + 12 + 6 + 12 + 6  # nothing but the steps since the last evaluation is done twice
    assert weights(tmp_path / "whole" / "toy") == weights(tmp_path / "broken" / "toy")
    reports = [json.loads((tmp_path / name / "toy" / "report.json").read_text())["groups"][0]["tasks"] for name in ("whole", "broken")]
    assert reports[0] == reports[1]


def test_a_changed_configuration_is_refused_with_the_difference(base_folder, tmp_path):
    registry = registry_with(toy_task("a"))
    run(run_file(base_folder, tmp_path), registry)
    with pytest.raises(ResumeMismatch, match=r"max_steps: was null, now 3"):
        run(run_file(base_folder, tmp_path, max_steps=3), registry)


def test_variants_share_references_and_are_compared(base_folder, tmp_path):
    mixture = {"use": "mixture", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 1, "sampler": {"use": "class-balanced"}}
    bar = {"use": "text2text", "max_length": 64, "batch_tokens": 256}
    variants = {
        "few-shot": {"method": {"use": "few-shot", "shots": 2, "bar": bar}},
        "single-task": {"scheduler": {"use": "single-task"}},
        "class-balanced": {"scheduler": mixture},
    }
    seen = []
    outcomes = run(run_file(base_folder, tmp_path, variants), registry_with(toy_task("a"), toy_task("b")), seen)
    by_name = {o.variant: o for o in outcomes}
    assert [e.source for e in seen if isinstance(e, events.ReferenceReady)] == ["measured"] * 2 + ["reused"] * 4
    assert by_name["single-task"].overhead == 1.0
    assert by_name["single-task"].deployment.overhead == 1.0
    assert all(t.verdict.score == t.verdict.reference for t in by_name["single-task"].tasks)
    assert by_name["few-shot"].costs["total shared"].steps == 0
    comparison = json.loads((tmp_path / "toy" / "comparison.json").read_text())
    assert [v["variant"] for v in comparison["variants"]] == list(variants)
    assert "class-balanced" in (tmp_path / "toy" / "comparison.md").read_text()
    page = (tmp_path / "toy" / "report.html").read_text()
    assert all(name in page for name in variants)
    assert next(e.report for e in seen if isinstance(e, events.RunEnded)) == str(tmp_path / "toy" / "report.html")


def test_a_report_of_an_earlier_version_beside_a_new_one_leaves_no_page_and_is_told(base_folder, tmp_path):
    variants, seen = {name: {"scheduler": {"use": "single-task"}} for name in ("old", "new")}, []
    run(run_file(base_folder, tmp_path, {"old": variants["old"]}), registry_with(toy_task("a")))
    report = tmp_path / "toy" / "old" / "report.json"
    report.write_text(json.dumps({k: v for k, v in json.loads(report.read_text()).items() if k != "format"}))
    (tmp_path / "toy" / "report.html").unlink()
    run(run_file(base_folder, tmp_path, {"new": variants["new"]}), registry_with(toy_task("a")), seen)
    assert "the report of old in run toy was written by an earlier version" in next(
        e.text for e in seen if isinstance(e, events.Warned) and e.about == "report.html"
    )
    assert not (tmp_path / "toy" / "report.html").exists()


def test_classification_and_generation_are_kept_apart_unless_told_otherwise(base_folder, tmp_path):
    tasks = registry_with(toy_task("a"), toy_task("g", output="generation"))
    (apart,) = run(run_file(base_folder, tmp_path / "1"), tasks)
    (together,) = run(run_file(base_folder, tmp_path / "2", filter={"use": "none"}), tasks)
    assert [g.name for g in apart.groups] == ["classification", "generation"]
    assert [g.name for g in together.groups] == ["all"]


def test_several_seeds_are_trained_apart_and_judged_together(base_folder, tmp_path):
    (outcome,) = run(run_file(base_folder, tmp_path, seeds=[1, 2]), registry_with(toy_task("a")))
    (task,) = outcome.tasks
    assert len(task.saturation_epoch) == 2
    assert {s["seed"] for g in outcome.groups for s in g.stages} == {1, 2}
    assert len(weights(tmp_path / "toy")) == 2


def test_a_micro_batch_size_changes_nothing_but_memory(base_folder, tmp_path):
    registry = registry_with(toy_task("a"))
    scores = []
    for tokens in (64, 512):
        method = {"use": "text2text", "max_length": 64, "batch_tokens": tokens}
        (outcome,) = run(run_file(base_folder, tmp_path / str(tokens), method=method), registry)
        scores.append([e["average"] for g in outcome.groups for s in g.stages for e in s["evaluations"]])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_task_that_can_be_learnt_is_learnt_by_the_shared_model_too(base_folder, tmp_path):
    changes = {
        "reference": {"use": "single-task", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 6, "patience": 6},
        "scheduler": {"use": "mixture", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 6},
    }
    (outcome,) = run(run_file(base_folder, tmp_path, **changes), registry_with(toy_task("a", rows=192), toy_task("b", rows=192)))
    assert all(not t.verdict.is_at_chance for t in outcome.tasks)
    assert all(t.verdict.score > 0.8 for t in outcome.tasks)
    assert outcome.overhead in (0.5, 1.0)
