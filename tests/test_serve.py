"""Any server that says REPLICAOF becomes what the primary was, or keeps what it has."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from kvtape.errors import ServerError, VerificationError
from kvtape.restore.job import Job, Result
from kvtape.restore.link import Target
from kvtape.restore.serve import ServeOptions, serve
from kvtape.tape.point import ToOffset
from oracle import compare, fingerprint
from plain_client import PlainClient
from recording import THEN, Recorded, Tape, rdb, recorded, tape_of
from replicas import replication_of, wait_until
from servers import Server, StartServer

PASSWORD = "correct-horse"


@pytest.fixture
def recording(server_name: str, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Return the recording of each of the six servers."""
    folder = tmp_path_factory.getbasetemp() / f"recorded-{server_name}"
    return recorded(server_name, folder)


@dataclass
class Serving:
    """What a restore that is served has told so far."""

    port: int = 0
    result: Result | None = None
    complete: list[tuple[int | None, VerificationError | None]] = field(
        default_factory=list
    )

    def has_served(self, target: Server) -> bool:
        """Whether a server was told to have everything."""
        return any(port == target.port for port, _ in self.complete)


@contextmanager
def serving(
    job: Job, *, password: str | None = None, force: bool = False
) -> Iterator[Serving]:
    """Serve a restore from a thread; it can be asked for when this is entered."""
    told = Serving()
    is_ready = threading.Event()
    options = ServeOptions("127.0.0.1", 0, password, force)
    errors: list[BaseException] = []
    scope: trio.CancelScope | None = None
    token: trio.lowlevel.TrioToken | None = None

    def ready(port: int, result: Result) -> None:
        told.port, told.result = port, result
        is_ready.set()

    def complete(target: Target, trouble: VerificationError | None) -> None:
        told.complete.append((target.listening_port, trouble))

    async def main() -> None:
        nonlocal scope, token
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            await serve(job, options, ready=ready, complete=complete)

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 it is raised below
            errors.append(error)
            is_ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_ready.wait(timeout=20)
    try:
        if not errors:
            yield told
    finally:
        if scope is not None and token is not None and thread.is_alive():
            token.run_sync_soon(scope.cancel)
        thread.join(timeout=20)
    if errors:
        raise errors[0]


def follow(target: Server, told: Serving, password: str | None = None) -> None:
    with PlainClient(target.client(password=password)) as plain:
        plain.ask("REPLICAOF", "127.0.0.1", told.port)


def test_who_says_replicaof_is_what_the_primary_was(
    recording: Recorded, start_server: StartServer
) -> None:
    moment = recording.middle
    with serving(recording.job(ToOffset(moment.offset)), password=PASSWORD) as told:
        assert told.result is not None
        assert told.result.offset == moment.offset
        secured = start_server(
            recording.name, requirepass=PASSWORD, masterauth=PASSWORD
        )
        secured.client(password=PASSWORD).set("old", 1)
        other = start_server(recording.name)
        follow(secured, told, PASSWORD)
        follow(other, told)
        for target, password in ((secured, PASSWORD), (other, None)):
            wait_until(lambda target=target: told.has_served(target))  # type: ignore[misc]
            client = target.client(password=password)
            assert compare(moment.state, fingerprint(client)) == []
            assert client.mget("counter", "pending") == [b"11", b"11"]
        assert [trouble for _, trouble in told.complete] == [None, None]
        with PlainClient(other.client()) as plain:
            plain.ask("REPLICAOF", "NO", "ONE")
    # It stays what it is when the serving ends.
    assert replication_of(other)["role"] == "master"
    assert other.client().pttl("counter") == -1


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_it_stays_at_the_chosen_offset_under_the_recorded_id(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [("INCR", "key"), ("PERSIST", "key"), ("PING",)],
        rdb((0, "key", "10", THEN + 1)),
    )
    target = start_server(server_name)
    with serving(tape.job()) as told:
        follow(target, told)
        wait_until(lambda: told.has_served(target))
        info = replication_of(target)
        assert info["master_replid"] == tape.replid
        assert info["master_link_status"] == "up"
        assert int(info["master_repl_offset"]) == tape.end
        assert target.client().get("key") == b"11"


