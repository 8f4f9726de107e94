"""B4: documents that carry 1, 4 and 16 task labels, document-first: the trainer that lays a document out once against the same one that does not."""

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mtcore.data.documents import Documents
from mtcore.data.mixture import MixturePlan, PlanTask
from mtcore.data.stages import CompiledStage
from mtcore.data.text import Encoded
from mtcore.defaults.text2text_fit import step_batches
from mtcore.modeling.head import TargetLoss
from mtcore.training.distributed import make_accelerator
from mtcore.training.loop import Schedule, Step, StepBatch, backward
from mtcore.training.state import Trainee
from mtcore.types import Mixture, SamplerUse, Stage

LABELS, LENGTHS, SUFFIX, ANSWER = (1, 4, 16), (128, 256, 512), 16, 2
DOCUMENTS, STEP, BATCH_TOKENS, VOCABULARY = 32, 16, 4096, 8192
REPEATS = {1: 7, 4: 3, 16: 3}
"""By labels: that one label costs nothing is a matter of a hundredth."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def build() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model: Qwen2ForCausalLM = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa")
    return model


def workload(labels: int, length: int) -> tuple[CompiledStage, dict[str, list[Encoded]]]:
    """As many tasks as labels; each has one row on every document, which stands before the task's own words and its answer."""
    random = np.random.default_rng(labels * length)
    documents = random.integers(1, VOCABULARY, (DOCUMENTS, length), np.int32)
    encoded = {}
    for task in range(labels):
        suffixes = random.integers(1, VOCABULARY, (DOCUMENTS, SUFFIX), np.int32)
        encoded[f"suite/task{task}"] = [
            Encoded(np.concatenate([d, s[:-ANSWER]]), s[-ANSWER:], document=length) for d, s in zip(documents, suffixes, strict=True)
        ]
    names, draws = tuple(encoded), 100 * STEP
    shares = dict.fromkeys(names, 1 / labels)
    stage = Stage(
        name="mixture",
        tasks=names,
        sampler=SamplerUse(use="class-balanced"),
        draws=draws,
        epoch_draws=labels * DOCUMENTS,
        examples_per_step=STEP,
        learning_rate=1e-4,
        grouping="shared-documents",
    )
    keys = Documents({name: np.arange(DOCUMENTS) for name in names})
    plan = MixturePlan(1, 0, tuple(PlanTask(name, DOCUMENTS, shares[name]) for name in names), draws, documents=keys)
    return CompiledStage(0, stage, Mixture(shares=shares), plan, draws // STEP), encoded


def batches(labels: int, length: int, *, is_shared: bool) -> Callable[[int, int], StepBatch]:
    compiled, encoded = workload(labels, length)
    if not is_shared:
        encoded = {name: [replace(row, document=0) for row in rows] for name, rows in encoded.items()}
    return step_batches(compiled, encoded, rank=0, processes=1)


def steps(labels: int, length: int, *, is_shared: bool) -> Iterator[Step]:
    names = [f"suite/task{number}" for number in range(labels)]
    trainee = Trainee(build(), make_accelerator(), weight_decay=0.01, betas=(0.9, 0.999), clip=1.0)
    return trainee.steps(Schedule(batches(labels, length, is_shared=is_shared), lambda step: 1e-4, names, BATCH_TOKENS), 0, 100)


def gradients(labels: int, length: int, *, is_shared: bool) -> torch.Tensor:
    """Of the first step, in one vector."""
    model = build()
    backward(TargetLoss(model), make_accelerator(), batches(labels, length, is_shared=is_shared)(0, BATCH_TOKENS))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measured(labels: int, length: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Steps of both trainers in turn, over the same examples; example tokens a second, and what sharing leaves of the tokens."""
    one, other = (gradients(labels, length, is_shared=is_shared) for is_shared in (True, False))
    trainers = {is_shared: steps(labels, length, is_shared=is_shared) for is_shared in (True, False)}
    for trainer in trainers.values():
        next(trainer)
    ratios, rates, tokens = [], [], []
    for turn in range(REPEATS[labels]):
        taken: dict[bool, tuple[float, Step]] = {}
        for is_shared in (True, False) if turn % 2 else (False, True):
            begun = clock()
            step = next(trainers[is_shared])
            taken[is_shared] = clock() - begun, step
        (ours, shared), (theirs, plain) = taken[True], taken[False]
        assert shared.example_tokens == plain.example_tokens == plain.tokens
        ratios.append(theirs / ours)
        rates.append(shared.example_tokens / ours)
        tokens.append(plain.tokens / shared.tokens)
    formula = labels * (length + SUFFIX) / (length + labels * SUFFIX)
    return {
        "document": length,
        "labels": labels,
        "example_tokens_per_second": statistics.median(rates),
        "speedup": statistics.median(ratios),
        "token_ratio": formula,
        "token_ratio_of_these_steps": statistics.median(tokens),
        "of_token_ratio": statistics.median(ratios) / formula,
        "gradients_differ": float((one - other).norm() / other.norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: the processor's time, for a busy machine and one thread (OMP_NUM_THREADS=1)",
    )
    clock = parser.parse_args().clock
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    load, begun = os.getloadavg()[0], time.perf_counter()
    rows = []
    print(
        f"256 wide × 4, vocabulary {VOCABULARY:,}, {STEP} examples a step, suffixes of {SUFFIX} tokens of which {ANSWER} are the answer\n"
    )
    print(
        "| document | labels | example tokens/s | × without sharing | token ratio | of these steps | share of it | target | gradients differ |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for length in LENGTHS:
        for labels in LABELS:
            row = measured(labels, length, CLOCKS[clock])
            rows.append(row)
            target = 0.97 if labels == 1 else 0.65
            missed = "" if row["of_token_ratio"] >= target else ": missed"
            print(
                f"| {length} | {labels} | {row['example_tokens_per_second']:,.0f} | {row['speedup']:.2f} | {row['token_ratio']:.2f} "
                f"| {row['token_ratio_of_these_steps']:.2f} | {row['of_token_ratio']:.2f} | {target}{missed} | {row['gradients_differ']:.1e} |",
                flush=True,
            )
            assert row["gradients_differ"] <= 1e-5, row
    print(
        f"\n{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[0]:.1f} after, {clock} time, "
        f"medians of {min(REPEATS.values())} to {max(REPEATS.values())} steps of each in turn, {time.perf_counter() - begun:.0f} s; "
        + ", ".join(f"{package} {version}" for package, version in versions.items())
    )
    path = Path("runs/benchmarks/documents.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"versions": versions, "threads": torch.get_num_threads(), "clock": clock, "load": [load, os.getloadavg()[0]]}
    path.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
