"""What ships in the box: filters, samplers, schedulers with the stages they make, observers."""

import io
import json
import math
import re
import sys
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtcore import events
from mtcore.contracts import Sampler
from mtcore.data.mixture import passes
from mtcore.data.stages import StageStream
from mtcore.defaults.filters import ClassCount, InputKind, NoFilter, OutputKind, OutputScale
from mtcore.defaults.observers import EventLog, Progress
from mtcore.defaults.samplers import ClassBalanced, InstanceBalanced, Temperature
from mtcore.defaults.schedulers import MixtureStage, SingleTask, TwoStage
from mtcore.errors import ConfigError, RunError
from mtcore.plugins import load_plugins
from mtcore.registry import Entry, Plugin, Registry
from mtcore.types import (
    Evaluation,
    Group,
    Ledger,
    Mixture,
    NumberRange,
    SamplerUse,
    Stage,
    StageDone,
    TaskProfile,
    TaskSpec,
)

CLUE = {"cwsc": 947, "tnews": 49_726, "iflytek": 11_425, "csl": 19_836, "afqmc": 6_564, "ocnli": 50_437}
"""Train rows (paper, table 7)."""
KINDS = {
    "cwsc": ("binary", "single-sentence"),
    "tnews": ("multi-class", "single-sentence"),
    "iflytek": ("multi-class", "single-sentence"),
    "csl": ("binary", "sentence-pair"),
    "afqmc": ("binary", "sentence-pair"),
    "ocnli": ("multi-class", "sentence-pair"),
}


def make_spec(name="toy", output="binary", input="single-sentence"):
    closed = output not in ("regression", "generation")
    return TaskSpec(
        name=name,
        output=output,
        input=input,
        fields=("text",),
        instruction="Say which.",
        template="{text}\n",
        words=dict(zip("01" if output == "binary" else "012", "甲乙丙", strict=False)) if closed else {},
        none_word="无" if output == "multi-label" else "",
        number_range=NumberRange(low=0, high=5, step=1) if output == "regression" else None,
        metric="accuracy",
        licence="none",
        source="made up",
    )


def make_profile(name, rows=100, *, output="binary", input="single-sentence", resource="unknown"):
    return TaskProfile(name=name, spec=make_spec(name, output, input), train_rows=rows, validation_rows=10, resource=resource)


def sized(sizes, *, high=None):
    """Profiles of tasks t0, t1, …; resources are unknown unless `high` lists those that are high."""
    named = sizes if isinstance(sizes, dict) else {f"t{i}": rows for i, rows in enumerate(sizes)}
    kind = {name: "unknown" if high is None else "high" if name in high else "low" for name in named}
    return [make_profile(name, rows, resource=kind[name]) for name, rows in named.items()]


# --- samplers -------------------------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(1, 10**6), min_size=1, max_size=20)


def shares(sampler, sizes):
    return list(sampler.mix(sized(sizes), 1000, Ledger()).shares.values())


def temperature(tau=2.0, cap=None):
    return Temperature(Temperature.Config(tau=tau, cap=cap))


@settings(deadline=None)
@given(SIZES)
def test_instance_balanced_is_equation_1(sizes):
    assert shares(InstanceBalanced(InstanceBalanced.Config()), sizes) == pytest.approx([n / sum(sizes) for n in sizes], rel=1e-12)


@settings(deadline=None)
@given(SIZES)
def test_class_balanced_gives_every_task_the_same(sizes):
    assert shares(ClassBalanced(ClassBalanced.Config()), sizes) == pytest.approx([1 / len(sizes)] * len(sizes), rel=1e-12)


@settings(deadline=None)
@given(SIZES, st.floats(0.3, 20), st.none() | st.integers(1, 10**6))
def test_temperature_is_equations_3_and_4(sizes, tau, cap):
    capped = [n if cap is None else min(n, cap) for n in sizes]
    p = [n / math.fsum(capped) for n in capped]
    q = [math.exp(math.log(rate) / tau) for rate in p]
    assert shares(temperature(tau, cap), sizes) == pytest.approx([weight / math.fsum(q) for weight in q], abs=1e-12)


