"""A recording goes on from what is stored, on any host, by a partial resync."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from kvtape.record.spooling.recorder import Limits
from plain_client import PlainClient
from recording import SOURCE, Taping, options_for, taping_by
from replicas import wait_until
from servers import Server, StartServer, quiet
from tapes import documents_of, stream_of
from test_failover import syncs
from verbs import kvtape, program, wait_for_line


def recording(
    server: Server,
    folder: Path,
    spool: str,
    **changes: Any,  # noqa: ANN401
) -> AbstractContextManager[Taping]:
    """Record a server with a spool of its own, as on another host."""
    options = options_for(server.port, folder, spool=folder / spool, **changes)
    return taping_by(options, server)


def write(server: Server, *values: object) -> None:
    with PlainClient(server.client()) as plain:
        plain.exchange([("SET", "key", str(value)) for value in values])


def stored_end(folder: Path) -> int:
    """Return the last offset that can be restored."""
    ranges = kvtape("info", "--repo", folder / "repo", "--json").document()[
        "restorable"
    ]
    return max((int(range_["end_offset"]) for range_ in ranges), default=-1)


@pytest.mark.parametrize(
    "server_name", ["redis-6.2", "redis-8.0", "valkey-9.1"], indirect=True
)
def test_after_a_kill_and_without_its_spool_it_goes_on_on_another_host(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    url = f"redis://127.0.0.1:{server.port}"
    arguments = ["record", url, "--repo", tmp_path / "repo", "--source", SOURCE]
    arguments += ["--spool", tmp_path / "spool", "--upload-interval", "100ms"]
    with program(*arguments) as process:
        wait_for_line(process, "is complete")
        write(server, *range(50))
        wait_until(lambda: stored_end(tmp_path) > 500)
        process.kill()
        process.wait()
    shutil.rmtree(tmp_path / "spool")
    write(server, *range(50))
    assert syncs(server) == (1, 0)
    with recording(server, tmp_path, "another-spool") as taping:
        end = taping.catch_up()
        assert syncs(server) == (1, 1)
    source = tmp_path / "repo" / SOURCE
    start, data = stream_of(source, taping.replid)
    assert start + len(data) == end
    assert documents_of(source, "gaps/*/*.json") == []
    assert len(documents_of(source, "snapshots/*/*/manifest.json")) == 1


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_of_two_histories_the_newer_is_continued(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    older, newer = start_server(server_name), start_server(server_name)
    # The older history is the longer one.
    write(older, *range(200))
    with recording(older, tmp_path, "one") as taping:
        write(older, *range(100))
        taping.catch_up()
    with recording(newer, tmp_path, "two", adopt=True) as taping:
        write(newer, 1)
        taping.catch_up()
        replid = taping.replid
    with recording(newer, tmp_path, "three") as taping:
        write(newer, 2)
        taping.catch_up()
        assert taping.replid == replid
    assert syncs(newer) == (1, 1)
    assert len(documents_of(tmp_path / "repo" / SOURCE, "gaps/*/*.json")) == 1


@pytest.mark.parametrize("server_name", ["valkey-8.1"], indirect=True)
def test_a_snapshot_whose_upload_was_interrupted_is_not_there_and_not_resumed(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name)
    with recording(server, tmp_path, "one") as taping:
        write(server, 1)
        taping.catch_up()
    # As a kill leaves it that comes before the manifest; the spool's disk is lost.
    [manifest] = (tmp_path / "repo").rglob("manifest.json")
    manifest.unlink()
    found = kvtape("info", "--repo", tmp_path / "repo", "--json").document()
    assert (found["snapshots"], found["restorable"], found["problems"]) == ([], [], [])
    with recording(server, tmp_path, "two") as taping:
        write(server, 2)
        taping.catch_up()
    assert syncs(server) == (2, 0)
    found = kvtape("info", "--repo", tmp_path / "repo", "--json").document()
    assert len(found["snapshots"]) == len(found["restorable"]) == 1
    assert found["restorable"][0]["start_offset"] == found["snapshots"][0]["offset"]


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_what_waits_in_anothers_spool_is_not_missed(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name)
    with recording(server, tmp_path, "one") as first:
        write(server, *range(20))
        reached = first.catch_up()
        wait_until(lambda: stored_end(tmp_path) >= reached)
        # From now on nothing of the first one's is stored until it ends.
        with recording(
            server, tmp_path, "idle", limits=Limits(0.01, upload_interval=600)
        ) as idle:
            write(server, *range(20))
            idle.catch_up()
            with recording(server, tmp_path, "two") as second:
                write(server, *range(20))
                end = second.catch_up()
    assert syncs(server) == (1, 2)
    source = tmp_path / "repo" / SOURCE
    assert documents_of(source, "gaps/*/*.json") == []
    found = kvtape("info", "--repo", tmp_path / "repo", "--json").document()
    [range_] = found["restorable"]
    assert range_["end_offset"] >= end
