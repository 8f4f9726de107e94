"""Packed examples give the losses and gradients that they give one by one, and never see each other."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from mtcore.data.packing import Sample, micro_batches, pack
from mtcore.modeling.head import TargetLoss, as_tensors
from mtcore.modeling.load import load_model
from mtcore.training.loop import StepBatch, backward


def samples(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [Sample(random.integers(1, 300, n).astype(np.int32), max(1, n - 3), i) for i, n in enumerate(lengths)]


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 50))
def test_every_sequence_is_packed_once_and_no_row_overflows(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity or len(row) == 1 for row in rows)


def test_the_fullest_row_that_still_has_room_is_taken_first():
    assert pack([5, 4, 3, 1], 8) == [[0, 2], [1, 3]]


@pytest.fixture
def model(base_folder):
    return load_model(base_folder)


def alone(model, sample):
    """The slow, obvious way: one example, the model's own forward pass, the mean over its targets."""
    ids = torch.from_numpy(sample.ids.astype(np.int64))[None]
    logs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    targets = range(sample.target_start, len(sample.ids))
    return -torch.stack([logs[t - 1, ids[0, t]] for t in targets]).mean()


@pytest.mark.parametrize(("row_tokens", "batch_tokens"), [(64, 256), (64, 64), (1, 1), (200, 400)])
def test_packed_losses_equal_the_losses_of_examples_alone(model, row_tokens, batch_tokens):
    examples = samples([9, 30, 4, 17, 25, 5])
    losses = torch.zeros(len(examples))
    with torch.no_grad():
        for batch in micro_batches(examples, row_tokens, batch_tokens):
            losses += TargetLoss(model)(as_tensors(batch, torch.device("cpu")), len(examples))
    assert losses.tolist() == pytest.approx([alone(model, s).item() for s in examples], abs=1e-5)


def test_gradients_are_those_of_the_weighted_mean_whatever_the_micro_batches(model):
    examples, weights = samples([9, 30, 4, 17]), [0.1, 0.2, 0.3, 0.4]
    model.zero_grad()
    sum(w * alone(model, s) for w, s in zip(weights, examples, strict=True)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    for row_tokens, batch_tokens in ((64, 256), (1, 1)):
        model.zero_grad()
        backward(TargetLoss(model), Accelerator(cpu=True), StepBatch(micro_batches(examples, row_tokens, batch_tokens), weights))
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


def test_an_example_has_no_gradient_with_respect_to_its_neighbour_in_the_row(model):
    first, second = samples([12, 15])
    (batch,) = micro_batches([first, second], 64, 64)
    embedded = {}
    handle = model.get_input_embeddings().register_forward_hook(lambda m, i, o: embedded.setdefault("x", o).retain_grad())
    TargetLoss(model)(as_tensors(batch, torch.device("cpu")), 2)[1].backward()
    handle.remove()
    # the longer example is packed first
    gradient = embedded["x"].grad[0]
    assert gradient[:15].abs().sum() > 0
    assert gradient[15:27].abs().max() == 0
