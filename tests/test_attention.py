"""Packed examples give the losses and gradients that they give one by one, whatever shares a sequence or a document with them."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mtcore.data.packing import AttentionBlock, Sample, micro_batches
from mtcore.errors import ModelError
from mtcore.modeling.attention import by_slices, install, kernel, on_device
from mtcore.modeling.head import TargetLoss, as_tensors, require_plain_head
from mtcore.modeling.load import load_model

CPU = torch.device("cpu")


def tiny(architecture="qwen2", *, tied=True, key_heads=2, **changes):
    sizes = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": key_heads,
        "tie_word_embeddings": tied,
        **changes,
    }
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if architecture == "qwen2" else LlamaForCausalLM(LlamaConfig(**sizes))
    return model.eval()


def plain(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [Sample(random.integers(1, 96, n).astype(np.int32), max(1, n - 3), i) for i, n in enumerate(lengths)]


def sharing(document, suffixes, *, first=0, start=None):
    """Samples over one document; targets are the last one or two ids, or begin at `start`."""
    random = np.random.default_rng(document)
    shared = random.integers(1, 96, document)
    return [
        Sample(np.concatenate([shared, random.integers(1, 96, n)]).astype(np.int32), start or max(1, document + n - 2), first + i, document)
        for i, n in enumerate(suffixes)
    ]


def alone(model, sample):
    """The slow, obvious way: one example, the model's own forward pass, the mean over its targets."""
    ids = torch.from_numpy(sample.ids.astype(np.int64))[None]
    logs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    targets = range(sample.target_start, len(sample.ids))
    return -torch.stack([logs[t - 1, ids[0, t]] for t in targets]).mean()


def packed(loss, samples, batch_tokens):
    return sum(loss(as_tensors(batch, CPU), len(samples)) for batch in micro_batches(samples, batch_tokens))


def gradients(model, losses_E, weights):
    model.zero_grad()
    sum(w * loss for w, loss in zip(weights, losses_E, strict=True)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def require_equal(model, samples, batch_tokens, *, loss=None, tolerance=1e-6):
    """Losses and gradients of packed samples are those of the samples alone."""
    weights = [0.1 + 0.05 * i for i in range(len(samples))]
    losses = [alone(model, s) for s in samples]
    expected = gradients(model, losses, weights)
    found_E = packed(loss or TargetLoss(model), samples, batch_tokens)
    assert found_E.tolist() == pytest.approx([x.item() for x in losses], abs=tolerance)
    found = gradients(model, found_E, weights)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=0, atol=10 * tolerance), name


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_packed_losses_and_gradients_are_those_of_examples_alone(architecture, tied, key_heads):
    model = tiny(architecture, tied=tied, key_heads=key_heads)
    require_equal(model, [*plain([9, 30, 4, 17, 9, 2]), *sharing(12, [3, 5], first=6)], batch_tokens=64)


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 1000])
def test_losses_and_gradients_do_not_depend_on_the_micro_batches(batch_tokens):
    require_equal(tiny(), [*plain([9, 30, 4, 17, 25, 5]), *sharing(20, [3] * 5, first=6)], batch_tokens)


@pytest.mark.parametrize("suffixes", [1, 4, 16])
@pytest.mark.parametrize("batch_tokens", [60, 1000])
def test_a_shared_document_teaches_what_it_teaches_in_every_example_by_itself(suffixes, batch_tokens):
    require_equal(tiny(), sharing(32, [2 + i % 5 for i in range(suffixes)]), batch_tokens)


def test_an_answer_may_follow_the_document_at_once():
    require_equal(tiny(), sharing(11, [1, 2, 1], start=11), 100)


def test_targets_may_stand_in_the_document():
    require_equal(tiny(), sharing(11, [1, 2, 4], start=5), 100)


def test_the_order_of_samples_does_not_change_their_losses():
    samples = [*plain([9, 30, 4]), *sharing(12, [3, 5, 2], first=3)]
    loss = TargetLoss(tiny())
    for order in ([5, 4, 3, 2, 1, 0], [3, 0, 4, 1, 5, 2]):
        assert torch.allclose(packed(loss, [samples[i] for i in order], 50), packed(loss, samples, 50), rtol=0, atol=1e-6)


def test_an_example_has_no_gradient_with_respect_to_its_neighbours():
    model = tiny()
    samples = [*plain([15, 12]), *sharing(6, [4, 4], first=2)]
    (batch,) = micro_batches(samples, 64)
    embedded = {}
    handle = model.get_input_embeddings().register_forward_hook(lambda m, i, o: embedded.setdefault("x", o).retain_grad())
    TargetLoss(model)(as_tensors(batch, CPU), 4)[2].backward()
    handle.remove()
    # the largest stand first: 15, the tree of document 6 and suffixes 4 and 4, 12
    norms = embedded["x"].grad[0].norm(dim=-1)
    assert (norms[15:24] > 0).all()
    assert norms[:15].max() == norms[25:].max() == 0


