"""Attached without a fork: the snapshot from a replica or a file, the stream from here.

That the primary did not fork is proved by its own INFO, and that what is restored is
right by the oracle.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from kvtape.cli.record import _replica
from kvtape.errors import PointError, ServerError, UsageError, VerificationError
from kvtape.record.agent import Agent
from kvtape.record.linking import linker as linker_module
from kvtape.record.seeding.join import JoinError
from kvtape.restore.data_dir import layout_for, restore_data_dir
from kvtape.restore.into import IntoOptions, restore_into
from kvtape.restore.job import open_job
from kvtape.server.info import ServerInfo
from kvtape.server.url import ServerUrl, Tls
from kvtape.tape.point import Point, ToLatest, ToOffset, ToTime
from meanwhile import meanwhile
from oracle import Fingerprint, compare, fingerprint, stable_fingerprint
from plain_client import PlainClient, as_int
from recording import Taping, options_for, rdb, recording
from replicas import attach, offset_of, wait_until
from servers import Server, StartServer, quiet
from tapes import documents_of
from test_record_servers import (
    error_of,
    info,
    snapshots,
    sources,
)
from workload import Workload

ONE_OF_EACH = pytest.mark.parametrize(
    "server_name", ["redis-6.2", "valkey-9.1"], indirect=True
)
ONE = pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)

# One of each way to write an RDB file and to send it.
EVERY_FORMAT = pytest.mark.parametrize(
    "server_name", ["redis-6.2", "redis-8.0", "valkey-8.0", "valkey-9.1"], indirect=True
)

# Slow enough for the snapshot to be interrupted: microseconds a key.
SLOW = {"rdb_key_save_delay": "800"}
MANY = 2000


def url_of(server: Server) -> ServerUrl:
    return ServerUrl("127.0.0.1", server.port)


def resyncs(server: Server) -> dict[str, int]:
    """Return what attaching may cost a primary."""
    fields = info(server, "stats")
    # Redis 6.2 and later count forks.
    names = ("total_forks", "sync_full", "sync_partial_ok")
    return {name: int(fields[name]) for name in names}


def assert_spared(before: dict[str, int], server: Server, links: int = 1) -> None:
    after = resyncs(server)
    assert after["total_forks"] == before["total_forks"]
    assert after["sync_full"] == before["sync_full"]
    assert after["sync_partial_ok"] == before["sync_partial_ok"] + links


def wait_until_rooted(taping: Taping) -> None:
    def is_rooted() -> bool:
        if taping._error is not None:
            raise taping._error
        return taping.agent.linker.commits.is_rooted

    wait_until(lambda: taping.agent.is_ready or taping._error is not None)
    wait_until(is_rooted)


def fill(server: Server, keys: int = MANY) -> None:
    with PlainClient(server.client()) as plain:
        plain.exchange([("SET", f"fill{n}", os.urandom(500)) for n in range(keys)])


@dataclass(frozen=True)
class Pair:
    """A primary and its replica."""

    primary: Server
    replica: Server


def pair(start_server: StartServer, name: str, **config: Any) -> Pair:  # noqa: ANN401
    """Start a primary, and a replica that has these settings."""
    primary = quiet(start_server, name)
    replica = start_server(name, **config)
    attach(replica, primary)
    return Pair(primary, replica)


@contextmanager
def counting(server: Server, db: int) -> Iterator[None]:
    """Count in one database all the time, saying SELECT but once."""

    def count(is_over: threading.Event) -> None:
        with PlainClient(server.client()) as plain:
            plain.ask("SELECT", db)
            while not is_over.wait(0.0005):
                plain.exchange([("INCR", "counter")] * 5)

    with meanwhile(count):
        yield


def wait_for_more(server: Server) -> None:
    """Return once some hundred more bytes were streamed."""
    now = offset_of(server)
    wait_until(lambda: offset_of(server) > now + 1000)


def counted(server: Server, db: int) -> int:
    with PlainClient(server.client()) as plain:
        plain.ask("SELECT", db)
        reply = plain.ask("GET", "counter")
        assert isinstance(reply, bytes)
        return int(reply)


def restored(folder: Path, point: Point, target: Server) -> Fingerprint:
    """Restore a point into a running server; return what it has."""
    job = open_job(str(folder / "repo"), None, point)
    client = target.client()
    client.flushall()
    trio.run(restore_into, job, IntoOptions(url_of(target)))
    return fingerprint(client)


# From a replica.


@EVERY_FORMAT
def test_a_replicas_snapshot_and_the_primarys_stream_restore_exactly(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    # Both forms of a transfer, and Valkey 9.1 makes its own choice.
    diskless = "no" if server_name in ("redis-6.2", "valkey-8.0") else "yes"
    both = pair(start_server, server_name, repl_diskless_sync=diskless, **SLOW)
    primary = both.primary
    with Workload("127.0.0.1", primary.port, 5, server_name, field_ttls="long") as work:
        work.step(100)
        before = resyncs(primary)
        with recording(primary, tmp_path, snapshot_from=url_of(both.replica)) as taping:
            # Several databases, before the snapshot, within it and behind it.
            while not taping.agent.linker.commits.is_rooted:
                work.step(20)
            [snapshot] = open_catalogue(taping)
            work.step(60)
            first = stable_fingerprint(primary.client())
            work.step(60)
            second = stable_fingerprint(primary.client())
            taping.catch_up()
            assert_spared(before, primary)
            assert taping.agent.trouble is None
    [manifest] = snapshots(tmp_path)
    assert manifest["offset"] == snapshot
    assert manifest["server"]["role"] == "replica"
    target = start_server(server_name)
    for offset, state in (first, second):
        assert offset > snapshot
        copy = restored(tmp_path, ToOffset(offset), target)
        assert not compare(state, copy)


def open_catalogue(taping: Taping) -> list[int]:
    """Return the offsets of the snapshots that are queued or stored."""
    folder = taping.agent.options.spool
    assert folder is not None
    paths = {path.parent.name for path in folder.glob("queue/snapshots/*/*/rdb.zst")}
    wait_until(lambda: taping.agent.uploader.stored is not None)
    stored = taping.repository / "source" / "snapshots"
    paths |= {path.parent.name for path in stored.glob("*/*/rdb.zst")}
    return sorted({int(name.split("-")[0]) for name in paths})


@ONE_OF_EACH
def test_a_stream_joined_in_its_middle_goes_on_in_the_right_database(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    # Nobody says SELECT between where the stream is joined and its end.
    both = pair(start_server, server_name)
    with counting(both.primary, 9):
        wait_until(lambda: info(both.primary, "keyspace").get("db9") is not None)
        with recording(
            both.primary, tmp_path, snapshot_from=url_of(both.replica)
        ) as taping:
            wait_until_rooted(taping)
            wait_for_more(both.primary)
    with recording(both.primary, tmp_path, snapshot_from=url_of(both.replica)) as it:
        it.catch_up()
    expected = counted(both.primary, 9)
    target = start_server(server_name)
    restored(tmp_path, ToLatest(), target)
    job = open_job(str(tmp_path / "repo"), None, ToLatest())
    folder = tmp_path / "copy"
    restore_data_dir(job, folder, layout_for(job.plan.snapshot.manifest))
    for copy in (target, start_server(server_name, config_file=folder / "redis.conf")):
        assert counted(copy, 9) == expected
        assert "db0" not in info(copy, "keyspace")


@ONE_OF_EACH
def test_nothing_is_acknowledged_before_the_snapshot_is_there(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    both = pair(start_server, server_name, repl_diskless_sync="yes", **SLOW)
    primary = both.primary
    fill(primary)

    def acknowledged() -> int:
        fields = info(primary, "replication").values()
        [ours] = [value for value in fields if "port=70000" in value]
        return int(ours.partition("offset=")[2].partition(",")[0])

    until = offset_of(primary) + 1
    with recording(
        primary,
        tmp_path,
        snapshot_from=url_of(both.replica),
        ack="received",
        until_offset=until,
    ) as taping:
        seeder = taping.agent.linker.seeder
        assert seeder is not None
        wait_until(lambda: seeder.received > 0)
        fill(primary, 10)
        taping.catch_up()
        with PlainClient(primary.client()) as plain:
            plain.ask("SET", "key", "value")
            # Of the two replicas, only the real one can say so.
            assert as_int(plain.ask("WAIT", 2, 50)) <= 1
        assert acknowledged() == 0
        assert not taping.agent.linker.commits.is_rooted
        wait_until_rooted(taping)
        # What was to be recorded is, and so it stops by itself.
        wait_until(lambda: not taping._thread.is_alive())
    assert open_job(str(tmp_path / "repo"), None, ToLatest()).plan.offset >= until


@ONE_OF_EACH
def test_the_snapshot_is_taken_again_where_the_replica_died_of_it(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    both = pair(start_server, server_name, repl_diskless_sync="yes", **SLOW)
    fill(both.primary)
    with recording(
        both.primary, tmp_path, snapshot_from=url_of(both.replica)
    ) as taping:
        seeder = taping.agent.linker.seeder
        assert seeder is not None
        wait_until(lambda: seeder.received > 0)
        both.replica.kill()
        wait_until(lambda: "no snapshot from" in str(taping.agent.trouble))
        assert not taping.agent.linker.commits.is_rooted
        assert os.listdir(tmp_path / "spool" / "recording") != ["rdb.zst"]  # noqa: PTH208
        both.replica.start()
        with PlainClient(both.replica.client()) as plain:
            plain.ask("CONFIG", "SET", "rdb-key-save-delay", 0)
        attach(both.replica, both.primary)
        before = resyncs(both.primary)
        wait_until_rooted(taping)
        wait_until(lambda: taping.agent.trouble is None)
        assert_spared(before, both.primary, links=0)
        fill(both.primary, 10)
        taping.catch_up()
    expected = fingerprint(both.primary.client())
    assert not compare(
        expected, restored(tmp_path, ToLatest(), start_server(server_name))
    )


SEED_AND_DIE = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import trio
    from kvtape.record.agent import Agent
    from kvtape.record.options import RecordOptions
    from kvtape.record.spooling.recorder import Limits
    from kvtape.server.url import ServerUrl

    port, replica, folder = sys.argv[1:]

    async def die(agent):
        while True:
            if agent.is_ready and agent.linker.seeder.received and any(
                (Path(folder) / "repo").glob("source/stream/*/*/*.seg")
            ):
                os.kill(os.getpid(), signal.SIGKILL)
            await trio.sleep(0.01)

    async def main():
        agent = Agent(RecordOptions(
            ServerUrl("127.0.0.1", int(port)), folder + "/repo", "source",
            Path(folder) / "spool", limits=Limits(0.01, 0.1),
            full_resyncs_per_hour=100,
            snapshot_from=ServerUrl("127.0.0.1", int(replica)),
        ))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(die, agent)
            await agent.run()

    trio.run(main)
    """
)


