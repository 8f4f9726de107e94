"""Keys and values of texts that have been read: continued by other tokens, repeated, joined; and a bounded store of them."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from mtcore.data.text import Ids
from mtcore.inference.buffers import SLACK, Buffers, Layer, written
from mtcore.inference.prefill import Layout, lay_out
from mtcore.modeling.attention import NAME, Blocks, install, on_device

Ints = NDArray[np.int64]


# --- texts that can be continued -------------------------------------------------------------------------------------------------------


class Prefixes:
    """B texts as keys and values, of which other tokens can be continuations. They never change: whoever continues them gets others.

    Keys and values stand in columns, and every row says which of them hold its text, so that texts of any lengths stand side by side.
    """

    def __init__(self, buffers: Buffers, seen_BC: torch.Tensor, lengths: Ints, last_BD: torch.Tensor) -> None:
        self.lengths = lengths
        """Tokens of each text [B]."""
        self.last_BD = last_BD
        """Hidden state of each text's last token: the head makes of it what may come next."""
        self._buffers = buffers
        self._seen_BC = seen_BC

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Columns: the tokens of the longest text, and what others leave empty."""
        return self._seen_BC.shape[1]

    @property
    def layers(self) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of one text, [1, H, T, D] each, by layer."""
        held = self._buffers.cut(self.width)
        if self.width > int(self.lengths[0]):
            columns = self._seen_BC[0].nonzero()[:, 0]
            held = held.map(lambda x: x[:, :, columns])
        return held.layers

    @classmethod
    def of(cls, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], last_BD: torch.Tensor) -> Self:
        """Texts of one length that were read elsewhere: keys and values [B, H, T, D] by layer."""
        rows, _, length, _ = layers[0][0].shape
        seen_BC = torch.ones(rows, length, dtype=torch.bool, device=last_BD.device)
        return cls(Buffers(layers, length), seen_BC, np.full(rows, length, np.int64), last_BD)

    @classmethod
    def read(cls, model: PreTrainedModel, texts: Sequence[Ids]) -> Self:
        """Read texts of at least one token each in one forward pass, without padding and without the head; what they share is read once."""
        return cls._read(model, texts, [None] * len(texts))[0]

    @classmethod
    @torch.no_grad()
    def _read(cls, model: PreTrainedModel, texts: Sequence[Ids], held: Sequence["Prefixes | None"]) -> tuple[Self, torch.Tensor, Layout]:
        """The texts, of which beginnings may be at hand; the hidden states [T, D] of what was read; and where it stands."""
        if model.config._attn_implementation != NAME:
            install(model)
        layout = lay_out(texts, [int(prefix.lengths[0]) if prefix else 0 for prefix in held])
        at_hand = [prefix.layers for i in layout.held if (prefix := held[i])]
        device = model.device
        ids_T, positions_T = (torch.from_numpy(x).to(device) for x in (layout.ids_T, layout.positions_T))
        cache = Cache(layer_class_to_replicate=Layer)
        hidden_TD = _forward(model, ids_T[None], positions_T[None], on_device(layout.blocks, device, held=at_hand), cache)[0]
        lengths = np.array([len(text) for text in texts], np.int64)
        columns_BC = np.zeros((len(texts), lengths.max()), np.int64)  # texts end at the same column; before them stands anything
        for row, columns in zip(columns_BC, layout.columns, strict=True):
            row[len(row) - len(columns) :] = columns
        moved = torch.from_numpy(columns_BC).to(device)
        layers = []
        for layer, own in enumerate(written(cache)):
            pools = [torch.cat([x, *(held[layer][kind] for held in at_hand)], dim=2)[0] for kind, x in enumerate(own)]
            keys, values = (pool.transpose(0, 1)[moved].transpose(1, 2) for pool in pools)
            layers.append((keys, values))
        seen_BC = np.arange(columns_BC.shape[1]) >= columns_BC.shape[1] - lengths[:, None]
        texts_read = cls(Buffers(layers), torch.from_numpy(seen_BC).to(device), lengths, hidden_TD[moved[:, -1]])
        return texts_read, hidden_TD, layout

    @torch.no_grad()
    def extend(
        self, model: PreTrainedModel, ids_BT: Ints, visible_BTT: NDArray[np.bool_] | None = None, kept_B: Ints | None = None
    ) -> tuple[torch.Tensor, Self]:
        """Hidden states [B, T, D] of new tokens behind every text; and the texts grown by the first `kept_B` of them, by default all.

        A new token sees its whole text, and of the new ones those that `visible_BTT` says: true where the query (second axis) may see the
        key (third), and true for itself; by default all before it. Its position counts what it sees.
        """
        rows, new = ids_BT.shape
        device = model.device
        if visible_BTT is None:
            own_BTT = torch.ones(1, new, new, dtype=torch.bool, device=device).tril()
            depths = np.arange(new)[None]
        else:
            own_BTT = torch.from_numpy(visible_BTT).to(device)
            depths = visible_BTT.sum(2) - 1
        mask_BTK = torch.cat([self._seen_BC[:, None].expand(-1, new, -1), own_BTT.expand(rows, -1, -1)], dim=2)
        keep = new if kept_B is None else int(kept_B.max())
        cache = self._buffers.behind(self.width, slack=SLACK if keep else 0)
        ids, positions = (torch.from_numpy(x).to(device) for x in (ids_BT, self.lengths[:, None] + depths))
        hidden_BTD = _forward(model, ids, positions, mask_BTK[:, None], cache)
        if not keep:
            return hidden_BTD, self
        seen_BT = torch.ones(rows, keep, dtype=torch.bool, device=device)
        last_BD = hidden_BTD[:, keep - 1]
        if kept_B is not None and kept_B.min() < keep:
            kept = torch.from_numpy(kept_B).to(device)
            seen_BT = torch.arange(keep, device=device) < kept[:, None]
            last_BD = hidden_BTD[torch.arange(rows, device=device), (kept - 1).clamp(min=0)]
            if not kept_B.all():
                last_BD = torch.where(kept[:, None] > 0, last_BD, self.last_BD)
        buffers = self._buffers.after(cache, self.width + keep)
        lengths = self.lengths + (keep if kept_B is None else kept_B)
        return hidden_BTD, type(self)(buffers, torch.cat([self._seen_BC, seen_BT], dim=1), lengths, last_BD)

    def take(self, rows: Sequence[int] | Ints) -> Self:
        """These rows in this order, each as often as it is named. One text is repeated without a copy."""
        wanted = np.asarray(rows, np.int64)
        if np.array_equal(wanted, np.arange(len(self))):
            return self
        rows_N = torch.from_numpy(wanted).to(self._seen_BC.device)
        seen_NC, held = self._seen_BC[rows_N], self._buffers.cut(self.width)
        if len(self) == 1:
            held = held.map(lambda x: x.expand(len(wanted), -1, -1, -1))
        else:
            held = held.map(lambda x: x[rows_N])
            columns = seen_NC.any(0).nonzero()[:, 0]
            if len(columns) < self.width:
                seen_NC, held = seen_NC[:, columns], held.map(lambda x: x[:, :, columns])
        return type(self)(held, seen_NC, self.lengths[wanted], self.last_BD[rows_N])

    @classmethod
    def join(cls, parts: Sequence["Prefixes"]) -> Self:
        """The rows of all parts, one part after the other; all end at the same column."""
        width = max(part.width for part in parts)
        seen = parts[0]._seen_BC.new_zeros(sum(map(len, parts)), width)
        for part, start in zip(parts, np.cumsum([0, *map(len, parts)]), strict=False):
            seen[start : start + len(part), width - part.width :] = part._seen_BC
        joined = Buffers.below_each_other([part._buffers.cut(part.width) for part in parts])
        return cls(joined, seen, np.concatenate([part.lengths for part in parts]), torch.cat([part.last_BD for part in parts]))

    def owned(self) -> Self:
        """The same texts in memory that holds nothing else."""
        held = self._buffers.cut(self.width).map(torch.clone)
        return type(self)(held, self._seen_BC.clone(), self.lengths, self.last_BD.clone())


