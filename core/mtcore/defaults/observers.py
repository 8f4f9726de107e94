"""Observers: progress on a terminal (a line every 30 s elsewhere), and every event as a line of JSON."""

import json
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mtcore import events
from mtcore.contracts import Observer, Options
from mtcore.types import Evaluation

WIDTH = 100
"""Columns of a line where it can be helped."""
LISTED = 8
"""Scores of more tasks than these are summed up."""


class EventLog(Observer):
    """Appends every event to `events.jsonl` in the run folder, with the time in seconds since 1970."""

    name = "events"

    def on_event(self, event: events.Event, folder: Path) -> None:
        line = {"time": round(time.time(), 3), "event": type(event).__name__, **asdict(event)}
        # what is no text for UTF-8 (a lone surrogate in an error) becomes the escape that JSON has for it
        with (folder / "events.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(_plain(line), ensure_ascii=False, allow_nan=False) + "\n")


@dataclass
class Work:
    """A span of work at hand, and what its steps took since they were last told."""

    steps: int
    done: int
    first: int
    started: float
    stage: str = ""
    loss: float = math.nan
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    told: float = 0.0
    """Tokens a second that were told last."""

    def left(self, now: float) -> float:
        """Seconds, at its own pace."""
        return max(0, self.steps - self.done) * (now - self.started) / max(1, self.done - self.first)

    @property
    def pace(self) -> float:
        """Tokens a second; a work in the middle of a long step goes on as before."""
        return self.tokens / self.seconds if self.seconds else self.told


class Progress(Observer):
    """Says on stderr what happens, and how long the work at hand and the whole run will still take.

    References may be measured several at a time, and their events then come mixed; a group is fitted when they are done.
    """

    name = "progress"

    class Config(Options):
        every: float = 30.0
        """Seconds between two lines of progress where stderr is no terminal."""

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._is_terminal = sys.stderr.isatty()
        self._works: dict[str, Work] = {}
        self._scores: dict[str, Mapping[str, float | None]] = {}
        self._peaks: dict[str, float] = {}
        self._sources: set[str] = set()
        self._said = time.monotonic()
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
            events.MachineMeasured: self._machine,
            events.StageStarted: lambda e: self._say(
                f"  {e.work}: stage {e.stage.name}, {e.steps:,} steps" + (f" over {len(e.shares)} tasks" if len(e.shares) > 1 else "")
            ),
            events.Stepped: self._step,
            events.StepSkipped: self._skipped,
            events.RolledBack: self._rolled_back,
            events.MicroBatchHalved: lambda e: self._say(f"  {e.work}: out of memory; {e.batch_tokens:,} tokens at once from here on"),
            events.Interrupted: lambda e: self._say(
                f"  {e.work}: {e.signal} after step {e.step:,}; all of it is saved, and the same command goes on from there"
            ),
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

    def _grouped(self, event: events.Grouped) -> None:
        for group in event.groups:
            self._say(f"  {event.variant + ': ' if event.variant else ''}group {group.name}: {', '.join(group.tasks)} — {group.reason}")

    def _machine(self, event: events.MachineMeasured) -> None:
        self._peaks[event.work] = event.peak_flops * event.processes
        if event.source not in self._sources:
            self._sources.add(event.source)
            self._say(f"  peak of a device: {event.peak_flops / 1e9:,.0f} GFLOP/s ({event.source})")

    def _start(self, event: events.WorkStarted) -> None:
        for work in set(self._works) - {event.work}:
            if not (events.is_reference(work) and events.is_reference(event.work)):
                self._end(work)
        now = time.monotonic()
        self._said = self._said if self._works else now
        self._run_started = self._run_started or now
        if event.work not in self._works:
            self._ahead[event.work] = max(0, self._ahead.get(event.work, event.steps) - event.done)
        self._works[event.work] = Work(event.steps, event.done, event.done, now)

    def _end(self, work: str) -> None:
        """A work is over, however early: nothing of it is ahead."""
        for known in (self._works, self._scores, self._ahead):
            known.pop(work, None)

    def _step(self, event: events.Stepped) -> None:
        now = time.monotonic()
        work = self._works.setdefault(event.work, Work(event.steps, event.step - 1, event.step - 1, now))
        self._stand(event.work, event.step)
        self._run_steps += 1
        work.stage, work.steps, work.loss = event.stage, event.steps, event.loss
        work.tokens, work.flops, work.seconds = work.tokens + event.tokens, work.flops + event.flops, work.seconds + event.seconds
        if now - self._said < (min(0.2, self.config.every) if self._is_terminal else self.config.every):
            return
        self._said = now
        left = max(w.left(now) for w in self._works.values())
        # the run's own pace holds its evaluations too, and all works that go on at once
        whole = max(left, sum(self._ahead.values()) * (now - self._run_started) / self._run_steps)
        times = f"{_time(left)} left (run {_time(whole)})"
        line = self._alone(event.work, work, times) if len(self._works) == 1 else self._at_once(times)
        for w in self._works.values():
            w.told, w.tokens, w.flops, w.seconds = w.pace, 0, 0.0, 0.0
        if self._is_terminal:  # a line that wraps could not be written over
            line = textwrap.shorten(line, shutil.get_terminal_size().columns - 3, placeholder="…")
        self._say(f"  {line}", is_over=not self._is_terminal)

    def _stand(self, name: str, step: int) -> None:
        """So many steps of a stage are done, and the rest of it is ahead."""
        work = self._works[name]
        self._ahead[name] = max(0, self._ahead.get(name, 0) - (step - work.done))
        work.done = step

    def _alone(self, name: str, work: Work, times: str) -> str:
        peak = self._peaks.get(name, self._peaks.get("", 0.0))
        share = f", {work.flops / work.seconds / peak:.0%} of peak" if work.flops and work.seconds and peak else ""
        where = f"{name}: {work.stage} step {work.done:,} of {work.steps:,}"
        return f"{where}, {times}, loss {work.loss:.3f}, {work.pace:,.0f} tokens/s{share.replace('%', ' %')}"

    def _at_once(self, times: str) -> str:
        works = self._works.values()
        done, steps, pace = sum(w.done for w in works), sum(w.steps for w in works), sum(w.pace for w in works)
        last, behind = min(self._works.items(), key=lambda item: item[1].done / max(1, item[1].steps))
        where = f"{last.removeprefix(events.reference_work(''))} at {behind.done:,} of {behind.steps:,}"
        return f"{len(works)} references at once: {done:,} of {steps:,} steps, {times}, {pace:,.0f} tokens/s, last {where}"

    def _skipped(self, event: events.StepSkipped) -> None:
        tasks = ", ".join(dict.fromkeys(task for task, _ in event.rows))
        self._say(f"  {event.work}: {event.stage} step {event.step:,} is skipped, because {event.reason} (rows of {tasks}: events.jsonl)")

    def _rolled_back(self, event: events.RolledBack) -> None:
        if event.work in self._works:
            self._stand(event.work, event.to_step)
        self._say(f"  {event.work}: {event.stage} goes back from step {event.from_step:,} to {event.to_step:,}: {event.reason}")

    def _evaluated(self, event: events.Evaluated) -> None:
        e = event.evaluation
        before = self._scores.get(event.work, {})
        self._scores[event.work] = e.scores
        if len(e.scores) <= LISTED:
            told = ", ".join(f"{name} {'failed' if s is None else format(s, '.4f')}" for name, s in e.scores.items())
        else:
            told = _summary(e, before)
        line = f"  {event.work}: {e.stage} epoch {e.epoch:.2f}: {told}"
        self._say("\n".join(textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)))

    def _reference(self, event: events.ReferenceReady) -> None:
        work = events.reference_work(event.task, event.seed)
        self._end(work)
        chance = ", at chance" if event.is_at_chance else ""
        epoch = "" if event.saturation_epoch is None else f", saturates in epoch {event.saturation_epoch}, {event.resource}-resource"
        self._say(f"  {work}: {event.score:.4f}{epoch}{chance} ({event.source})")

    def _say(self, text: str, *, is_over: bool = True) -> None:
        """Say a line; one that is not over is written over by the next."""
        print(f"\r\x1b[2K{text}" if self._is_terminal else text, end="\n" if is_over else "", file=sys.stderr, flush=True)


def _summary(evaluation: Evaluation, before: Mapping[str, float | None]) -> str:
    """Scores of many tasks: how they are together, and the few that fell most since the last time, or are lowest."""
    scores = {name: score for name, score in evaluation.scores.items() if score is not None}
    changes = {name: score - last for name, score in scores.items() if (last := before.get(name)) is not None}
    told = [f"average {evaluation.average:.4f}"]
    told += [] if evaluation.qualified is None else [f"{evaluation.qualified} of {len(evaluation.scores)} qualified"]
    told += [f"{name} failed" for name in evaluation.scores if name not in scores]
    if changes:
        worst = [f"{name} {change:+.4f}" for name, change in sorted(changes.items(), key=lambda item: item[1])[:3] if change < 0]
        return f"{', '.join(told)}; {'fell most: ' + ', '.join(worst) if worst else 'none fell'}"
    return f"{', '.join(told)}; lowest: {', '.join(f'{name} {scores[name]:.4f}' for name in sorted(scores, key=scores.__getitem__)[:3])}"


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
