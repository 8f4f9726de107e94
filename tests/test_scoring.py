"""Label tries give, in one forward pass, exactly what scoring every label by itself gives."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mtcore.inference.cache import PrefixCache
from mtcore.inference.costs import nominal
from mtcore.inference.forest import Query, forests, over_held, shared_trees
from mtcore.inference.scoring import edge_log_probabilities, score_labels
from mtcore.inference.trie import build_trie, is_prefix_free
from mtcore.modeling.attention import install
from mtcore.modeling.flops import model_size
from mtcore.modeling.head import head, require_plain_head

END = 0


@cache
def tiny(architecture="qwen2", key_heads=2):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": key_heads,
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


COSTS = nominal(model_size(tiny()))

# --- forests -----------------------------------------------------------------------------------------------------------------------------

DOCUMENTS = st.lists(st.lists(st.integers(1, 63), max_size=12), min_size=1, max_size=3)
SUFFIXES = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(1, 63), max_size=4), st.integers(0, 3)), min_size=1, max_size=8)
SETS = [
    {"a": (3,), "b": (4,)},
    {"a": (3, 4), "b": (3, 5, 6), "c": (7,)},
    {"a": (9,), "b": (9, 8)},
    {str(i): (10 + i % 3, 20 + i, 30) for i in range(7)},
]


def laid_out(queries, batch_tokens):
    return list(forests(queries, shared_trees(queries, COSTS), batch_tokens, COSTS))


def made(documents, suffixes):
    """Queries over a few documents, which may begin each other, end a prompt or be empty; with the paths that each asks."""
    prompts = [[*documents[number % len(documents)], *suffix] or [1] for number, suffix, _ in suffixes]
    queries = [Query(np.array(p, np.int32), build_trie(SETS[s], END)) for p, (_, _, s) in zip(prompts, suffixes, strict=True)]
    ends = [() if is_prefix_free(list(SETS[s].values())) else (END,) for _, _, s in suffixes]
    return queries, [[(*path, *end) for path in SETS[s].values()] for (_, _, s), end in zip(suffixes, ends, strict=True)]


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, SUFFIXES, st.sampled_from([("qwen2", 4), ("qwen2", 2), ("llama", 1)]), st.sampled_from([1, 25, 1000]))
def test_any_forest_of_documents_suffixes_and_tries_scores_as_separately(documents, suffixes, kind, batch_tokens):
    model = tiny(*kind)
    queries, paths = made(documents, suffixes)
    for query, asked, scores in zip(queries, paths, score_labels(model, queries, batch_tokens), strict=True):
        assert scores == pytest.approx([one_by_one(model, query.prompt, path) for path in asked], abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS, SUFFIXES, st.sampled_from([("qwen2", 2), ("llama", 1)]), st.sampled_from([1, 25, 1000]))
def test_stems_that_were_read_before_score_as_separately(documents, suffixes, kind, batch_tokens):
    model, texts = tiny(*kind), PrefixCache(30)
    queries, paths = made(documents, suffixes)
    stems = [len(documents[number % len(documents)]) for number, _, _ in suffixes]
    queries = [replace(query, stem=stem) for query, stem in zip(queries, stems, strict=True)]
    expected = [[one_by_one(model, query.prompt, path) for path in asked] for query, asked in zip(queries, paths, strict=True)]
    for turn in (queries, queries[::-1], queries[1:]):
        wanted = [expected[next(i for i, q in enumerate(queries) if q is query)] for query in turn]
        for scores, known in zip(score_labels(model, turn, batch_tokens, texts=texts), wanted, strict=True):
            assert scores == pytest.approx(known, abs=1e-5)


def test_a_stem_is_read_once_as_long_as_it_is_kept():
    model, texts = tiny(), PrefixCache(100)
    stem = np.arange(1, 41)
    queries = [Query(np.concatenate([stem, [task] * 3]).astype(np.int32), build_trie(SETS[1], END), 40) for task in (50, 51)]
    score_labels(model, queries[:1], 1000, texts=texts)
    assert texts.held == 40
    trees = over_held(queries, shared_trees(queries, COSTS), COSTS, texts.lookup)
    (forest,) = forests(queries, trees, 1000, COSTS)
    assert len(forest.ids_T) == 2 * (3 + 2)


@given(DOCUMENTS, SUFFIXES, st.integers(1, 60))
def test_no_pass_has_more_tokens_than_the_budget_but_for_one_long_query(documents, suffixes, batch_tokens):
    queries, _ = made(documents, suffixes)
    passes = laid_out(queries, batch_tokens)
    assert sorted(i for forest in passes for i in forest.members) == list(range(len(queries)))
    for forest in passes:
        assert len(forest.ids_T) <= batch_tokens or len(forest.members) == 1
        assert len(forest.ids_T) == sum(block.count * block.tokens for block in forest.blocks)


def test_a_document_that_several_ask_is_read_once_whichever_request_brings_it():
    trie = build_trie(SETS[1], END)
    one, other = [np.full(50, token) for token in (5, 6)]
    prompts = [np.concatenate([document, [task] * 3]).astype(np.int32) for task in (7, 8, 9) for document in (one, other)]
    (forest,) = laid_out([Query(prompt, trie) for prompt in prompts], 1000)
    assert len(forest.ids_T) == 2 * 50 + 6 * (3 + len(trie.tokens_M))


def test_texts_that_were_cut_at_different_places_share_what_they_have():
    whole = np.arange(1, 60)
    prompts = [np.concatenate([whole[:cut], [61, 62]]).astype(np.int32) for cut in (50, 52, 55)]
    (forest,) = laid_out([Query(prompt, build_trie(SETS[0], END)) for prompt in prompts], 1000)
    assert len(forest.ids_T) == 50 + 2 + 4 + 7


def test_prompts_that_share_a_few_ids_are_not_bound_together():
    random = np.random.default_rng(0)
    prompts = [np.concatenate([[1, 2], random.integers(3, 63, 70)]).astype(np.int32) for _ in range(2)]
    trees = shared_trees([Query(prompt, build_trie(SETS[0], END)) for prompt in prompts], COSTS)
    assert sorted(tree.members for tree in trees) == [(0,), (1,)]


def test_another_document_in_the_batch_changes_no_score():
    model, trie = tiny(), build_trie(SETS[3], END)
    random = np.random.default_rng(0)
    mine, other, third = (random.integers(1, 63, 40).astype(np.int32) for _ in range(3))
    asked = [Query(np.concatenate([mine, np.array([task], np.int32)]), trie) for task in (1, 2, 3)]
    beside = [[Query(np.concatenate([document, np.array([9], np.int32)]), trie)] for document in (other, third)]
    first, second = (score_labels(model, [*asked, *more], 1000)[:3] for more in beside)
    assert np.array(first) == pytest.approx(np.array(second), abs=1e-6)


def test_logits_in_parts_are_the_same_logits():
    model = tiny()
    hidden_TD, columns, tokens = torch.randn(9, 32), np.array([8, 0, 3, 3, 8, 5, 0]), np.array([1, 2, 3, 4, 5, 6, 7])
    expected = head(model, hidden_TD).log_softmax(-1)[columns, tokens].tolist()
    for logits in (1, 130, 10_000):
        assert edge_log_probabilities(model, hidden_TD, columns, tokens, logits).tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(*[st.integers(1, 4)] * 3) | st.tuples(st.integers(1, 4)), min_size=1, max_size=12))
def test_a_path_takes_one_edge_for_each_of_its_tokens(paths):
    trie = build_trie({str(p): p for p in paths}, END)
    ends = 0 if is_prefix_free(sorted(paths)) else 1
    assert trie.paths_LE.sum(1).tolist() == [len(p) + ends for p in (eval(label) for label in trie.labels)]
