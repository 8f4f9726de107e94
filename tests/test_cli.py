"""The command line, as a user types it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
"""Two toy tasks and a sampler, from outside."""

from mtcore.contracts import Sampler, TaskAdapter
from mtcore.hookspecs import hookimpl
from mtcore.types import Mixture, TaskSpec


class Toy(TaskAdapter):
    def rows(self, split):
        count = {"train": 32, "validation": 16}.get(split, 0)
        return [{"text": f"{'AB'[i % 2]} {split} {i} {self.spec.name}", "label": str(i % 2)} for i in range(count)]

    def fields(self, row):
        return {"text": row["text"]}

    def answer(self, row):
        return row["label"]


def spec(name, **changes):
    table = dict(name=name, output="binary", input="single-sentence", fields=("text",), instruction="judge", template="{text}\\nanswer: ",
                 words={"0": "no", "1": "yes"}, metric="accuracy", licence="none", source="made up")
    return TaskSpec(**{**table, **changes})


class First(Toy):
    spec = spec("first")


class Second(Toy):
    spec = spec("second", instruction="judge again")


class Topics(Toy):
    spec = spec("topics", output="multi-label", words={"0": "food", "1": "room"}, none_word="none")

    def answer(self, row):
        return (row["label"],) if len(row["text"]) % 3 else ()


class Even(Sampler):
    name = "even"

    def epoch_draws(self, profiles):
        return sum(p.train_rows for p in profiles)

    def mix(self, profiles, draws, ledger):
        return Mixture(shares={p.name: 1 / len(profiles) for p in profiles})


@hookimpl
def register_tasks():
    return [First, Second, Topics]


@hookimpl
def register_samplers():
    return [Even]
'''

RUN = """
model = "{model}"
tasks = ["toys/*"]
method = {{ use = "text2text", max_length = 64, batch_tokens = 256 }}
scheduler = {{ use = "mixture", learning_rate = 3e-3, examples_per_step = 8, epochs = 1, sampler = {{ use = "even" }} }}
reference = {{ use = "single-task", learning_rate = 3e-3, examples_per_step = 8, epochs = 1 }}
"""


@pytest.fixture(scope="module")
def mtcore(forks):
    """`mtcore ARGUMENTS`, typed in a folder."""

    def typed(folder: Path, *arguments: str, stdin: str = "", plugin: bool = True):
        return forks.mtcore(folder, *arguments, stdin=stdin, **({"PYTHONPATH": str(folder / "site")} if plugin else {}))

    return typed


@pytest.fixture(scope="module")
def place(tmp_path_factory, base_folder, mtcore):
    """A folder with an installed plugin, a run file, and what running it once left and printed."""
    folder = tmp_path_factory.mktemp("cli")
    site = folder / "site"
    info = site / "toys-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "toys_plugin.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtcore]\ntoys = toys_plugin\n")
    (folder / "run.toml").write_text(RUN.format(model=base_folder))
    done = mtcore(folder, "train", "run.toml")
    assert done.returncode == 0, done.stderr
    return folder, done


BUNDLE = "runs/run/seed-1/classification/bundle"


def test_training_prints_the_table_the_deployment_and_the_cost(place):
    _, done = place
    for text in ("toys/first", "at chance", "put online:", "stage mixture", "total references + shared", "reports: runs/run"):
        assert text in done.stdout
    assert "reference toys/second" in done.stderr


def test_a_report_can_be_printed_again(place, mtcore):
    folder, _ = place
    assert mtcore(folder, "report", "runs/run").stdout.startswith("# run")
    assert json.loads(mtcore(folder, "report", "runs/run", "--json").stdout)["run"] == "run"
    missing = mtcore(folder, "report", "runs")
    assert missing.returncode == 2
    assert "runs/run" in missing.stderr


def test_training_ends_by_saying_where_the_page_is_and_it_can_be_rendered_again(place, mtcore):
    folder, done = place
    assert done.stdout.rstrip().endswith("in a browser: runs/run/report.html")
    page = folder / "runs/run/report.html"
    first = page.read_text(encoding="utf-8")
    assert "toys/second" in first
    page.unlink()
    assert mtcore(folder, "report", "runs/run", "--html").stdout == "runs/run/report.html\n"
    assert page.read_text(encoding="utf-8") == first
    missing = mtcore(folder, "report", "runs", "--html")
    assert missing.returncode == 2
    assert "Runs near it: runs/run." in missing.stderr


def test_reports_of_an_earlier_version_are_refused_for_the_page(place, tmp_path, mtcore):
    folder, _ = place
    old = tmp_path / "old"
    old.mkdir()
    for name in ("report.json", "resolved.json"):
        table = json.loads((folder / "runs/run" / name).read_text(encoding="utf-8"))
        (old / name).write_text(json.dumps({k: v for k, v in table.items() if k != "format"}), encoding="utf-8")
    refused = mtcore(folder, "report", str(old), "--html")
    assert refused.returncode == 2
    assert "was written by an earlier version of mtcore; run the same `mtcore train` again" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_code_of_a_model_card_runs(place, mtcore):
    folder, _ = place
    card = (folder / BUNDLE / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    (command,) = re.findall(r"^```bash\n(.*?)^```$", card, re.M | re.S)
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder / BUNDLE, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    request, _, asked = command.partition(" | mtcore ")
    answered = mtcore(folder / BUNDLE, *asked.split(), stdin=request.removeprefix("echo ").strip("'"))
    assert json.loads(answered.stdout)["answer"] in ("0", "1")


def test_a_bundle_answers_json_lines_where_its_plugin_is_not_installed(place, mtcore):
    folder, _ = place
    lines = '{"text": "A 1"}\n{"text": 3}\nno json\n{"text": "B 2"}\n'
    done = mtcore(folder, "predict", BUNDLE, "--task", "toys/first", stdin=lines, plugin=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [set(a) for a in answers] == [
        {"task", "answer", "probabilities", "flags"},
        {"task", "error"},
        {"task", "error"},
        {"task", "answer", "probabilities", "flags"},
    ]
    assert answers[0]["answer"] in ("0", "1")
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1)


def test_a_multi_label_task_answers_with_labels_in_canonical_order(place, mtcore):
    folder, _ = place
    done = mtcore(folder, "predict", BUNDLE, "--task", "toys/topics", stdin='{"text": "A 1"}\n', plugin=False)
    (answer,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert answer["answer"] in ([], ["0"], ["1"], ["0", "1"])


def test_a_task_that_is_not_in_the_bundle_is_refused_with_the_nearest_name(place, mtcore):
    folder, _ = place
    done = mtcore(folder, "predict", BUNDLE, "--task", "toys/frist", plugin=False)
    assert done.returncode == 2
    assert "did you mean 'toys/first'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bundle_loads_with_plain_transformers(place):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = place
    model = AutoModelForCausalLM.from_pretrained(folder / BUNDLE)
    tokenizer = AutoTokenizer.from_pretrained(folder / BUNDLE)
    ids = tokenizer("judge\nA 1\nanswer: ", return_tensors="pt").input_ids
    assert model(ids).logits.shape[-1] == 400


def test_a_bundle_whose_files_were_changed_is_not_loaded(place, tmp_path, mtcore):
    import shutil

    folder, _ = place
    copy = tmp_path / "bundle"
    shutil.copytree(folder / BUNDLE, copy)
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    done = mtcore(folder, "predict", str(copy), "--task", "toys/first")
    assert done.returncode == 2
    assert "tokenizer.json missing or changed" in done.stderr


def test_a_plan_is_json_and_loads_no_torch(place):
    folder, _ = place
    code = (
        "import sys; sys.argv = ['mtcore', 'plan', 'run.toml', '--json', '--order', 'order.parquet']\nfrom mtcore.cli import main\nmain()\n"
    )
    check = f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
    done = subprocess.run([sys.executable, "-c", check], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("False")
    plan = json.loads(done.stdout)
    (group,) = plan["groups"]
    (stage,) = group["stages"]
    assert (group["name"], stage["name"], stage["steps"]) == ("classification", "mixture", 12)
    assert stage["tasks"]["toys/first"] == {
        "share": 1 / 3,
        "draws": 32,
        "passes": 1.0,
        "unseen": 0.0,
        "token_share": pytest.approx(1 / 3, abs=0.1),
    }

    import pyarrow.parquet as pq

    order = pq.read_table(folder / "order.parquet").to_pydict()
    assert set(order) >= {"stage", "position", "task", "row", "pass"}
    assert order["position"] == list(range(96))
    assert sorted(r for r, t in zip(order["row"], order["task"], strict=True) if t == "toys/first") == list(range(32))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "run.toml", "--set", "scheduler.sampler.use=evn"], "did you mean 'even'"),
        (["plan", "run.toml", "--set", "taks=1"], "unknown key 'taks'; did you mean 'tasks'"),
        (["plan", "run.toml", "--set", 'tasks=["toys/frist"]'], "did you mean 'toys/first'"),
        (["plan", "run.toml", "--set", 'scheduler={use="mixture", sampler={use="temperature", tau=0}}'], "tau"),
        (["plan", "rum.toml"], "run.toml"),
        (["train", "run.toml", "--set", "method.max_length=9", "--set", "out=other"], "leave no room for the text"),
        (["train", "run.toml", "--set", "max_steps=3"], "max_steps: was null, now 3"),
        (["train", "run.toml", "--set", "model=nothing", "--set", "out=other"], "mtcore base nothing"),
        (["predict", "runs", "--task", "x"], "runs/run/seed-1/classification/bundle"),
    ],
)
def test_bad_input_is_told_in_a_sentence_without_a_traceback(place, arguments, said, mtcore):
    folder, _ = place
    done = mtcore(folder, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_process_in_the_same_run_is_refused(place, mtcore):
    import fcntl

    folder, _ = place
    with (folder / "runs/run/lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = mtcore(folder, "train", "run.toml")
    assert done.returncode == 2
    assert "another process is at work" in done.stderr


def test_a_base_is_built_from_a_corpus_and_trained_on(tmp_path, mtcore):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n今天天气很好。\n" * 50)
    arguments = ["--corpus", "corpus", "--width", "16", "--layers", "1", "--heads", "2", "--vocabulary", "300", "--context", "64"]
    done = mtcore(tmp_path, "base", "mini", *arguments, plugin=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs/bases/mini/config.json").read_text())["model_type"] == "qwen2"
    again = mtcore(tmp_path, "base", "mini", *arguments, plugin=False)
    assert "built already" in again.stdout
    other = mtcore(tmp_path, "base", "mini", *arguments, "--passes", "2", plugin=False)
    assert other.returncode == 2
    assert "another corpus or recipe" in other.stderr
    missing = mtcore(tmp_path, "base", "other", "--corpus", "runs/bases/mini", plugin=False)
    assert missing.returncode == 2
    assert "no text there" in missing.stderr


def test_a_plan_stops_being_an_order_where_references_must_speak_first(place, mtcore):
    folder, _ = place
    two_stage = 'scheduler={use="two-stage", learning_rate=1e-3, examples_per_step=8, stage2={use="even"}}'
    done = mtcore(folder, "plan", "run.toml", "--set", two_stage, "--json", "--order", "open.parquet")
    first, second = json.loads(done.stdout)["groups"][0]["stages"]
    assert (first["name"], first["steps"], first["tasks"]) == ("high-resource", "unknown", "unknown")
    assert {t["share"] for t in second["tasks"].values()} == {1 / 3}
    assert {t["unseen"] for t in second["tasks"].values()} == {"unknown"}
    assert "0 draws written" in done.stderr
    assumed = '{"toys/first"="high", "toys/second"="low", "toys/topics"="low"}'
    done = mtcore(folder, "plan", "run.toml", "--set", two_stage, "--set", f"resource={assumed}", "--json", "--order", "known.parquet")
    first, second = json.loads(done.stdout)["groups"][0]["stages"]
    assert list(first["tasks"]) == ["toys/first"]
    assert {t["unseen"] for t in second["tasks"].values()} == {0.0}
    assert "draws written" in done.stderr


def test_two_processes_train_what_one_trains(place):
    folder, _ = place
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "site")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mtcore", "train", "run.toml"]
    done = subprocess.run(
        [*command, "--set", "out=two"], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((folder / out / "run/report.json").read_text())["groups"][0] for out in ("runs", "two"))
    for a, b in zip(one["stages"][0]["evaluations"], two["stages"][0]["evaluations"], strict=True):
        assert a["average"] == pytest.approx(b["average"], abs=0.05)
    assert {n: t["draws"] for n, t in one["stages"][0]["tasks"].items()} == {n: t["draws"] for n, t in two["stages"][0]["tasks"].items()}
