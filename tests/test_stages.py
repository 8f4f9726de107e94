"""Compiled stages: shares that change at borders, what the ledger remembers of them, and the documents that rows share."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtcore.contracts import Sampler
from mtcore.data.documents import NONE, document_keys
from mtcore.data.stages import StageStream
from mtcore.defaults.samplers import ClassBalanced
from mtcore.defaults.schedulers import MixtureStage, TwoStage
from mtcore.errors import ConfigError, RunError
from mtcore.planning import PlannedGroup, RunPlan
from mtcore.testing import sampler_checks, toy_data, toy_profiles
from mtcore.types import Example, Group, Ledger, LedgerEntry, Mixture, Piece, StageDone

STEP, EVERY = 8, 45  # a border every 48 draws: whole steps
NOTHING = Ledger()


class ByConvergence(Sampler):
    """After CoBa: the slower a task's validation loss falls, the more it is drawn and weighed."""

    name = "by-convergence"
    needs = frozenset({"validation-loss"})
    every = EVERY

    def epoch_draws(self, profiles):
        return sum(p.train_rows for p in profiles)

    def mix(self, profiles, draws, ledger):
        curves = {p.name: [e.validation_losses[p.name] for e in ledger.entries if p.name in e.validation_losses] for p in profiles}
        slopes = {name: (curve[-1] - curve[-2]) / max(curve[-2], 1e-9) if len(curve) > 1 else 0.0 for name, curve in curves.items()}
        weights = {name: math.exp(max(-5.0, min(5.0, slope))) for name, slope in slopes.items()}
        shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        return Mixture(shares=shares, loss_weights={name: len(shares) * share for name, share in shares.items()})


class Mute(ByConvergence):
    """The same in another run: whoever asks it gets something else."""

    def mix(self, profiles, draws, ledger):
        shares = dict.fromkeys((p.name for p in profiles), 0.0)
        return Mixture(shares={**shares, profiles[0].name: 1.0})


PROFILES = toy_profiles([300, 80, 20], ["high"])


def stream_of(cls=ByConvergence, *, scheduler=MixtureStage, max_steps=None, documents=None, **options):
    config = scheduler.Config(**{"examples_per_step": STEP, **options})
    built = {True: cls, False: ClassBalanced}
    return StageStream(
        scheduler(config),
        lambda use: built[use.use == cls.name](cls.Config()),
        PROFILES,
        seed=1,
        max_steps=max_steps,
        documents=documents,
    )


DYNAMIC = {"sampler": {"use": "by-convergence"}, "epochs": 1.0}


def losses_at(position):
    """What a toy training would say of the tasks there."""
    return {p.name: 2.0 / (1 + position / (50 * (number + 1))) for number, p in enumerate(PROFILES)}


def fitted(stream, until=None, ledger=NOTHING, done=()):
    """Walk a stage as a fit does, up to a draw; the stage as it then is, its order, and the ledger."""
    compiled, order = stream.next(done, ledger), []
    end = compiled.plan.draws if until is None else min(until, compiled.plan.draws)
    note = {"stage": compiled.stage.name, "number": compiled.number}
    if all(e.number != compiled.number for e in ledger.entries):
        ledger = ledger.append(LedgerEntry(**note, position=0, mixture=compiled.mixture))
    for start in range(0, end, STEP):
        if compiled.undecided == start:
            ledger = ledger.append(LedgerEntry(**note, position=start, validation_losses=losses_at(start)))
            compiled = stream.extend(compiled, ledger)
            ledger = ledger.append(LedgerEntry(**note, position=start, mixture=compiled.later[-1]))
        order.append(np.stack(compiled.plan.window(start, min(end, start + STEP))))
    return compiled, np.concatenate(order, axis=1) if order else np.empty((3, 0), np.int64), ledger


WHOLE, ORDER, LEDGER = fitted(stream_of(**DYNAMIC))


# --- shares that change ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", sampler_checks(ByConvergence, module=None), ids=str)
def test_the_toy_keeps_a_samplers_promises(check):
    check()


