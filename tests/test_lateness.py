"""No recording says of a write that it is younger than it is, whatever held it up.

A writer notes when each of its writes was begun and answered; what is recorded must fit
that. The clocks of the servers here are that of this machine.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvtape.record.linking import abreast as abreast_module
from kvtape.server.url import ServerUrl
from kvtape.storage.spool import Spool
from kvtape.tape.segment import NEED_DATA, Facts, Frame, Header, Parser
from meanwhile import meanwhile
from plain_client import PlainClient
from recording import SOURCE, Taping, recording
from replicas import attach, offset_of, wait_until
from servers import Server, StartServer, quiet
from tapes import stream_of
from watching import wait_until_spooled

pytestmark = pytest.mark.slow

MIB = 1024 * 1024

SOME = pytest.mark.parametrize(
    "server_name", ["redis-6.2", "redis-8.0", "valkey-9.1"], indirect=True
)

# What stands in a stream before the key of a SET.
HEAD = b"*3\r\n$3\r\nSET\r\n$14\r\n"


def now() -> float:
    return time.time() * 1000


@dataclass
class Writer:
    """Writes with numbers, and when each was begun and answered (ms)."""

    server: Server
    size: int = 1000
    times: dict[int, tuple[float, float]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def write(self, count: int = 1) -> None:
        """Write so many values, a hundred at once."""
        with PlainClient(self.server.client()) as plain:
            while count > 0:
                numbers = [next(self._numbers) for _ in range(min(count, 100))]
                begun = now()
                plain.exchange(
                    [("SET", f"w:{n:012}", os.urandom(self.size)) for n in numbers]
                )
                self.times |= dict.fromkeys(numbers, (begun, now()))
                count -= len(numbers)

    @contextmanager
    def busy(self, pause: float = 0.002) -> Iterator[None]:
        """Write all the time."""

        def run(is_over: threading.Event) -> None:
            while not is_over.wait(pause):
                self.write()

        with meanwhile(run):
            yield


@dataclass
class Recorded:
    """What is stored: the stream, the facts of all its frames, and the headers."""

    stream: tuple[int, bytes]
    facts: list[Facts]
    headers: list[Header]

    def interval(self, offset: int) -> tuple[int, int]:
        """Return what the byte behind an offset is said to have been written in."""
        frame = self.at(offset)
        before = frame.after
        for mark in frame.marks:
            if offset < mark.offset:
                return before, mark.time
            before = before if frame.is_late else mark.time
        pytest.fail("a byte without a mark")

    def writes(self) -> dict[int, int]:
        """Return the offset at which each numbered write begins."""
        start, data = self.stream
        found = re.finditer(re.escape(HEAD) + rb"w:(\d{12})\r\n", data)
        return {int(match[1]): start + match.start() for match in found}

    def at(self, offset: int) -> Facts:
        """Return the facts of the frame that a byte is in."""
        index = bisect_right(self.facts, offset, key=lambda facts: facts.start)
        return self.facts[index - 1]


def recorded(folder: Path, replid: str) -> Recorded:
    source = folder / "repo" / SOURCE
    facts, headers = [], []
    for path in sorted(source.glob(f"stream/{replid}/*/*.seg")):
        parser = Parser()
        parser.receive_data(path.read_bytes())
        while (part := parser.next_part()) is not NEED_DATA:
            match part:
                case Frame():
                    facts.append(part.facts)
                case Header():
                    headers.append(part)
                case _:
                    pass
    return Recorded(stream_of(source, replid), facts, headers)


def must_be_true(found: Recorded, writer: Writer) -> None:
    """Check of every write that it was made when the recording says."""
    writes = found.writes()
    assert writes.keys() == writer.times.keys()
    for number, offset in writes.items():
        begun, answered = writer.times[number]
        after, until = found.interval(offset)
        # What format.md promises is to within a second; on one machine it is less.
        assert after <= answered + 100, number
        assert until >= begun - 1, number


def wait_until_abreast(taping: Taping) -> None:
    wait_until(lambda: taping.agent.recorder.late_since is None)


def write_in_time(taping: Taping, writer: Writer) -> range:
    """Write a hundred values while we are abreast; return their numbers.

    A machine that is busy with other tests may pause at any of them.
    """
    begun = len(writer.times)
    for _ in range(5):
        wait_until_abreast(taping)
        writer.write(20)
        taping.catch_up()
    return range(begun, len(writer.times))


def asked(plain: PlainClient) -> int:
    """Return how often the server was asked for INFO, but for this time."""
    stats = plain.info("commandstats")["cmdstat_info"]
    return int(stats.removeprefix("calls=").partition(",")[0])


def test_what_was_written_while_we_were_away_is_late_and_what_comes_then_is_not(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name, repl_backlog_size="128mb")
    writer = Writer(server)
    with recording(server, tmp_path) as taping:
        first = write_in_time(taping, writer)
        replid = taping.replid
    before = len(writer.times)
    # Away for longer than what must_be_true() forgives.
    time.sleep(1)
    writer.write(30_000)
    away = len(writer.times)
    with PlainClient(server.client()) as plain, recording(server, tmp_path) as taping:
        taping.catch_up()
        wait_until_abreast(taping)
        count = asked(plain)
        second = write_in_time(taping, writer)
        assert asked(plain) - count < 10
        assert int(plain.info("stats")["sync_full"]) == 1
    found = recorded(tmp_path, replid)
    must_be_true(found, writer)
    writes = found.writes()
    end = found.at(writes[before - 1]).time
    for number in range(before, away):
        facts = found.at(writes[number])
        assert (facts.is_late, facts.after) == (True, end)
    for numbers in (first, second):
        assert not all(found.at(writes[number]).is_late for number in numbers)
    clocks = [header.clock for header in found.headers]
    assert len(clocks) >= 2
    for clock in clocks:
        assert clock is not None
        assert clock.low <= 0 <= clock.high
    # The last one is of the connection that was there already.
    assert clocks[-1] is not None
    assert clocks[-1].high - clocks[-1].low <= 2 * abreast_module.PROMPT * 1000


@pytest.fixture
def process() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Return a list of processes that are killed in the end."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@SOME
def test_what_was_written_while_this_program_was_stopped_is_late(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    process: list[subprocess.Popen[bytes]],
) -> None:
    server = start_server(server_name)
    writer = Writer(server, size=3000)
    agent = subprocess.Popen(
        [
            *(sys.executable, "-m", "kvtape", "record"),
            f"redis://127.0.0.1:{server.port}",
            *("--repo", str(tmp_path / "repo"), "--source", SOURCE),
            *("--spool", str(tmp_path / "spool"), "--flush-interval", "50ms"),
            *("--upload-interval", "300ms"),
        ],
        stderr=subprocess.DEVNULL,
    )
    process.append(agent)
    stops = []
    with PlainClient(server.client()) as plain:
        wait_until(lambda: "slave0" in plain.info("replication"))
        replid = plain.info("replication")["master_replid"]
        # It takes a second to be abreast; what is written then is in time, and what
        # is written in a pause is late, of which there must be enough of both.
        with writer.busy():
            time.sleep(3)
            for _ in range(4):
                agent.send_signal(signal.SIGSTOP)
                stopped = now()
                time.sleep(1.5)
                stops.append((stopped, now()))
                agent.send_signal(signal.SIGCONT)
                time.sleep(2.5)
        end = int(plain.info("replication")["master_repl_offset"])
    wait_until_spooled(tmp_path / "spool", end)
    agent.terminate()
    assert agent.wait(30) == 0
    found = recorded(tmp_path, replid)
    must_be_true(found, writer)
    late = [found.at(offset).is_late for _, offset in sorted(found.writes().items())]
    for begun, ended in stops:
        within = [
            late[number]
            for number, (first, last) in writer.times.items()
            if begun + 100 < first and last < ended - 100
        ]
        assert within
        # But for those that came first, with the wide interval between two marks.
        assert all(within)
    assert late.count(False) > len(late) / 4


@SOME
def test_where_the_server_does_not_tell_time_has_to_do(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(abreast_module, "PATIENCE", 1.0)
    server = quiet(start_server, server_name)
    writer = Writer(server)
    with PlainClient(server.client()) as plain:
        rules = ("on", ">tape", "-@all", "+psync", "+replconf")
        plain.ask("ACL", "SETUSER", "tape", *rules)
        url = ServerUrl("127.0.0.1", server.port, "tape", "tape")
        with recording(server, tmp_path, url=url) as taping:
            writer.write(100)
            first = write_in_time(taping, writer)
            replid = taping.replid
        denied = len(plain.ask("ACL", "LOG"))  # type: ignore[arg-type]
        with recording(server, tmp_path, url=url) as taping:
            writer.write(100)
            taping.catch_up()
            assert taping.agent.recorder.late_since is not None
            second = write_in_time(taping, writer)
            # Not more than before, where each start asks, and each link.
            assert len(plain.ask("ACL", "LOG")) <= denied + 5  # type: ignore[arg-type]
    found = recorded(tmp_path, replid)
    must_be_true(found, writer)
    late = [found.at(offset).is_late for _, offset in sorted(found.writes().items())]
    for numbers in (first, second):
        assert all(late[number - 100] for number in numbers)
        assert not all(late[number] for number in numbers)
    assert {header.clock for header in found.headers} == {None}


@SOME
def test_what_waited_because_the_disk_was_behind_is_late(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_write, append = threading.Event(), Spool.append
    may_write.set()

    def slow_append(spool: Spool, data: bytes) -> None:
        may_write.wait()
        append(spool, data)

    monkeypatch.setattr(Spool, "append", slow_append)
    server = quiet(start_server, server_name)
    writer = Writer(server, size=10_000)
    with recording(server, tmp_path) as taping:
        wait_until_abreast(taping)
        writer.write(100)
        taping.catch_up()
        may_write.clear()
        writer.write(8000)
        wait_until(lambda: taping.agent.recorder.is_full)
        written = len(writer.times)
        # For longer than what must_be_true() forgives.
        time.sleep(1)
        may_write.set()
        taping.catch_up()
        numbers = write_in_time(taping, writer)
        replid = taping.replid
    found = recorded(tmp_path, replid)
    must_be_true(found, writer)
    late = [found.at(offset).is_late for _, offset in sorted(found.writes().items())]
    assert late[written - 1]
    assert not all(late[number] for number in numbers)


@SOME
def test_of_a_replica_we_are_abreast_too_and_its_clock_is_not_asked_for(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    primary, replica = start_server(server_name), start_server(server_name)
    attach(replica, primary)
    writer = Writer(primary)
    with recording(replica, tmp_path) as taping:
        wait_until_abreast(taping)
        writer.write(100)
        end = offset_of(primary)
        wait_until(lambda: taping.agent.recorder.durable >= end)
        # What it says of itself is what we get: also within a command.
        for _ in range(20):
            with PlainClient(primary.client()) as plain:
                plain.ask("SET", "large", os.urandom(3 * MIB))
            offset = offset_of(replica)
            wait_until(
                lambda offset=offset: (  # type: ignore[misc]
                    taping.agent.recorder.received >= offset
                )
            )
        wait_until_abreast(taping)
        replid = taping.replid
    found = recorded(tmp_path, replid)
    must_be_true(found, writer)
    assert {header.clock for header in found.headers} == {None}
