"""What servers of several releases do to a link is said in the operator's words."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kvtape.record import backoff as backoff_module
from kvtape.server.url import ServerUrl
from plain_client import PlainClient
from recording import Taping, options_for, taping_by
from replicas import attach, wait_until
from servers import Server, StartServer

pytestmark = pytest.mark.slow

OLD_AND_NEW = pytest.mark.parametrize(
    "server_name", ["redis-6.2", "redis-7.0", "valkey-9.1"], indirect=True
)
BOTH_ENDS = pytest.mark.parametrize(
    "server_name", ["redis-6.2", "redis-8.0"], indirect=True
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for little before trying again."""
    monkeypatch.setattr(backoff_module, "_FIRST", 0.02)
    monkeypatch.setattr(backoff_module, "_LONGEST", 0.1)


@contextmanager
def recording(
    server: Server, folder: Path, user: str | None = None
) -> Iterator[Taping]:
    url = ServerUrl("127.0.0.1", server.port)
    if user is not None:
        url = replace(url, username=user, password="secret")
    with taping_by(options_for(server.port, folder, url=url), server) as taping:
        # What the link stands on is what was streamed.
        with PlainClient(server.client()) as plain:
            wait_until(lambda: is_online(plain))
        yield taping


def is_online(plain: PlainClient) -> bool:
    return "online" in plain.info("replication").get("slave0", "")


def said_after(server: Server, folder: Path, event: Callable[[], object]) -> str:
    """Return why the link broke, as it is said after something happened."""
    with recording(server, folder) as taping:
        taping.catch_up()
        event()
        breaks = taping.agent.linker.breaks
        wait_until(lambda: breaks.last is not None)
        return breaks.last or ""


