"""Each check of the conformance kit finds its own fault and no other; what keeps its promises passes; what cannot be tried is skipped."""

import importlib
import itertools
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args
from unittest import SkipTest

import pytest
from pydantic import ConfigDict

from mtcore import events
from mtcore.contracts import Observer, Options, Sampler, StageScheduler, TaskAdapter, TaskFilter
from mtcore.defaults import FewShot, Text2Text
from mtcore.defaults.schedulers import TwoStage
from mtcore.errors import ConfigError, UnknownName
from mtcore.plugins import load_plugins
from mtcore.testing import (
    Check,
    Outcome,
    filter_checks,
    launcher_checks,
    method_checks,
    observer_checks,
    sampler_checks,
    scheduler_checks,
    task_checks,
    toy_base,
    toy_data,
    toy_profiles,
)
from mtcore.testing.observers import EVENTS
from mtcore.testing.scenes import SCENES
from mtcore.testing.toys import OUTPUTS, toy_tokenizer
from mtcore.types import Base, Group, Ledger, Mixture, OutputKind, SamplerUse, Stage, TaskSpec

ROOT = Path(__file__).parent.parent

TASK = '''"""A toy task."""

import itertools
import multiprocessing

import numpy as np

from mtcore.contracts import Metric, TaskAdapter
from mtcore.data.sources import task_rows
from mtcore.types import Piece, TaskSpec

COUNT = itertools.count()


class Own(Metric):
    """Share of equal texts, written out so that a test can break it."""

    name = "own"

    def statistics(self, spec, predictions, answers):
        return np.array([[float(p == a), 1.0] for p, a in zip(predictions, answers)])

    def score(self, totals):
        return totals[..., 0] / totals[..., 1]


class Toy(TaskAdapter):
    spec = TaskSpec(
        name="toy",
        output="multi-class",
        input="single-sentence",
        fields=("text",),
        instruction="Which?",
        template="{text}\\nAnswer: ",
        words={"0": "food", "1": "room", "2": "staff"},
        metric="own",
        licence="CC0-1.0",
        source="made up",
    )
    metrics = {"own": Own}

    def rows(self, split):
        labels = ["0", "1", "2"]
        return [{"text": f"{split} row {n}", "label": labels[n % len(labels)]} for n in range({"train": 30}.get(split, 12))]

    def fields(self, row):
        return {"text": row["text"]}

    def answer(self, row):
        return row["label"]
'''

WRITER = TASK.replace('output="multi-class"', 'output="generation", max_answer_tokens=8').replace(
    '        words={"0": "food", "1": "room", "2": "staff"},\n', ""
)
WRITER = WRITER.replace('return row["label"]', 'return ("word " + row["label"],)')

Edit = Callable[[str], str]


def swap(old: str, new: str) -> Edit:
    def edit(source: str) -> str:
        assert old in source
        return source.replace(old, new)

    return edit


def rendered(body: str) -> Edit:
    return lambda source: f"{source}\n    def render(self, fields, layout):\n        return ({body},)\n"


