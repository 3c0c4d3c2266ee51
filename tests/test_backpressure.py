"""What the repository cannot take waits in the spool, and never at the primary."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvtape.errors import RepositoryError
from kvtape.record import agent as agent_module
from kvtape.record import backoff as backoff_module
from kvtape.record.linking import linker as linker_module
from kvtape.record.spooling import room as room_module
from kvtape.record.spooling.recorder import Limits
from kvtape.record.uploading import uploader as uploader_module
from plain_client import PlainClient
from recording import SOURCE, Taping, options_for, taping_by
from replicas import wait_until
from servers import Server, StartServer, quiet
from small_disk import small_disk
from tapes import documents_of, stream_of

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
VALUE = 128 * 1024

OF_EACH_KIND = pytest.mark.parametrize(
    "server_name", ["redis-6.2", "redis-7.0", "valkey-9.1"], indirect=True
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for little before trying again."""
    monkeypatch.setattr(backoff_module, "_FIRST", 0.05)
    monkeypatch.setattr(backoff_module, "_LONGEST", 0.1)
    monkeypatch.setattr(room_module, "_LOOK_AGAIN", 0.05)
    monkeypatch.setattr(uploader_module, "_BY_HAND", 0.1)
    monkeypatch.setattr(agent_module, "_LOOK_AGAIN", 0.05)
    monkeypatch.setattr(linker_module, "_ASK_AGAIN", 0.05)


def recording(
    server: Server,
    folder: Path,
    **changes: Any,  # noqa: ANN401
) -> AbstractContextManager[Taping]:
    limits = Limits(flush_interval=0.01, upload_interval=0.2, segment_size=4 * MIB)
    return taping_by(options_for(server.port, folder, limits=limits, **changes), server)


@contextmanager
def gone(repository: Path) -> Iterator[None]:
    """Have a file stand where the repository was."""
    away = repository.with_name("away")
    repository.rename(away)
    repository.write_text("no folder")
    try:
        yield
    finally:
        repository.unlink()
        away.rename(repository)


