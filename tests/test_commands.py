"""The stream is read as commands: each in its place, at its time, in its database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtape.errors import VerificationError
from kvtape.replication.tracker import NO_DB
from kvtape.restore.job import open_job
from kvtape.storage.commands import recorded_commands
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.point import Point, ToLatest, ToOffset
from plain_client import PlainClient
from recording import THEN, Tape, rdb, taping
from servers import StartServer
from tapes import command

START = 1000
SET = command("SET", "key", "value")


def commands_of(tape: Tape, point: Point | None = None) -> list[RecordedCommand]:
    job = tape.job(point)
    return list(recorded_commands(job.folder, job.plan))


def names(commands: Sequence[RecordedCommand]) -> list[bytes]:
    return [each.name for each in commands]


def test_each_has_its_place_its_time_and_its_database(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    stream = [
        (THEN + 1, command("select", 3) + SET[:9]),
        (THEN + 2, SET[9:] + command("MULTI") + command("SELECT", 5)),
        (THEN + 3, SET + command("EXEC")),
    ]
    tape.segment(stream)
    tape.commands(("INCR", "n"))
    found = commands_of(tape)
    listed = b"SELECT SET MULTI SELECT SET EXEC INCR"
    assert names(found) == listed.split()
    assert found[0].words == (b"select", b"3")
    assert [each.db for each in found] == [3, 3, 3, 5, 5, 5, 5]
    assert [each.time for each in found[:-1]] == [THEN + n for n in (1, 2, 2, 2, 3, 3)]
    assert found[-1].time == THEN + 1003
    assert [each.start for each in found] == [START, *(e.end for e in found[:-1])]
    assert found[-1].end == tape.end
    assert {each.replid for each in found} == {tape.replid}


def test_of_a_recording_from_a_replica_the_snapshot_knows_the_database(
    tmp_path: Path,
) -> None:
    for db in (NO_DB, 9):
        tape = Tape(tmp_path / str(db), db=db).snapshot()
        tape.segment([(THEN, SET)])
        assert [each.db for each in commands_of(tape)] == [db]


def test_they_end_where_the_plan_ends(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot(rdb((0, "a", "1", None)))
    tape.commands(("SET", "a", 1), ("SET", "b", 2), ("SET", "c", 3))
    tape.commands(("SET", "d", 4))
    ends = [each.end for each in commands_of(tape)]
    for count, end in enumerate([START, *ends]):
        assert len(commands_of(tape, ToOffset(end))) == count
        assert len(commands_of(tape, ToOffset(end + 3 * (end < tape.end)))) == count


def test_commands_and_transactions_longer_than_a_frame_are_whole(
    tmp_path: Path,
) -> None:
    tape = Tape(tmp_path).snapshot()
    large = command("SET", "key", b"x" * 1000)
    stream = command("MULTI") + large * 3 + command("EXEC") + large
    frames = [
        [(THEN + n, stream[n : n + 100])] for n in range(0, len(stream), 100)
    ]  # fmt: skip
    tape.segment(*frames)
    found = commands_of(tape)
    assert names(found) == [b"MULTI", b"SET", b"SET", b"SET", b"EXEC", b"SET"]
    assert {each.words for each in found if each.name == b"SET"} == {
        (b"SET", b"key", b"x" * 1000)
    }


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.segment([(THEN, SET + b"*1\r\n:1\r\n")])
    with pytest.raises(VerificationError, match=f"from offset {START + len(SET)} on"):
        commands_of(tape)


def test_what_a_server_was_told_is_what_is_found(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name)
    with taping(server, tmp_path / "repo") as recording:
        with PlainClient(server.client()) as plain:
            plain.exchange(
                [
                    ("SELECT", 9),
                    ("SET", "a", b"\0\xff"),
                    ("RPUSH", "list", *range(100)),
                    ("MULTI",),
                    ("INCR", "n"),
                    ("INCR", "n"),
                    ("EXEC",),
                    ("FLUSHALL",),
                ]
            )
        end = recording.catch_up()
    job = open_job(str(tmp_path / "repo"), None, ToLatest())
    found = [
        each
        for each in recorded_commands(job.folder, job.plan)
        if each.name not in {b"PING", b"REPLCONF"}
    ]
    listed = b"SELECT SET RPUSH MULTI INCR INCR EXEC FLUSHALL"
    assert names(found) == listed.split()
    assert {each.db for each in found} == {9}
    assert found[1].words == (b"SET", b"a", b"\0\xff")
    assert found[-1].end <= end
