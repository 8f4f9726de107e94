"""B2: label sets of 5, 50 and 200 labels, 1 to 4 tokens each: tries in one forward pass against one pass a label, batched, and against
`generate` with the tokens that labels allow, which says one label and no probability of the others."""

import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mtcore.inference.costs import measured
from mtcore.inference.scoring import Query, score_labels
from mtcore.inference.trie import build_trie
from mtcore.modeling.attention import install
from mtcore.modeling.flops import model_size

END, PROMPT, QUERIES, REPEATS = 0, 128, 4, 3


def label_set(count: int, random: np.random.Generator) -> dict[str, tuple[int, ...]]:
    """Distinct labels with shared stems; no label begins another."""
    stems = random.integers(10, 2000, (max(2, count // 5), 2))
    labels: dict[str, tuple[int, ...]] = {}
    while len(labels) < count:
        stem = tuple(int(t) for t in stems[random.integers(len(stems))][: random.integers(0, 3)])
        path = (*stem, 2000 + len(labels), *(int(t) for t in random.integers(4000, 6000, random.integers(0, 2))))
        labels[str(len(labels))] = path
    return labels


@torch.no_grad()
def per_label(model: Qwen2ForCausalLM, prompt: np.ndarray, labels: dict[str, tuple[int, ...]], batch: int = 50) -> list[float]:
    """The usual way: prompt + label for every label, right-padded batches, logits where the label stands."""
    paths = list(labels.values())
    scores: list[float] = []
    for start in range(0, len(paths), batch):
        part = paths[start : start + batch]
        width = len(prompt) + max(map(len, part))
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask = torch.zeros(len(part), width, dtype=torch.long)
        for row, path in enumerate(part):
            ids[row, : len(prompt) + len(path)] = torch.tensor([*prompt.tolist(), *path])
            mask[row, : len(prompt) + len(path)] = 1
        keep = width - len(prompt) + 1
        logs = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits.float().log_softmax(-1)
        scores += [sum(logs[row, k, token].item() for k, token in enumerate(path)) for row, path in enumerate(part)]
    return scores


@torch.no_grad()
def constrained(model: Qwen2ForCausalLM, prompt: np.ndarray, labels: dict[str, tuple[int, ...]]) -> None:
    """Greedy decoding along the labels' paths."""
    following: dict[tuple[int, ...], set[int]] = {}
    for path in labels.values():
        for cut, token in enumerate((*path, END)):
            following.setdefault(path[:cut], set()).add(token)
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1 + max(map(len, labels.values())),
        do_sample=False,
        eos_token_id=END,
        pad_token_id=END,
        prefix_allowed_tokens_fn=lambda _, written: list(following.get(tuple(written[len(prompt) :].tolist()), {END})),
    )


def timed(work) -> tuple[float, object]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def main() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    config = Qwen2Config(
        vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4
    )
    peer = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    model = Qwen2ForCausalLM._from_config(Qwen2Config(**config.to_dict()), attn_implementation="sdpa").eval()
    model.load_state_dict(peer.state_dict())
    install(model)
    costs = measured(model, model_size(model))
    prompts = [random.integers(1, 8000, PROMPT).astype(np.int32) for _ in range(QUERIES)]
    rows = []
    for count in (5, 50, 200):
        labels = label_set(count, random)
        queries = [Query(p, build_trie(labels, END)) for p in prompts]
        score_labels(model, queries, 8192, costs)
        turns = []
        for _ in range(REPEATS):
            before, mine = timed(lambda queries=queries: score_labels(model, queries, 8192, costs))
            theirs, other = timed(lambda labels=labels: [per_label(peer, p, labels) for p in prompts])
            after, _ = timed(lambda queries=queries: score_labels(model, queries, 8192, costs))
            written, _ = timed(lambda labels=labels: [constrained(peer, p, labels) for p in prompts])
            turns.append(((before + after) / 2, theirs, written))
        ours = statistics.median(turn[0] for turn in turns)
        ratio, generate = (statistics.median(turn[k] / turn[0] for turn in turns) for k in (1, 2))
        difference = max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in zip(mine, other, strict=True))
        rows.append({"labels": count, "ours_s": ours, "ratio": ratio, "x_generate": generate, "largest_difference": difference})
        print(
            f"{count:4} labels: {ours / QUERIES * 1e3:8.1f} ms a prompt, {ratio:6.1f} × per-label scoring, {generate:5.1f} × constrained generate, "
            f"differ by {difference:.1e}"
        )
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(), "prompt_tokens": PROMPT}
    path = Path("runs/benchmarks/labels.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
