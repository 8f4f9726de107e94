"""Servers as processes of their own: started, pinned to cores, weighed, timed and ended."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
PATIENCE = 90.0
"""Seconds in which a server must be ready."""


@dataclass
class Server:
    """A running server with all its processes."""

    name: str
    port: int
    ready: str
    process: psutil.Process
    popen: "subprocess.Popen[bytes]"
    log: Path

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.popen.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.popen.returncode}:\n{self.log.read_text()[-3000:]}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.ready}", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"{self.name} was not ready within {PATIENCE:.0f} s:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        if self.popen.poll() is not None:
            return
        children = self.process.children(recursive=True)
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for child in children:  # a server that leaves processes behind must not disturb the next one
            if child.is_running():
                child.kill()


def start(name: str, command: Sequence[str], port: int, ready: str, folder: Path) -> Server:
    """Start a server, without waiting for it."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name.replace(' ', '-').replace('/', '-')}-{port}.log"
    anywhere = ["taskset", "-c", f"0-{(os.cpu_count() or 1) - 1}"]  # whoever starts it may be pinned
    with log.open("wb") as file:
        popen = subprocess.Popen([*anywhere, *command], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT})
    return Server(name, port, ready, psutil.Process(popen.pid), popen, log)


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name(script)), *arguments]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def pin(servers: Iterable[Server], cores: Iterable[int]) -> None:
    """Let every thread of the servers run on these cores alone; threads that begin later inherit it."""
    for process in (p for server in servers for p in server.tree()):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, set(cores))


def cpu_seconds(servers: Iterable[Server]) -> float:
    """Processor time that the servers have taken since they began."""
    return sum(sum(process.cpu_times()[:2]) for server in servers for process in server.tree())


def memory(servers: Iterable[Server]) -> dict[str, float]:
    """MiB: proportional set size (shared pages counted once over all) and unique set size (what ending the processes would free)."""
    infos = [process.memory_full_info() for server in servers for process in server.tree()]
    return {"pss": sum(i.pss for i in infos) / 2**20, "uss": sum(i.uss for i in infos) / 2**20, "processes": len(infos)}
