"""Model cards: what a bundle says of itself, in a form that the Hub reads, and without weakening what its manifest promises."""

import json
import re
from pathlib import Path

import pytest
import yaml

from mtcore.bundle import CARD, MANIFEST, BundledTask, BundleManifest, read_bundle, write_bundle, write_card
from mtcore.errors import ModelError
from mtcore.evaluation.card import leave_cards, licence_of, model_card
from mtcore.modeling.load import hub_revision
from mtcore.types import Base, TaskSpec

HOSTILE = "<script>alert(1)</script> | [link](javascript:x) `code` \\ &lt;\n# heading"


def make_spec(**changes):
    table = {
        "name": "good",
        "output": "binary",
        "input": "single-sentence",
        "fields": ("text",),
        "instruction": "Is it good?",
        "template": "{text}\nAnswer: ",
        "words": {"0": "no", "1": "yes"},
        "metric": "accuracy",
        "licence": "CC0-1.0",
        "source": "made up",
    }
    return TaskSpec(**{**table, **changes})


def make_manifest(tasks=None, **changes):
    tasks = tasks or {name: BundledTask(spec=make_spec()) for name in ("toys/good", "toys/short", "toys/chance", "toys/broken")}
    table = {
        "method": "text2text",
        "options": {"layout": "task-first", "max_length": 64},
        "tasks": tasks,
        "base": "tiny",
        "base_digest": "b" * 64,
        "files": {"model.safetensors": "0" * 64},
    }
    return BundleManifest(**{**table, **changes})


def make_task(name="toys/good", **changes):
    table = {
        "name": name,
        "metric": "accuracy",
        "reference": 0.8,
        "score": 0.82,
        "ratio": 1.025,
        "qualified": True,
        "p_qualified": 0.9,
        "interval": [0.97, 1.05],
        "at_chance": False,
        "floors": {"majority": 0.5, "bag-of-words": None},
        "failure": None,
        "data": {
            "licence": "CC0-1.0",
            "source": "made up",
            "plugin": "toys 1.0",
            "train_rows": 1000,
            "judged_rows": 200,
            "judged_on": "test",
        },
    }
    return {**table, **changes}


FAILED = dict.fromkeys(("reference", "score", "ratio", "p_qualified", "interval", "at_chance")) | {"qualified": False}
TASKS = [
    make_task(),
    make_task("toys/short", score=0.4, ratio=0.5, qualified=False),
    make_task("toys/chance", qualified=False, at_chance=True),
    make_task("toys/broken", failure="ValueError: none", **FAILED),
]
STAGE = {
    "name": "mixture",
    "seed": 1,
    "steps": 1200,
    "learning_rate": 3e-5,
    "examples_per_step": 64,
    "tasks": {"toys/good": {"share": 0.25, "draws": 1000, "passes": 2.5}},
}


def make_report(tasks=TASKS, **changes):
    group = {
        "name": "all",
        "reason": "they answer alike",
        "tasks": tasks,
        "stages": [STAGE, {**STAGE, "seed": 2, "steps": 7}],
        "bundles": [],
    }
    table = {
        "run": "toy",
        "variant": "ours",
        "model": "tiny",
        "base": {"digest": "b" * 64, "revision": None},
        "seeds": [1],
        "groups": [group],
        "warnings": ["toys/good: few rows", "elsewhere/task: not here", "group all: skipped", "group other: not here either"],
        "versions": {"mtcore": "0.1.0", "torch": "2.13.0"},
        "update": None,
    }
    return {**table, **changes}


def card_of(report=None, manifest=None, seed=1):
    report = report or make_report()
    return model_card(report, report["groups"][0], seed, manifest or make_manifest())


def front_matter(card):
    _, matter, rest = card.split("---\n", 2)
    assert rest.startswith("\n# ")
    return yaml.safe_load(matter)


def cells(card, name, heading):
    """The cells of a task's line in the table under a heading."""
    part = card.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (line,) = [line for line in part.splitlines() if f"| {name} |" in line]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


# --- what it says ---------------------------------------------------------------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_reads():
    assert front_matter(card_of()) == {
        "library_name": "transformers",
        "license": "cc0-1.0",
        "pipeline_tag": "text-generation",
        "tags": ["mtcore", "multi-task", "text2text"],
    }


