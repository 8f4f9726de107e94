"""The admin socket: who can open it, how it is found, what it says."""

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop
from mtcore_serve.admin import create_admin
from mtcore_serve.control import SOCKET, Unreachable, ask, find_server, listen_privately, private_folder
from mtcore_serve.fleet import Source
from mtcore_serve.listener import Listener
from mtcore_serve.starting import own_folder

from mtcore.errors import ModelError, RunError


class Writes:
    """Writes down what it is asked; no bundle of the group `bad` can be prepared."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def prepare(self, source: Source, *, may_drop_tasks: bool = False) -> str:
        if source.group == "bad":
            raise ModelError(f"{source.folder} cannot be served")
        self.asked.append((source, may_drop_tasks))
        return "v2"

    async def switch(self, group: str) -> str:
        self.asked.append(f"switch {group}")
        return "v2"

    async def discard(self, group: str) -> None:
        self.asked.append(f"discard {group}")

    async def share(self, group: str, *, canary: float = 0.0, shadow: float = 0.0) -> None:
        self.asked.append((group, canary, shadow))

    async def status(self) -> Mapping[str, Any]:
        return {"state": "serving"}


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The private folder of a user who runs nothing; its path is short, as those of sockets must be."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield private_folder()


def test_what_is_asked_over_the_socket_is_done_and_what_is_refused_is_told(servers: Path) -> None:
    async def test() -> None:
        writes, path = Writes(), servers / "x.sock"
        listening = listen_privately(path)
        admin = Listener(create_admin(writes), header_seconds=5, drain_seconds=0)
        serving = asyncio.create_task(admin.serve([listening]))
        await admin.is_listening.wait()
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(RunError, match="another server"):
            listen_privately(path)
        body = {"group": "a", "folder": "/b", "qualified": {"t": True}}
        assert await ask(path, "POST", "/prepare", body) == {"group": "a", "version": "v2"}
        assert await ask(path, "POST", "/share", {"group": "a", "canary": 0.5}) == {"group": "a", "canary": 0.5, "shadow": 0.0}
        assert await ask(path, "POST", "/switch", {"group": "a"}) == {"group": "a", "version": "v2"}
        assert await ask(path, "POST", "/discard", {"group": "a"}) == {"group": "a"}
        assert writes.asked == [(Source("a", Path("/b"), {"t": True}), False), ("a", 0.5, 0.0), "switch a", "discard a"]
        assert await ask(path, "GET", "/status") == {"state": "serving"}
        with pytest.raises(RunError, match=r"^/b cannot be served$"):
            await ask(path, "POST", "/prepare", body | {"group": "bad"})
        with pytest.raises(RunError, match="canary"):
            await ask(path, "POST", "/share", {"group": "a", "canary": 2})
        admin.should_exit = True
        await serving
        with pytest.raises(Unreachable):
            await ask(path, "GET", "/status")

    uvloop.run(test())


def test_the_only_server_is_found(servers: Path) -> None:
    def put(name: str) -> socket.socket:
        (servers / name).mkdir()
        listening = listen_privately(servers / name / SOCKET)
        listening.listen()
        return listening

    with pytest.raises(Unreachable, match="no server"):
        find_server()
    put("1").close()  # killed: its socket stayed behind
    with put("2"):
        assert find_server() == servers / "2" / SOCKET
        with put("3"), pytest.raises(Unreachable, match="several servers"):
            find_server()


def test_a_folder_that_others_could_open_is_not_trusted(servers: Path, tmp_path: Path) -> None:
    servers.chmod(0o755)
    with pytest.raises(RunError, match="not private"):
        private_folder()
    servers.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    servers.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="not private"):
        private_folder()


def test_a_socket_is_put_in_the_place_of_a_dead_one_and_of_nothing_else(servers: Path) -> None:
    path = servers / "x.sock"
    for _ in range(2):
        listen_privately(path).close()
    path.unlink()
    path.write_text("mine")
    with pytest.raises(RunError, match="no socket"):
        listen_privately(path)
    with pytest.raises(RunError, match="too long"):
        listen_privately(servers / ("x" * 200))
    with pytest.raises(RunError, match="cannot be listened on"):
        listen_privately(servers / "nowhere" / "x.sock")
    assert os.umask(0o022) == 0o022


def test_what_killed_servers_left_is_cleared_away_and_what_others_need_is_not(servers: Path) -> None:
    for name in ("999999999-dead", "999999998-elsewhere", f"{os.getpid()}-here"):
        (servers / name).mkdir()
    with listen_privately(servers / "999999998-elsewhere" / SOCKET) as elsewhere:
        elsewhere.listen()
        with own_folder() as mine:
            assert stat.S_IMODE(mine.stat().st_mode) == 0o700
            assert {path.name for path in servers.iterdir()} == {"999999998-elsewhere", f"{os.getpid()}-here", mine.name}
    assert not mine.exists()
