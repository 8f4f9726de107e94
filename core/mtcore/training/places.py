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
from mtcore.training.checkpoint import newest_checkpoint, prune
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

    def save(self, progress: Progress, compiled: CompiledStage) -> Progress:
        """Write a checkpoint; keep beside it the best, those that a later stage may start from, and the one this stage started from."""
        started, workspace, name = time.monotonic(), self._workspace, self.next_name(progress)
        progress = progress.with_({"saved": progress.saved + 1})
        about = {
            "work": workspace.work,
            "stage": compiled.stage.name,
            "step": progress.step,
            "position": progress.step * compiled.stage.examples_per_step,
            "fingerprint": workspace.fingerprint,
        }
        self._trainee.save(workspace.folder, name, json.loads(progress.model_dump_json()), about)
        if self._trainee.accelerator.is_main_process:
            prune(workspace.folder, PREFIX, keep={name, compiled.stage.start, *self._led_to(progress)})
        self._trainee.accelerator.wait_for_everyone()
        self._saved_at = time.monotonic()
        workspace.emit(events.Saved(workspace.work, compiled.stage.name, progress.step, self._saved_at - started, name))
        return progress

    def newest(self) -> tuple[Path, Progress] | None:
        """The newest checkpoint that is whole, as are those that it may lead to."""
        workspace = self._workspace

        def needs(state: Mapping[str, Any]) -> set[str]:
            return self._led_to(Progress.model_validate_json(json.dumps(state)))

        def tell(problem: str) -> None:
            workspace.emit(events.Warned(workspace.work, problem))

        path = newest_checkpoint(workspace.folder, PREFIX, team=self._trainee.team, needs=needs, tell=tell)
        return None if path is None else (path, Progress.model_validate_json((path / "state.json").read_text(encoding="utf-8")))

    def resumed(self) -> Progress:
        """Take over the newest checkpoint where there is one; refuse one that was made from another configuration or other data."""
        workspace = self._workspace
        if (newest := self.newest()) is None:
            return Progress(fingerprint=workspace.fingerprint)
        path, progress = newest
        if progress.fingerprint != workspace.fingerprint:
            raise ResumeMismatch(
                f"{workspace.folder} holds a checkpoint of another configuration or other data ({progress.fingerprint[:12]}, now "
                f"{workspace.fingerprint[:12]}). Restore what changed, give the run file another name, or delete the folder."
            )
        if other := self._trainee.other_processes(path):
            workspace.emit(events.Warned(workspace.work, other))
        self._trainee.load(path)
        return progress

    def _led_to(self, progress: Progress) -> set[str]:
        """Checkpoints beside its own that this progress may lead to: the best, and those that a later stage may start from."""
        best = {progress.best.checkpoint} if progress.best else set()
        return best | self._stages.keep(progress.done, progress.evaluations)