def must_keep(
    job: Job, target: Server, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """See that a server is refused, and keeps what it has."""
    target.client().set("old", 1)
    with caplog.at_level(logging.WARNING), serving(job, force=True) as told:
        follow(target, told)
        wait_until(lambda: why in caplog.text)
        assert target.client().get("old") == b"1"
        assert replication_of(target)["master_link_status"] == "down"
        assert told.complete == []


@pytest.mark.parametrize(
    ("recorded_name", "target_name"),
    [("redis-8.0", "redis-7.0"), ("valkey-9.1", "valkey-8.0")],
)
def test_an_older_server_keeps_what_it_has(
    start_server: StartServer,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
    recorded_name: str,
    target_name: str,
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"recorded-{recorded_name}"
    job = recorded(recorded_name, folder).job()
    must_keep(job, start_server(target_name), caplog, "cannot load RDB version")


def test_an_older_valkey_that_lets_nobody_ask_is_known_by_what_it_announces(
    start_server: StartServer,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "recorded-valkey-9.1"
    job = recorded("valkey-9.1", folder).job()
    target = start_server("valkey-8.0", requirepass=PASSWORD)
    target.client(password=PASSWORD).set("old", 1)
    with caplog.at_level(logging.WARNING), serving(job) as told:
        follow(target, told, PASSWORD)
        wait_until(lambda: "cannot load RDB version" in caplog.text)
    assert target.client(password=PASSWORD).get("old") == b"1"


def test_a_server_that_lacks_a_command_or_a_database_keeps_what_it_has(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = start_server("redis-7.0", databases="4")
    for commands, why in (
        ([("JSON.SET", "key", "$", 1)], "does not know the command JSON.SET"),
        ([("SELECT", 9), ("SET", "a", 1)], "has 4 databases, and the recording needs"),
    ):
        repository = tmp_path / why[:8]
        tape = tape_of(repository, "redis-7.0", commands)
        must_keep(tape.job(), target, caplog, why)
        with PlainClient(target.client()) as plain:
            plain.ask("REPLICAOF", "NO", "ONE")


def test_an_error_that_a_server_swallows_is_told(
    start_server: StartServer, tmp_path: Path
) -> None:
    snapshot = rdb((0, "key", "a string", None))
    tape = tape_of(tmp_path, "redis-7.0", [("LPUSH", "key", 1)], snapshot)
    target = start_server("redis-7.0")
    with serving(tape.job()) as told:
        follow(target, told)
        wait_until(lambda: told.has_served(target))
    [(_, trouble)] = told.complete
    assert "1 x WRONGTYPE" in str(trouble)


def test_who_is_no_replica_does_not_disturb(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tape = tape_of(tmp_path, "redis-7.0")
    target = start_server("redis-7.0")
    with caplog.at_level(logging.WARNING), serving(tape.job()) as told:
        address = ("127.0.0.1", told.port)
        socket.create_connection(address).close()
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\0\0", b"\0" * 100):
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(said)
                assert connection.recv(100) == b""
        wait_until(lambda: "the target is no replica" in caplog.text)
        follow(target, told)
        wait_until(lambda: told.has_served(target))
    assert target.client().get("key") == b"value"


def test_one_that_comes_again_is_served_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    target = start_server("redis-7.0")
    with serving(tape_of(tmp_path, "redis-7.0").job()) as told:
        for times in (1, 2):
            follow(target, told)
            wait_until(lambda times=times: len(told.complete) == times)  # type: ignore[misc]
            with PlainClient(target.client()) as plain:
                plain.exchange([("REPLICAOF", "NO", "ONE"), ("SET", "key", "other")])


def test_damage_is_found_before_anybody_is_served(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    name = tape.commands(("SET", "key", "value"))
    file = Path(tape.folder.url, name.path)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(VerificationError, match="is damaged"), serving(tape.job()):
        raise AssertionError("it is served")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    job = tape_of(tmp_path, "redis-7.0").job()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port: int = taken.getsockname()[1]
            options = ServeOptions("127.0.0.1", port)
            await serve(job, options, ready=lambda *_: None, complete=lambda *_: None)

    with pytest.raises(ServerError, match=r"cannot listen on port \d+: .*in use"):
        trio.run(main)
