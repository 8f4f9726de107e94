"""Trackers: curves and verdicts as TensorBoard, Weights & Biases or MLflow show them, written by accelerate's trackers."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mtcore import events
from mtcore.contracts import Observer, Options
from mtcore.errors import ConfigError

Service = Literal["tensorboard", "wandb", "mlflow"]
FOLDER = "trackers"
"""Below the run folder: what services keep in files."""


class Trackers(Observer):
    """Every stage of every work is a curve of its own, by the stage's own steps; every variant's verdict is one more.

    A resumed run goes on where its last checkpoint stood: TensorBoard forgets the steps that are done again, other services get a new
    curve, and hold one at a time: of works that go on at once, the others' values wait. A service that fails is told and left out; the
    run goes on.
    """

    name = "trackers"

    class Config(Options):
        to: tuple[Service, ...] = Field(default=("tensorboard",), min_length=1)
        """Services that are written to; each needs its package."""

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _require_packages(self.config.to)
        self._run = ""
        self._fingerprints: dict[str, str] = {}
        self._references: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        self._peaks: dict[str, float] = {}
        self._open: dict[tuple[Service, str], Any] = {}
        self._waiting: defaultdict[Service, list[tuple[str, Mapping[str, float] | None, int, Path]]] = defaultdict(list)
        self._failed: set[Service] = set()

    def on_event(self, event: events.Event, folder: Path) -> None:
        handle: dict[type, Callable[[Any, Path], None]] = {
            events.RunStarted: self._run_started,
            events.WorkStarted: self._work_started,
            events.MachineMeasured: self._machine,
            events.Stepped: self._stepped,
            events.StepSkipped: lambda e, folder: self._log(self._stage(e.work, e.stage), {"skipped": 1.0}, e.step, folder),
            events.RolledBack: lambda e, folder: self._end(self._stage(e.work, e.stage), folder),
            events.Evaluated: self._evaluated,
            events.StageEnded: lambda e, folder: self._end(self._stage(e.work, e.stage), folder),
            events.Interrupted: lambda e, folder: self._finish(),
            events.ReferenceReady: self._reference,
            events.VariantJudged: self._judged,
            events.RunEnded: lambda e, folder: self._finish(),
        }
        if (known := handle.get(type(event))) is not None:
            known(event, folder)

    def _run_started(self, event: events.RunStarted, folder: Path) -> None:
        self._run = event.run

    def _work_started(self, event: events.WorkStarted, folder: Path) -> None:
        self._fingerprints[event.work] = event.fingerprint

    def _machine(self, event: events.MachineMeasured, folder: Path) -> None:
        self._peaks[event.work] = event.peak_flops * event.processes

    def _stepped(self, event: events.Stepped, folder: Path) -> None:
        seconds = max(event.seconds, 1e-9)
        values = {"loss": event.loss, "learning rate": event.learning_rate, "tokens per second": event.tokens / seconds}
        if event.flops and (peak := self._peaks.get(event.work, self._peaks.get("", 0.0))):
            values["utilisation"] = event.flops / seconds / peak
        self._log(self._stage(event.work, event.stage), values, event.step, folder)

    def _evaluated(self, event: events.Evaluated, folder: Path) -> None:
        found = event.evaluation
        values = {f"score/{task}": score for task, score in found.scores.items() if score is not None}
        values |= {f"validation loss/{task}": loss for task, loss in found.losses.items()}
        values |= {"average": found.average} | ({} if found.qualified is None else {"qualified": found.qualified})
        self._log(self._stage(event.work, found.stage), values, found.step, folder)

    def _reference(self, event: events.ReferenceReady, folder: Path) -> None:
        self._references[event.task].append((event.seed or 0, event.score))

    def _judged(self, event: events.VariantJudged, folder: Path) -> None:
        seeds = _by_seed(self._references) or [{}]
        seeds[0] |= {"average": event.average, "qualified": event.qualified, "tasks": event.tasks}
        curve = f"verdict/{event.variant or self._run}"
        for number, values in enumerate(seeds):
            self._log(curve, values, number, folder)
        self._end(curve, folder)
        self._references.clear()

    def _stage(self, work: str, stage: str) -> str:
        """The name of a stage's curve. Works of one name (a reference under another recipe) are told apart by their fingerprint."""
        mark = self._fingerprints.get(work, "")[:6]
        return f"{work}/{stage}{' ' if mark else ''}{mark}"

    def _log(self, curve: str, values: Mapping[str, float], step: int, folder: Path) -> None:
        for service in self.config.to:
            self._write(service, curve, values, step, folder)

    def _end(self, curve: str, folder: Path) -> None:
        """Nothing more comes of a curve; what does is taken for a new beginning of it."""
        for service in self.config.to:
            self._write(service, curve, None, 0, folder)

    def _write(self, service: Service, curve: str, values: Mapping[str, float] | None, step: int, folder: Path) -> None:
        """Write values, or None for the end of a curve; where a service holds another curve, they wait until that one ends."""
        key = (service, curve)
        if service != "tensorboard" and any(s == service and c != curve for s, c in self._open):
            self._waiting[service].append((curve, values, step, folder))
        elif values is None:
            if (tracker := self._open.pop(key, None)) is not None:
                self._guarded(service, tracker.finish)
            waiting = self._waiting.pop(service, [])
            for item in waiting:
                self._write(service, *item)
        else:
            if key not in self._open:
                self._guarded(service, partial(self._start, service, curve, step, folder))
            if (tracker := self._open.get(key)) is not None:
                self._guarded(service, partial(tracker.log, dict(values), step=step))

    def _start(self, service: Service, curve: str, step: int, folder: Path) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        from mtcore.training.distributed import process_state

        process_state()  # accelerate's trackers ask for it
        place = folder / FOLDER / service
        place.mkdir(parents=True, exist_ok=True)
        label = re.sub(r"[^\w./-]+|\.\.+", "-", curve)
        cls = LOGGER_TYPE_TO_CLASS[service]
        if service == "tensorboard":
            # what an interrupted call wrote after its last checkpoint is written again
            tracker = cls(label, logging_dir=place, purge_step=step)
        elif service == "wandb":
            tracker = cls(self._run, name=label, dir=place)
        else:
            if "MLFLOW_TRACKING_URI" not in os.environ:
                import mlflow

                mlflow.set_tracking_uri(f"sqlite:///{place.resolve()}/mlflow.db")
            tracker = cls(self._run, run_name=label, logging_dir=str(place.resolve()))
        tracker.start()
        self._open[service, curve] = tracker

    def _finish(self) -> None:
        """End all curves, those too that wait."""
        while self._open:
            service, curve = next(iter(self._open))
            self._write(service, curve, None, 0, Path())

    def _guarded(self, service: Service, call: Callable[[], None]) -> None:
        """A service that cannot be reached must not end the run: it is told once and left out from then on."""
        if service in self._failed:
            return
        try:
            call()
        except Exception as error:
            self._failed.add(service)
            self._open = {key: tracker for key, tracker in self._open.items() if key[0] != service}
            self._waiting.pop(service, None)
            print(f"  warning: tracker {service} failed and is left out from here on: {type(error).__name__}: {error}", file=sys.stderr)


def _require_packages(services: tuple[Service, ...]) -> None:
    from accelerate.tracking import filter_trackers

    here = {str(service) for service in filter_trackers(list(services), FOLDER)}
    if missing := [service for service in services if service not in here]:
        raise ConfigError(
            f"observer 'trackers': {', '.join(missing)} not installed. pip install {' '.join(missing)}, or take it out of `to` "
            f"(installed of those that are asked for: {', '.join(here) or 'none'})"
        )


def _by_seed(references: Mapping[str, list[tuple[int, float]]]) -> list[dict[str, float]]:
    """References of all tasks, seed by seed, in whatever order they became ready."""
    seeds = sorted({seed for pairs in references.values() for seed, _ in pairs})
    return [{f"reference/{task}": dict(pairs)[seed] for task, pairs in references.items() if seed in dict(pairs)} for seed in seeds]
