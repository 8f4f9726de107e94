"""Where a fit can go on from: its checkpoints, saved with its progress, found again, and cleared away when nothing leads to them."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtcore import events
from mtcore.contracts import Stages, Workspace
from mtcore.data.stages import CompiledStage
from mtcore.errors import ResumeMismatch
from mtcore.training.checkpoint import is_complete, newest_checkpoint, prune
from mtcore.training.progress import Progress
from mtcore.training.state import Trainee

PREFIX = "ckpt"


class Places:
    """The checkpoints of one fit, in its folder."""

    def __init__(self, trainee: Trainee, workspace: Workspace, stages: Stages) -> None:
        self._trainee = trainee
        self._workspace = workspace
        self._stages = stages
        self._saved_at = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint was written by this process, or since it began."""
        return time.monotonic() - self._saved_at

    def next_name(self, progress: Progress) -> str:
        """What the next checkpoint will be called."""
        return f"{PREFIX}-{progress.saved}"

    def path(self, name: str) -> Path:
        return self._workspace.folder / name

    def save(self, progress: Progress, compiled: CompiledStage, *, is_anchor: bool = False) -> Progress:
        """Write a checkpoint, which as an anchor is one to go back to; keep beside it all that it may lead to, and what its stage started from."""
        started, workspace, name = time.monotonic(), self._workspace, self.next_name(progress)
        progress = progress.with_({"saved": progress.saved + 1, "anchor": name if is_anchor else progress.anchor})
        about = {
            "work": workspace.work,
            "stage": compiled.stage.name,
            "step": progress.step,
            "position": progress.step * compiled.stage.examples_per_step,
            "fingerprint": workspace.fingerprint,
        }
        self._trainee.save(workspace.folder, name, json.loads(progress.model_dump_json()), about)
        if self._trainee.accelerator.is_main_process:
            best = {progress.best.checkpoint} if progress.best else set()
            keep = {name, compiled.stage.start, progress.anchor, *best, *self._may_start(progress)}
            prune(workspace.folder, PREFIX, keep=keep)
        self._trainee.accelerator.wait_for_everyone()
        self._saved_at = time.monotonic()
        workspace.emit(events.Saved(workspace.work, compiled.stage.name, progress.step, self._saved_at - started, name))
        return progress

    def go_back(self, progress: Progress) -> Progress | None:
        """Take over the anchor, and return its progress; None where there is none yet, and the origin is the place to go back to."""
        if not progress.anchor:
            return None
        self._trainee.load(self.path(progress.anchor))
        return _read(self.path(progress.anchor))

    def resumed(self) -> Progress:
        """Take over the newest whole checkpoint where there is one; refuse one that was made from another configuration or other data."""
        workspace = self._workspace

        def needs(state: Mapping[str, Any]) -> set[str]:
            return self._may_start(Progress.model_validate_json(json.dumps(state)))

        path = newest_checkpoint(workspace.folder, PREFIX, team=self._trainee.team, needs=needs, tell=self._warn)
        if path is None:
            return Progress(fingerprint=workspace.fingerprint)
        progress = _read(path)
        if progress.fingerprint != workspace.fingerprint:
            raise ResumeMismatch(
                f"{workspace.folder} holds a checkpoint of another configuration or other data ({progress.fingerprint[:12]}, now "
                f"{workspace.fingerprint[:12]}). Restore what changed, give the run file another name, or delete the folder."
            )
        if other := self._trainee.other_processes(path):
            self._warn(other)
        self._trainee.load(path)
        return self._without_lost(progress, path.name)

    def _without_lost(self, progress: Progress, newest: str) -> Progress:
        """The progress with a best and an anchor that are whole: what is newest is worth more than what was best and is damaged."""
        best = progress.best.checkpoint if progress.best else newest
        whole = [n for n in {best, progress.anchor or newest} if n == newest or is_complete(self.path(n))] if self._is_main else []
        whole = self._trainee.team.agree(" ".join(whole)).split()
        if best not in whole:
            candidates = [e.checkpoint for e in progress.everything] if self._is_main else []
            lost = self._trainee.team.agree(" ".join(n for n in candidates if n != newest and not is_complete(self.path(n)))).split()
            progress = progress.with_({"lost": tuple(lost)})
            self._warn(
                f"{best}, the best so far, is damaged: {progress.best.checkpoint if progress.best else 'what comes next'} takes its place"
            )
        return progress if not progress.anchor or progress.anchor in whole else progress.with_({"anchor": newest})

    def _may_start(self, progress: Progress) -> set[str]:
        """Checkpoints that a later stage may start from: without them a progress leads nowhere."""
        return self._stages.keep(progress.done, progress.evaluations)

    @property
    def _is_main(self) -> bool:
        return self._trainee.team.rank == 0

    def _warn(self, text: str) -> None:
        self._workspace.emit(events.Warned(self._workspace.work, text))


def _read(checkpoint: Path) -> Progress:
    return Progress.model_validate_json((checkpoint / "state.json").read_text(encoding="utf-8"))
