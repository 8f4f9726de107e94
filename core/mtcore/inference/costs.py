"""What a forward pass takes, as far as it depends on how queries are laid out: a few figures, nominal or timed once for a model."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from mtcore.data.packing import AttentionBlock
from mtcore.modeling.attention import by_slices, on_device
from mtcore.modeling.flops import ModelSize

EFFICIENCY = 0.5
"""Nominally, how fast attention computes beside matrix products."""
CALL_PAIRS, KEY_PAIRS = 1000, 9
"""Nominally, what a call and a key cost in query-key pairs: a forward pass alone, and less than training takes."""
ROWS, KEYS, CALLS = 128, 512, 16
"""Tokens, keys and calls of the operations that are timed."""
REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """Seconds (nominal: some unit) that all layers together take, by what they are given."""

    token: float
    """For one more token."""
    pair: float
    """For one more query-key pair."""
    call: float
    """For one more call of an attention kernel."""
    key: float
    """For one more key that is brought to a group of suffixes."""

    def width(self, document: int) -> float:
        """Tokens of a group of suffixes at which attention costs least: a larger group computes more pairs that its mask hides, a smaller
        one brings the document's keys more often."""
        return max(1.0, math.sqrt((self.call + self.key * document) / self.pair))

    def tree(self, document: int, suffixes: int) -> float:
        """A document and so many tokens that continue it, in groups."""
        return self.token * document + self.pair * document * (document + 1) / 2 + self.call + self.behind(document, suffixes)

    def is_one_call(self, prompt: int, nodes: int) -> bool:
        """Whether a prompt and its trie cost less in one call under a mask than the trie behind the prompt, which saves about a quarter of
        the prompt's square: kernels skip only whole tiles of what causality hides."""
        return nodes > 0 and self.pair * prompt**2 / 4 <= self.call + self.key * (prompt + nodes)

    def behind(self, document: int, suffixes: int) -> float:
        """So many tokens that continue a document whose keys and values are at hand."""
        if not suffixes:
            return 0.0
        width = min(self.width(document), suffixes)
        calls = self.call + self.key * (document + width)
        return suffixes * (self.token + self.pair * (document + width) + calls / width)


def nominal(size: ModelSize) -> Costs:
    """By floating-point operations: the same on every machine, so that all processes that hold a model together lay out alike."""
    pair = 4.0 * size.layers * size.attention_width / EFFICIENCY
    return Costs(2.0 * size.body_parameters, pair, CALL_PAIRS * pair, KEY_PAIRS * pair)


@torch.no_grad()
def measured(model: PreTrainedModel, size: ModelSize) -> Costs:
    """By a clock, on the model's own shapes, device and threads: a few operations of one layer, some milliseconds."""
    config, device, dtype = model.config.get_text_config(), model.device, model.dtype
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = size.attention_width // heads
    outputs, inputs = size.widest

    def made(*shape: int) -> torch.Tensor:
        return torch.ones(*shape, device=device, dtype=dtype)

    def attention(document: int, groups: tuple[int, ...]) -> float:
        """Of suffixes in such groups over a document that is held."""
        block = AttentionBlock(1, document, tuple((length,) for length in groups), is_held=True)
        text = made(1, key_heads, document, width)
        blocks = on_device((block,), device, held=[[(text, text)]])
        query, key = made(heads, sum(groups), width), made(key_heads, sum(groups), width)
        return _seconds(lambda: by_slices(query, key, key, blocks, None, 0.0), device)

    left, right = made(ROWS, inputs), made(outputs, inputs)
    product = _seconds(lambda: F.linear(left, right), device)
    calls, calls_with_keys = attention(1, (1,) * CALLS), attention(KEYS, (1,) * CALLS)
    call = calls / CALLS
    return Costs(
        token=product / ROWS * size.body_parameters / (outputs * inputs),
        pair=size.layers * max(attention(KEYS, (ROWS,)) - calls_with_keys / CALLS, 0.1 * call) / (ROWS * (KEYS + ROWS)),
        call=size.layers * call,
        key=size.layers * max(calls_with_keys - calls, 0.0) / (CALLS * KEYS),
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The least of some repeats: what disturbs a clock only ever adds to it."""
    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])