MODULE_NUMBERS = itertools.count()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], type[TaskAdapter]]]:
    """Imports a source as a module of its own, so that other processes can import it too, and returns its task."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def load(source: str) -> type[TaskAdapter]:
        names.append(f"toy_task_{next(MODULE_NUMBERS)}")
        (tmp_path / f"{names[-1]}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        return importlib.import_module(names[-1]).Toy

    yield load
    for name in names:
        del sys.modules[name]


Outcomes = Mapping[str, Outcome]


def tried(checks: Sequence[Check]) -> Outcomes:
    """What becomes of every check; each says what it found, and a failed one how to mend it."""
    outcomes = {check.name: check.outcome() for check in checks}
    assert all(o.found for o in outcomes.values())
    assert all(bool(o.fix) == (o.status == "failed") for o in outcomes.values())
    return outcomes


def of_status(status: str, outcomes: Outcomes) -> dict[str, str]:
    return {name: o.found for name, o in outcomes.items() if o.status == status}


def failed(checks: Sequence[Check]) -> dict[str, str]:
    return of_status("failed", tried(checks))


def skipped(checks: Sequence[Check]) -> dict[str, str]:
    return of_status("skipped", tried(checks))


# --- tasks ------------------------------------------------------------------------------------------------------------------------------


def test_a_sound_task_passes_every_check(load: Any) -> None:
    assert {o.status for o in tried(task_checks(load(TASK))).values()} == {"passed"}


@pytest.mark.parametrize("output", OUTPUTS)
def test_toys_of_every_output_kind_are_sound(output: OutputKind) -> None:
    data = toy_data(output)

    class Toy(TaskAdapter):
        spec = data.spec

        def rows(self, split: str) -> Any:
            return {"train": data.train, "validation": data.validation}.get(split, ())

        def fields(self, row: Any) -> Any:
            return row.fields

        def answer(self, row: Any) -> Any:
            return row.answer

    assert failed(task_checks(Toy, module=None)) == {}


WITHOUT_A_PROCESS = {
    "a spec that JSON does not bring back": (
        "spec-is-data",
        swap('source="made up",\n    )', 'source="made up",\n    ).model_copy(update={"separator": 3})'),
        "valid string",
    ),
    "a metric that nobody has": ("metrics-exist", swap('source="made up"', 'source="made up", beside=("ows",)'), "did you mean 'own'"),
    "a licence left for later": ("licence-and-source", swap('"CC0-1.0"', '"TODO: ask legal"'), "licence is 'TODO"),
    "a source that is not known": ("licence-and-source", swap('"made up"', '" Unknown. "'), "source is"),
    "a prompt without the text": ("prompt-is-whole", rendered('Piece("as ever")'), "leaves out text"),
    "a prompt that counts": ("prompt-is-whole", rendered('Piece(fields["text"], True), Piece(str(next(COUNT)))'), ""),
    "a text that is structure": ("odd-texts", rendered('Piece(fields["text"])'), "control tokens in field 'text'"),
    "a text that is formatted": ("odd-texts", rendered('Piece(fields["text"].format(), True)'), "braces in field 'text': KeyError"),
    "words that differ in case": ("words-distinguishable", swap('"room"', '"Food"'), "'food' and 'Food'"),
    "a label that is not declared": (
        "rows-well-formed",
        swap('labels = ["0", "1", "2"]', 'labels = ["0", "1", "2", "9"]'),
        "'9' is not among",
    ),
    "no validation rows": ("rows-well-formed", swap('{"train": 30}.get(split, 12)', '{"train": 30}.get(split, 0)'), "no validation rows"),
    "rows() that raises": ("rows-well-formed", swap('labels = ["0", "1", "2"]', "labels = 1 / 0"), "ZeroDivisionError"),
    "validation rows in other case": (
        "splits-disjoint",
        swap('f"{split} row {n}"', 'f"{split} row {n}" if split != "validation" else f"Train, ROW {n}"'),
        "12 of 24 validation and test rows are train rows too, 0 of them sign by sign",
    ),
    "test rows among validation rows": (
        "splits-disjoint",
        swap('f"{split} row {n}"', "f\"{split if split == 'train' else 0} row {n}\""),
        "12 of 12 test rows are validation rows too",
    ),
    "a word without rows": ("labels-used", swap('"staff"}', '"staff", "3": "noise"}'), "answered with '3'"),
    "a label for validation alone": (
        "labels-in-train",
        swap('labels = ["0", "1", "2"]', 'labels = ["0", "1", "2"] if split != "train" else ["0", "1"]'),
        "never show '2'",
    ),
    "a metric upside down": ("metric-on-gold", swap("float(p == a)", "float(p != a)"), "0.0000 on right answers and"),
    "a metric that sees nothing": ("metric-on-gold", swap("float(p == a)", "1.0"), "alike"),
    "statistics of a row that know the others": (
        "metric-adds-up",
        swap("float(p == a), 1.0]", "float(p == a), 1.0 / len(answers)]"),
        "depend",
    ),
    "a score of one sum at a time": (
        "metric-adds-up",
        swap("totals[..., 0] / totals[..., 1]", "totals.ravel()[0] / totals.ravel()[1]"),
        "one by one",
    ),
    "a metric without a number": (
        "every-answer-scored",
        swap("float(p == a)", "1e999 if len(set(predictions)) == 1 else float(p == a)"),
        "inf",
    ),
    "rows that know how often they were read": (
        "rows-repeat",
        swap('f"{split} row {n}"', 'f"{split} row {n} {next(COUNT)}"'),
        "second reading",
    ),
}


@pytest.mark.parametrize(("name", "edit", "found"), WITHOUT_A_PROCESS.values(), ids=WITHOUT_A_PROCESS.keys())
def test_a_fault_of_a_task_is_found_by_its_check_alone(load: Any, name: str, edit: Edit, found: str) -> None:
    wrong = failed(task_checks(load(edit(TASK)), module=None))
    assert list(wrong) == [name]
    assert found in wrong[name]


def test_words_of_which_one_begins_another_are_found_where_several_are_given(load: Any) -> None:
    source = swap('"multi-class"', '"multi-label", none_word="none"')(TASK)
    source = swap('row["label"]', '(row["label"],)')(swap('"room"', '"food and drink"')(source))
    wrong = failed(task_checks(load(source), module=None))
    assert list(wrong) == ["words-distinguishable"]
    assert "answer word 'food' begins 'food and drink'" in wrong["words-distinguishable"]


def test_an_answer_that_does_not_come_back_is_found(load: Any) -> None:
    wrong = failed(task_checks(load(swap('("word " + row["label"],)', '("word " + row["label"] + " ",)')(WRITER)), module=None))
    assert list(wrong) == ["answers-round-trip"]
    assert "('word 0 ',) is read as ('word 0',)" in wrong["answers-round-trip"]


def test_a_metric_that_does_not_take_every_text_is_found(load: Any) -> None:
    wrong = failed(task_checks(load(swap("float(p == a)", "float(p == a and p[0].split()[0] == 'word')")(WRITER)), module=None))
    assert wrong == {}, "an unequal text is not looked at"
    wrong = failed(task_checks(load(swap("float(p == a)", "float(p[0].split()[0] == 'word' and p == a)")(WRITER)), module=None))
    assert list(wrong) == ["every-answer-scored"]
    assert "own raises IndexError" in wrong["every-answer-scored"]


def test_an_answer_that_is_too_long_is_found_with_a_models_tokenizer(load: Any, tmp_path: Path) -> None:
    toy_tokenizer(tmp_path)
    base = Base("toy", tmp_path, "", {"eos_token_id": 0, "max_position_embeddings": 4096})
    cls = load(swap("max_answer_tokens=8", "max_answer_tokens=5")(WRITER))
    assert failed(task_checks(cls, base=base, module=None)) == {
        "answers-fit": "the longest answer takes 6 tokens, and max_answer_tokens is 5"
    }
    assert "--model" in skipped(task_checks(cls, module=None))["answers-fit"]
    assert failed(task_checks(load(WRITER), base=base, module=None)) == {}


def test_where_every_row_has_one_answer_no_metric_is_said_to_tell_right_from_wrong(load: Any) -> None:
    cls = load(swap("labels[n % len(labels)]", 'labels[n % len(labels) if split == "train" else 0]')(TASK))
    assert list(skipped(without_imports(task_checks(cls)))) == ["metric-on-gold"]


def test_a_fault_that_mtcore_tells_is_told_in_its_own_words(load: Any) -> None:
    source = swap("        labels =", '        raise DataError("rows.csv: there is no column")\n        labels =')(TASK)
    source = swap("from mtcore.types", "from mtcore.errors import DataError\nfrom mtcore.types")(source)
    assert failed(without_imports(task_checks(load(source)))) == {"rows-well-formed": "rows.csv: there is no column"}


def without_imports(checks: Sequence[Check]) -> list[Check]:
    """All but the checks that measure imports in other processes."""
    return [check for check in checks if not check.name.startswith("import-")]


def imports(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.name.startswith("import-")]


def test_an_order_that_comes_from_hashes_is_found(load: Any) -> None:
    source = swap("        return [{", "        rows = [{")(TASK)
    source = swap(".get(split, 12))]", ".get(split, 12))]\n        return rows[:6] + sorted(rows[6:], key=lambda row: hash(row['text']))")(
        source
    )
    assert list(failed(without_imports(task_checks(load(source))))) == ["rows-elsewhere"]


def test_rows_that_only_this_process_knows_are_found(load: Any) -> None:
    source = swap('f"{split} row {n}"', 'f"{split} row {n} {multiprocessing.current_process().name}"')(TASK)
    assert list(failed(without_imports(task_checks(load(source))))) == ["picklable"]


def test_a_class_that_no_other_process_can_find_is_found(load: Any) -> None:
    wrong = failed(without_imports(task_checks(load(f"{TASK}\n\nToy.__qualname__ = 'Gone'\n"))))
    assert list(wrong) == ["rows-elsewhere", "picklable"]
    assert "has no attribute 'Gone'" in wrong["rows-elsewhere"]


def test_a_heavy_import_is_found(load: Any) -> None:
    wrong = failed(imports(task_checks(load(f"{TASK}\n\nimport datasets\n"))))
    assert set(wrong) <= {"import-light", "import-fast"}  # on a slow machine it is both
    assert "loads datasets" in wrong["import-light"]


def test_the_module_that_registers_a_task_is_the_one_that_is_measured(load: Any, tmp_path: Path) -> None:
    (tmp_path / "toy_entry.py").write_text("import datasets\n")
    cls = load(TASK)
    wrong = failed(imports(task_checks(cls, module="toy_entry")))
    assert f"importing toy_entry and {cls.__module__} loads datasets" in wrong["import-light"]


def test_a_module_that_is_imported_only_when_tasks_are_registered_is_measured_too(load: Any, tmp_path: Path) -> None:
    (tmp_path / "toy_entry.py").write_text("")
    wrong = failed(imports(task_checks(load(f"{TASK}\n\nimport datasets\n"), module="toy_entry")))
    assert "loads datasets" in wrong["import-light"]


def test_a_slow_import_is_found(load: Any) -> None:
    wrong = failed(imports(task_checks(load(f"{TASK}\n\nimport time\ntime.sleep(1.01)\n"))))
    assert list(wrong) == ["import-fast"]


NEEDS_ROWS = {
    "rows-well-formed",
    "splits-disjoint",
    "labels-used",
    "labels-in-train",
    "answers-round-trip",
    "every-answer-scored",
    "metric-on-gold",
    "metric-adds-up",
    "rows-repeat",
    "rows-elsewhere",
    "picklable",
}
ABSENT = swap("        labels =", '        return task_rows(self.data, "toys/toy", split)\n        labels =')(TASK)


def test_without_data_the_checks_of_rows_are_skipped_with_the_reason(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MTCORE_DATA", raising=False)
    for folder in (None, tmp_path / "nowhere"):
        outcomes = tried(without_imports(task_checks(load(ABSENT), data=folder)))
        assert of_status("failed", outcomes) == {}
        assert set(of_status("skipped", outcomes)) == NEEDS_ROWS
        assert "toys/toy: no train rows" in outcomes["rows-well-formed"].found


def test_in_a_data_folder_that_is_there_missing_rows_are_a_fault(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTCORE_DATA", str(tmp_path))
    outcomes = tried(without_imports(task_checks(load(ABSENT))))
    assert list(of_status("failed", outcomes)) == ["rows-well-formed"]
    assert set(of_status("skipped", outcomes)) == NEEDS_ROWS - {"rows-well-formed"}


def test_what_stands_in_no_module_is_not_imported(load: Any) -> None:
    told = skipped(task_checks(load(TASK), module=None))
    assert set(told) == {"rows-elsewhere", "picklable", "import-light", "import-fast"}
    assert set(told.values()) == {"it is declared in a file and stands in no module"}


# --- what becomes of a check ------------------------------------------------------------------------------------------------------------


def one(cls: type[TaskAdapter], name: str, **arguments: Any) -> Check:
    (check,) = [c for c in task_checks(cls, module=None, **arguments) if c.name == name]
    return check


def test_a_failed_check_raises_its_claim_what_was_found_and_the_fix(load: Any) -> None:
    check = one(load(swap('"CC0-1.0"', '"?"')(TASK)), "licence-and-source")
    assert str(check) == "toy:licence-and-source"
    with pytest.raises(AssertionError) as told:
        check()
    assert re.fullmatch(
        r"toy:licence-and-source: The licence .* are stated\.\n  found: licence is '\?'\n  fix: say under which .*", str(told.value)
    )


def test_a_skipped_check_skips_the_test(load: Any) -> None:
    with pytest.raises(SkipTest, match="stands in no module"):
        one(load(TASK), "import-light")()
    one(load(TASK), "licence-and-source")()


def test_an_expected_failure_skips_the_test_with_its_reason(load: Any) -> None:
    expected = {"licence-and-source": "legal answers in May"}
    check = one(load(swap('"CC0-1.0"', '"?"')(TASK)), "licence-and-source", expected_failures=expected)
    assert check.outcome().status == "expected"
    with pytest.raises(SkipTest, match=r"licence is '\?' \(expected: legal answers in May\)"):
        check()


def test_an_expected_failure_that_passes_is_a_failure(load: Any) -> None:
    check = one(load(TASK), "licence-and-source", expected_failures={"licence-and-source": "legal answers in May"})
    with pytest.raises(AssertionError, match="was expected to fail: legal answers in May"):
        check()


def test_a_failure_can_only_be_expected_of_a_check_that_there_is(load: Any) -> None:
    with pytest.raises(UnknownName, match=r"no check of toy is called 'splits-disjont'; did you mean 'splits-disjoint'"):
        task_checks(load(TASK), expected_failures={"splits-disjont": "so be it"})


# --- samplers ---------------------------------------------------------------------------------------------------------------------------


class Even(Sampler):
    """A sound sampler, for others to spoil."""

    name = "even"

    def epoch_draws(self, profiles):
        return sum(p.train_rows for p in profiles)

    def mix(self, profiles, draws, ledger):
        return self.even(profiles)

    def even(self, profiles, **changes):
        return Mixture(shares={p.name: 1 / len(profiles) for p in profiles}, **changes)


class Forgets(Even):
    def mix(self, profiles, draws, ledger):
        return self.even([p for p in profiles if p.name != "toys/0"] or profiles)


class Invents(Even):
    def mix(self, profiles, draws, ledger):
        return Mixture(shares={**self.even(profiles).shares, "toys/other": 0.0})


class Overflows(Even):
    def mix(self, profiles, draws, ledger):
        return Mixture(shares={p.name: 0.5 for p in profiles})


class Negative(Even):
    def mix(self, profiles, draws, ledger):
        shares = self.even(profiles).shares
        return Mixture(shares={**shares, "toys/0": -1.0, "toys/1": 1 + 2 / len(profiles)}) if len(profiles) > 2 else Mixture(shares=shares)


class NeedsTwo(Even):
    def mix(self, profiles, draws, ledger):
        profiles[1]
        return self.even(profiles)


class WeighsNothing(Even):
    def mix(self, profiles, draws, ledger):
        return self.even(profiles, loss_weights={"toys/0": 0.0})


class Lengthens(Even):
    def mix(self, profiles, draws, ledger):
        return self.even(profiles, draws=100)


class HalfDraws(Even):
    def epoch_draws(self, profiles):
        return sum(p.train_rows for p in profiles) / 2


class Chance(Even):
    def __init__(self, config):
        super().__init__(config)
        self.draws = random.SystemRandom().randrange(1, 1 << 60)

    def epoch_draws(self, profiles):
        return self.draws


class Remembers(Even):
    most = 0

    def mix(self, profiles, draws, ledger):
        self.most = max(self.most, len(profiles))
        return self.even(profiles, note=str(self.most))


class FirstComes(Even):
    def mix(self, profiles, draws, ledger):
        rest = 0.5 / max(1, len(profiles) - 1)
        return Mixture(shares={p.name: 1.0 if len(profiles) == 1 else rest if n else 0.5 for n, p in enumerate(profiles)})


class Peeks(Even):
    def mix(self, profiles, draws, ledger):
        return self.even(profiles, note=str(len(ledger.entries)))


class Loose(Even):
    class Config(Options):
        model_config = ConfigDict(extra="allow", frozen=False, strict=False)


class Unpicklable(Even):
    def __init__(self, config):
        super().__init__(config)
        self.helper = lambda: None


SAMPLER_FAULTS = [
    (Forgets, "shares-name-the-tasks"),
    (Invents, "shares-name-the-tasks"),
    (Overflows, "shares-sum-to-one"),
    (Negative, "shares-sum-to-one"),
    (NeedsTwo, "any-number-of-tasks"),
    (WeighsNothing, "loss-weights-fit"),
    (Lengthens, "draws-within-budget"),
    (HalfDraws, "epoch-draws-positive"),
    (Chance, "deterministic"),
    (Remembers, "pure"),
    (FirstComes, "order-independent"),
    (Peeks, "ledger-as-declared"),
    (Loose, "options-strict"),
    (Unpicklable, "picklable"),
]


@pytest.mark.parametrize(("cls", "name"), SAMPLER_FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault_of_a_sampler_is_found_by_its_check_alone(cls: type[Sampler], name: str) -> None:
    assert list(failed(sampler_checks(cls, module=None))) == [name]


def test_a_sampler_may_look_at_what_it_declares() -> None:
    class Dynamic(Peeks):
        needs = frozenset({"scores"})

    assert "ledger-as-declared" not in failed(sampler_checks(Dynamic, module=None))
    assert skipped(sampler_checks(Even, module=None))["any-ledger"] == "it needs nothing of the ledger"


class ByLoss(Even):
    """A sound sampler that decides on the way, for others to spoil."""

    needs = frozenset({"train-loss"})

    def mix(self, profiles, draws, ledger):
        losses = {n: loss for e in ledger.entries for n, loss in e.train_losses.items()}
        return self.weighed({p.name: 0.1 + min(9.0, losses.get(p.name, 1.0)) for p in profiles})

    def weighed(self, weights):
        return Mixture(shares={name: weight / sum(weights.values()) for name, weight in weights.items()})


class NeedsAll(ByLoss):
    def mix(self, profiles, draws, ledger):
        losses = [e.train_losses for e in ledger.entries if e.train_losses]
        return self.weighed({p.name: 1.0 + losses[-1][p.name] if losses else 1.0 for p in profiles})


class ByLossAlone(ByLoss):
    def mix(self, profiles, draws, ledger):
        losses = {n: loss for e in ledger.entries for n, loss in e.train_losses.items()}
        return self.weighed({p.name: losses.get(p.name, 1.0) for p in profiles})


class PeeksAside(ByLoss):
    def mix(self, profiles, draws, ledger):
        return self.weighed({p.name: 1.0 + sum(e.validation_losses.get(p.name, 0.0) for e in ledger.entries[:4]) for p in profiles})


class RemembersLosses(ByLoss):
    most = 0

    def mix(self, profiles, draws, ledger):
        self.most = max(self.most, sum(bool(e.train_losses) for e in ledger.entries))
        return super().mix(profiles, draws, ledger).model_copy(update={"note": str(self.most)})


class FirstLosesOut(ByLoss):
    def mix(self, profiles, draws, ledger):
        weights = dict.fromkeys((p.name for p in profiles), 1.0)
        if any(e.train_losses for e in ledger.entries):
            weights[profiles[0].name] = 0.5
        return self.weighed(weights)


class NeverAsked(ByLoss):
    every = 0


DYNAMIC_FAULTS = [
    (ByLoss, []),
    (NeedsAll, ["any-ledger"]),
    (ByLossAlone, ["any-ledger"]),
    (PeeksAside, ["ledger-as-declared"]),
    (RemembersLosses, ["pure"]),
    (FirstLosesOut, ["order-independent"]),
    (NeverAsked, ["borders-positive"]),
]


@pytest.mark.parametrize(("cls", "names"), DYNAMIC_FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_sampler_that_decides_on_the_way_is_tried_with_ledgers(cls: type[Sampler], names: list[str]) -> None:
    assert list(failed(sampler_checks(cls, module=None))) == names


def test_options_are_given_as_in_a_run_file() -> None:
    with pytest.raises(ConfigError, match=r"Peeks 'even': unknown key 'tau'"):
        sampler_checks(Peeks, options={"tau": 2.0})


# --- filters ----------------------------------------------------------------------------------------------------------------------------


class Whole(TaskFilter):
    """A sound filter, for others to spoil."""

    name = "whole"

    def group(self, profiles):
        return self.all(profiles)

    def all(self, profiles, **changes):
        return [Group(**{"name": "all", "reason": "why not", "tasks": tuple(p.name for p in profiles), **changes})]


class LosesOne(Whole):
    def group(self, profiles):
        return self.all([p for p in profiles if p.name != "toys/0"])


class Doubles(Whole):
    def group(self, profiles):
        return [*self.all(profiles), *self.all(profiles, name="again")]


class NeedsSeven(Whole):
    def group(self, profiles):
        profiles[6]
        return self.all(profiles)


class Empty(Whole):
    def group(self, profiles):
        few = [p.name for p in profiles if p.train_rows >= 100_000]
        return [
            Group(name="few", reason="few", tasks=tuple(few)),
            Group(name="rest", reason="rest", tasks=tuple(p.name for p in profiles if p.name not in few)),
        ]


class Slashes(Whole):
    def group(self, profiles):
        return self.all(profiles, name="all/of them")


class Silent(Whole):
    def group(self, profiles):
        return self.all(profiles, reason=" ")


class Grows(Whole):
    asked = 0

    def group(self, profiles):
        self.asked += 1
        return self.all(profiles, reason=f"question {self.asked}")


class FirstApart(Whole):
    def group(self, profiles):
        first = profiles[0].name
        rest = tuple(p.name for p in profiles[1:])
        groups = [Group(name="first", reason="first", tasks=(first,)), Group(name="rest", reason="rest", tasks=rest)]
        return [group for group in groups if group.tasks]


FILTER_FAULTS = [
    (LosesOne, "every-task-once"),
    (Doubles, "every-task-once"),
    (NeedsSeven, "any-number-of-tasks"),
    (Empty, "any-number-of-tasks"),
    (Slashes, "names-are-folders"),
    (Silent, "reasons-given"),
    (Grows, "deterministic"),
    (FirstApart, "order-independent"),
]


@pytest.mark.parametrize(("cls", "name"), FILTER_FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault_of_a_filter_is_found_by_its_check_alone(cls: type[TaskFilter], name: str) -> None:
    assert list(failed(filter_checks(cls, module=None))) == [name]


# --- schedulers -------------------------------------------------------------------------------------------------------------------------


class Twice(StageScheduler):
    """A sound scheduler of two stages, for others to spoil."""

    name = "twice"

    def next_stage(self, profiles, done, sampler):
        return self.stage(profiles, done) if len(done) < 2 else None

    def stage(self, profiles, done, **changes):
        table = {
            "name": f"stage-{len(done)}",
            "tasks": tuple(p.name for p in profiles),
            "sampler": SamplerUse(use="class-balanced"),
            "draws": 100,
            "epoch_draws": 100,
            "examples_per_step": 10,
            "learning_rate": 0.1,
        }
        return Stage(**{**table, **changes})


class Endless(Twice):
    def next_stage(self, profiles, done, sampler):
        return self.stage(profiles, done)


class Stranger(Twice):
    def next_stage(self, profiles, done, sampler):
        return self.stage(profiles, done, tasks=(*(p.name for p in profiles), "toys/other")) if not done else None


class Nobody(Twice):
    def next_stage(self, profiles, done, sampler):
        return [self.stage(profiles, done), self.stage(profiles, done, tasks=()), None][len(done)]


class Elite(Twice):
    def next_stage(self, profiles, done, sampler):
        return self.stage(profiles, done, tasks=(profiles[0].name,)) if not done else None


class Idle(Twice):
    def next_stage(self, profiles, done, sampler):
        return self.stage(profiles, done, draws=0) if not done else None


class Undecided(Twice):
    def next_stage(self, profiles, done, sampler):
        return [self.stage(profiles, done), self.stage(profiles, done, draws=None), None][len(done)]


class Impatient(Twice):
    def next_stage(self, profiles, done, sampler):
        {"high": 1, "low": 2}[profiles[0].resource]
        return super().next_stage(profiles, done, sampler)


class Elsewhere(Twice):
    def next_stage(self, profiles, done, sampler):
        return self.stage(profiles, done, start="stage-7") if not done else None


class Tires(Twice):
    asked = 0

    def next_stage(self, profiles, done, sampler):
        self.asked += 1
        return self.stage(profiles, done, learning_rate=1 / self.asked) if not done else None


class Returns(Twice):
    """Its second stage starts where the first was evaluated first."""

    def next_stage(self, profiles, done, sampler):
        if len(done) > 1:
            return None
        return self.stage(profiles, done, start=done[0].evaluations[0].checkpoint if done else "last")

    def keep(self, done, evaluations):
        return set() if done else {e.checkpoint for e in evaluations[:1]}


class LetsGo(Returns):
    def keep(self, done, evaluations):
        return {evaluations[0].checkpoint} if len(evaluations) == 1 else set()


class Unready(Twice):
    def next_stage(self, profiles, done, sampler):
        assert not any(p.is_taught for p in profiles), "nothing is taught yet"
        return super().next_stage(profiles, done, sampler)


class Nostalgic(Twice):
    def next_stage(self, profiles, done, sampler):
        return super().next_stage([p for p in profiles if p.is_taught] or profiles, done, sampler)


SCHEDULER_FAULTS = [
    (Endless, "terminates"),
    (Unready, "terminates"),
    (Stranger, "tasks-are-known"),
    (Nobody, "tasks-are-known"),
    (Elite, "every-task-trained"),
    (Nostalgic, "every-task-trained"),
    (Idle, "numbers-positive"),
    (Undecided, "decided-with-resources"),
    (Impatient, "unknown-resources"),
    (Elsewhere, "stages-compile"),
    (LetsGo, "starts-are-kept"),
    (Tires, "pure"),
]


@pytest.mark.parametrize(("cls", "name"), SCHEDULER_FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault_of_a_scheduler_is_found_by_its_check_alone(cls: type[StageScheduler], name: str) -> None:
    assert list(failed(scheduler_checks(cls, module=None))) == [name]


def test_a_scheduler_may_go_back_to_a_checkpoint_that_it_keeps() -> None:
    outcome = tried(scheduler_checks(Returns, module=None))["starts-are-kept"]
    assert (outcome.status, outcome.found) == ("passed", f"starts from a checkpoint: {len(SCENES)}")


def test_a_scheduler_that_recalls_what_it_did_cannot_resume() -> None:
    class Recalls(Twice):
        def next_stage(self, profiles, done, sampler):
            if not done:
                self.length = 2
            return self.stage(profiles, done) if len(done) < self.length else None

    wrong = failed(scheduler_checks(Recalls, module=None))
    assert list(wrong) == ["resumable", "picklable"]  # a class in a function is also nothing to pickle
    assert "has no attribute 'length'" in wrong["resumable"]


def test_schedulers_are_tried_with_the_samplers_they_are_given() -> None:
    options = {"stage1": {"use": "even"}}
    assert "pass sampler=" in next(iter(failed(scheduler_checks(TwoStage, options=options)).values()))
    assert failed(scheduler_checks(TwoStage, options={**options, "stage2": {"use": "even"}}, sampler=lambda use: Even(Even.Config()))) == {}


# --- observers --------------------------------------------------------------------------------------------------------------------------


class Patient(Observer):
    """A sound observer, for others to spoil."""

    name = "patient"

    def on_event(self, event, folder):
        pass


class Narrow(Patient):
    def on_event(self, event, folder):
        if isinstance(event, events.Warned):
            event.text.encode("ascii")


class Strict(Patient):
    def on_event(self, event, folder):
        if type(event) not in get_args(events.Event):
            raise KeyError(type(event))


class Tired(Patient):
    seen = 0

    def on_event(self, event, folder):
        self.seen += 1
        if self.seen > 5:
            raise RuntimeError("too many events")


class Talks(Patient):
    def on_event(self, event, folder):
        print(event)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Narrow, "takes-every-event"),
        (Tired, "takes-every-event"),
        (Strict, "takes-later-events"),
        (Talks, "leaves-stdout-alone"),
    ],
)
def test_a_fault_of_an_observer_is_found_by_its_check_alone(cls: type[Observer], name: str) -> None:
    assert list(failed(observer_checks(cls, module=None))) == [name]


def test_observers_are_shown_every_event_that_there_is() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(events.Event))


# --- what ships in the box --------------------------------------------------------------------------------------------------------------

BOX = load_plugins(environment="")
TRIED = {
    "filter": filter_checks,
    "sampler": sampler_checks,
    "scheduler": scheduler_checks,
    "launcher": launcher_checks,
    "observer": observer_checks,
}
BOXED = [check for kind, checks_of in TRIED.items() for entry in BOX.entries(kind) for check in checks_of(entry.cls)]


@pytest.mark.parametrize("check", without_imports(BOXED), ids=str)
def test_components_of_the_box_keep_their_promises(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", [c for cls in (Text2Text, FewShot) for c in method_checks(cls)], ids=str)
def test_methods_of_the_box_keep_their_promises(check: Check) -> None:
    check()


# --- the kit itself ---------------------------------------------------------------------------------------------------------------------


def test_importing_the_kit_loads_neither_torch_nor_pytest() -> None:
    code = "import mtcore.testing, sys; print(*{'torch', 'transformers', 'datasets', 'pytest'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_the_hook_page_names_every_check() -> None:
    checks: Mapping[str, Sequence[Check]] = {
        "task": [*task_checks(toy_class("binary")), *task_checks(toy_class("generation"))],
        **{kind: TRIED[kind](BOX.entries(kind)[0].cls) for kind in TRIED},
        "method": method_checks(FewShot),
    }
    text = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
    for kind, listed in checks.items():
        (line,) = re.findall(rf"^\| `{kind}_checks` \|.*$", text, re.M)
        assert set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", line)) == {check.name for check in listed}, kind


def toy_class(output: OutputKind) -> type[TaskAdapter]:
    class Toy(TaskAdapter):
        spec: TaskSpec = toy_data(output).spec

    return Toy


def test_the_toy_base_is_a_base(tmp_path: Path) -> None:
    from mtcore.modeling.load import find_base, load_model

    base = find_base(str(toy_base(tmp_path / "toy", context=64)), tmp_path)
    assert (base.context, base.eos_id) == (64, 0)
    assert load_model(base.folder).config.hidden_size == 32


def test_toy_profiles_deal_out_resources_and_output_kinds() -> None:
    profiles = toy_profiles([1, 2, 3], resources=("high", "low"), outputs=("binary", "generation"))
    assert [(p.name, p.train_rows, p.resource, p.spec.output) for p in profiles] == [
        ("toys/0", 1, "high", "binary"),
        ("toys/1", 2, "low", "generation"),
        ("toys/2", 3, "high", "binary"),
    ]
    assert Even(Even.Config()).mix(profiles, 10, Ledger()).shares.keys() == {p.name for p in profiles}