def test_a_sampler_is_asked_at_the_start_and_at_every_border_of_whole_steps():
    compiled = stream_of(**DYNAMIC).next((), Ledger())
    assert (compiled.needs, compiled.plan.every, compiled.undecided) == ({"validation-loss"}, 48, 48)
    assert [compiled.border_after(draws) for draws in (0, 47, 48, 383, 384, 399)] == [48, 48, 96, 384, None, None]
    decided = [e.position for e in LEDGER.entries if e.mixture]
    assert decided == list(range(0, 400, 48))
    assert (WHOLE.undecided, len(WHOLE.later), WHOLE.plan.known) == (None, 8, 400)
    assert len({tuple(m.shares.values()) for m in (WHOLE.mixture, *WHOLE.later)}) == 8  # a slope takes two losses


def test_between_borders_the_mixture_is_the_one_decided_at_the_last():
    mixtures = [WHOLE.mixture, *WHOLE.later]
    assert [WHOLE.mixture_at(draws) for draws in (0, 47, 48, 399)] == [mixtures[0], mixtures[0], mixtures[1], mixtures[-1]]
    for number, mixture in enumerate(mixtures[:-1]):
        drawn = np.bincount(ORDER[0, number * 48 : (number + 1) * 48], minlength=3)
        assert drawn == pytest.approx([48 * share for share in mixture.shares.values()], abs=3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400))
def test_a_run_that_is_interrupted_anywhere_goes_on_in_the_same_order(draw):
    _, before, ledger = fitted(stream_of(**DYNAMIC), until=draw)
    kept = Ledger.model_validate_json(ledger.model_dump_json())
    compiled, order, told = fitted(stream_of(**DYNAMIC), ledger=kept)
    assert (before == ORDER[:, : before.shape[1]]).all()
    assert (order == ORDER).all()
    assert (compiled, told) == (WHOLE, LEDGER)


def test_shares_that_were_used_are_read_from_the_ledger_and_never_asked_for_again():
    assert stream_of(Mute, **DYNAMIC).next((), LEDGER) == WHOLE
    static = {"sampler": {"use": "class-balanced"}, "epochs": 1.0}
    used = Mixture(shares={p.name: share for p, share in zip(PROFILES, (0.5, 0.25, 0.25), strict=True)})
    ledger = Ledger().append(LedgerEntry(stage="mixture", number=0, position=0, mixture=used))
    compiled = stream_of(**static).next((), ledger)
    assert (compiled.mixture, [t.share for t in compiled.plan.tasks]) == (used, [0.5, 0.25, 0.25])


def test_the_ledger_of_one_stage_is_not_that_of_the_next():
    ledger = Ledger().append(LedgerEntry(stage="mixture", number=1, position=0, mixture=WHOLE.later[-1]))
    assert stream_of(**DYNAMIC).next((), ledger).mixture == WHOLE.mixture


def test_all_stages_are_told_again_from_what_was_done():
    stage2 = {"stage2": {"use": "by-convergence"}, "stage2_epochs": 1.0}
    stream = stream_of(scheduler=TwoStage, **stage2)
    first = stream.next((), Ledger())
    done = [
        StageDone(stage=first.stage, mixture=first.mixture, steps=first.steps, draws=first.plan.drawn(), evaluations=(), ended="complete")
    ]
    note = LedgerEntry(stage=first.stage.name, number=0, position=0, mixture=first.mixture)
    second, _, ledger = fitted(stream, ledger=Ledger().append(note), done=done)
    done.append(replaced_stage(done[0], second))
    assert stream.replay(done, ledger) == [first, second]
    assert stream.next(done, ledger) is None


def replaced_stage(done, compiled):
    changes = {"stage": compiled.stage, "mixture": compiled.mixture, "steps": compiled.steps, "draws": compiled.plan.drawn()}
    return done.model_copy(update=changes)


def test_a_stage_that_is_decided_cannot_be_extended():
    with pytest.raises(RunError, match="no border at which its shares are still to be decided"):
        stream_of(**DYNAMIC).extend(WHOLE, LEDGER)
    with pytest.raises(RunError, match="decided for draws up to 48; 48 is asked for"):
        stream_of(**DYNAMIC).next((), Ledger()).mixture_at(48)


def test_a_sampler_that_is_asked_every_zero_draws_is_refused():
    class Never(ByConvergence):
        every = 0

    with pytest.raises(ConfigError, match="every 0 draws; that must be at least 1"):
        stream_of(Never, **DYNAMIC).next((), Ledger())