@settings(deadline=None)
@given(SIZES)
def test_a_temperature_of_one_is_instance_balanced_and_a_large_one_class_balanced(sizes):
    assert shares(temperature(1.0), sizes) == pytest.approx(shares(InstanceBalanced(InstanceBalanced.Config()), sizes), abs=1e-12)
    assert shares(temperature(1e9), sizes) == pytest.approx(shares(ClassBalanced(ClassBalanced.Config()), sizes), abs=1e-6)


@settings(deadline=None)
@given(SIZES, st.floats(1e-6, 1e6), st.none() | st.integers(1, 10**6))
def test_shares_sum_to_one_and_a_larger_task_never_gets_less(sizes, tau, cap):
    got = shares(temperature(tau, cap), sizes)
    assert math.fsum(got) == pytest.approx(1, abs=1e-12)
    assert all(a <= b * (1 + 1e-12) for n, a in zip(sizes, got, strict=True) for m, b in zip(sizes, got, strict=True) if n <= m)


def test_a_temperature_near_zero_leaves_the_largest_tasks_alone():
    assert shares(temperature(1e-6), [10, 30, 30, 20]) == [0, 0.5, 0.5, 0]


def test_the_cap_bounds_a_tasks_rate():
    got = shares(temperature(2.0, 20_000), [1_000, 20_000, 50_000, 1_000_000])
    assert got[1] == got[2] == got[3]
    assert got[0] == pytest.approx(got[1] * (1_000 / 20_000) ** 0.5)


@settings(deadline=None)
@given(SIZES, st.floats(0.3, 20), st.integers(1, 10**6))
def test_the_cap_bounds_the_length_of_an_epoch_and_the_temperature_does_not_touch_it(sizes, tau, cap):
    assert temperature(tau, cap).epoch_draws(sized(sizes)) == sum(min(n, cap) for n in sizes)
    for sampler in (temperature(tau), InstanceBalanced(InstanceBalanced.Config()), ClassBalanced(ClassBalanced.Config())):
        assert sampler.epoch_draws(sized(sizes)) == sum(sizes)


def test_the_cap_leaves_every_row_reachable():
    stream = stream_of(MixtureStage(MixtureStage.Config(sampler=use("temperature", tau=2.0, cap=50), epochs=8.0)), sized([50, 400]))
    _, plan, _ = stream.next([], Ledger()).decided
    window = plan.window(0, plan.draws)
    assert set(window.row[window.task == 1]) == set(range(400))


# --- schedulers and the stages they make ------------------------------------------------------------------------------------------------

BOX = load_plugins(environment="")


def use(name, **options):
    return SamplerUse.model_validate({"use": name, **options})


def stream_of(scheduler, profiles, *, max_steps=None, registry=BOX, seed=1):
    return StageStream(scheduler, registry.sampler, profiles, seed=seed, max_steps=max_steps)


def finished(compiled):
    """A compiled stage as if it had been trained (or, where it is not decided, gone by)."""
    return StageDone(
        stage=compiled.stage,
        mixture=compiled.mixture or Mixture(shares={}),
        steps=compiled.steps or 0,
        draws=compiled.plan.drawn() if compiled.plan else {},
        evaluations=(),
        ended="complete",
    )


def walk(scheduler, profiles, *, max_steps=None, registry=BOX):
    stream, done, stages = stream_of(scheduler, profiles, max_steps=max_steps, registry=registry), [], []
    while (compiled := stream.next(done, Ledger())) is not None:
        stages.append(compiled)
        done.append(finished(compiled))
    return stages


def two_stage(**options):
    return TwoStage(TwoStage.Config(**options))


def test_two_stages_train_the_high_resource_tasks_and_then_all():
    first, second = walk(two_stage(), sized(CLUE, high={"tnews", "ocnli"}))
    assert (first.stage.name, first.stage.tasks) == ("high-resource", ("tnews", "ocnli"))
    assert first.stage.draws == 49_726 + 50_437
    assert first.steps == 1566
    assert (second.stage.name, second.stage.tasks) == ("mixture", tuple(CLUE))
    epoch = sum(min(n, 20_000) for n in CLUE.values())
    assert (second.stage.epoch_draws, second.stage.draws, second.steps) == (epoch, 10 * epoch, math.ceil(10 * epoch / 64))
    assert (first.stage.note, second.stage.note) == ("", "")
    assert (first.number, second.number) == (0, 1)


