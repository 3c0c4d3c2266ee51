"""systemd is told what sd_notify(3) says, over a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import trio
import trio.testing

from kvtape.watch.notify import Notifier, find_notifier
from servers import StartServer

TIMEOUT = 20.0


@pytest.fixture(params=["path", "abstract"])
def supervisor(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[socket.socket, str]]:
    """Return a socket as systemd has one, and what NOTIFY_SOCKET is then."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = f"@kvtape-{uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(TIMEOUT)
        listening.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        yield listening, name


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_systemd_is_told_of_a_recording_from_its_start_to_its_end(
    tmp_path: Path,
    server_name: str,
    start_server: StartServer,
    supervisor: tuple[socket.socket, str],
) -> None:
    listening, name = supervisor
    server = start_server(server_name)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kvtape", "record", "--repo", "repo"),
            *(f"redis://127.0.0.1:{server.port}", "--spool", "spool"),
        ],
        cwd=tmp_path,
        env=os.environ | {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert listening.recv(4096).startswith(b"READY=1\nSTATUS=")
        assert (tmp_path / "spool" / "lock").exists()
        for _ in range(3):
            assert listening.recv(4096).startswith(b"WATCHDOG=1\nSTATUS=")
        process.send_signal(signal.SIGTERM)
        said = b""
        while not said.startswith(b"STOPPING=1\n"):
            said = listening.recv(4096)
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()


def test_nobody_is_told_where_nobody_asks() -> None:
    assert find_notifier({}) is None
    assert find_notifier({"NOTIFY_SOCKET": "vsock:2:1"}) is None


def test_the_watchdog_is_told_twice_as_often_as_it_looks() -> None:
    own = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_PID": str(os.getpid())}
    assert find_notifier(own | {"WATCHDOG_USEC": "4000000"}) == Notifier("/run/x", 2.0)
    calm = Notifier("/run/x", 10.0)
    assert find_notifier(own) == calm
    assert find_notifier(own | {"WATCHDOG_USEC": "60000000"}) == calm
    other = own | {"WATCHDOG_PID": "1", "WATCHDOG_USEC": "2"}
    assert find_notifier(other) == calm


async def test_a_supervisor_that_is_gone_is_not_our_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    notifier = Notifier(str(tmp_path / "nobody"))
    with trio.move_on_after(60) as scope:
        await notifier.keep_telling(lambda: "recording")
    assert scope.cancelled_caught
