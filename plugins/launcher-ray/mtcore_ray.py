"""Ray: references measured by the machines of a cluster, as many at a time as it has room for."""

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from pydantic import Field

from mtcore.contracts import Launcher, Options
from mtcore.errors import RunError
from mtcore.events import Event
from mtcore.hookspecs import hookimpl
from mtcore.interrupts import Stop
from mtcore.types import Job
from mtcore.wire import event_from_json
from mtcore.worker import POLL, JobFailed, Message, Worker, WorkerDied, require_done


class Ray(Launcher):
    """Each job is a Ray task that starts one worker, wherever the cluster has the processors and GPUs for it."""

    name = "ray"

    class Config(Options):
        address: str = "auto"
        """A running cluster: `auto` is the one that this machine belongs to, `ray://HOST:PORT` another. `local` starts one of this machine alone."""
        cpus: int = Field(default=1, gt=0)
        """Processors of a job, which computes with as many threads."""
        gpus: float = Field(default=0, ge=0)
        """GPUs of a job."""
        max_retries: int = Field(default=1, ge=0)
        """How often a job is done again whose worker or machine died; it goes on from its last checkpoint."""

    config: Config

    def run(self, jobs: Sequence[Job], emit: Callable[[Event], None], stop: Stop) -> Mapping[str, Any]:
        import ray
        from ray.exceptions import RayError, RayTaskError
        from ray.util.queue import Queue

        is_ours = not ray.is_initialized()
        if is_ours:
            handler = signal.getsignal(signal.SIGTERM)
            ray.init(address=self.config.address, include_dashboard=False, log_to_driver=False)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's own would end the run without a word to the workers
        told, asked = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
        work = ray.remote(_work).options(
            num_cpus=self.config.cpus, num_gpus=self.config.gpus, max_retries=self.config.max_retries, retry_exceptions=[WorkerDied]
        )
        results: dict[str, Any] = {}
        failures: list[Exception] = []
        try:
            with stop.deferred():
                pending = {work.remote(job.model_dump_json(), self.config.cpus, told, asked): job for job in jobs}
                while pending:
                    done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=POLL)
                    for message in told.get_nowait_batch(told.size()):
                        emit(event_from_json(message))
                    if stop.requested is not None and asked.empty():
                        asked.put(stop.requested)  # ray.cancel would not wait for what is being saved
                    for reference in done:
                        job = pending.pop(reference)
                        try:
                            results[job.name] = ray.get(reference)
                        except RayTaskError as error:
                            failures.append(error.cause if isinstance(error.cause, JobFailed) else RunError(f"{job.name}: {error}"))
                        except RayError as error:
                            failures.append(RunError(f"{job.name}: {type(error).__name__}: {error}"))
        finally:
            told.shutdown()
            asked.shutdown()
            if is_ours:
                ray.shutdown()
        stop.obey()
        require_done(failures, len(jobs))
        return results


def _work(job: str, threads: int, told: Any, asked: Any) -> Any:
    """Do a job in a process of its own, on the machine that Ray has chosen for it; what comes in `asked` is the signal to end by."""
    if not asked.empty():
        return None
    said: SimpleQueue[Message | None] = SimpleQueue()
    worker = Worker(Job.model_validate_json(job), lambda _, message: said.put(message), {"OMP_NUM_THREADS": str(threads)})
    is_asked = False
    try:
        while True:
            if not is_asked and not asked.empty():
                is_asked = True
                worker.stop()
            try:
                message = said.get(timeout=POLL)
            except Empty:
                continue
            if message is None:
                return worker.result()
            told.put(message)
    except BaseException:  # whoever asked is gone
        worker.stop()
        raise
    finally:
        worker.wait()


@hookimpl
def register_launchers() -> list[type[Launcher]]:
    return [Ray]