@pytest.mark.parametrize(
    ("server_name", "goes_on"),
    [
        ("valkey-9.1", "from the replica"),
        ("redis-7.0", "by itself"),
        ("redis-6.2", "elsewhere"),
    ],
    indirect=["server_name"],
)
def test_a_stream_without_a_snapshot_is_not_taken_for_complete(
    server_name: str, start_server: StartServer, tmp_path: Path, goes_on: str
) -> None:
    both = pair(start_server, server_name, repl_diskless_sync="yes", **SLOW)
    fill(both.primary)
    ports = [str(both.primary.port), str(both.replica.port)]
    with counting(both.primary, 3):
        done = subprocess.run(
            [sys.executable, "-c", SEED_AND_DIE, *ports, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with PlainClient(both.replica.client()) as plain:
        plain.ask("CONFIG", "SET", "rdb-key-save-delay", 0)
    changes: dict[str, Any] = {}
    if goes_on != "by itself":
        changes["snapshot_from"] = url_of(both.replica)
    if goes_on == "elsewhere":
        changes["spool"] = tmp_path / "another-spool"
    before = resyncs(both.primary)
    with recording(both.primary, tmp_path, **changes) as taping:
        wait_until_rooted(taping)
        fill(both.primary, 10)
        taping.catch_up()
        if goes_on == "by itself":
            assert resyncs(both.primary)["sync_full"] == before["sync_full"] + 1
        else:
            assert_spared(before, both.primary)
    assert documents_of(sources(tmp_path), "gaps/*/*.json") == []
    assert len(snapshots(tmp_path)) == 1
    expected = fingerprint(both.primary.client())
    assert not compare(
        expected, restored(tmp_path, ToLatest(), start_server(server_name))
    )


@ONE_OF_EACH
def test_a_primary_that_cannot_continue_is_joined_anew_behind_a_gap(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    primary = quiet(start_server, server_name, repl_backlog_size="16kb")
    replica = start_server(server_name)
    attach(replica, primary)
    options: dict[str, Any] = {"snapshot_from": url_of(replica)}
    with recording(primary, tmp_path, **options) as taping:
        wait_until_rooted(taping)
        fill(primary, 5)
        end = taping.catch_up()
    fill(primary)
    attach(replica, primary)
    before = resyncs(primary)
    with recording(primary, tmp_path, **options) as taping:
        wait_until_rooted(taping)
        wait_until(lambda: len(taping.agent.linker.commits.gaps) == 1)
        fill(primary, 5)
        taping.catch_up()
    assert_spared(before, primary)
    [gap] = documents_of(sources(tmp_path), "gaps/*/*.json")
    assert gap["start_offset"] == end
    assert gap["end_offset"] == max(it["offset"] for it in snapshots(tmp_path))
    assert "backlog" in str(gap["reason"])
    expected = fingerprint(primary.client())
    assert not compare(
        expected, restored(tmp_path, ToLatest(), start_server(server_name))
    )


def test_a_newer_replica_serves_and_is_said_to_be_what_a_restore_needs(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    primary, newer = start_server("redis-6.2"), start_server("redis-7.0")
    attach(newer, primary)
    with PlainClient(primary.client()) as plain:
        # Relative, as only 6.2 streams it, behind a snapshot of 7.0.
        plain.exchange([("SET", "before", 1, "EX", 1000), ("INCR", "counter")])
        before = resyncs(primary)
        with recording(primary, tmp_path, snapshot_from=url_of(newer)) as taping:
            wait_until_rooted(taping)
            plain.exchange([("SET", "behind", 1, "EX", 1000), ("INCR", "counter")])
            taping.catch_up()
        assert_spared(before, primary)
    expected = fingerprint(primary.client())
    target = start_server("redis-7.0")
    assert not compare(expected, restored(tmp_path, ToLatest(), target))
    assert "restored from it needs Redis 7.0 or newer" in caplog.text
    with pytest.raises(ServerError, match="cannot load RDB version 10"):
        restored(tmp_path, ToLatest(), start_server("redis-6.2"))


@ONE
def test_a_failover_while_the_snapshot_comes_costs_nothing(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    both = pair(start_server, server_name, repl_diskless_sync="yes", **SLOW)
    fill(both.primary)
    heir = start_server(server_name, repl_diskless_sync_delay="0")
    attach(heir, both.primary)
    with recording(heir, tmp_path, snapshot_from=url_of(both.replica)) as taping:
        seeder = taping.agent.linker.seeder
        assert seeder is not None
        wait_until(lambda: seeder.received > 0)
        first = taping.replid
        with PlainClient(heir.client()) as plain:
            plain.ask("REPLICAOF", "NO", "ONE")
        fill(heir, 10)
        wait_until(lambda: taping.agent.recorder.replid != first)
        assert not taping.agent.linker.commits.is_rooted
        wait_until_rooted(taping)
        taping.catch_up()
        second = taping.replid
        assert resyncs(heir)["sync_full"] == 0
    [manifest] = snapshots(tmp_path)
    assert manifest["replid"] == first != second
    expected = fingerprint(heir.client())
    assert not compare(
        expected, restored(tmp_path, ToLatest(), start_server(server_name))
    )


@ONE
def test_a_full_resync_that_nobody_asked_for_is_not_taken(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = pair(start_server, server_name)
    ask_server = linker_module.ask_server

    async def ask_too_early(url: ServerUrl) -> ServerInfo:
        told = await ask_server(url)
        with PlainClient(both.primary.client()) as plain:
            plain.ask("DEBUG", "CHANGE-REPL-ID")
        return told

    monkeypatch.setattr(linker_module, "ask_server", ask_too_early)
    taping = Taping(
        both.primary,
        tmp_path,
        Agent(
            options_for(
                both.primary.port,
                tmp_path,
                snapshot_from=url_of(both.replica),
                full_resyncs_per_hour=1,
            )
        ),
    )
    wait_until(lambda: "dropped at once" in str(taping.agent.trouble))
    # It has cost a fork, and counts as one.
    wait_until(lambda: "--full-resyncs-per-hour" in str(taping.agent.trouble))
    taping.stop()
    assert snapshots(tmp_path) == []
    assert resyncs(both.primary)["sync_full"] == 2


@ONE
def test_a_replica_that_is_of_no_use_is_said_and_waited_for(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    both = pair(start_server, server_name)
    with PlainClient(both.replica.client()) as plain:
        plain.ask("REPLICAOF", "NO", "ONE")
    with PlainClient(both.primary.client()) as plain:
        plain.ask("SET", "key", "value")
    before = resyncs(both.primary)
    with recording(
        both.primary, tmp_path, snapshot_from=url_of(both.replica)
    ) as taping:
        wait_until(lambda: "no replica of the recorded" in str(taping.agent.trouble))
        both.replica.kill()
        wait_until(lambda: "cannot connect" in str(taping.agent.trouble))
        assert taping.agent.session is not None
        assert taping.agent.session.is_online
        assert_spared(before, both.primary)
        fill(both.primary, 1)
        taping.catch_up()
    assert snapshots(tmp_path) == []
    assert "stopped: nothing can be restored yet" in caplog.text


@ONE
def test_what_cannot_be_attached_to_is_refused_before_psync(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    both = pair(start_server, server_name)
    alone = start_server(server_name)
    before = resyncs(both.primary)
    itself = error_of(both.primary, tmp_path / "1", snapshot_from=url_of(both.primary))
    assert isinstance(itself, UsageError)
    assert "is the recorded server itself" in str(itself)
    no_backlog = error_of(alone, tmp_path / "2", snapshot_from=url_of(both.replica))
    assert isinstance(no_backlog, JoinError)
    assert "has no backlog" in str(no_backlog)
    with PlainClient(both.primary.client()) as plain:
        plain.ask("ACL", "SETUSER", "me", "on", ">pw", "-@all", "+psync", "+replconf")
    silent = error_of(
        both.primary,
        tmp_path / "3",
        url=ServerUrl("127.0.0.1", both.primary.port, "me", "pw"),
        snapshot_from=url_of(both.replica),
    )
    assert isinstance(silent, ServerError)
    assert "+info" in str(silent)
    assert resyncs(alone)["total_forks"] == 0
    assert resyncs(both.primary)["total_forks"] == before["total_forks"]
    with pytest.raises(UsageError, match="two ways"):
        options_for(
            alone.port, tmp_path, snapshot_from=url_of(alone), snapshot_file=tmp_path
        )


def test_what_a_replicas_url_leaves_out_is_as_for_the_primary() -> None:
    primary = ServerUrl("p", 1, "tape", "secret")
    assert _replica("redis://r:2", primary) == ServerUrl("r", 2, "tape", "secret")
    own = _replica("redis://me:mine@r:2", primary)
    assert own == ServerUrl("r", 2, "me", "mine")
    ca = Tls(ca=Path("ca.pem"))
    both = _replica("rediss://r:2", replace(primary, tls=ca))
    assert both.tls == ca
    assert _replica("redis://r:2", replace(primary, tls=ca)).tls is None


# From a file.


def saved(server: Server) -> Path:
    """Have a server write its RDB file; return where it is."""
    with PlainClient(server.client()) as plain:

        def is_idle() -> bool:
            return plain.info("persistence")["rdb_bgsave_in_progress"] == "0"

        # The child that made a replica's snapshot is perhaps still there.
        wait_until(is_idle)
        plain.ask("BGSAVE")
        wait_until(is_idle)
        assert plain.info("persistence")["rdb_last_bgsave_status"] == "ok"
    return server.folder / "dump.rdb"


@EVERY_FORMAT
def test_a_file_saved_under_load_and_the_stream_restore_exactly(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    both = pair(start_server, server_name)
    primary = both.primary
    with PlainClient(primary.client()) as plain:
        plain.ask("CONFIG", "SET", "repl-backlog-size", "64mb")
    target = start_server(server_name)
    for maker in (primary, both.replica):
        folder = tmp_path / str(maker.port)
        with counting(primary, 9), counting(primary, 2):
            wait_until(lambda: info(primary, "keyspace").get("db9") is not None)
            file = saved(maker)
            before = resyncs(primary)
            with recording(primary, folder, snapshot_file=file) as taping:
                wait_until_rooted(taping)
                wait_for_more(primary)
        file.unlink()
        assert_spared(before, primary)
        # Later it is not needed, and need not be there.
        with recording(primary, folder, snapshot_file=file) as taping:
            taping.catch_up()
        assert_spared(before, primary, links=2)
        restored(folder, ToLatest(), target)
        counts = [counted(primary, db) for db in (2, 9)]
        assert [counted(target, db) for db in (2, 9)] == counts
        [manifest] = snapshots(folder)
        family, _, release = server_name.partition("-")
        assert manifest["server"]["family"] == family
        assert manifest["server"]["version"].startswith(f"{release}.")


@ONE_OF_EACH
def test_the_time_of_a_file_is_when_its_second_was_over(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    both = pair(start_server, server_name)
    before = int(time.time())
    file = saved(both.replica)
    after = int(time.time())
    wait_until(lambda: int(time.time()) > after)
    with recording(both.primary, tmp_path, snapshot_file=file) as taping:
        fill(both.primary, 10)
        taping.catch_up()
    [manifest] = snapshots(tmp_path)
    assert manifest["time"] in {1000 * (before + 1), 1000 * (after + 1)}
    for late in (0, 1):
        point = ToTime(manifest["time"] + late)
        job = open_job(str(tmp_path / "repo"), None, point)
        assert job.plan.offset == manifest["offset"]
    with pytest.raises(PointError, match="before the first snapshot"):
        open_job(str(tmp_path / "repo"), None, ToTime(manifest["time"] - 1))


@ONE
def test_a_file_that_the_backlog_does_not_reach_is_refused_with_the_numbers(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    primary = quiet(start_server, server_name, repl_backlog_size="16kb")
    replica = start_server(server_name)
    attach(replica, primary)
    file = saved(replica)
    made_at = offset_of(primary)

    def is_out_of_reach() -> bool:
        # A backlog is longer than it should be while a replica has yet to read it.
        fill(primary, 50)
        first = info(primary, "replication")["repl_backlog_first_byte_offset"]
        return int(first) > made_at + 1

    wait_until(is_out_of_reach)
    before = resyncs(primary)
    error = error_of(primary, tmp_path, snapshot_file=file)
    assert isinstance(error, JoinError)
    fields = info(primary, "replication")
    start = int(fields["repl_backlog_first_byte_offset"]) - 1
    end = int(fields["master_repl_offset"])
    assert (
        f"goes from offset {start} to {end}, and the snapshot needs the stream from "
        f"{made_at} on: {start - made_at} bytes are missing"
    ) in str(error)
    assert f"repl-backlog-size to more than {end - made_at} " in str(error)
    assert resyncs(primary) == before


@ONE
def test_a_wrong_file_is_refused(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    both = pair(start_server, server_name)
    fill(both.primary, 50)
    wait_until(lambda: offset_of(both.replica) == offset_of(both.primary))
    good = saved(both.replica).read_bytes()
    middle = good.rindex(b"fill") + 20  # in a value, not in what it says of itself
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    before = resyncs(both.primary)
    file = tmp_path / "file.rdb"
    for number, (content, kind, words) in enumerate(
        [
            (b"not an RDB at all", UsageError, "is no RDB file"),
            (b"", UsageError, "is no RDB file"),
            (rdb((0, "key", "value", None)), UsageError, "BGSAVE on a replica"),
            (good[:-20], VerificationError, "is damaged: .*cut short"),
            (flipped, VerificationError, "is damaged"),
            (good + b"x", VerificationError, "is damaged: .*goes on"),
        ]
    ):
        file.write_bytes(content)
        error = error_of(both.primary, tmp_path / str(number), snapshot_file=file)
        with pytest.raises(kind, match=words):
            raise error
        assert not snapshots(tmp_path / str(number))
    missing = error_of(both.primary, tmp_path / "m", snapshot_file=tmp_path / "none")
    assert isinstance(missing, UsageError)
    stranger = start_server(server_name)
    attach(stranger, start_server(server_name))
    other = error_of(both.primary, tmp_path / "o", snapshot_file=saved(stranger))
    assert isinstance(other, JoinError)
    assert "does not know" in str(other)
    after = resyncs(both.primary)
    assert (after["sync_full"], after["total_forks"]) == (
        before["sync_full"],
        before["total_forks"],
    )


@ONE_OF_EACH
def test_a_file_from_before_a_failover_begins_the_history_of_the_new_primary(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    both = pair(start_server, server_name)
    heir = both.replica
    fill(both.primary, 10)
    file = saved(heir)
    with PlainClient(both.primary.client()) as plain:
        plain.exchange([("SELECT", 4), ("INCR", "counter")])
    wait_until(lambda: "db4" in info(heir, "keyspace"))
    with PlainClient(heir.client()) as plain:
        plain.ask("REPLICAOF", "NO", "ONE")
        plain.exchange([("SELECT", 4), ("INCR", "counter")])
    before = resyncs(heir)
    with recording(heir, tmp_path, snapshot_file=file) as taping:
        wait_until_rooted(taping)
        taping.catch_up()
    assert_spared(before, heir)
    expected = fingerprint(heir.client())
    assert not compare(
        expected, restored(tmp_path, ToLatest(), start_server(server_name))
    )


@ONE_OF_EACH
def test_a_newer_file_ends_a_gap_at_the_next_start(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    primary = quiet(start_server, server_name, repl_backlog_size="16kb")
    replica = start_server(server_name)
    attach(replica, primary)
    with recording(primary, tmp_path, snapshot_file=saved(replica)) as taping:
        wait_until_rooted(taping)
        end = taping.catch_up()
    fill(primary)
    attach(replica, primary)
    offset = offset_of(primary)
    wait_until(lambda: offset_of(replica) == offset)
    file = saved(replica)
    before = resyncs(primary)
    with recording(primary, tmp_path, snapshot_file=file) as taping:
        wait_until_rooted(taping)
        fill(primary, 5)
        taping.catch_up()
    assert_spared(before, primary)
    [gap] = documents_of(sources(tmp_path), "gaps/*/*.json")
    assert (gap["start_offset"], gap["end_offset"]) == (end, offset)
    expected = fingerprint(primary.client())
    assert not compare(
        expected, restored(tmp_path, ToLatest(), start_server(server_name))
    )
