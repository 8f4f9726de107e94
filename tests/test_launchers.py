"""Launchers: references measured by other processes are those that the run itself would measure; what fails, dies or is stopped is told."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtcore import events
from mtcore.config import RunConfig
from mtcore.contracts import Launcher
from mtcore.defaults.launchers import Processes
from mtcore.errors import ConfigError, RunError
from mtcore.fitting import Fitting
from mtcore.interrupts import Stop
from mtcore.measuring import measure, measure_job, measurements, order
from mtcore.pipeline import prepare
from mtcore.plugins import load_plugins
from mtcore.preparation import Preparer
from mtcore.references import Reference
from mtcore.registry import Entry, Plugin, Registry
from mtcore.testing import launcher_checks
from mtcore.testing.observers import EVENTS
from mtcore.types import Job
from mtcore.wire import event_from_json, event_to_json

BOX = load_plugins(environment="")
SPEC = """
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


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks that files declare, in a folder whose name means something in a pattern; the box is the only plugin."""
    monkeypatch.setenv("MTCORE_PLUGINS", "")
    folder = tmp_path / "tasks [toy]"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.toml").write_text(SPEC.format(name=name), encoding="utf-8")
        for split, rows in (("train", 24), ("validation", 12)):
            lines = [f"{split} {n} is {name if n % 2 else 'none'},{'yes' if n % 2 else 'no'}\n" for n in range(rows)]
            (folder / f"{name}-{split}.csv").write_text("text,answer\n" + "".join(lines), encoding="utf-8")
    return folder


def config_of(declared: Path, base_folder: Path, out: Path, **changes: Any) -> RunConfig:
    table = {
        "model": str(base_folder),
        "out": str(out),
        "tasks": [str(declared / f"{name}.toml") for name in ("a", "b")],
        "method": {"use": "text2text", "max_length": 64, "batch_tokens": 256},
        "scheduler": {"use": "single-task"},
        "reference": {"use": "single-task", "learning_rate": 3e-3, "examples_per_step": 8, "epochs": 2},
        "observers": [],
        **changes,
    }
    return RunConfig.model_validate_json(json.dumps(table))


def measured(config: RunConfig, registry: Registry = BOX, seen: list[events.Event] | None = None) -> dict[str, Reference]:
    """The references of a run, by task."""
    emit = (seen if seen is not None else []).append
    prepared = prepare("", config, Preparer(registry, emit), emit)
    return {name: reference for (name, _), reference in measure(prepared, registry, Fitting(emit))[0].items()}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in ("seconds", "capacity", "peaks")}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def kept(out: Path) -> dict[str, Any]:
    """What lies in the store, by key, apart from how long it took."""
    return {path.parent.name: without_times(json.loads(path.read_text())) for path in out.glob("references/*/reference.json")}


def toy(what: str, folder: Path, number: int = 0) -> Job:
    name = f"toy {number}"
    return Job(name=name, call="mtcore.testing.launchers:toy_job", data={"name": name, "what": what, "folder": str(folder)})


def processes(workers: int) -> Processes:
    return Processes(Processes.Config(workers=workers))


def nobody(event: events.Event) -> None:
    pass


# --- references -------------------------------------------------------------------------------------------------------------------------


def test_references_measured_by_processes_are_those_of_a_run_in_turn(declared: Path, base_folder: Path, tmp_path: Path) -> None:
    seen: list[events.Event] = []
    apart = config_of(declared, base_folder, tmp_path / "apart", launcher={"use": "processes"})
    references = measured(apart, seen=seen)
    assert measured(config_of(declared, base_folder, tmp_path / "in-turn")).keys() == references.keys() == {"local/a", "local/b"}
    assert kept(tmp_path / "apart") == kept(tmp_path / "in-turn") != {}
    told = {(e.task, e.source) for e in seen if isinstance(e, events.ReferenceReady)}
    assert told == {("local/a", "measured"), ("local/b", "measured")}
    steps = {
        work: sum(isinstance(e, events.Stepped) and e.work == work for e in seen) for work in ("reference local/a", "reference local/b")
    }
    assert steps == {"reference local/a": 6, "reference local/b": 6}
    assert sum(isinstance(e, events.RowsRead) for e in seen) == 2
    again: list[events.Event] = []
    assert measured(apart, seen=again) == references
    assert {e.source for e in again if isinstance(e, events.ReferenceReady)} == {"reused"}


def test_a_run_that_is_stopped_has_its_workers_save_and_goes_on_from_there(declared: Path, base_folder: Path, tmp_path: Path) -> None:
    config = config_of(declared, base_folder, tmp_path / "out", launcher={"use": "processes"}, observers=[{"use": "events"}])
    settings = {**config.model_dump(mode="json"), "reference.epochs": 10_000, "reference.patience": 10_000}
    command = [sys.executable, "-m", "mtcore", "train"]
    for key in ("model", "out", "tasks", "method", "scheduler", "launcher", "observers", "reference.epochs", "reference.patience"):
        command += ["--set", f"{key}={as_toml(settings[key])}"]
    log = tmp_path / "out" / "run" / "events.jsonl"

    def told(kind: str) -> list[dict[str, Any]]:
        lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
        return [e for e in (json.loads(line) for line in lines if line.endswith("\n")) if e["event"] == kind]

    for turn, (number, code) in enumerate([(signal.SIGTERM, 143), (signal.SIGINT, 130)]):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
            begun = len(told("Stepped"))
            # both are at work, and have been for a while
            assert within(60, lambda before=begun: len({e["work"] for e in told("Stepped")[before:]}) == 2 or run.poll() is not None)
            run.send_signal(number)
            _, said = run.communicate(timeout=60)
            assert run.returncode == code, said
        assert len(told("Interrupted")) == 2 * (turn + 1), said
    assert [e["done"] > 0 for e in told("WorkStarted")] == [False, False, True, True]


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(part)}" for key, part in value.items()) + "}"
    return f"[{', '.join(map(as_toml, value))}]" if isinstance(value, list) else json.dumps(value)


def test_a_process_that_would_measure_something_else_says_what_differs(declared: Path, base_folder: Path, tmp_path: Path) -> None:
    planned = orders(declared, base_folder, tmp_path)["local/a"]
    planned["recipe"]["task"] = "other rows"
    planned["recipe"]["seed"] = 7
    with pytest.raises(
        RunError, match=r'local/a on .* task: "other rows" there, ".{64}" here; seed: 7 there, 1 here\. Every process needs'
    ):
        measure_job(planned, nobody, Stop())


@pytest.mark.parametrize("key", ["out", "data", "model"])
def test_a_process_that_does_not_see_the_files_of_the_run_says_so(declared: Path, base_folder: Path, tmp_path: Path, key: str) -> None:
    planned = orders(declared, base_folder, tmp_path)["local/a"]
    planned["config"][key] = str(tmp_path / "another machine's")
    with pytest.raises(RunError, match=f"does not see .*another machine's.*`{key}` must be on a file system that every process shares"):
        measure_job(planned, nobody, Stop())


def test_an_order_names_its_files_from_the_root(declared: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(base_folder)
    config = config_of(
        declared.relative_to(tmp_path), Path("base"), Path("out"), data="rows", resource={"local/a": "high", "local/b": "low"}
    )
    prepared = prepare("", config, Preparer(BOX, nobody), nobody)
    told = order(config, measurements(prepared, BOX)["local/b", 1]).config
    assert (told.model, told.out, told.data) == (str(tmp_path / "base"), str(tmp_path / "out"), str(tmp_path / "rows"))
    assert (told.resource, told.seeds, told.observers) == ({"local/b": "low"}, (1,), ())
    assert [entry.name for entry in BOX.tasks(told.tasks)] == ["local/b"]


def orders(declared: Path, base_folder: Path, out: Path) -> dict[str, Any]:
    """What the processes of a run would be told, by task, as JSON."""
    config = config_of(declared, base_folder, out)
    prepared = prepare("", config, Preparer(BOX, nobody), nobody)
    (out / "references").mkdir()
    return {m.name: order(config, m).model_dump(mode="json") for m in measurements(prepared, BOX).values()}


class Elsewhere(Launcher):
    """Says of every job that its task failed; does none."""

    name = "elsewhere"
    failure = "its metric raised"

    def run(self, jobs: Any, emit: Any, stop: Stop) -> dict[str, Any]:
        return {job.name: {**REFERENCE, "task": job.name.removeprefix("reference "), "failure": self.failure} for job in jobs}


class Liar(Elsewhere):
    """Says of every job that it was done."""

    name = "liar"
    failure = ""


REFERENCE = {
    "key": "",
    "seed": 1,
    "score": 0.0,
    "is_at_chance": True,
    "saturation_epoch": None,
    "resource": "unknown",
    "is_cut_short": False,
    "curve": [],
    "answers": [],
    "cost": {},
    "evaluation_cost": {},
    "bundle": None,
    "recipe": {},
    "selection_bar": None,
}


def with_launcher(cls: type[Launcher]) -> Registry:
    ours = Plugin("ours", "ours", "1.0", "loaded")
    kinds = ("filter", "sampler", "scheduler", "method", "launcher", "observer")
    return Registry([*BOX.plugins, ours], [*(e for kind in kinds for e in BOX.entries(kind)), Entry("launcher", cls.name, cls, ours)])


def test_a_task_that_failed_elsewhere_stops_no_other_and_is_not_measured_again(declared: Path, base_folder: Path, tmp_path: Path) -> None:
    references = measured(config_of(declared, base_folder, tmp_path, launcher={"use": "elsewhere"}), with_launcher(Elsewhere))
    assert {r.task: r.failure for r in references.values()} == {"local/a": "its metric raised", "local/b": "its metric raised"}
    assert not kept(tmp_path)


def test_a_store_that_is_not_shared_is_noticed(declared: Path, base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"reference local/a was measured, but what it left is not in .*`out` must be on a file system"):
        measured(config_of(declared, base_folder, tmp_path, launcher={"use": "liar"}), with_launcher(Liar))


def test_references_under_several_seeds_go_by_names_of_their_own(declared: Path, base_folder: Path, tmp_path: Path) -> None:
    seen: list[events.Event] = []
    config = config_of(declared, base_folder, tmp_path, launcher={"use": "processes"}, seeds=[1, 2], tasks=[str(declared / "a.toml")])
    measured(config, seen=seen)
    (ahead,) = [e.steps for e in seen if isinstance(e, events.WorkAhead)]
    steps = {work: sum(isinstance(e, events.Stepped) and e.work == work for e in seen) for work in ahead}
    assert steps == ahead == {"reference local/a seed 1": 6, "reference local/a seed 2": 6}
    ready = {events.reference_work(e.task, e.seed) for e in seen if isinstance(e, events.ReferenceReady)}
    assert ready == steps.keys()


def test_a_run_of_several_processes_measures_in_turn(
    declared: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="launcher 'processes' starts processes of its own, and this run has 2 already"):
        Preparer(BOX, nobody).resolve("", config_of(declared, base_folder, tmp_path, launcher={"use": "processes"}))
    Preparer(BOX, nobody).resolve("", config_of(declared, base_folder, tmp_path))


# --- workers ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write the module `ours`, which workers can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda text: (tmp_path / "ours.py").write_text(text, encoding="utf-8") and None


def test_what_a_job_prints_is_not_taken_for_what_it_tells(module: Callable[[str], None]) -> None:
    module("import os\ndef do(data, emit, stop):\n    print('{')\n    os.system('echo [')\n    return [1.5, None]\n")
    assert processes(1).run([Job(name="a", call="ours:do", data={})], nobody, Stop()) == {"a": [1.5, None]}


DIES_SPEAKING = """
import os, pathlib, signal

