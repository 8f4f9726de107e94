"""The page of a run: whatever the reports hold, it is one file that needs nothing beside itself, and shows text as text."""

import functools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mtcore.errors import RunError
from mtcore.evaluation.page import page
from mtcore.evaluation.plots import Curve, Shared, task_plot
from mtcore.evaluation.qualify import Verdict, deployment
from mtcore.evaluation.report import GroupOutcome, TaskOutcome, VariantOutcome
from mtcore.evaluation.scales import Scale, interval, ratio_scale, score_scale
from mtcore.evaluation.views import explanation, headline, main_report, plan, stage_tables, warning_lines
from mtcore.types import Cost

ROOT = Path(__file__).parent.parent
HOSTILE = """<script>alert(1)</script>'"><img src=x onerror=alert(2)>&amp;"""
VOID = {"meta", "link", "br", "img", "hr", "input"}


def make_task(name, reference=0.8, score=0.8, *, epochs=4, seeds=(1,), at_chance=False, failure="", **changes):
    """A task's outcome with a reference curve that saturates in its second epoch."""
    ratio = score / reference if reference > 0 else None
    verdict = Verdict(
        reference=reference,
        score=score,
        ratio=ratio,
        is_qualified=score >= 0.99 * reference and not at_chance,
        p_qualified=0.7,
        interval=(ratio * 0.95, ratio * 1.05) if ratio else None,
        is_at_chance=at_chance,
    )
    curve = [{"epoch": float(e), "score": reference - 0.02 * abs(e - 2)} for e in range(1, epochs + 1)]
    table = {
        "name": name,
        "metric": "accuracy",
        "verdict": None if failure else verdict,
        "failure": failure,
        "floors": {"majority": None if failure else 0.5, "bag-of-words": None},
        "beside": {"macro-f1": 0.5, "broken": None},
        "saturation_epoch": [2 if epochs else None for _ in seeds],
        "resource": "low",
        "resource_is_assumed": False,
        "data": {
            "output": "binary",
            "licence": "CC0-1.0",
            "source": "made up",
            "plugin": "toys 1.0",
            "train_rows": 1000,
            "judged_rows": 200,
            "judged_on": "test",
            "digest": "d" * 64,
        },
        "references": [
            {"seed": s, "score": reference, "selection_bar": None if at_chance else reference, "saturation_epoch": 2, "curve": curve}
            for s in seeds
        ],
    }
    return TaskOutcome(**{**table, **changes})


