"""References in turn and by processes of their own: seconds of a whole run that measures a few tasks of the hotel suite, and nothing else."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = """model = {base}
data = {rows}
tasks = {tasks}
method = {{ use = "text2text", max_length = 256, warm_up = 0.1 }}
scheduler = {{ use = "single-task" }}
reference = {{ use = "single-task", learning_rate = 1e-3, examples_per_step = 16, epochs = {epochs}, patience = {epochs} }}
observers = []
"""
TASKS = ("hotel/nr-i", "hotel/see", "hotel/id", "hotel/idm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[len(os.sched_getaffinity(0))], help="Numbers of processes to try.")
    parser.add_argument("--rows", type=int, default=400, help="Train rows of a task.")
    parser.add_argument("--epochs", type=int, default=4, help="Epochs of a reference.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each, in turn; medians are told.")
    asked = parser.parse_args()
    launchers = {"in-turn": '{ use = "in-turn" }', **{f"{n} processes": f'{{ use = "processes", workers = {n} }}' for n in asked.workers}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mtcore("hotel", "rows", "rows", "--scale", "0.001", "--least", str(asked.rows), "--held-out", "300", folder=folder)
        table = {"base": str(ROOT / "contrib_tasks/hotel/base"), "rows": str(folder / "rows"), "tasks": list(TASKS)}
        (folder / "run.toml").write_text(RUN.format(**{key: json.dumps(value) for key, value in table.items()}, epochs=asked.epochs))
        seconds: dict[str, list[float]] = {launcher: [] for launcher in launchers}
        scores: dict[str, dict[str, float]] = {}
        for repeat in range(asked.repeats):
            for launcher, use in launchers.items():
                out = folder / f"{launcher}-{repeat}"
                begun = time.perf_counter()
                mtcore("train", "run.toml", "--set", f"launcher={use}", "--set", f"out={out}", folder=folder)
                seconds[launcher].append(time.perf_counter() - begun)
                print(f"{launcher}: {seconds[launcher][-1]:.1f} s", file=sys.stderr)
                scores[launcher] = scores_in(out)
    report(seconds, scores, vars(asked))


def report(seconds: Mapping[str, list[float]], scores: Mapping[str, Mapping[str, float]], asked: Mapping[str, object]) -> None:
    result = {
        **asked,
        "tasks": len(TASKS),
        "processors": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "seconds": {launcher: statistics.median(values) for launcher, values in seconds.items()},
        "all_seconds": seconds,
        "times_faster": {n: statistics.median(seconds["in-turn"]) / statistics.median(values) for n, values in seconds.items()},
        "largest_difference_in_score": max(abs(theirs[t] - scores["in-turn"][t]) for theirs in scores.values() for t in theirs),
    }
    print(json.dumps(result, indent=1))
    path = Path("runs/benchmarks/references.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))


def scores_in(out: Path) -> dict[str, float]:
    references = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("references/*/reference.json")]
    return {reference["task"]: reference["score"] for reference in references}


def mtcore(*arguments: str, folder: Path) -> None:
    # a limit on threads would be that of the whole run, to be shared by its processes
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-m", "mtcore", *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