@OLD_AND_NEW
def test_a_killed_connection(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = start_server(server_name)
    client = server.client()
    text = said_after(
        server, tmp_path, lambda: client.client_kill_filter(_type="replica")
    )
    assert "somebody or something cut this connection (CLIENT KILL" in text
    assert "same run_id, role and history as before" in text


@OLD_AND_NEW
def test_a_crash_and_what_it_lost(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = start_server(server_name)
    with PlainClient(server.client()) as plain:

        def crash() -> None:
            plain.ask("SAVE")
            plain.ask("SET", "key", "x" * 3000)
            wait_until(
                lambda: "3000" in str(plain.ask("STRLEN", "key")) and is_online(plain)
            )
            server.kill()
            server.start()

        text = said_after(server, tmp_path, crash)
    assert text.startswith("the server was restarted; ")
    # Before 7.0, a server forgets which history its file belongs to.
    assert ("whether it was" in text) is (server_name == "redis-6.2")


@pytest.mark.parametrize("server_name", ["redis-6.2"], indirect=True)
def test_a_shutdown(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    # From 7.0 on, a server waits 10 s for whoever acknowledges nothing.
    server = start_server(server_name)
    text = said_after(server, tmp_path, server.restart)
    assert text.startswith("the server was restarted; ")


@OLD_AND_NEW
def test_a_source_that_is_promoted(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    primary, source = start_server(server_name), start_server(server_name)
    attach(source, primary)
    with PlainClient(source.client()) as plain:
        text = said_after(source, tmp_path, lambda: plain.ask("REPLICAOF", "NO", "ONE"))
    assert "it was a replica and is now a primary (a failover, or REPLICAOF)" in text


@OLD_AND_NEW
def test_a_failover_command(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    source, other = start_server(server_name), start_server(server_name)
    attach(other, source)
    with PlainClient(source.client()) as plain, recording(source, tmp_path) as taping:
        plain.ask("FAILOVER", "TO", "127.0.0.1", other.port)
        breaks = taping.agent.linker.breaks
        wait_until(lambda: breaks.last is not None)
    text = str(breaks.last)
    assert "FAILOVER is under way" in text or (
        f"it was a primary and is now a replica of 127.0.0.1:{other.port}" in text
    )


@BOTH_ENDS
def test_the_primary_of_a_source_is_restarted(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    primary, source = start_server(server_name), start_server(server_name)
    attach(source, primary)

    def crash() -> None:
        primary.kill()
        primary.start()

    text = said_after(source, tmp_path, crash)
    assert "it is a replica" in text
    assert f"its own primary 127.0.0.1:{primary.port}" in text


@OLD_AND_NEW
def test_a_user_that_is_deleted(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = start_server(server_name)
    plain = PlainClient(server.client())
    plain.ask(
        *("ACL", "SETUSER", "tape", "on", ">secret"),
        *("+psync", "+replconf", "+info", "+ping"),
    )
    with closing(plain), recording(server, tmp_path, "tape") as taping:
        plain.ask("ACL", "DELUSER", "tape")
        breaks = taping.agent.linker.breaks
        wait_until(lambda: breaks.last is not None)
    text = str(breaks.last)
    assert "does not let this recording in any more" in text
    assert "WRONGPASS" in text
    assert "secret" not in text


@BOTH_ENDS
def test_a_server_that_may_not_be_asked(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = start_server(server_name)
    client = server.client()
    plain = PlainClient(client)
    plain.ask("ACL", "SETUSER", "tape", "on", ">secret", "+psync", "+replconf")
    with closing(plain), recording(server, tmp_path, "tape") as taping:
        client.client_kill_filter(_type="replica")
        breaks = taping.agent.linker.breaks
        wait_until(lambda: breaks.last is not None)
    text = str(breaks.last)
    assert "why is unknown" in text
    assert "the primary cut the link" in text


# What happens to a recorder that is stopped, which is a process of its own.


def log_of_a_stop(
    server: Server,
    folder: Path,
    started: list[subprocess.Popen[str]],
    write: Callable[[PlainClient], object],
) -> str:
    """Stop a recorder until it is cut; return what it says when it goes on."""
    log = folder / "log"
    with log.open("w") as output, PlainClient(server.client()) as plain:
        recorder = subprocess.Popen(
            [
                *(sys.executable, "-m", "kvtape", "record"),
                f"redis://127.0.0.1:{server.port}",
                *("--repo", str(folder / "repo"), "--spool", str(folder / "spool")),
            ],
            stderr=output,
            text=True,
            env=os.environ | {"COLUMNS": "10000"},
        )
        started.append(recorder)
        wait_until(lambda: is_online(plain))
        recorder.send_signal(signal.SIGSTOP)

        def is_cut() -> bool:
            write(plain)
            return plain.info("replication")["connected_slaves"] == "0"

        wait_until(is_cut)
        recorder.send_signal(signal.SIGCONT)
        wait_until(lambda: "broke because" in log.read_text())
    return log.read_text()


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_an_output_buffer_that_grew_while_we_were_stopped(
    tmp_path: Path,
    start_server: StartServer,
    server_name: str,
    started: list[subprocess.Popen[str]],
) -> None:
    server = start_server(
        server_name, client_output_buffer_limit="replica 0 1mb 4", repl_timeout="60"
    )
    value = random.randbytes(256 * 1024)
    log = log_of_a_stop(
        server, tmp_path, started, lambda plain: plain.ask("SET", "key", value)
    )
    assert "this program did not run for " in log
    assert "client-output-buffer-limit replica (hard none, soft 1.0 MiB for 4 s)" in log
    has_counter = server_name == "valkey-9.1"
    assert ("it has closed 1 connection for such a limit" in log) is has_counter


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_a_primary_that_lost_patience_while_we_were_stopped(
    tmp_path: Path,
    start_server: StartServer,
    server_name: str,
    started: list[subprocess.Popen[str]],
) -> None:
    server = start_server(server_name, repl_timeout="4")
    log = log_of_a_stop(server, tmp_path, started, lambda plain: plain.ask("PING"))
    assert "longer than its repl-timeout (4 s)" in log
    assert "recording goes on from there" in log
