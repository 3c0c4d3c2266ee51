"""A server that cannot take a restore is refused, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from msgspec import structs

import servers
from kvtape.errors import DestinationError, Error, ServerError
from kvtape.restore.fit import (
    swallowed_errors,
    unfit,
    unfit_for_stream,
    unfit_release,
)
from kvtape.restore.survey import databases_needed, estimate, survey
from kvtape.server.info import ServerInfo
from kvtape.tape.documents import Manifest
from kvtape.tape.documents import Server as Identity
from kvtape.tape.names import SnapshotName
from kvtape.tape.point import ToOffset
from plain_client import PlainClient
from recording import IDENTITIES, THEN, Tape, rdb
from servers import StartServer
from stored import A, manifest
from tapes import command

VERSIONS: Final = [
    (b"REDIS", 9, "redis-6.2"),
    (b"REDIS", 10, "redis-7.0"),
    (b"REDIS", 11, "valkey-8.0"),
    (b"REDIS", 12, "redis-8.0"),
    (b"VALKEY", 80, "valkey-9.1"),
]


def manifest_of(
    magic: bytes = b"REDIS",
    version: int = 11,
    server: Identity | None = None,
    used_memory: int | None = None,
) -> Manifest:
    return structs.replace(
        manifest(SnapshotName(A, 0, 0)),
        rdb_magic=magic.decode(),
        rdb_version=version,
        used_memory=used_memory,
        server=server or Identity(),
    )


@pytest.mark.parametrize(("magic", "version", "recorded"), VERSIONS)
def test_a_release_is_refused_if_and_only_if_it_does_not_load_the_snapshot(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    magic: bytes,
    version: int,
    recorded: str,
) -> None:
    content = rdb((0, "key", "value", None), magic=magic, version=version)
    (tmp_path / "dump.rdb").write_bytes(content)
    try:
        server = start_server(server_name, folder=tmp_path)
    except servers.ServerError:
        loads = False
    else:
        with PlainClient(server.client()) as plain:
            loads = plain.ask("GET", "key") == b"value"
    manifest = manifest_of(magic, version, IDENTITIES[recorded])
    error = unfit_release(IDENTITIES[server_name], manifest, force=True)
    assert (error is None) == loads
    if error is not None:
        assert f"cannot load RDB version {version} of" in str(error)


@pytest.mark.parametrize(
    ("version", "magic", "rdb_version", "loads"),
    [
        ("5.0.14", b"REDIS", 9, True),
        ("5.0.14", b"REDIS", 10, False),
        ("7.2.6", b"REDIS", 11, True),
        ("7.4.1", b"REDIS", 12, True),
        ("8.4.0", b"REDIS", 13, False),
        ("8.6.0", b"REDIS", 13, True),
        ("8.6.0", b"REDIS", 14, False),
        ("8.8.0", b"REDIS", 14, True),
        # Newer than what is known: it may load anything of its family.
        ("8.10.0", b"REDIS", 15, True),
        ("9.0-rc1", b"REDIS", 99, True),
        ("8.10.0", b"VALKEY", 80, False),
        ("255.255.255", b"REDIS", 99, True),
    ],
)
def test_releases_that_are_not_at_hand_are_known_too(
    version: str, magic: bytes, rdb_version: int, *, loads: bool
) -> None:
    manifest = manifest_of(magic, rdb_version)
    error = unfit_release(Identity("redis", version), manifest, force=True)
    assert (error is None) == loads


def test_the_other_family_is_refused_unless_it_is_forced() -> None:
    manifest = manifest_of(server=Identity("valkey", "8.0.1"))
    redis = Identity("redis", "7.4.1")
    error = unfit_release(redis, manifest, force=False)
    assert isinstance(error, ServerError)
    assert "Redis 7.4.1 and the recording is of Valkey 8.0.1" in str(error)
    assert unfit_release(redis, manifest, force=True) is None
    # What is not known cannot be wrong.
    assert unfit_release(redis, manifest_of(), force=False) is None
    assert unfit_release(Identity(), manifest, force=False) is None


GOOD = {"redis_version": "7.2.6", "role": "master", "maxmemory": "0"}


@pytest.mark.parametrize(
    ("changes", "kind", "why", "can_be_forced"),
    [
        ({}, None, "", True),
        ({"maxmemory": "1000"}, None, "", True),
        ({"maxmemory": "999"}, ServerError, "maxmemory 999.*1000 bytes", True),
        ({"role": "slave"}, ServerError, "is a replica of another server", True),
        ({"db0": "keys=3,expires=0"}, DestinationError, "holds 3 keys", True),
        ({"cluster_enabled": "1"}, ServerError, "in cluster mode.*--data-dir", False),
        ({"redis_version": "7.0.1"}, ServerError, "cannot load RDB version 11", False),
    ],
)
def test_what_a_target_is_decides_whether_it_is_touched(
    changes: dict[str, str],
    kind: type[Error] | None,
    why: str,
    *,
    can_be_forced: bool,
) -> None:
    info = ServerInfo(GOOD | changes)
    manifest = manifest_of(used_memory=1000)
    error = unfit(info, manifest, force=False)
    assert type(error) is (kind or type(None))
    if error is not None:
        with pytest.raises(Error, match=why):
            raise error
    assert (unfit(info, manifest, force=True) is None) == can_be_forced


def test_a_target_that_tells_nothing_has_to_be_forced() -> None:
    error = unfit(ServerInfo({}), manifest_of(), force=False)
    assert "does not tell what it is" in str(error)
    assert unfit(ServerInfo({}), manifest_of(), force=True) is None


def test_databases_count_where_they_are_used(tmp_path: Path) -> None:
    for name, known, keys, written, needed in (
        ("known", 16, 0, 0, 1),
        ("of the snapshot", 16, 9, 0, 10),
        ("of the stream", 16, 0, 7, 8),
        ("unknown", None, 3, 0, 4),
    ):
        tape = Tape(tmp_path / name, server=Identity(databases=known))
        tape.snapshot(rdb((0, "a", "1", None), (keys, "b", "2", None)))
        tape.commands(("SELECT", written), ("SET", "key", "value"))
        job = tape.job()
        tally = survey(job, "link")
        assert tally == survey(job, "link")
        for there in range(1, 12):
            info = ServerInfo({"databases": str(there)})
            error = unfit_for_stream(info, [], job, tally)
            assert (error is None) == (there >= needed)
        assert f"the recording needs {needed}" in str(
            unfit_for_stream(ServerInfo({"databases": "0"}), [], job, tally)
        )
        assert unfit_for_stream(ServerInfo({}), [], job, tally) is None
        # Where there is no limit, the recorded server's own number does.
        assert databases_needed(job, tally) == (known or needed)


def test_an_estimate_counts_what_a_restore_counts(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    written = command("SELECT", 7) + command("SET", "key", "value") * 3
    whole = command("MULTI") + written + command("EXEC")
    for _ in range(2):
        tape.segment(
            [(THEN, written)], [(THEN, whole[:50])], [(THEN, whole[50:] + written)]
        )
    for offset in range(1000, tape.end + 1, 7):
        job = tape.job(ToOffset(offset))
        estimated, surveyed = estimate(job), survey(job, "file")
        assert estimated.commands == surveyed.commands, offset
        assert estimated.names >= surveyed.names
        assert estimated.highest_db == surveyed.highest_db


def test_the_database_that_a_replica_was_recorded_in_counts(tmp_path: Path) -> None:
    tape = Tape(tmp_path, db=9).snapshot()
    tape.commands(("SET", "key", "value"))
    job = tape.job()
    assert databases_needed(job, survey(job, "file")) == 10


def test_commands_that_are_unknown_are_named(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("JSON.SET", "key", "$", "1"))
    job = tape.job()
    error = unfit_for_stream(ServerInfo({}), ["JSON.SET"], job, estimate(job))
    assert "does not know the command JSON.SET of the stream" in str(error)


def test_only_errors_that_the_stream_can_have_caused_count() -> None:
    before = ServerInfo({"errorstat_ERR": "count=1", "errorstat_NOAUTH": "count=5"})
    same = ServerInfo(dict(before.fields) | {"errorstat_LOADING": "count=2"})
    assert swallowed_errors(before, same) is None
    assert swallowed_errors(before, ServerInfo({})) is None
    worse = dict(before.fields) | {
        "errorstat_WRONGTYPE": "count=2",
        "errorstat_ERR": "count=2",
        "errorstat_READONLY": "count=3",
    }
    error = swallowed_errors(before, ServerInfo(worse))
    assert "(1 x ERR, 2 x WRONGTYPE)" in str(error)
