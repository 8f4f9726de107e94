"""Parts of B3 and B4: what attention by blocks costs a training step, against rows under a dense mask and against the body alone; and
what it gains where examples share a document."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from mtcore.data.packing import Sample, micro_batches, pack
from mtcore.modeling.head import TargetLoss, as_tensors, body, head

VOCABULARY, EXAMPLES, MEAN, REPEATS = 2048, 64, 75, 3
SIZES = {"1.1M": (128, 4, 4), "30M": (512, 8, 8)}
"""Width, layers, heads."""
DOCUMENTS = ((256, 1), (256, 4), (256, 16), (128, 4), (128, 16))
"""Tokens of a document and tasks that ask about it; suffixes have 8 to 24 tokens."""


def main() -> None:
    torch.set_num_threads(1)
    results = {name: {"steps": steps(*shape), "documents": documents(*shape) if name == "1.1M" else []} for name, shape in SIZES.items()}
    path = Path("runs/benchmarks/attention.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1))


def steps(width: int, layers: int, heads: int) -> dict[str, float]:
    model = decoder(width, layers, heads)
    loss = TargetLoss(model)
    random = np.random.default_rng(0)
    lengths = np.clip(np.round(random.lognormal(np.log(MEAN) - 0.18, 0.6, EXAMPLES)), 4, 512).astype(int)
    samples = [Sample(random.integers(1, VOCABULARY, n).astype(np.int32), int(n) - 2, i) for i, n in enumerate(lengths)]
    (batch,) = micro_batches(samples, 10**6)
    tokens = as_tensors(batch, torch.device("cpu"))
    rectangle = tokens.ids_T[: batch.tokens // MEAN * MEAN].view(-1, MEAN)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "body alone": lambda: model.base_model(input_ids=rectangle, use_cache=False).last_hidden_state.square().mean(),
        "blocks": lambda: loss(tokens, EXAMPLES).mean(),
        "rows of 256": dense_rows(model, samples, 256),
        "rows of 512": dense_rows(model, samples, 512),
    }
    values = [ways[name]().item() for name in ("blocks", "rows of 256", "rows of 512")]
    assert max(values) - min(values) < 1e-5, values
    seconds = measured(ways)
    floor = seconds["body alone"] * batch.tokens / rectangle.numel()
    print(f"{width} wide x {layers}, {EXAMPLES} examples, {batch.tokens} tokens, {batch.attention_padding} masked pairs")
    for name, value in seconds.items():
        print(f"  {name:12} {value * 1e3:8.0f} ms  {batch.tokens / value:8.0f} tokens/s  {floor / value:.2f} of the body alone")
    return seconds


def dense_rows(model: Qwen2ForCausalLM, samples: list[Sample], width: int) -> Callable[[], torch.Tensor]:
    """Examples packed into rows, each row under one dense mask."""
    rows = pack([len(s.ids) for s in samples], width)
    longest = max(sum(len(samples[i].ids) for i in row) for row in rows)
    ids, positions, segments = (torch.full((len(rows), longest), fill) for fill in (0, 0, -1))
    targets = []
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            span = slice(start, start + len(samples[i].ids))
            ids[r, span], segments[r, span] = torch.from_numpy(samples[i].ids).long(), i
            positions[r, span] = torch.arange(len(samples[i].ids))
            targets += [(r, start + t - 1, int(samples[i].ids[t])) for t in range(samples[i].target_start, len(samples[i].ids))]
            start = span.stop
    visible = (segments[:, :, None] == segments[:, None, :]) & torch.ones(longest, longest, dtype=torch.bool).tril()
    row_N, column_N, target_N = torch.tensor(targets).T

    def step() -> torch.Tensor:
        hidden_BTD = body(model, ids, positions, visible[:, None])
        return F.cross_entropy(head(model, hidden_BTD[row_N, column_N]), target_N)

    return step


def documents(width: int, layers: int, heads: int) -> list[dict[str, float]]:
    loss = TargetLoss(decoder(width, layers, heads))
    results = []
    for length, tasks in DOCUMENTS:
        random, samples = np.random.default_rng(0), []
        for _ in range(max(1, 1024 // length)):
            document = random.integers(1, VOCABULARY, length)
            for _ in range(tasks):
                suffix = random.integers(1, VOCABULARY, random.integers(8, 25))
                ids = np.concatenate([document, suffix]).astype(np.int32)
                samples.append(Sample(ids, len(ids) - 2, len(samples), length))
        apart = [Sample(s.ids, s.target_start, s.example) for s in samples]
        batches = {name: micro_batches(some, 8192) for name, some in (("shared", samples), ("apart", apart))}

        def step(name: str, batches=batches) -> torch.Tensor:
            return sum(loss(as_tensors(b, torch.device("cpu")), 1000).sum() for b in batches[name])

        assert abs(step("shared").item() - step("apart").item()) < 1e-3
        seconds = measured({"shared": lambda step=step: step("shared"), "apart": lambda step=step: step("apart")})
        speed = seconds["apart"] / seconds["shared"]
        ratio = sum(b.tokens for b in batches["apart"]) / sum(b.tokens for b in batches["shared"])
        print(
            f"  documents of {length} x {tasks} tasks: {speed:.2f} times faster shared, token ratio {ratio:.2f}: {speed / ratio:.2f} of it"
        )
        results.append({"document": length, "tasks": tasks, "times_faster": speed, "token_ratio": ratio, **seconds})
    return results


def decoder(width: int, layers: int, heads: int) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return Qwen2ForCausalLM(config)


def measured(ways: dict[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """Processor seconds (of one thread) of a forward and backward pass each way: medians, the ways taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, way in ways.items():
            begun = time.process_time()
            way().backward()
            if repeat:
                seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
