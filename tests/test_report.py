"""Reports: the promised JSON, and tables that a person can read."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtcore.config import RunConfig
from mtcore.data.checks import DataReport
from mtcore.defaults.few_shot import FewShot
from mtcore.defaults.schedulers import MixtureStage
from mtcore.evaluation.metrics import Accuracy, MacroF1
from mtcore.evaluation.qualify import Deployment, Verdict
from mtcore.evaluation.report import FORMAT, GroupOutcome, TaskOutcome, VariantOutcome
from mtcore.evaluation.tables import comparison_markdown, comparison_table, cost_table, flop, markdown, markdown_table, percent, task_table
from mtcore.plugins import load_plugins
from mtcore.preparation import PreparedTask
from mtcore.references import Reference
from mtcore.registry import Plugin
from mtcore.types import Base, Cost, Evaluation, Example, Group, MethodUse, TaskData, TaskProfile, TaskSpec
from mtcore.verdicts import GroupResult, Prepared, judge_variant


def make_verdict(**changes):
    table = {
        "reference": 0.8,
        "score": 0.8,
        "ratio": 1.0,
        "is_qualified": True,
        "p_qualified": 0.75,
        "interval": (0.97, 1.03),
        "is_at_chance": False,
    }
    return Verdict(**{**table, **changes})


QUALIFIED = make_verdict()
MISSED = make_verdict(score=0.6, ratio=0.75, is_qualified=False, p_qualified=0.01, interval=(0.7, 0.8))
AT_CHANCE = make_verdict(reference=0.5, score=0.9, ratio=1.8, is_qualified=False, p_qualified=0.0, is_at_chance=True)
BELOW_ZERO = make_verdict(reference=-0.5, score=-0.4, ratio=None, interval=None)


def make_task(name, verdict=QUALIFIED, **changes):
    table = {
        "name": name,
        "metric": "accuracy",
        "verdict": verdict,
        "failure": "" if verdict else "RuntimeError: no such tokenizer",
        "floors": {"majority": 0.4, "bag-of-words": None},
        "beside": {"macro-f1": 0.5, "broken": None},
        "saturation_epoch": [3],
        "resource": "low",
        "resource_is_assumed": False,
        "data": {"licence": "CC0-1.0", "source": "made up"},
        "references": [{"seed": 1, "score": 0.8, "curve": [{"epoch": 1.0, "score": 0.8}]}],
    }
    return TaskOutcome(**{**table, **changes})


STAGE = {
    "name": "mixture",
    "seed": 1,
    "steps": 1200,
    "ended": "complete",
    "note": "",
    "tasks": {"toys/good": {"share": 0.25, "draws": 1000, "passes": 2.5}},
    "evaluations": [],
}
TASKS = [make_task("toys/good"), make_task("toys/short", MISSED), make_task("toys/chance", AT_CHANCE), make_task("toys/broken", None)]


def make_outcome(tasks=TASKS, **changes):
    table = {
        "run": "clue",
        "variant": "ours",
        "model": "tiny",
        "base": {"digest": "0" * 64, "revision": None},
        "method": "text2text",
        "seeds": [1, 2],
        "groups": [GroupOutcome("classification", "they answer from closed sets", tasks, [STAGE])],
        "deployment": Deployment(
            {"classification": ["toys/good"]}, ["toys/short", "toys/chance", "toys/broken"], ["toys/chance", "toys/broken"], 1.0
        ),
        "is_alone": False,
        "cost": {"references": Cost(steps=10, tokens=100, padding=100), "stage mixture": Cost(steps=5), "evaluation": Cost(tokens=7)},
        "reference_reused": 2,
        "warnings": ["toys/good: 300 rows decide"],
        "versions": {"mtcore": "0.1.0"},
    }
    return VariantOutcome(**{**table, **changes})


def line_of(table, name):
    """The line of one task as {column: cell}."""
    (line,) = [line for line in table if name in line[:2]]
    return dict(zip(table[0], line, strict=True))


# --- JSON -----------------------------------------------------------------------------------------------------------------------------


def test_the_json_has_the_promised_shape():
    report = make_outcome().as_json()
    assert {"run", "variant", "model", "method", "seeds", "groups", "deployment", "cost", "warnings"} <= set(report)
    (group,) = report["groups"]
    assert {"name", "tasks", "average", "qualified", "overhead"} <= set(group)
    for task in group["tasks"]:
        assert {
            "name",
            "metric",
            "reference",
            "score",
            "ratio",
            "qualified",
            "p_qualified",
            "interval",
            "at_chance",
            "saturation_epoch",
            "resource",
        } <= set(task)
    assert {"shared", "single", "overhead"} <= set(report["deployment"])


def test_the_json_says_what_was_judged():
    report = make_outcome().as_json()
    good = report["groups"][0]["tasks"][0]
    assert (good["name"], good["reference"], good["score"], good["ratio"]) == ("toys/good", 0.8, 0.8, 1.0)
    assert (good["qualified"], good["p_qualified"], good["interval"], good["at_chance"]) == (True, 0.75, [0.97, 1.03], False)
    assert (good["saturation_epoch"], good["resource"], good["failure"]) == (3, "low", None)
    assert report["groups"][0]["qualified"] == 1
    assert report["groups"][0]["overhead"] == 1
    assert report["groups"][0]["average"] == pytest.approx((0.8 + 0.6 + 0.9 + 0) / 4)
    assert report["deployment"]["single"] == ["toys/short", "toys/chance", "toys/broken"]
    assert report["seeds"] == [1, 2]
    assert report["warnings"] == ["toys/good: 300 rows decide"]


def test_a_failed_task_has_nulls_a_reason_and_is_not_qualified():
    report = make_outcome().as_json()
    broken = report["groups"][0]["tasks"][3]
    assert [broken[k] for k in ("reference", "score", "ratio", "p_qualified", "interval", "at_chance")] == [None] * 6
    assert broken["qualified"] is False
    assert broken["failure"] == "RuntimeError: no such tokenizer"
    assert report["failures"] == ["toys/broken: RuntimeError: no such tokenizer"]


@pytest.mark.parametrize("verdict", [QUALIFIED, MISSED, AT_CHANCE, BELOW_ZERO, None])
def test_the_json_is_json_to_every_reader(verdict):
    outcome = make_outcome([make_task("toys/a", verdict, saturation_epoch=[None, 2])])
    assert json.loads(json.dumps(outcome.as_json(), allow_nan=False)) == outcome.as_json()


def test_seeds_that_agree_have_one_saturation_epoch_and_others_one_each():
    epochs = {
        epochs: make_task("a", saturation_epoch=list(epochs)).as_json()["saturation_epoch"] for epochs in [(3,), (3, 3), (3, 5), (None,)]
    }
    assert epochs == {(3,): 3, (3, 3): 3, (3, 5): [3, 5], (None,): None}


def test_the_overhead_is_one_over_the_most_qualified_tasks_of_one_group():
    groups = [GroupOutcome("a", "r", [make_task("x"), make_task("y")]), GroupOutcome("b", "r", [make_task("z"), make_task("w", MISSED)])]
    report = make_outcome(groups=groups).as_json()
    assert (report["qualified"], report["overhead"]) == (3, 1 / 2)
    assert [g["overhead"] for g in report["groups"]] == [1 / 2, 1]
    assert make_outcome(groups=groups, is_alone=True).as_json()["overhead"] == 1
    nothing = make_outcome([make_task("x", MISSED)]).as_json()
    assert (nothing["qualified"], nothing["overhead"], nothing["groups"][0]["overhead"]) == (0, None, None)


def test_costs_are_summed_with_and_without_references():
    cost = make_outcome().as_json()["cost"]
    assert cost["total single-task"]["steps"] == 10
    assert cost["total shared"]["steps"] == 5
    assert cost["total shared"]["tokens"] == 7
    assert cost["total references + shared"]["tokens"] == 107
    assert cost["references_reused"] == 2


# --- tables ---------------------------------------------------------------------------------------------------------------------------


def test_the_verdict_of_every_task_is_said_in_a_word():
    table = task_table(make_outcome())
    words = {name: line_of(table, f"toys/{name}")["qualified"] for name in ("good", "short", "chance", "broken")}
    assert words == {"good": "yes", "short": "no", "chance": "at chance", "broken": "failed"}


def test_a_failed_task_is_shown_as_failed_and_without_numbers():
    line = line_of(task_table(make_outcome()), "toys/broken")
    assert (line["score"], line["reference"], line["ratio"], line["P"], line["95 % of ratio"]) == ("failed", "–", "–", "–", "–")


def test_a_ratio_that_says_nothing_is_a_dash():
    line = line_of(task_table(make_outcome([make_task("toys/a", BELOW_ZERO)])), "toys/a")
    assert (line["ratio"], line["95 % of ratio"], line["score"]) == ("–", "–", "-40.00")


def test_assumed_resources_and_unknown_epochs_are_marked():
    task = make_task("toys/a", resource="high", resource_is_assumed=True, saturation_epoch=[None, 4])
    line = line_of(task_table(make_outcome([task])), "toys/a")
    assert (line["resource"], line["saturates"]) == ("high (assumed)", "epoch –/4")


def test_the_comparison_marks_what_qualifies_with_a_star():
    header, line = comparison_table([make_outcome().as_json()])
    cells = dict(zip(header, line, strict=True))
    assert cells["toys/good"] == "80.00*"
    assert cells["toys/short"] == "60.00"
    assert cells["toys/chance"] == "90.00"
    assert cells["toys/broken"] == "failed"
    assert (cells["variant"], cells["average"], cells["qualified"], cells["overhead"]) == ("ours", "57.50", "1", "100.00")


def test_the_comparison_has_a_dash_where_a_variant_lacks_a_task():
    header, _, second = comparison_table([make_outcome().as_json(), make_outcome([make_task("toys/other")], variant="other").as_json()])
    assert dict(zip(header, second, strict=True))["toys/good"] == "–"
    assert header == [
        "variant",
        "toys/good",
        "toys/short",
        "toys/chance",
        "toys/broken",
        "toys/other",
        "average",
        "qualified",
        "overhead",
        "deployable",
    ]


def test_tasks_at_chance_are_said_to_be_so_in_the_report_and_in_the_comparison():
    row = next(line for line in markdown(make_outcome()).splitlines() if "toys/chance" in line)
    assert "| at chance |" in row
    page = comparison_markdown("clue", [make_outcome().as_json()])
    assert "At chance alone, so nothing can be qualified against them: toys/chance." in page
    assert "t chance" not in comparison_markdown("clue", [make_outcome([make_task("toys/good")]).as_json()])


def test_the_cost_table_gives_the_share_of_padding():
    lines = {line[0]: line for line in cost_table(make_outcome())}
    assert lines["references"] == ["references", "10", "0", "100", "50.0%", "0", "0 s", "–", "–"]
    assert lines["stage mixture"][4] == "0.0%"


COUNTED = {
    "references": Cost(steps=10, tokens=3000, flops=3e9, seconds=2.0).metered(3e9, "a clock"),
    "stage mixture": Cost(steps=5, tokens=750, example_tokens=1000, flops=1e9, seconds=0.5),
}


def test_the_cost_table_gives_speed_and_utilisation_where_they_are_known():
    head, *lines = cost_table(make_outcome(cost=COUNTED))
    told = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert [told[name]["tokens/s"] for name in ("references", "stage mixture")] == ["1,500", "1,500"]
    assert [told[name]["MFU"] for name in ("references", "stage mixture")] == ["50.0 %", "–"]
    assert told["total references + shared"]["MFU"] == "50.0 %"
    assert "MFU: the FLOP that the model demands over the peak of its devices (a clock)." in markdown(make_outcome(cost=COUNTED))
    assert "MFU:" not in markdown(make_outcome())


def test_what_sharing_documents_saved_is_told_only_where_it_saved_something():
    head, *lines = cost_table(make_outcome(cost=COUNTED))
    told = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert [told[name]["shared"] for name in ("references", "stage mixture")] == ["0.0%", "25.0%"]
    assert "shared" not in cost_table(make_outcome())[0]


def test_the_json_holds_rates_beside_counts():
    cost = make_outcome(cost=COUNTED).as_json()["cost"]
    assert cost["references"]["utilisation"] == pytest.approx(0.5)
    assert cost["stage mixture"]["utilisation"] is None
    assert (cost["stage mixture"]["saved"], cost["stage mixture"]["tokens_per_second"]) == (250, 1500)
    assert cost["total references + shared"]["peaks"] == ["a clock"]


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (5e9, "5 G"), (3.14159e12, "3.14 T"), (9.996e14, "1 P"), (2.5e18, "2.5 E")])
def test_operations_are_told_with_a_unit(value, text):
    assert flop(value) == text


# --- Markdown -------------------------------------------------------------------------------------------------------------------------


def cells_of(line):
    """The cells of a line as GitHub reads them: a backslash takes the meaning from the sign behind it."""
    cells, text, signs = [], "", iter(line)
    for sign in signs:
        if sign == "\\":
            text += next(signs)
        elif sign == "|":
            cells.append(text)
            text = ""
        else:
            text += sign
    assert (cells[0], text) == ("", "")
    return [cell[1:-1] for cell in cells[1:]]


@settings(deadline=None)
@given(st.lists(st.lists(st.text("ab |\\*–中", max_size=8), min_size=2, max_size=2), min_size=1, max_size=4))
def test_whatever_stands_in_a_cell_stays_in_it(lines):
    header, rule, *rest = markdown_table(lines).split("\n")
    assert [cells_of(line) for line in (header, *rest)] == lines
    assert cells_of(rule) == ["---", "---"]


def test_bars_are_escaped_and_new_lines_folded():
    table = markdown_table([["a", "b"], ["x|y", "one\ntwo\r\nthree"]])
    assert table == "| a | b |\n| --- | --- |\n| x\\|y | one two three |"


def test_the_page_names_everything_a_reader_must_know():
    page = markdown(make_outcome())
    assert page.startswith("# clue · ours\n")
    for part in (
        "Model tiny, method text2text, seeds 1, 2.",
        "Group **classification**: they answer from closed sets. Average 57.50, 1 of 4 qualified.",
        "Shared models: classification for toys/good.",
        "Tasks that keep a model of their own: toys/short, toys/chance, toys/broken.",
        "| classification | 1 | mixture | complete | 1,200 | toys/good | 0.2500 | 1,000 | 2.50 |",
        "References reused from earlier work: 2.",
        "- toys/broken: RuntimeError: no such tokenizer",
        "- toys/good: 300 rows decide",
        "mtcore 0.1.0",
    ):
        assert part in page


def test_a_warning_of_several_lines_stays_one_item():
    page = markdown(make_outcome(warnings=["first\n\n# no heading\n- no item"]))
    assert "- first # no heading - no item\n" in page


def test_tasks_of_which_the_same_is_said_share_a_warning():
    page = markdown(make_outcome(warnings=["toys/good: too few", "group all: skipped", "toys/short: too few", "toys/good: leaks"]))
    assert "- toys/good, toys/short: too few\n- group all: skipped\n- toys/good: leaks\n" in page


def test_a_variant_without_a_name_training_or_warnings_reads_well_too():
    page = markdown(
        make_outcome([make_task("toys/good")], variant="", warnings=[], groups=[GroupOutcome("g", "r", [make_task("toys/good")])])
    )
    assert page.startswith("# clue\n")
    assert "Nothing was trained." in page
    assert "## Warnings\n\nNone." in page


def test_no_number_is_a_dash_and_numbers_are_hundredths():
    assert [percent(v) for v in (None, 0.0, 0.12345, 1.0)] == ["–", "0.00", "12.35", "100.00"]


# --- from answers to the report -------------------------------------------------------------------------------------------------------

SPEC = TaskSpec(
    name="toy",
    output="binary",
    input="single-sentence",
    fields=("text",),
    instruction="Is it?",
    template="{text}\n",
    words={"0": "no", "1": "yes"},
    metric="accuracy",
    licence="none",
    source="made up",
)
GOLD = ("0", "1") * 20


class Raises(Accuracy):
    name = "raises"

    def value(self, spec, prediction, answer):
        raise RuntimeError("no such tokenizer")


class IsNan(Accuracy):
    name = "is-nan"

    def value(self, spec, prediction, answer):
        return float("nan")


def judged(results, *, beside=(), seeds=(1,)):
    """One task, whose reference is right everywhere, under one result a seed."""
    rows = tuple(Example({"text": f"row {i}"}, answer) for i, answer in enumerate(GOLD))
    data = TaskData("toys/a", SPEC, train=rows, validation=rows)
    plugin = Plugin("toys", "toys", "1.0", "loaded")
    task = PreparedTask(data, plugin, Accuracy(), {m.name: m() for m in beside}, DataReport(0, 0, 0, 0, None), ())
    references = {
        ("toys/a", seed): Reference(
            task="toys/a",
            key="key",
            seed=seed,
            score=1.0,
            is_at_chance=False,
            saturation_epoch=6,
            resource="high",
            is_cut_short=False,
            curve=tuple(
                Evaluation(stage="alone", step=epoch, draws=40 * epoch, epoch=epoch, scores={"toys/a": score}, qualified=None, average=0.9)
                for epoch, score in [(1, 0.9), (2, None)]
            ),
            answers=GOLD,
            cost=Cost(steps=3),
            evaluation_cost=Cost(),
            bundle=None,
            recipe={},
            selection_bar=1.0,
        )
        for seed in seeds
    }
    prepared = Prepared(
        name="",
        config=RunConfig(seeds=seeds),
        tasks={"toys/a": task},
        profiles=[TaskProfile(name="toys/a", spec=SPEC, train_rows=40, validation_rows=40)],
        groups=[Group(name="all", reason="they may", tasks=("toys/a",))],
        base=Base("tiny", Path("tiny"), "digest", {}),
        method=FewShot(FewShot.Config()),
        scheduler=MixtureStage(MixtureStage.Config()),
        reference=MethodUse(use="text2text"),
        stages={},
        components={"method": {"use": "defaults/few-shot"}, "scheduler": {"use": "defaults/mixture"}, "filter": {"use": "defaults/none"}},
        warnings=[],
    )
    return judge_variant(
        "run", prepared, references, {("all", seed): r for seed, r in zip(seeds, results, strict=True)}, 0, load_plugins(environment="")
    )


def result(answers=GOLD, failure=""):
    failures = {"toys/a": failure} if failure else {}
    return GroupResult(fingerprint="", fitted=None, answers={} if failure else {"toys/a": answers}, failures=failures)


def test_answers_become_verdicts_floors_and_resources():
    (task,) = judged([result(answers=("1",) * 40)], beside=[MacroF1]).as_json()["groups"][0]["tasks"]
    assert (task["reference"], task["score"], task["ratio"], task["qualified"]) == (1.0, 0.5, 0.5, False)
    assert (task["saturation_epoch"], task["resource"], task["resource_is_assumed"]) == (6, "high", False)
    assert task["floors"]["majority"] == 0.5
    assert task["beside"] == {"macro-f1": pytest.approx(1 / 3)}


@pytest.mark.parametrize(("metric", "reason"), [(Raises, "RuntimeError: no such tokenizer"), (IsNan, "ValueError: metric is-nan gave")])
def test_a_metric_beside_the_deciding_one_that_fails_is_null_with_a_warning_and_the_verdict_stands(metric, reason):
    report = judged([result()], beside=[metric, MacroF1]).as_json()
    (task,) = report["groups"][0]["tasks"]
    assert task["qualified"]
    assert task["beside"] == {metric.name: None, "macro-f1": 1.0}
    assert any(w.startswith(f"toys/a: {metric.name}, reported beside its own metric, failed: {reason}") for w in report["warnings"])
    json.dumps(report, allow_nan=False)


def test_a_task_that_failed_under_one_seed_is_failed():
    outcome = judged([result(), result(failure="ValueError: the answer does not end")], seeds=(1, 2), beside=[MacroF1])
    assert outcome.failures == ["toys/a: ValueError: the answer does not end"]
    assert outcome.tasks[0].verdict is None
    assert outcome.average == 0


def test_the_report_says_where_rows_are_from_and_how_each_task_fared_alone():
    report = judged([result(), result()], seeds=(1, 2)).as_json()
    (task,) = report["groups"][0]["tasks"]
    kept = ("licence", "source", "plugin", "output", "train_rows", "judged_rows", "judged_on")
    assert [task["data"][key] for key in kept] == ["none", "made up", "toys 1.0", "binary", 40, 40, "validation"]
    assert [(r["seed"], r["score"], r["saturation_epoch"]) for r in task["references"]] == [(1, 1.0, 6), (2, 1.0, 6)]
    assert task["references"][0]["curve"] == [{"epoch": 1.0, "score": 0.9}, {"epoch": 2.0, "score": None}]
    assert report["base"] == {"digest": "digest", "revision": None}
    assert report["format"] == FORMAT


def test_a_verdict_on_few_rows_warns_of_its_noise():
    assert "toys/a: 40 rows decide; a bar of 1 % lies inside their noise, read P and the interval" in judged([result()]).warnings
