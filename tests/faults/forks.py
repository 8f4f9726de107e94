"""Runs that begin at once, and are killed at chosen moments: a parent that has everything imported, and one forked child a process.

    python forks.py        jobs as lines of JSON on standard input, what became of each as a line of JSON on standard output

A job is {"scene": NAME, "folder": FOLDER, "report": FOLDER, "arguments": [...], "environment": null, "stdin": "", "processes": 1, "kill": null,
"victim": 0, "tear": false}. The scene runs in the job's environment until its end, or until the first process is about to do its `kill`-th file
event (one that changes something) inside FOLDER: then the process `victim` is killed, or every process where it is -1; `tear` first cuts the
newest file of a folder that is being written in half, as a power cut may.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import scenes

LIMIT = 240
"""Seconds that a run may take."""
PATIENCE = 60
"""Seconds that a process may live on when another one of its run is dead."""


def main() -> None:
    jobs, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    scenes.preload()
    for line in jobs:
        job = json.loads(line)
        print(json.dumps(launch(job)), file=answers, flush=True)


def launch(job: dict[str, Any]) -> dict[str, Any]:
    """Fork the processes of one run; say how each ended, what they printed, and which file events the first one did."""
    folder, report = Path(job["folder"]), Path(job["report"])
    report.mkdir()
    (report / "stdin").write_text(job.get("stdin", ""), encoding="utf-8")
    count, port, pids = job.get("processes", 1), free_port(), []
    for rank in reversed(range(count)):  # the first process is forked last, so that it knows the others
        pid = os.fork()
        if pid == 0:
            play(job, folder, report, rank, count, port, pids)
        pids.insert(0, pid)
    ends, deadline = {}, time.monotonic() + LIMIT
    while len(ends) < count:
        for pid in pids:
            if pid not in ends:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ends[pid] = os.waitstatus_to_exitcode(status)
                    deadline = min(deadline, time.monotonic() + PATIENCE)
        if time.monotonic() > deadline:
            for pid in set(pids) - set(ends):
                os.kill(pid, signal.SIGUSR1)
                time.sleep(1)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                ends[pid] = "hung"
        time.sleep(0.002)
    modules = report / "modules"
    if modules.exists():
        for name in modules.read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        modules.unlink()
        gc.freeze()  # or the first collection of every child would copy all memory of this process
    return {
        "report": job["report"],
        "ends": [ends[pid] for pid in pids],
        **{name: [(report / f"{name}-{rank}").read_text(encoding="utf-8") for rank in range(count)] for name in ("stdout", "stderr")},
        "events": (report / "events").read_text().splitlines(),
    }


def play(job: dict[str, Any], folder: Path, report: Path, rank: int, count: int, port: int, others: list[int]) -> None:
    """Be one process of a run; never returns."""
    os.dup2(os.open(report / "stdin", os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(report / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    if job.get("environment"):
        os.environ.clear()
        os.environ.update(job["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if count > 1:
        where = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in where.items()})
    code = 1
    try:
        if rank == 0:
            watch(folder, report / "events", job.get("kill"), killer(job, folder, others))
        code = scenes.SCENES[job["scene"]](folder, *job.get("arguments", [])) or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    if code == 0 and rank == 0:
        (report / "modules").write_text("\n".join(name for name in list(sys.modules) if name != "__main__"))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def killer(job: dict[str, Any], folder: Path, others: list[int]) -> Callable[[], None]:
    victim = job.get("victim", 0)

    def kill() -> None:
        if job.get("tear"):
            tear(folder)
        for number, pid in enumerate(others, 1):
            if victim in (number, -1):
                os.kill(pid, signal.SIGKILL)
        if victim in (0, -1):
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def watch(folder: Path, log: Path, kill_at: int | None, kill: Callable[[], None]) -> None:
    """Note every file event inside the folder before it happens, and kill before the one of that number."""
    root, seen, events = str(folder), 0, log.open("w", buffering=1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        path = changed(event, arguments)
        if path is None or not path.startswith(root + "/"):
            return
        seen += 1
        events.write(f"{event} {path[len(root) + 1 :]}\n")
        if seen == kill_at:
            kill()

    sys.addaudithook(hook)


def changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an audit event is about to change."""
    if event == "open":
        path, _, flags = arguments
        is_write = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        return os.path.abspath(os.fsdecode(path)) if is_write and isinstance(path, (str, bytes, os.PathLike)) else None
    if event not in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
        return None
    path, descriptor = arguments[0], arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None
    if isinstance(descriptor, int) and descriptor >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), os.fsdecode(path))
    path = os.path.abspath(os.fsdecode(path))
    return None if event == "os.mkdir" and os.path.isdir(path) else path


def tear(folder: Path) -> None:
    """Cut the newest file of a folder that is being written in half."""
    files = [p for p in folder.rglob("*") if p.is_file() and ".tmp" in str(p.relative_to(folder).parent)]
    if files:
        newest = max(files, key=lambda p: p.stat().st_mtime_ns)
        os.truncate(newest, newest.stat().st_size // 2)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
