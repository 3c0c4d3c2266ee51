"""Filters are written behind the recording, which nothing of it can hold up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from kvtape.record.events import tell_to
from kvtape.record.journal import Journal
from kvtape.record.uploading.filters import FilterWriter
from kvtape.storage import filter_child as child_module
from kvtape.storage.filter_child import FilterChild, FilterChildError
from kvtape.storage.filters import make_filter, segments_with
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.tape.names import FilterName, SegmentName
from plain_client import PlainClient
from recording import Tape, Taping, options_for, recording, taping_by
from replicas import wait_until
from servers import StartServer


@pytest.fixture
def child() -> Iterator[FilterChild]:
    child = FilterChild()
    yield child
    child.close()


@pytest.fixture
def tape(tmp_path: Path) -> Tape:
    return Tape(tmp_path / "repo").snapshot()


def segment_in(tape: Tape, number: int = 1) -> tuple[SegmentName, Path]:
    segment = tape.commands(("SELECT", 0), ("SET", f"key:{number}", 1))
    return segment, Path(tape.folder.url, segment.path)


def build(child: FilterChild, segment: SegmentName, file: Path) -> bytes:
    with file.open("rb") as opened:
        return child.build(opened, segment)


def process_of(child: FilterChild) -> subprocess.Popen[bytes]:
    assert child._process is not None
    return child._process


# The child.


def test_a_child_makes_the_filters_that_are_made_here(
    child: FilterChild, tape: Tape
) -> None:
    for number in range(3):
        segment, file = segment_in(tape, number)
        assert build(child, segment, file) == make_filter(tape.folder, segment)


def test_all_filters_are_made_by_one_process_of_the_lowest_priority(
    child: FilterChild, tape: Tape
) -> None:
    segment, file = segment_in(tape)
    build(child, segment, file)
    process = process_of(child)
    build(child, segment, file)
    assert process_of(child) is process
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19


def test_a_filter_is_made_of_a_file_that_is_deleted_by_then(
    child: FilterChild, tape: Tape
) -> None:
    segment, file = segment_in(tape)
    whole = make_filter(tape.folder, segment)
    with file.open("rb") as opened:
        file.unlink()
        assert child.build(opened, segment) == whole


def test_a_damaged_segment_is_told_and_the_next_one_made(
    child: FilterChild, tape: Tape
) -> None:
    segment, file = segment_in(tape)
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    with pytest.raises(FilterChildError, match=segment.path):
        build(child, segment, file)
    process = process_of(child)
    file.write_bytes(good)
    assert build(child, segment, file) == make_filter(tape.folder, segment)
    assert process_of(child) is process


def test_a_child_that_was_killed_is_begun_anew(child: FilterChild, tape: Tape) -> None:
    segment, file = segment_in(tape)
    whole = build(child, segment, file)
    process = process_of(child)
    os.kill(process.pid, signal.SIGKILL)
    assert build(child, segment, file) == whole
    assert process_of(child) is not process


def test_a_child_that_ended_for_want_of_work_is_begun_anew(
    child: FilterChild, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = child_module._BEGIN.replace(
        "import main", "import main; import kvtape.storage.filter_child as here"
    ).replace("main()", "here._IDLE = 0.001\nmain()")
    monkeypatch.setattr(child_module, "_BEGIN", begin)
    segment, file = segment_in(tape)
    whole = build(child, segment, file)
    process = process_of(child)
    process.wait(timeout=30)
    assert process.returncode == 0
    monkeypatch.undo()
    assert build(child, segment, file) == whole


def test_a_child_that_cannot_begin_is_an_error(
    child: FilterChild, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment, file = segment_in(tape)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(FilterChildError, match="that makes key filters ended"):
        build(child, segment, file)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FilterChildError, match="No such file"):
        build(child, segment, file)
    monkeypatch.undo()
    assert build(child, segment, file)


def test_a_child_ends_when_its_parent_is_gone(child: FilterChild, tape: Tape) -> None:
    segment, file = segment_in(tape)
    build(child, segment, file)
    assert child._link is not None
    child._link.close()
    assert process_of(child).wait(timeout=30) == 0


def test_a_child_is_not_ended_by_signals_to_all_processes(
    child: FilterChild, tape: Tape
) -> None:
    segment, file = segment_in(tape)
    whole = build(child, segment, file)
    process = process_of(child)
    os.kill(process.pid, signal.SIGTERM)
    assert build(child, segment, file) == whole
    assert process_of(child) is process
    assert os.getpgid(process.pid) == process.pid  # no Ctrl-C of our terminal


def test_closing_ends_a_filter_that_is_being_made(
    child: FilterChild, tape: Tape
) -> None:
    segment, file = segment_in(tape)
    build(child, segment, file)
    process, errors = process_of(child), []
    os.kill(process.pid, signal.SIGSTOP)  # so that it never answers

    def ask() -> None:
        try:
            build(child, segment, file)
        except FilterChildError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(child._building.locked)
    child.close()
    asking.join(timeout=30)
    assert not asking.is_alive()
    assert len(errors) == 1
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(FilterChildError, match="not wanted any more"):
        build(child, segment, file)


# The writer.


def filters_in(folder: SourceFolder) -> set[str]:
    return set(folder.list("filters/"))


async def test_the_filters_of_what_is_offered_are_written(
    child: FilterChild, tape: Tape
) -> None:
    writer = FilterWriter(tape.folder, child)
    paths = set()
    for number in range(3):
        segment, file = segment_in(tape, number)
        writer.offer(segment, file)
        file.unlink()
        paths.add(FilterName(segment).path)
    writer.finish()
    await writer.run()
    assert filters_in(tape.folder) == paths
    assert (writer.written, writer.failures, writer.left_out) == (3, 0, 0)


async def test_what_is_too_much_is_left_out(child: FilterChild, tape: Tape) -> None:
    writer = FilterWriter(tape.folder, child)
    for number in range(10):
        writer.offer(*segment_in(tape, number))
    writer.finish()
    await writer.run()
    assert (writer.written, writer.left_out) == (4, 6)
    assert len(filters_in(tape.folder)) == 4


async def test_failures_are_told_and_counted_and_end_nothing(
    child: FilterChild, tape: Tape, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal("shop")
    tell_to(journal)
    writer = FilterWriter(tape.folder, child)
    segment, file = segment_in(tape, 1)
    writer.offer(segment, file.with_name("nowhere"))
    damaged, damaged_file = segment_in(tape, 2)
    damaged_file.write_bytes(b"x")
    writer.offer(damaged, damaged_file)
    taken, taken_file = segment_in(tape, 3)
    tape.folder.put(FilterName(taken).path, b"what another version wrote")
    writer.offer(taken, taken_file)
    writer.offer(segment, file)
    writer.finish()
    await writer.run()
    assert (writer.written, writer.failures, journal.filter_errors) == (1, 3, 3)
    assert FilterName(segment).path in filters_in(tape.folder)
    for reason in ("cannot read", damaged.path, "holds something else"):
        assert reason in caplog.text


async def test_cancelling_closes_what_waits(child: FilterChild, tape: Tape) -> None:
    writer = FilterWriter(tape.folder, child)
    for number in range(4):
        writer.offer(*segment_in(tape, number))
    files = [file for _, file in writer._waiting]
    assert files
    with trio.move_on_after(0) as scope:
        await writer.run()
    assert scope.cancelled_caught
    assert all(file.closed for file in files)


# The agent.


def write(plain: PlainClient, tape: Taping, count: int) -> None:
    """Write, and return once it is stored."""
    plain.exchange([("SET", f"key:{number}", "x" * 50) for number in range(count)])
    end = tape.catch_up()
    wait_until(lambda: (tape.agent.stored or 0) >= end)


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_a_recording_has_a_filter_for_each_segment(
    start_server: StartServer, server_name: str, tmp_path: Path
) -> None:
    server = start_server(server_name)
    with (
        PlainClient(server.client()) as plain,
        recording(server, tmp_path, key_filters=True) as tape,
    ):
        for _ in range(3):
            write(plain, tape, 100)
    folder = open_repository(str(tmp_path / "repo")).source()
    segments = [s for names in folder.catalogue().segments.values() for s in names]
    assert len(segments) >= 3
    assert filters_in(folder) == {FilterName(segment).path for segment in segments}
    answers = list(segments_with(folder, segments, [b"key:77"]))
    assert sum(answer.is_needed for answer in answers) == 3
    for segment in segments:
        assert folder.read(FilterName(segment).path) == make_filter(folder, segment)


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_a_recording_without_filters_begins_no_process(
    start_server: StartServer, server_name: str, tmp_path: Path
) -> None:
    server = start_server(server_name)
    with (
        PlainClient(server.client()) as plain,
        recording(server, tmp_path, key_filters=False) as tape,
    ):
        write(plain, tape, 100)
    folder = open_repository(str(tmp_path / "repo")).source()
    assert filters_in(folder) == set()
    assert tape.agent._filter_child._process is None


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_neither_recording_nor_stopping_waits_for_a_child_that_hangs(
    start_server: StartServer,
    server_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvtape.record.agent._FILTERS_TIMEOUT", 0.1)
    monkeypatch.setattr(child_module, "_BEGIN", "import time; time.sleep(1000)")
    server = start_server(server_name)
    options = replace(options_for(server.port, tmp_path), key_filters=True)
    with PlainClient(server.client()) as plain, taping_by(options, server) as tape:
        for _ in range(8):
            write(plain, tape, 10)
        assert tape.agent.filters is not None
        assert tape.agent.filters.left_out >= 1
        process = process_of(tape.agent._filter_child)
    assert process.returncode == -signal.SIGKILL
    folder = open_repository(str(tmp_path / "repo")).source()
    assert filters_in(folder) == set()
