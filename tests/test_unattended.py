"""What must not need an operator: limits that are not stuck, signals that are heard."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from replicas import wait_until
from servers import StartServer

pytestmark = pytest.mark.slow

TIMEOUT = 30


def record(port: int, folder: Path, user: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "kvtape", "record"),
            f"redis://{user}127.0.0.1:{port}",
            *("--repo", str(folder / "repository"), "--spool", str(folder / "spool")),
        ],
        env=os.environ | {"KVTAPE_PASSWORD": "secret"} if user else None,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_a_broken_link_is_continued_though_no_more_full_resyncs_are_allowed(
    tmp_path: Path,
    server_name: str,
    start_server: StartServer,
    started: list[subprocess.Popen[str]],
) -> None:
    # The user may not ask INFO, so that only PSYNC tells whether it can be continued.
    server = start_server(server_name)
    with server.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "tape", "on", ">secret", "+psync", "+replconf")
        )
        started.append(record(server.port, tmp_path, "tape@"))

        def stats(name: str) -> int:
            return int(client.info("stats")[name])

        def online() -> bool:
            found = client.info("replication")
            return bool(found["connected_slaves"]) and (
                found["slave0"]["state"] == "online"
            )

        wait_until(online)
        client.execute_command("DEBUG", "CHANGE-REPL-ID")
        client.client_kill_filter(_type="replica")
        wait_until(lambda: stats("sync_full") == 2 and online())
        client.set("key", "value")
        client.client_kill_filter(_type="replica")
        wait_until(lambda: stats("sync_partial_ok") == 1)
        assert stats("sync_full") == 2


def test_a_stop_is_heard_while_the_server_does_not_answer(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        recording = record(silent.getsockname()[1], tmp_path)
        started.append(recording)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)
            recording.send_signal(signal.SIGTERM)
            assert recording.wait(timeout=TIMEOUT) == 0
