"""Texts are read once and continued: to the hidden states of whole sequences, and to the very tokens of transformers' own generation."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from mtcore.inference.cache import PrefixCache, Prefixes
from mtcore.inference.generation import generate
from mtcore.inference.prefill import admit, families, lay_out
from mtcore.modeling.tiny import new_decoder

END, VOCABULARY = 14, 24
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def model():
    return loud(new_decoder(vocabulary=VOCABULARY, width=32, layers=2, heads=2, context=256, eos_id=0, seed=2))


def loud(decoder):
    """Weights large enough for tokens to tell: at their initial size all hidden states are much alike."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return decoder.eval()


def some(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCABULARY, length).astype(np.int32) for length in lengths]


@torch.no_grad()
def whole(model, ids):
    """Hidden states of a sequence by itself, read in one go."""
    return model.base_model(input_ids=torch.from_numpy(np.array(ids, np.int64))[None], use_cache=False).last_hidden_state[0]


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def reference(model, prompt, limit, forbidden):
    """transformers' own greedy generation, one prompt at a time."""
    config = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=END, pad_token_id=END, suppress_tokens=sorted(set(forbidden) - {END}) or None
    )
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    new = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :].tolist()
    return new[: new.index(END)] if END in new else new


# --- prefixes --------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=5), st.integers(0, 99))
def test_what_continues_a_text_has_the_hidden_states_that_it_has_in_the_whole(model, lengths, rows, seed):
    """Any rows in any order, of which each keeps another number of the new tokens; twice."""
    texts = some(lengths, seed)
    prefixes = Prefixes.read(model, texts)
    for row, text in enumerate(texts):
        assert_close(prefixes.last_BD[row], whole(model, text)[-1])
    taken = [row % len(texts) for row, _ in rows]
    grown, now = [texts[i] for i in taken], prefixes.take(taken)
    for again in (1, 2):
        new = np.stack(some([5] * len(grown), seed + again)).astype(np.int64)
        kept = np.array([count for _, count in rows])
        hidden, now = now.extend(model, new, kept_B=kept)
        for row, count in enumerate(kept):
            assert_close(hidden[row], whole(model, [*grown[row], *new[row]])[-5:])
            grown[row] = np.concatenate([grown[row], new[row, :count]]).astype(np.int32)
            assert_close(now.last_BD[row], whole(model, grown[row])[-1])
        assert now.lengths.tolist() == [len(text) for text in grown]


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.lists(st.integers(-1, 5), min_size=1, max_size=7), st.integers(0, 99))
def test_a_tree_behind_a_text_is_all_its_paths(model, lengths, above, seed):
    parents = [min(parent, node - 1) for node, parent in enumerate(above)]
    paths = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    texts = some(lengths, seed)
    new = np.stack(some([len(parents)] * len(texts), seed + 1)).astype(np.int64)
    visible = np.zeros((len(texts), len(parents), len(parents)), bool)
    for node, path in enumerate(paths):
        visible[:, node, path] = True
    prefixes = Prefixes.read(model, texts)
    hidden, same = prefixes.extend(model, new, visible, np.zeros(len(texts), np.int64))
    assert same is prefixes
    for row, text in enumerate(texts):
        for node, path in enumerate(paths):
            assert_close(hidden[row, node], whole(model, [*text, *new[row, path]])[-1])


def test_texts_that_have_been_continued_can_be_continued_otherwise(model):
    text = some([6])[0]
    start = Prefixes.read(model, [text])
    _, one = start.extend(model, np.array([[3, 4]]))  # allocates room, which both of the next would like to write to
    continued = {(new,): one.extend(model, np.array([[new]]))[1] for new in (5, 6)}
    one.extend(model, np.array([[7, 8, 9]]), kept_B=np.array([0]))
    for new, prefixes in continued.items():
        assert_close(prefixes.last_BD[0], whole(model, [*text, 3, 4, *new])[-1])
        assert_close(prefixes.extend(model, np.array([[2]]))[0][0, 0], whole(model, [*text, 3, 4, *new, 2])[-1])


def test_one_text_is_repeated_without_a_copy_and_continued_apart(model):
    text = some([9])[0]
    once = Prefixes.read(model, [text])
    often = once.take([0] * 5)
    assert often._buffers.layers[0][0].data_ptr() == once._buffers.layers[0][0].data_ptr()
    hidden, _ = often.extend(model, np.arange(1, 6)[:, None])
    for row in range(5):
        assert_close(hidden[row, 0], whole(model, [*text, row + 1])[-1])


def test_rows_of_several_readings_stand_side_by_side(model):
    texts = some([3, 11, 7])
    parts = [Prefixes.read(model, texts[:1]).extend(model, np.array([[2]]))[1], Prefixes.read(model, texts[1:])]
    joined = Prefixes.join(parts)
    new = np.array([[4, 5]] * 3)
    hidden, _ = joined.extend(model, new)
    for row, text in enumerate([[*texts[0], 2], *texts[1:]]):
        assert_close(hidden[row], whole(model, [*text, 4, 5])[-2:])
    assert joined.take([0, 2]).width == 7  # columns that only the longest needed are gone


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=6))
def test_texts_are_laid_out_whole_and_what_they_share_once(lengths, wanted):
    documents = some(lengths)
    texts = [np.concatenate([documents[i % len(documents)], some([own], own)[0]]) for i, own in wanted]
    layout = lay_out(texts, [0] * len(texts))
    for text, columns in zip(texts, layout.columns, strict=True):
        assert layout.ids_T[columns].tolist() == text.tolist()
        assert layout.positions_T[columns].tolist() == list(range(len(text)))
    assert sum(block.count * block.tokens for block in layout.blocks) == len(layout.ids_T) <= sum(map(len, texts))
    assert sorted(i for family in families(texts) for i in family) == list(range(len(texts)))


