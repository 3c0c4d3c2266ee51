"""What a client deleted is never told as expired, however late the recording has it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from chronicle import history, least_ahead, must_be_told
from diary import noise
from kvtape.server.url import ServerUrl
from plain_client import PlainClient
from recording import recording
from replicas import wait_until
from servers import Server, StartServer
from switch import Switch
from verbs import program

pytestmark = pytest.mark.slow

MODERN = pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
EITHER = pytest.mark.parametrize(
    "server_name", ["redis-6.2", "valkey-9.1"], indirect=True
)

# How much is written meanwhile (MiB).
SMALL, LARGE = 0, 24

_SKEWED_CLOCK: Final = Path(__file__).resolve().parent / "skewed_clock"


@contextmanager
def agent(
    server: Server, folder: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Record a server by a program of its own; all is stored when it is left."""
    with (
        program(
            *("record", f"redis://127.0.0.1:{server.port}", "--ack", "received"),
            *("--repo", folder / "repo", "--spool", folder / "spool"),
            *("--flush-interval", "10ms", "--upload-interval", "300ms"),
            env=env,
        ) as process,
        PlainClient(server.client()) as plain,
    ):
        wait_until(lambda: "slave0" in plain.info("replication"))
        catch_up(plain)
        yield process
        catch_up(plain)
        process.terminate()
        assert process.wait(20) == 0


def catch_up(plain: PlainClient) -> None:
    """Wait until the agent says that it has what was written up to now."""
    end = int(plain.info("replication")["master_repl_offset"])

    def has_it() -> bool:
        told = dict(
            part.split("=") for part in plain.info("replication")["slave0"].split(",")
        )
        return told["state"] == "online" and int(told["offset"]) >= end

    wait_until(has_it)


def cause(folder: Path, key: str) -> str | None:
    *_, last = history(folder / "repo", (0, key.encode()))
    assert last["effect"] == "deletes"
    told: str | None = last["cause"]
    return told


def write(plain: PlainClient, megabytes: int) -> None:
    """Write so much that does not compress, so that it takes a while to get through."""
    plain.exchange([("SET", "large", os.urandom(2**20)) for _ in range(megabytes)])


def outlive(plain: PlainClient, *, of: str) -> None:
    """Wait until a key has expired."""
    wait_until(lambda: plain.ask("EXISTS", of) == 0)


@MODERN
@pytest.mark.parametrize("megabytes", [SMALL, LARGE])
def test_after_the_agent_was_stopped(
    server_name: str, start_server: StartServer, tmp_path: Path, megabytes: int
) -> None:
    server = start_server(server_name)
    with (
        noise(server),
        PlainClient(server.client()) as plain,
        agent(server, tmp_path) as process,
    ):
        # It says each second what it has.
        for key in ("key", "witness"):
            plain.ask("SET", key, 1, "PX", 2500)
        catch_up(plain)
        process.send_signal(signal.SIGSTOP)
        write(plain, megabytes)
        assert plain.ask("DEL", "key")
        outlive(plain, of="witness")
        process.send_signal(signal.SIGCONT)
        catch_up(plain)
    assert cause(tmp_path, "key") == "unknown"


@MODERN
@pytest.mark.parametrize(
    ("way", "megabytes"),
    [
        ("cut", SMALL),
        ("cut", LARGE),
        ("held up", SMALL),
        ("held up", LARGE),
    ],
)
def test_after_the_link_was_down(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    megabytes: int,
    way: str,
) -> None:
    server = start_server(server_name, repl_backlog_size="100mb")
    with (
        noise(server),
        PlainClient(server.client()) as plain,
        Switch(server.port) as switch,
        recording(server, tmp_path, url=ServerUrl("127.0.0.1", switch.port)) as tape,
    ):
        for key in ("key", "witness"):
            plain.ask("SET", key, 1, "PX", 1000)
        tape.catch_up()
        if way == "cut":
            switch.turn_to(None)
        else:
            switch.stop()
        write(plain, megabytes)
        assert plain.ask("DEL", "key")
        outlive(plain, of="witness")
        if way == "cut":
            switch.turn_to(server.port)
        else:
            switch.heal()
        tape.catch_up()
    assert cause(tmp_path, "key") == "unknown"


@MODERN
def test_behind_much_that_was_written_at_once(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server, keys = start_server(server_name), [f"key:{n}" for n in range(8)]
    with (
        noise(server),
        PlainClient(server.client()) as plain,
        recording(server, tmp_path) as tape,
    ):
        for number, key in enumerate(keys):
            plain.ask("SET", key, 1, "PX", 200 + 60 * number)
        tape.catch_up()
        write(plain, 8)
        deleted = [key for key in keys if plain.ask("DEL", key)]
        tape.catch_up()
    assert {cause(tmp_path, key) for key in deleted} <= {"unknown"}


@EITHER
@pytest.mark.parametrize("in_multi", [False, True])
def test_before_a_command_that_takes_long(
    server_name: str, start_server: StartServer, tmp_path: Path, in_multi: bool
) -> None:
    server = start_server(server_name)
    with (
        noise(server),
        PlainClient(server.client()) as plain,
        recording(server, tmp_path) as tape,
    ):
        plain.ask("SET", "key", 1, "PX", 300)
        tape.catch_up()
        commands = [("DEL", "key"), ("SET", "other", 1), ("DEBUG", "SLEEP", 0.6)]
        if in_multi:
            commands = [("MULTI",), *commands, ("EXEC",)]
        plain.exchange(commands)
        tape.catch_up()
    assert cause(tmp_path, "key") in (
        ["unknown", "transaction"] if in_multi else ["unknown"]
    )


@MODERN
@pytest.mark.parametrize("hours", [2, -2])
def test_where_the_clocks_differ(
    server_name: str, start_server: StartServer, tmp_path: Path, hours: int
) -> None:
    server = start_server(server_name)
    (tmp_path / "skew").write_text(str(hours * 3600))
    path = os.pathsep.join([str(_SKEWED_CLOCK), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path, "SKEWED_CLOCK": str(tmp_path / "skew")}
    with (
        noise(server),
        PlainClient(server.client()) as plain,
        agent(server, tmp_path, env),
    ):
        for n in range(20):
            plain.ask("SET", f"dies:{n}", 1, "PX", 200 + 17 * n)
            plain.ask("SET", f"lives:{n}", 1, "PX", 2000)
        for n in range(20):
            plain.ask("DEL", f"lives:{n}")
        wait_until(lambda: "db0" not in plain.info("keyspace"))
    lasts = [history(tmp_path / "repo", (0, b"dies:%d" % n))[-1] for n in range(20)]
    ahead = least_ahead(tmp_path / "repo")
    assert abs(ahead + hours * 3_600_000) < 60_000
    assert {cause(tmp_path, f"lives:{n}") for n in range(20)} == {"unknown"}
    for last in lasts:
        assert last["cause"] in ("expired", "unknown")
        assert must_be_told(last, ahead) <= (last["cause"] == "expired")
