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
    curve. A service that fails is told and left out; the run goes on.
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
        self._references: defaultdict[str, list[float]] = defaultdict(list)
        self._curve = ""
        self._open: dict[Service, Any] = {}
        self._failed: set[Service] = set()

    def on_event(self, event: events.Event, folder: Path) -> None:
        handle: dict[type, Callable[[Any, Path], None]] = {
            events.RunStarted: self._run_started,
            events.WorkStarted: self._work_started,
            events.Stepped: self._stepped,
            events.Evaluated: self._evaluated,
            events.ReferenceReady: self._reference,
            events.VariantJudged: self._judged,
            events.RunEnded: lambda event, folder: self._finish(),
        }
        if (known := handle.get(type(event))) is not None:
            known(event, folder)

    def _run_started(self, event: events.RunStarted, folder: Path) -> None:
        self._run = event.run

    def _work_started(self, event: events.WorkStarted, folder: Path) -> None:
        self._fingerprints[event.work] = event.fingerprint

    def _stepped(self, event: events.Stepped, folder: Path) -> None:
        pace = event.tokens / max(event.seconds, 1e-9)
        self._log(
            self._stage(event.work, event.stage),
            {"loss": event.loss, "learning rate": event.learning_rate, "tokens per second": pace},
            event.step,
            folder,
        )

    def _evaluated(self, event: events.Evaluated, folder: Path) -> None:
        found = event.evaluation
        values = {f"score/{task}": score for task, score in found.scores.items() if score is not None}
        values |= {f"validation loss/{task}": loss for task, loss in found.losses.items()}
        values |= {"average": found.average} | ({} if found.qualified is None else {"qualified": found.qualified})
        self._log(self._stage(event.work, found.stage), values, found.step, folder)

    def _reference(self, event: events.ReferenceReady, folder: Path) -> None:
        self._references[event.task].append(event.score)

    def _judged(self, event: events.VariantJudged, folder: Path) -> None:
        seeds = _by_seed(self._references) or [{}]
        seeds[0] |= {"average": event.average, "qualified": event.qualified, "tasks": event.tasks}
        for number, values in enumerate(seeds):
            self._log(f"verdict/{event.variant or self._run}", values, number, folder)
        self._references.clear()

    def _stage(self, work: str, stage: str) -> str:
        """The name of a stage's curve. Works of one name (a reference under another seed or recipe) are told apart by their fingerprint."""
        mark = self._fingerprints.get(work, "")[:6]
        return f"{work}/{stage}{' ' if mark else ''}{mark}"

    def _log(self, curve: str, values: Mapping[str, float], step: int, folder: Path) -> None:
        if curve != self._curve:
            self._finish()
            self._curve = curve
            for service in self.config.to:
                self._guarded(service, partial(self._start, service, step, folder))
        for service, tracker in list(self._open.items()):
            self._guarded(service, partial(tracker.log, dict(values), step=step))

    def _start(self, service: Service, step: int, folder: Path) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        from mtcore.training.distributed import process_state

        process_state()  # accelerate's trackers ask for it
        place = folder / FOLDER / service
        place.mkdir(parents=True, exist_ok=True)
        label = re.sub(r"[^\w./-]+|\.\.+", "-", self._curve)
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
        self._open[service] = tracker

    def _finish(self) -> None:
        for service, tracker in list(self._open.items()):
            self._guarded(service, tracker.finish)
        self._open.clear()
        self._curve = ""

    def _guarded(self, service: Service, call: Callable[[], None]) -> None:
        """A service that cannot be reached must not end the run: it is told once and left out from then on."""
        if service in self._failed:
            return
        try:
            call()
        except Exception as error:
            self._failed.add(service)
            self._open.pop(service, None)
            print(f"  warning: tracker {service} failed and is left out from here on: {type(error).__name__}: {error}", file=sys.stderr)


def _require_packages(services: tuple[Service, ...]) -> None:
    from accelerate.tracking import filter_trackers

    here = {str(service) for service in filter_trackers(list(services), FOLDER)}
    if missing := [service for service in services if service not in here]:
        raise ConfigError(
            f"observer 'trackers': {', '.join(missing)} not installed. pip install {' '.join(missing)}, or take it out of `to` "
            f"(installed of those that are asked for: {', '.join(here) or 'none'})"
        )


def _by_seed(references: Mapping[str, list[float]]) -> list[dict[str, float]]:
    """References of all tasks, seed by seed: of each task they come in the order of seeds."""
    seeds = max(map(len, references.values()), default=0)
    return [{f"reference/{task}": scores[n] for task, scores in references.items() if n < len(scores)} for n in range(seeds)]