@pytest.mark.parametrize("weights", [{"toys/0": 0.0}, {"toys/1": -1.0}, {"toys/1": math.inf}, {"toys/1": math.nan}, {"toys/9": 1.0}])
def test_loss_weights_that_would_spoil_a_loss_are_refused(weights):
    class Spoils(ByConvergence):
        def mix(self, profiles, draws, ledger):
            return super().mix(profiles, draws, ledger).model_copy(update={"loss_weights": {p.name: 1.0 for p in profiles} | weights})

    (name,) = weights
    with pytest.raises(ConfigError, match=rf"sampler 'by-convergence' must give loss weights .* it gave {{'{name}': "):
        stream_of(Spoils, **DYNAMIC).next((), Ledger())


def test_a_plan_shows_the_shares_at_the_start_and_what_they_change_with():
    stream, group = stream_of(**DYNAMIC), Group(name="all", reason="toys", tasks=tuple(p.name for p in PROFILES))
    plan = RunPlan([PlannedGroup(group, [stream.next((), Ledger())])], {}, [])
    (stage,) = plan.as_json()["groups"][0]["stages"]
    assert stage["shares_change"] == {"needs": ["validation-loss"], "every": 48}
    assert {(t["share"], t["draws"]) for t in stage["tasks"].values()} == {(1 / 3, "unknown")}
    assert [part.known for _, _, part in plan.plans()] == [48]


# --- documents ---------------------------------------------------------------------------------------------------------------------------


def task_with(texts, *, render=None, documents=("text",)):
    data = toy_data("binary")
    spec = data.spec.model_copy(update={"document_fields": documents})
    return replace(data, spec=spec, train=tuple(Example({"text": text}, "0") for text in texts), render=render)


def test_rows_of_equal_document_texts_have_equal_keys_in_every_task():
    keys, others = document_keys(task_with(["x", "y", "x", "\ud800"])), document_keys(task_with(["y", "z"]))
    assert keys[0] == keys[2] != keys[1] == others[0]
    assert NONE not in {*keys, *others}


def test_a_task_that_writes_its_own_prompt_says_what_its_document_is():
    def render(fields, layout):
        return (Piece(fields["text"], is_user=True, is_document=True), Piece("\n", is_document=True), Piece("Really?"))

    assert (document_keys(task_with(["x", "y"], render=render, documents=())) == document_keys(task_with(["x", "y"]))).all()


def test_a_row_without_a_document_has_no_key():
    assert set(document_keys(task_with(["x", "y"], documents=()))) == {NONE}
    assert document_keys(task_with(["", "y"]))[0] == NONE


def test_documents_are_asked_for_by_stages_that_group_by_them_and_by_no_others():
    asked = []

    def documents(name):
        asked.append(name)
        return np.arange({p.name: p.train_rows for p in PROFILES}[name])

    static = {"sampler": {"use": "class-balanced"}, "epochs": 1.0, "documents": documents}
    assert stream_of(**static).next((), Ledger()).plan.documents is None
    assert asked == []
    compiled = stream_of(**static, grouping="shared-documents").next((), Ledger())
    assert (sorted(asked), compiled.stage.grouping, compiled.stage.note) == ([p.name for p in PROFILES], "shared-documents", "")
    assert set(compiled.plan.documents.keys) == {p.name for p in PROFILES}


def test_a_stage_of_rows_that_share_no_document_says_so():
    rows = iter(range(10**6))
    documents = lambda name: np.array([next(rows) for _ in range({p.name: p.train_rows for p in PROFILES}[name])])  # noqa: E731
    static = {"sampler": {"use": "class-balanced"}, "grouping": "shared-documents"}
    assert stream_of(**static, documents=documents).next((), Ledger()).stage.note == "no two rows share a document"
    with pytest.raises(ConfigError, match="its stream was given no documents"):
        stream_of(**static).next((), Ledger())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 400))
def test_a_changing_stage_groups_by_documents_too(draw):
    documents = {p.name: np.arange(p.train_rows) for p in PROFILES}.__getitem__
    whole, order, _ = fitted(stream_of(**DYNAMIC, documents=documents, grouping="shared-documents"))
    assert list(whole.plan.drawn(draw).values()) == np.bincount(order[0, :draw], minlength=3).tolist()
