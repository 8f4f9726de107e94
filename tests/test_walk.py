"""Walking the stages of a fit: interruptions, steps that go wrong, memory that runs out, samplers that decide on the way."""

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mtcore import events
from mtcore.contracts import Judged, Sampler, Workspace
from mtcore.data.stages import StageStream
from mtcore.data.text import Encoded
from mtcore.defaults.schedulers import MixtureStage, TwoStage
from mtcore.defaults.text2text_fit import step_batches
from mtcore.errors import Interrupted, ResumeMismatch
from mtcore.interrupts import listening
from mtcore.modeling.load import find_base, load_model
from mtcore.testing.schedulers import box_samplers
from mtcore.testing.toys import toy_spec
from mtcore.training.flops import Peak
from mtcore.training.loop import StepBatch
from mtcore.training.state import Trainee
from mtcore.training.walk import Pace, Walk
from mtcore.types import Mixture, SamplerUse, TaskProfile

ROWS = {"a": 30, "b": 20}


def encoded(rows, offset):
    return [Encoded(np.arange(1, 4 + i % 5, dtype=np.int32), np.array([offset + i, 0], np.int32)) for i in range(rows)]


ENCODED = {"a": encoded(30, 100), "b": encoded(20, 200)}
PROFILES = [TaskProfile(name=n, spec=toy_spec("binary"), train_rows=rows, validation_rows=4, resource="high") for n, rows in ROWS.items()]


def two_stages(epochs=1.0):
    use = SamplerUse(use="instance-balanced")
    return TwoStage(TwoStage.Config(stage1=use, stage2_epochs=epochs, examples_per_step=8, learning_rate=1e-2, evaluate_epochs=0.5))


class Trip:
    """A fit of two small stages on toys; what happens on the way can be told to be otherwise."""

    def __init__(self, folder: Path, base: Path, **changes):
        self.folder, self.base, self.changes = folder, base, changes
        self.losses: dict[tuple[str, int], str] = {}
        self.told: list[events.Event] = []
        self.asked = 0

    def walk(self, *, save_minutes=1e9, on_event: Callable = lambda event: None, on_ask: Callable = lambda: None, **changes) -> Walk:
        def emit(event):
            self.told.append(event)
            if isinstance(event, events.Stepped):
                self.losses[event.stage, event.step] = event.loss.hex()
            on_event(event)

        def ask():
            self.asked += 1
            on_ask()
            scores = {"a": float(trainee.model.get_input_embeddings().weight.detach().sum()), "b": 0.5}
            return Judged(scores, {}, {}, None, scores["a"], 10, 0.0)

        torch.manual_seed(1)
        accelerator = Accelerator(cpu=True)
        trainee = Trainee(load_model(self.base), accelerator, weight_decay=0.1, betas=(0.9, 0.98), clip=1.0)
        self.folder.mkdir(exist_ok=True)
        workspace = Workspace(
            folder=self.folder,
            bundle=self.folder / "bundle",
            seed=1,
            tasks={},
            base=find_base(str(self.base), self.base.parent),
            accelerator=lambda precision: accelerator,
            emit=emit,
            evaluate=lambda predictor: ask(),
            work="toys",
            fingerprint=changes.get("fingerprint", "toys"),
            stop=changes.get("stop") or Workspace.__dataclass_fields__["stop"].default_factory(),
        )
        self.workspace = workspace
        scheduler = self.changes.get("scheduler") or two_stages()
        samplers = self.changes.get("samplers", box_samplers)
        stages = StageStream(scheduler, samplers, PROFILES, seed=1, max_steps=None)
        batch_of = self.changes.get("batch_of", lambda compiled, batch: batch)
        return Walk(
            trainee,
            workspace,
            stages,
            self.base,
            Pace(0.1, "cosine", 64, save_minutes),
            batches=lambda compiled: batch_of(compiled, step_batches(compiled, ENCODED, rank=0, processes=1)),
            ask=ask,
            validation_losses=lambda: {"a": 1.0, "b": 2.0},
            peak=Peak(1e9, "made up"),
        )

    def of(self, kind):
        return [event for event in self.told if isinstance(event, kind)]


def weights(walk):
    return [p.detach().clone() for p in walk.trainee.model.parameters()]


def same(these, those):
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