def test_the_stages_are_the_papers_by_default():
    first, second = walk(two_stage(), sized(CLUE, high={"tnews", "ocnli"}))
    assert first.mixture.shares == pytest.approx({"tnews": 49_726 / 100_163, "ocnli": 50_437 / 100_163}, abs=1e-12)
    assert second.stage.sampler == use("temperature", tau=2.0, cap=20_000)
    assert {stage.stage.learning_rate for stage in (first, second)} == {3e-5}
    weights = {name: min(n, 20_000) ** 0.5 for name, n in CLUE.items()}
    assert second.mixture.shares == pytest.approx({name: w / sum(weights.values()) for name, w in weights.items()}, abs=1e-12)


def test_the_first_stage_is_one_pass_over_its_tasks_and_the_second_goes_on_in_their_order():
    first, second = walk(two_stage(examples_per_step=8), sized([300, 40, 10], high={"t0", "t1"}))
    assert passes(first.plan.drawn(), first.plan.tasks) == {"t0": (1, 0), "t1": (1, 0)}
    assert {t.name: t.first for t in second.plan.tasks} == {"t0": 300, "t1": 40, "t2": 0}


def test_without_a_high_resource_task_stage_one_is_skipped_and_the_stage_says_so():
    (only,) = walk(two_stage(), sized(CLUE, high=set()))
    assert (only.stage.name, only.number) == ("mixture", 0)
    assert "no task is high-resource" in only.stage.note


def test_epochs_and_evaluations_are_counted_in_draws():
    first, second = walk(
        two_stage(
            stage1=use("class-balanced"), stage1_epochs=0.5, stage2_epochs=3.0, evaluate_epochs=0.25, stage2=use("temperature", cap=40)
        ),
        sized([100, 60], high={"t0"}),
    )
    assert (first.stage.draws, first.stage.epoch_draws, first.stage.evaluate_every) == (50, 100, 25)
    assert (second.stage.draws, second.stage.epoch_draws, second.stage.evaluate_every) == (240, 80, 20)
    assert first.stage.sampler == use("class-balanced")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=6), st.integers(1, 16), st.integers(1, 80), st.data())
def test_the_cap_on_steps_is_over_both_stages_together_and_cuts_the_last_one_short(sizes, examples, cap, data):
    high = data.draw(st.sets(st.sampled_from([f"t{i}" for i in range(len(sizes))]), min_size=1))
    scheduler, profiles = two_stage(examples_per_step=examples, stage2_epochs=2.0), sized(sizes, high=high)
    free, capped = walk(scheduler, profiles), walk(scheduler, profiles, max_steps=cap)
    assert sum(stage.steps for stage in capped) == min(cap, sum(stage.steps for stage in free))
    assert [stage.plan for stage in capped[:-1]] == [stage.plan for stage in free[: len(capped) - 1]]
    assert capped[-1].stage.draws == min(free[len(capped) - 1].stage.draws, capped[-1].steps * examples)
    assert all(sum(stage.plan.drawn().values()) == stage.stage.draws for stage in capped)


def test_a_cap_inside_the_first_stage_leaves_no_second():
    (only,) = walk(two_stage(), sized(CLUE, high={"tnews", "ocnli"}), max_steps=1000)
    assert (only.stage.name, only.steps, only.stage.draws) == ("high-resource", 1000, 64_000)


def test_a_cut_stage_keeps_its_shares_and_the_order_of_every_tasks_rows():
    whole, cut = (walk(MixtureStage(MixtureStage.Config()), sized([500, 900]), max_steps=cap)[0] for cap in (None, 50))
    assert cut.mixture == whole.mixture
    short, long = cut.plan.window(0, 3200), whole.plan.window(0, whole.plan.draws)
    for task in (0, 1):
        rows = short.row[short.task == task]
        assert (rows == long.row[long.task == task][: len(rows)]).all()


# a stage that waits for references