def test_a_base_from_the_hub_is_named_and_its_licence_kept_open():
    report = make_report(model="Qwen/Qwen2-7B", base={"digest": "b" * 64, "revision": "f2826a0"})
    matter = front_matter(card_of(report))
    assert (matter["base_model"], matter["license"]) == ("Qwen/Qwen2-7B", "other")
    assert "Qwen/Qwen2-7B at revision f2826a0, fine-tuned" in card_of(report)


@pytest.mark.parametrize(
    ("folder", "revision"),
    [("hub/models--Qwen--Qwen2-7B/snapshots/f2826a0", "f2826a0"), ("runs/bases/tiny", None), ("mine/snapshots/best", None)],
)
def test_a_base_is_from_the_hub_where_its_files_are_those_of_a_download(folder, revision):
    assert hub_revision(Base("some/name", Path(folder), "digest", {})) == revision


@pytest.mark.parametrize(
    ("licences", "licence"),
    [
        (["CC BY-SA 4.0", "cc-by-sa-4.0"], "cc-by-sa-4.0"),
        (["MIT", "Apache-2.0"], "other"),
        (["none stated"], "other"),
        (["MIT", "none"], "other"),
    ],
)
def test_the_licence_is_that_of_all_data_or_left_open(licences, licence):
    tasks = [make_task(data={**make_task()["data"], "licence": text}) for text in licences]
    assert licence_of(make_report(tasks), tasks) == licence


def test_what_the_model_must_not_be_used_for_stands_at_the_top():
    top = card_of().split("## Tasks")[0]
    assert "tiny, fine-tuned to answer 4 text tasks with one model; 1 of them reaches 99 % of what a model of its own scores." in top
    assert "**Not for toys/short (not yet), toys/chance (at chance), toys/broken (failed).**" in top
    assert "Not for" not in card_of(make_report([make_task()]))


def test_scores_stand_beside_references_and_floors():
    card = card_of()
    assert cells(card, "toys/good", "Scores") == ["toys/good", "go live", "82.00", "80.00", "1.025", "0.970–1.050", "0.90", "50.00", "–"]
    assert cells(card, "toys/broken", "Scores")[1:7] == ["failed", *["–"] * 5]
    assert "on test rows." in card


def test_a_card_tells_how_this_seed_was_trained_on_what_and_with_which_limits():
    report = make_report(seeds=[1, 2])
    report["groups"].append({"name": "other", "tasks": [make_task("elsewhere/task")]})
    card = card_of(report)
    assert cells(card, "toys/good", "Training") == ["mixture", "1,200", "64", "3e-05", "toys/good", "0.2500", "1,000", "2.50"]
    assert "| mixture | 7 |" in card_of(make_report(seeds=[1, 2]), seed=2)
    assert cells(card, "toys/good", "Data") == ["toys/good", "CC0-1.0", "made up", "1,000", "200 test", "toys 1.0"]
    assert "Scores are means over seeds 1, 2." in card
    assert "- few rows (toys/good)\n- group all: skipped\n" in card
    assert "not here" not in card
    assert "mtcore 0.1.0, torch 2.13.0" in card


@pytest.mark.parametrize(
    ("changes", "answers"),
    [
        (
            {"words": {str(n): f"w{n}" for n in range(9)}, "output": "multi-class"},
            "multi-class: 0: w0, 1: w1, 2: w2, 3: w3, 4: w4, 5: w5 and 3 more",
        ),
        ({"words": {}, "output": "generation", "metric": "exact-match"}, "generation"),
        (
            {"words": {}, "output": "regression", "number_range": {"low": 0.0, "high": 2.0, "step": 0.5}, "metric": "pearson"},
            "regression: 0 to 2 by 0.5",
        ),
    ],
)
def test_a_card_says_what_a_task_answers(changes, answers):
    card = card_of(make_report([make_task()]), make_manifest({"toys/good": BundledTask(spec=make_spec(**changes))}))
    assert cells(card, "toys/good", "Tasks")[1:4] == ["Is it good?", "text", answers]


def test_a_bundle_without_weights_offers_no_code_that_loads_them():
    card = card_of(manifest=make_manifest(method="few-shot", files={}))
    assert front_matter(card)["library_name"] == "mtcore"
    assert "untrained, and asked by the method few-shot" in card
    assert "AutoModelForCausalLM" not in card
    assert "mtcore predict . --task toys/good" in card