def test_gradient_checkpointing_changes_nothing():
    model = tiny()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    require_equal(model, [*plain([9, 30]), *sharing(12, [3, 5], first=2)], 64)


def test_adapters_are_trained_over_packed_sequences():
    model = inject_adapter_in_model(LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False), tiny())
    require_equal(model, [*plain([9, 30]), *sharing(12, [3, 5], first=2)], 64)


def test_logits_in_parts_are_the_same_logits():
    model = tiny()
    samples = [*plain([9, 30, 17]), *sharing(12, [3, 5], first=3)]
    require_equal(model, samples, 64, loss=TargetLoss(model, logits=2 * 96))


def test_without_blocks_attention_is_that_of_sdpa():
    model, ids = tiny(), torch.randint(1, 96, (2, 9))
    padding = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    expected = model(input_ids=ids, attention_mask=padding).logits
    answer = model.generate(ids, attention_mask=padding, max_new_tokens=5, do_sample=False)
    install(model)
    assert torch.equal(model(input_ids=ids, attention_mask=padding).logits, expected)
    assert torch.equal(model.generate(ids, attention_mask=padding, max_new_tokens=5, do_sample=False), answer)


def test_a_saved_model_does_not_ask_for_this_attention(base_folder, tmp_path):
    model = load_model(base_folder)
    model.save_pretrained(tmp_path)
    assert "mtcore" not in (tmp_path / "config.json").read_text()
    assert "attn" not in " ".join(json.loads((tmp_path / "config.json").read_text()))


def test_an_architecture_that_looks_past_the_blocks_is_refused():
    model = tiny()  # its attention stays what it was
    with pytest.raises(ModelError, match="Qwen2ForCausalLM does not keep the examples of a packed sequence apart"):
        require_plain_head(model)


def test_an_architecture_with_learnt_positions_packs_too():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
    install(model)
    require_plain_head(model)


class CappedModel(Qwen2ForCausalLM):
    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits.tanh() * 0.1
        return output


def test_an_architecture_that_caps_its_logits_is_refused():
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = CappedModel(Qwen2Config(**sizes, initializer_range=1.0, num_key_value_heads=4)).eval()
    install(model)
    with pytest.raises(ModelError, match="in more steps than body and head"):
        require_plain_head(model)


def test_examples_longer_than_a_sliding_window_are_refused():
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=4, sliding_window=16)).eval()
    require_equal(model, plain([16, 9]), 64)
    with pytest.raises(ModelError, match="a window of 16 tokens, and an example has 17"):
        packed(TargetLoss(model), plain([17]), 64)


BLOCKS = (AttentionBlock(2, 7), AttentionBlock(1, 6, ((2, 3), (4,))), AttentionBlock(2, 3, ((1,),)), AttentionBlock(3, 1))


def test_runs_say_what_blocks_say():
    """One call for all runs, causal to their last query and key, is attention by blocks; kernels that take runs need a GPU."""
    torch.manual_seed(0)
    tokens = sum(block.count * block.tokens for block in BLOCKS)
    query, key, value = (torch.randn(4, tokens, 8) for _ in range(3))
    blocks = on_device(BLOCKS, CPU)
    by_run = []
    queries, keys = blocks.runs.query_ends.tolist(), blocks.runs.key_ends.tolist()
    for q, q_end, k, k_end in zip(queries, queries[1:], keys, keys[1:], strict=False):
        rows = blocks.runs.key_rows[k:k_end]
        seen = torch.ones(q_end - q, k_end - k, dtype=torch.bool).tril((k_end - k) - (q_end - q))
        by_run.append(F.scaled_dot_product_attention(query[:, q:q_end], key[:, rows], value[:, rows], attn_mask=seen))
    assert queries[-1] == tokens
    assert (blocks.runs.most_queries, blocks.runs.most_keys) == (7, 10)
    found = by_slices(query, key, value, blocks, None, 0.0)
    assert torch.allclose(found, torch.cat(by_run, dim=1).transpose(0, 1), rtol=0, atol=1e-6)


def test_plain_segments_need_no_keys_moved():
    assert on_device((AttentionBlock(2, 7), AttentionBlock(1, 3)), CPU).runs.key_rows is None


def test_a_cpu_attends_slice_by_slice():
    assert kernel(CPU, torch.float32, dropout=False) == kernel(CPU, torch.bfloat16, dropout=True) == "slices"