def test_while_resources_are_unknown_the_first_stage_is_not_decided():
    first, second = walk(two_stage(), sized(CLUE))
    assert (first.stage.name, first.stage.tasks, first.stage.draws) == ("high-resource", None, None)
    assert (first.mixture, first.plan, first.steps) == (None, None, None)
    assert first.stage.epoch_draws == sum(CLUE.values())  # at most
    with pytest.raises(RunError, match=r"stage 'high-resource' is not decided: it needs references, or \[resource\]"):
        _ = first.decided
    assert second.stage.tasks == tuple(CLUE)


def test_one_unknown_resource_leaves_the_first_stage_undecided():
    profiles = [make_profile("a", resource="high"), make_profile("b", resource="low"), make_profile("c", resource="unknown")]
    assert walk(two_stage(), profiles)[0].stage.tasks is None


def test_without_a_cap_the_draws_of_the_second_stage_are_known_before_the_first_is():
    for high in (set(), {"tnews", "ocnli"}, set(CLUE)):
        before, after = walk(two_stage(), sized(CLUE))[-1], walk(two_stage(), sized(CLUE, high=high))[-1]
        assert before.plan.drawn() == after.plan.drawn()
        assert before.steps == after.steps


def test_a_cap_that_the_first_stage_might_use_up_leaves_the_second_open():
    for cap in (100, 1_000, 14_000):
        second = walk(two_stage(), sized(CLUE), max_steps=cap)[-1]
        assert (second.stage.draws, second.plan, second.steps) == (None, None, None)
        assert sum(second.mixture.shares.values()) == pytest.approx(1)
        with pytest.raises(RunError, match="stage 'mixture' is not decided"):
            _ = second.decided


def test_a_cap_that_leaves_room_for_the_longest_first_stage_decides_the_second():
    longest = math.ceil(sum(CLUE.values()) / 64) + math.ceil(10 * sum(min(n, 20_000) for n in CLUE.values()) / 64)
    assert walk(two_stage(), sized(CLUE), max_steps=longest)[-1].steps == walk(two_stage(), sized(CLUE))[-1].steps
    assert walk(two_stage(), sized(CLUE), max_steps=longest - 1)[-1].steps is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=6), st.integers(1, 16), st.none() | st.integers(200, 20_000), st.data())
def test_what_is_said_before_references_holds_after_them(sizes, examples, cap, data):
    high = data.draw(st.sets(st.sampled_from([f"t{i}" for i in range(len(sizes))])))
    scheduler = two_stage(examples_per_step=examples, stage2_epochs=2.0)
    before = walk(scheduler, sized(sizes), max_steps=cap)[-1]
    if before.stage.name != "mixture" or before.steps is None:
        return
    after = walk(scheduler, sized(sizes, high=high), max_steps=cap)[-1]
    assert (after.stage.name, after.steps, after.plan.drawn()) == ("mixture", before.steps, before.plan.drawn())


# one stage


def test_a_mixture_is_one_stage_over_all_tasks():
    (only,) = walk(MixtureStage(MixtureStage.Config(sampler=use("class-balanced"), epochs=2.0)), sized(CLUE))
    assert (only.stage.name, only.stage.tasks, only.stage.draws) == ("mixture", tuple(CLUE), 2 * sum(CLUE.values()))
    assert set(only.mixture.shares.values()) == {1 / 6}


def test_a_single_task_is_evaluated_after_every_epoch_and_stops_by_patience():
    (only,) = walk(SingleTask(SingleTask.Config()), sized([500]))
    stage = only.stage
    assert SingleTask.alone
    assert (stage.draws, stage.epoch_draws, stage.evaluate_every, stage.patience) == (5000, 500, 500, 3)
    assert {name: times for name, (times, _) in passes(only.plan.drawn(), only.plan.tasks).items()} == {"t0": 10}


def test_only_the_references_stop_by_patience():
    stages = [*walk(two_stage(), sized([9, 9], high={"t0"})), *walk(MixtureStage(MixtureStage.Config()), sized([9, 9]))]
    assert [stage.stage.patience for stage in stages] == [None, None, None]


# samplers that are someone else's


def registry_with(cls):
    plugin = Plugin("toys", "toys", "1.0", "loaded")
    return Registry([plugin], [Entry("sampler", cls.name, cls, plugin)])


