"""Many task plugins at once: what 1 to 200 installed distributions cost the command line, a plan and a short run."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

ROWS = {"train": 36, "validation": 12, "test": 12}
MODULE = '''"""Task {number} of many: is a thing praised?"""

from mtcore.contracts import TaskAdapter
from mtcore.hookspecs import hookimpl
from mtcore.types import TaskSpec


class Praise(TaskAdapter):
    spec = TaskSpec(
        name="praise",
        output="binary",
        input="single-sentence",
        fields=("text",),
        instruction="Praise {number}?",
        template="{{text}}\\nAnswer: ",
        words={{"no": "no", "yes": "yes"}},
        metric="accuracy",
        licence="CC0-1.0",
        source="made up",
    )

    def rows(self, split):
        words = ("bad", "good")
        return [{{"text": f"{{split}} {{i}} of {number} is {{words[i % 2]}}", "label": ("no", "yes")[i % 2]}} for i in range({rows}[split])]

    def fields(self, row):
        return {{"text": row["text"]}}

    def answer(self, row):
        return row["label"]


@hookimpl
def register_tasks():
    return [Praise]
'''
RUN = """model = "toy"
tasks = ["many-*"]
scheduler = { use = "two-stage", examples_per_step = 16, stage2_epochs = 1.0, learning_rate = 3e-3 }
reference = { examples_per_step = 16, epochs = 1.0, learning_rate = 3e-3 }
"""
COMMANDS = {"help": ["--help"], "plugins": ["plugins"], "tasks": ["tasks"], "plan": ["plan", "run.toml"]}
LOAD = (
    "import time; from mtcore.plugins import load_plugins; begun = time.perf_counter(); load_plugins(); print(time.perf_counter() - begun)"
)
REPEATS = 3


def install_tasks(site: Path, count: int) -> list[str]:
    """Leave in `site` what pip leaves of `count` distributions with one task plugin each, and return the tasks' names."""
    site.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        (site / f"many_{number:03}.py").write_text(MODULE.format(number=number, rows=ROWS), encoding="utf-8")
        info = site / f"many_{number:03}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: many-{number:03}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[mtcore]\nmany-{number:03} = many_{number:03}\n", encoding="utf-8")
        (info / "RECORD").write_text("", encoding="utf-8")
    return [f"many-{number:03}/praise" for number in range(1, count + 1)]


def build_base(folder: Path) -> None:
    """A decoder with random weights, as small as is of use, and its tokenizer."""
    from mtcore.modeling.tiny import new_decoder, train_tokenizer

    folder.mkdir(parents=True)
    train_tokenizer([f"{split} {i} of {i} is good bad yes no Praise? Answer: " for split in ROWS for i in range(200)], 400, folder)
    new_decoder(vocabulary=400, width=32, layers=2, heads=2, context=256, eos_id=0, seed=1).save_pretrained(folder)


def measured(command: list[str], site: Path, work: Path) -> dict[str, float]:
    """Run a command: its wall time, its CPU time (which neighbours disturb less), its peak memory, and how many lines it said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MTCORE_")}
    environment |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}  # toys are too small to be worth a second thread
    said = work / "said.txt"
    begun = time.perf_counter()
    with said.open("w") as output:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    text = said.read_text(encoding="utf-8")
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-4000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_s": cpu, "peak_mib": usage.ru_maxrss / 1024, "lines": len(text.splitlines())}


def measure(count: int, *, is_trained: bool) -> dict[str, object]:
    """Everything about one number of plugins, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        work, site = Path(folder) / "work", Path(folder) / "site"
        install_tasks(site, count)
        # in a process of its own: what this one holds would count as the peak of those it starts
        builder = get_context("spawn").Process(target=build_base, args=(work / "runs/bases/toy",))
        builder.start()
        builder.join()
        (work / "run.toml").write_text(RUN, encoding="utf-8")
        call = [sys.executable, "-m", "mtcore"]
        row: dict[str, object] = {"count": count}
        loads = []
        for _ in range(REPEATS + 1):
            measured([sys.executable, "-c", LOAD], site, work)
            loads.append(float((work / "said.txt").read_text()))
        row["load_s"] = statistics.median(loads[1:])  # the first writes byte code
        for name, arguments in COMMANDS.items():
            runs = [measured([*call, *arguments], site, work) for _ in range(REPEATS)]
            row[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        if is_trained:
            row["train"] = measured([*call, "train", "run.toml"], site, work)
            row["again"] = measured([*call, "train", "run.toml"], site, work)
            row["report_lines"] = len((work / "runs/run/report.md").read_text(encoding="utf-8").splitlines())
        return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 10, 50, 100, 200])
    parser.add_argument("--train", type=int, nargs="*", default=[1, 10, 50, 100], help="numbers of tasks that are trained, too")
    options = parser.parse_args()
    rows = []
    for count in options.counts:
        row = measure(count, is_trained=count in options.train)
        rows.append(row)
        parts = [f"load {1e3 * row['load_s']:.0f} ms"]  # type: ignore[operator]
        parts += [
            f"{key} {value['seconds']:.2f} s (CPU {value['cpu_s']:.2f} s), {value['peak_mib']:.0f} MiB"
            for key, value in row.items()
            if isinstance(value, dict)
        ]
        print(f"{count:4} tasks: {'; '.join(parts)}", flush=True)
    path = Path("runs/benchmarks/plugins.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": platform.machine(), "python": platform.python_version(), "rows_a_task": ROWS}
    path.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
