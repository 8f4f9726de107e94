"""How the servers of this machine are found and asked: HTTP over admin sockets, which only their user can open."""

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtcore.errors import RunError

SOCKET = "admin.sock"
LONGEST = 100
"""Bytes of a socket's path; the system knows a bound of 107, and names of workers are appended."""


class Unreachable(RunError):
    """Nobody answers on an admin socket."""


def private_folder() -> Path:
    """This user's folder of servers. Raises RunError where it is somebody else's, who could listen in."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    folder = (runtime if runtime.is_dir() else Path(tempfile.gettempdir())) / f"mtcore-serve-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RunError(f"{folder} is not private to this user: remove it, or set XDG_RUNTIME_DIR to a folder of your own")
    return folder


def listen_privately(path: Path) -> socket.socket:
    """A Unix socket that only this user can open. Raises RunError where a server listens there or the path cannot be one."""
    if len(os.fsencode(path)) > LONGEST:
        raise RunError(f"{path} is too long for a socket's path ({LONGEST} bytes at most): choose another with --admin")
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise RunError(f"{path} is there already and is no socket: choose another path with --admin")
        if is_alive(path):
            raise RunError(f"another server listens on {path}: choose another path with --admin")
        path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)  # from its first moment nobody else may open it
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise RunError(f"{path} cannot be listened on: {error.strerror}; choose another path with --admin") from None
    finally:
        os.umask(mask)
    return listening


def is_alive(path: Path) -> bool:
    """Whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


def find_server() -> Path:
    """The admin socket of the only server that this user runs with a default path. Raises Unreachable where there are none or several."""
    alive = [path for path in sorted(private_folder().glob(f"*/{SOCKET}")) if is_alive(path)]
    if len(alive) != 1:
        what = f"several servers run here: {', '.join(map(str, alive))}" if alive else "no server of yours runs here"
        raise Unreachable(f"{what}. Name its socket with --admin; `mtcore serve` prints it when it starts.")
    return alive[0]


async def ask(path: Path, method: str, route: str, body: Mapping[str, Any] | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Ask on an admin socket and return its answer. Raises Unreachable, or RunError with what was refused."""
    content = json.dumps(body or {}).encode()
    headers = ("Host: admin", "Connection: close", "Content-Type: application/json", f"Content-Length: {len(content)}")
    head = "\r\n".join((f"{method} {route} HTTP/1.1", *headers, "", ""))
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(head.encode() + content)
                response = await reader.read()
            finally:
                writer.close()
        status, _, rest = response.partition(b"\r\n")
        answer = json.loads(rest.partition(b"\r\n\r\n")[2])
    except (OSError, TimeoutError, ValueError) as error:
        raise Unreachable(f"no answer from the server at {path} ({str(error) or type(error).__name__}). Does it still run?") from None
    if status.split()[1] != b"200":
        raise RunError(str(answer.get("error", answer)))
    return dict(answer)
