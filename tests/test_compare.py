"""Two runs side by side: differences with intervals, what is lost, and the exit code that a release hangs on."""

import json

import numpy as np
import pytest

from mtcore.errors import RunError
from mtcore.evaluation.comparison import Judgement, compare
from mtcore.evaluation.metrics import Accuracy
from mtcore.evaluation.qualify import difference_interval, judge, resampled_counts
from mtcore.evaluation.tables import change_table, sides_table
from mtcore.runfolder import judgement

ROWS = 400
CHANCE = np.arange(ROWS) % 4 == 0
"""Which rows the majority answer gets right."""


def right(share, *, seed):
    """Which rows are answered rightly, in random places."""
    return np.random.default_rng(seed).permutation(ROWS) < share * ROWS


def statistics(answers):
    return np.stack([np.asarray(answers, np.float64), np.ones(ROWS)], axis=1)


OWN = right(0.8, seed=1)


def task(name, answers, *, own=OWN, rows="rows", metric="accuracy", failure=""):
    """A task's part of a report, and its samples."""
    v = judge(Accuracy(), [statistics(own)], [statistics(answers)], statistics(CHANCE), name=name)
    told = {"score": v.score, "reference": v.reference, "qualified": v.is_qualified, "at_chance": v.is_at_chance, "failure": None}
    if failure:
        told = {"score": None, "reference": None, "qualified": False, "at_chance": None, "failure": failure}
    return {"name": name, "metric": metric, "data": {"judged_digest": rows, "metric_version": 1}, **told}, list(v.resampled)


def run(name, *tasks):
    reports = [report for report, _ in tasks]
    cost = {"steps": 10, "tokens": 100, "flops": 1e9, "seconds": 2.0}
    report = {
        "run": name,
        "variant": "ours",
        "groups": [{"name": "all", "tasks": reports}],
        "average": float(np.mean([t["score"] or 0.0 for t in reports])),
        "qualified": sum(t["qualified"] for t in reports),
        "overhead": 0.5,
        "deployment": {"overhead": 0.75},
        "cost": {"total shared": cost},
    }
    return Judgement(name, report, {t["name"]: samples for t, samples in tasks if not t["failure"]})


def only_change(old, new):
    (change,) = compare(run("old", old), run("new", new)).changes
    return change


# --- differences ----------------------------------------------------------------------------------------------------------------------


def test_the_same_answers_differ_by_nothing_and_surely_so():
    change = only_change(task("a", OWN), task("a", OWN))
    assert (change.difference, change.interval, change.notes) == (0.0, (0.0, 0.0), [])


def test_on_the_same_rows_the_interval_is_the_paired_one():
    old, new = right(0.7, seed=2), right(0.78, seed=3)
    change = only_change(task("a", old), task("a", new))
    from mtcore.data.permutation import key

    paired = resampled_counts(ROWS, key("bootstrap", "a")) @ (new.astype(float) - old.astype(float)) / ROWS
    assert change.difference == pytest.approx(0.08)
    assert change.interval == pytest.approx((np.quantile(paired, 0.025), np.quantile(paired, 0.975)))


def test_on_other_rows_the_interval_is_as_wide_as_that_of_two_samples_and_said_not_to_be_paired():
    change = only_change(task("a", OWN), task("a", OWN, rows="others"))
    wide = 2 * 1.96 * np.sqrt(2 * 0.8 * 0.2 / ROWS)
    assert change.interval[1] - change.interval[0] == pytest.approx(wide, rel=0.1)
    assert change.notes == ["other rows decide now, so the interval is not a paired one"]


def test_samples_on_which_a_metric_is_no_number_do_not_speak():
    old, new = np.array([0.5, np.nan, 0.5, 0.5]), np.array([0.75, 0.75, np.nan, 0.75])
    assert difference_interval(old, new, is_paired=True) == (0.25, 0.25)
    assert difference_interval(np.full(4, np.nan), new, is_paired=True) is None


def test_scores_of_different_metrics_are_not_compared():
    change = only_change(task("a", OWN), task("a", OWN, metric="macro-f1"))
    assert (change.difference, change.interval) == (None, None)
    assert "cannot be compared" in change.notes[0]


def test_a_run_that_kept_no_samples_is_compared_without_an_interval_and_says_which():
    old = run("old", task("a", right(0.7, seed=2)))
    (change,) = compare(Judgement("old", old.report, {}), run("new", task("a", OWN))).changes
    assert change.difference == pytest.approx(0.1)
    assert change.interval is None
    assert change.notes[0].startswith("no interval: old kept no samples")


def test_a_moved_reference_is_told():
    change = only_change(task("a", OWN), task("a", OWN, own=right(0.9, seed=4)))
    assert change.is_lost
    assert change.notes == ["its own model scored 80.00, and now 90.00"]


# --- what is lost ---------------------------------------------------------------------------------------------------------------------

BAD = right(0.6, seed=5)
GATE = [
    ("still qualified", task("a", OWN), task("a", OWN), False),
    ("no longer qualified", task("a", OWN), task("a", BAD), True),
    ("failed", task("a", OWN), task("a", OWN, failure="RuntimeError: no"), True),
    ("at chance", task("a", OWN), task("a", OWN, own=CHANCE), True),
    ("never qualified", task("a", BAD), task("a", CHANCE), False),
    ("newly qualified", task("a", BAD), task("a", OWN), False),
]


