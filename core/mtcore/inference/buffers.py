"""Keys and values of all layers in memory that has room behind them: a model writes new columns there instead of concatenating them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

SLACK = 64
"""Columns that are allocated beyond those needed, so that a text which grows token by token is rarely moved."""


class Layer(DynamicLayer):
    """One layer's keys and values [B, H, C, D], `width` columns of them in use: new ones are written behind those, not concatenated."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None, width: int = 0, slack: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if keys is not None and values is not None:
            self.keys, self.values, self.is_initialized = keys, values, True
        self.width, self.slack = width, slack

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        start, self.width = self.width, self.width + key_states.shape[2]
        if not self.is_initialized:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return key_states, value_states
        if self.keys.shape[2] < self.width:
            self.keys, self.values = (_roomier(x, start, self.width + self.slack) for x in (self.keys, self.values))
        keys, values = self.keys[:, :, : self.width], self.values[:, :, : self.width]
        keys[:, :, start:], values[:, :, start:] = key_states, value_states
        return keys, values

    def get_seq_length(self) -> int:
        return self.width


def _roomier(columns: torch.Tensor, used: int, capacity: int) -> torch.Tensor:
    rows, heads, _, size = columns.shape
    roomy = columns.new_empty(rows, heads, capacity, size)
    roomy[:, :, :used] = columns[:, :, :used]
    return roomy


class Buffers:
    """Keys and values of all layers. Behind `filled` columns stands nothing that anybody looks at: texts that end there may go on there."""

    def __init__(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], filled: int | None = None) -> None:
        self.layers = layers
        self.filled = layers[0][0].shape[2] if filled is None else filled

    def cut(self, width: int) -> "Buffers":
        """The first columns, with no room behind them."""
        return self.map(lambda x: x[:, :, :width])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Buffers":
        return Buffers([(change(keys), change(values)) for keys, values in self.layers])

    def behind(self, width: int, slack: int) -> Cache:
        """What a model is given to write columns behind the first ones."""
        free = self if self.filled == width else self.cut(width)  # where others went on from here, what they wrote must stay
        return Cache(layers=[Layer(keys, values, width, slack) for keys, values in free.layers])

    def after(self, cache: Cache, filled: int) -> "Buffers":
        """What the model has written to: these buffers, where they had room."""
        layers = written(cache)
        if layers[0][0] is not self.layers[0][0]:
            return Buffers(layers, filled)
        self.filled = filled
        return self

    @staticmethod
    def below_each_other(parts: Sequence["Buffers"]) -> "Buffers":
        """The rows of all parts, which end at the same column, with room behind it."""
        width = max(part.filled for part in parts)
        of_layers = zip(*(part.layers for part in parts), strict=True)
        return Buffers([(_ending_at(width, [k for k, _ in layer]), _ending_at(width, [v for _, v in layer])) for layer in of_layers], width)


def written(cache: Cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of all layers, as the model left them."""
    return [(layer.keys, layer.values) for layer in cast(list[Layer], cache.layers)]


def _ending_at(width: int, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, H, C, D] with different C, below each other. Columns that a part does not have are zero: noise may be NaN, which no mask hides."""
    _, heads, _, size = parts[0].shape
    whole = parts[0].new_zeros(sum(map(len, parts)), heads, width + SLACK, size)
    for part, start in zip(parts, np.cumsum([0, *map(len, parts)]), strict=False):
        whole[start : start + len(part), :, width - part.shape[2] : width] = part
    return whole
