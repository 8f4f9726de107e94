"""B1: one document and many tasks: the tree in one pass beside batched scoring task by task and `generate()` task by task, and beside the floor.

All three run the same weights over the same prompts in turns. Labels are one token each, which suits the peers: batched scoring reads them off one
position, `generate()` takes two steps (label and end). It is timed on a few of the tasks, and counted for all.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from mtcore.inference.costs import Costs, measured
from mtcore.inference.scoring import Query, score_labels
from mtcore.inference.trie import build_trie
from mtcore.modeling.attention import install
from mtcore.modeling.flops import ModelSize, model_size

DOCUMENTS, TASKS, SUFFIX, LABELS = (128, 256, 512), (1, 5, 20, 50, 100), 16, (2, 20)
VOCABULARY, BATCH_TOKENS, PEER_ROWS, GENERATED = 151_936, 8192, 16, 2
"""Rows that batched scoring takes at once (the fastest of 8, 16 and 32), and tasks on which `generate()` is timed."""
EQUAL = 1e-5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHARE, GENERATE, FLOOR = 0.75, 10.0, 0.75
"""Targets: of the token ratio at 20 tasks, times `generate()` from 256 tokens on, and of the floor."""


def build(device: torch.device, dtype: torch.dtype, *, hidden: int = 512, layers: int = 8) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Ours, and the same weights as transformers runs them."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=0,
    )
    peer = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").to(device, dtype).eval()
    with torch.device("meta"):
        ours = Qwen2ForCausalLM._from_config(Qwen2Config(**config.to_dict()), attn_implementation="sdpa")
    ours.load_state_dict(peer.state_dict(), assign=True)
    ours.tie_weights()
    ours.model.rotary_emb = peer.model.rotary_emb
    install(ours)
    return ours.eval(), peer


def queries(document: int, tasks: int) -> list[Query]:
    """A document, and of every task its own words and 2 to 20 labels."""
    random = np.random.default_rng(document * tasks)
    shared = random.integers(1, VOCABULARY, document)
    found = []
    for _ in range(tasks):
        labels = 1 + random.choice(VOCABULARY - 1, random.integers(LABELS[0], LABELS[1] + 1), replace=False)
        prompt = np.concatenate([shared, random.integers(1, VOCABULARY, SUFFIX)]).astype(np.int32)
        found.append(Query(prompt, build_trie({str(i): (int(token),) for i, token in enumerate(labels)}, 0)))
    return found


@torch.no_grad()
def batched(model: PreTrainedModel, asked: list[Query]) -> list[np.ndarray]:
    """Every task's whole prompt in batches, logits at the last position, log-probabilities of the labels."""
    ids_BT = torch.from_numpy(np.stack([q.prompt for q in asked]).astype(np.int64)).to(model.device)
    scores: list[np.ndarray] = []
    for start in range(0, len(asked), PEER_ROWS):
        logs_BV = (
            model(input_ids=ids_BT[start : start + PEER_ROWS], use_cache=False, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
        )
        part = asked[start : start + PEER_ROWS]
        scores += [
            logs_V[torch.from_numpy(q.trie.edge_tokens_E).to(logs_V.device)].cpu().numpy() for logs_V, q in zip(logs_BV, part, strict=True)
        ]
    return scores


@torch.no_grad()
def generated(model: PreTrainedModel, asked: list[Query]) -> None:
    """Every task by itself: the label and the end token, greedily."""
    for query in asked:
        ids = torch.from_numpy(query.prompt.astype(np.int64)).to(model.device)[None]
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)


