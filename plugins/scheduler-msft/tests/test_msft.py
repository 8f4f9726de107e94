"""mSFT keeps what every scheduler promises, and its rounds are right by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mtcore_msft import Msft

from mtcore.testing import scheduler_checks, toy_profiles
from mtcore.testing.schedulers import box_samplers
from mtcore.types import Evaluation, Mixture, Stage, StageDone, TaskProfile

A, B, C = "toys/0", "toys/1", "toys/2"
THREE = toy_profiles([100, 100, 200])


@pytest.mark.parametrize("check", [*scheduler_checks(Msft), *scheduler_checks(Msft, options={"most_rounds": 2})], ids=str)
def test_the_scheduler_keeps_its_promises(check):
    check()


def msft(**options) -> Msft:
    return Msft(Msft.Config(**options))


def following(done, profiles=THREE, **options) -> Stage | None:
    return msft(**options).next_stage(profiles, done, box_samplers)


def points(stage: Stage, first: int, curves: dict[str, list[float | None]]) -> list[Evaluation]:
    """Evaluations of a stage from each task's scores; checkpoints are numbered through the run."""
    return [
        Evaluation(
            stage=stage.name,
            step=number + 1,
            draws=number + 1,
            epoch=number + 1.0,
            scores=dict(zip(curves, scores, strict=True)),
            qualified=None,
            average=0.0,
            checkpoint=f"ckpt-{first + number}",
        )
        for number, scores in enumerate(zip(*curves.values(), strict=True))
    ]


def ended(stage: Stage, evaluations: list[Evaluation]) -> StageDone:
    names = stage.tasks or ()
    return StageDone(
        stage=stage,
        mixture=Mixture(shares={name: 1 / len(names) for name in names}),
        steps=len(evaluations),
        draws=dict.fromkeys(names, 1),
        evaluations=tuple(evaluations),
        ended="complete",
    )


def after_rounds(*rounds: dict[str, list[float | None]], **options) -> tuple[list[StageDone], Stage | None]:
    """What is done after rounds with these curves, and what follows."""
    done: list[StageDone] = []
    for curves in rounds:
        stage = following(done, **options)
        assert stage is not None
        done.append(ended(stage, points(stage, sum(len(d.evaluations) for d in done), curves)))
    return done, following(done, **options)


def test_the_first_round_trains_all_tasks_for_the_budget_and_says_that_others_follow():
    stage = following([], budget_epochs=2.0, examples_per_step=8, learning_rate=0.5)
    assert stage is not None
    assert (stage.name, stage.tasks, stage.draws, stage.start) == ("round-1", (A, B, C), 800, "last")
    assert (stage.epoch_draws, stage.evaluate_every, stage.examples_per_step, stage.learning_rate) == (400, 100, 8, 0.5)
    assert "evaluations decide" in stage.note


def test_the_task_that_peaks_first_is_left_out_and_the_next_round_begins_at_its_best():
    _, stage = after_rounds({A: [0.5, 0.7, 0.6], B: [0.5, 0.6, 0.7], C: [0.8, 0.7, 0.6]})
    assert stage is not None
    assert (stage.name, stage.tasks, stage.start, stage.draws) == ("round-2", (A, B), "ckpt-0", 200)
    assert stage.note == "round-2 goes on from ckpt-0, where toys/2 scored best, without it"


def test_a_round_in_which_no_task_overfits_is_gone_on_from_where_it_ended():
    _, stage = after_rounds({A: [0.5, 0.7], B: [0.5, 0.6], C: [0.7, 0.8]})
    assert stage is not None
    assert (stage.name, stage.tasks, stage.start, stage.note) == ("round-2", (A, B, C), "last", "")


def test_tasks_that_peak_at_the_same_point_are_left_out_together():
    _, stage = after_rounds({A: [0.7, 0.6, 0.5], B: [0.5, 0.6, 0.7], C: [0.8, 0.7, 0.6]})
    assert stage is not None
    assert (stage.tasks, stage.start) == ((B,), "ckpt-0")


def test_a_task_that_holds_its_best_score_has_not_overfitted():
    _, stage = after_rounds({A: [0.7, 0.7, 0.7], B: [0.7, 0.6, 0.7], C: [0.5, 0.8, 0.6]})
    assert stage is not None
    assert (stage.tasks, stage.start) == ((A, B), "ckpt-1")


def test_a_later_round_counts_the_point_it_began_at():
    done, stage = after_rounds({A: [0.5, 0.9], B: [0.8, 0.9], C: [0.8, 0.7]}, {A: [0.6, 0.7], B: [0.7, 0.7], C: [0.1, 0.1]})
    assert done[1].stage.start == "ckpt-0"
    assert stage is not None
    assert (stage.name, stage.tasks, stage.start) == ("round-3", (A,), "ckpt-0")


