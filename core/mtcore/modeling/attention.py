"""Which token may see which: attention by the blocks of packed sequences, whichever kernel computes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from inspect import signature
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mtcore.data.packing import AttentionBlock, ancestry
from mtcore.errors import ModelError

NAME = "mtcore"
"""What this attention is called among transformers' implementations; no saved configuration carries it."""

Kernel = Literal["flash-attn", "varlen", "slices"]
Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of a text, [1, H, T, D] each, by layer."""


# --- blocks ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Blocks as kernels for variable lengths take them: runs of queries, each with keys that end where it ends.

    A document is a run with itself as keys; a suffix is a run whose keys are its document and itself; a token of a trie is a run whose
    keys are all its path. Causal attention aligned to the last query and key then shows every token just what it may see, and no mask is
    needed.
    """

    query_ends: torch.Tensor
    """Where runs begin and end among the queries: int32 [R + 1], from 0."""
    key_ends: torch.Tensor
    """The same among the keys."""
    most_queries: int
    most_keys: int
    key_rows: torch.Tensor | None
    """Which tokens the keys are, int64; None where they are all tokens in their order."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of one packed sequence, with what a kernel needs of them on its device."""

    blocks: tuple[AttentionBlock, ...]
    device: torch.device
    longest: int
    """Tokens of the longest example."""
    held: Sequence[Layers] = ()
    """Keys and values of the documents that are no part of the sequence, in the order of their blocks."""
    keep: Sequence[slice] = ()
    """Tokens whose keys and values are wanted afterwards."""
    kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=list)
    """Of every layer that has been passed, what was to be kept."""

    @cached_property
    def masks(self) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Of every block the mask of each group, bool [Q, K]: what slices need."""
        return tuple(
            tuple(torch.from_numpy(block.visible(group)).to(self.device, non_blocking=True) for group in range(len(block.groups)))
            for block in self.blocks
        )

    @cached_property
    def runs(self) -> Runs:
        """What kernels for variable lengths need."""
        return runs(self.blocks, self.device)


def on_device(
    blocks: tuple[AttentionBlock, ...], device: torch.device, *, held: Sequence[Layers] = (), keep: Sequence[slice] = ()
) -> Blocks:
    return Blocks(blocks, device, max(block.longest for block in blocks), held, keep)


def runs(blocks: Sequence[AttentionBlock], device: torch.device) -> Runs:
    queries: list[int] = []
    keys: list[int] = []
    rows: list[NDArray[np.int64]] = []
    start, held = 0, sum(block.count * block.tokens for block in blocks)  # documents at hand stand behind the sequence's own keys
    for block in blocks:
        for _ in range(block.count):
            document = np.arange(start, start + block.document)
            if block.is_held:
                document += held - start
                held += block.document
            elif block.document:
                queries.append(block.document)
                keys.append(block.document)
                rows.append(document)
                start += block.document
            tries = [trie for group in block.tries for trie in group] or [()] * len(block.suffixes)
            for length, trie in zip(block.suffixes, tries, strict=True):
                if stem := length - len(trie):
                    queries.append(stem)
                    keys.append(block.document + stem)
                    rows += [document, np.arange(start, start + stem)]
                for path in ancestry(trie):
                    queries.append(1)
                    keys.append(block.document + stem + int(path.sum()))
                    rows += [document, np.arange(start, start + stem), start + stem + np.flatnonzero(path)]
                start += length
    ends = [torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32).to(device, non_blocking=True) for lengths in (queries, keys)]
    key_rows = torch.from_numpy(np.concatenate(rows)).to(device, non_blocking=True) if queries != keys else None
    return Runs(ends[0], ends[1], max(queries), max(keys), key_rows)


# --- kernels ---------------------------------------------------------------------------------------------------------------------------


@cache
def kernel(device: torch.device, dtype: torch.dtype, *, dropout: bool) -> Kernel:
    """The kernel that computes attention by blocks.

    On a GPU with 16-bit numbers one call for all runs: flash-attn where it is installed, else torch's own, which takes no dropout and
    is there from torch 2.12 on. Anything else is computed slice by slice: on a CPU nothing was faster (docs/log.md).
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or torch.cuda.get_device_capability(device) < (8, 0):
        return "slices"
    if find_spec("flash_attn"):
        return "flash-attn"
    return "varlen" if _torch_has_varlen() and not dropout else "slices"


def _torch_has_varlen() -> bool:
    """Whether torch has the call as it is made here; 2.10 and 2.11 had an earlier one."""
    if not find_spec("torch.nn.attention.varlen"):
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "enable_gqa"} <= set(signature(varlen_attn).parameters)


