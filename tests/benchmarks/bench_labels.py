"""B2: label sets of 5, 50 and 200 labels, 1 to 4 tokens each: tries in one forward pass against one pass a label, batched."""

import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mtcore.inference.scoring import Query, score_labels
from mtcore.inference.trie import build_trie

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


def timed(work) -> tuple[float, object]:
    times, result = [], None
    for _ in range(REPEATS):
        begun = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times), result


def main() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    config = Qwen2Config(
        vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4
    )
    model = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    prompts = [random.integers(1, 8000, PROMPT).astype(np.int32) for _ in range(QUERIES)]
    rows = []
    for count in (5, 50, 200):
        labels = label_set(count, random)
        trie = build_trie(labels, END)
        ours, mine = timed(lambda trie=trie: score_labels(model, [Query(p, trie) for p in prompts], 8192))
        theirs, other = timed(lambda labels=labels: [per_label(model, p, labels) for p in prompts])
        difference = max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in zip(mine, other, strict=True))
        rows.append({"labels": count, "ours_s": ours, "per_label_s": theirs, "ratio": theirs / ours, "largest_difference": difference})
        print(
            f"{count:4} labels: {ours / QUERIES * 1e3:8.1f} ms a prompt, {theirs / ours:6.1f} × per-label scoring, differ by {difference:.1e}"
        )
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(), "prompt_tokens": PROMPT}
    path = Path("runs/benchmarks/labels.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
