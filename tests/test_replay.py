"""What is replayed into a server is there afterwards, once, whatever is killed."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import redis
import trio

import verbs
from fingerprints import Fingerprint, Hash, Key
from kvtape.cli.runner import run
from kvtape.errors import (
    DestinationError,
    IdentityError,
    PointError,
    ServerError,
)
from kvtape.replay.into import replay_into
from kvtape.replay.memory import KEY, Position
from kvtape.replay.progress import Progress
from kvtape.replay.refusal import TargetError
from kvtape.replay.selection import Selection
from kvtape.server.url import ServerUrl
from kvtape.tape.glob import parse_glob
from kvtape.tape.point import ToOffset
from oracle import compare, fingerprint
from plain_client import PlainClient
from recording import (
    IDENTITIES,
    THEN,
    Recorded,
    Tape,
    rdb,
    recorded,
    recording,
    tape_of,
)
from replays import options, play, replay_until
from replicas import wait_until
from servers import Server, StartServer

# What keys may live longer than recorded, and a slow machine may take.
LATE_MS = 120_000

ONE_AND_ALL = pytest.mark.parametrize(
    "server_name", ["redis-6.2", "valkey-9.1"], indirect=True
)


@pytest.fixture
def recording_of(
    server_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    """Return the recording of each of the six servers."""
    folder = tmp_path_factory.getbasetemp() / f"recorded-{server_name}"
    return recorded(server_name, folder)


def moved(state: Fingerprint) -> Fingerprint:
    """Return a state as it is when its time has come again: now."""
    shift = int(time.time() * 1000) - state.end

    def key(key: Key) -> Key:
        value = key.value
        if isinstance(value, Hash):
            expiries = {field: when + shift for field, when in value.expiries.items()}
            value = Hash(value.values, expiries)
        return Key(key.kind, value, key.expiry and key.expiry + shift)

    return replace(state, keys={name: key(each) for name, each in state.keys.items()})


def differences(expected: Fingerprint, target: Server) -> list[object]:
    actual = fingerprint(target.client())
    found = compare(moved(expected), actual, tolerance_ms=LATE_MS)
    return [str(difference) for difference in found]


# What becomes of the target.


def test_with_the_snapshot_the_target_is_what_the_source_was(
    recording_of: Recorded, start_server: StartServer
) -> None:
    target = start_server(recording_of.name)
    repository, middle, end = (
        recording_of.repository,
        recording_of.middle,
        recording_of.end,
    )
    result = play(repository, target, with_snapshot=True, end=ToOffset(middle.offset))
    assert (result.offset, result.errors) == (middle.offset, {})
    assert differences(middle.state, target) == []
    assert target.client().mget("counter", "pending") == [b"11", b"11"]
    # From there, with a stream before it.
    other = start_server(recording_of.name)
    start = ToOffset(middle.offset)
    result = play(repository, other, with_snapshot=True, start=start)
    assert (result.start_offset, result.errors) == (middle.offset, {})
    assert differences(end.state, other) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server_name", "later"),
    [
        ("redis-6.2", "redis-7.0"),
        ("redis-6.2", "valkey-9.1"),
        ("redis-7.0", "redis-8.0"),
        ("redis-7.0", "valkey-8.0"),
        ("valkey-8.0", "valkey-9.1"),
    ],
    indirect=["server_name"],
)
def test_a_later_release_takes_what_an_earlier_one_did(
    recording_of: Recorded, later: str, start_server: StartServer
) -> None:
    target = start_server(later)
    end = recording_of.end
    # The other family is taken by force only.
    is_other = later.partition("-")[0] not in recording_of.name
    chosen = {"with_snapshot": True, "end": ToOffset(end.offset), "force": is_other}
    result = play(recording_of.repository, target, **chosen)
    assert (result.offset, result.errors) == (end.offset, {})
    assert differences(end.state, target) == []


def test_renamed_and_mapped_it_is_so_under_other_names(
    recording_of: Recorded, start_server: StartServer
) -> None:
    target = start_server(recording_of.name)
    mapping = {9: 5, 5: 9}
    selection = Selection(prefixes=((b"", b"copy:"),), db_map=tuple(mapping.items()))
    result = play(
        recording_of.repository,
        target,
        with_snapshot=True,
        end=ToOffset(recording_of.end.offset),
        selection=selection,
        stops_on_error=False,
    )
    assert (result.errors, result.left_out) == ({}, {})
    state = recording_of.end.state
    keys = {
        (mapping.get(db, db), b"copy:" + name): key
        for (db, name), key in state.keys.items()
    }
    assert differences(replace(state, keys=keys), target) == []


@ONE_AND_ALL
def test_a_part_of_the_keys_is_what_it_was(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("MSET", "a:1", 1, "b:1", 2, "a:2", 3),
            ("DEL", "b:1", "a:2"),
            ("MULTI",),
            ("INCR", "a:1"),
            ("INCR", "b:1"),
            ("EXEC",),
            ("SADD", "a:set", 1, 2),
            ("SMOVE", "a:set", "b:set", 1),
            ("RPUSH", "a:list", 1, 2, 3),
            ("RPOPLPUSH", "a:list", "b:list"),
            ("SUNIONSTORE", "b:all", "a:set", "b:set"),
            ("SET", "a:gone", 1),
            ("RENAME", "a:gone", "b:gone"),
            ("SET", "a:long", 1, "PXAT", THEN + 3_600_000),
        ],
        rdb((0, "a:old", "x", None), (0, "b:old", "y", None)),
    )
    target = start_server(server_name)
    result = play(
        tape.repository,
        target,
        with_snapshot=True,
        selection=Selection(globs=(parse_glob(b"a:*"),)),
    )
    assert result.left_out == {}
    client = target.client()
    keys = {b"a:1", b"a:set", b"a:list", b"a:old", b"a:long"}
    assert set(client.keys()) == keys
    assert client.get("a:1") == b"2"
    assert client.smembers("a:set") == {b"2"}
    assert client.lrange("a:list", 0, -1) == [b"1", b"2"]
    assert 3500 < client.ttl("a:long") <= 3602


@ONE_AND_ALL
def test_what_cannot_be_told_ends_it_or_is_left_out_and_counted(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("SET", "a", 1),
            ("RENAME", "b", "a"),
            ("MODULE.DO", "a", "b"),
            ("INCR", "a"),
        ],
    )
    target = start_server(server_name)
    selection = Selection(globs=(parse_glob(b"a"),))
    with pytest.raises(PointError, match=r"RENAME b at offset .* cannot be told"):
        play(tape.repository, target, selection=selection)
    result = play(
        tape.repository, target, selection=selection, stops_on_error=False, force=True
    )
    assert sum(result.left_out.values()) == 2
    assert target.client().get("a") == b"2"


@pytest.mark.parametrize("server_name", ["redis-8.0"], indirect=True)
def test_publish_is_sent_only_if_it_is_asked_for(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    commands: list[tuple[str | int, ...]]
    commands = [("SET", "key", 1), ("PUBLISH", "channel", "message"), ("INCR", "key")]
    tape = tape_of(tmp_path / "repo", server_name, commands)
    for publish, expected in ((False, b"last"), (True, b"message")):
        target = start_server(server_name)
        with PlainClient(target.client()) as heard:
            heard.ask("SUBSCRIBE", "channel")
            play(tape.repository, target, selection=Selection(publish=publish))
            assert target.client().publish("channel", "last") == 1
            said = heard.receive()
        assert isinstance(said, list)
        assert said[2] == expected
        assert target.client().get("key") == b"2"


@ONE_AND_ALL
def test_a_loop_does_it_so_often(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("INCR", "n"), ("RPUSH", "l", 1)])
    target = start_server(server_name)
    play(tape.repository, target, rounds=3)
    assert (target.client().get("n"), target.client().llen("l")) == (b"3", 3)
    assert not target.client().exists(KEY)


# Being killed.

KEYS = 40


def counting(repository: Path, server_name: str) -> tuple[Tape, dict[str, int]]:
    """Return a tape of increments, with all that is dangerous to the memory."""
    tape = Tape(repository, server=IDENTITIES[server_name]).snapshot()
    counts: dict[int, dict[str, int]] = {0: {}, 1: {}}
    choices = random.Random(1)
    commands: list[tuple[str | int, ...]] = [("SELECT", 0)]

    def incr(db: int) -> tuple[str, str]:
        key = f"n{choices.randrange(KEYS)}"
        counts[db][key] = counts[db].get(key, 0) + 1
        return "INCR", key

    for number in range(400):
        commands += [incr(0) for _ in range(choices.randrange(10))]
        match number % 7:
            case 0:
                commands += [("MULTI",), incr(0), ("SELECT", 1), incr(1), ("EXEC",)]
                commands += [("SELECT", 0)]
            case 1 if number % 5 == 0:
                commands += [("SWAPDB", 0, 1)]
                counts[0], counts[1] = counts[1], counts[0]
            case 2 if number % 31 == 0:
                commands += [("FLUSHALL",)]
                counts = {0: {}, 1: {}}
            case 3:
                commands += [("PING",), ("PUBLISH", "channel", "message")]
            case _:
                pass
    for start in range(0, len(commands), 101):
        frame = commands[start : start + 101]
        # A segment begins outside of a transaction.
        while frame.count(("MULTI",)) != frame.count(("EXEC",)):
            frame = commands[start : start + len(frame) + 1]
        tape_commands(tape, frame)
        del commands[start + 101 : start + len(frame)]
    return tape, counts[0] | {f"1:{key}": count for key, count in counts[1].items()}


def tape_commands(tape: Tape, commands: Sequence[tuple[str | int, ...]]) -> None:
    tape.commands(*commands)


def counted(target: Server) -> dict[str, int]:
    state = fingerprint(target.client())
    return {
        ("1:" if db else "") + name.decode(): int(key.value)
        for (db, name), key in state.keys.items()
        if isinstance(key.value, bytes)
    }


def test_interrupted_anywhere_it_goes_on_there(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape, expected = counting(tmp_path / "repo", server_name)
    target = start_server(server_name)
    # A second in a tenth of a millisecond: parcels are small, and there are many.
    chosen = options(tape.repository, target, speed=10_000.0)
    choices = random.Random(server_name)
    for _ in range(60):
        if run(lambda: replay_until(chosen, choices.uniform(0.002, 0.05))):
            break
    else:
        run(lambda: replay_until(chosen, 60.0))
    assert counted(target) == expected


@pytest.mark.slow
@ONE_AND_ALL
def test_killed_it_goes_on_there(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape, expected = counting(tmp_path / "repo", server_name)
    target = start_server(server_name)
    url = f"redis://127.0.0.1:{target.port}"
    line = ("replay", "--repo", tape.repository, "--into", url, "--speed", 400)
    reached = -1
    with PlainClient(target.client()) as plain:
        for _ in range(3):

            def has_gone_on(reached: int = reached) -> bool:
                said = plain.ask("GET", KEY)
                return isinstance(said, bytes) and offset_in(said) > reached

            with verbs.program(*line) as program:
                wait_until(has_gone_on)
                program.kill()
            said = plain.ask("GET", KEY)
            assert isinstance(said, bytes)
            reached = offset_in(said)
    outcome = verbs.kvtape(*line[:-1], "max")
    assert outcome.status == 0
    assert "going on at offset" in outcome.err
    assert counted(target) == expected


def offset_in(memory: bytes) -> int:
    import msgspec

    return msgspec.json.decode(memory, type=Position).offset


@ONE_AND_ALL
def test_what_another_left_open_is_closed_before_it_begins(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("INCR", "n")])
    target = start_server(server_name)
    with PlainClient(target.client()) as other:
        other.exchange([("CLIENT", "SETNAME", "kvtape-replay"), ("MULTI",)])
        other.exchange([("INCR", "n")])
        play(tape.repository, target)
        with pytest.raises(redis.ConnectionError):
            other.ask("EXEC")
    assert target.client().get("n") == b"1"


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_a_user_that_cannot_know_whether_it_is_alone_is_told(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("INCR", "n")])
    target = start_server(server_name)
    rules = ("on", ">pw", "~*", "+@all", "-client|list")
    with PlainClient(target.client()) as plain:
        plain.ask("ACL", "SETUSER", "limited", *rules)
    url = ServerUrl("127.0.0.1", target.port, "limited", "pw")
    with pytest.raises(TargetError, match=r"allow \+client"):
        play(tape.repository, target, url=url)


# What it refuses.


@ONE_AND_ALL
def test_the_recorded_server_and_its_replicas_are_refused(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    source, replica = start_server(server_name), start_server(server_name)
    with recording(source, tmp_path) as taping:
        source.client().set("key", 1)
        taping.catch_up()
    replica.client().replicaof("127.0.0.1", source.port)
    with PlainClient(replica.client()) as plain:
        wait_until(lambda: plain.info("replication")["master_link_status"] == "up")
    for server in (source, replica):
        with pytest.raises(IdentityError, match="the recorded server or a replica"):
            play(tmp_path / "repo", server, force=True)
    replica.client().replicaof("NO", "ONE")
    replica.client().flushall()
    with pytest.raises(IdentityError, match="as a promoted replica does"):
        play(tmp_path / "repo", replica)
    play(tmp_path / "repo", replica, force=True)
    assert replica.client().get("key") == b"1"


@ONE_AND_ALL
def test_an_unfit_target_is_refused_before_it_is_touched(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("INCR", "key")])
    other = start_server(server_name)
    replica = start_server(server_name, replicaof=f"127.0.0.1 {other.port}")
    node = start_server(server_name, cluster_enabled="yes")
    locked = start_server(server_name, requirepass="secret")
    other.client().set("mine", 1)
    refusals = [
        (replica, ServerError, "a replica of another server"),
        (node, ServerError, "a cluster node"),
        (other, DestinationError, "holds 1 keys"),
        (locked, ServerError, "password"),
    ]
    for server, kind, words in refusals:
        with pytest.raises(kind, match=words):
            play(tape.repository, server)
    assert other.client().keys() == [b"mine"]
    play(tape.repository, other, force=True)
    assert other.client().mget("mine", "key") == [b"1", b"1"]


@ONE_AND_ALL
def test_a_target_within_another_replay_is_refused(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("INCR", "key"), ("INCR", "key")])
    target = start_server(server_name)
    client = target.client()
    client.set(KEY, Position("another", tape.replid, 1, 1).encode())
    with pytest.raises(IdentityError, match="within another replay"):
        play(tape.repository, target)
    client.set(KEY, "not ours")
    with pytest.raises(IdentityError, match="none that a replay wrote"):
        play(tape.repository, target)
    play(tape.repository, target, force=True)
    assert client.get("key") == b"2"


@ONE_AND_ALL
def test_what_cannot_be_moved_is_there_as_it_was(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    late, script = 2**63 - 1, "return redis.call('INCR', KEYS[1])"
    commands: list[tuple[str | int, ...]]
    commands = [("SET", "later", "v", "PXAT", late), ("EVAL", script, 1, "scripted")]
    tape = tape_of(
        tmp_path / "repo", server_name, commands, rdb((0, "late", "v", late))
    )
    middle = tape.end
    tape.commands(*commands)
    target = start_server(server_name)
    start = ToOffset(middle)
    result = play(tape.repository, target, with_snapshot=True, start=start)
    assert (result.start_offset, result.offset, result.errors) == (middle, tape.end, {})
    client = target.client()
    assert client.mget("late", "later", "scripted") == [b"v", b"v", b"2"]
    assert min(client.pttl("late"), client.pttl("later")) > 2**62


def test_what_is_not_recorded_is_told(
    tmp_path: Path, start_server: StartServer
) -> None:
    tape = tape_of(tmp_path / "repo", "valkey-9.1", [("INCR", "key")])
    middle = tape.end
    tape.gap(tape.end + 100, "the disk was full")
    tape.snapshot()
    tape.commands(("SELECT", 0), ("INCR", "key"))
    target = start_server("valkey-9.1")
    with pytest.raises(PointError, match=r"not recorded .the disk was full"):
        play(tape.repository, target)
    with pytest.raises(PointError, match="not recorded"):
        play(tape.repository, target, start=ToOffset(tape.end + 1000))
    play(tape.repository, target, end=ToOffset(middle))
    assert target.client().get("key") == b"1"
    play(tape.repository, target, force=True)
    assert target.client().get("key") == b"3"


@ONE_AND_ALL
def test_a_database_that_the_target_lacks_is_told_before_it_is_written_to(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    commands: list[tuple[str | int, ...]]
    commands = [("INCR", "key"), ("SELECT", 3), ("SET", "key", 7)]
    tape = tape_of(tmp_path / "repo", server_name, commands)
    target = start_server(server_name, databases="2")
    with pytest.raises(TargetError, match="no database 3"):
        play(tape.repository, target)
    assert target.client().keys() == []
    play(tape.repository, target, selection=Selection(db_map=((3, 1),)))
    assert target.client(db=1).get("key") == b"7"


# What the target answers.


@ONE_AND_ALL
def test_errors_are_counted_or_end_it(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("SET", "key", "text"),
            ("INCR", "n"),
            ("LPUSH", "key", 1),
            ("MODULE.DO", "key"),
            ("LPUSH", "key", 2),
            ("INCR", "n"),
        ],
    )
    target = start_server(server_name)
    with pytest.raises(TargetError, match=r"MODULE.DO key at offset .*unknown command"):
        play(tape.repository, target)
    assert target.client().keys() == []
    progress = Progress()
    chosen = options(tape.repository, target, stops_on_error=False)
    result = run(lambda: replay_into(chosen, progress))
    assert sum(result.errors.values()) == 3
    assert result.errors["WRONGTYPE"] == 2
    assert "LPUSH key" in progress.first["WRONGTYPE"]
    assert target.client().mget("key", "n") == [b"text", b"2"]


@ONE_AND_ALL
def test_an_error_ends_it_behind_its_transaction(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    commands: list[tuple[str | int, ...]]
    commands = [("SET", "key", "text"), ("LPUSH", "key", 1), ("INCR", "n")]
    tape = tape_of(tmp_path / "repo", server_name, commands)
    target = start_server(server_name)
    with pytest.raises(TargetError, match=r"LPUSH key at offset .*WRONGTYPE"):
        play(tape.repository, target)
    # What it stands in was carried out, and the rest goes on behind it.
    assert target.client().mget("key", "n") == [b"text", b"1"]
    play(tape.repository, target)
    assert target.client().mget("key", "n", KEY) == [b"text", b"1", None]


@ONE_AND_ALL
def test_a_target_that_is_full_ends_it_and_it_can_go_on(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    commands = [("INCR", "n"), *(("APPEND", "big", "x" * 300_000) for _ in range(30))]
    tape = tape_of(tmp_path / "repo", server_name, commands)
    target = start_server(server_name, maxmemory="6mb")
    for _ in range(2):
        with pytest.raises(
            TargetError, match=r"out of memory.*; all up to offset \d+ "
        ):
            play(tape.repository, target, stops_on_error=False)
    target.client().config_set("maxmemory", "0")
    play(tape.repository, target)
    assert target.client().get("n") == b"1"
    assert target.client().strlen("big") == 9_000_000


# Following.


@ONE_AND_ALL
async def test_what_is_recorded_meanwhile_follows(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    source, target = start_server(server_name), start_server(server_name)
    progress = Progress()
    client, copy = source.client(), target.client()

    async def until(condition: object) -> None:
        assert callable(condition)
        await trio.to_thread.run_sync(wait_until, condition)

    def record() -> None:
        client.set("before", 1)
        with recording(source, tmp_path) as taping:
            client.incr("n")
            taping.catch_up()
            started.set()
            # It is stored while it is recorded.
            for _ in range(3):
                was = int(copy.get("n") or 0)
                client.incr("n")
                wait_until(lambda was=was: int(copy.get("n") or 0) > was)  # type: ignore[misc]

    import threading

    started = threading.Event()
    chosen = options(
        tmp_path / "repo", target, with_snapshot=True, follow=True, delay=0.2
    )
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            await until(started.is_set)
            await until(lambda: list((tmp_path / "repo").rglob("*.seg")) != [])
            await replay_into(chosen, progress)

        nursery.start_soon(follow)
        await trio.to_thread.run_sync(record)
        nursery.cancel_scope.cancel()
    assert copy.mget("before", "n") == [b"1", b"4"]
    assert copy.exists(KEY)


@ONE_AND_ALL
async def test_while_it_follows_it_comes_back_to_a_target_that_went_away(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("INCR", "n")])
    target = start_server(server_name, appendonly="yes", appendfsync="always")
    progress = Progress()

    def is_there(value: bytes) -> bool:
        with target.client() as client:
            return bool(client.get("n") == value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            replay_into, options(tape.repository, target, follow=True), progress
        )
        await trio.to_thread.run_sync(wait_until, lambda: is_there(b"1"))
        await trio.to_thread.run_sync(target.kill)
        await trio.to_thread.run_sync(target.start)
        tape.commands(("INCR", "n"))
        await trio.to_thread.run_sync(wait_until, lambda: is_there(b"2"))
        nursery.cancel_scope.cancel()
