"""What a server needs before it loads anything: keys, a socket that nobody else has, threads, a private folder."""

import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtcore.doctor.machine import cpu_quota
from mtcore.errors import ConfigError, RunError
from mtcore_serve.control import SOCKET, is_alive, private_folder

KEYS = "MTCORE_SERVE_KEYS"
SHORTEST = 16
"""Characters of a key; a shorter one can be guessed."""
HOW = "python -c 'import secrets; print(secrets.token_urlsafe(32))' > keys && chmod 600 keys"


def read_keys(file: Path | None, environment: str | None) -> tuple[str, ...]:
    """Keys from a file, one a line, and from the environment, with commas or spaces between. Raises ConfigError where one is no key."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as a file of keys: {error}") from None
    keys = [key for line in [*lines, *(environment or "").replace(",", " ").split()] if (key := line.strip())]
    if file and not any(line.strip() for line in lines):
        raise ConfigError(f"{file} holds no key. Make one: {HOW}")
    if any(len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ConfigError(f"a key must be {SHORTEST} or more printable ASCII characters without spaces. Make one: {HOW}")
    return tuple(dict.fromkeys(keys))


def bind(host: str, port: int, keys: tuple[str, ...]) -> socket.socket:
    """A socket that has its address and does not listen yet. Raises ConfigError where others could reach it and no key is asked for."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror}") from None
    if not keys and not ipaddress.ip_address(address[0]).is_loopback:
        raise ConfigError(f"on {host} others can reach the server, so it demands a key. Make one: {HOW}; then start with --key-file keys")
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise RunError(f"port {port} on {host} cannot be had: {error.strerror}; end what uses it, or choose another with --port") from None
    return bound


def url(bound: socket.socket) -> str:
    """Where the server is reached."""
    host, port, *_ = bound.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def default_threads(workers: int) -> int:
    """This process's share of the processors that may be used; OMP_NUM_THREADS where that says less."""
    quota = cpu_quota()
    processors = min(len(os.sched_getaffinity(0)), max(1, round(quota))) if quota else len(os.sched_getaffinity(0))
    said = os.environ.get("OMP_NUM_THREADS", "")
    return min(max(1, processors // workers), int(said) if said.isdecimal() and int(said) else processors)


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder of this process among this user's servers, gone when it ends; those of processes that were killed are cleared away."""
    servers = private_folder()
    for old in servers.glob("[0-9]*-*"):
        # a process of another container may not be seen from here, but its socket answers
        if not Path("/proc", old.name.partition("-")[0]).exists() and not is_alive(old / SOCKET):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=servers))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