@pytest.mark.parametrize(("old", "new", "is_lost"), [case[1:] for case in GATE], ids=[case[0] for case in GATE])
def test_a_task_is_lost_where_it_was_qualified_and_is_not_any_more(old, new, is_lost):
    assert only_change(old, new).is_lost == is_lost


def test_a_missing_task_is_lost_if_it_was_qualified_and_a_new_one_never_is():
    comparison = compare(run("old", task("a", OWN), task("b", BAD), task("c", OWN)), run("new", task("c", OWN), task("d", BAD)))
    assert comparison.lost == ["a"]
    assert [(c.name, c.notes) for c in comparison.changes if c.difference is None] == [
        ("a", ["only in old"]),
        ("b", ["only in old"]),
        ("d", ["only in new"]),
    ]


def test_averages_are_also_given_over_the_tasks_that_both_have():
    table = compare(run("old", task("a", OWN)), run("new", task("a", BAD), task("b", OWN))).as_json()
    assert (table["old"]["average"], table["new"]["average"]) == (0.8, pytest.approx(0.7))
    assert (table["old"]["average_of_shared"], table["new"]["average_of_shared"]) == (0.8, 0.6)


def test_a_score_falls_only_where_its_whole_interval_lies_below_the_limit():
    slightly = OWN.copy()
    slightly[np.flatnonzero(OWN)[:6]] = False
    comparison = compare(run("old", task("a", OWN), task("b", OWN)), run("new", task("a", BAD), task("b", slightly)))
    assert comparison.changes[1].difference == pytest.approx(-0.015)
    assert (comparison.fallen(0.01), comparison.fallen(0.5), comparison.fallen(None)) == (["a"], [], [])


def test_the_tables_show_both_sides_and_mark_what_is_lost():
    table = compare(run("old", task("a", OWN), task("b", OWN)), run("new", task("a", BAD), task("c", BAD))).as_json()
    header, a, b, c = change_table(table)
    cells = dict(zip(header, a, strict=True))
    assert (cells["old"], cells["new"], cells["difference"], cells["was qualified"], cells["is qualified"]) == (
        "80.00",
        "60.00",
        "-20.00",
        "yes",
        "no",
    )
    assert cells["notes"] == "lost"
    assert b == ["b", "80.00", "–", "–", "–", "yes", "–", "lost; only in old"]
    assert c[:4] == ["c", "–", "60.00", "–"]
    assert [line[3] for line in sides_table(table)] == ["qualified", "2 of 2", "0 of 2"]


# --- run folders and the command ------------------------------------------------------------------------------------------------------


def left(folder, *judged):
    """A run folder as a run leaves it, with one report a variant."""
    for name, side in judged:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "report.json").write_text(json.dumps({**side.report, "variant": name}))
        (place / "verdict.json").write_text(json.dumps(side.resampled))
    (folder / "resolved.json").write_text(json.dumps({"variants": {name: {} for name, _ in judged}}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs in the folder `runs`, and a single variant's folder."""
    folder = tmp_path_factory.mktemp("compare")
    good, bad = run("good", task("a", OWN)), run("bad", task("a", BAD))
    left(folder / "runs/good", ("", good))
    left(folder / "runs/bad", ("", bad))
    left(folder / "runs/both", ("ours", good), ("theirs", bad))
    return folder


def test_a_variant_is_found_in_its_run_and_by_its_own_folder(place):
    runs = place / "runs"
    assert judgement(runs / "good").name == str(runs / "good")
    assert judgement(runs / "both", "theirs").report["average"] == 0.6
    assert judgement(runs / "both/theirs").tasks == judgement(runs / "both", "theirs").tasks
    assert len(judgement(runs / "good").resampled["a"]) == 2000


@pytest.mark.parametrize(
    ("folder", "variant", "said"),
    [
        ("both", None, r"holds reports of ours, theirs; choose with --variant"),
        ("both", "other", r"holds reports of ours, theirs and none of variant 'other'"),
        ("", None, r"holds no report\. Reports below it: .*bad, .*both/ours"),
    ],
)
def test_a_folder_without_just_one_report_is_told(place, folder, variant, said):
    with pytest.raises(RunError, match=said):
        judgement(place / "runs" / folder, variant)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["good", "good"], 0),
        (["runs/bad", "runs/good"], 0),
        (["good", "bad"], 1),
        (["runs/both/ours", "runs/both/theirs"], 1),
        (["bad", "both/theirs", "--max-drop", "0.01"], 0),
        (["good", "nothing"], 2),
        (["good", "both"], 2),
        (["good"], 2),
    ],
)
def test_the_exit_code_is_a_release_gate(place, arguments, code, forks):
    done = forks.mtcore(place, "compare", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("lost: a was qualified with 80.00" in done.stderr) == (code == 1)


def test_json_says_what_the_table_says(place, forks):
    done = forks.mtcore(place, "compare", "good", "bad", "--json", "--max-drop", "0.01")
    table = json.loads(done.stdout)
    assert done.returncode == 1
    assert (table["lost"], table["fallen"]) == (["a"], ["a"])
    assert table["tasks"][0]["difference"] == pytest.approx(-0.2)
    assert table["tasks"][0]["interval"][1] < 0
