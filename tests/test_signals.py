"""`mtcore train`, the signals that end a process and observers that raise: it exits as a shell expects, and comes to the same end."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

MODULE = '''
"""Tasks that send their own process a signal, at the place that the environment names, once."""

import os
import signal
from pathlib import Path

from mtcore import events
from mtcore.contracts import Observer, TaskAdapter
from mtcore.evaluation.metrics import Accuracy
from mtcore.hookspecs import hookimpl
from mtcore.types import TaskSpec

PLACE, _, NAME = os.environ.get("TOY_SIGNAL", "").partition(":")
DONE = Path("signalled")


def pass_by(place):
    if place == PLACE and not DONE.exists():
        DONE.touch()
        os.kill(os.getpid(), signal.Signals[NAME])


class Watched(Accuracy):
    name = "watched"

    def statistics(self, spec, predictions, answers):
        pass_by("evaluate")
        return super().statistics(spec, predictions, answers)


class First(TaskAdapter):
    metrics = {"watched": Watched}
    spec = TaskSpec(
        name="first", output="binary", input="single-sentence", fields=("text",), instruction="judge", template="{text}\\nanswer: ",
        words={"0": "no", "1": "yes"}, metric="watched", licence="none", source="made up",
    )

    def rows(self, split):
        pass_by("read")
        count = {"train": 32, "validation": 16}.get(split, 0)
        return [{"text": f"{'AB'[i % 2]} {split} {i} {self.spec.name}", "label": str(i % 2)} for i in range(count)]

    def fields(self, row):
        return {"text": row["text"]}

    def answer(self, row):
        return row["label"]


class Second(First):
    spec = First.spec.model_copy(update={"name": "second"})


class Clumsy(Observer):
    name = "clumsy"

    def on_event(self, event, folder):
        raise OSError("no space left")


class Watcher(Observer):
    name = "watcher"

    def on_event(self, event, folder):
        if isinstance(event, events.Stepped) and not event.work.startswith("reference") and event.step == 3:
            pass_by("train")


@hookimpl
def register_tasks():
    return [First, Second]


@hookimpl
def register_observers():
    return [Watcher, Clumsy]
'''

RUN = """
model = "{model}"
tasks = ["toys/*"]
observers = [{{ use = "clumsy" }}, {{ use = "watcher" }}, {{ use = "events" }}]
method = {{ use = "text2text", max_length = 64, batch_tokens = 256 }}
scheduler = {{ use = "mixture", learning_rate = 3e-3, examples_per_step = 8, epochs = 1, sampler = {{ use = "class-balanced" }} }}
reference = {{ use = "single-task", learning_rate = 3e-3, examples_per_step = 8, epochs = 1 }}
"""


@pytest.fixture(scope="module")
def train(base_folder, forks):
    """`mtcore train` in a folder, sent a signal at a place."""

    def typed(folder: Path, signalled: str = "") -> "subprocess.CompletedProcess[str]":
        info = folder / "site/toys-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (folder / "site/toys_plugin.py").write_text(MODULE)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[mtcore]\ntoys = toys_plugin\n")
        (folder / "run.toml").write_text(RUN.format(model=base_folder))
        return forks.mtcore(folder, "train", "run.toml", PYTHONPATH=str(folder / "site"), TOY_SIGNAL=signalled)

    return typed


def came_to(folder: Path) -> tuple[dict[str, float], str]:
    """Scores of the shared model and the hash of its weights."""
    report = json.loads((folder / "runs/run/report.json").read_text(encoding="utf-8"))
    weights = folder / "runs/run/seed-1/classification/bundle/model.safetensors"
    return {task["name"]: task["score"] for group in report["groups"] for task in group["tasks"]}, hashlib.sha256(
        weights.read_bytes()
    ).hexdigest()


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = train(folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("observer 'clumsy' is told nothing more, because it raised OSError: no space left") == 1
    return came_to(folder)


@pytest.mark.parametrize(("place", "name", "code"), [("read", "SIGTERM", 143), ("train", "SIGTERM", 143), ("evaluate", "SIGINT", 130)])
def test_a_signal_ends_a_run_in_order_and_the_same_command_goes_on(train, tmp_path, whole, place, name, code):
    cut = train(tmp_path, f"{place}:{name}")
    assert cut.returncode == code, cut.stderr
    assert f"stopped by {name}" in cut.stderr
    assert "Traceback" not in cut.stderr
    assert not (tmp_path / "runs/run/report.json").exists()
    again = train(tmp_path)
    assert again.returncode == 0, again.stderr
    assert came_to(tmp_path) == whole