def test_a_shared_document_is_read_once():
    document = some([30])[0]
    layout = lay_out([np.concatenate([document, own]) for own in some([3, 5, 2])] + some([20], seed=9), [0] * 4)
    assert len(layout.ids_T) == 30 + 3 + 5 + 2 + 20


# --- the store -------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8)), max_size=30))
def test_a_store_of_texts_stays_within_its_bound_and_forgets_the_least_recently_used(uses):
    """Against a list that is moved and cut by hand. A text of n tokens is n times the token n."""
    cache, expected = PrefixCache(10), []
    for is_added, length in uses:
        text = np.full(length, length, np.int32)
        if is_added:
            column = torch.zeros(1, 1, length, 1)
            cache.add(text, Prefixes.of([(column, column)], torch.zeros(1, 1)))
            expected = [*(n for n in expected if n != length), length]
        else:
            found = cache.lookup(text)
            assert (found is not None) == (length in expected)
            if found:
                assert found.lengths.tolist() == [length]
                expected = [*(n for n in expected if n != length), length]
        while sum(expected) > 10:
            expected = expected[1:]
        assert cache.held == sum(expected) <= 10
    cache.clear()
    assert cache.held == 0
    assert cache.lookup(np.full(1, 1, np.int32)) is None


def test_what_the_store_keeps_holds_nothing_else_in_memory(model):
    cache, texts = PrefixCache(100), some([5, 50])
    cache.add(texts[0], Prefixes.read(model, texts).take([0]))
    kept = cache.lookup(texts[0])._buffers.layers[0][0]
    assert kept.untyped_storage().nbytes() == kept.nbytes == 2 * 16 * 5 * 4


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=4), min_size=1, max_size=3))
def test_texts_over_stems_that_are_held_are_the_texts_read_whole(model, lengths, calls):
    """Stems of all lengths, some held, some new, some shared; in a store that holds few of them."""
    cache, documents = PrefixCache(20), some(lengths)
    for call in calls:
        texts = [np.concatenate([documents[i % len(documents)], some([own], own)[0]]) for i, own in call]
        stems = [len(documents[i % len(documents)]) for i, _ in call]
        read = cache.read(model, texts, stems)
        hidden, _ = read.extend(model, np.full((len(texts), 1), 5))
        for row, text in enumerate(texts):
            expected = whole(model, [*text, 5])
            assert_close(read.last_BD[row], expected[-2])
            assert_close(hidden[row, 0], expected[-1])
        assert cache.held <= 20


def test_a_stem_that_is_held_is_not_read_again(model):
    cache, (stem, own) = PrefixCache(100), some([30, 4])
    cache.read(model, [np.concatenate([stem, own])], [30])
    assert_close(cache.lookup(stem).last_BD[0], whole(model, stem)[-1])
    layout = lay_out([np.concatenate([stem, own[:2]]), np.concatenate([stem, own]), own], [30, 30, 0])
    assert len(layout.ids_T) == 2 + 4 + 4


# --- generation ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_what_is_generated_is_what_transformers_generates(model, batch_tokens):
    document = some([20], seed=5)[0]
    prompts = [*some([3, 17, 1, 9, 30, 9]), *(np.concatenate([document, own]) for own in some([2, 4]))]
    limits, forbidden = [9, 4, 12, 1, 6, 80, 5, 7], [1, 2, 3, END]
    expected = [reference(model, prompt, limit, forbidden) for prompt, limit in zip(prompts, limits, strict=True)]
    assert generate(model, prompts, limits, END, forbidden, batch_tokens) == expected
    held, stems = PrefixCache(25), [0, 5, 0, 3, 30, 9, 20, 20]
    for _ in range(2):  # reads the stems, and is spared it
        assert generate(model, prompts, limits, END, forbidden, batch_tokens, held, stems) == expected
    assert {len(new) < limit for new, limit in zip(expected, limits, strict=True)} == {True, False}  # some end by themselves
    assert not {1, 2, 3, END} & {i for new in expected for i in new}


def test_what_is_forbidden_would_have_come_out_otherwise(model):
    prompts = some([3, 17, 30])
    free = generate(model, prompts, [12] * 3, END, [], 1000)
    assert free == [reference(model, prompt, 12, []) for prompt in prompts]
    assert {i for new in free for i in new} & {1, 2, 3}


def test_whoever_waits_takes_the_place_of_those_that_ended():
    waiting, reach = deque([3, 0, 1, 2]), [10, 10, 5, 20]
    assert admit(waiting, reach, [], 50) == [3, 0]  # of 20 tokens each
    assert admit(waiting, reach, [0], 30) == [1, 2]  # where the longest has left, three of 10
    assert admit(waiting, reach, [], 30) == []
    assert admit(deque([3]), reach, [], 1) == [3]  # one alone always may


def test_nothing_is_generated_for_nobody_and_where_there_is_no_room(model):
    assert generate(model, [], [], END, [], 100) == []
    assert generate(model, some([4]), [0], END, [], 100) == [[]]
