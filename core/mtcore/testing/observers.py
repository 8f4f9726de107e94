"""The checks of an observer: it takes every event, and those of later versions."""

from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mtcore import events
from mtcore.contracts import Observer
from mtcore.testing.check import Body, Check, Failed, checks
from mtcore.testing.component import ComponentUnderTest, options_strict
from mtcore.testing.modules import import_fast, import_light
from mtcore.testing.scenes import Scene
from mtcore.types import Group, SamplerUse, Stage

TASK = "toys/0"
STAGE = Stage(
    name="toy",
    tasks=(TASK,),
    sampler=SamplerUse(use="instance-balanced"),
    draws=80,
    epoch_draws=80,
    examples_per_step=8,
    learning_rate=1e-3,
)
EVALUATION = Scene(("high",)).trained(STAGE, 0).evaluations[0]
EVENTS: tuple[events.Event, ...] = (
    events.RunStarted("toy", ("",), (1,), resumed=False),
    events.RowsRead(TASK, 80, 10, 1),
    events.Warned(TASK, "a warning with <markup>, a lone surrogate \ud800 and {braces}"),
    events.Grouped("", (Group(name="all", reason="toys", tasks=(TASK,)),)),
    events.WorkAhead({"reference toys/0": 10}),
    events.WorkStarted("reference toys/0", 10, 0),
    events.MachineMeasured(1e11, "measured here", 1, "reference toys/0"),
    events.StageStarted("reference toys/0", STAGE, 10, {TASK: 1.0}),
    events.Stepped("reference toys/0", "toy", 1, 10, float("nan"), 1e-3, 640, 0.0),
    events.Stepped("reference toys/0", "toy", 2, 10, 0.5, 1e-3, 640, 0.5, 64, 1e9, 800, "the loss is no number"),
    events.StepSkipped("reference toys/0", "toy", 2, "the loss is no number", float("nan"), ((TASK, 3), (TASK, 5))),
    events.RolledBack("reference toys/0", "toy", 4, 2, "three steps in a row were skipped"),
    events.Saved("reference toys/0", "toy", 2, 0.1, "runs/toy/ckpt-0"),
    events.MicroBatchHalved("reference toys/0", 4096),
    events.Interrupted("reference toys/0", 2, "SIGTERM"),
    events.Evaluated("reference toys/0", EVALUATION),
    events.StageEnded("reference toys/0", "toy", 10, "complete"),
    events.ReferenceReady(TASK, 0.5, None, "unknown", True, "measured"),
    events.VariantJudged("", 0.5, 0, 1),
    events.RunEnded("toy", "runs/toy/report.json"),
)


@dataclass(frozen=True)
class Later:
    """An event that this version of mtcore does not have."""

    text: str = "hello"


def observer_checks(
    cls: type[Observer],
    *,
    options: Mapping[str, Any] = {},
    module: str | None = "",
    expected_failures: Mapping[str, str] = {},
) -> list[Check]:
    """Every check of an observer, built with `options` as a run file gives them."""
    bodies: list[Body] = [takes_every_event, takes_later_events, leaves_stdout_alone, options_strict, import_light, import_fast]
    return checks(bodies, ComponentUnderTest(cls, options, module), cls.name, expected_failures)


def takes_every_event(subject: ComponentUnderTest) -> str:
    """Every event is taken, odd texts and odd numbers included."""
    for seen in (*((event,) for event in EVENTS), EVENTS):
        try:
            _shown(subject, *seen)
        except Exception as error:
            which = type(seen[0]).__name__ if len(seen) == 1 else "all in a row"
            raise Failed(
                f"{which}: {type(error).__name__}: {error}", "an observer that raises stops the run: take events as they are"
            ) from error
    return f"{len(EVENTS)} events, one by one and in a row"


def takes_later_events(subject: ComponentUnderTest) -> str:
    """An event of a later version is passed over."""
    try:
        _shown(subject, Later())
    except Exception as error:
        raise Failed(f"{type(error).__name__}: {error}", "do nothing for an event that is not known") from error
    return type(Later()).__name__


def leaves_stdout_alone(subject: ComponentUnderTest) -> str:
    """Nothing is printed on stdout, where results go."""
    for event in EVENTS:
        try:
            printed = _shown(subject, event)
        except Exception:
            continue  # takes-every-event says so
        if printed:
            raise Failed(f"{type(event).__name__} prints {printed[:60]!r}", "print on stderr, or write into the run's folder")
    return f"{len(EVENTS)} events"


def _shown(subject: ComponentUnderTest, *seen: Any) -> str:
    """What an observer prints on stdout when it sees events in a folder of its own."""
    out = StringIO()
    with TemporaryDirectory() as folder, redirect_stdout(out), redirect_stderr(StringIO()):
        observer = subject.build()
        for event in seen:
            observer.on_event(event, Path(folder))
    return out.getvalue()