def by_slices(
    query_HTD: torch.Tensor,
    key_HTD: torch.Tensor,
    value_HTD: torch.Tensor,
    blocks: Blocks,
    scale: float | None,
    dropout: float,
    layer: int = 0,
) -> torch.Tensor:
    """Attention block by block; returns [T, H, D].

    Blocks are slices of the sequence: views that are cut by one split, whose backward pass is one concatenation. No token is moved, and
    only the suffixes of a tree have their document's keys put before their own.
    """
    sizes = [block.count * block.tokens for block in blocks.blocks]
    cut = [torch.split(heads.transpose(0, 1), sizes) for heads in (query_HTD, key_HTD, value_HTD)]
    held = iter(blocks.held)
    outputs: list[torch.Tensor] = []
    for block, masks, *rows in zip(blocks.blocks, blocks.masks, *cut, strict=True):
        parts = [*([] if block.is_held or not block.document else [block.document]), *(sum(group) for group in block.groups)]
        # [B, H, n, D] of the document, where it stands here, and of every group
        queries, keys, values = ([*(p.transpose(1, 2) for p in r.unflatten(0, (block.count, block.tokens)).split(parts, 1))] for r in rows)
        attended = []
        document: tuple[torch.Tensor, ...] = ()
        if block.is_held:
            document = tuple(x.to(query_HTD.dtype) for x in next(held)[layer])
        elif block.document:
            document = keys.pop(0), values.pop(0)
            attended.append(_sdpa(queries.pop(0), document[0], document[1], None, scale, dropout))
        for query, key, value, mask in zip(queries, keys, values, masks, strict=True):
            seen = [torch.cat(pair, dim=2) for pair in zip(document, (key, value), strict=True)] if document else [key, value]
            attended.append(_sdpa(query, seen[0], seen[1], mask, scale, dropout))
        outputs.append((torch.cat(attended, dim=2) if len(attended) > 1 else attended[0]).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float | None, dropout: float
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    if mask is not None and query.is_cuda:  # with a mask, CUDA has no fused kernel for grouped heads
        key, value, groups = repeat_kv(key, groups), repeat_kv(value, groups), 1
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=groups > 1
    )


def by_runs(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    runs: Runs,
    scale: float | None,
    dropout: float,
    kernel: Literal["flash-attn", "varlen"],
    held: Layers = (),
) -> torch.Tensor:
    """Attention of all runs in one call; returns [T, H, D]. `held`: keys and values of the documents at hand, in this layer."""
    if held:
        key_THD, value_THD = (
            torch.cat([own, *(x[0].transpose(0, 1).to(own.dtype) for x in documents)])
            for own, documents in zip((key_THD, value_THD), zip(*held, strict=True), strict=True)
        )
    if runs.key_rows is not None:
        key_THD, value_THD = key_THD[runs.key_rows], value_THD[runs.key_rows]
    ends = (runs.query_ends, runs.key_ends, runs.most_queries, runs.most_keys)
    if kernel == "flash-attn":
        from flash_attn import flash_attn_varlen_func

        output: torch.Tensor = flash_attn_varlen_func(
            query_THD, key_THD, value_THD, *ends, dropout_p=dropout, softmax_scale=scale, causal=True
        )
        return output
    from torch.nn.attention.varlen import varlen_attn

    is_grouped = query_THD.shape[1] != key_THD.shape[1]
    attended = varlen_attn(query_THD, key_THD, value_THD, *ends, scale=scale, window_size=(-1, 0), enable_gqa=is_grouped)
    return cast(torch.Tensor, attended)  # a pair only for those who ask for the softmax too


# --- in transformers -------------------------------------------------------------------------------------------------------------------


def install(model: PreTrainedModel) -> None:
    """Let a model attend by blocks where it is given some, and as with sdpa where it is not."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    blocks: Blocks | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    **unused: Any,  # what a layer hands on differs between architectures
) -> tuple[torch.Tensor, None]:
    """An attention implementation of transformers: [B, H, T, D] each, to [B, T, H, D]. With blocks B is 1, and the mask is not looked at."""
    if blocks is None:
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, softcap=softcap
        )
        return attended
    if softcap is not None or position_bias is not None or (sliding_window or blocks.longest) < blocks.longest:
        what = f"a window of {sliding_window} tokens" if sliding_window else "capped or biased scores"
        raise ModelError(
            f"{type(module).__name__} attends with {what}, and an example has {blocks.longest} tokens: packed sequences attend to all "
            "that stands before, with plain scores. Choose another architecture, or a max_length within the window."
        )
    if blocks.keep:
        blocks.kept.append([(key[:, :, span].clone(), value[:, :, span].clone()) for span in blocks.keep])
    if torch.is_autocast_enabled(query.device.type):  # sdpa is cast by itself, other kernels are not
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    chosen = kernel(query.device, query.dtype, dropout=dropout > 0)
    layer = cast(int, module.layer_idx) if blocks.held else 0
    if chosen == "slices":
        return by_slices(query[0], key[0], value[0], blocks, scaling, dropout, layer)[None], None
    query_THD, key_THD, value_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    held = [layers[layer] for layers in blocks.held]
    return by_runs(query_THD, key_THD, value_THD, blocks.runs, scaling, dropout, chosen, held)[None], None
