"""Packing: every token once, no padding, documents once, and a division of work that is a pure function of the samples."""

from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtcore.data.packing import AttentionBlock, Sample, deal, micro_batches, pack


def slow_pack(lengths, capacity):
    """Best-fit-decreasing as it is defined: one sequence after the other, each to the fullest bin that still has room."""
    bins, space = [], []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        place = bisect_left(space, (length, -1))
        if place < len(space):
            left, number = space.pop(place)
            bins[number].append(index)
        else:
            left, number = max(capacity, length), len(bins)
            bins.append([index])
        insort(space, (left - length, number))
    return bins


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 90))
def test_packing_by_slices_is_best_fit_decreasing_one_by_one(lengths, capacity):
    assert pack(lengths, capacity) == slow_pack(lengths, capacity)


@given(st.lists(st.integers(1, 12), min_size=50, max_size=300), st.integers(10, 40))
def test_many_sequences_of_few_lengths_are_packed_so_too(lengths, capacity):
    assert pack(np.array(lengths), capacity) == slow_pack(lengths, capacity)


def test_the_fullest_bin_that_still_has_room_is_taken_first():
    assert pack([5, 4, 3, 1], 8) == [[0, 2], [1, 3]]


# samples as (document, its length, suffix length, where targets begin); documents of one number and length are the same
SPECS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 7), st.integers(1, 16)), min_size=1, max_size=14)


def made(specs):
    random = np.random.default_rng(0)
    samples = []
    for example, (number, document, suffix, start) in enumerate(specs):
        head = np.random.default_rng(100 + number).integers(1, 50, document)
        ids = np.concatenate([head, random.integers(50, 99, max(suffix, 2 - document))]).astype(np.int32)
        samples.append(Sample(ids, min(start, len(ids) - 1), example, document))
    return samples


def visible(batch):
    """What each token of a micro-batch sees by its blocks, and how often it asks: bool [T, T], int [T]."""
    seen, asked = np.zeros((batch.tokens, batch.tokens), bool), np.zeros(batch.tokens, int)
    start = 0
    for block in batch.blocks:
        for _ in range(block.count):
            document = np.arange(start, start + block.document)
            seen[np.ix_(document, document)] = np.tri(block.document, dtype=bool)
            asked[document] += 1
            start += block.document
            for number, group in enumerate(block.groups):
                own = np.arange(start, start + sum(group))
                seen[np.ix_(own, np.concatenate([document, own]))] = block.visible(number)
                asked[own] += 1
                start += sum(group)
    assert start == batch.tokens
    return seen, asked


@given(SPECS, st.integers(1, 60))
def test_every_target_is_predicted_from_just_the_tokens_before_it(specs, batch_tokens):
    samples, found = made(specs), []
    for batch in micro_batches(samples, batch_tokens):
        seen, asked = visible(batch)
        assert (asked == 1).all()
        for column, target, example in zip(batch.columns_N, batch.targets_N, batch.examples_N, strict=True):
            before = np.flatnonzero(seen[column])
            assert (batch.positions_T[before] == np.arange(len(before))).all()
            assert (batch.ids_T[before] == samples[example].ids[: len(before)]).all()
            assert target == samples[example].ids[len(before)]
            found.append((example, len(before)))
    assert sorted(found) == [(s.example, t) for s in samples for t in range(s.target_start, len(s.ids))]


@given(SPECS, st.integers(1, 60))
def test_micro_batches_hold_their_tokens_and_count_them(specs, batch_tokens):
    samples = made(specs)
    batches = micro_batches(samples, batch_tokens)
    for batch in batches:
        seen, _ = visible(batch)
        assert batch.tokens <= batch_tokens or len(set(batch.examples_N.tolist())) == 1
        assert batch.padding == 0
        assert batch.attention_pairs == seen.sum()
        assert batch.attention_padding >= 0
    assert sum(batch.example_tokens for batch in batches) == sum(len(s.ids) for s in samples)


def samples_of(lengths, document):
    shared = np.arange(document, dtype=np.int32)
    return [Sample(np.concatenate([shared, np.full(n, 7 + i, np.int32)]), document + 1, i, document) for i, n in enumerate(lengths)]


def test_a_shared_document_is_laid_out_once():
    (batch,) = micro_batches(samples_of([3, 4, 5], document=20), 100)
    assert (batch.tokens, batch.example_tokens) == (32, 72)


def test_a_tree_that_does_not_fit_is_split_and_each_part_repeats_the_document():
    batches = micro_batches(samples_of([4] * 6, document=20), 30)
    assert [batch.tokens for batch in batches] == [28, 28, 28]


def test_documents_of_other_ids_or_another_length_are_not_shared():
    first, second = Sample(np.array([1, 2, 3, 4], np.int32), 3, 0, 2), Sample(np.array([1, 2, 3, 5], np.int32), 3, 1, 3)
    third = Sample(np.array([1, 9, 3, 5], np.int32), 3, 2, 2)
    (batch,) = micro_batches([first, second, third], 100)
    assert batch.tokens == 12


def test_segments_of_one_length_share_a_block():
    (batch,) = micro_batches(samples_of([5, 3, 5, 3, 3], document=0), 100)
    assert batch.blocks == (AttentionBlock(2, 5), AttentionBlock(3, 3))


def test_a_sample_longer_than_a_batch_gets_one_of_its_own():
    assert sorted(batch.tokens for batch in micro_batches(samples_of([30, 2, 3], document=0), 8)) == [5, 30]


@given(SPECS, st.integers(1, 5))
def test_samples_are_dealt_once_with_their_documents_together(specs, processes):
    samples = made(specs)
    hands = deal(samples, processes)
    assert sorted(i for hand in hands for i in hand) == list(range(len(samples)))
    assert all(hand == sorted(hand) for hand in hands)
    assert len(hands) == processes
    shared = {}
    for process, hand in enumerate(hands):
        for i in hand:
            if 0 < samples[i].document < len(samples[i].ids):
                assert shared.setdefault(samples[i].ids[: samples[i].document].tobytes(), process) == process


@given(st.lists(st.integers(2, 100), min_size=1, max_size=40), st.integers(1, 5))
def test_no_process_gets_more_than_its_share_and_one_sample(lengths, processes):
    samples = samples_of(lengths, document=0)
    costs = [sum(lengths[i] for i in hand) for hand in deal(samples, processes)]
    assert max(costs) <= sum(lengths) / processes + max(lengths)


def test_a_process_may_get_nothing():
    assert deal(samples_of([3, 4, 5], document=9), 3) == [[0, 1, 2], [], []]


@pytest.mark.parametrize("document", [1, 30, 300])
def test_short_suffixes_share_a_group_and_long_ones_do_not(document):
    (short,) = micro_batches(samples_of([2] * 8, document), 1000)
    (long,) = micro_batches(samples_of([200] * 3, document), 1000)
    assert [len(block.groups) for block in (*short.blocks, *long.blocks)] == [1, 3]