def do(data, emit, stop):
    (out,) = {int(path.name) for path in pathlib.Path("/proc/self/fd").iterdir() if "pipe:" in ends(path)} - {0}
    os.write(out, b'{"result": [1, 2')
    os.kill(os.getpid(), signal.SIGKILL)

def ends(path):
    return os.readlink(path) if os.path.lexists(path) else ""

def answer(data, emit, stop):
    return data["number"]
"""


def test_a_worker_that_dies_in_the_middle_of_a_line_has_not_said_it(module: Callable[[str], None]) -> None:
    module(DIES_SPEAKING)
    jobs = [Job(name="a", call="ours:do", data={}), Job(name="b", call="ours:answer", data={"number": 1})]
    with pytest.raises(RunError, match=r"1 of 2 jobs failed(?s:.*)a: killed by SIGKILL"):
        processes(1).run(jobs, nobody, Stop())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_line_that_is_no_message_leaves_nobody_waiting(module: Callable[[str], None]) -> None:
    module(DIES_SPEAKING.replace("[1, 2", "[1, 2\\n"))
    with pytest.raises(RunError, match="a: killed by SIGKILL"):
        processes(1).run([Job(name="a", call="ours:do", data={})], nobody, Stop())


def test_a_signal_tears_no_line(module: Callable[[str], None]) -> None:
    module(
        "from mtcore.events import Warned\ndef do(data, emit, stop):\n    emit(Warned('a', 'x' * 10_000_000))\n    return 'not reached'\n"
    )
    command = [sys.executable, "-m", "mtcore.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(Job(name="a", call="ours:do", data={}).model_dump_json().encode() + b"\n")
        worker.stdin.flush()
        begun = os.read(worker.stdout.fileno(), 1)  # the pipe holds far less than the line: it is being written
        worker.terminate()
        (line,) = (begun + worker.stdout.read()).splitlines(keepends=True)
        assert line.endswith(b"\n")
        assert len(json.loads(line)["text"]) == 10_000_000
        assert worker.wait() == 143


def test_an_error_that_is_not_ours_is_told_with_its_traceback(module: Callable[[str], None]) -> None:
    module("def do(data, emit, stop):\n    return data['nothing']\n")
    with pytest.raises(RunError, match=r"1 of 1 jobs failed; what the others did is kept(?s:.*)a: exit code 1(?s:.*)KeyError: 'nothing'"):
        processes(1).run([Job(name="a", call="ours:do", data={})], nobody, Stop())


def test_workers_share_processors_and_gpus(module: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    module(
        "import os, time\n"
        "def do(data, emit, stop):\n"
        "    time.sleep(1)\n"
        "    return [os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES']]\n"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    jobs = [Job(name=str(n), call="ours:do", data={}) for n in range(3)]
    assert sorted(processes(3).run(jobs, nobody, Stop()).values()) == [["2", "4"], ["2", "4"], ["2", "7"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list(processes(8).run(jobs[:1], nobody, Stop()).values()) == [["1", ""]]


def test_an_observer_that_raises_stops_the_workers(tmp_path: Path) -> None:
    def refuse(event: events.Event) -> None:
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        processes(1).run([toy("wait", tmp_path)], refuse, Stop())
    assert os.listdir(tmp_path) == ["toy 0"]


def test_workers_end_soon_after_a_run_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from mtcore.defaults.launchers import Processes\n"
        "from mtcore.interrupts import Stop\n"
        "from mtcore.types import Job\n"
        "jobs = [Job.model_validate_json(text) for text in sys.argv[1:]]\n"
        "Processes(Processes.Config()).run(jobs, lambda event: print(event.text, flush=True), Stop())\n"
    )
    jobs = [toy("wait", tmp_path, number).model_dump_json() for number in range(2)]
    with subprocess.Popen([sys.executable, "-c", code, *jobs], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert [run.stdout.readline(), run.stdout.readline()] == ["begins\n", "begins\n"]
        run.kill()
    assert within(10, lambda: sorted(os.listdir(tmp_path)) == ["toy 0", "toy 1"])


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.05)
    return is_so()


# --- events between processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_comes_back_from_json(event: events.Event) -> None:
    text = json.dumps(event_to_json(event))
    back = event_from_json(json.loads(text))
    assert type(back) is type(event)
    assert json.dumps(event_to_json(back)) == text


def test_a_nested_event_comes_back_as_what_it_was() -> None:
    for event in EVENTS:
        if isinstance(event, (events.StageStarted, events.Evaluated)):
            assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


# --- the conformance kit ----------------------------------------------------------------------------------------------------------------


class Forgetful(Processes):
    def run(self, jobs, emit, stop):
        return dict(list(super().run(jobs, emit, stop).items())[1:])


class Silent(Processes):
    def run(self, jobs, emit, stop):
        return super().run(jobs, nobody, stop)


class Careless(Processes):
    def run(self, jobs, emit, stop):
        results = {}
        for job in jobs:
            try:
                results |= super().run([job], emit, stop)
            except RunError:
                continue
        return results


class Hasty(Processes):
    def run(self, jobs, emit, stop):
        results = {}
        for job in jobs:
            results |= super().run([job], emit, stop)
        return results


@pytest.mark.parametrize(
    ("cls", "name"),
    [(Forgetful, "does-every-job"), (Silent, "passes-events-on"), (Careless, "tells-what-failed"), (Hasty, "outlives-a-death")],
)
def test_a_fault_of_a_launcher_is_found(cls: type[Launcher], name: str) -> None:
    (check,) = [check for check in launcher_checks(cls, module=None) if check.name == name]
    assert check.outcome().status == "failed"
