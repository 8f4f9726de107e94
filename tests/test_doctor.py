"""What is in the way of a run is found by looking, named, and told with what to do; and looking changes and fetches nothing."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mtcore.config import RunConfig
from mtcore.contracts import TaskAdapter
from mtcore.doctor import Subject, examine
from mtcore.doctor.machine import existing, odd_threads, outdated, size
from mtcore.doctor.needs import parameters
from mtcore.modeling.load import find_base
from mtcore.plugins import load_plugins
from mtcore.registry import Entry, Plugin, Registry
from mtcore.types import TaskSpec

BOX = load_plugins(environment="")
TASK = """
name = "mood"
output = "binary"
input = "single-sentence"
instruction = "How is it?"
template = "{text}\\n"
words = { no = "bad", yes = "good" }
metric = "accuracy"
licence = "none"
source = "made up"

[rows]
train = "mood.jsonl"
validation = "mood.jsonl"
"""

SPEC = TaskSpec(
    name="broken",
    output="binary",
    input="single-sentence",
    fields=("text",),
    instruction="How is it?",
    template="{text}\n",
    words={"no": "bad", "yes": "good"},
    metric="accuracy",
    licence="none",
    source="made up",
)


@pytest.fixture
def config(tmp_path, base_folder):
    """A run that lacks nothing."""
    (tmp_path / "mood.toml").write_text(TASK, encoding="utf-8")
    (tmp_path / "mood.jsonl").write_text('{"text": "a", "answer": "no"}\n', encoding="utf-8")
    return RunConfig(model=str(base_folder), out=str(tmp_path / "runs"), tasks=(str(tmp_path / "mood.toml"),))


def found(config, *, registry=BOX, name=None, **changes):
    """Findings as (check, status, text and todo); of one check where a name is given."""
    subject = Subject(**{"registry": registry, "configs": {"": config}, "has_run": True, **changes})
    told = [(check, f.status, f"{f.text} {f.todo}") for check, f in examine(subject)]
    return [f[1:] for f in told if f[0] == name] if name else told


def changed(config, **changes):
    return RunConfig.model_validate_json(json.dumps({**config.model_dump(mode="json"), **changes}))


def test_the_doctor_itself_needs_no_torch_to_start():
    code = "import sys, mtcore.cli.doctor, mtcore.doctor; print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


# --- the machine ---------------------------------------------------------------------------------------------------------------------


def test_a_run_that_lacks_nothing_has_no_problems_and_leaves_no_trace(config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    told = found(config)
    assert [f for f in told if f[1] == "problem"] == []
    assert {"python", "packages", "device", "processors", "out", "plugins", "components", "base", "rows", "room", "hub"} <= {
        f[0] for f in told
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_packages_are_held_against_the_floors_of_our_own_metadata(config):
    ((status, text),) = found(config, name="packages")
    needed = [Requirement(line) for line in requires("mtcore")]
    assert status == "fine"
    assert re.findall(r"([\w-]+) \d", text.split(":")[1]) == [r.name for r in needed if r.marker is None]
    extras = {re.match(r"[\w-]+", text).group() for _, text in found(config, name="extras")}
    assert {"deepspeed", "flash-attn"} <= extras


def test_a_package_that_is_missing_or_too_old_is_told_with_what_is_needed():
    assert outdated(Requirement("numpy>=1.0")) == ""
    assert re.fullmatch(r"numpy is \d[\d.]*, and >=9999 is needed", outdated(Requirement("numpy>=9999")))
    assert outdated(Requirement("mtcore-not-there>=2")) == "mtcore-not-there is not installed, and >=2 is needed"


@pytest.mark.parametrize(
    ("threads", "seen", "usable", "told"),
    [
        (None, 8, 8, ""),
        (None, 64, 4, "may use 4 of the 64 CPUs"),
        ("4", 8, 8, ""),
        ("many", 8, 8, "is no number"),
        ("0", 8, 8, "is no number"),
        ("16", 8, 8, "wait for each other"),
        ("1", 8, 8, "leaves 7 of 8 CPUs idle"),
        ("1", 2, 2, ""),
    ],
)
def test_an_odd_number_of_threads_is_told(threads, seen, usable, told):
    odd = odd_threads(threads, seen=seen, usable=usable)
    assert told in odd
    assert bool(odd) == bool(told)


def test_threads_are_read_from_the_environment(config, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "a few")
    ((status, text),) = found(config, name="processors")
    assert status == "warning"
    assert "'a few' is no number of threads" in text
    assert "export OMP_NUM_THREADS=" in text


def test_a_place_that_cannot_be_written_is_a_problem(config):
    ((status, text),) = found(changed(config, out="/proc/self/runs"), name="out")
    assert status == "problem"
    assert "/proc/self: run folders cannot be written here" in text
    assert "choose another place" in text


def test_the_nearest_folder_that_is_there_is_looked_at(tmp_path, monkeypatch):
    assert existing(tmp_path / "a" / "b") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert existing(Path("runs")) == tmp_path


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (7.6e9, "7.6 GB"), (2.5e15, "2.5e+03 TB")])
def test_sizes_are_written_with_their_unit(count, text):
    assert size(count) == text


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on(config):
    told = found(config, registry=None)
    ((status, text),) = [f[1:] for f in told if f[0] == "plugins"]
    assert status == "problem"
    assert "this could not be looked at: AttributeError" in text
    assert ("base", "fine") in [f[:2] for f in told]


# --- what a run needs ----------------------------------------------------------------------------------------------------------------


def test_a_broken_plugin_is_told_with_its_owner(config):
    broken = Plugin("toys", "their-toys", "1.0", "failed", error="SyntaxError: invalid syntax")
    registry = Registry(
        [*BOX.plugins, broken],
        [e for kind in ("filter", "sampler", "scheduler", "method", "launcher", "observer") for e in BOX.entries(kind)],
    )
    assert "plugin 'toys' of their-toys 1.0 provides nothing: SyntaxError" in found(config, registry=registry, name="plugins")[0][1]
    ((status, text),) = found(changed(config, tasks=["toys/a"]), registry=registry, name="components")
    assert status == "problem"
    assert "their-toys" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": {"use": "text3text"}}, "no method is called 'text3text'; did you mean 'text2text'"),
        ({"method": {"use": "text2text", "layuot": 1}}, "did you mean 'layout'"),
        ({"scheduler": {"use": "mixture", "sampler": {"use": "unimaxx"}}}, "no sampler is called 'unimaxx'"),
        ({"observers": [{"use": "nobody"}]}, "no observer is called 'nobody'"),
        ({"tasks": ["nowhere/*"]}, "no task is called 'nowhere/*'"),
    ],
)
def test_what_a_run_file_names_in_vain_is_a_problem(config, changes, told):
    ((status, text),) = found(changed(config, **changes), name="components")
    assert status == "problem"
    assert told in text


def test_every_variant_is_looked_at(config):
    told = found(config, configs={"a": config, "b": changed(config, filter={"use": "nothing"})}, name="components")
    assert [(status, text.split(":")[0]) for status, text in told] == [("fine", "variant a"), ("problem", "variant b")]


def test_bf16_without_such_a_device_is_a_problem(config):
    import torch

    told = found(changed(config, method={"use": "text2text", "precision": "bf16"}), name="precision")
    can = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    assert [status for status, _ in told] == ([] if can else ["problem"])
    assert found(config, name="precision") == []


def test_a_missing_base_is_a_problem_for_a_run_and_worth_knowing_without_one(config):
    missing = changed(config, model="no-such-base")
    ((status, text),) = found(missing, name="base")
    assert status == "problem"
    assert "mtcore base no-such-base --corpus" in text
    assert found(missing, has_run=False, name="base")[0][0] == "warning"


def test_a_base_without_weights_is_a_problem(config, base_folder, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "bare" / name).write_bytes((base_folder / name).read_bytes())
    ((status, text),) = found(changed(config, model=str(tmp_path / "bare")), name="base")
    assert status == "problem"
    assert "no *.safetensors" in text


def test_the_parameters_of_a_base_are_counted_without_loading_it(base_folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_folder)
    assert parameters(find_base(str(base_folder), base_folder)) == sum(p.numel() for p in model.parameters())


def test_the_room_that_a_run_needs_is_counted_in_models(config, base_folder):
    count = parameters(find_base(str(base_folder), base_folder))
    disk, memory = found(changed(config, seeds=[1, 2], keep_reference_weights=True), name="room")
    # a bundle and a reference for each of two seeds; four checkpoints of weights and two moments
    assert f"needs about {size(count * 4 * (2 + 2 + 3 * 4))}" in disk[1]
    assert f"take {size(count * 4 * 4)}" in memory[1]
    few_shot = found(changed(config, method={"use": "few-shot"}), name="room")
    assert f"needs about {size(count * 4 * 3 * 4)}" in few_shot[0][1]


def test_missing_rows_are_told_by_task(config, tmp_path):
    (tmp_path / "mood.jsonl").unlink()
    ((status, text),) = found(config, name="rows")
    assert status == "problem"
    assert "mood.jsonl is not there" in text
    ((status, text),) = found(changed(config, data=str(tmp_path / "gone"), tasks=[]), name="rows")
    assert status == "problem"
    assert f"the data folder {tmp_path / 'gone'} is not there" in text


def test_a_task_whose_code_fails_is_told_and_the_others_are_read(config):
    class Broken(TaskAdapter):
        spec = SPEC

        def rows(self, split):
            raise ValueError("not today")

        fields = answer = rows

    class Empty(Broken):
        spec = SPEC.model_copy(update={"name": "empty"})

        def rows(self, split):
            return []

    class Here(Broken):
        spec = SPEC.model_copy(update={"name": "here"})

        def rows(self, split):
            return [{"text": "a"}]

    toys = Plugin("toys", "toys", "1.0", "loaded")
    registry = Registry([toys], [Entry("task", f"toys/{cls.spec.name}", cls, toys) for cls in (Broken, Empty, Here)])
    told = found(RunConfig(), registry=registry, has_run=False, name="rows")
    assert [status for status, _ in told] == ["warning", "warning", "fine"]
    assert "toys/broken: ValueError: not today" in told[0][1]
    assert "toys/empty: no train rows" in told[1][1]
    assert "1 task with rows: toys/here" in told[2][1]


# --- the command ---------------------------------------------------------------------------------------------------------------------

MODULE = '''
"""A task whose rows are on the Hub."""

from mtcore.contracts import TaskAdapter
from mtcore.data.sources import HubSource, task_rows
from mtcore.hookspecs import hookimpl
from mtcore.types import TaskSpec


class Far(TaskAdapter):
    spec = TaskSpec(name="far", output="binary", input="single-sentence", fields=("text",), instruction="judge", template="{text}",
                    words={"0": "no", "1": "yes"}, metric="accuracy", licence="none", source="made up")

    def rows(self, split):
        return task_rows(self.data, "toys/far", split, HubSource("no-such-owner/no-such-rows"))

    def fields(self, row):
        return row

    def answer(self, row):
        return row["label"]


@hookimpl
def register_tasks():
    return [Far]
'''


def doctor(folder, *arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("MTCORE_DATA", "MTCORE_PLUGINS", "HF_HUB_OFFLINE")}
    command = [sys.executable, "-c", "from mtcore.cli import main; main()", "doctor", *arguments]
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "site"), **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_command_says_what_to_do_and_exits_by_what_it_found(config, tmp_path):
    info = tmp_path / "site" / "toys-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site/toys_plugin.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtcore]\ntoys = toys_plugin\nlost = not_there\n[mtcore.commands]\ntrain = toys_plugin:Far\n")
    (tmp_path / "run.toml").write_text(f'model = "{config.model}"\ntasks = ["mood.toml", "toys/far"]\n')
    done = doctor(tmp_path, "run.toml", "--json")
    table = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    told = [(f["check"], f["text"]) for f in table["findings"] if f["status"] == "warning"]
    assert [check for check, _ in told] == ["plugins", "plugins", "rows"]
    assert "plugin 'lost' of toys 1.0 provides nothing: ModuleNotFoundError" in told[0][1]
    assert "command 'train' is claimed by mtcore itself and toys" in told[1][1]
    assert "1 task without rows here; a run would fetch them from the Hugging Face Hub: toys/far" in told[2][1]
    assert table["warnings"] == 3
    # a run that may not reach the Hub cannot do without them
    done = doctor(tmp_path, "run.toml", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert re.search(r"✗ +rows +toys/far: no train rows", done.stdout)
    assert done.stdout.splitlines()[-1] == "1 problem, 2 warnings"


def test_a_run_file_that_cannot_be_read_is_a_problem_beside_the_others(tmp_path):
    (tmp_path / "run.toml").write_text("taks = []\n")
    done = doctor(tmp_path, "run.toml", MTCORE_PLUGINS="")
    assert done.returncode == 1
    assert "did you mean 'tasks'" in done.stdout
    assert re.search(r"✓ +python +Python 3", done.stdout)
    assert done.stderr == ""
