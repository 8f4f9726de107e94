"""The loop by itself: what a step is, and what happens when memory runs out in it."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mtcore.data.packing import Sample, micro_batches
from mtcore.errors import RunError
from mtcore.training.flops import ModelSize
from mtcore.training.loop import Schedule, StepBatch, train

SIZE = ModelSize(10, 10, 10, is_head_trained=True, layers=1, attention_width=4, widest=(2, 2))
LENGTHS = [3, 9, 4, 6, 8, 5]


class Sum(nn.Module):
    """The loss of an example is a weight times its first token; more than `most` tokens at once do not fit into memory."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.most = most
        self.sizes: list[int] = []

    def forward(self, batch, examples):
        self.sizes.append(len(batch.ids_T))
        if len(batch.ids_T) > self.most:
            raise torch.OutOfMemoryError("no memory")
        zeros = torch.zeros(examples)
        return self.weight * zeros.index_add(0, batch.examples_N, batch.targets_N.float())


def batch(step, batch_tokens):
    samples = [Sample(np.arange(10 * (n + 1), 10 * (n + 1) + length, dtype=np.int32), length - 1, n) for n, length in enumerate(LENGTHS)]
    weights = [0.1, 0.1, 0.2, 0.2, 0.2, 0.2]
    return StepBatch(micro_batches(samples, batch_tokens), weights, [0, 1, 0, 1, 0, 1])


def steps(model, *, batch_tokens=100, count=2, **changes):
    schedule = Schedule(batch, lambda step: 0.1, ("even", "odd"), batch_tokens, **changes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return list(train(model, optimizer, Accelerator(cpu=True), schedule, size=SIZE, first=0, last=count, clip=1e9))


def test_a_step_is_the_weighted_mean_of_its_examples_whatever_the_micro_batches():
    whole, parts = Sum(), Sum()
    one, several = steps(whole), steps(parts, batch_tokens=9)
    last = torch.tensor([10 * (n + 1) + length - 1 for n, length in enumerate(LENGTHS)])
    assert one[0].loss == pytest.approx(float((torch.tensor([0.1, 0.1, 0.2, 0.2, 0.2, 0.2]) * last).sum()))
    assert len(parts.sizes) > len(whole.sizes)
    assert [s.loss for s in several] == pytest.approx([s.loss for s in one])
    assert whole.weight.item() == pytest.approx(parts.weight.item())
    assert one[0].losses == {0: (float(last[::2].sum()), 3), 1: (float(last[1::2].sum()), 3)}


def test_where_memory_runs_out_the_step_is_begun_anew_in_halves_and_taken_once():
    free, tight = Sum(), Sum(most=12)
    expected, found = steps(free), steps(tight)
    assert [s.loss for s in found] == pytest.approx([s.loss for s in expected])
    assert tight.weight.item() == pytest.approx(free.weight.item())
    assert found[0].halved is not None
    assert found[0].halved <= 12
    assert found[1].halved is None, "what fits is remembered"


def test_an_example_that_does_not_fit_alone_is_told_with_what_to_do():
    with pytest.raises(RunError, match=r"one example alone does not fit.*gradient_checkpointing"):
        steps(Sum(most=4))


def test_a_step_that_is_objected_to_changes_no_weight():
    model = Sum()
    first, second = steps(model, objection=lambda loss, shares: "no" if shares == pytest.approx({"even": 0.5, "odd": 0.5}) else "")
    assert (first.skipped, second.skipped) == ("no", "no")
    assert model.weight.item() == 1.0


def test_a_gradient_without_a_finite_norm_is_not_taken():
    class Steep(Sum):
        def forward(self, batch, examples):
            return (self.weight - 1).abs().sqrt() * torch.ones(examples)

    model = Steep()
    (step,) = steps(model, count=1)
    assert "norm of its gradient" in step.skipped
    assert model.weight.item() == 1.0


def test_what_a_process_asks_for_is_told_with_the_step():
    assert steps(Sum(), asks=lambda: (True, False))[0].asked == (True, False)
