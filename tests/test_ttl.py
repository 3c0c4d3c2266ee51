"""A past that is restored late has the expiries asked for, on every server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from fingerprints import Fingerprint, Hash, Key
from kvtape.cli.runner import run
from kvtape.errors import PointError
from kvtape.restore.changes import Changes
from kvtape.restore.data_dir import layout_for, restore_data_dir
from kvtape.restore.into import IntoOptions, restore_into
from kvtape.restore.job import Job, open_job
from kvtape.server.url import ServerUrl
from kvtape.tape.point import ToLatest, ToOffset
from kvtape.tape.ttls import Mode
from oracle import Difference, compare, fingerprint, stable_fingerprint
from plain_client import PlainClient, as_bytes
from rdb_files import HAVE_FIELD_EXPIRIES
from recording import IDENTITIES, THEN, Tape, rdb, taping
from recording import recorded as recorded_busy
from replicas import replication_of, wait_until
from servers import Server, StartServer
from test_serve import follow, serving
from verbs import kvtape

pytestmark = pytest.mark.slow

HOUR: Final = 3_600_000

# How long ago the recordings are that are made by hand.
LONG: Final = 10**10


# Ways to restore.

Restore = Callable[[Job, str, StartServer, Path], Server]


def by_folder(job: Job, name: str, start: StartServer, folder: Path) -> Server:
    target = folder / f"restored-{job.ttl}"
    restore_data_dir(job, target, layout_for(job.plan.snapshot.manifest))
    return start(name, config_file=target / "redis.conf")


def into_server(job: Job, name: str, start: StartServer, _folder: Path) -> Server:
    server = start(name)
    run(lambda: restore_into(job, IntoOptions(ServerUrl("127.0.0.1", server.port))))
    return server


def by_serving(job: Job, name: str, start: StartServer, _folder: Path) -> Server:
    server = start(name)
    with serving(job) as told:
        follow(server, told)
        wait_until(lambda: told.has_served(server))
        with PlainClient(server.client()) as plain:
            plain.ask("REPLICAOF", "NO", "ONE")
    assert [trouble for _, trouble in told.complete] == [None]
    return server


WAYS: Final[list[Restore]] = [by_folder, into_server, by_serving]


# What it should be.


def changed(state: Fingerprint, key_of: Callable[[int], int | None]) -> Fingerprint:
    """Return a state with other expiries."""

    def of(key: Key) -> Key:
        value = key.value
        if isinstance(value, Hash):
            times = {name: key_of(time) for name, time in value.expiries.items()}
            left = {name: time for name, time in times.items() if time is not None}
            value = Hash(value.values, left)
        expiry = None if key.expiry is None else key_of(key.expiry)
        return Key(key.kind, value, expiry)

    return replace(state, keys={place: of(key) for place, key in state.keys.items()})


def wanted(state: Fingerprint, job: Job) -> Fingerprint:
    assert job.ttls is not None
    shift = job.ttls.shift
    if shift is None:
        return changed(state, lambda _: None)
    return changed(state, lambda time: time + shift)


# A recording of a server, with everything that has an expiry.


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a server held at an offset, and its recording."""

    name: str
    repository: Path
    offset: int
    state: Fingerprint

    def job(self, ttl: Mode) -> Job:
        """Find out what restoring it takes."""
        point = ToOffset(self.offset)
        return open_job(str(self.repository), None, point, None, Changes(ttl))


VALUES: Final = [
    ("SET", "string", "v"),
    ("RPUSH", "list", *range(300)),
    ("SADD", "set", "a", "b"),
    ("ZADD", "zset", 1, "a", 2, "b"),
    ("HSET", "hash", *(f"f{n // 2}" for n in range(1400))),
    ("XADD", "stream", "1-1", "field", "value"),
]  # fmt: skip


def fill(plain: PlainClient, prefix: str, *, fields: bool) -> None:
    """Write every type with an expiry and without, and fields with one."""
    for number, (name, key, *values) in enumerate(VALUES):
        for suffix in ("", ":ttl"):
            plain.ask(name, f"{prefix}:{key}{suffix}", *values)
        plain.ask("PEXPIRE", f"{prefix}:{key}:ttl", HOUR + number)
    if not fields:
        return
    for name, count in (("small", 6), ("large", 800)):
        key = f"{prefix}:{name}"
        plain.ask("HSET", key, *(f"f{n // 2}" for n in range(2 * count)))
        plain.ask("HPEXPIRE", key, HOUR, "FIELDS", 3, "f0", "f1", "f2")
        plain.ask("HPEXPIRE", key, 2 * HOUR + 77, "NX", "FIELDS", 2, "f2", "f3")
        every = [f"f{n}" for n in range(count)]
        whole = f"{key}:all"
        plain.ask("HSET", whole, *(f"f{n // 2}" for n in range(2 * count)))
        plain.ask("HPEXPIRE", whole, HOUR, "FIELDS", count, *every)