@pytest.fixture(scope="module")
def whole(base_folder, tmp_path_factory):
    """The uninterrupted trip: its losses, its final weights, what it came to."""
    trip = Trip(tmp_path_factory.mktemp("whole") / "work", base_folder)
    walk = trip.walk()
    progress = walk.to_the_end()
    return trip, weights(walk), progress


def test_two_stages_are_walked_and_the_best_weights_are_left(whole):
    trip, final, progress = whole
    assert [(d.stage.name, d.ended) for d in progress.done] == [("high-resource", "complete"), ("mixture", "complete")]
    assert all(math.isfinite(float.fromhex(loss)) for loss in trip.losses.values())
    best = max((e for d in progress.done for e in d.evaluations), key=lambda e: e.rank)
    assert progress.best == best
    assert float(final[0].sum()) == pytest.approx(best.average, abs=1e-4)


@pytest.mark.parametrize("every", [1, 3])
def test_a_walk_that_is_cut_at_any_step_ends_with_the_same_bits(base_folder, tmp_path, whole, every):
    trip = Trip(tmp_path / "work", base_folder)
    walk, _, codes = cut_every(every, trip)
    assert len(codes) > 2
    assert set(codes) == {143}
    assert trip.losses == whole[0].losses
    assert same(weights(walk), whole[1])


def cut_every(steps, trip):
    """Signal the process after each `steps` steps until a walk gets to the end; return that walk, its progress and the exit codes of the others."""
    codes = []
    while True:
        with listening() as stop:
            left = [steps]

            def count(event, left=left):
                if isinstance(event, events.Stepped):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGTERM)

            walk = trip.walk(on_event=count, stop=stop)
            try:
                return walk, walk.to_the_end(), codes
            except Interrupted as end:
                codes.append(end.exit_code)


def test_a_walk_that_is_cut_while_it_evaluates_evaluates_again(base_folder, tmp_path, whole):
    trip = Trip(tmp_path / "work", base_folder)
    for asked in range(1, 4):  # the first evaluation is cut, then the second, then the third
        left = [asked]

        def cut(left=left):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGINT)

        with listening() as stop, pytest.raises(Interrupted) as caught:
            trip.walk(on_ask=cut, stop=stop).to_the_end()
        assert caught.value.exit_code == 130
    assert [e.signal for e in trip.of(events.Interrupted)] == ["SIGINT"] * 3
    walk = trip.walk()
    progress = walk.to_the_end()
    assert len(progress.everything) == len(whole[2].everything)
    assert trip.losses == whole[0].losses
    assert same(weights(walk), whole[1])


def test_saving_by_the_clock_changes_nothing_but_what_is_lost(base_folder, tmp_path, whole):
    trip = Trip(tmp_path / "work", base_folder)

    def kill(event):
        if isinstance(event, events.Stepped) and (event.stage, event.step) == ("mixture", 2):
            raise Killed

    with pytest.raises(Killed):
        trip.walk(save_minutes=0, on_event=kill).to_the_end()
    begun = len(trip.of(events.Stepped))
    walk = trip.walk(save_minutes=0)
    walk.to_the_end()
    assert trip.losses == whole[0].losses
    assert same(weights(walk), whole[1])
    assert len(trip.of(events.Stepped)) == len(whole[0].of(events.Stepped)) + 1, (
        "the step in which it was killed is done again, and no other"
    )
    assert begun > 2


def test_a_walk_is_not_resumed_by_another_configuration(base_folder, tmp_path):
    trip = Trip(tmp_path / "work", base_folder)
    trip.walk().to_the_end()
    with pytest.raises(ResumeMismatch, match="another configuration"):
        trip.walk(fingerprint="another").to_the_end()


# --- steps that go wrong -------------------------------------------------------------------------------------------------------------------


def spoilt(steps, stage="mixture"):
    """Batches whose loss is no number in some steps of a stage."""

    def batch_of(compiled, batch):
        def bad(step, tokens) -> StepBatch:
            made = batch(step, tokens)
            return replace(made, weights=[math.nan] * len(made.weights)) if compiled.stage.name == stage and step in steps else made

        return bad

    return batch_of


def test_a_step_without_a_finite_loss_is_skipped_and_its_rows_are_told(base_folder, tmp_path):
    trip = Trip(tmp_path / "work", base_folder, batch_of=spoilt({2}))
    walk = trip.walk()
    progress = walk.to_the_end()
    (skipped,) = trip.of(events.StepSkipped)
    assert (skipped.stage, skipped.step, len(skipped.rows)) == ("mixture", 3, 8)
    assert {task for task, _ in skipped.rows} <= {"a", "b"}
    assert "nan" in skipped.reason
    assert not trip.of(events.RolledBack)
    assert all(torch.isfinite(p).all() for p in weights(walk))
    assert progress.done[-1].ended == "complete"