class Odd(Sampler):
    name = "odd"

    def epoch_draws(self, profiles):
        return 1000

    def mix(self, profiles, draws, ledger):
        return Mixture(shares={profiles[0].name: 1.0})


class Short(Odd):
    name = "short"

    def mix(self, profiles, draws, ledger):
        return Mixture(shares={p.name: 1 / len(profiles) for p in profiles}, draws=700)


class Negative(Odd):
    name = "negative"

    def mix(self, profiles, draws, ledger):
        return Mixture(shares={p.name: s for p, s in zip(profiles, (1.5, -0.5), strict=True)})


class Watching(Odd):
    name = "watching"
    needs = frozenset({"validation-loss"})


def test_a_sampler_may_shorten_a_stage():
    scheduler = MixtureStage(MixtureStage.Config(sampler=use("short"), epochs=1.0, examples_per_step=10))
    (only,) = walk(scheduler, sized([5, 5]), registry=registry_with(Short))
    assert (only.stage.draws, only.plan.draws, only.steps) == (700, 700, 70)
    (only,) = walk(scheduler, sized([5, 5]), registry=registry_with(Short), max_steps=20)
    assert (only.stage.draws, only.steps) == (200, 20)


@pytest.mark.parametrize("cls", [Odd, Negative])
def test_shares_that_are_no_shares_are_refused(cls):
    scheduler = MixtureStage(MixtureStage.Config(sampler=use(cls.name)))
    with pytest.raises(
        ConfigError, match=rf"sampler '{cls.name}' must give each of \['t0', 't1'\] a share of at least 0, together 1; it gave"
    ):
        walk(scheduler, sized([5, 5]), registry=registry_with(cls))


# --- filters --------------------------------------------------------------------------------------------------------------------------

FILTERS = [OutputKind, InputKind, ClassCount, OutputScale, NoFilter]
OUTPUTS = ["binary", "ordinal", "multi-class", "multi-label", "regression", "generation"]
INPUTS = ["single-sentence", "sentence-pair", "passage-question", "conversation"]


def groups(cls, profiles):
    return {group.name: set(group.tasks) for group in cls(cls.Config()).group(profiles)}


def clue():
    return [make_profile(name, output=output, input=read) for name, (output, read) in KINDS.items()]


def test_clue_by_what_is_read_is_the_papers_ss_split():
    assert groups(InputKind, clue()) == {"single": {"cwsc", "tnews", "iflytek"}, "pair": {"ocnli", "csl", "afqmc"}}


def test_clue_by_the_number_of_answers_is_the_papers_bm_split():
    assert groups(ClassCount, clue()) == {"binary": {"cwsc", "csl", "afqmc"}, "multi-class": {"tnews", "ocnli", "iflytek"}}


def test_by_default_only_generation_is_kept_apart():
    cmrc = make_profile("cmrc", output="generation", input="passage-question")
    assert groups(OutputKind, clue()) == {"classification": set(KINDS)}
    assert groups(OutputKind, [*clue(), cmrc]) == {"classification": set(KINDS), "generation": {"cmrc"}}
    assert groups(NoFilter, [*clue(), cmrc]) == {"all": {*KINDS, "cmrc"}}


def test_by_scale_ordinal_tasks_have_a_model_and_multi_label_goes_with_multi_class():
    found = groups(OutputScale, [make_profile(output, output=output) for output in OUTPUTS])
    assert found == {
        "binary": {"binary"},
        "ordinal": {"ordinal", "regression"},
        "multi-class": {"multi-class", "multi-label"},
        "generation": {"generation"},
    }


def test_generation_is_apart_in_every_finer_filter():
    for cls in (InputKind, ClassCount, OutputScale):
        assert groups(cls, [*clue(), make_profile("cmrc", output="generation", input="sentence-pair")])["generation"] == {"cmrc"}


@pytest.mark.parametrize("cls", FILTERS, ids=lambda cls: cls.name)
def test_every_task_is_in_exactly_one_group_that_says_why(cls):
    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(st.sampled_from(OUTPUTS), st.sampled_from(INPUTS)), min_size=1, max_size=8))
    def check(kinds):
        profiles = [make_profile(f"t{i}", output=output, input=read) for i, (output, read) in enumerate(kinds)]
        found = cls(cls.Config()).group(profiles)
        assert sorted(task for group in found for task in group.tasks) == sorted(p.name for p in profiles)
        assert len({group.name for group in found}) == len(found)
        assert all(group.reason and group.tasks for group in found)
        assert all(list(group.tasks) == [p.name for p in profiles if p.name in group.tasks] for group in found)

    check()


