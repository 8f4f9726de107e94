"""Greedy generation over keys and values of our own against `model.generate` in batches by length, on two models; in processor time."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from mtcore.inference.generation import generate
from mtcore.modeling.attention import install
from mtcore.modeling.load import load_model
from mtcore.modeling.tiny import new_decoder

END, FORBIDDEN, BUDGET, REPEATS = 0, (1, 2), 4096, 3
Answers = list[list[int]]


@torch.no_grad()
def by_transformers(model: PreTrainedModel, prompts: Sequence[np.ndarray], limits: Sequence[int]) -> Answers:
    """Prompts sorted by length, left-padded, as many together as the budget lets: every batch runs until its last answer has ended."""
    answers: Answers = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    while order:
        count = max(1, BUDGET // (len(prompts[order[0]]) + limits[order[0]]))
        members, order = order[:count], order[count:]
        width = max(len(prompts[i]) for i in members)
        ids_BT = torch.full((len(members), width), END, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, i in enumerate(members):
            ids_BT[row, width - len(prompts[i]) :] = torch.from_numpy(prompts[i].astype(np.int64))
            mask_BT[row, width - len(prompts[i]) :] = 1
        config = GenerationConfig(
            max_new_tokens=max(limits[i] for i in members),
            do_sample=False,
            eos_token_id=END,
            pad_token_id=END,
            use_cache=True,
            suppress_tokens=list(FORBIDDEN),
        )
        output = model.generate(ids_BT, attention_mask=mask_BT, generation_config=config)
        for row, i in enumerate(members):
            new = output[row, width:].tolist()[: limits[i]]
            answers[i] = new[: new.index(END)] if END in new else new
    return answers


def timed(work: Callable[[], Answers]) -> tuple[float, Answers]:
    begun = time.process_time()
    answers = work()
    return time.process_time() - begun, answers


def compare(name: str, model: PreTrainedModel, prompts: list[np.ndarray], limits: list[int]) -> dict[str, object]:
    def ours() -> Answers:
        return generate(model, prompts, limits, END, FORBIDDEN, BUDGET)

    ours()
    turns = []
    for _ in range(REPEATS):
        before, mine = timed(ours)
        theirs, expected = timed(lambda: by_transformers(model, prompts, limits))
        after, _ = timed(ours)
        turns.append(((before + after) / 2, theirs))
    seconds, ratio = statistics.median(t[0] for t in turns), statistics.median(t[1] / t[0] for t in turns)
    tokens = sum(map(len, mine))
    equal = sum(a == b for a, b in zip(mine, expected, strict=True)) / len(prompts)
    print(
        f"{name:34} {len(prompts):3} prompts: {tokens / seconds:7.0f} tokens/s, {ratio:5.2f} × model.generate, {equal:.0%} of answers equal"
    )
    return {"case": name, "prompts": len(prompts), "tokens": tokens, "tokens_per_s": tokens / seconds, "ratio": ratio, "equal": equal}


def main(bundle: str | None = None) -> None:
    """`bundle`: a folder of a trained model to take instead of the small decoder with random weights."""
    random = np.random.default_rng(0)
    small = (
        load_model(Path(bundle)) if bundle else new_decoder(vocabulary=2048, width=128, layers=4, heads=2, context=512, eos_id=END, seed=0)
    )
    large = new_decoder(vocabulary=8000, width=512, layers=8, heads=8, context=512, eos_id=END, seed=0)
    rows = []
    for name, model, count in (("128 wide × 4", small, 32), ("512 wide × 8", large, 8)):
        install(model.eval())

        def texts(lengths: np.ndarray, most: int = model.config.vocab_size) -> list[np.ndarray]:
            return [random.integers(3, most, n).astype(np.int32) for n in lengths]

        prompts = texts(random.integers(40, 160, count))
        (document,) = texts(np.array([200]))
        rows += [
            compare(f"{name}, one prompt", model, prompts[:1], [24]),
            compare(f"{name}, answers of one length", model, prompts, [24] * count),
            compare(f"{name}, answers of 2 to 60 tokens", model, prompts, random.integers(2, 60, count).tolist()),
            compare(f"{name}, over one document", model, [np.concatenate([document, own]) for own in texts(np.full(8, 16))], [12] * 8),
        ]
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(), "bundle": bundle}
    path = Path("runs/benchmarks/generation.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
