"""Label tries give, in one forward pass, exactly what scoring every label by itself gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mtcore.inference.scoring import Query, score_labels
from mtcore.inference.trie import build_trie, is_prefix_free
from mtcore.modeling.attention import install
from mtcore.modeling.head import require_plain_head

END = 0


def tiny(architecture: str):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attn_implementation": "sdpa",
    }
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if architecture == "qwen2" else LlamaForCausalLM(LlamaConfig(**sizes))
    return model.eval()


@torch.no_grad()
def one_by_one(model, prompt, path):
    """The slow, obvious way: the whole sequence through the model, one label at a time."""
    ids = torch.tensor([[*prompt, *path]])
    logs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    return sum(logs[len(prompt) + k - 1, token].item() for k, token in enumerate(path))


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_every_label_gets_the_log_probability_it_gets_alone(architecture):
    model = tiny(architecture)
    install(model)
    require_plain_head(model)
    sets = [{"a": (3, 4), "b": (3, 5, 6), "c": (7,)}, {str(i): (10 + i % 5, 20 + i, 30) for i in range(30)}]
    prompts = [[1, 2, 3, 4, 5], [9] * 17, [8, 1, 8]]
    queries = [Query(np.array(p, np.int32), build_trie(s, END)) for p in prompts for s in sets]
    for query, scores in zip(queries, score_labels(model, queries, batch_tokens=100), strict=True):
        labels = sets[0] if len(query.trie.labels) == 3 else sets[1]
        assert scores == pytest.approx([one_by_one(model, query.prompt, path) for path in labels.values()], abs=1e-4)


def test_labels_that_begin_others_are_told_apart_by_the_end_token():
    model, prompt = tiny("qwen2"), [5, 6, 7]
    trie = build_trie({"video": (11,), "video education": (11, 12)}, END)
    (scores,) = score_labels(model, [Query(np.array(prompt, np.int32), trie)], 64)
    assert scores == pytest.approx([one_by_one(model, prompt, (11, END)), one_by_one(model, prompt, (11, 12, END))], abs=1e-4)


def test_a_token_after_which_nothing_is_asked_is_not_fed_to_the_model():
    trie = build_trie({"a": (1, 2), "b": (1, 3), "c": (4,)}, END)
    assert trie.tokens_M.tolist() == [1]


def test_batching_changes_no_score():
    model = tiny("qwen2")
    trie = build_trie({str(i): (i, i + 1) for i in range(1, 20)}, END)
    queries = [Query(np.arange(1, n, dtype=np.int32), trie) for n in (3, 30, 9, 9, 17)]
    together, apart = score_labels(model, queries, 10_000), score_labels(model, queries, 1)
    assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(together, apart, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(*[st.integers(1, 4)] * 3) | st.tuples(st.integers(1, 4)), min_size=1, max_size=12))
def test_a_path_takes_one_edge_for_each_of_its_tokens(paths):
    trie = build_trie({str(p): p for p in paths}, END)
    ends = 0 if is_prefix_free(sorted(paths)) else 1
    assert trie.paths_LE.sum(1).tolist() == [len(p) + ends for p in (eval(label) for label in trie.labels)]
