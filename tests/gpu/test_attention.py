"""On a GPU, every kernel gives the attention of separate sequences, forward and backward."""

from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

from mtcore.data.packing import AttentionBlock
from mtcore.modeling.attention import by_runs, by_slices, kernel, on_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PLAIN = (AttentionBlock(2, 190), AttentionBlock(3, 70), AttentionBlock(1, 5), AttentionBlock(4, 1))
TREES = (AttentionBlock(1, 300, ((20, 1, 33), (64,))), AttentionBlock(2, 130, ((7, 9),)), AttentionBlock(2, 40))


def separate(query_HTD, key_HTD, value_HTD, blocks):
    """The slow, obvious way: every document and every suffix by itself, in 32 bits, through a dense mask."""
    groups = query_HTD.shape[0] // key_HTD.shape[0]
    key_HTD, value_HTD = key_HTD.repeat_interleave(groups, 0), value_HTD.repeat_interleave(groups, 0)
    outputs, start = [], 0
    for block in blocks:
        for _ in range(block.count):
            document = list(range(start, start + block.document))
            start += block.document
            pieces = [(document, document)]
            for length in block.suffixes:
                own = list(range(start, start + length))
                pieces.append((own, document + own))
                start += length
            for own, keys in pieces:
                seen = torch.ones(len(own), len(keys), dtype=torch.bool, device="cuda").tril(len(keys) - len(own))
                scores = (query_HTD[:, own] @ key_HTD[:, keys].transpose(1, 2)) / query_HTD.shape[-1] ** 0.5
                outputs.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value_HTD[:, keys])
    return torch.cat(outputs, dim=1).transpose(0, 1)


def tensors(blocks, key_heads):
    torch.manual_seed(0)
    tokens = sum(block.count * block.tokens for block in blocks)
    return [torch.randn(heads, tokens, 64, device="cuda", requires_grad=True) for heads in (4, key_heads, key_heads)]


def with_gradients(attend, inputs, dtype):
    """Output, and the gradients of a fixed sum of it with respect to queries, keys and values."""
    for x in inputs:
        x.grad = None
    output = attend(*(x.to(dtype) for x in inputs)).float()
    (output * torch.linspace(-1, 1, output.numel(), device="cuda").view_as(output)).sum().backward()
    return [output.detach(), *(x.grad.clone() for x in inputs)]


def require_equal(attend, blocks, key_heads, dtype, tolerance):
    inputs = tensors(blocks, key_heads)
    expected = with_gradients(lambda q, k, v: separate(q, k, v, blocks), inputs, torch.float32)
    found = with_gradients(attend, inputs, dtype)
    for name, one, other in zip(("output", "queries", "keys", "values"), found, expected, strict=True):
        error = (one - other).norm() / other.norm()
        assert error < tolerance, f"{name}: relative error {error:.2g}"


@pytest.mark.parametrize("blocks", [PLAIN, TREES], ids=["plain", "trees"])
@pytest.mark.parametrize("key_heads", [4, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_slices_are_separate_sequences(blocks, key_heads, dtype, tolerance):
    on_gpu = on_device(blocks, torch.device("cuda"))
    require_equal(lambda q, k, v: by_slices(q, k, v, on_gpu, None, 0.0), blocks, key_heads, dtype, tolerance)


@pytest.mark.parametrize("blocks", [PLAIN, TREES], ids=["plain", "trees"])
@pytest.mark.parametrize("key_heads", [4, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["flash-attn", "varlen"])
def test_one_call_for_all_runs_is_separate_sequences(blocks, key_heads, dtype, name):
    if name == "flash-attn" and not find_spec("flash_attn"):
        pytest.skip("needs flash-attn")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")
    on_gpu = on_device(blocks, torch.device("cuda"))

    def attend(query, key, value):
        rows = (x.transpose(0, 1) for x in (query, key, value))
        return by_runs(*rows, on_gpu.runs, None, 0.0, name)

    require_equal(attend, blocks, key_heads, dtype, 2e-2)


def test_sixteen_bits_take_one_call_and_thirty_two_do_not():
    device = torch.device("cuda")
    assert kernel(device, torch.float32, dropout=False) == "slices"
    if torch.cuda.get_device_capability() >= (8, 0):
        assert kernel(device, torch.bfloat16, dropout=False) in ("flash-attn", "varlen")


def test_masked_slices_are_scaled_as_others():
    """A mask takes another path through sdpa; both must be scaled alike."""
    on_gpu = on_device(TREES, torch.device("cuda"))
    inputs = tensors(TREES, 4)
    scaled = by_slices(*inputs, on_gpu, 0.5, 0.0)
    assert torch.allclose(scaled, by_slices(inputs[0] * 4, *inputs[1:], on_gpu, None, 0.0), atol=1e-3)
    assert F.mse_loss(scaled, by_slices(*inputs, on_gpu, None, 0.0)) > 0
