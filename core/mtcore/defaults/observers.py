"""Observers: progress on a terminal (a line every 30 s elsewhere), and every event as a line of JSON."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mtcore import events
from mtcore.contracts import Observer, Options


class EventLog(Observer):
    """Appends every event to `events.jsonl` in the run folder, with the time in seconds since 1970."""

    name = "events"

    def on_event(self, event: events.Event, folder: Path) -> None:
        line = {"time": round(time.time(), 3), "event": type(event).__name__, **asdict(event)}
        # what is no text for UTF-8 (a lone surrogate in an error) becomes the escape that JSON has for it
        with (folder / "events.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(_plain(line), ensure_ascii=False, allow_nan=False) + "\n")


class Progress(Observer):
    """Says on stderr what happens, and how long the work at hand and the whole run will still take."""

    name = "progress"

    class Config(Options):
        every: float = 30.0
        """Seconds between two lines of progress where stderr is no terminal."""

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._is_terminal = sys.stderr.isatty()
        self._work = ""
        self._steps = self._done = self._first = 0
        self._started = self._said = time.monotonic()
        self._ahead: dict[str, int] = {}
        self._run_steps, self._run_started = 0, 0.0

    def on_event(self, event: events.Event, folder: Path) -> None:
        handle: dict[type, Callable[[Any], None]] = {
            events.RunStarted: self._run,
            events.RowsRead: lambda e: self._say(
                f"  {e.task}: {e.train:,} train, {e.validation:,} validation rows"
                + (f", {e.quarantined} set aside" if e.quarantined else "")
            ),
            events.Warned: lambda e: self._say(f"  warning: {e.about}: {e.text}"),
            events.Grouped: self._grouped,
            events.WorkAhead: lambda e: self._ahead.update(e.steps),
            events.WorkStarted: self._start,
            events.StageStarted: lambda e: self._say(
                f"  {e.work}: stage {e.stage.name}, {e.steps:,} steps" + (f" over {len(e.shares)} tasks" if len(e.shares) > 1 else "")
            ),
            events.Stepped: self._step,
            events.Evaluated: self._evaluated,
            events.ReferenceReady: self._reference,
            events.VariantJudged: lambda e: self._say(
                f"variant {e.variant or 'one'}: average {e.average:.4f}, {e.qualified} of {e.tasks} qualified"
            ),
            events.RunEnded: lambda e: self._say(f"run {e.run} is done: {e.report}"),
        }
        if (known := handle.get(type(event))) is not None:
            known(event)

    def _run(self, event: events.RunStarted) -> None:
        variants, seeds = ", ".join(v or "one" for v in event.variants), ", ".join(map(str, event.seeds))
        self._say(f"run {event.run}{' (resumed)' if event.resumed else ''}: variants {variants}; seeds {seeds}")

    def _reference(self, event: events.ReferenceReady) -> None:
        self._ahead.pop(events.reference_work(event.task), None)
        chance = ", at chance" if event.is_at_chance else ""
        epoch = "" if event.saturation_epoch is None else f", saturates in epoch {event.saturation_epoch}, {event.resource}-resource"
        self._say(f"  reference {event.task}: {event.score:.4f}{epoch}{chance} ({event.source})")

    def _grouped(self, event: events.Grouped) -> None:
        for group in event.groups:
            self._say(f"  {event.variant + ': ' if event.variant else ''}group {group.name}: {', '.join(group.tasks)} — {group.reason}")

    def _start(self, event: events.WorkStarted) -> None:
        if event.work != self._work:
            self._ahead.pop(self._work, None)  # the work before is over, however early
            self._ahead[event.work] = max(0, self._ahead.get(event.work, event.steps) - event.done)
        self._run_started = self._run_started or time.monotonic()
        self._work, self._steps, self._first, self._done = event.work, event.steps, event.done, event.done
        self._started = self._said = time.monotonic()

    def _step(self, event: events.Stepped) -> None:
        self._done += 1
        self._run_steps += 1
        self._ahead[self._work] = max(0, self._ahead.get(self._work, 0) - 1)
        now = time.monotonic()
        if now - self._said < (0.2 if self._is_terminal else self.config.every):
            return
        self._said = now
        pace = (now - self._started) / max(1, self._done - self._first)
        left = max(0, self._steps - self._done) * pace
        # the run's own pace holds its evaluations too
        whole = max(left, sum(self._ahead.values()) * (now - self._run_started) / self._run_steps)
        line = (
            f"  {self._work}: {event.stage} step {self._done:,} of {self._steps:,}, loss {event.loss:.3f}, "
            f"{event.tokens / max(event.seconds, 1e-9):,.0f} tokens/s, {_time(left)} left; the run: about {_time(whole)}"
        )
        print(f"\r\x1b[2K{line}" if self._is_terminal else line, end="" if self._is_terminal else "\n", file=sys.stderr, flush=True)

    def _evaluated(self, event: events.Evaluated) -> None:
        e = event.evaluation
        scores = ", ".join(f"{name} {'failed' if s is None else format(s, '.4f')}" for name, s in e.scores.items())
        self._say(f"  {event.work}: {e.stage} epoch {e.epoch:.2f}: {scores}")

    def _say(self, text: str) -> None:
        print(f"\r\x1b[2K{text}" if self._is_terminal else text, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _plain(value: Any) -> Any:
    """A value as JSON has it; a number that is none (the loss of a step that went wrong) is null there."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
