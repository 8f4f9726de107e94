"""B5: the mixture plan of 100 tasks and ten million rows beside grain and datasets: draws a second, seeks, state, one order for all ranks.

Times are processor time of this process, which other work on the machine disturbs least; every peer runs in one thread, as the plan does.
"""

import hashlib
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mtcore.data.mixture import MixturePlan, PlanTask, Window

TASKS, ROWS, DRAWS, SEED = 100, 10_000_000, 1_000_000, 1
STEP, RANKS = 64, (1, 2, 3, 4)
PEER_DRAWS, REPEATS = 20_000, 3


def main() -> None:
    weights = np.random.default_rng(0).lognormal(0, 1.5, TASKS)
    sizes = np.maximum(1, (weights / weights.sum() * ROWS).astype(int)).tolist()
    shares = [size / sum(sizes) for size in sizes]
    tasks = tuple(PlanTask(f"suite/task{i}", size, share) for i, (size, share) in enumerate(zip(sizes, shares, strict=True)))
    plan = MixturePlan(SEED, 0, tasks, DRAWS)
    ours = rate(lambda: (DRAWS, list(plan.blocks())))
    peers = {
        "grain, map-style": grain_map(sizes, shares),
        "grain, iterable": grain_iterable(sizes, shares),
        "datasets, map-style": datasets_map(sizes, shares),
        "datasets, iterable": datasets_iterable(sizes, shares),
    }
    begun = time.process_time()
    assert sum(len(window.task) for window in MixturePlan(SEED, 0, tasks, ROWS).blocks()) == ROWS
    epoch = time.process_time() - begun
    hashes = {ranks: order_of_ranks(replace(plan, draws=100_000), ranks) for ranks in RANKS}
    seek, stride = seeks(tasks)
    state = len(json.dumps({"seed": SEED, "stage": 0, "position": 10**9}))
    result: dict[str, Any] = {
        "tasks": TASKS,
        "rows": sum(sizes),
        "draws_per_second": ours,
        "peers": peers,
        "ratios": {name: ours / peer for name, peer in peers.items()},
        "seconds_for_all_rows": epoch,
        "seek_ms": seek,
        "next_step_ms": stride,
        "state_bytes": state,
        "plan_bytes": len(json.dumps(plan.as_json())),
        "order_sha256": digest(plan.blocks()),
        "orders_of_ranks_are_equal": len({*hashes.values()}) == 1,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "grain", "datasets")},
    }
    print(f"{TASKS} tasks, {sum(sizes):,} rows: {ours:,.0f} draws a second; all rows once in {epoch:.1f} s")
    for name, peer in peers.items():
        print(f"  {name}: {peer:,.0f} draws a second; ours is {ours / peer:.1f} times that")
    print(f"seek to a billionth draw {seek:.2f} ms, the step after it {stride:.3f} ms; state {state} bytes")
    print(f"order {result['order_sha256'][:16]}; equal for {', '.join(map(str, RANKS))} ranks: {result['orders_of_ranks_are_equal']}")
    path = Path("runs/benchmarks/mixture.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    if not result["orders_of_ranks_are_equal"]:
        raise SystemExit("the order depends on the number of ranks")


def rate(draw: Callable[[], tuple[int, object]]) -> float:
    """Draws a second: the median of repeats, after one that is not counted."""
    draw()
    rates = []
    for _ in range(REPEATS):
        begun = time.process_time()
        count, _ = draw()
        rates.append(count / (time.process_time() - begun))
    return statistics.median(rates)


def seeks(tasks: tuple[PlanTask, ...]) -> tuple[float, float]:
    """Milliseconds to the first step at a far position, and to the one after it."""
    endless, far, next_step = MixturePlan(SEED, 0, tasks, 10**12), [], []
    for start in (10**9, 3 * 10**9 + 7 * STEP, 5 * 10**11):
        for times, position in ((far, start), (next_step, start + STEP)):
            begun = time.process_time()
            endless.window(position, position + STEP)
            times.append((time.process_time() - begun) * 1e3)
    return statistics.median(far), statistics.median(next_step)


def order_of_ranks(plan: MixturePlan, ranks: int) -> str:
    """The order as so many ranks take it, each its slice of every step, interleaved again."""

    def steps() -> Iterator[Window]:
        for start in range(0, plan.draws, STEP):
            taken = [[column[rank::ranks] for column in plan.window(start, start + STEP)] for rank in range(ranks)]
            columns = [np.empty(min(STEP, plan.draws - start), part.dtype) for part in taken[0]]
            for rank, parts in enumerate(taken):
                for column, part in zip(columns, parts, strict=True):
                    column[rank::ranks] = part
            yield Window(*columns)

    return digest(steps())


def digest(windows: Iterator[Window]) -> str:
    order = hashlib.sha256()
    for task, row, _ in windows:
        order.update(np.stack([task, row], axis=1).astype("<i8").tobytes())
    return order.hexdigest()


def grain_map(sizes: list[int], shares: list[float]) -> float:
    import grain

    mixed = grain.MapDataset.mix([grain.MapDataset.range(size).shuffle(seed=i).repeat() for i, size in enumerate(sizes)], shares)
    return rate(lambda: (PEER_DRAWS, [mixed[i] for i in range(PEER_DRAWS)]))


def grain_iterable(sizes: list[int], shares: list[float]) -> float:
    import grain

    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # threads only get in each other's way where nothing is read
    parts = [grain.MapDataset.range(size).shuffle(seed=i).repeat().to_iter_dataset(alone) for i, size in enumerate(sizes)]
    walk = iter(grain.IterDataset.mix(parts, shares))
    return rate(lambda: (PEER_DRAWS, list(islice(walk, PEER_DRAWS))))


def datasets_map(sizes: list[int], shares: list[float]) -> float:
    """Of a twentieth of the rows, unshuffled, until the first task ends: all that its indices are compiled at once allows in the time."""
    from datasets import Dataset, interleave_datasets

    parts = [Dataset.from_dict({"row": np.arange(max(1, size // 20))}) for size in sizes]

    def draw() -> tuple[int, object]:
        mixed = interleave_datasets(parts, probabilities=shares, seed=SEED, stopping_strategy="first_exhausted")
        return len(mixed), mixed

    return rate(draw)


def datasets_iterable(sizes: list[int], shares: list[float]) -> float:
    """With small shuffle buffers, which are full before the time is taken."""
    from datasets import Dataset, interleave_datasets

    parts = [
        Dataset.from_dict({"row": np.arange(size)}).to_iterable_dataset().shuffle(seed=i, buffer_size=20) for i, size in enumerate(sizes)
    ]
    walk = iter(interleave_datasets(parts, probabilities=shares, seed=SEED, stopping_strategy="all_exhausted"))
    return rate(lambda: (PEER_DRAWS // 10, list(islice(walk, PEER_DRAWS // 10))))


if __name__ == "__main__":
    main()
