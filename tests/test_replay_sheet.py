"""How a stretch of the stream is cut into parcels, and when they are due."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

from kvtape.errors import IdentityError, PointError, VerificationError
from kvtape.replay import memory
from kvtape.replay.course import behind, must_be_whole, next_slices
from kvtape.replay.memory import Position, replay_id
from kvtape.replay.moving import moved
from kvtape.replay.options import ReplayOptions
from kvtape.replay.pace import FOLLOWING_GRACE, GRACE, SLACK, Pace, Timeline
from kvtape.replay.progress import Progress, kind_of
from kvtape.replay.selection import Selection
from kvtape.replay.sheet import MANY_COMMANDS, MOST_BYTES, Moment, Parcel, Sheet
from kvtape.replication.resp import pack
from kvtape.replication.tracker import NO_DB
from kvtape.server.url import ServerUrl
from kvtape.storage.commands import commands_of, read_batches
from kvtape.storage.reader import read_stream
from kvtape.tape.catalogue import Catalogue, Slice
from kvtape.tape.commands import Batch
from kvtape.tape.glob import parse_glob
from kvtape.tape.span import choose_span
from recording import THEN, Tape
from tapes import command

OTHER = "f" * 40


def whole(tape: Tape) -> list[Slice]:
    return [
        Slice(segment, segment.start, segment.end)
        for segments in tape.folder.catalogue().segments.values()
        for segment in segments
    ]


def sheet_of(tape: Tape, selection: Selection | None = None) -> Sheet:
    (batch,) = [b for slice_ in whole(tape) for b in read_batches(tape.folder, slice_)]
    return Sheet(batch, selection or Selection())


def parcels(
    sheet: Sheet, until: int | None = None, moment: Moment = lambda time: time
) -> Iterator[Parcel]:
    at = sheet.start
    while at < sheet.end:
        end = sheet.take(at, until)
        yield sheet.parcel(at, end, moment)
        at = end


def starts_of(sheet: Sheet) -> list[int]:
    """Return where the commands begin."""
    lengths = (len(pack(*words)) for words in sheet.batch.parsed())
    return list(accumulate(lengths, initial=sheet.start))[:-1]


def sources(sheet: Sheet, parcel: Parcel) -> list[int]:
    """Return which commands of a sheet those in the data of a parcel come of."""
    starts = starts_of(sheet)
    return [starts.index(sheet.source(parcel, n)) for n in range(parcel.count)]


def one_frame(folder: Path, *commands: tuple[str | int, ...], db: int = 0) -> Tape:
    tape = Tape(folder, db=db)
    data = b"".join(command(*words) for words in commands)
    tape.segment([(THEN + 1, data)])
    return tape


def test_what_needs_no_change_is_the_same_bytes(tmp_path: Path) -> None:
    tape = one_frame(tmp_path, *[("INCR", f"key:{n}") for n in range(2000)])
    sheet = sheet_of(tape)
    (piece,) = read_stream(tape.folder, whole(tape))
    first, *others = parcels(sheet)
    assert b"".join(parcel.data for parcel in (first, *others)) == piece.data
    assert sources(sheet, first) == list(range(first.count))
    assert MANY_COMMANDS <= first.count < MANY_COMMANDS * 2
    assert sum(parcel.recorded for parcel in (first, *others)) == 2000
    assert (first.begin_db, first.end_db, first.time) == (0, 0, THEN + 1)
    # Without one of them it is put together again.
    fifth = starts_of(sheet)[5]
    less = sheet.parcel(sheet.start, sheet.end, lambda time: time, [fifth])
    assert less.data == piece.data.replace(command("INCR", "key:5"), b"")
    assert sources(sheet, less) == [n for n in range(2000) if n != 5]


def test_a_command_is_found_whatever_stands_beside_it(tmp_path: Path) -> None:
    """Among many that need no change, which are not told apart."""
    plain = [("INCR", f"key:{n}") for n in range(40)]
    transaction = [("MULTI",), ("SET", "a", "*3\r\n"), ("EXEC",)]
    commands: list[tuple[str | int, ...]] = [
        *(("PING",), ("MULTI",), ("EXEC",)),
        *plain,
        *(transaction * 2),
        *plain,
        *(("SETEX", "a", 5, "b"), ("SET", "a", 1, "EX", 5), ("PING",), ("PING",)),
        *(("SELECT", 0), ("SELECT", 1)),
        *plain,
        *(("INCR", "last"), ("PING",)),
    ]
    sheet = sheet_of(one_frame(tmp_path, *commands))
    left_out = {"PING", "MULTI", "EXEC"}
    sent = [n for n, words in enumerate(commands) if words[0] not in left_out]
    (parcel,) = parcels(sheet)
    assert (parcel.recorded, parcel.count) == (len(commands), len(sent))
    assert sources(sheet, parcel) == sent
    starts = starts_of(sheet)
    for number in sent:
        less = sheet.parcel(sheet.start, sheet.end, lambda time: time, [starts[number]])
        assert sources(sheet, less) == [n for n in sent if n != number]


def test_a_parcel_is_bounded_and_no_transaction_is_cut(tmp_path: Path) -> None:
    many = [("INCR", f"n:{n}") for n in range(MANY_COMMANDS - 1)]
    large = [("SET", "large", "x" * MOST_BYTES)] * 2
    half = [("SET", "half", "x" * (MOST_BYTES * 2 // 5))] * 3
    tape = one_frame(
        tmp_path,
        *many,
        ("MULTI",),
        ("SELECT", 2),
        ("INCR", "n"),
        ("EXEC",),
        *large,
        *half,
    )
    sheet = sheet_of(tape)
    first, *others = parcels(sheet)
    assert first.recorded == len(many) + 4
    assert first.data.endswith(command("SELECT", 2) + command("INCR", "n"))
    assert first.count == len(many) + 2
    assert (first.begin_db, first.end_db, first.highest_db) == (0, 2, 2)
    each = [command(*words) for words in (*large, *half)]
    assert [other.data for other in others] == [*each[:2], each[2] + each[3], each[4]]
    assert others[0].begin_db == 2
    assert sheet.time_of(starts_of(sheet)[len(many)]) == THEN + 1


def test_what_expires_is_moved_in_its_place(tmp_path: Path) -> None:
    """All kinds of expiry, among what is left out; as if each were moved alone."""
    soon, late = THEN + 5000, 2**63 - 1
    commands: list[tuple[str | int, ...]] = [
        ("SET", "a", 1, "PXAT", soon),
        ("MULTI",),
        ("PEXPIREAT", "a", soon),
        ("EXEC",),
        ("SET", "a", 1, "PXAT", 10**13 - 1),
        ("SET", "a", 1, "PX", 100),
        ("set", "a", 1, "pxat", soon),
        ("SET", "a", 1, "KEEPTTL"),
        ("PEXPIREAT", "a", 5),
        ("PEXPIREAT", "a", late),
        ("PEXPIREAT", "a", soon, "GT"),
        ("SET", "PXAT", soon),
        ("SET", "a", 1, "IFEQ", soon),
        ("SET", "a", 1, "IFEQ", f"$4\r\nPXAT\r\n$13\r\n{soon}"),
        ("SET", "a", 1, "PXAT", f"{soon:014}"),
        ("SETEX", "a", 7, "PXAT"),
        ("INCR", "n"),
    ]
    tape = Tape(tmp_path, db=0)
    received = [THEN + 10 * n for n in range(len(commands))]
    frame = [(at, command(*each)) for at, each in zip(received, commands, strict=True)]
    tape.segment(frame)
    sheet = sheet_of(tape)
    (parcel,) = parcels(sheet, None, lambda time: 2 * time - THEN + 1000)
    expected = []
    for number, (time, words) in enumerate(zip(received, commands, strict=True)):
        if words[0] in ("MULTI", "EXEC"):
            continue
        alone = moved(
            [str(word).encode() for word in words], time, 2 * time - THEN + 1000
        )
        expected.append((number, pack(*(alone or words))))
    assert parcel.data == b"".join(data for _, data in expected)
    assert sources(sheet, parcel) == [number for number, _ in expected]
    assert command("SET", "a", 1, "PXAT", soon + 1000) in parcel.data


def test_a_parcel_ends_with_what_is_due(tmp_path: Path) -> None:
    tape = Tape(tmp_path, db=0)
    data = [command("INCR", f"key:{n}") for n in range(3)]
    tape.segment([(THEN + 10 * n, each) for n, each in enumerate(data)])
    sheet = sheet_of(tape)
    starts = starts_of(sheet)
    assert [sheet.time_of(at) - THEN for at in starts] == [0, 10, 20]
    taken = [sheet.take(sheet.start, THEN + until) for until in (-5, 0, 9, 10, 25)]
    assert taken == [*[starts[1]] * 3, starts[2], sheet.end]


def test_what_is_left_out_is_no_part_of_a_parcel(tmp_path: Path) -> None:
    tape = one_frame(
        tmp_path,
        ("SELECT", 1),
        ("SET", "b", 1),
        ("SELECT", 0),
        ("PING",),
        ("SET", "a", 1, "PX", 500),
        ("MODULE.DO", "a"),
        ("SWAPDB", 0, 1),
        ("FLUSHALL",),
    )
    selection = Selection(globs=(parse_glob(b"a"),), db_map=((0, 3), (3, 0)))
    sheet = sheet_of(tape, selection)
    (parcel,) = parcels(sheet)
    assert parcel.data == b"".join(
        command(*words)
        for words in [
            ("SELECT", 1),
            ("SELECT", 3),
            ("SET", "a", 1, "PXAT", THEN + 501),
            ("SWAPDB", 3, 1),
            ("FLUSHALL",),
        ]
    )
    assert sources(sheet, parcel) == [0, 2, 4, 6, 7]
    fifth = starts_of(sheet)[5]
    assert [(one.start, parcel.has_swap) for one in parcel.untold] == [(fifth, True)]
    (nothing,) = parcels(sheet_of(tape, Selection(dbs=frozenset({9}))))
    assert nothing.data == command("SELECT", 9) + command("FLUSHDB")
    assert nothing.begin_db == NO_DB


def test_nothing_is_sent_to_a_database_that_is_not_known(tmp_path: Path) -> None:
    tape = one_frame(tmp_path / "a", ("PING",), ("SELECT", 1), ("INCR", "n"), db=NO_DB)
    (parcel,) = parcels(sheet_of(tape))
    assert parcel.data == command("SELECT", 1) + command("INCR", "n")
    for number, first in enumerate([("INCR", "n"), ("SET", "n", 1, "PX", 5)]):
        tape = one_frame(tmp_path / f"{number}", first, ("SELECT", 1), db=NO_DB)
        with pytest.raises(PointError, match="which database is selected"):
            list(parcels(sheet_of(tape)))


def test_a_stream_that_is_none_of_commands_is_told(tmp_path: Path) -> None:
    tape = one_frame(tmp_path, ("MULTI",), ("INCR", "n"), ("EXEC",))
    batch = sheet_of(tape).batch
    short = command("MULTI") + command("INCR", "n")
    cut = Batch(batch.replid, batch.start, 0, batch.facts, short)
    with pytest.raises(VerificationError, match="ends within a transaction"):
        Sheet(cut, Selection()).take(cut.start, None)
    bad = Batch(batch.replid, batch.start, 0, batch.facts, command("SELECT", "x"))
    with pytest.raises(VerificationError, match="cannot be read as commands"):
        list(parcels(Sheet(bad, Selection())))
    worse = Batch(batch.replid, batch.start, 0, batch.facts, command("SELECT"))
    with pytest.raises(VerificationError, match="cannot be read as commands"):
        Sheet(worse, Selection()).edited(worse.start, lambda time: time)
    # An error of its own in a SELECT that only the edit sees.
    sheet = sheet_of(tape)
    assert sheet.edited(sheet.start, lambda time: time) == ()


# When.


def test_a_pace_keeps_the_gaps() -> None:
    timeline = Pace(10.0).begin(THEN, 5000.0)
    assert timeline.due(THEN + 1000) == 5100.0
    assert timeline.reached(5100.0) == THEN + 1000
    # What is late by less than the slack is moved as if it were not.
    late = 5100.0 + SLACK
    assert timeline.moment(THEN + 1000, late) == 5100 + GRACE
    assert timeline.moment(THEN + 1000, late + 7) == 5107 + GRACE


def test_without_a_speed_all_is_due_at_once() -> None:
    pace = Pace(None)
    timeline = pace.begin(THEN, 5000.0)
    assert (pace.is_free, Pace(1.0).is_free, Pace(None, 5).is_free) == (1, 0, 0)
    assert timeline.due(THEN + 10**9) == 5000.0
    assert timeline.reached(5000.0) is None
    assert timeline.moment(THEN, 7000.0) == 7000 + GRACE


def test_a_delay_counts_from_the_recorded_time() -> None:
    assert Pace(None, 3600).begin(THEN, 5.0) == Timeline(0, 3600, 1.0, GRACE)
    assert Pace(1.0, 3600).begin(THEN, 5.0).due(THEN) == THEN + 3600


def test_keys_live_longer_where_segments_are_waited_for() -> None:
    url = ServerUrl("127.0.0.1", 1)
    assert ReplayOptions("", url).pace == Pace(1.0)
    assert ReplayOptions("", url, delay=1.5, follow=True).pace == Pace(1.0, 1500)
    following = ReplayOptions("", url, speed=None, follow=True).pace
    assert following.grace == FOLLOWING_GRACE
    assert ReplayOptions("", url, speed=2.0, follow=True).pace == Pace(2.0)


# Where.


def test_a_position_is_remembered() -> None:
    position = Position("id", OTHER, 5, THEN, 2)
    assert memory.decode(position.encode()) == position
    for content in (b"", b"{}", b"\xff", b"[]"):
        with pytest.raises(IdentityError, match="none that a replay wrote"):
            memory.decode(content)


def test_another_selection_is_another_replay() -> None:
    selections = [
        Selection(),
        Selection(globs=(parse_glob(b"a"),)),
        Selection(names=frozenset({b"INCR"})),
        Selection(dbs=frozenset({1})),
        Selection(publish=True),
        Selection(prefixes=((b"a", b"b"),)),
        Selection(db_map=((0, 1),)),
    ]
    ids = {replay_id(source, each) for source in ("a", "b") for each in selections}
    assert len(ids) == 2 * len(selections)


def test_what_is_left_begins_at_the_position(tmp_path: Path) -> None:
    tape = Tape(tmp_path, db=0).snapshot()
    tape.commands(("INCR", "a"))
    middle = tape.end
    tape.commands(("INCR", "b"))
    fork, parent = tape.end, tape.replid
    tape.fork(OTHER)
    tape.commands(("INCR", "c"))
    catalogue = tape.folder.catalogue()
    slices = choose_span(catalogue).slices

    def left(replid: str, offset: int) -> list[bytes]:
        found = behind(catalogue, slices, replid, offset)
        return [command.words[1] for command in commands_of(tape.folder, found)]

    assert left(parent, 1000) == [b"a", b"b", b"c"]
    assert left(parent, middle) == [b"b", b"c"]
    assert left(parent, fork) == left(OTHER, fork) == [b"c"]
    assert left(OTHER, tape.end) == []
    for replid, offset in ((parent, tape.end), ("0" * 40, 1000), (parent, 5)):
        with pytest.raises(PointError, match="is not in the range"):
            left(replid, offset)
    strange = Catalogue()
    with pytest.raises(PointError, match="is not in the range"):
        behind(strange, slices, "0" * 40, 1000)


def test_a_hole_ends_it_unless_it_is_left_out(tmp_path: Path) -> None:
    tape = Tape(tmp_path, db=0).snapshot()
    tape.commands(("INCR", "a"))
    tape.gap(tape.end + 10, "the disk was full")
    tape.commands(("INCR", "b"))
    span = choose_span(tape.folder.catalogue())
    with pytest.raises(PointError, match="the disk was full"):
        must_be_whole(span, force=False)
    must_be_whole(span, force=True)


def test_what_is_recorded_meanwhile_goes_on_in_one_history(tmp_path: Path) -> None:
    tape = Tape(tmp_path, db=0)
    assert next_slices(tape.folder.catalogue(), tape.replid, 1000) == ()
    tape.snapshot()
    assert next_slices(tape.folder.catalogue(), tape.replid, 1000) == ()
    tape.commands(("INCR", "a"))
    first, replid = tape.end, tape.replid
    tape.fork(OTHER)
    tape.commands(("INCR", "b"))
    found = next_slices(tape.folder.catalogue(), replid, 1000)
    assert [(each.start, each.end) for each in found] == [
        (1000, first),
        (first, tape.end),
    ]
    # Up to a hole, and not from within one.
    last = tape.end
    tape.gap(tape.end + 10, "the disk was full")
    tape.commands(("INCR", "c"))
    catalogue = tape.folder.catalogue()
    found = next_slices(catalogue, replid, 1000)
    assert found[-1].end == last
    with pytest.raises(PointError, match="is not recorded"):
        next_slices(catalogue, OTHER, last)


def test_a_full_resync_cannot_be_followed(tmp_path: Path) -> None:
    tape = Tape(tmp_path, db=0).snapshot()
    tape.commands(("INCR", "a"))
    end, time = tape.end, tape.time
    other = Tape(tmp_path, replid=OTHER, time=time + 1000, reason="full-resync")
    other.snapshot()
    with pytest.raises(PointError, match="went on without what follows"):
        next_slices(tape.folder.catalogue(), tape.replid, end)


# What came of it.


def test_errors_are_counted_by_kind() -> None:
    progress = Progress()
    assert kind_of("WRONGTYPE Operation") == "WRONGTYPE"
    assert progress.count_error("ERR unknown command 'a'", "first")
    assert not progress.count_error("ERR unknown command 'b'", "second")
    assert progress.count_error("ERR value is not", "third")
    assert progress.errors == {"ERR unknown command": 2, "ERR": 1}
    assert progress.first["ERR unknown command"] == "first"
    assert [progress.count_untold("a script") for _ in range(2)] == [True, False]
