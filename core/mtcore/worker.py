"""A worker: a process that does one job, tells what happens as lines of JSON, and ends soon after whoever started it."""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Any, cast

from mtcore.errors import Interrupted, MtcoreError, RunError
from mtcore.interrupts import Stop, listening
from mtcore.types import Job
from mtcore.wire import event_to_json

Message = dict[str, Any]
"""An event as `mtcore.wire` has it, or, as the last one, `{"result": …}`."""
POLL = 0.2
"""Seconds between two looks at whether the run was asked to end."""
TAIL = 2000
"""Characters of a dead worker's stderr that are shown."""


class JobFailed(RunError):
    """A job was not done: its worker ended with an error."""


class WorkerDied(JobFailed):
    """A job was not done: its worker was killed, by what need not happen again."""


class Worker:
    """One job in a process of its own.

    `tell` is called from a thread with each message as it comes, and with None when there will be no more; `result` is then asked for.
    """

    def __init__(self, job: Job, tell: "Callable[[Worker, Message | None], None]", environment: Mapping[str, str]) -> None:
        self.job = job
        self._last: Message = {}
        self._errors = TemporaryFile()  # noqa: SIM115, which lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mtcore.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
            # in a group of its own: Ctrl-C on a terminal reaches whoever started it, and from there each worker once
            process_group=0,
        )
        self._input = cast(IO[bytes], self._process.stdin)
        with suppress(BrokenPipeError):  # dead already: its result says so
            self._input.write(job.model_dump_json().encode() + b"\n")
            self._input.flush()  # and stays open: by its end the worker learns that nobody waits for it any more
        threading.Thread(target=self._listen, args=(tell,), daemon=True).start()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Have it save and end."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        code = self._process.wait()
        with suppress(BrokenPipeError):
            self._input.close()
        return code

    def result(self) -> Any:
        """Wait for its end; raises JobFailed with the exit code and the end of stderr where the job was not done."""
        code = self.wait()
        if code == 0 and "result" in self._last:
            return self._last["result"]
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - TAIL))
        said = self._errors.read().decode(errors="replace").strip() or "nothing"
        if code >= 0:
            raise JobFailed(f"{self.job.name}: exit code {code}, and it said last: {said}")
        hint = "; the system does so where memory runs out" if code == -signal.SIGKILL else ""
        raise WorkerDied(f"{self.job.name}: killed by {signal.Signals(-code).name}{hint}. It said last: {said}")

    def _listen(self, tell: "Callable[[Worker, Message | None], None]") -> None:
        try:
            with cast(IO[bytes], self._process.stdout) as lines:
                for line in lines:
                    if not line.endswith(b"\n"):  # it died in the middle of saying this
                        break
                    self._last = json.loads(line)
                    if "event" in self._last:
                        tell(self, self._last)
        finally:  # whatever came: somebody waits for this
            tell(self, None)


def require_done(failures: Sequence[Exception], jobs: int) -> None:
    """Raise RunError that names every job that failed, where any did."""
    if failures:
        told = "\n".join(str(failure) for failure in failures)
        raise RunError(
            f"{len(failures)} of {jobs} jobs failed; what the others did is kept, and the same command goes on from there\n{told}"
        )


def main() -> None:
    """Do the job that stands on stdin; events and the result go to stdout, all else to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)  # what anything prints must not end up between our lines
    job = Job.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with listening() as stop:
            result = pkgutil.resolve_name(job.call)(job.data, lambda event: _say(event_to_json(event), out, stop), stop)
            _say({"result": result}, out, stop)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except MtcoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _say(message: Message, out: int, stop: Stop) -> None:
    """Write a message as one line, which no signal tears."""
    line = memoryview(json.dumps(message).encode() + b"\n")
    with stop.whole(), suppress(BrokenPipeError):  # nobody listens any more: the signal to end is on its way
        while line:
            line = line[os.write(out, line) :]


def _end_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