# --- observers ------------------------------------------------------------------------------------------------------------------------


def happenings():
    """At least one event of every type."""
    evaluation = Evaluation(
        stage="mixture",
        step=5,
        draws=40,
        epoch=0.5,
        scores={"clue/tnews": 0.5, "clue/csl": None},
        qualified=1,
        average=0.25,
        losses={"clue/tnews": math.nan},
    )
    stage = Stage(
        name="mixture",
        tasks=("clue/tnews", "clue/csl"),
        sampler=use("temperature", tau=2.0),
        draws=80,
        epoch_draws=80,
        examples_per_step=8,
        learning_rate=1e-3,
    )
    return [
        events.RunStarted("clue", ["", "ours"], [1, 2], True),
        events.RowsRead("clue/tnews", 49_726, 10_000, 3),
        events.Warned("clue/tnews", "第一行\n第二行 \udcff"),
        events.WorkAhead({"reference clue/tnews": 10, "ours/classification": 10}),
        events.Grouped("ours", [Group(name="classification", reason="they answer from closed sets", tasks=("clue/tnews", "clue/csl"))]),
        events.WorkStarted("ours/classification", 10, 0),
        events.MachineMeasured(1e11, "matrix products, timed", 1, "ours/classification"),
        events.StageStarted("ours/classification", stage, 10, {"clue/tnews": 0.75, "clue/csl": 0.25}),
        events.Stepped("ours/classification", "mixture", 1, 10, math.inf, 1e-3, 4000, 2.0, flops=8.2e10),
        events.StepSkipped("ours/classification", "mixture", 2, "its loss is nan", math.nan, [("clue/csl", 3), ("clue/csl", 5)]),
        events.RolledBack("ours/classification", "mixture", 2, 1, "steps were skipped"),
        events.Saved("ours/classification", "mixture", 1, 0.5, "runs/clue/ckpt-0"),
        events.MicroBatchHalved("ours/classification", 4096),
        events.Interrupted("ours/classification", 1, "SIGTERM"),
        events.Evaluated("ours/classification", evaluation),
        events.StageEnded("ours/classification", "mixture", 10, "complete"),
        events.ReferenceReady("clue/tnews", 0.5, None, "unknown", True, "measured"),
        events.ReferenceReady("clue/csl", 0.75, 6, "high", False, "reused"),
        events.VariantJudged("", 0.5, 1, 2),
        events.RunEnded("clue", "runs/clue/report.md"),
    ]


def test_every_type_of_event_is_tried_here():
    assert {type(event) for event in happenings()} == set(get_args(events.Event))


def not_json(text):
    raise AssertionError(f"{text} is not JSON")


def test_the_event_log_is_a_line_of_json_an_event(tmp_path):
    log = EventLog(EventLog.Config())
    for event in happenings():
        log.on_event(event, tmp_path)
    lines = (tmp_path / "events.jsonl").read_bytes().decode("utf-8").splitlines()
    read = [json.loads(line, parse_constant=not_json) for line in lines]
    assert [line["event"] for line in read] == [type(event).__name__ for event in happenings()]
    assert all(isinstance(line["time"], float) for line in read)
    by_name = {line["event"]: line for line in read}
    assert by_name["Warned"]["text"] == "第一行\n第二行 \udcff"
    assert "第一行" in lines[2]
    assert by_name["Grouped"]["groups"] == [
        {"name": "classification", "reason": "they answer from closed sets", "tasks": ["clue/tnews", "clue/csl"]}
    ]
    assert by_name["StageStarted"]["stage"]["sampler"] == {"use": "temperature", "tau": 2.0}
    assert by_name["Evaluated"]["evaluation"]["scores"] == {"clue/tnews": 0.5, "clue/csl": None}