def test_a_round_that_went_on_counts_the_end_of_the_one_before_it():
    done, stage = after_rounds({A: [0.5, 0.9], B: [0.8, 0.9], C: [0.7, 0.8]}, {A: [0.6, 0.7], B: [0.9, 0.95], C: [0.8, 0.9]})
    assert done[1].stage.start == "last"
    assert stage is not None
    assert (stage.tasks, stage.start) == ((B, C), "ckpt-1")


def test_scores_that_are_missing_are_left_out_of_a_curve():
    _, stage = after_rounds({A: [0.5, 0.7, None], B: [None, None, None], C: [0.8, None, 0.6]})
    assert stage is not None
    assert (stage.tasks, stage.start) == ((A, B), "ckpt-0")


def test_tasks_left_out_decide_nothing_any_more():
    falling = [0.9, 0.1]
    _, stage = after_rounds({A: [0.5, 0.9], B: [0.5, 0.9], C: falling}, {A: [0.6, 0.7], B: [0.6, 0.7], C: falling})
    assert stage is not None
    assert (stage.tasks, stage.start) == ((A, B), "last")


def test_it_ends_when_no_task_or_too_few_are_left():
    curves = {A: [0.9, 0.1], B: [0.9, 0.1], C: [0.5, 0.6]}
    assert after_rounds({**curves, C: [0.9, 0.1]})[1] is None
    assert after_rounds(curves)[1] is not None
    assert after_rounds(curves, least_tasks=2)[1] is None


def test_it_ends_after_its_most_rounds_and_where_nothing_was_evaluated():
    rising = {A: [0.5], B: [0.5], C: [0.5]}
    assert after_rounds(rising, rising, most_rounds=2)[1] is None
    stage = following([])
    assert stage is not None
    assert following([ended(stage, [])]) is None
    only = following([], most_rounds=1)
    assert only is not None
    assert only.note == ""


def test_an_update_is_one_stage_of_all_tasks_and_keeps_no_checkpoint():
    taught: list[TaskProfile] = [p.model_copy(update={"is_taught": p.name != C}) for p in THREE]
    stage = following([], taught, update_epochs=2.0)
    assert stage is not None
    assert (stage.name, stage.tasks, stage.draws) == ("update", (A, B, C), 800)
    evaluations = points(stage, 0, {A: [0.9, 0.1], B: [0.5, 0.6], C: [0.5, 0.6]})
    assert following([ended(stage, evaluations)], taught) is None
    assert msft().keep([], evaluations) == set()


def test_the_best_checkpoint_of_every_task_still_trained_is_kept():
    done, stage = after_rounds({A: [0.5, 0.9, 0.8], B: [0.5, 0.6, 0.7], C: [0.8, 0.7, 0.6]})
    assert msft().keep([], done[0].evaluations) == {"ckpt-0", "ckpt-1", "ckpt-2"}
    assert msft().keep(done, []) == {"ckpt-0"}
    assert stage is not None
    assert msft().keep(done, points(stage, 3, {A: [0.4, 0.6], B: [0.6, 0.4], C: [1.0, 1.0]})) == {"ckpt-3", "ckpt-4"}


SCORES = st.lists(st.tuples(*[st.sampled_from([None, 0.0, 0.25, 0.5, 0.75, 1.0])] * len(THREE)), min_size=1, max_size=4)


@given(rounds=st.lists(SCORES, min_size=8, max_size=8), most_rounds=st.integers(1, 9), least_tasks=st.integers(1, 3))
def test_every_round_drops_a_task_or_goes_on_and_starts_from_what_was_kept(rounds, most_rounds, least_tasks):
    options = {"most_rounds": most_rounds, "least_tasks": least_tasks}
    done: list[StageDone] = []
    left: set[str] = set()
    for curves in rounds:
        stage = following(done, **options)
        assert stage == following([StageDone.model_validate_json(d.model_dump_json()) for d in done], **options)
        if stage is None:
            break
        assert set(stage.tasks or ()) <= {p.name for p in THREE}
        assert len(stage.tasks or ()) >= least_tasks
        if done:
            before = done[-1].stage.tasks or ()
            assert (stage.tasks == before) == (stage.start == "last")
            assert set(stage.tasks or ()) <= set(before)
            assert stage.start == "last" or stage.start in left
        scores = {p.name: [row[i] for row in curves] for i, p in enumerate(THREE)}
        evaluations = points(stage, sum(len(d.evaluations) for d in done), scores)
        for seen in range(len(evaluations) + 1):
            newest = (
                {e.checkpoint for e in evaluations[seen - 1 : seen]}
                if seen
                else {e.checkpoint for d in done[-1:] for e in d.evaluations[-1:]}
            )
            left = (left | newest) & (msft(**options).keep(done, evaluations[:seen]) | newest)
        done.append(ended(stage, evaluations))
    assert len(done) <= most_rounds
