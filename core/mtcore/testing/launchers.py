"""The checks of a launcher: jobs are done by other processes, and what fails or dies is told and stops no other."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import SkipTest

from mtcore import events
from mtcore.contracts import Launcher
from mtcore.errors import Interrupted, RunError
from mtcore.interrupts import Stop
from mtcore.testing.check import Body, Check, Failed, checks
from mtcore.testing.component import SHARED, ComponentUnderTest
from mtcore.types import Job

FAULT = "the toy is broken"


def launcher_checks(
    cls: type[Launcher],
    *,
    options: Mapping[str, Any] = {},
    module: str | None = "",
    expected_failures: Mapping[str, str] = {},
) -> list[Check]:
    """Every check of a launcher, built with `options` as a run file gives them; jobs are a few files written in other processes."""
    bodies: list[Body] = [does_every_job, passes_events_on, tells_what_failed, outlives_a_death, ends_when_asked, *SHARED]
    return checks(bodies, ComponentUnderTest(cls, options, module), cls.name, expected_failures)


def does_every_job(subject: ComponentUnderTest) -> str:
    """Every job is done once, in another process, and its result comes back under its name."""
    results, _, done = _launched(subject, ("answer",) * 3)
    if sorted(results) != sorted(done) or len(done) != 3:
        raise Failed(
            f"of 3 jobs {', '.join(done) or 'none'} were done, and results came of {', '.join(results) or 'none'}", "do every job once"
        )
    for name, result in results.items():
        if result["said"] != name:
            raise Failed(f"the result of {name} is that of {result['said']}", "return each result under its job's name")
        if result["process"] == os.getpid():
            raise Failed(
                f"{name} was done in the process that asked", "start a mtcore.worker.Worker, or say in_turn = True and leave jobs out"
            )
    return f"3 jobs in {len({result['process'] for result in results.values()})} processes"


def passes_events_on(subject: ComponentUnderTest) -> str:
    """What happens in a job is told in its order, in the process that asked."""
    _, seen, _ = _launched(subject, ("answer",) * 2)
    for name in ("toy 0", "toy 1"):
        texts = [event.text for event in seen if isinstance(event, events.Warned) and event.about == name]
        if texts != ["begins", "ends"]:
            raise Failed(f"{name} told 'begins' and 'ends'; what came is {texts}", "pass every event of a worker to `emit`, as it comes")
    return f"{len(seen)} events"


def tells_what_failed(subject: ComponentUnderTest) -> str:
    """A job that raises an error is named with it, and the others are done."""
    return _tells(subject, "raise", FAULT)


def outlives_a_death(subject: ComponentUnderTest) -> str:
    """A job whose process is killed is named with the signal, and the others are done."""
    return _tells(subject, "die", "SIGKILL")


def ends_when_asked(subject: ComponentUnderTest) -> str:
    """When the run is asked to end, jobs at work save and end, no other is begun, and the run is interrupted."""
    fix = "look at stop.requested while jobs are at work; have workers stop, wait for them, and call stop.obey()"
    stop = Stop()

    def emit(event: events.Event) -> None:
        stop.requested = signal.SIGTERM

    with TemporaryDirectory() as folder:
        try:
            _run(subject, ("wait",) * 20, folder, emit, stop)
        except Interrupted:
            saved = sorted(os.listdir(folder))
        else:
            raise Failed("it returns as if nothing had happened", fix)
    if not saved:
        raise Failed("a job that was at work has not saved", fix)
    if len(saved) == 20:
        raise Failed("jobs are begun after the run was asked to end", fix)
    return f"{len(saved)} of 20 jobs were at work"


def toy_job(data: Mapping[str, Any], emit: Any, stop: Stop) -> dict[str, Any]:
    """What the kit's jobs do: tell two events, leave a file, and answer, raise, die or wait to be ended, as they are told."""
    try:
        emit(events.Warned(data["name"], "begins"))
        if data["what"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if data["what"] == "raise":
            raise RunError(FAULT)
        time.sleep(60 if data["what"] == "wait" else 0)
    finally:
        if data["what"] != "raise":
            with (Path(data["folder"]) / data["name"]).open("x"):
                pass
    emit(events.Warned(data["name"], "ends"))
    return {"said": data["name"], "process": os.getpid()}


def _tells(subject: ComponentUnderTest, fault: str, reason: str) -> str:
    fix = "do all jobs, then raise one RunError with the name and the error of each that failed"
    with TemporaryDirectory() as folder:
        try:
            results = _run(subject, ("answer", fault, "answer"), folder, lambda event: None)
        except RunError as error:
            told = str(error)
        else:
            raise Failed(f"nothing is raised, and the results are {results}", fix)
        if "toy 1" not in told or reason not in told:
            raise Failed(f"RunError: {told}", f"{fix}: here toy 1 and {reason!r}")
        if missing := {"toy 0", "toy 2"} - set(os.listdir(folder)):
            raise Failed(f"{', '.join(sorted(missing))} was not done", fix)
        return told.splitlines()[-1]


def _launched(subject: ComponentUnderTest, faults: Sequence[str]) -> tuple[Mapping[str, Any], list[events.Event], list[str]]:
    """Results, events, and the jobs that were done."""
    seen: list[events.Event] = []
    with TemporaryDirectory() as folder:
        return _run(subject, faults, folder, seen.append), seen, sorted(os.listdir(folder))


def _run(
    subject: ComponentUnderTest, faults: Sequence[str], folder: str, emit: Callable[[events.Event], None], stop: Stop | None = None
) -> Mapping[str, Any]:
    launcher: Launcher = subject.build()
    if launcher.in_turn:
        raise SkipTest("the run does its jobs itself")
    jobs = [
        Job(name=f"toy {n}", call="mtcore.testing.launchers:toy_job", data={"name": f"toy {n}", "what": what, "folder": folder})
        for n, what in enumerate(faults)
    ]
    return launcher.run(jobs, emit, stop or Stop())