def test_a_task_whose_prompt_is_written_by_code_offers_no_prompt():
    assert "AutoModelForCausalLM" not in card_of(
        make_report([make_task()]), make_manifest({"toys/good": BundledTask(spec=make_spec(), code="toys 1.0")})
    )


def test_an_updated_bundle_names_the_one_it_goes_on_from():
    assert "going on from the bundle with digest `cccccccccccc`" in card_of(make_report(update={"digest": "c" * 64}))


def test_text_of_plugins_is_neither_markup_nor_the_end_of_a_cell():
    data = {**make_task()["data"], "licence": HOSTILE, "source": HOSTILE}
    report = make_report([make_task(data=data)], run=HOSTILE, model=HOSTILE, warnings=[f"toys/good: {HOSTILE}"], versions={"x": HOSTILE})
    spec = make_spec(instruction=f"```\n{HOSTILE}", fields=("it's",), template="{it's}")
    card = card_of(report, make_manifest({"toys/good": BundledTask(spec=spec)}))
    text = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", card, flags=re.M | re.S)  # what stands in blocks of code is shown as it is
    assert text.count("\\<script>alert(1)\\</script> \\| \\[link](javascript:x) \\`code\\` \\\\ \\&lt; # heading") == 8
    assert not re.search(r"(?<!\\)[<\[]|\n# heading", text)
    assert len(re.findall("^````python", card, re.M)) == len(re.findall("^````$", card, re.M)) == 1
    assert front_matter(card)["license"] == "other"


# --- and where it stands ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle", make_manifest(files={}), lambda folder: (folder / "model.safetensors").write_bytes(b"weights"))


def test_a_card_is_a_file_that_the_manifest_knows(bundle):
    before = read_bundle(bundle)
    write_card(bundle, "# 卡片\n")
    after = read_bundle(bundle)
    assert (bundle / CARD).read_text(encoding="utf-8") == "# 卡片\n"
    assert set(after.files) == {"model.safetensors", CARD}
    assert after.model_copy(update={"files": before.files}) == before


def test_a_card_that_was_changed_by_hand_is_noticed_and_can_be_written_anew(bundle):
    write_card(bundle, "card")
    (bundle / CARD).write_text("another")
    with pytest.raises(ModelError, match=r"README.md missing or changed"):
        read_bundle(bundle)
    write_card(bundle, "card")
    assert read_bundle(bundle).files


def test_a_card_does_not_make_changed_weights_good(bundle):
    (bundle / "model.safetensors").write_bytes(b"others")
    write_card(bundle, "card")
    with pytest.raises(ModelError, match=r"model.safetensors missing or changed"):
        read_bundle(bundle)


def test_the_same_card_touches_nothing(bundle):
    write_card(bundle, "card")
    before = {path: path.stat().st_ino for path in bundle.iterdir()}
    write_card(bundle, "card")
    assert {path: path.stat().st_ino for path in bundle.iterdir()} == before


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_crash_while_a_card_is_written_leaves_a_bundle_that_loads(bundle, is_first, steps):
    """A folder in the place of the file that comes next stops the writing just there."""
    if not is_first:
        write_card(bundle, "an earlier card")
    manifest = (bundle / MANIFEST).read_text()
    if steps == 1:
        (bundle / CARD).unlink(missing_ok=True)
        (bundle / CARD).mkdir()
        with pytest.raises(OSError, match="README"):
            write_card(bundle, "card")
        assert CARD not in read_bundle(bundle).files
        (bundle / CARD).rmdir()
    else:
        (bundle / CARD).write_text("card")  # and no more
        if not is_first:
            files = json.loads(manifest)["files"]
            assert files.pop(CARD)
            (bundle / MANIFEST).write_text(json.dumps(json.loads(manifest) | {"files": files}))
        assert CARD not in read_bundle(bundle).files
    write_card(bundle, "card")
    assert CARD in read_bundle(bundle).files


def test_every_bundle_of_a_variant_that_is_still_there_gets_a_card(bundle, tmp_path):
    report = make_report()
    report["groups"][0]["bundles"] = [{"seed": 1, "folder": str(bundle)}, {"seed": 2, "folder": str(tmp_path / "gone")}]
    leave_cards(report)
    assert (bundle / CARD).read_text(encoding="utf-8") == model_card(report, report["groups"][0], 1, read_bundle(bundle))
    assert not (tmp_path / "gone").exists()
