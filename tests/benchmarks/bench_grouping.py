"""How many rows of a step share a document with another row of it, for the hotel tasks, with and without grouping by documents.

`bench_grouping.py 0.2` takes a fifth of the full train rows instead of a fiftieth.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mtcore.config import RowLimits
from mtcore.data.documents import NONE, document_keys
from mtcore.data.permutation import Ints
from mtcore.data.rows import read_task
from mtcore.data.stages import StageStream
from mtcore.defaults.schedulers import MixtureStage
from mtcore.plugins import load_plugins
from mtcore.types import Ledger, SamplerUse, TaskProfile

SCALE, STEP = float(sys.argv[1]) if len(sys.argv) > 1 else 0.02, 64
SAMPLERS = {
    "shares by size": {"use": "instance-balanced"},
    "flattened shares": {"use": "temperature", "tau": 2.0, "cap": int(20_000 * SCALE)},
}


def main() -> None:
    registry = load_plugins()
    with TemporaryDirectory() as folder:
        make = "from mtcore.cli import main; main()"
        subprocess.run([sys.executable, "-c", make, "hotel", "rows", folder, "--scale", str(SCALE)], check=True, capture_output=True)
        found = {e.name: read_task(e.name, registry.build_task(e, Path(folder)), RowLimits(), "")[0] for e in registry.tasks(["hotel/*"])}
    keys = {name: document_keys(task) for name, task in found.items()}
    profiles = [TaskProfile(name=n, spec=t.spec, train_rows=len(t.train), validation_rows=len(t.validation)) for n, t in found.items()]
    result: dict[str, object] = {
        "rows": sum(map(len, keys.values())),
        "step": STEP,
        "sharing_at_most": sharing(np.concatenate([*keys.values()])),
    }
    print(f"{result['rows']:,} rows; {result['sharing_at_most']:.1%} have a document that another row has")
    for shares, use in SAMPLERS.items():
        for grouping in ("mixed", "shared-documents"):
            config = MixtureStage.Config.model_validate(
                {"sampler": SamplerUse.model_validate(use), "examples_per_step": STEP, "grouping": grouping}
            )
            stream = StageStream(MixtureStage(config), registry.sampler, profiles, seed=1, max_steps=None, documents=keys.__getitem__)
            compiled = stream.next([], Ledger())
            assert compiled is not None
            _, plan, _ = compiled.decided
            parts = []
            for start in range(0, plan.draws, STEP):
                window = plan.window(start, start + STEP)
                drawn = np.unique(np.stack([window.task, window.row], axis=1), axis=0)  # a row with itself is no gain
                parts.append(sharing(np.array([keys[plan.tasks[task].name][row] for task, row in drawn])) * len(drawn))
            result[f"{shares}, {grouping}"] = sum(parts) / plan.draws
            print(f"{shares}, {grouping}: {sum(parts) / plan.draws:.1%} of a step's rows share a document with another of its rows")
    path = Path("runs/benchmarks/grouping.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))


def sharing(keys: Ints) -> float:
    _, counts = np.unique(keys[keys != NONE], return_counts=True)
    return float(counts[counts > 1].sum() / len(keys))


if __name__ == "__main__":
    main()
