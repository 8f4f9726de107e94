"""Part of B5: the mixture plan of 100 tasks and ten million rows: seconds to compile, milliseconds to seek, bytes of state."""

import hashlib
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mtcore.data.mixture import MixturePlan, PlanTask

TASKS, ROWS, DRAWS = 100, 10_000_000, 1_000_000


def main() -> None:
    weights = np.random.default_rng(0).lognormal(0, 1.5, TASKS)
    sizes = np.maximum(1, (weights / weights.sum() * ROWS).astype(int))
    tasks = tuple(PlanTask(f"suite/task{i}", int(n), float(n / sizes.sum())) for i, n in enumerate(sizes))
    begun = time.perf_counter()
    order = hashlib.sha256()
    for window in MixturePlan(1, 0, tasks, DRAWS).blocks():
        order.update(window.task.tobytes() + window.row.tobytes())
    compiled = time.perf_counter() - begun
    endless = MixturePlan(1, 0, tasks, 10**12)
    seeks = []
    for start in (10**9, 3 * 10**9 + 7, 5 * 10**11):
        begun = time.perf_counter()
        endless.window(start, start + 64)
        seeks.append(time.perf_counter() - begun)
    state = len(json.dumps({"seed": 1, "stage": 0, "position": 10**9}))
    result = {
        "tasks": TASKS,
        "rows": int(sizes.sum()),
        "draws_per_second": DRAWS / compiled,
        "seek_ms": statistics.median(seeks) * 1e3,
        "state_bytes": state,
        "plan_bytes": len(json.dumps(asdict(endless))),
        "order_sha256": order.hexdigest(),
    }
    print(
        f"{DRAWS:,} draws of {TASKS} tasks in {compiled:.2f} s ({DRAWS / compiled:,.0f} a second); "
        f"seek to a billionth draw {result['seek_ms']:.1f} ms; order {result['order_sha256'][:16]}"
    )
    path = Path("runs/benchmarks/mixture.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
