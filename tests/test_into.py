"""A running server becomes what the primary was, or is told why it does not."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvtape.cli.runner import run
from kvtape.errors import DestinationError, ServerError, VerificationError
from kvtape.progress import Advance, NoWatch
from kvtape.restore.into import IntoOptions, check_target, restore_into
from kvtape.restore.job import Job, Result
from kvtape.restore.survey import survey
from kvtape.server.url import ServerUrl
from kvtape.tape.point import ToOffset
from oracle import compare, fingerprint
from plain_client import PlainClient
from recording import THEN, Recorded, Tape, rdb, recorded, tape_of
from replicas import attach, replication_of
from servers import Server, StartServer

PASSWORD = "correct-horse"


@pytest.fixture
def recording(server_name: str, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Return the recording of each of the six servers."""
    folder = tmp_path_factory.getbasetemp() / f"recorded-{server_name}"
    return recorded(server_name, folder)


def options(
    target: Server,
    *,
    force: bool = False,
    password: str | None = None,
    announce: tuple[str, int] | None = None,
) -> IntoOptions:
    url = ServerUrl("127.0.0.1", target.port, password=password)
    return IntoOptions(url, announce, force, connect_within=2.0)


def restore(
    job: Job, target: Server, *, force: bool = False, password: str | None = None
) -> Result:
    chosen = options(target, force=force, password=password)
    return run(lambda: restore_into(job, chosen))


# What becomes of the target.


def test_the_target_is_what_the_primary_was(
    recording: Recorded, start_server: StartServer
) -> None:
    target = start_server(recording.name, requirepass=PASSWORD, masterauth=PASSWORD)
    client = target.client(password=PASSWORD)
    moment = recording.end
    job = recording.job(ToOffset(moment.offset))
    result = restore(job, target, password=PASSWORD)
    assert (result.offset, result.replid) == (moment.offset, recording.replid)
    assert compare(moment.state, fingerprint(client)) == []
    assert client.mget("counter", "pending") == [b"11", b"11"]
    assert (client.pttl("counter"), client.pttl("pending")) == (-1, -1)
    # It is its own primary from that offset on, and deletes at once what has expired
    # since. (Of 6.2, absolute expiries are longer than the relative ones.)
    info = replication_of(target, PASSWORD)
    assert info["role"] == "master"
    longer = max(0, survey(job, "link").bytes_out - moment.offset)
    assert bool(longer) == (recording.name == "redis-6.2")
    assert int(info["second_repl_offset"]) == moment.offset + longer + 1


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_keys_are_what_they_were_also_after_their_time(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("INCR", "pending"),
            ("PERSIST", "pending"),
            ("SET", "counter", 10, "PX", 1500),
            ("INCR", "counter"),
            ("PERSIST", "counter"),
            ("PUBLISH", "channel", "message"),
        ],
        rdb((0, "pending", "10", THEN + 5000), (0, "gone", "1", THEN + 5000)),
    )
    target = start_server(server_name)
    restore(tape.job(), target)
    names = ["pending", "counter", "gone"]
    assert target.client().mget(names) == [b"11", b"11", None]
    assert [target.client().pttl(name) for name in names[:2]] == [-1, -1]
    # Something was changed, and still it stood at the recorded offset.
    assert int(replication_of(target)["second_repl_offset"]) == tape.end + 1


@pytest.mark.parametrize(
    ("server_name", "more", "is_same"),
    [
        ("redis-6.2", [("PING",), ("REPLCONF", "GETACK", "*")], True),
        ("redis-8.0", [("PUBLISH", "channel", "message")], False),
        ("valkey-9.1", [("PING",), ("REPLCONF", "GETACK", "*")], True),
    ],
    indirect=["server_name"],
)
def test_where_nothing_is_changed_replicas_of_the_primary_can_go_on(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    more: list[tuple[str, ...]],
    *,
    is_same: bool,
) -> None:
    tape = tape_of(tmp_path, server_name, [("SET", "key", 1), *more])
    target = start_server(server_name)
    restore(tape.job(), target)
    info = replication_of(target)
    assert (info["master_replid2"] == tape.replid) == is_same
    assert int(info["second_repl_offset"]) == tape.end + 1


