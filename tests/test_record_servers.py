"""Recorded from real servers: the very bytes that another replica gets, through it all.

The other replica is a socket and a few lines, with nothing of kvtape in it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtape.errors import RepositoryError, ServerError, UsageError
from kvtape.record.agent import Agent
from kvtape.record.linking import session as session_module
from kvtape.replication.refusal import RefusedError
from kvtape.server import client as client_module
from kvtape.server.url import ServerUrl
from kvtape.storage.repository import SourceFolder
from kvtape.tape.segment import Header, Parser
from meanwhile import meanwhile
from plain_client import PlainClient
from recording import SOURCE, Taping, options_for, recording
from replicas import attach, offset_of, wait_until
from servers import Server, StartServer, quiet
from tapes import decompressed, documents_of, stream_of
from workload import Workload


class Capture(threading.Thread):
    """A replica that keeps the stream as it comes: bytes from start on."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.file = self.socket.makefile("rb")
        self.socket.sendall(b"REPLCONF listening-port 1\r\n")
        assert self.file.readline() == b"+OK\r\n"
        self.socket.sendall(b"PSYNC ? -1\r\n")
        _, self.replid, offset = self._line().decode().split()
        length = int(self._line()[1:])
        assert len(self.file.read(length)) == length
        self.start_offset = int(offset)
        self.data = bytearray()
        self.start()

    def _line(self) -> bytes:
        while (line := self.file.readline()) == b"\n":
            pass
        return line

    def run(self) -> None:
        """Receive until the link is closed."""
        with suppress(OSError):
            while data := self.file.read1(65536):
                self.data += data

    def close(self) -> None:
        """Close the link; what came until then stays."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self.file.close()
        self.socket.close()

    @property
    def end_offset(self) -> int:
        """The offset up to which it has the stream."""
        return self.start_offset + len(self.data)

    def check(self, start: int, data: bytes) -> None:
        """AssertionError unless both hold the same bytes at the same offsets."""
        first = max(start, self.start_offset)
        last = min(start + len(data), self.end_offset)
        assert last - first > 1000
        mine = self.data[first - self.start_offset : last - self.start_offset]
        assert data[first - start : last - start] == mine


@contextmanager
def captured(server: Server) -> Iterator[Capture]:
    """Capture what the server streams."""
    with closing(Capture(server.port)) as capture:
        yield capture


def error_of(server: Server, folder: Path, **changes: Any) -> BaseException:  # noqa: ANN401
    """Return the error that recording ends with."""
    taping = Taping(server, folder, Agent(options_for(server.port, folder, **changes)))
    taping._thread.join(timeout=30)
    assert taping._error is not None
    return taping._error


def info(server: Server, section: str) -> dict[str, str]:
    with PlainClient(server.client()) as plain:
        return plain.info(section)


def sync_full(server: Server) -> int:
    return int(info(server, "stats")["sync_full"])


def sources(folder: Path) -> Path:
    return folder / "repo" / SOURCE


def snapshots(folder: Path) -> list[dict[str, Any]]:
    """Return the manifests of the complete snapshots, the RDB file of each checked."""
    manifests = documents_of(sources(folder), "snapshots/*/*/manifest.json")
    for path in sources(folder).glob("snapshots/*/*/manifest.json"):
        assert decompressed((path.parent / "rdb.zst").read_bytes())
    return manifests


# What is stored is what was streamed.


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_the_stored_stream_is_what_another_replica_got_also_across_two_links(
    server_name: str, start_server: StartServer, tmp_path: Path, diskless: str
) -> None:
    server = quiet(start_server, server_name, repl_diskless_sync=diskless)
    with (
        PlainClient(server.client()) as plain,
        Workload("127.0.0.1", server.port, 1, server_name) as work,
    ):
        work.step(100)
        with recording(server, tmp_path) as taping:
            with captured(server) as first:
                work.step(300)
                assert plain.ask("CLIENT", "KILL", "TYPE", "replica") == 2
                work.step(300)
                wait_until(lambda: not first.is_alive())
            taping.catch_up()
            before = sync_full(server)
            with captured(server) as second:
                work.step(300)
                work.large_value(3_000_000)
                # So that nothing expires later.
                plain.ask("FLUSHALL")
                end = taping.catch_up()
                wait_until(lambda: second.end_offset >= end)
            replid = taping.replid
        assert sync_full(server) == before + 1
    start, data = stream_of(sources(tmp_path), replid)
    assert start + len(data) == end == offset_of(server)
    for capture in (first, second):
        assert capture.replid == replid
        capture.check(start, data)
    [manifest] = snapshots(tmp_path)
    assert (manifest["replid"], manifest["offset"]) == (replid, start)
    family, _, release = server_name.partition("-")
    assert manifest["server"]["family"] == family
    assert manifest["server"]["version"].startswith(f"{release}.")
    assert documents_of(sources(tmp_path), "gaps/*/*") == []
    assert os.listdir(tmp_path / "spool" / "recording") == []  # noqa: PTH208


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_a_fresh_server_at_offset_0_gets_its_stream(
    server_name: str, start_server: StartServer, tmp_path: Path, diskless: str
) -> None:
    server = quiet(start_server, server_name, repl_diskless_sync=diskless)
    with recording(server, tmp_path) as taping:
        with PlainClient(server.client()) as plain:
            plain.ask("SET", "key", "value")
        assert taping.catch_up() > 0
        replid = taping.replid
    start, data = stream_of(sources(tmp_path), replid)
    assert start == 0
    assert b"SET\r\n$3\r\nkey\r\n$5\r\nvalue" in data


def test_a_recording_goes_on_where_the_last_one_stopped(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with PlainClient(server.client()) as plain:
        for number in range(4):
            with recording(server, tmp_path) as taping:
                plain.ask("INCR", "counter")
                taping.catch_up()
            plain.ask("SET", f"between{number}", "x")
    assert sync_full(server) == 1
    replid = info(server, "replication")["master_replid"]
    _, data = stream_of(sources(tmp_path), replid)
    assert data.count(b"INCR") == 4
    assert data.count(b"between") == 3


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-8.1"], indirect=True)
def test_when_an_offset_is_stored_recording_can_stop_by_itself(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with PlainClient(server.client()) as plain:
        plain.ask("SET", "key", "value")
        agent = Agent(options_for(server.port, tmp_path, until_offset=300))
        taping = Taping(server, tmp_path, agent)
        taping.wait_until_online()
        for number in range(20):
            plain.ask("SET", f"key{number}", "value")
        taping._thread.join(timeout=20)
        taping.stop()
    start, data = stream_of(sources(tmp_path), taping.replid)
    assert start + len(data) >= 300


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_recording_from_a_replica_knows_the_database_and_says_what_it_has(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    primary, server = quiet(start_server, server_name), start_server(server_name)
    with PlainClient(primary.client()) as plain:
        attach(server, primary)
        plain.exchange([("SELECT", 3), ("SET", "before", 1)])
        offset = offset_of(primary)
        wait_until(lambda: offset_of(server) >= offset)
        with recording(server, tmp_path) as taping:
            plain.ask("SET", "key", "value")
            end = offset_of(primary)
            wait_until(lambda: taping.agent.recorder.durable >= end)
            # It is counted by nobody that matters, so it tells the truth.
            wait_until(lambda: f"offset={end}" in info(server, "replication")["slave0"])
            replid = taping.replid
    assert replid == info(primary, "replication")["master_replid"]
    start, data = stream_of(sources(tmp_path), replid)
    assert (start, start + len(data)) == (offset, end)
    assert b"SELECT" not in data
    [manifest] = snapshots(tmp_path)
    assert manifest["db"] == 3
    assert manifest["server"]["role"] == "replica"
    [segment] = sources(tmp_path).glob("stream/*/*/*.seg")
    parser = Parser()
    parser.receive_data(segment.read_bytes())
    header = parser.next_part()
    assert isinstance(header, Header)
    assert (header.start, header.db) == (offset, 3)


# Links and servers that go away.


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-8.0"], indirect=True)
def test_a_server_that_comes_back_with_another_history_leaves_a_gap(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with recording(server, tmp_path) as taping:
        with PlainClient(server.client()) as plain:
            plain.ask("SET", "key", "value")
        end, first = taping.catch_up(), taping.replid
        server.kill()
        server.start()
        wait_until(lambda: taping.agent.recorder.replid != first)
        taping.wait_until_online()
        with PlainClient(server.client()) as plain:
            plain.ask("SET", "key", "again")
        taping.catch_up()
        second = taping.replid
    histories = documents_of(sources(tmp_path), "histories/*.json")
    reasons = {history["replid"]: history["reason"] for history in histories}
    assert reasons == {first: "first", second: "full-resync"}
    [gap] = documents_of(sources(tmp_path), "gaps/*/*.json")
    assert (gap["replid"], gap["start_offset"]) == (first, end)
    assert gap["end_offset"] is None
    assert second in str(gap["reason"])
    assert len(snapshots(tmp_path)) == 2
    assert b"again" in stream_of(sources(tmp_path), second)[1]


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
def test_a_promoted_replica_goes_on_with_the_history_of_its_primary(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    primary, server = quiet(start_server, server_name), start_server(server_name)
    attach(server, primary)
    with recording(server, tmp_path) as taping:
        with PlainClient(primary.client()) as plain:
            plain.ask("SET", "key", "value")
            end, first = offset_of(primary), taping.replid
        wait_until(lambda: taping.agent.recorder.durable >= end)
        with PlainClient(server.client()) as plain:
            plain.ask("REPLICAOF", "NO", "ONE")
            wait_until(lambda: taping.agent.recorder.replid != first)
            plain.ask("SET", "key", "promoted")
        taping.catch_up()
        second = taping.replid
    fork, data = stream_of(sources(tmp_path), second)
    start, before = stream_of(sources(tmp_path), first)
    assert fork == start + len(before) >= end
    assert b"promoted" in data
    [history] = [
        history
        for history in documents_of(sources(tmp_path), "histories/*.json")
        if history["replid"] == second
    ]
    assert (history["reason"], history["parent"]) == ("failover", first)
    assert history["parent_offset"] == fork
    assert len(snapshots(tmp_path)) == 1


@pytest.mark.parametrize("server_name", ["redis-6.2"], indirect=True)
def test_full_resyncs_are_limited_also_across_restarts(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with recording(server, tmp_path, full_resyncs_per_hour=1) as taping:
        server.kill()
        server.start()
        wait_until(lambda: "--full-resyncs-per-hour" in str(taping.agent.trouble))
    taping = Taping(
        server,
        tmp_path,
        Agent(options_for(server.port, tmp_path, full_resyncs_per_hour=1)),
    )
    wait_until(lambda: "--full-resyncs-per-hour" in str(taping.agent.trouble))
    taping.stop()
    assert sync_full(server) == 0
    assert len(snapshots(tmp_path)) == 1


@pytest.mark.parametrize("server_name", ["redis-8.0"], indirect=True)
def test_a_server_that_hangs_is_given_up_and_found_again(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module, limit in (
        (session_module, "SILENCE"),
        (client_module, "REPLY_TIMEOUT"),
    ):
        monkeypatch.setattr(module, limit, 0.5)
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT", 0.5)
    server = start_server(server_name, repl_ping_replica_period="1")
    with recording(server, tmp_path) as taping:
        monkeypatch.setattr(session_module, "SILENCE", 2.0)
        with PlainClient(server.client()) as plain:
            plain.ask("SET", "key", "value")
            taping.catch_up()
            os.kill(server.pid, signal.SIGSTOP)
            wait_until(lambda: taping.agent.trouble is not None)
            os.kill(server.pid, signal.SIGCONT)
            wait_until(lambda: taping.agent.trouble is None)
            plain.ask("SET", "key", "again")
            taping.catch_up()
    assert sync_full(server) == 1


# An agent that dies.

# Records until it kills itself, before or after a call of one of kvtape's own methods.
MORTAL = textwrap.dedent(
    """
    import importlib, os, signal, sys
    from pathlib import Path
    import trio
    from kvtape.record.agent import Agent
    from kvtape.record.options import RecordOptions
    from kvtape.record.spooling.recorder import Limits
    from kvtape.server.url import ServerUrl

    port, folder, module, name, method, argument, is_after = sys.argv[1:]
    owner = getattr(importlib.import_module(module), name)
    original = getattr(owner, method)

    def mortal(self, *args):
        is_it = argument in repr(args) + repr(self)
        if is_it and is_after == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, *args)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, mortal)

    async def say(agent):
        while True:
            if agent.is_ready:
                print(agent.recorder.durable, flush=True)
                await agent.recorder.written.wait()
            else:
                await trio.sleep(0.001)

    async def main():
        folder = Path(sys.argv[2])
        agent = Agent(RecordOptions(
            ServerUrl("127.0.0.1", int(port)), str(folder / "repo"), "source",
            folder / "spool", limits=Limits(0.01, 0.3), full_resyncs_per_hour=100,
        ))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, agent)
            await agent.run()

    trio.run(main)
    """
)

SPOOL, FILES = "kvtape.storage.spool", "kvtape.record.spooling.snapshot"
SESSIONS, RESYNCS = "kvtape.record.linking.session", "kvtape.record.histories.resyncs"

# Where it dies, and how many full resyncs there are in the end.
DEATHS = {
    "handshake": (SESSIONS, "Session", "_send", "", "after", 1),
    "snapshot announced": (
        "kvtape.record.histories.resyncs",
        "FullResyncs",
        "announce",
        "",
        "after",
        2,
    ),
    "snapshot coming": (FILES, "SnapshotFile", "write", "", "after", 2),
    "snapshot synced": (FILES, "SnapshotFile", "finish", "", "after", 2),
    "snapshot half queued": (SPOOL, "Spool", "_enqueue", "rdb.zst", "after", 2),
    "snapshot queued": (SPOOL, "Spool", "_enqueue", "manifest.json", "after", 1),
    "streaming": (SPOOL, "Spool", "sync", "", "after", 1),
    "sealing": (SPOOL, "Spool", "_enqueue", ".seg", "before", 1),
    "sealed": (SPOOL, "Spool", "_enqueue", ".seg", "after", 1),
    "uploaded": (SPOOL, "Spool", "dequeue", ".seg", "before", 1),
}


@contextmanager
def steady_writes(server: Server) -> Iterator[None]:
    """Write to the server all the time."""

    def write(is_over: threading.Event) -> None:
        with PlainClient(server.client()) as plain:
            number = 0
            while not is_over.wait(0.002):
                number += 1
                plain.exchange([("MULTI",), ("INCR", "a"), ("INCR", "b"), ("EXEC",)])
                plain.ask("SET", f"key{number % 50}", "x" * (number % 1000))

    with meanwhile(write):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_after_the_agent_was_killed_the_next_one_goes_on_with_nothing_lost(
    server_name: str, start_server: StartServer, tmp_path: Path, death: str
) -> None:
    check_death(quiet(start_server, server_name), tmp_path, death)


@pytest.mark.slow
@pytest.mark.parametrize("death", ["snapshot coming", "streaming", "sealing"])
@pytest.mark.parametrize("server_name", ["redis-6.2"], indirect=True)
def test_after_the_agent_of_an_old_server_was_killed_the_next_one_goes_on(
    server_name: str, start_server: StartServer, tmp_path: Path, death: str
) -> None:
    check_death(quiet(start_server, server_name), tmp_path, death)


def check_death(server: Server, folder: Path, death: str) -> None:
    *arguments, full_resyncs = DEATHS[death]
    with captured(server) as capture, steady_writes(server):
        command = [sys.executable, "-c", MORTAL, str(server.port), str(folder)]
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        durable = int((done.stdout.split() or ["0"])[-1])
        with recording(server, folder) as taping:
            begun = taping.agent.recorder.received
            wait_until(lambda: taping.agent.recorder.durable > begun + 2000)
            replid = taping.replid
            received = taping.agent.recorder.received
        wait_until(lambda: capture.end_offset >= received)
    assert sync_full(server) == 1 + full_resyncs
    start, data = stream_of(sources(folder), replid)
    assert durable == 0 or start <= durable <= start + len(data)
    capture.check(start, data)
    assert len(snapshots(folder)) == 1
    assert documents_of(sources(folder), "gaps/*/*.json") == []
    assert not list((folder / "spool" / "queue").rglob("*.*"))


# Where there is no store for a while.


@contextmanager
def unreachable(folder: Path) -> Iterator[None]:
    """Have a file stand where the repository was."""
    folder.rename(folder.with_name("elsewhere"))
    folder.write_bytes(b"")
    try:
        yield
    finally:
        folder.unlink()
        folder.with_name("elsewhere").rename(folder)


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_what_cannot_be_stored_in_time_is_kept_for_the_next_start(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with PlainClient(server.client()) as plain:
        options = options_for(server.port, tmp_path, stop_timeout=0.3)
        taping = Taping(server, tmp_path, Agent(options))
        taping.wait_until_online()
        wait_until(lambda: len(snapshots(tmp_path)) == 1)
        with unreachable(tmp_path / "repo"):
            plain.ask("SET", "key", "value")
            end = taping.catch_up()
            wait_until(lambda: taping.agent.uploader.error is not None)
            with pytest.raises(RepositoryError) as caught:
                taping.stop()
        assert caught.value.exit_status == 7
        assert "not everything could be stored within 0.3 s" in str(caught.value)
        assert f"the spool {tmp_path}/spool" in str(caught.value)
        with recording(server, tmp_path) as taping:
            replid = taping.replid
    assert sync_full(server) == 1
    start, data = stream_of(sources(tmp_path), replid)
    assert start + len(data) == end


@pytest.mark.parametrize("server_name", ["valkey-8.0"], indirect=True)
def test_a_store_that_does_not_answer_does_not_keep_the_agent_from_stopping(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_go_on = threading.Event()
    put = SourceFolder.put

    def hang(folder: SourceFolder, path: str, source: Path | bytes) -> None:
        may_go_on.wait()
        put(folder, path, source)

    server = quiet(start_server, server_name)
    monkeypatch.setattr(SourceFolder, "put", hang)
    options = options_for(server.port, tmp_path, stop_timeout=0.1)
    taping = Taping(server, tmp_path, Agent(options))
    taping.wait_until_online()
    taping.catch_up()
    with pytest.raises(RepositoryError, match="not everything could be stored"):
        taping.stop()
    may_go_on.set()


# Servers that are not to be recorded.


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_a_login_that_does_not_work_ends_it_with_what_to_do(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name, requirepass="secret")
    with PlainClient(server.client(password="secret")) as plain:
        plain.ask("ACL", "SETUSER", "tape", "on", ">tape", "-@all", "+psync")
    url = ServerUrl("127.0.0.1", server.port)
    cases = {
        "it wants a password": url,
        "the password is wrong": replace(url, password="wrongword"),
        "allow it by ACL SETUSER": replace(url, username="tape", password="tape"),
    }
    for sentence, other in cases.items():
        error = error_of(server, tmp_path / sentence, url=other)
        assert isinstance(error, RefusedError)
        assert error.exit_status == 8
        assert sentence in str(error)
        assert "wrongword" not in str(error)
        assert not list((tmp_path / sentence / "repo").glob("source/snapshots"))


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_the_least_of_permissions_is_enough(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with PlainClient(server.client()) as plain:
        rules = ("on", ">tape", "-@all", "+psync", "+replconf")
        plain.ask("ACL", "SETUSER", "tape", *rules)
        url = ServerUrl("127.0.0.1", server.port, "tape", "tape")
        with recording(server, tmp_path, url=url) as taping:
            plain.ask("SET", "key", "value")
            taping.catch_up()
    [manifest] = snapshots(tmp_path)
    assert manifest["server"]["version"] is None


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-8.1"], indirect=True)
def test_a_server_that_still_loads_is_waited_for(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name, loading_process_events_interval_bytes="1024")
    with PlainClient(server.client()) as plain:
        plain.exchange([("SET", f"key{number}", "x" * 100) for number in range(3000)])
        plain.ask("CONFIG", "SET", "key-load-delay", 400)
        reloading = threading.Thread(target=plain.ask, args=("DEBUG", "RELOAD"))
        reloading.start()
        with PlainClient(server.client()) as other:
            wait_until(lambda: other.info("persistence")["loading"] == "1")
        taping = Taping(server, tmp_path, Agent(options_for(server.port, tmp_path)))
        wait_until(lambda: "it is loading its data" in str(taping.agent.trouble))
        reloading.join()
        taping.wait_until_online()
        taping.stop()
    assert len(snapshots(tmp_path)) == 1


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_a_primary_that_counts_its_replicas_is_recorded_only_if_told_to(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name, min_replicas_to_write="1")
    error = error_of(server, tmp_path)
    assert isinstance(error, UsageError)
    assert "min-replicas-to-write" in str(error)
    assert "--ack hidden" in str(error)
    assert not (tmp_path / "repo").exists()
    with recording(server, tmp_path, ack="hidden"):
        pass


@pytest.mark.parametrize("server_name", ["valkey-8.0"], indirect=True)
def test_what_would_end_it_at_the_start_is_waited_out_later(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with recording(server, tmp_path) as taping, PlainClient(server.client()) as plain:
        for setting, value, trouble in (
            ("min-replicas-to-write", "1", "min-replicas-to-write"),
            ("requirepass", "secret", "it wants a password"),
        ):
            plain.ask("CONFIG", "SET", setting, value)
            plain.ask("CLIENT", "KILL", "TYPE", "replica")
            wait_until(lambda: trouble in str(taping.agent.trouble))  # noqa: B023
            plain.ask("CONFIG", "SET", setting, "0" if value == "1" else "")
            wait_until(lambda: taping.agent.trouble is None)
        plain.ask("SET", "key", "value")
        taping.catch_up()
    assert sync_full(server) == 1


@pytest.mark.parametrize("server_name", ["redis-8.0"], indirect=True)
def test_a_server_that_is_gone_is_nobody_there(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name)
    server.stop()
    error = error_of(server, tmp_path)
    assert isinstance(error, ServerError)
    assert str(error) == (
        f"cannot connect to 127.0.0.1:{server.port}: Connection refused"
    )
    assert not (tmp_path / "repo").exists()


# A snapshot larger than it may take of memory.

MEASURED = textwrap.dedent(
    """
    import re, sys
    from pathlib import Path
    import trio
    from kvtape.record.agent import Agent
    from kvtape.record.options import RecordOptions
    from kvtape.server.url import ServerUrl

    def most_memory():
        # In KiB. Not by getrusage(), which counts the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])

    async def main():
        folder = Path(sys.argv[2])
        agent = Agent(RecordOptions(
            ServerUrl("127.0.0.1", int(sys.argv[1])), str(folder / "repo"), "source",
            folder / "spool",
        ))
        before = most_memory()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            while not (agent.session and agent.session.is_online):
                await trio.sleep(0.01)
            agent.stop()
        print(most_memory() - before)

    trio.run(main)
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("diskless", ["yes", "no"])
@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_a_large_snapshot_takes_little_memory(
    server_name: str, start_server: StartServer, tmp_path: Path, diskless: str
) -> None:
    server = quiet(
        start_server, server_name, rdbcompression="no", repl_diskless_sync=diskless
    )
    with PlainClient(server.client()) as plain:
        plain.ask("DEBUG", "POPULATE", 150, "key", 1_000_000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(server.port), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    [manifest] = documents_of(sources(tmp_path), "snapshots/*/*/manifest.json")
    assert int(str(manifest["bytes"])) > 140_000_000
    assert 1024 < int(done.stdout) < 100 * 1024, "KiB"