def write(plain: PlainClient, *, fields: bool, is_old: bool) -> None:
    """Give, move and end expiries in every way that a stream has."""
    payload = as_bytes(plain.ask("DUMP", "early:list"))
    commands: list[tuple[str | bytes | int, ...]] = [
        ("SET", "s:ex", 1, "EX", 3600),
        ("SET", "s:px", 1, "PX", HOUR),
        ("SETEX", "s:setex", 3600, 1),
        ("PSETEX", "s:psetex", HOUR, 1),
        ("SET", "s:exat", 1, "EXAT", int(time.time()) + 3600),
        ("SET", "s:keep", 1, "EX", 3600),
        ("SET", "s:keep", 2, "KEEPTTL"),
        ("SET", "s:cleared", 1, "EX", 3600),
        ("SET", "s:cleared", 2),
        ("EXPIRE", "early:string", 3600),
        ("EXPIREAT", "early:set", int(time.time()) + 3600),
        ("GETEX", "early:string:ttl", "EX", 7200),
        ("GETEX", "early:set:ttl", "PERSIST"),
        ("PERSIST", "early:list:ttl"),
        ("INCR", "s:px"),
        ("RENAME", "early:zset:ttl", "renamed"),
        ("COPY", "early:hash:ttl", "copied"),
        ("RESTORE", "r:ttl", HOUR, payload),
        ("RESTORE", "r:none", 0, payload),
        ("SELECT", 3),
        ("SET", "in three", 1, "EX", 3600),
        ("MULTI",),
        ("SET", "a", 1, "EX", 3600),
        ("EXPIRE", "a", 7200),
        ("EXEC",),
        ("SELECT", 0),
        # What is not there any more at the point, and had an expiry.
        ("SET", "gone", 1, "PX", 300),
        ("SET", "counter", 10, "PX", 300),
        ("INCR", "counter"),
        ("PERSIST", "counter"),
    ]
    if not is_old:
        commands += [("EXPIRE", "s:ex", 7200, "XX"), ("EXPIRE", "early:list", 99, "NX")]
    plain.exchange(commands)
    if fields:
        for key in ("early:small", "early:large", "early:small:all"):
            dumped = as_bytes(plain.ask("DUMP", key))
            plain.ask("RESTORE", f"r:{key}", 0, dumped)
        plain.exchange(
            [
                ("HSET", "h", "a", 1, "b", 2, "c", 3, "d", 4),
                ("HEXPIRE", "h", 3600, "FIELDS", 2, "a", "b"),
                ("HPERSIST", "h", "FIELDS", 1, "b"),
                ("HSETEX", "h", "EX", 3600, "FIELDS", 1, "e", 5),
                ("HGETEX", "h", "EX", 3600, "FIELDS", 1, "c"),
                ("HPEXPIRE", "h", 300, "FIELDS", 1, "d"),
                ("HPEXPIRE", "h", 2 * HOUR, "GT", "FIELDS", 1, "a"),
            ]
        )


@pytest.fixture(scope="module")
def recordings() -> dict[str, Recorded]:
    return {}


@pytest.fixture
def recorded(
    server_name: str,
    recordings: dict[str, Recorded],
    tmp_path_factory: pytest.TempPathFactory,
) -> Recorded:
    """Return the recording of each of the six servers, which is made once."""
    if server_name not in recordings:
        folder = tmp_path_factory.mktemp(server_name)
        recordings[server_name] = record(server_name, folder / "repository")
    return recordings[server_name]


def record(name: str, repository: Path) -> Recorded:
    fields = name in HAVE_FIELD_EXPIRIES
    with Server(name) as server, PlainClient(server.client()) as plain:
        fill(plain, "early", fields=fields)
        with taping(server, repository) as tape:
            fill(plain, "late", fields=fields)
            write(plain, fields=fields, is_old=name == "redis-6.2")
            wait_until(lambda: plain.ask("EXISTS", "gone") == 0)
            wait_until(lambda: not fields or plain.ask("HEXISTS", "h", "d") == 0)
            # The point is when this is received: after what was there has gone.
            plain.ask("SET", "last", 1)
            offset, state = stable_fingerprint(server.client())
            tape.catch_up()
    return Recorded(name, repository, offset, state)