def test_a_recording_without_a_stream_is_restored(
    start_server: StartServer, tmp_path: Path
) -> None:
    tape = Tape(tmp_path / "repo").snapshot(rdb((3, "key", "value", None)))
    target = start_server("redis-7.0")
    restore(tape.job(), target)
    assert target.client(db=3).get("key") == b"value"


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_what_was_recorded_from_a_replica_goes_into_its_database(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = Tape(tmp_path / "repo", db=9).snapshot(rdb((9, "key", "1", None), db=9))
    tape.commands(("INCR", "key"))
    target = start_server(server_name)
    restore(tape.job(), target)
    assert target.client(db=9).get("key") == b"2"
    assert target.client(db=0).dbsize() == 0


def test_a_target_without_config_is_served_and_not_mistaken_for_failing(
    start_server: StartServer, tmp_path: Path
) -> None:
    target = start_server("redis-7.0", rename_command="CONFIG ''")
    restore(tape_of(tmp_path / "repo", "redis-7.0").job(), target)
    assert target.client().get("key") == b"value"


def test_what_it_holds_is_replaced_if_that_is_forced(
    start_server: StartServer, tmp_path: Path
) -> None:
    job = tape_of(tmp_path / "repo", "redis-7.0").job()
    target, other = start_server("redis-7.0"), start_server("redis-7.0")
    target.client(db=2).set("old", 1)
    with pytest.raises(DestinationError, match="holds 1 keys"):
        restore(job, target)
    assert target.client(db=2).get("old") == b"1"
    restore(job, target, force=True)
    assert target.client(db=2).dbsize() == 0
    # Nor is it taken away from another primary just like that.
    target.client().flushall()
    attach(target, other)
    with pytest.raises(ServerError, match="is a replica of another server"):
        restore(job, target)
    assert replication_of(target)["master_port"] == str(other.port)
    restore(job, target, force=True)
    assert target.client().get("key") == b"value"


# Targets that cannot take it keep what they have.


def must_refuse(job: Job, target: Server, why: str, *, force: bool = True) -> None:
    """See that a restore, also a dry one, is refused and leaves the target alone."""
    chosen = options(target, force=force)
    client = target.client()
    client.set("old", 1)
    with pytest.raises(ServerError, match=why):
        run(lambda: check_target(job, chosen))
    with pytest.raises(ServerError, match=why):
        run(lambda: restore_into(job, chosen))
    assert client.get("old") == b"1"
    assert replication_of(target)["role"] == "master"


@pytest.mark.parametrize(
    ("recorded_name", "target_name"),
    [
        ("redis-8.0", "redis-7.0"),
        ("redis-7.0", "redis-6.2"),
        ("valkey-9.1", "valkey-8.0"),
        ("valkey-9.1", "redis-8.0"),
        ("redis-8.0", "valkey-9.1"),
    ],
)
def test_an_older_or_other_server_keeps_what_it_has(
    start_server: StartServer,
    tmp_path_factory: pytest.TempPathFactory,
    recorded_name: str,
    target_name: str,
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"recorded-{recorded_name}"
    job = recorded(recorded_name, folder).job()
    must_refuse(job, start_server(target_name), "cannot load RDB version")


def test_the_other_family_is_taken_only_by_force(
    start_server: StartServer, tmp_path: Path
) -> None:
    job = tape_of(tmp_path / "repo", "redis-7.0").job()
    target = start_server("valkey-8.0")
    why = r"Valkey 8\.0\.\d+ and the recording is of Redis 7\.0"
    must_refuse(job, target, why, force=False)
    restore(job, target, force=True)
    assert target.client().get("key") == b"value"


def test_a_node_of_a_cluster_is_refused(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    job = tape_of(tmp_path / "repo", server_name).job()
    target = start_server(server_name, cluster_enabled="yes")
    with pytest.raises(ServerError, match="in cluster mode"):
        restore(job, target, force=True)


def test_too_few_databases_are_refused(
    start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo", "redis-7.0", [("SELECT", 9), ("SET", "key", "value")]
    )
    target = start_server("redis-7.0", databases="4")
    must_refuse(tape.job(), target, "has 4 databases, and the recording needs 10")
    # Where only the first ones are used, fewer will do.
    other = tape_of(tmp_path / "other", "redis-7.0")
    restore(other.job(), target, force=True)
    assert target.client().get("key") == b"value"


def test_too_little_memory_is_refused(
    start_server: StartServer, tmp_path: Path
) -> None:
    content = rdb(used_memory=50_000_000)
    job = tape_of(tmp_path / "repo", "redis-7.0", content=content).job()
    target = start_server("redis-7.0", maxmemory="40mb")
    must_refuse(job, target, "maxmemory 41943040, and .* used 50000000", force=False)
    restore(job, target, force=True)


def test_a_command_that_it_does_not_know_is_refused(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("JSON.SET", "key", "$", "1")])
    target = start_server(server_name)
    must_refuse(tape.job(), target, r"does not know the command JSON\.SET")


def test_a_command_that_is_left_out_need_not_be_known(
    start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo", "redis-6.2", [("SPUBLISH", "a", "b"), ("SET", "key", 1)]
    )
    target = start_server("redis-6.2")
    restore(tape.job(), target)
    assert target.client().get("key") == b"1"


def test_a_wrong_password_is_not_shown(
    start_server: StartServer, tmp_path: Path
) -> None:
    job = tape_of(tmp_path / "repo", "redis-7.0").job()
    target = start_server("redis-7.0", requirepass=PASSWORD)
    with pytest.raises(ServerError, match="password is wrong") as caught:
        restore(job, target, password="hunter2")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ServerError, match="it wants a password"):
        restore(job, target)


# What goes wrong on the way.


@pytest.mark.parametrize("kind", ["segment", "snapshot"])
def test_damage_is_found_before_the_target_is_touched(
    start_server: StartServer, tmp_path: Path, kind: str
) -> None:
    tape = tape_of(tmp_path / "repo", "redis-7.0")
    name = tape.commands(("SET", "b", "x" * 1000))
    [snapshot] = tape.folder.catalogue().snapshots
    path = name.path if kind == "segment" else snapshot.name.rdb
    file = Path(tape.folder.url, path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    target = start_server("redis-7.0")
    target.client().set("old", 1)
    with pytest.raises(VerificationError, match=f"{path} is damaged"):
        restore(tape.job(), target, force=True)
    assert target.client().get("old") == b"1"
    assert replication_of(target)["role"] == "master"


class Serving(NoWatch):
    """Does something once, or so many times, while the tape is being served."""

    def __init__(self, act: Callable[[], object], times: int = 1) -> None:
        self._acts = [act] * times

    def stage(self, name: str, length: int) -> Advance:
        """Wait for the serving."""

        def advance(_count: int) -> None:
            if name == "serving" and self._acts:
                self._acts.pop()()

        return advance


def large_tape(repository: Path) -> Tape:
    """Return a tape that takes several pieces to serve."""
    tape = tape_of(repository, "redis-7.0")
    for number in range(40):
        tape.commands(("SET", f"key:{number}", bytes(100_000)))
    return tape


def test_a_target_that_is_killed_meanwhile_is_said_to_be_gone(
    start_server: StartServer, tmp_path: Path
) -> None:
    target = start_server("redis-7.0")
    job = replace(large_tape(tmp_path / "repo").job(), watch=Serving(target.kill))
    with pytest.raises(
        ServerError, match=r"(went away|closed).*restore again with --f"
    ):
        restore(job, target)
    target.start()
    restore(large_tape(tmp_path / "again").job(), target, force=True)
    assert target.client().strlen("key:39") == 100_000


def cut_link(target: Server) -> None:
    with PlainClient(target.client()) as plain:
        plain.ask("CLIENT", "KILL", "TYPE", "master")


def test_a_target_that_loses_the_link_gets_everything_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    target = start_server("redis-7.0")
    tape = large_tape(tmp_path / "repo")
    watch = Serving(lambda: cut_link(target))
    restore(replace(tape.job(), watch=watch), target)
    assert target.client().strlen("key:39") == 100_000
    assert int(replication_of(target)["second_repl_offset"]) == tape.end + 1


def test_a_target_that_loses_the_link_again_and_again_is_given_up(
    start_server: StartServer, tmp_path: Path
) -> None:
    target = start_server("redis-7.0")
    watch = Serving(lambda: cut_link(target), times=1000)
    job = replace(large_tape(tmp_path / "repo").job(), watch=watch)
    with pytest.raises(ServerError, match=r"broke off .* is left a read-only replica"):
        restore(job, target)
    assert replication_of(target)["role"] == "slave"


def test_a_stranger_on_the_port_does_not_disturb(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = start_server("redis-7.0")

    def intrude() -> None:
        port = int(replication_of(target)["master_port"])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")

    job = replace(large_tape(tmp_path / "repo").job(), watch=Serving(intrude))
    with caplog.at_level(logging.WARNING):
        restore(job, target)
    assert "127.0.0.1: the target is no replica" in caplog.text
    assert target.client().strlen("key:39") == 100_000


def test_an_interrupted_restore_says_how_the_target_is_left(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = start_server("redis-7.0")

    def interrupt() -> None:
        raise KeyboardInterrupt

    job = replace(large_tape(tmp_path / "repo").job(), watch=Serving(interrupt))
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        restore(job, target)
    assert "is left a read-only replica with an incomplete restore" in caplog.text


def test_a_target_that_cannot_connect_back_keeps_what_it_has(
    start_server: StartServer, tmp_path: Path
) -> None:
    job = tape_of(tmp_path / "repo", "redis-7.0").job()
    target = start_server("redis-7.0")
    target.client().set("old", 1)
    # An address for documentation: nobody is there.
    chosen = options(target, force=True, announce=("192.0.2.1", free_port()))
    chosen = replace(chosen, connect_within=0.5)
    with pytest.raises(ServerError, match=r"did not connect to 192\.0\.2\.1.*--announ"):
        run(lambda: restore_into(job, chosen))
    assert target.client().get("old") == b"1"
    assert replication_of(target)["role"] == "master"


def free_port() -> int:
    """Return a port that nobody listens on, of those that servers are given."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_the_announced_address_is_where_the_target_connects(
    start_server: StartServer, tmp_path: Path
) -> None:
    job = tape_of(tmp_path / "repo", "redis-7.0").job()
    target = start_server("redis-7.0")
    chosen = options(target, announce=("127.0.0.2", free_port()))
    run(lambda: restore_into(job, chosen))
    assert target.client().get("key") == b"value"


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_an_error_that_the_target_swallows_is_found(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [("LPUSH", "key", 1), ("SET", "other", 1), ("XGROUP", "SETID", "x", "g", "0")],
        rdb((0, "key", "a string", None)),
    )
    target = start_server(server_name)
    with pytest.raises(VerificationError, match=r"1 x WRONGTYPE.*is left a read-only"):
        restore(tape.job(), target)


def test_a_command_that_is_taken_away_is_named(
    start_server: StartServer, tmp_path: Path
) -> None:
    job = tape_of(tmp_path / "repo", "redis-7.0").job()
    target = start_server("redis-7.0", rename_command="REPLICAOF ''")
    with pytest.raises(ServerError, match="answered REPLICAOF with: ERR unknown"):
        restore(job, target)