def test_numbers_that_are_none_are_null_in_the_event_log(tmp_path):
    for event in happenings():
        EventLog(EventLog.Config()).on_event(event, tmp_path)
    read = {line["event"]: line for line in map(json.loads, (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines())}
    assert read["Stepped"]["loss"] is None
    assert read["Evaluated"]["evaluation"]["losses"] == {"clue/tnews": None}


def test_progress_says_everything_in_plain_lines_where_stderr_is_no_terminal(tmp_path, capsys):
    progress = Progress(Progress.Config(every=0.0))
    for event in happenings()[:2] + happenings()[3:]:
        progress.on_event(event, tmp_path)
    said = capsys.readouterr()
    assert said.out == ""
    assert "\r" not in said.err
    assert "\x1b" not in said.err
    for line in (
        "run clue (resumed): variants one, ours; seeds 1, 2",
        "  clue/tnews: 49,726 train, 10,000 validation rows, 3 set aside",
        "  ours: group classification: clue/tnews, clue/csl — they answer from closed sets",
        "  ours/classification: stage mixture, 10 steps over 2 tasks",
        "  peak of a device: 100 GFLOP/s (matrix products, timed)",
        "  ours/classification: mixture step 2 is skipped, because its loss is nan (rows of clue/csl: events.jsonl)",
        "  ours/classification: mixture goes back from step 2 to 1: steps were skipped",
        "  ours/classification: out of memory; 4,096 tokens at once from here on",
        "  ours/classification: SIGTERM after step 1; all of it is saved, and the same command goes on from there",
        "  ours/classification: mixture epoch 0.50: clue/tnews 0.5000, clue/csl failed",
        "  reference clue/tnews: 0.5000, at chance (measured)",
        "  reference clue/csl: 0.7500, saturates in epoch 6, high-resource (reused)",
        "variant one: average 0.5000, 1 of 2 qualified",
        "run clue is done: runs/clue/report.md",
    ):
        assert line in said.err.splitlines()
    (step,) = [line for line in said.err.splitlines() if "tokens/s" in line]
    assert step.startswith("  ours/classification: mixture step 1 of 10, ")
    assert re.search(r", \d+s left \(run \d+s\), loss inf, 2,000 tokens/s, 41 % of peak$", step)


def test_the_time_that_a_run_will_take_counts_all_work_ahead(tmp_path, capsys):
    progress = Progress(Progress.Config(every=0.0))
    progress.on_event(events.WorkAhead({"reference a": 10, "reference b": 10, "run/all": 100_000_000}), tmp_path)
    progress.on_event(events.WorkStarted("reference a", 10, 0), tmp_path)
    progress.on_event(events.Stepped("reference a", "single-task", 1, 10, 0.5, 1e-3, 10, 0.1), tmp_path)
    assert re.search(r"\(run \d+(h|m)", capsys.readouterr().err)
    progress.on_event(events.WorkStarted("run/all", 1, 0), tmp_path)
    progress.on_event(events.WorkStarted("reference b", 10, 0), tmp_path)
    progress.on_event(events.Stepped("reference b", "single-task", 10, 10, 0.5, 1e-3, 10, 0.1), tmp_path)
    assert "(run 0s)" in capsys.readouterr().err


def test_steps_are_told_from_time_to_time_and_not_each(tmp_path, capsys):
    progress = Progress(Progress.Config())
    progress.on_event(events.WorkStarted("ours", 1000, 0), tmp_path)
    for number in range(1, 1001):
        progress.on_event(events.Stepped("ours", "mixture", number, 1000, 0.5, 1e-3, 10, 0.1), tmp_path)
    assert capsys.readouterr().err == ""


def test_work_that_is_resumed_counts_on_from_where_it_stood(tmp_path, capsys):
    progress = Progress(Progress.Config(every=0.0))
    progress.on_event(events.WorkStarted("ours", 1000, 400), tmp_path)
    progress.on_event(events.Stepped("ours", "mixture", 401, 1000, 0.5, 1e-3, 10, 0.1), tmp_path)
    assert "step 401 of 1,000" in capsys.readouterr().err


def test_a_terminal_gets_one_line_that_is_written_over(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress(Progress.Config())
    progress.on_event(events.RunEnded("clue", "report.md"), tmp_path)
    assert sys.stderr.getvalue() == "\r\x1b[2Krun clue is done: report.md\n"