def test_several_bad_steps_in_a_row_lead_back_to_the_last_checkpoint_and_round_them(base_folder, tmp_path):
    trip = Trip(tmp_path / "work", base_folder, batch_of=spoilt({4, 5, 6}))
    walk = trip.walk()
    progress = walk.to_the_end()
    (back,) = trip.of(events.RolledBack)
    assert (back.from_step, back.to_step) == (7, 4)
    assert progress.done[-1].ended == "complete"
    assert all(torch.isfinite(p).all() for p in weights(walk))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("steps_later", [0, 1, 3])
def test_a_walk_that_went_back_is_resumed_to_the_same_bits(base_folder, tmp_path, steps_later):
    """The kill falls before the next checkpoint, so that the way back is taken again, or after it."""
    trips = [Trip(tmp_path / name, base_folder, batch_of=spoilt({1, 2, 3})) for name in ("whole", "cut")]
    walk = trips[0].walk()
    walk.to_the_end()
    left = [-1]

    def kill(event):
        if isinstance(event, events.RolledBack):
            left[0] = steps_later
        if left[0] >= 0 and isinstance(event, (events.RolledBack, events.Stepped)):
            left[0] -= 1
            if left[0] < 0:
                raise Killed

    with pytest.raises(Killed):
        trips[1].walk(on_event=kill).to_the_end()
    again = trips[1].walk()
    again.to_the_end()
    assert same(weights(walk), weights(again))


@pytest.mark.parametrize("step", range(1, 7))
def test_a_signal_or_a_clock_near_bad_steps_changes_no_way_back(base_folder, tmp_path, step):
    trips = [Trip(tmp_path / name, base_folder, batch_of=spoilt({2, 3, 4}, "mixture")) for name in ("whole", "cut")]
    walk = trips[0].walk()
    walk.to_the_end()

    def cut(event):
        if isinstance(event, events.Stepped) and (event.stage, event.step) == ("mixture", step):
            os.kill(os.getpid(), signal.SIGTERM)

    with listening() as stop, pytest.raises(Interrupted):
        trips[1].walk(on_event=cut, stop=stop, save_minutes=0).to_the_end()
    again = trips[1].walk()
    again.to_the_end()
    assert [(e.from_step, e.to_step) for e in trips[1].of(events.RolledBack)][-1:] == [
        (e.from_step, e.to_step) for e in trips[0].of(events.RolledBack)
    ]
    assert same(weights(walk), weights(again))


def test_a_damaged_best_checkpoint_costs_the_best_and_not_the_work(base_folder, tmp_path):
    trip = Trip(tmp_path / "work", base_folder)

    def kill(event):
        if isinstance(event, events.Stepped) and (event.stage, event.step) == ("mixture", 6):
            raise Killed

    with pytest.raises(Killed):
        trip.walk(save_minutes=0, on_event=kill).to_the_end()
    best = trip.of(events.Evaluated)
    best = max((e.evaluation for e in best), key=lambda e: e.rank).checkpoint
    newest = max(trip.folder.glob("ckpt-*"), key=lambda path: int(path.name.removeprefix("ckpt-"))).name
    assert best != newest
    file = trip.folder / best / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    before = len(trip.of(events.Stepped))
    walk = trip.walk()
    progress = walk.to_the_end()
    assert len(trip.of(events.Stepped)) - before <= 2, "the newest checkpoint is gone on from"
    assert any(best in event.text and "damaged" in event.text for event in trip.of(events.Warned))
    assert progress.best.checkpoint != best
    assert float(weights(walk)[0].sum()) == pytest.approx(progress.best.average, abs=1e-4)


def test_a_model_that_goes_wrong_for_good_is_given_up_with_the_last_good_one(base_folder, tmp_path):
    trip = Trip(tmp_path / "work", base_folder, batch_of=spoilt(set(range(3, 1000))), scheduler=two_stages(epochs=3.0))
    walk = trip.walk()
    progress = walk.to_the_end()
    assert progress.done[-1].ended == "diverged"
    assert len(trip.of(events.RolledBack)) == 2
    assert all(torch.isfinite(p).all() for p in weights(walk))
    assert float(weights(walk)[0].sum()) == pytest.approx(progress.best.average, abs=1e-4)


