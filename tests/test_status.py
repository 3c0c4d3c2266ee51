"""kvtape status says what a running agent does, and ends with 5 where none runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from kvtape.cli import status as status_verb
from kvtape.errors import CheckError
from kvtape.record.agent import Agent
from kvtape.record.events import (
    FullResyncBegun,
    FullResyncComplete,
    FullResyncPostponed,
    GapFound,
    LinkLost,
    UploadsFail,
)
from kvtape.record.journal import Journal
from kvtape.record.uploading import uploader
from kvtape.server.url import ServerUrl
from kvtape.watch.headroom import Headroom
from kvtape.watch.status import Status, status_of, unready
from kvtape.watch.status_socket import NAME, ask_statuses, serve_statuses
from replicas import wait_until
from servers import StartServer
from verbs import kvtape
from watching import is_stored, made_up, options_for, until, watched

REPLID = "a" * 40


# A real agent.


async def test_a_status_tells_of_a_recording_what_an_operator_asks(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    async with watched(options_for(server, tmp_path)) as watched_fleet:
        await until(watched_fleet, lambda status: status.stored_offset is not None)
        with server.client() as client:
            client.set("key", "value")
            offset = client.info("replication")["master_repl_offset"]
        status = await until(
            watched_fleet, lambda one: is_stored(one) and one.received_offset == offset
        )
        [asked] = await trio.to_thread.run_sync(ask_statuses, tmp_path / "spool")
        mode = (tmp_path / "spool" / NAME).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert asked.received_offset == offset
    family, _, release = server_name.partition("-")
    assert status.server is not None
    assert status.server.startswith(f"{family.capitalize()} {release}.")
    assert (status.role, status.ack) == ("primary", "hidden")
    assert (status.phase, status.is_recording, status.problems) == (
        "streaming",
        True,
        (),
    )
    assert (status.history_reason, status.full_resyncs) == ("first", {"first": 1})
    assert status.last_snapshot is not None
    assert (status.lag_bytes, status.queue_length, status.gaps_total) == (0, 0, 0)
    assert status.lag_seconds is not None
    assert unready(status, 10) == []
    # Whoever leaves takes the socket along.
    assert not (tmp_path / "spool" / NAME).exists()


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
async def test_a_gap_is_open_from_the_loss_of_the_position_to_the_next_snapshot(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    options = options_for(server, tmp_path)
    async with watched(options) as watched_fleet:
        await until(watched_fleet, lambda one: one.stored_offset is not None)
        with server.client() as client:
            client.set("key", "value")
            await until(watched_fleet, is_stored)
            client.execute_command("DEBUG", "CHANGE-REPL-ID")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        status = await until(watched_fleet, lambda one: one.open_gap is not None)
        assert status.phase == "waiting"
        assert any("a gap is open" in problem for problem in status.problems)
        assert any("full resyncs were begun" in one for one in unready(status, 1e9))
        assert status_verb.is_red(status)


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
async def test_a_gap_stays_red_also_for_the_next_agent(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    options = options_for(server, tmp_path)
    options = replace(options, full_resyncs_per_hour=10)
    async with watched(options) as watched_fleet:
        await until(watched_fleet, lambda one: one.stored_offset is not None)
        with server.client() as client:
            client.set("key", "value")
            await until(watched_fleet, is_stored)
            client.execute_command("DEBUG", "CHANGE-REPL-ID")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        before = await until(
            watched_fleet, lambda one: one.gaps_total == 1 and is_stored(one)
        )
        assert (before.open_gap, unready(before, 60)) == (None, [])
    async with watched(options) as watched_fleet:
        after = await until(watched_fleet, is_stored)
    assert (after.gaps_total, after.gaps) == (1, before.gaps)
    assert status_verb.is_red(after)
    assert any("gaps within what" in problem for problem in after.problems)


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-8.1"], indirect=True)
async def test_what_is_not_stored_is_at_risk_and_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_name: str,
    start_server: StartServer,
) -> None:
    monkeypatch.setattr(uploader, "_BY_HAND", 0.01)
    server = start_server(server_name)
    async with watched(options_for(server, tmp_path)) as watched_fleet:
        await until(watched_fleet, lambda one: one.stored_offset is not None)
        stream = tmp_path / "repo" / "shop" / "stream"
        stream.write_text("in the way of a folder")
        with server.client() as client:
            client.set("key", "value")
        status = await until(watched_fleet, lambda one: one.upload_error is not None)
        assert status.queue_length
        assert status.lag_bytes
        first = status.lag_seconds
        assert first is not None
        status = await until(watched_fleet, lambda one: (one.lag_seconds or 0) > first)
        assert any("not storing" in problem for problem in status.problems)
        assert sum(status.upload_errors.values()) > 0
        assert status.last_error is not None
        stream.unlink()
        status = await until(watched_fleet, is_stored)
        assert (status.upload_error, status.queue_length) == (None, 0)


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-8.0"], indirect=True)
async def test_the_headroom_is_what_the_backlog_covers_at_the_rate_of_writes(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, repl_backlog_size="1mb")
    async with watched(options_for(server, tmp_path)) as watched_fleet:
        await until(watched_fleet, lambda one: one.stored_offset is not None)
        agent = watched_fleet.fleet.recordings[0].agent
        assert agent is not None
        headroom = Headroom()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(headroom.watch, agent, 0.05)
            with server.client() as client:
                while headroom.seconds is None or not headroom.rate:
                    client.set("key", "x" * 1000)
                    await trio.sleep(0.001)
            seconds, rate = headroom.seconds, headroom.rate
            nursery.cancel_scope.cancel()
    assert seconds > 0
    assert seconds * rate == pytest.approx(1024 * 1024)


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
async def test_without_the_permission_to_ask_the_headroom_is_unknown(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with server.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "tape", "on", ">secret", "+psync", "+replconf")
        )
        chosen = replace(
            options_for(server, tmp_path),
            url=ServerUrl("127.0.0.1", server.port, "tape", "secret"),
        )
        async with watched(chosen) as watched_fleet:
            await until(watched_fleet, lambda one: one.stored_offset is not None)
            agent = watched_fleet.fleet.recordings[0].agent
            assert agent is not None
            headroom = Headroom()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(headroom.watch, agent, 0.01)
                while headroom.rate is None:  # noqa: ASYNC110
                    await trio.sleep(0.002)
                nursery.cancel_scope.cancel()
    assert headroom.seconds is None


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
async def test_offsets_of_no_history_are_no_rate_of_writes(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with server.client() as client, start_server(server_name).client() as replica:
        # The server counts what it wrote before anybody recorded it.
        replica.replicaof("127.0.0.1", server.port)
        wait_until(lambda: client.info("replication")["connected_slaves"] == 1)
        client.set("key", "x" * 1_000_000)
    async with watched(options_for(server, tmp_path)) as lookout:
        await lookout.fleet.recordings[0].has_begun.wait()
        agent = lookout.fleet.recordings[0].agent
        assert agent is not None
        assert agent.recorder.replid is None
        headroom, seen = Headroom(), set[float | None]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(headroom.watch, agent, 0.02)
            while headroom.seconds is None:
                seen.add(headroom.rate)
                await trio.sleep(0.002)
            seen.add(headroom.rate)
            nursery.cancel_scope.cancel()
    assert max(rate for rate in seen if rate is not None) < 1000


async def test_too_short_a_backlog_is_a_problem(
    tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def watch(self: Headroom, _: Agent) -> None:
        self.seconds = 14.0

    monkeypatch.setattr(Headroom, "watch", watch)
    server = start_server("valkey-8.1")
    async with watched(options_for(server, tmp_path)) as lookout:
        status = await until(lookout, lambda one: one.stored_offset is not None)
    assert "the server's backlog covers only 14 s" in status.problems[-1]
    assert unready(status, 60) == []


# The socket.


@pytest.mark.parametrize("length", [1, 60, 90, 100, 108, 200])
async def test_a_spool_is_found_however_long_its_path(
    tmp_path: Path, length: int
) -> None:
    spool = tmp_path / ("x" * length)
    spool.mkdir()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_statuses, spool, lambda: [made_up()])
            while not (spool / NAME).exists():  # noqa: ASYNC110
                await trio.sleep(0.001)
            assert await trio.to_thread.run_sync(ask_statuses, spool) == [made_up()]
            nursery.cancel_scope.cancel()
    assert list(spool.iterdir()) == []


async def test_the_socket_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / NAME))
    with pytest.raises(CheckError, match="no agent has the spool"):
        ask_statuses(tmp_path)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_statuses, tmp_path, lambda: [made_up()])
            answered: list[Status] = []
            while not answered:
                with suppress(CheckError):
                    answered += await trio.to_thread.run_sync(ask_statuses, tmp_path)
            nursery.cancel_scope.cancel()


async def test_who_asks_and_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    long = made_up(problems=("x" * 400,) * 2000)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_statuses, tmp_path, lambda: [long])
            while not (tmp_path / NAME).exists():  # noqa: ASYNC110
                await trio.sleep(0.001)
            with socket.socket(socket.AF_UNIX) as lazy:
                lazy.connect(str(tmp_path / NAME))
                assert await trio.to_thread.run_sync(ask_statuses, tmp_path) == [long]
            nursery.cancel_scope.cancel()


async def test_a_bug_in_the_status_ends_no_recording(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[Status]:
        raise ZeroDivisionError

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_statuses, tmp_path, broken)
            while not (tmp_path / NAME).exists():  # noqa: ASYNC110
                await trio.sleep(0.001)
            with pytest.raises(CheckError, match="did not answer with a status"):
                await trio.to_thread.run_sync(ask_statuses, tmp_path)
            nursery.cancel_scope.cancel()
    assert "cannot tell the status" in caplog.text


async def test_a_socket_that_cannot_be_made_is_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await serve_statuses(tmp_path / "nosuch", list)
    assert "kvtape status will not find this recording" in caplog.text


# What people and scripts see.


@pytest.mark.parametrize(
    "arguments", [(), ("--json",), ("--spool", "spool"), ("--max-lag", "1h")]
)
def test_where_no_agent_runs_the_status_is_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    outcome = kvtape("status", *arguments)
    assert (outcome.status, outcome.out) == (5, "")
    assert "no agent has" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["valkey-8.1"], indirect=True)
async def test_watching_on_a_terminal_shows_it_anew_in_80_columns(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    async with watched(options_for(server, tmp_path)) as lookout:
        await until(lookout, lambda one: one.stored_offset is not None)
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        process = subprocess.Popen(  # noqa: ASYNC220 it returns at once
            [sys.executable, "-m", "kvtape", "status", "--watch", "--spool", "spool"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(theirs)
        shown = ""
        try:
            while shown.count("source shop: streaming (green)") < 2:
                await trio.lowlevel.wait_readable(ours)
                shown += os.read(ours, 65536).decode()
            process.send_signal(signal.SIGINT)
            with suppress(OSError):  # the other end is closed
                while True:
                    await trio.lowlevel.wait_readable(ours)
                    shown += os.read(ours, 65536).decode()
            assert await trio.to_thread.run_sync(process.wait) == 130
        finally:
            process.kill()
            process.wait()
            os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert max(map(len, plain.replace("\r", "\n").splitlines())) <= 80
    # The second picture is drawn over the first, and the cursor is given back.
    assert "\x1b[1A\x1b[2K" in shown
    assert shown.rstrip().endswith("\x1b[?25h")
    assert "Traceback" not in shown


@pytest.mark.parametrize("server_name", ["valkey-8.1"], indirect=True)
async def test_without_a_snapshot_nothing_is_stored_however_much_is(
    tmp_path: Path,
    server_name: str,
    start_server: StartServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kvtape")
    server = start_server(server_name, repl_ping_replica_period="1")
    with server.client() as client, start_server(server_name).client() as replica:
        replica.replicaof("127.0.0.1", server.port)
        wait_until(lambda: client.info("replication")["connected_slaves"] == 1)
        client.set("key", "value")
        seeded = replace(
            options_for(server, tmp_path), snapshot_from=ServerUrl("127.0.0.1", 1)
        )
        async with watched(seeded) as lookout:
            await until(lookout, lambda one: "no snapshot" in (one.waiting_for or ""))
            client.set("key", "other")
            agent = lookout.fleet.recordings[0].agent
            assert agent is not None
            while not agent.journal.uploads.total:  # noqa: ASYNC110
                await trio.sleep(0.002)
            status = lookout.statuses()[0]
    assert (status.lag_seconds, status.stored_offset) == (None, None)
    assert "stopped: nothing can be restored yet" in caplog.text


def test_watching_and_a_limit_do_not_go_together() -> None:
    outcome = kvtape("status", "--watch", "--max-lag", "1s")
    assert outcome.status == 2
    assert "only one of --watch and --max-lag" in outcome.err


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "green"),
        ({"problems": ("not storing: " + "many words " * 30,)}, "yellow"),
        ({"open_gap": "a full resync is under way", "phase": "snapshot"}, "RED"),
        ({"gaps_total": 1}, "RED"),
        ({"phase": "waiting", "waiting_for": "connection refused"}, "RED"),
    ],
)
def test_a_status_is_readable_in_80_columns(
    fields: dict[str, object], word: str
) -> None:
    status = made_up(
        **{
            "replid": REPLID,
            "history_reason": "full-resync",
            "received_offset": 2**60,
            "spooled_offset": 2**60,
            "stored_offset": 2**59,
            "full_resyncs": {"first": 10**6, "backlog": 10**6, "history": 10**6},
            **fields,
        }
    )
    lines = list(status_verb.text([status]))
    assert max(map(len, lines)) <= 80
    assert word in lines[0]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"lag_seconds": 31}, "the writes of the last 31 s are at risk"),
        ({"lag_seconds": None}, "nothing is stored yet"),
        ({"is_recording": False, "problems": ("not recording: x",)}, "not recording"),
        ({"open_gap": "why", "problems": ("a gap is open: why",)}, "a gap is open"),
        ({"problems": ("not storing: x",)}, None),
    ],
)
def test_a_limit_is_about_what_is_at_risk(
    fields: dict[str, object], reason: str | None
) -> None:
    found = unready(made_up(**fields), 30)
    assert (reason is None) == (found == [])
    assert reason is None or any(reason in one for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_the_verb_finds_an_agent_that_is_killed_and_started_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_name: str,
    start_server: StartServer,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    server = start_server(server_name)
    command = [sys.executable, "-m", "kvtape", "record", "--repo", "repo"]
    command += [f"redis://127.0.0.1:{server.port}", "--source", "shop"]

    def shows(*arguments: str) -> bool:
        return kvtape("status", *arguments).status == 0

    for end in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            wait_until(lambda: shows("--max-lag", "1h"))
            assert shows("--repo", "repo", "--source", "shop")
            found = json.loads(kvtape("status", "--json").out)
            assert (found["source"], found["pid"]) == ("shop", process.pid)
            assert kvtape("status", "--repo", "other").status == 5
            assert kvtape("status", "--source", "other").status == 5
            os.kill(process.pid, end)
        assert kvtape("status").status == 5


# The journal.


def test_a_journal_counts_what_is_told() -> None:
    journal = Journal("shop")
    journal.note(FullResyncBegun(REPLID, 1, "first"))
    journal.note(FullResyncComplete(REPLID, 1, 100, 50, 0.5, 1000))
    assert journal.history_reason == "first"
    journal.note(LinkLost("the link broke", 1.0))
    journal.note(FullResyncPostponed("too many", 60.0))
    assert journal.open_gap == "too many"
    journal.note(FullResyncBegun("b" * 40, 1, "history"))
    assert journal.history_reason == "first"
    journal.note(GapFound(REPLID, 1, None, 1000, 2000, "it was restarted"))
    journal.note(FullResyncComplete("b" * 40, 1, 100, 50, 0.5, 3000))
    after = status_of(journal, None)
    assert (after.open_gap, after.history_reason) == (None, "full-resync")
    journal.note(UploadsFail("cannot write", is_passing=True))
    journal.note(UploadsFail("cannot write", is_passing=True, is_repeated=True))
    journal.note(UploadsFail("no such bucket", is_passing=False))
    assert journal.full_resyncs == {"first": 1, "history": 1}
    assert journal.upload_errors == {"passing": 2, "lasting": 1}
    status = status_of(journal, None)
    assert (status.gaps_total, status.gaps[0].reason) == (1, "it was restarted")
    assert status.phase == "starting"
