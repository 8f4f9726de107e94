"""What a step costs is what torch counts, and what a device can do is what its data sheet or a clock says."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mtcore.inference.predictor import ServedTask
from mtcore.inference.scoring import Query, score_labels
from mtcore.inference.trie import build_trie
from mtcore.modeling.flops import model_size
from mtcore.testing import toy_spec
from mtcore.training.flops import data_sheet, peak
from mtcore.types import Cost

TOKENS, TARGETS = 24, 3
SHAPE = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 88, "num_attention_heads": 4, "num_key_value_heads": 2}


def qwen2(*, layers=3, tied=True):
    config = Qwen2Config(**SHAPE, num_hidden_layers=layers, tie_word_embeddings=tied, attn_implementation="eager", use_cache=False)
    return Qwen2ForCausalLM(config)


def llama(*, layers=3, tied=False):
    # heads wider than their part of the model
    shape = {**SHAPE, "head_dim": 16}
    config = LlamaConfig(**shape, num_hidden_layers=layers, tie_word_embeddings=tied, attn_implementation="eager", use_cache=False)
    return LlamaForCausalLM(config)


MODELS = pytest.mark.parametrize(
    ("build", "tied"), [(qwen2, True), (qwen2, False), (llama, True), (llama, False)], ids=["qwen2-tied", "qwen2", "llama-tied", "llama"]
)


def counted(model, *, train):
    """What torch counts of a pass with the head at the last tokens only; eager attention computes every pair, hidden ones too."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        hidden = model.base_model(input_ids=torch.arange(TOKENS)[None]).last_hidden_state
        logits = model.get_output_embeddings()(hidden[0, -TARGETS:])
        if train:
            logits.logsumexp(-1).sum().backward()
    return counter.get_total_flops()


@MODELS
def test_a_forward_pass_costs_what_torch_counts(build, tied):
    model = build(tied=tied)
    assert model_size(model).forward_flops(TOKENS, TOKENS**2, TARGETS) == counted(model, train=False)


@MODELS
def test_a_training_step_costs_what_torch_counts_of_forward_and_backward(build, tied):
    model = build(tied=tied)
    size = model_size(model)
    assert size.training_flops(TOKENS, TOKENS**2, TARGETS) == counted(model, train=True)
    assert size.training_flops(TOKENS, TOKENS**2, TARGETS) == 3 * size.forward_flops(TOKENS, TOKENS**2, TARGETS)


def test_lora_saves_the_gradients_of_what_it_does_not_train():
    from peft import LoraConfig, get_peft_model

    whole = qwen2(layers=12)
    full = model_size(whole)
    adapted = get_peft_model(whole, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))
    size = model_size(adapted)
    assert (size.head_parameters, size.layers, size.attention_width) == (full.head_parameters, full.layers, full.attention_width)
    assert size.body_parameters == full.body_parameters + size.trained_body_parameters
    assert size.trained_body_parameters == 12 * 2 * (32 + 32 + 32 + 16)
    # torch computes no gradient of the first layer's inputs, a little that the formula counts
    found, expected = size.training_flops(TOKENS, TOKENS**2, TARGETS), counted(adapted.base_model.model, train=True)
    assert expected <= found <= 1.02 * expected
    assert found < 0.75 * full.training_flops(TOKENS, TOKENS**2, TARGETS)


def test_causal_attention_of_a_sequence_is_half_a_square_and_its_diagonal():
    size = model_size(qwen2())
    pairs = TOKENS * (TOKENS + 1) // 2
    attention = size.forward_flops(TOKENS, pairs, 0) - size.forward_flops(TOKENS, 0, 0)
    assert attention == 3 * 32 * 2 * TOKENS * (TOKENS + 1)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756.5e12, 51e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("NVIDIA A10G", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("", None, None),
    ],
)
def test_a_data_sheet_is_found_by_the_whole_name_of_a_gpu(name, bf16, fp32):
    found = (data_sheet(name, "bf16"), data_sheet(name, "fp32"))
    assert [x and pytest.approx(x) for x in (bf16, fp32)] == [*found]


def test_a_processor_is_timed_at_the_shapes_of_the_model():
    found = peak(torch.device("cpu"), "fp32", model_size(qwen2()))
    assert found.flops_per_second > 1e6
    assert found.source.startswith("fp32 matrix products of 1024 × 32 × 88, timed on ")
    assert found.source.endswith((" thread", " threads"))


def test_utilisation_is_that_of_the_work_whose_peak_is_known():
    trained = Cost(tokens=100, flops=4e9, seconds=2.0).metered(8e9, "a clock")
    evaluated = Cost(tokens=10, flops=1e9, seconds=1.0)
    whole = trained + evaluated + trained
    assert trained.utilisation == pytest.approx(0.25)
    assert (whole.flops, whole.seconds, whole.utilisation) == (9e9, 5.0, pytest.approx(0.25))
    assert whole.peaks == ("a clock",)
    assert evaluated.utilisation is None


def test_tokens_saved_by_sharing_documents_add_up():
    shared = Cost(tokens=70, example_tokens=100)
    assert (shared.saved, Cost(tokens=5).saved) == (30, 0)
    assert (shared + Cost(tokens=5) + shared).saved == 60


def test_scoring_labels_costs_what_torch_counts_without_padding():
    trie = build_trie({"a": [1, 2, 3], "b": [1, 2, 4], "c": [5, 6], "d": [7]}, end=0)
    task = ServedTask(spec=toy_spec("multi-class"), prompt=lambda fields: (), room=0, trie=trie)
    model, prompt = qwen2(), np.arange(10, dtype=np.int32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        score_labels(model, [Query(prompt, trie)], batch_tokens=1000)
    size, nodes = model_size(model), 3  # 1, 1 2 and 5
    hidden = (10 + nodes) ** 2 - (55 + 30 + 4)  # pairs that are computed and not seen
    assert task.flops(size, 10) == counter.get_total_flops() - size.forward_flops(0, hidden, 0)