def _forward(
    model: PreTrainedModel, ids_BT: torch.Tensor, positions_BT: torch.Tensor, visible: Blocks | torch.Tensor, cache: Cache
) -> torch.Tensor:
    """What `body` does, with keys and values written to the cache and those in it seen: a mask is bool [B, 1, T, C + T]."""
    packed = {"blocks": visible} if isinstance(visible, Blocks) else {}
    mask = visible if isinstance(visible, torch.Tensor) else torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids_BT.device)
    output = model.base_model(
        input_ids=ids_BT, position_ids=positions_BT, attention_mask=mask, past_key_values=cache, use_cache=True, **packed
    )
    hidden_BTD: torch.Tensor = output.last_hidden_state
    return hidden_BTD


# --- texts that are asked for again ----------------------------------------------------------------------------------------------------


class PrefixCache:
    """Texts with their keys and values, of at most so many tokens together; the least recently used make room. For one thread."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        """Tokens it may hold."""
        self.held = 0
        """Tokens it holds."""
        self._texts: OrderedDict[bytes, Prefixes] = OrderedDict()

    def lookup(self, text: Ids) -> Prefixes | None:
        """The text as it was added, or None."""
        key = _key(text)
        if key in self._texts:
            self._texts.move_to_end(key)
        return self._texts.get(key)

    def add(self, text: Ids, prefix: Prefixes) -> None:
        """Keep one text that has been read; one longer than all that may be held is not kept."""
        key, length = _key(text), len(text)
        if self.lookup(text) or length > self.tokens:
            return
        while self.held + length > self.tokens:
            _, oldest = self._texts.popitem(last=False)
            self.held -= int(oldest.lengths[0])
        self._texts[key] = prefix.owned()
        self.held += length

    def read(self, model: PreTrainedModel, texts: Sequence[Ids], stems: Sequence[int]) -> Prefixes:
        """Read texts, without the first `stems` tokens of each where they are held; where they are not, they are from now on."""
        stem_of = [text[: min(stem, len(text) - 1)] for text, stem in zip(texts, stems, strict=True)]  # something must be left to read
        held = [self.lookup(stem) if len(stem) else None for stem in stem_of]
        read, hidden_TD, layout = Prefixes._read(model, texts, held)
        for row, (stem, prefix) in enumerate(zip(stem_of, held, strict=True)):
            if len(stem) and prefix is None and self.lookup(stem) is None:
                last = layout.columns[row][len(stem) - 1]
                one = read.take([row])
                self.add(
                    stem, Prefixes.of([(k[:, :, : len(stem)], v[:, :, : len(stem)]) for k, v in one.layers], hidden_TD[last : last + 1])
                )
        return read

    def clear(self) -> None:
        """Forget all texts, as one must when the model's weights change."""
        self._texts.clear()
        self.held = 0


def _key(text: Ids) -> bytes:
    return np.asarray(text, np.int32).tobytes()