def different(recorded: Recorded, job: Job, server: Server) -> list[Difference]:
    return compare(wanted(recorded.state, job), fingerprint(server.client()))


@pytest.mark.parametrize("way", WAYS)
def test_every_expiry_is_moved_by_the_time_between(
    recorded: Recorded, start_server: StartServer, tmp_path: Path, way: Restore
) -> None:
    job = recorded.job("shift")
    assert job.ttls is not None
    assert job.ttls.shift is not None
    assert 0 < job.ttls.shift < 300_000
    server = way(job, recorded.name, start_server, tmp_path)
    assert different(recorded, job, server) == []


@pytest.mark.parametrize("way", WAYS)
def test_every_expiry_is_dropped(
    recorded: Recorded, start_server: StartServer, tmp_path: Path, way: Restore
) -> None:
    job = recorded.job("drop")
    server = way(job, recorded.name, start_server, tmp_path)
    assert different(recorded, job, server) == []
    with PlainClient(server.client()) as plain:
        spaces = plain.info("keyspace")
    assert spaces
    assert all("expires=0," in space for space in spaces.values())


@pytest.mark.parametrize("way", WAYS[:2])
def test_all_that_a_busy_writer_did_is_there_with_its_expiries_moved(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    way: Restore,
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"recorded-{server_name}"
    busy = recorded_busy(server_name, folder)
    point = ToOffset(busy.end.offset)
    job = open_job(str(busy.repository), None, point, None, Changes("shift"))
    assert job.ttls is not None
    server = way(job, server_name, start_server, tmp_path)
    state, shift = wanted(busy.end.state, job), job.ttls.moved_by
    # What expired while it was read has so in the copy, by as much later.
    state = replace(state, start=state.start + shift, end=state.end + shift)
    assert compare(state, fingerprint(server.client())) == []


# Long after, when all that was has passed.

AGES: Final = 10 * 365 * 24 * HOUR


def long_gone(name: str, repository: Path) -> Tape:
    """Return a recording of which the point is a second after THEN + 14 s."""
    soon = THEN + 5000
    snapshot = rdb(
        (0, "kept", "1", None),
        (0, "hour", "1", THEN + HOUR),
        (0, "pending", "10", soon),
        (0, "passed", "1", soon),
        (0, "extended", "1", soon),
        (0, "deleted", "1", soon),
        (0, "years", "1", THEN + AGES),
    )
    tape = Tape(repository, server=IDENTITIES[name]).snapshot(snapshot)
    tape.commands(
        ("SELECT", 0),
        ("SET", "counter", 10, "PX", 1500),
        ("INCR", "counter"),
        ("PERSIST", "counter"),
        ("INCR", "pending"),
        ("PERSIST", "pending"),
        ("PEXPIREAT", "extended", THEN + HOUR),
        ("SET", "gone", 1, "PXAT", soon),
        ("SET", "relative", 1, "EX", 3600),
        ("DEL", "deleted"),
        ("SET", "cleared", 1, "EX", 3600),
        ("SET", "cleared", 2),
        ("PERSIST", "hour"),
        ("PEXPIREAT", "hour", THEN + 2 * HOUR),
    )
    return tape


LEFT: Final[dict[str, int | None]] = {
    "kept": None,
    "hour": THEN + 2 * HOUR,
    "pending": None,
    "extended": THEN + HOUR,
    "years": THEN + AGES,
    "counter": None,
    "relative": THEN + 9000 + HOUR,
    "cleared": None,
}


@pytest.mark.parametrize("ttl", ["keep", "shift", "drop"])
@pytest.mark.parametrize("way", WAYS)
def test_long_after_what_was_left_is_left(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    way: Restore,
    ttl: Mode,
) -> None:
    tape = long_gone(server_name, tmp_path / "repository")
    job = job_of(tape, ttl)
    server = way(job, server_name, start_server, tmp_path)
    keys = fingerprint(server.client()).keys
    found = {name.decode(): key.expiry for (_, name), key in keys.items()}
    match ttl:
        case "keep":
            assert found == {
                name: time
                for name, time in LEFT.items()
                if time is None or name == "years"
            }
        case "shift":
            assert job.ttls is not None
            assert job.ttls.point == THEN + 14_000
            shift = job.ttls.moved_by
            tolerance = 1 if server_name == "redis-6.2" else 0
            assert found.keys() == LEFT.keys()
            for name, time in LEFT.items():
                moved = found[name]
                if time is None or moved is None:
                    assert time == moved
                else:
                    assert abs(moved - time - shift) <= tolerance
        case "drop":
            assert found == dict.fromkeys(LEFT)
    assert keys[0, b"counter"].value == keys[0, b"pending"].value == b"11"


def job_of(tape: Tape, ttl: Mode) -> Job:
    name = tape.folder.name
    return open_job(str(tape.repository), name, ToLatest(), None, Changes(ttl))


FIELDS: Final = ["hour", "persisted", "lapsed", "extended", "counter", "plain"]


@pytest.mark.parametrize("ttl", ["shift", "drop"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("server_name", sorted(HAVE_FIELD_EXPIRIES), indirect=True)
def test_long_after_what_fields_had_left_is_left(
    server_name: str, start_server: StartServer, tmp_path: Path, way: Restore, ttl: Mode
) -> None:
    soon, later = THEN + 5000, THEN + HOUR
    of_family = {"redis-8.0": (b"REDIS", 12), "valkey-9.1": (b"VALKEY", 80)}
    magic, version = of_family[server_name]
    snapshot = rdb(magic=magic, version=version)
    tape = Tape(tmp_path / "repository", server=IDENTITIES[server_name])
    tape.snapshot(snapshot)
    tape.commands(
        ("SELECT", 0),
        ("HSET", "h", *(word for name in FIELDS for word in (name, 10))),
        ("HPEXPIREAT", "h", later, "FIELDS", 1, "hour"),
        ("HPEXPIREAT", "h", soon + 2000, "FIELDS", 3, "persisted", "lapsed", "counter"),
        ("HPEXPIREAT", "h", soon + 2000, "NX", "FIELDS", 1, "extended"),
        ("HINCRBY", "h", "counter", 1),
        ("HPERSIST", "h", "FIELDS", 1, "persisted"),
        ("HPERSIST", "h", "FIELDS", 1, "counter"),
        ("HPEXPIREAT", "h", later, "XX", "FIELDS", 1, "extended"),
        ("HINCRBY", "h", "hour", 1),
        ("SET", "last", 1),
    )
    job = job_of(tape, ttl)
    server = way(job, server_name, start_server, tmp_path)
    found = fingerprint(server.client()).keys[0, b"h"].value
    assert isinstance(found, Hash)
    assert job.ttls is not None
    assert found.values == {
        b"hour": b"11",
        b"persisted": b"10",
        b"extended": b"10",
        b"counter": b"11",
        b"plain": b"10",
    }
    moved = later + job.ttls.moved_by
    times = {b"hour": moved, b"extended": moved} if ttl == "shift" else {}
    assert found.expiries == times


# What is not as it was has another name.


@pytest.mark.parametrize("ttl", ["keep", "shift", "drop"])
@pytest.mark.parametrize("has_expiry", [True, False])
def test_replicas_of_the_recorded_server_cannot_go_on_from_other_data(
    start_server: StartServer, tmp_path: Path, ttl: Mode, *, has_expiry: bool
) -> None:
    # Nothing of the stream is changed.
    snapshot = rdb((0, "key", "1", THEN + HOUR if has_expiry else None))
    tape = Tape(tmp_path, server=IDENTITIES["redis-7.0"]).snapshot(snapshot)
    tape.commands(("SELECT", 0), ("INCR", "key"))
    target = start_server("redis-7.0")
    with serving(job_of(tape, ttl)) as told:
        follow(target, told)
        wait_until(lambda: told.has_served(target))
        info = replication_of(target)
    is_same = ttl == "keep" or not has_expiry
    assert (info["master_replid"] == tape.replid) == is_same
    assert int(info["master_repl_offset"]) == tape.end


# What cannot be exact is refused before anything is touched.


def test_what_cannot_be_exact_leaves_no_folder_and_no_target_touched(
    start_server: StartServer, tmp_path: Path
) -> None:
    tape = Tape(tmp_path / "repository", server=IDENTITIES["redis-6.2"]).snapshot()
    tape.commands(("SELECT", 0), ("EVAL", "return 1", 1, "key"))
    target = start_server("redis-6.2")
    url = ServerUrl("127.0.0.1", target.port)
    for ttl in ("shift", "drop"):
        job = job_of(tape, ttl)
        with pytest.raises(PointError, match=r"cannot be exact: .*EVAL.*--force"):
            restore_data_dir(job, tmp_path / "restored", "single")
        assert not list(tmp_path.glob("restored*"))
        with pytest.raises(PointError, match="cannot be exact"):
            run(lambda: restore_into(job, IntoOptions(url)))  # noqa: B023
        assert replication_of(target)["role"] == "master"
        restore_data_dir(job, tmp_path / f"forced-{ttl}", "single", force=True)


def test_a_snapshot_that_cannot_be_rewritten_names_the_key(tmp_path: Path) -> None:
    snapshot = rdb((0, "late", "1", 2**63 - 1))
    tape = Tape(tmp_path / "repository").snapshot(snapshot)
    with pytest.raises(PointError, match=r"b'late' has an expiry that would be later"):
        restore_data_dir(job_of(tape, "shift"), tmp_path / "restored", "single")
    assert not list(tmp_path.glob("restored*"))
    forced = tmp_path / "forced"
    restore_data_dir(job_of(tape, "shift"), forced, "single", force=True)
    content = (forced / "appendonly.aof").read_bytes()
    assert content == snapshot


@pytest.mark.parametrize("ttl", ["shift", "drop"])
def test_a_dry_run_finds_in_the_stream_what_would_be_refused(
    start_server: StartServer, tmp_path: Path, ttl: str
) -> None:
    tape = Tape(tmp_path / "repository", server=IDENTITIES["redis-6.2"]).snapshot()
    tape.commands(("SELECT", 0), ("EVAL", "return 1", 1, "key"))
    target = start_server("redis-6.2")
    arguments = ("restore", "--repo", tape.repository, "--ttl", ttl, "--dry-run")
    ways: list[tuple[object, ...]] = [
        (),
        ("--data-dir", tmp_path / "restored"),
        ("--into", f"redis://127.0.0.1:{target.port}"),
        ("--serve", 0),
    ]
    for way in ways:
        outcome = kvtape(*arguments, *way)
        assert outcome.status == 3, way
        assert "cannot be exact: " in outcome.err
        assert kvtape(*arguments, *way, "--force").status == 0
    assert not list(tmp_path.glob("restored*"))
    assert replication_of(target)["role"] == "master"
    assert kvtape("restore", "--repo", tape.repository, "--dry-run").status == 0


def test_a_dry_run_finds_in_the_snapshot_what_would_be_refused(tmp_path: Path) -> None:
    tape = Tape(tmp_path / "repository").snapshot(rdb((0, "late", "1", 2**63 - 1)))
    arguments = ("restore", "--repo", tape.repository, "--ttl", "shift", "--dry-run")
    outcome = kvtape(*arguments)
    assert outcome.status == 3
    assert "b'late' has an expiry that would be later" in outcome.err
    assert kvtape(*arguments, "--force").status == 0


def test_a_dry_run_finds_what_nobody_can_know_of_a_field(tmp_path: Path) -> None:
    tape = Tape(tmp_path / "repository", server=IDENTITIES["redis-8.0"])
    tape.snapshot(rdb(version=12))
    fields = ("FIELDS", 2, "a", "b")
    tape.commands(
        ("SELECT", 0),
        ("HSET", "hash", "a", 1, "b", 2),
        ("HPEXPIREAT", "hash", THEN - 1000, *fields),
        ("HPERSIST", "hash", *fields),
    )
    for way in (["--dry-run"], ["--data-dir", tmp_path / "restored"]):
        outcome = kvtape("restore", "--repo", tape.repository, *way)
        assert outcome.status == 3, way
        assert "hides expired fields while it loads" in outcome.err


# The command line.


@pytest.mark.parametrize("ttl", ["keep", "shift", "drop"])
def test_what_was_done_to_expiries_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ttl: Mode
) -> None:
    monkeypatch.chdir(tmp_path)
    long_gone("redis-7.0", tmp_path / "repo")
    words = f"restore --repo repo --data-dir told --ttl {ttl} --json"
    told = json.loads(kvtape(*words.split()).out)
    shift = told["ttl_shift_ms"]
    assert told["ttl"] == ttl
    assert (shift is not None) == (ttl == "shift")
    now = int(time.time() * 1000)
    assert shift is None or abs(now - shift - THEN - 14_000) < 60_000
    dry = kvtape(*f"restore --repo repo --dry-run --ttl {ttl}".split()).out
    lines = [line.split() for line in dry.splitlines() if "expiries" in line]
    if ttl == "keep":
        assert lines == []
    else:
        said = {"shift": ["expiries", "moved", "by"], "drop": ["expiries", "dropped"]}
        assert [line[:3] for line in lines] == [said[ttl]]
