"""Two agents record one server: each may be killed, and nothing is missing.

The agents are programs of their own, ended by SIGKILL. What they stored is compared
with what an independent replica of the same server got.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvtape.restore.job import open_job
from kvtape.storage.reader import read_snapshot, read_stream
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.tape.point import ToOffset
from plain_client import PlainClient
from replicas import offset_of, wait_until
from servers import Server, StartServer, quiet
from test_record_servers import Capture, sync_full
from workload import Workload


class Recording:
    """A kvtape record that can be killed, with a spool of its own."""

    def __init__(self, server: Server, folder: Path, spool: str) -> None:
        self._command = [
            *(sys.executable, "-m", "kvtape", "record"),
            f"redis://127.0.0.1:{server.port}",
            *("--repo", str(folder / "repo"), "--source", "source"),
            *("--spool", str(folder / spool)),
            *("--flush-interval", "10ms", "--upload-interval", "100ms"),
            *("--full-resyncs-per-hour", "100"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, or go on."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def stop(self) -> tuple[int, bytes]:
        """SIGTERM; return the exit status and what it said."""
        assert self._process is not None
        self._process.terminate()
        _, said = self._process.communicate(timeout=30)
        status, self._process = self._process.returncode, None
        return status, said


@contextmanager
def recording_twice(server: Server, folder: Path) -> Iterator[list[Recording]]:
    """Record a server with two agents."""
    agents = [Recording(server, folder, f"spool{number}") for number in range(2)]
    try:
        for agent in agents:
            agent.start()
        yield agents
    finally:
        for agent in agents:
            agent.kill()


def stored_up_to(folder: Path) -> int:
    """Return the last offset that can be restored."""
    try:
        catalogue = open_repository(str(folder / "repo")).source("source").catalogue()
    except Exception:  # noqa: BLE001 it is not there yet, or just being written
        return -1
    return max((found.end for found in catalogue.all_ranges()), default=-1)


def overlap(folder: Path) -> int:
    """Return how many bytes of the stream are stored more than once."""
    [segments] = source_of(folder).catalogue().segments.values()
    twice, reached = 0, 0
    for segment in segments:
        twice += max(0, min(reached, segment.end) - segment.start)
        reached = max(reached, segment.end)
    return twice


def restorable(folder: Path) -> list[dict[str, int]]:
    """Return what kvtape info says can be restored."""
    command = [sys.executable, "-m", "kvtape", "info", "--json"]
    shown = subprocess.run(
        [*command, "--repo", folder / "repo"], check=True, stdout=subprocess.PIPE
    )
    found: list[dict[str, int]] = json.loads(shown.stdout)["restorable"]
    return found


def source_of(folder: Path) -> SourceFolder:
    return open_repository(str(folder / "repo")).source("source")


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
def test_of_two_agents_either_may_be_killed_and_every_point_can_be_restored(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name, repl_backlog_size="64mb")
    with (
        PlainClient(server.client()) as plain,
        Workload("127.0.0.1", server.port, 3, server_name) as work,
        recording_twice(server, tmp_path) as agents,
    ):
        wait_until(lambda: stored_up_to(tmp_path) >= 0)
        wait_until(lambda: info_replicas(plain) == 2)
        with closing(Capture(server.port)) as capture:
            snapshots = sync_full(server)
            offsets = []
            for number in range(5):
                work.step(60)
                offsets.append(offset_of(server))
                wait_until(lambda: stored_up_to(tmp_path) >= offsets[-1])
                agent = agents[number % 2]
                agent.kill()
                work.step(60)
                offsets.append(offset_of(server))
                # The other one has it, as it comes.
                wait_until(lambda: stored_up_to(tmp_path) >= offsets[-1])
                agent.start()
                wait_until(lambda: info_replicas(plain) == 3)
            work.step(60)
            offsets.append(offset_of(server))
            wait_until(lambda: stored_up_to(tmp_path) >= offsets[-1])
            wait_until(lambda: overlap(tmp_path) > 0)
            wait_until(lambda: capture.end_offset >= offsets[-1])
            for agent in agents:
                status, said = agent.stop()
                assert status == 0, said
            assert sync_full(server) == snapshots
    folder = source_of(tmp_path)
    catalogue = folder.catalogue()
    assert catalogue.problems == []
    [found] = catalogue.all_ranges()
    [shown] = restorable(tmp_path)
    assert (shown["start_offset"], shown["end_offset"]) == (found.start, found.end)
    for offset in offsets:
        job = open_job(str(tmp_path / "repo"), "source", ToOffset(offset))
        assert job.plan.offset == offset
        assert b"".join(read_snapshot(folder, job.plan.snapshot))
        data = b"".join(piece.data for piece in read_stream(folder, job.plan.slices))
        start = job.plan.snapshot.name.offset
        assert len(data) == offset - start
        first = max(start, capture.start_offset)
        mine = capture.data[
            first - capture.start_offset : offset - capture.start_offset
        ]
        assert data[first - start :] == mine


def info_replicas(plain: PlainClient) -> int:
    """Return how many replicas are online."""
    replicas = plain.info("replication")
    return sum("state=online" in value for value in replicas.values())