def test_a_model_that_goes_wrong_before_anything_was_saved_begins_anew(base_folder, tmp_path):
    trip = Trip(tmp_path / "work", base_folder, batch_of=spoilt({0, 1, 2}, stage="high-resource"))
    progress = trip.walk().to_the_end()
    assert [(e.from_step, e.to_step) for e in trip.of(events.RolledBack)] == [(3, 0)]
    assert progress.done[0].ended == "complete"


# --- samplers that decide on the way -------------------------------------------------------------------------------------------------------


class ByLoss(Sampler):
    """Shares follow the losses of validation and training: as much a function of the ledger as can be."""

    name = "by-loss"
    needs = frozenset({"train-loss", "validation-loss", "scores"})
    every = 16

    def epoch_draws(self, profiles):
        return 80

    def mix(self, profiles, draws, ledger):
        seen = [entry for entry in ledger.entries if entry.train_losses]
        if not seen:
            return Mixture(shares={"a": 0.5, "b": 0.5})
        assert seen[-1].validation_losses == {"a": 1.0, "b": 2.0}
        assert any(entry.evaluation and entry.position == seen[-1].position for entry in ledger.entries)
        total = sum(seen[-1].train_losses.values())
        return Mixture(shares={task: loss / total for task, loss in seen[-1].train_losses.items()}, loss_weights={"a": 1.0, "b": total})


def dynamic(use):
    return ByLoss(ByLoss.Config()) if use.use == "by-loss" else box_samplers(use)


def dynamic_trip(folder, base, **changes):
    scheduler = MixtureStage(MixtureStage.Config(sampler=SamplerUse(use="by-loss"), epochs=1.0, examples_per_step=8, learning_rate=1e-2))
    return Trip(folder, base, scheduler=scheduler, samplers=dynamic, **changes)


def test_a_dynamic_sampler_is_asked_at_every_border_by_what_has_happened(base_folder, tmp_path):
    progress = dynamic_trip(tmp_path / "work", base_folder).walk().to_the_end()
    mixtures = [(e.position, e.mixture.shares) for e in progress.ledger.entries if e.mixture]
    assert [position for position, _ in mixtures] == [0, 16, 32, 48, 64]
    assert len({tuple(shares.values()) for _, shares in mixtures}) > 3
    assert sum(progress.done[0].draws.values()) == 80


def decisions(ledger):
    """What the ledger holds, but for the names of checkpoints: whoever is interrupted writes more of them."""
    return [entry.model_dump(exclude={"evaluation": {"checkpoint"}}) for entry in ledger.entries]


@pytest.mark.parametrize("every", [1, 3])
def test_a_dynamic_walk_that_is_cut_ends_with_the_same_bits(base_folder, tmp_path, every):
    unbroken = dynamic_trip(tmp_path / "whole", base_folder)
    first = unbroken.walk()
    ledger = first.to_the_end().ledger
    trip = dynamic_trip(tmp_path / "cut", base_folder)
    walk, progress, _ = cut_every(every, trip)
    assert trip.losses == unbroken.losses
    assert decisions(progress.ledger) == decisions(ledger)
    assert same(weights(walk), weights(first))


def test_borders_that_were_decided_before_a_way_back_stay_decided(base_folder, tmp_path):
    """Killed after the way back, and again after the next checkpoint."""
    trips = [dynamic_trip(tmp_path / name, base_folder, batch_of=spoilt({3, 4, 5})) for name in ("whole", "cut")]
    first = trips[0].walk()
    ledger = first.to_the_end().ledger
    assert trips[0].of(events.RolledBack)
    assert [e.position for e in ledger.entries if e.mixture] == [0, 16, 32, 48, 64]

    def kill(event):
        if isinstance(event, events.Stepped) and event.step == 8 and not event.skipped:
            raise Killed

    with pytest.raises(Killed):
        trips[1].walk(on_event=kill, save_minutes=0).to_the_end()
    again = trips[1].walk()
    progress = again.to_the_end()
    assert [(e.position, e.mixture) for e in progress.ledger.entries if e.mixture] == [
        (e.position, e.mixture) for e in ledger.entries if e.mixture
    ]
    assert same(weights(first), weights(again))