def write(plain: PlainClient, length: int) -> None:
    """Write so many bytes, which do not compress."""
    for number in range(length // VALUE):
        plain.ask("SET", f"key{number % 16}", random.randbytes(VALUE))


def buffered(plain: PlainClient) -> int:
    """Return what the server keeps for its replicas, by its own account."""
    return int(plain.info("memory")["mem_clients_slaves"])


def has_trouble(taping: Taping) -> bool:
    return "cannot write to the spool" in (taping.agent.trouble or "")


def full_resyncs(plain: PlainClient) -> int:
    return int(plain.info("stats")["sync_full"])


def stored_end(folder: Path, replid: str) -> int:
    start, stream = stream_of(folder / "repo" / SOURCE, replid)
    return start + len(stream)


def gaps(folder: Path) -> list[Any]:
    return documents_of(folder / "repo" / SOURCE, "gaps/*/*.json")


@OF_EACH_KIND
def test_while_the_repository_is_gone_the_primary_keeps_nothing_for_us(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = quiet(start_server, server_name)
    with PlainClient(server.client()) as plain:
        with recording(server, tmp_path) as taping:
            before, end = full_resyncs(plain), 0
            with gone(tmp_path / "repo"):
                for _ in range(25):
                    write(plain, 4 * MIB)
                    end = taping.catch_up()
                    assert buffered(plain) < MIB // 4
                wait_until(lambda: taping.agent.uploader.error is not None)
                assert taping.agent.spool.used > 100 * MIB
            replid = taping.replid
        assert full_resyncs(plain) == before
    assert stored_end(tmp_path, replid) >= end
    assert gaps(tmp_path) == []


def overfill(plain: PlainClient, taping: Taping) -> None:
    """Write what the spool has no room for, and as much again when the link is gone."""
    write(plain, 8 * MIB)
    wait_until(lambda: "is full" in (taping.agent.trouble or ""))
    wait_until(lambda: plain.info("replication")["connected_slaves"] == "0")
    write(plain, 8 * MIB)


@OF_EACH_KIND
def test_a_full_spool_drops_the_link_and_continues_where_the_backlog_reaches_back(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = quiet(start_server, server_name, repl_backlog_size="64mb")
    with PlainClient(server.client()) as plain:
        with recording(server, tmp_path, spool_limit=4 * MIB) as taping:
            before = full_resyncs(plain)
            with gone(tmp_path / "repo"):
                overfill(plain, taping)
                assert buffered(plain) == 0
                # By no more than what was on its way when it was noticed.
                assert 4 * MIB <= taping.agent.spool.used < 9 * MIB
            end = taping.catch_up()
            wait_until(lambda: taping.agent.trouble is None)
            replid = taping.replid
        assert full_resyncs(plain) == before
    assert stored_end(tmp_path, replid) >= end
    assert gaps(tmp_path) == []


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_one_command_that_is_longer_than_the_limit_is_recorded_all_the_same(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = start_server(
        server_name, repl_ping_replica_period="3600", repl_backlog_size="200mb"
    )
    with PlainClient(server.client()) as plain:
        with recording(server, tmp_path, spool_limit=MIB) as taping:
            before = full_resyncs(plain)
            write(plain, MIB // 2)
            # More than the recorder keeps in memory.
            plain.ask("SET", "key", os.urandom(100 * MIB))
            end = taping.catch_up()
            replid = taping.replid
        assert full_resyncs(plain) == before
    assert stored_end(tmp_path, replid) >= end
    assert gaps(tmp_path) == []


@OF_EACH_KIND
def test_a_spool_that_was_full_for_too_long_is_the_reason_of_the_gap(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = quiet(start_server, server_name, repl_backlog_size="1mb")
    with PlainClient(server.client()) as plain:
        with recording(server, tmp_path, spool_limit=4 * MIB) as taping:
            before = full_resyncs(plain)
            with gone(tmp_path / "repo"):
                overfill(plain, taping)
            end = taping.catch_up()
            replid = taping.replid
        assert full_resyncs(plain) == before + 1
    source = tmp_path / "repo" / SOURCE
    [gap] = gaps(tmp_path)
    assert "; the spool was full from 20" in gap["reason"]
    snapshots = documents_of(source, "snapshots/*/*/manifest.json")
    assert gap["end_offset"] in [snapshot["offset"] for snapshot in snapshots]
    assert 0 < gap["end_offset"] <= end
    assert gap["replid"] == replid


# A snapshot that cannot fit.


@OF_EACH_KIND
def test_a_snapshot_that_cannot_fit_is_refused_before_the_primary_makes_it(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = start_server(server_name)
    with PlainClient(server.client()) as plain:
        write(plain, 2 * MIB)
        with (
            pytest.raises(
                RepositoryError, match=r"needs up to 2\..*--spool-limit"
            ) as told,
            recording(server, tmp_path, spool_limit=MIB),
        ):
            pass
        assert told.value.exit_status == 7
        assert full_resyncs(plain) == 0


@OF_EACH_KIND
def test_one_that_does_not_fit_any_more_is_waited_for(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = start_server(server_name, repl_backlog_size="16kb")
    with (
        PlainClient(server.client()) as plain,
        recording(server, tmp_path, spool_limit=2 * MIB) as taping,
    ):
        for _ in range(8):
            plain.ask("APPEND", "key", random.randbytes(MIB // 2))
            taping.catch_up()
            wait_until(lambda: taping.agent.spool.used < MIB)
        before = full_resyncs(plain)
        plain.ask("DEBUG", "CHANGE-REPL-ID")
        plain.ask("CLIENT", "KILL", "TYPE", "replica")
        wait_until(lambda: "a snapshot needs up to" in (taping.agent.trouble or ""))
        assert full_resyncs(plain) == before
        plain.ask("DEL", "key")
        wait_until(lambda: taping.agent.trouble is None)
        taping.wait_until_online()
        assert full_resyncs(plain) == before + 1


# A disk that is full before the limit is reached.


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_a_full_disk_costs_the_primary_no_link_after_link(
    tmp_path: Path, start_server: StartServer, server_name: str
) -> None:
    server = start_server(server_name, repl_backlog_size="64mb")
    with small_disk(tmp_path / "disk") as disk, PlainClient(server.client()) as plain:
        with recording(server, tmp_path, spool=disk / "spool") as taping:
            before = full_resyncs(plain)
            with gone(tmp_path / "repo"):
                # Bit by bit, or not even the first frame has room on so small a disk.
                while not has_trouble(taping):
                    plain.ask("SET", "key", random.randbytes(64 * 1024))
                    end = int(plain.info("replication")["master_repl_offset"])
                    wait_until(
                        lambda end=end: (  # type: ignore[misc]
                            has_trouble(taping) or taping.agent.recorder.durable >= end
                        )
                    )
                tries = taping.agent.uploader.failures
                wait_until(lambda: taping.agent.uploader.failures > tries + 15)
                continued = int(plain.info("stats")["sync_partial_ok"])
                if os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize < 2 * MIB:
                    assert continued <= 1
            end = taping.catch_up()
            replid = taping.replid
        assert full_resyncs(plain) == before
    assert stored_end(tmp_path, replid) >= end
    assert gaps(tmp_path) == []
