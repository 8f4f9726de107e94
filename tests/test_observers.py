"""Progress tells of works that go on at once, of many tasks and of steps that went wrong in lines that can be read."""

import io
import re
import sys

import pytest

from mtcore import events
from mtcore.defaults.observers import Progress
from mtcore.types import Evaluation


@pytest.fixture
def said(tmp_path, capsys):
    """A progress that tells everything at once: feed it events, get the lines that it said of them."""
    progress = Progress(Progress.Config(every=0.0))

    def feed(*happened):
        for event in happened:
            progress.on_event(event, tmp_path)
        return capsys.readouterr().err.splitlines()

    return feed


def stepped(work, step, of=10, *, tokens=1000, flops=0.0, seconds=1.0):
    return events.Stepped(work, "single-task", step, of, 0.5, 1e-3, tokens, seconds, flops=flops)


def started(*works, of=10):
    return [events.WorkStarted(work, of, 0) for work in works]


def evaluated(scores, *, qualified=3):
    known = [score for score in scores.values() if score is not None]
    e = Evaluation(
        stage="mixture", step=5, draws=40, epoch=2.0, scores=scores, qualified=qualified, average=sum(known) / len(scores), losses={}
    )
    return events.Evaluated("ours/all", e)


def test_a_step_is_told_with_its_speed_and_its_share_of_the_peak(said):
    said(*started("ours/all"), events.MachineMeasured(5e9, "a clock", 2, "ours/all"))
    (line,) = said(stepped("ours/all", 1, flops=4.1e9))
    assert line.startswith("  ours/all: single-task step 1 of 10, ")
    assert line.endswith(" left (run 0s), loss 0.500, 1,000 tokens/s, 41 % of peak")


def test_without_a_peak_no_share_of_it_is_told(said):
    said(*started("ours/all"))
    (line,) = said(stepped("ours/all", 1, flops=4.1e9))
    assert line.endswith("1,000 tokens/s")


def test_references_that_are_measured_at_once_share_a_line(said):
    said(*started("reference a", "reference b", "reference c"), stepped("reference a", 4), stepped("reference b", 1))
    (line,) = said(stepped("reference c", 3, tokens=2000))
    assert re.fullmatch(r"  3 references at once: 8 of 30 steps, \S+ left \(run \S+\), 4,000 tokens/s, last b at 1 of 10", line)
    assert len(line) <= 100


def test_a_reference_that_is_ready_is_no_longer_at_hand(said):
    said(events.WorkAhead({"reference a": 100_000_000, "reference b": 1}), *started("reference a", "reference b"))
    said(stepped("reference a", 1))
    ready = events.ReferenceReady("a", 0.5, 3, "low", False, "measured")
    lines = said(ready, stepped("reference b", 1, of=1))
    assert lines[0] == "  reference a: 0.5000, saturates in epoch 3, low-resource (measured)"
    assert lines[1].startswith("  reference b: single-task step 1 of 1, ")
    assert "(run 0s)" in lines[1]


def test_references_under_several_seeds_are_told_apart(said):
    works = ("reference a seed 1", "reference a seed 2")
    said(events.WorkAhead({works[0]: 100_000_000, works[1]: 1}), *started(*works), stepped(works[0], 1))
    lines = said(events.ReferenceReady("a", 0.5, 3, "low", False, "measured", 1), stepped(works[1], 1, of=1))
    assert lines[0] == "  reference a seed 1: 0.5000, saturates in epoch 3, low-resource (measured)"
    assert lines[1].startswith("  reference a seed 2: single-task step 1 of 1, ")
    assert "(run 0s)" in lines[1]


def test_a_group_begins_when_references_are_done(said):
    said(events.WorkAhead({"reference a": 100_000_000}), *started("reference a"), stepped("reference a", 1), *started("ours/all"))
    (line,) = said(stepped("ours/all", 10))
    assert line.startswith("  ours/all: ")
    assert "(run 0s)" in line


def test_steps_that_are_taken_back_are_ahead_again(said):
    said(events.WorkAhead({"ours/all": 10}), *started("ours/all"), *(stepped("ours/all", n) for n in range(1, 10)))
    said(events.RolledBack("ours/all", "mixture", 9, 2, "steps were skipped"))
    (line,) = said(stepped("ours/all", 3))
    assert "step 3 of 10" in line


def test_few_scores_are_listed_and_wrapped(said):
    lines = said(evaluated({f"suite/task-{n}": 0.5 for n in range(8)}))
    assert "".join(lines).count("0.5000") == 8
    assert len(lines) > 1
    assert all(len(line) <= 100 for line in lines)


def test_many_scores_are_summed_up_with_those_that_fell_most(said):
    before = {f"t{n}": 0.5 for n in range(9)}
    first = " ".join(line.strip() for line in said(evaluated({**before, "t3": 0.25, "t4": None})))
    assert first == "ours/all: mixture epoch 2.00: average 0.4167, 3 of 9 qualified, t4 failed; lowest: t3 0.2500, t0 0.5000, t1 0.5000"
    (second,) = said(evaluated({**before, "t0": 0.375, "t1": 0.4375}, qualified=None))
    assert second == "  ours/all: mixture epoch 2.00: average 0.4792; fell most: t0 -0.1250, t1 -0.0625"
    (third,) = said(evaluated(before))
    assert third.endswith("; none fell")


def test_a_line_is_never_wider_than_the_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "50")
    progress = Progress(Progress.Config(every=0.0))
    progress.on_event(events.WorkStarted("ours/" + "x" * 30, 10, 0), tmp_path)
    progress.on_event(stepped("ours/" + "x" * 30, 1), tmp_path)
    line = sys.stderr.getvalue().removeprefix("\r\x1b[2K")
    assert line.startswith("  ours/xxx")
    assert line.endswith("…")
    assert len(line) < 50
