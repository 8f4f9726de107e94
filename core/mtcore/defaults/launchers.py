"""Launchers: references measured in turn by the run itself, or several at a time by processes of this machine."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from pydantic import Field

from mtcore.contracts import Launcher, Options
from mtcore.events import Event
from mtcore.interrupts import Stop
from mtcore.types import Job
from mtcore.wire import event_from_json
from mtcore.worker import POLL, JobFailed, Message, Worker, require_done


class InTurn(Launcher):
    """One after another, by the run itself, which may be several processes."""

    name = "in-turn"
    in_turn = True

    def run(self, jobs: Sequence[Job], emit: Callable[[Event], None], stop: Stop) -> Mapping[str, Any]:
        return {}


class Processes(Launcher):
    """Several at a time on this machine, each in a process of its own with its share of the processors, and one GPU where there are any."""

    name = "processes"

    class Config(Options):
        workers: int = Field(default=2, gt=0)
        """Processes at a time; each needs as much memory as a run of one task."""

    config: Config

    def run(self, jobs: Sequence[Job], emit: Callable[[Event], None], stop: Stop) -> Mapping[str, Any]:
        waiting, shares = deque(jobs), deque(self._shares())
        working: dict[Worker, Mapping[str, str]] = {}
        said: SimpleQueue[tuple[Worker, Message | None]] = SimpleQueue()
        results: dict[str, Any] = {}
        failures: list[JobFailed] = []
        is_told = False
        with stop.deferred():
            try:
                while working or (waiting and stop.requested is None):
                    while waiting and shares and stop.requested is None:
                        share = shares.popleft()
                        working[Worker(waiting.popleft(), lambda *message: said.put(message), share)] = share
                    if stop.requested is not None and not is_told:
                        is_told = True
                        for worker in working:
                            worker.stop(stop.requested)
                    try:
                        worker, message = said.get(timeout=POLL)
                    except Empty:
                        continue
                    if message is not None:
                        emit(event_from_json(message))
                        continue
                    shares.append(working.pop(worker))
                    try:
                        results[worker.job.name] = worker.result()
                    except JobFailed as failure:
                        failures.append(failure)
            finally:
                for worker in working:  # an observer raised
                    worker.stop()
                for worker in working:
                    worker.wait()
        stop.obey()
        require_done(failures, len(jobs))
        return results

    def _shares(self) -> list[Mapping[str, str]]:
        """What each worker may use, as its environment says it: processors in equal parts, GPUs in turn."""
        threads = max(1, _processors() // self.config.workers)
        gpus = _gpus()
        return [
            {"OMP_NUM_THREADS": str(threads), **({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})}
            for number in range(self.config.workers)
        ]


def _processors() -> int:
    """How many this process may use: what OMP_NUM_THREADS leaves it, or all that it may run on."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdecimal() else len(os.sched_getaffinity(0))


def _gpus() -> list[str]:
    """Names of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