def make_stage(name, tasks, seed=1, **changes):
    table = {
        "name": name,
        "seed": seed,
        "steps": 100,
        "ended": "complete",
        "note": "",
        "learning_rate": 3e-5,
        "examples_per_step": 32,
        "tasks": {t.name: {"share": 1 / len(tasks), "draws": 3200 // len(tasks), "passes": 0.5} for t in tasks},
        "evaluations": [
            {"step": n, "draws": 32 * n, "epoch": n / 100, "scores": {t.name: 0.4 + n / 400 for t in tasks}, "is_chosen": n == 100}
            for n in (50, 100)
        ],
    }
    return {**table, **changes}


def make_report(groups, *, variant="", seeds=(1,), stages=None, alone=False, **changes):
    """A variant's report.json: groups of tasks, each trained in two stages unless said otherwise."""
    outcomes = [
        GroupOutcome(
            name,
            f"why {name}",
            tasks,
            [make_stage(s, tasks, seed) for seed in seeds for s in ("first", "mixture")] if stages is None else stages,
            {seed: f"runs/toy/{variant}/seed-{seed}/{name}/bundle" for seed in seeds} if not alone else {},
        )
        for name, tasks in groups.items()
    ]
    tasks = [t for g in outcomes for t in g.tasks]
    table = {
        "run": "toy",
        "variant": variant,
        "model": "tiny",
        "base": {"digest": "b" * 64, "revision": None},
        "method": "text2text",
        "seeds": seeds,
        "groups": outcomes,
        "deployment": deployment(
            {} if alone else {g.name: g.qualified for g in outcomes},
            [t.name for t in tasks],
            [t.name for t in tasks if t.verdict is None or t.verdict.is_at_chance],
        ),
        "is_alone": alone,
        "cost": {"references": Cost(steps=400, flops=4e12, seconds=300), "stage mixture": Cost(steps=100, flops=1e12, seconds=60)},
        "reference_reused": 0,
        "warnings": [],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    return json.loads(json.dumps(VariantOutcome(**{**table, **changes}).as_json(), allow_nan=False))


MIXED = [
    make_task("toys/good"),
    make_task("toys/short", score=0.5),
    make_task("toys/chance", reference=0.5, score=0.5, at_chance=True),
    make_task("toys/broken", failure="RuntimeError: no such tokenizer"),
]


def rendered(*reports):
    configurations = {report["variant"]: {"model": "tiny", "tasks": ["toys/*"]} for report in reports}
    plugins = [{"name": "toys", "distribution": "toys", "version": "1.0", "status": "loaded"}]
    return page("toy", reports, {"variants": configurations, "plugins": plugins})


class Reader(HTMLParser):
    """Reads a page as a browser would: elements with their attributes, text, ids, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.ids = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


# --- what it says ---------------------------------------------------------------------------------------------------------------------


def test_the_first_words_say_which_tasks_can_go_live():
    text = Reader(rendered(make_report({"all": MIXED}))).text
    assert "1 of 4 tasks can go live on 1 shared model" in text[:200]
    for part in (
        "✓ go live on the shared model all 1 of its 4 toys/good",
        "↓ not yet on a shared model: keeps a model of its own 1 toys/short",
        "not ready: nothing serves them yet 2 toys/chance at chance toys/broken failed",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("groups", "alone", "sentence"),
    [
        ({"a": ["x", "y"], "b": ["z"]}, False, "3 of 3 tasks can go live on 2 shared models instead of 3 models of their own"),
        ({"a": ["x", "y"]}, False, "2 of 2 tasks can go live on 1 shared model instead of 2 models of their own"),
        ({"a": ["x"]}, False, "1 of 1 task can go live on 1 shared model"),
        ({"x": ["x"], "y": ["y"]}, True, "2 of 2 tasks can go live, each on a model of its own; nothing is shared"),
    ],
)
def test_the_headline_counts_tasks_and_models(groups, alone, sentence):
    assert headline(make_report({name: [make_task(t) for t in tasks] for name, tasks in groups.items()}, alone=alone)) == sentence


def test_a_run_in_which_nothing_qualifies_says_so():
    report = make_report({"all": [make_task("x", score=0.1), make_task("y", score=0.1)]})
    assert headline(report) == "None of 2 tasks can go live on a shared model yet"
    assert explanation(report) == "Serving all 2 tasks takes 2 models: 2 of a single task."
    assert plan(report).own == ["x", "y"]


def test_how_sure_the_verdicts_are_stands_beside_them():
    report = make_report({"all": MIXED})
    assert "Of the 1 that can go live, none reaches the bar, 99 % of its own model's score, with a probability of 95 % or more." in (
        explanation(report)
    )


def test_the_variant_with_the_most_qualified_tasks_in_a_shared_model_stands_first():
    good, short = make_task("x"), make_task("y", score=0.5)
    one = make_report({"all": [good, short]}, variant="one")
    two = make_report({"all": [good, make_task("y", score=0.8)]}, variant="two")
    better = make_report({"all": [good, make_task("y", score=0.9)]}, variant="better")
    alone = make_report({"x": [good], "y": [make_task("y", score=0.99)]}, variant="alone", alone=True)
    assert main_report([alone, one, two, better])["variant"] == "better"
    assert main_report([alone, one])["variant"] == "one"
    assert main_report([alone])["variant"] == "alone"


def test_every_variant_can_be_reached():
    reader = Reader(rendered(*[make_report({"all": MIXED}, variant=name) for name in ("one", "two", "three")]))
    targets = {a["href"][1:] for tag, a in reader.elements if tag == "a"}
    assert targets <= set(reader.ids)
    assert len([t for t in targets if t.startswith("variant-")]) == 2
    assert reader.text.count("1 of 4 tasks can go live on 1 shared model") == 4  # title, heading, and two others


def test_the_page_holds_what_a_reader_needs_to_judge_and_to_repeat():
    report = make_report(
        {"all": [make_task("toys/a", resource="high", resource_is_assumed=True)]}, warnings=["toys/a: few rows", "group all: skipped"]
    )
    text = Reader(rendered(report)).text
    for part in (
        "toys/a ✓ go live 80.00 80.00 1.000 0.950 to 1.050 0.70 50.00 – epoch 2 high (assumed) accuracy macro-f1 50.00 broken –",
        "first 100 steps of 32, rate 3e-05",
        "toys/a 100.0 % 3,200 0.50 100.0 % 3,200 0.50 1.00",
        "each task alone 400 0 0 0.0 % 4 T 5 min",
        "few rows toys/a",
        "group all: skipped",
        "CC0-1.0 made up toys 1.0 1,000 200 test dddddddddddd",
        "tiny digest bbbbbbbbbbbb",
        "torch 2.13.0",
        '"tasks": [ "toys/*" ]',
    ):
        assert part in text


def test_costs_are_told_with_speed_utilisation_and_where_the_peak_is_from():
    groups = {"all": MIXED}
    assert "MFU:" not in rendered(make_report(groups))
    assert ">shared</th>" not in rendered(make_report(groups))
    stage = Cost(steps=100, tokens=6000, example_tokens=8000, flops=1e12, seconds=60).metered(4e10, "a clock & a ruler")
    page = rendered(make_report(groups, cost={"references": Cost(steps=400, flops=4e12, seconds=300), "stage mixture": stage}))
    assert '<td class="n">100</td><td class="n">41.7 %</td>' in page
    assert '<td class="n">25.0 %</td>' in page
    assert "over the peak of its devices (a clock &amp; a ruler)." in page


def test_tasks_of_which_the_same_is_said_share_a_line_and_like_lines_stand_together():
    warnings = ["x: 3 rows repeat", "group all: skipped", "y: no test split", "y: 4 rows repeat", "x: no test split"]
    lines = warning_lines(make_report({"all": [make_task("x"), make_task("y")]}, warnings=warnings), known=["group all: skipped"])
    assert lines == [(["y", "x"], "no test split"), (["x"], "3 rows repeat"), (["y"], "4 rows repeat")]


def test_seeds_that_drew_alike_share_a_table_of_stages():
    tasks = [make_task("x", seeds=(1, 2, 3))]
    stages = [make_stage("mixture", tasks, 1), make_stage("mixture", tasks, 2, steps=90), make_stage("mixture", tasks, 3)]
    tables = stage_tables(make_report({"all": tasks}, seeds=(1, 2, 3), stages=stages))
    assert [(table.title, table.stages[0]["steps"]) for table in tables] == [("all, seeds 1, 3", 100), ("all, seed 2", 90)]


def test_an_update_of_a_live_bundle_is_told():
    side = {"score": 0.8, "verdict": "yes"}
    change = {"name": "toys/good", "old": side, "new": side, "difference": -0.01, "interval": [-0.02, 0.0], "lost": False, "notes": []}
    update = {
        "bundle": "live/bundle",
        "digest": "0" * 64,
        "new": ["toys/new"],
        "replaced": {"toys/short": "its rows changed"},
        "is_published": False,
        "path": "runs/candidate",
        "comparison": {"tasks": [change], "lost": ["toys/old"]},
    }
    text = Reader(rendered(make_report({"all": MIXED}, update=update))).text
    assert "The live bundle live/bundle was taught toys/new, toys/short." in text
    assert "The candidate is not published, because toys/old would be lost: runs/candidate ." in text
    assert "toys/good 80.00 80.00 -1.00 -2.00 to +0.00 yes yes" in text


def test_a_report_of_an_earlier_version_is_refused_with_what_to_do():
    report = make_report({"all": MIXED}, variant="ours")
    del report["format"]
    with pytest.raises(
        RunError, match=r"the report of ours in run toy was written by an earlier version.*run the same `mtcore train` again"
    ):
        rendered(report)


# --- whatever the shape ---------------------------------------------------------------------------------------------------------------


def shapes():
    two = {"classification": MIXED, "generation": [make_task("toys/summary")]}
    three_seeds = [make_task(f"toys/{n}", seeds=(1, 2, 3), saturation_epoch=[2, None, 5]) for n in "abc"]
    return {
        "one": [make_report({"all": [make_task("toys/one")]})],
        "groups": [make_report(two)],
        "seeds": [make_report({"all": three_seeds}, seeds=(1, 2, 3))],
        "untrained": [make_report({"all": MIXED}, stages=[])],
        "alone": [make_report({t.name: [t] for t in MIXED}, stages=[], alone=True)],
        "all-failed": [make_report({"all": [make_task("toys/x", failure="ValueError: none")]})],
        "below-zero": [make_report({"all": [make_task("toys/x", reference=-0.2, score=-0.1)]})],
        "nothing": [make_report({"all": [make_task("toys/x", reference=0.0, score=0.0)]})],
        "far-off": [make_report({"all": [make_task("toys/x", reference=0.01, score=0.9), make_task("toys/y", score=0.0)]})],
        "no-curve": [make_report({"all": [make_task("toys/x", epochs=0)]}, stages=[])],
        "different-tasks": [
            make_report({"all": MIXED}, variant="one"),
            make_report({"all": [make_task("toys/other")]}, variant="two"),
            make_report({"toys/good": [MIXED[0]]}, variant="three", alone=True, stages=[]),
        ],
        "hundred": [make_report({"all": [make_task(f"toys/{n:03}", score=n / 100, epochs=1) for n in range(100)]}, stages=[])],
    }


SHAPES = shapes()


@functools.cache
def page_of(shape):
    return rendered(*SHAPES[shape])


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_a_run_has_a_page_that_is_whole_and_names_every_task(name):
    reader = Reader(page_of(name))
    for report in SHAPES[name]:
        for group in report["groups"]:
            assert all(task["name"] in reader.text for task in group["tasks"])
    assert len(reader.ids) == len(set(reader.ids))
    assert not any("nan" in str(a.get("style")) for _, a in reader.elements)


@pytest.mark.parametrize("name", SHAPES)
def test_the_page_loads_nothing_and_runs_nothing(name):
    reader = Reader(page_of(name))
    assert {tag for tag, _ in reader.elements}.isdisjoint({"script", "iframe", "object", "embed", "img", "form", "base"})
    for tag, attributes in reader.elements:
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            if attribute in ("href", "src", "xlink:href", "srcset", "data", "poster", "action"):
                assert value.startswith("#") or (tag, value) == ("link", "data:,")
    assert not re.findall(r"@import|url\((?!#)", page_of(name))
    (policy,) = [a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_text_of_plugins_stands_there_as_text():
    data = {**MIXED[0].data, "licence": f"licence {HOSTILE}", "source": f"source {HOSTILE}", "plugin": f"plugin {HOSTILE}"}
    tasks = [make_task(f"task {HOSTILE}", data=data, metric=f"metric {HOSTILE}", beside={f"beside {HOSTILE}": 0.1})]
    tasks.append(make_task("toys/broken", failure=f"failure {HOSTILE}"))
    stages = [make_stage(f"stage {HOSTILE}", tasks, note=f"note {HOSTILE}")]
    report = make_report(
        {f"group {HOSTILE}": tasks},
        variant=f"variant {HOSTILE}",
        stages=stages,
        model=f"model {HOSTILE}",
        method=f"method {HOSTILE}",
        warnings=[f"task {HOSTILE}: warning {HOSTILE}", f"other {HOSTILE}"],
        versions={f"package {HOSTILE}": f"version {HOSTILE}"},
        base={"digest": HOSTILE, "revision": HOSTILE},
    )
    other = make_report({"all": [make_task("toys/x")]}, variant="other")
    reader = Reader(rendered(other, report))
    assert {tag for tag, _ in reader.elements}.isdisjoint({"script", "img"})
    shown = {"task", "metric", "beside", "failure", "stage", "note", "group", "variant", "model", "method", "warning", "other", "package"}
    for what in shown | {"version", "licence", "source", "plugin"}:
        assert f"{what} {HOSTILE}" in reader.text
    assert any(f"title {a.get('title')}" == f"title {HOSTILE}" for _, a in reader.elements)


def test_the_same_reports_make_the_same_page():
    assert rendered(*SHAPES["different-tasks"]) == page_of("different-tasks")


def test_every_table_says_what_its_columns_and_rows_are():
    reader = Reader(page_of("different-tasks"))
    assert all(a.get("scope") in ("col", "row", "colgroup", "rowgroup") for tag, a in reader.elements if tag == "th")
    assert all(a.get("aria-label") for _, a in reader.elements if a.get("role") in ("img", "region"))
    headings = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1


# --- plots and scales -----------------------------------------------------------------------------------------------------------------

ALONE = [Curve([(1.0, 40.0), (2.0, 50.0)], 2.0)]
SHARED = Shared([Curve([(1000.0, 30.0), (2000.0, 49.0)], 2000.0)], [1000.0], 49.5)


def test_a_plot_is_the_same_every_time_and_shares_no_id_with_another():
    assert task_plot("x", ALONE, SHARED) == task_plot("x", ALONE, SHARED)
    x, y = (set(re.findall(r'\bid="([^"]+)"', task_plot(name, ALONE, SHARED))) for name in "xy")
    assert x
    assert not x & y
    text = task_plot("x", ALONE, SHARED)
    assert set(re.findall(r"#(\w+)", text)) == x  # and no colour but the page's own


@pytest.mark.parametrize(
    ("alone", "shared", "titles"), [(ALONE, None, 1), ([], SHARED, 1), (ALONE, SHARED, 2), (ALONE, Shared([], [], None), 1)]
)
def test_a_plot_has_a_panel_for_what_there_is(alone, shared, titles):
    text = task_plot("x", alone, shared)
    assert ("alone, by epoch" in text) + ("shared, by draws" in text) == titles
    assert text.startswith("<svg ")
    assert "width=" not in text.split(">")[0]


def test_positions_lie_within_their_scale():
    scale = Scale(0.5, 1.5, [])
    assert [scale.at(v) for v in (0.0, 0.5, 1.0, 1.5, 9.0)] == [0, 0, 50, 100, 100]


@pytest.mark.parametrize(("ratios", "low", "high"), [([], 0.9, 1.05), ([0.985, 1.0], 0.94, 1.04), ([0.02], 0.0, 1.2), ([90.0], 0.9, 1.5)])
def test_the_scale_of_ratios_holds_the_bar_and_is_not_stretched_by_one_task(ratios, low, high):
    scale = ratio_scale([{"ratio": ratio, "interval": None} for ratio in ratios])
    assert scale.low <= 0.95
    assert scale.high >= 1.04
    assert (scale.low, scale.high) == pytest.approx((low, high), abs=0.06)
    assert 3 <= len(scale.ticks) <= 9


def test_an_interval_beyond_the_scale_is_marked_as_cut():
    tasks = [{"ratio": 0.9, "interval": [0.8, 1.0]}, {"ratio": 50.0, "interval": [0.5, 99.0]}, {"ratio": None, "interval": None}]
    scale = ratio_scale(tasks)
    shown = [interval(task, scale) for task in tasks]
    assert [where and where.is_cut for where in shown] == [False, True, None]
    assert shown[1].high == 100


def test_scores_below_zero_have_their_place():
    scale = score_scale([{"score": -0.5, "reference": 0.2, "floors": {"majority": None}}])
    assert (scale.low, scale.high) == (-0.5, 1.0)


# --- the package ----------------------------------------------------------------------------------------------------------------------


def test_nothing_draws_before_a_page_is_wanted():
    code = "import mtcore.pipeline, mtcore.cli.report, mtcore.evaluation.page, sys; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_wheel_holds_what_the_page_is_made_of():
    from hatchling.builders.wheel import WheelBuilder

    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"mtcore/evaluation/templates/{name}" for name in ("report.html", "parts.html", "report.css")} <= packed
