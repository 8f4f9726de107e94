"""B6: a packing plan of a million lengths, against TRL's best-fit-decreasing in the same process."""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from trl.data_utils import _pack_bfd

from mtcore.data.packing import pack

LENGTHS, REPEATS = 1_000_000, 3
CASES = ((512, 75), (2048, 75))
"""Capacity and median length."""


def main() -> None:
    rows = []
    for capacity, median in CASES:
        lengths = np.clip(np.round(np.random.default_rng(0).lognormal(np.log(median), 0.7, LENGTHS)), 1, capacity).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        table = pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(ends), pa.array(np.zeros(ends[-1], np.int8)))})
        ours, theirs, moved = [], [], []
        for _ in range(REPEATS):
            ours.append(_seconds(lambda lengths=lengths, capacity=capacity: pack(lengths, capacity)))
            theirs.append(_seconds(lambda table=table, capacity=capacity: _pack_bfd(table, capacity)))
            # TRL's function also brings the tokens into their new order; that is not the plan
            order = pa.array(np.argsort(-lengths, kind="stable"))
            moved.append(_seconds(lambda table=table, order=order: pc.take(table, order).combine_chunks()))
        bins = pack(lengths, capacity)
        peer = statistics.median(theirs) - statistics.median(moved)
        row = {
            "capacity": capacity,
            "median_length": median,
            "lengths": LENGTHS,
            "seconds": statistics.median(ours),
            "trl_seconds": peer,
            "trl_moving_tokens_seconds": statistics.median(moved),
            "times_faster": peer / statistics.median(ours),
            "bins": len(bins),
            "trl_bins": _pack_bfd(table, capacity).num_rows,
            "utilisation": float(lengths.sum() / (len(bins) * capacity)),
        }
        assert sorted(i for members in bins for i in members) == list(range(LENGTHS))
        print(
            f"capacity {capacity}, median length {median}: {row['seconds']:.2f} s, TRL {peer:.2f} s ({row['times_faster']:.0f} times), "
            f"{row['utilisation']:.2%} used, {row['bins']:,} bins (TRL {row['trl_bins']:,})"
        )
        rows.append(row)
    path = Path("runs/benchmarks/packing.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))


def _seconds(work) -> float:
    """Processor seconds: both take one thread, and other processes do not count."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