def seconds(work: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    begun = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begun


def flops_of(asked: list[Query], size: ModelSize) -> tuple[float, float]:
    """What the tree needs, of the body and of the head."""
    document = len(asked[0].prompt) - SUFFIX
    tokens = document + SUFFIX * len(asked)
    pairs = document * (document + 1) // 2 + len(asked) * (SUFFIX * document + SUFFIX * (SUFFIX + 1) // 2)
    body = size.forward_flops(tokens, pairs, 0)
    return body, size.forward_flops(tokens, pairs, len(asked)) - body


def floor(asked: list[Query], model: PreTrainedModel, size: ModelSize, clock: Callable[[], float]) -> float:
    """Seconds of the tree if it were nothing but matrix products: the body's at its widest shape, the head's at its own, both as fast as they
    are here and now."""
    body, head = flops_of(asked, size)
    outputs, inputs = size.widest
    tokens = len(asked[0].prompt) - SUFFIX + SUFFIX * len(asked)
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    total = 0.0
    for flops, rows, shape in ((body, tokens, (outputs, inputs)), (head, len(asked), (vocabulary, hidden))):
        left = torch.ones(rows, shape[1], device=model.device, dtype=model.dtype)
        right = (
            model.get_output_embeddings().weight if shape[0] == vocabulary else torch.ones(*shape, device=model.device, dtype=model.dtype)
        )
        with torch.no_grad():
            product = partial(torch.nn.functional.linear, left, right)
            best = min(seconds(product, model.device, clock) for _ in range(5))
        total += flops / (2.0 * rows * shape[0] * shape[1] / best)
    return total


def measure(
    document: int, tasks: int, models: tuple[PreTrainedModel, PreTrainedModel], costs: Costs, *, turns: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """All three in turns; ratios are medians over turns, differences the largest."""
    asked, (ours, peer) = queries(document, tasks), models
    device, size = ours.device, model_size(ours)
    runs: dict[str, Callable[[], Any]] = {
        "tree": lambda: score_labels(ours, asked, BATCH_TOKENS, costs),
        "batched": lambda: batched(peer, asked),
        "generate": lambda: generated(peer, asked[:GENERATED]),
    }
    scores, other = runs["tree"](), runs["batched"]()
    runs["generate"]()
    times: dict[str, list[float]] = {name: [] for name in (*runs, "floor")}
    for turn in range(turns):
        for name in runs if turn % 2 else reversed(runs):
            times[name].append(seconds(runs[name], device, clock))
        times["floor"].append(floor(asked, ours, size, clock))
    scale = tasks / len(asked[:GENERATED])
    token_ratio = tasks * (document + SUFFIX) / (document + tasks * SUFFIX)
    row = {
        "document": document,
        "tasks": tasks,
        "tree_s": statistics.median(times["tree"]),
        "x_batched": statistics.median(b / t for b, t in zip(times["batched"], times["tree"], strict=True)),
        "x_generate": scale * statistics.median(g / t for g, t in zip(times["generate"], times["tree"], strict=True)),
        "token_ratio": token_ratio,
        "of_floor": statistics.median(f / t for f, t in zip(times["floor"], times["tree"], strict=True)),
        "largest_difference": max(float(np.abs(a - b).max()) for a, b in zip(scores, other, strict=True)),
    }
    return {**row, "of_token_ratio": row["x_batched"] / token_ratio}


def missed(row: dict[str, Any]) -> list[str]:
    """Targets that a row misses."""
    found = []
    if row["tasks"] == 1 and row["x_batched"] < 1.0:
        found.append("N = 1")
    if row["tasks"] == 20 and row["of_token_ratio"] < SHARE:
        found.append("token ratio")
    if row["tasks"] >= 20 and row["document"] >= 256 and row["x_generate"] < GENERATE:
        found.append("generate")
    if row["of_floor"] < FLOOR:
        found.append("floor")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS)
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS)
    parser.add_argument("--turns", type=int, default=3, help="of 20 tasks and fewer; more are measured in one turn")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: the processor's time, for a busy machine and one thread (OMP_NUM_THREADS=1)",
    )
    chosen = parser.parse_args()
    load, begun = os.getloadavg()[0], time.perf_counter()
    models = build(torch.device("cpu"), torch.float32)
    costs = measured(models[0], model_size(models[0]))
    rows = []
    print(f"512 wide × 8, vocabulary {VOCABULARY:,}, suffixes of {SUFFIX} tokens, {LABELS[0]} to {LABELS[1]} labels\n")
    print("| document | tasks | tree | × batched | token ratio | share of it | × generate | of the floor | largest difference | missed |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for document in chosen.documents:
        for tasks in chosen.tasks:
            row = measure(document, tasks, models, costs, turns=chosen.turns if tasks <= 20 else 1, clock=CLOCKS[chosen.clock])
            rows.append(row)
            print(
                f"| {document} | {tasks} | {row['tree_s'] * 1e3:,.0f} ms | {row['x_batched']:.2f} | {row['token_ratio']:.2f} "
                f"| {row['of_token_ratio']:.2f} | {row['x_generate']:.1f} | {row['of_floor']:.2f} | {row['largest_difference']:.1e} "
                f"| {', '.join(missed(row)) or '–'} |",
                flush=True,
            )
            assert row["largest_difference"] <= EQUAL, row
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(
        f"\n{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[0]:.1f} after, "
        f"{chosen.clock} time, {time.perf_counter() - begun:.0f} s; "
        + ", ".join(f"{package} {version}" for package, version in versions.items())
    )
    path = Path("runs/benchmarks/tasks.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"versions": versions, "threads": torch.get_num_threads(), "clock": chosen.clock, "load": [load, os.getloadavg()[0]]}
    path.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
