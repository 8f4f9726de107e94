"""Kill a real run at random moments until it is done, and compare its bundles with those of a run that nothing disturbed.

    mtcore hotel rows runs/hotel-rows --scale 0.05 --least 400 --held-out 300
    python tests/benchmarks/kill_demo.py --out runs/kill-demo

Run it from the root of the repository on a quiet machine. It may be stopped itself: the same call goes on where it was. It prints the number
of kills, and exits with 1 where a byte of the weights or a score differs.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

MTCORE = [sys.executable, "-m", "mtcore"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("docs/runs/demo.toml"))
    parser.add_argument("--out", type=Path, default=Path("runs/kill-demo"))
    parser.add_argument("--kills", type=int, default=20, help="about how many")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seconds = undisturbed(arguments.run, arguments.out)
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    kills = disturbed(arguments.run, arguments.out, seconds / arguments.kills, arguments.seed)
    whole, killed = (left_by(arguments.out / name) for name in ("whole", "killed"))
    is_same = whole == killed
    print(
        f"{kills} kills; {len(whole)} bundles and reports, {'byte for byte and score for score the same' if is_same else 'NOT the same:'}"
    )
    for name in sorted(set(whole) | set(killed)):
        if whole.get(name) != killed.get(name):
            print(f"  {name}: {whole.get(name)} and {killed.get(name)}")
    return 0 if is_same else 1


def undisturbed(run: Path, out: Path) -> float:
    """Train the run to its end, and return how long that took; a second call returns what the first one wrote down."""
    known = out / "whole.json"
    if not known.exists():
        started = time.monotonic()
        subprocess.run([*MTCORE, "train", str(run), "--set", f"out={out / 'whole'}"], check=True, stdout=subprocess.DEVNULL)
        known.write_text(json.dumps(time.monotonic() - started))
    seconds: float = json.loads(known.read_text())
    return seconds


def disturbed(run: Path, out: Path, between: float, seed: int) -> int:
    """Train the run again, killed after random spells of training until it ends by itself; return how often it was."""
    counted = out / "kills.json"
    kills: int = json.loads(counted.read_text()) if counted.exists() else 0
    moments, starting = random.Random(f"{seed} {kills}"), start_up()
    while True:
        process = subprocess.Popen([*MTCORE, "train", str(run), "--set", f"out={out / 'killed'}"], stdout=subprocess.DEVNULL)
        try:
            # starting takes its time too: without it a slow machine would never get on
            code = process.wait(timeout=moments.uniform(0, starting + 2 * between))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            counted.write_text(json.dumps(kills))
            print(f"kill {kills}", flush=True)
            continue
        finally:
            if process.poll() is None:
                process.kill()
        if code != 0:
            sys.exit(f"the command failed with {code} after {kills} kills")
        return kills


def start_up() -> float:
    """Seconds that a command needs before it trains."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import mtcore.defaults.text2text_fit"], check=True)
    return time.monotonic() - started


def left_by(out: Path) -> dict[str, object]:
    """The hash of every bundle's weights, and every task's scores."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("bundle/model.safetensors")):
        with path.open("rb") as file:
            found[str(path.relative_to(out))] = hashlib.file_digest(file, "sha256").hexdigest()
    for path in sorted(out.rglob("report.json")):
        groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
        found[str(path.relative_to(out))] = {task["name"]: [task["score"], task["reference"]] for g in groups for task in g["tasks"]}
    return found


if __name__ == "__main__":
    sys.exit(main())
