"""Read from anywhere, a segment says what all of it says, or that it is damaged."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from batches import Byte
from kvtape.errors import PointError, VerificationError
from kvtape.replication.tracker import NO_DB
from kvtape.storage.commands import Damage, read_what_is_good
from kvtape.storage.reader import boundary_by, find_boundary
from kvtape.storage.repository import SourceFolder
from kvtape.storage.segments import (
    Boundary,
    frame_starts,
    opening,
    opening_at_time,
    read_frames,
    read_frames_from,
    read_header,
    read_parts,
    stream_of,
)
from kvtape.tape.catalogue import Slice
from kvtape.tape.commands import Batch
from kvtape.tape.names import SegmentName
from kvtape.tape.segment import Frame
from recording import THEN, Tape
from tapes import command

START = 1000


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored segment of tiny frames, and what is true of each of its bytes."""

    folder: SourceFolder
    name: SegmentName
    data: bytes
    frames: list[int]  # where each begins
    bytes: list[Byte]
    boundaries: dict[int, int]  # with the database selected there

    def last_boundary(self, limit: int) -> int:
        """Return the last boundary at or before limit."""
        return max(at for at in self.boundaries if at <= limit)

    def boundary(self, offset: int) -> Boundary:
        """Return what is true of a boundary."""
        db = self.boundaries[offset]
        if offset == self.name.start:
            return Boundary(offset, db, THEN, THEN)
        byte = self.bytes[offset - self.name.start - 1]
        return Boundary(offset, db, byte.time, byte.after)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder.url, self.name.path)


def some_commands(
    chance: random.Random, count: int
) -> list[tuple[str | int | bytes, ...]]:
    """Return some commands, of which some are longer than frames, and transactions."""
    found: list[tuple[str | int | bytes, ...]] = []
    for _ in range(count):
        kind = chance.randrange(4)
        write = ("SET", "key", b"x" * chance.choice([1, 20, 150]))
        if kind == 0:
            found.append(("SELECT", chance.randrange(12)))
        elif kind == 1:
            found += [("MULTI",), write, ("SELECT", chance.randrange(12)), ("EXEC",)]
        else:
            found.append(write)
    return found


def stored(folder: Path, seed: int, count: int = 5) -> Stored:
    """Store a segment of chance, whose frames have at most 60 bytes."""
    chance = random.Random(seed)
    commands = some_commands(chance, count)
    boundaries, at, db, is_open = {START: NO_DB}, START, NO_DB, False
    for words in commands:
        at += len(command(*words))
        db = int(words[1]) if words[0] == "SELECT" else db
        is_open = words[0] == "MULTI" or (is_open and words[0] != "EXEC")
        if not is_open:
            boundaries[at] = db
    data = b"".join(command(*words) for words in commands)
    tape = Tape(folder).snapshot()
    frames, starts, told = [], [], []
    time, at = THEN, 0
    while at < len(data):
        starts.append(START + at)
        frame = []
        for _ in range(chance.randint(1, 3)):
            piece = data[at : at + chance.randint(1, 20)]
            if piece:
                before, time = time, time + chance.choice([0, 1, 1000])
                frame.append((time, piece))
                told += [Byte(time, before)] * len(piece)
                at += len(piece)
        frames.append(frame)
    name = tape.segment(*frames)
    return Stored(tape.folder, name, data, starts, told, boundaries)


@pytest.fixture(params=range(4))
def segment(tmp_path: Path, request: pytest.FixtureRequest) -> Stored:
    """Return each of some segments."""
    return stored(tmp_path, request.param)


def joined(segment: Stored, frames: Iterator[Frame]) -> tuple[int, bytes]:
    found = list(frames)
    data = b"".join(stream_of(segment.folder, segment.name, frame) for frame in found)
    return found[0].facts.start, data


def test_frames_from_any_offset_are_those_of_the_whole(segment: Stored) -> None:
    folder, name, data = segment.folder, segment.name, segment.data
    whole = [part for part in read_parts(folder, name) if isinstance(part, Frame)]
    assert frame_starts(folder, name) == tuple(segment.frames)
    assert [frame.facts.start for frame in whole] == segment.frames
    for start in range(name.start, name.end, 7):
        frames = list(read_frames_from(folder, name, start, name.end))
        assert frames == [frame for frame in whole if frame.facts.end > start]
    for stop in range(name.start + 1, name.end + 1, 7):
        for start in (name.start, name.start + 50, stop - 1):
            if start < stop:
                at, found = joined(segment, read_frames_from(folder, name, start, stop))
                assert at <= start < stop <= at + len(found)
                assert found == data[at - START :][: len(found)]
                # No frame more than it takes.
                assert at + len(found) <= next(
                    (s for s in segment.frames if s >= stop), name.end
                )


def test_the_last_boundary_is_found_from_any_offset(segment: Stored) -> None:
    for limit in range(segment.name.start, segment.name.end + 1):
        found = find_boundary(segment.folder, segment.name, limit)
        assert found == segment.boundary(segment.last_boundary(limit))


def test_reading_opens_at_the_last_frame_that_a_boundary_begins(
    segment: Stored,
) -> None:
    openings = {*segment.frames} & segment.boundaries.keys()
    for offset in range(segment.name.start, segment.name.end):
        found = opening(segment.folder, segment.name, offset)
        assert found == segment.boundary(max(at for at in openings if at <= offset))


def test_the_last_boundary_by_a_time_had_been_received_by_then(segment: Stored) -> None:
    name = segment.name
    for time in sorted({byte.time + n for byte in segment.bytes for n in (-1, 0, 1)}):
        count = sum(byte.time <= time for byte in segment.bytes)
        expected = segment.last_boundary(name.start + count)
        assert boundary_by(segment.folder, name, time) == expected
        start = opening_at_time(segment.folder, name, time)
        assert all(byte.time <= time for byte in segment.bytes[: start - name.start])
        behind = [at for at in segment.frames if at > start]
        assert not behind or segment.bytes[behind[0] - name.start - 1].time > time


def test_batches_from_any_boundary_are_the_stream(segment: Stored) -> None:
    for start, db in segment.boundaries.items():
        for end in segment.boundaries:
            if start < end:
                slice_ = Slice(segment.name, start, end)
                batches = list(read_what_is_good(segment.folder, slice_))
                at = start
                for batch in batches:
                    assert isinstance(batch, Batch)
                    assert (batch.start, batch.db) == (at, segment.boundaries[at])
                    at = batch.end
                assert at == end
                assert batches[0].start == start
                assert isinstance(batches[0], Batch)
                assert batches[0].db == db
                data = b"".join(b.data for b in batches if isinstance(b, Batch))
                assert data == segment.data[start - START : end - START]


# Damage.


def answers(segment: Stored) -> list[Callable[[], object]]:
    """Return calls that read a segment in all ways."""
    folder, name = segment.folder, segment.name
    middle = (name.start + name.end) // 2
    time = segment.bytes[middle - START].time
    return [
        lambda: read_header(folder, name),
        lambda: frame_starts(folder, name),
        lambda: opening(folder, name, middle),
        lambda: opening_at_time(folder, name, time),
        lambda: find_boundary(folder, name, middle),
        lambda: boundary_by(folder, name, time),
        lambda: joined(segment, read_frames(folder, name, name.end)),
        lambda: joined(segment, read_frames_from(folder, name, middle, name.end)),
        lambda: joined(segment, read_frames_from(folder, name, middle, middle + 1)),
    ]


def is_found_out(segment: Stored, call: Callable[[], object], good: object) -> bool:
    """Whether a call names the damage; if it does not, it must say what was good."""
    said = ""
    try:
        assert call() == good
    except VerificationError as error:
        said = str(error)
    assert not said or segment.name.path in said
    return bool(said)


def small(folder: Path) -> Stored:
    return stored(folder, 1, count=2)


def test_no_byte_can_change_unseen(tmp_path: Path) -> None:
    segment = small(tmp_path)
    good = [call() for call in answers(segment)]
    content = segment.path.read_bytes()
    whole = Slice(segment.name, segment.name.start, segment.name.end)
    batches = list(read_what_is_good(segment.folder, whole))
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        segment.path.write_bytes(damaged)
        found = [
            is_found_out(segment, call, one)
            for call, one in zip(answers(segment), good, strict=True)
        ]
        # Who reads all of it sees it in any case.
        assert found[-3], at
        assert_the_rest_is_good(segment, batches, whole)


def test_a_file_that_is_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    segment = small(tmp_path)
    good = [call() for call in answers(segment)]
    content = segment.path.read_bytes()
    whole = Slice(segment.name, segment.name.start, segment.name.end)
    batches = list(read_what_is_good(segment.folder, whole))
    for length in range(len(content)):
        segment.path.write_bytes(content[:length])
        for call, one in zip(answers(segment)[1:], good[1:], strict=True):
            assert is_found_out(segment, call, one)
        assert_the_rest_is_good(segment, batches, whole)


def test_a_file_that_goes_on_behind_its_end_is_damaged(tmp_path: Path) -> None:
    segment = small(tmp_path)
    segment.path.write_bytes(segment.path.read_bytes() + b"\0")
    for call in answers(segment)[1:]:
        with pytest.raises(VerificationError, match="is damaged"):
            call()


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    segment = small(tmp_path)
    segment.path.unlink()
    for call in answers(segment):
        with pytest.raises(VerificationError, match="is missing"):
            call()
    whole = Slice(segment.name, segment.name.start, segment.name.end)
    [damage] = read_what_is_good(segment.folder, whole)
    assert isinstance(damage, Damage)
    assert (damage.start, damage.end) == (whole.start, whole.end)
    assert "is missing" in damage.reason


def test_a_file_under_another_name_is_damaged(tmp_path: Path) -> None:
    segment = small(tmp_path)
    for name in (
        SegmentName("d" * 40, START, segment.name.end, THEN, THEN),
        SegmentName(segment.name.replid, START + 1, segment.name.end, THEN, THEN),
        SegmentName(segment.name.replid, START, segment.name.end + 1, THEN, THEN),
    ):
        path = Path(segment.folder.url, name.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(segment.path.read_bytes())
        with pytest.raises(VerificationError, match=r"is damaged: it .*than its name"):
            list(read_parts(segment.folder, name))
        for at in (START, START + 30):
            with pytest.raises(VerificationError, match="is damaged"):
                find_boundary(segment.folder, name, at + 1)


def assert_the_rest_is_good(
    segment: Stored, batches: list[Batch | Damage], whole: Slice
) -> None:
    """Check that what is left of a damaged file is in its place, and accounted for."""
    found = list(read_what_is_good(segment.folder, whole))
    at = whole.start
    for one in found:
        assert one.start == at
        at = one.end
        if isinstance(one, Damage):
            assert one.replid == segment.name.replid
            assert segment.name.path in one.reason
        else:
            # Facts that are good are as they were, and so are the bytes.
            assert one in batches
    assert at in (whole.end, whole.start)


def frame_position(segment: Stored, number: int) -> int:
    """Return where in the file the last byte of a data frame is."""
    frames = list(read_parts(segment.folder, segment.name))
    stored_before = 0
    content = segment.path.read_bytes()
    for part in frames:
        if isinstance(part, Frame):
            stored_before = content.index(part.stored, stored_before) + len(part.stored)
            number -= 1
            if number < 0:
                break
    return stored_before - 1


def each_second(folder: Path, count: int = 6) -> tuple[Tape, SegmentName]:
    """Return a tape of SETs, each in a frame of its own."""
    tape = Tape(folder).snapshot()
    frames = [[(THEN + n, command("SET", f"key{n}", n))] for n in range(count)]
    return tape, tape.segment([(THEN, command("SELECT", 3))], *frames)


def test_a_damaged_frame_loses_its_own_commands_only(tmp_path: Path) -> None:
    tape, name = each_second(tmp_path)
    one = Stored(tape.folder, name, b"", [], [], {})
    content = bytearray(one.path.read_bytes())
    content[frame_position(one, 3)] ^= 1
    one.path.write_bytes(content)
    whole = Slice(name, name.start, name.end)
    found = list(read_what_is_good(tape.folder, whole))
    [damage] = [part for part in found if isinstance(part, Damage)]
    commands = [c for b in found if isinstance(b, Batch) for c in b.parsed()]
    assert [c[1] for c in commands[1:]] == [b"key0", b"key1", b"key3", b"key4", b"key5"]
    assert damage.end - damage.start == len(command("SET", "key2", 2))
    # What is selected is known behind it all the same.
    assert {b.db for b in found[1:] if isinstance(b, Batch)} == {3}


def test_damaged_facts_lose_the_rest_of_the_segment(tmp_path: Path) -> None:
    tape, name = each_second(tmp_path)
    one = Stored(tape.folder, name, b"", [], [], {})
    content = bytearray(one.path.read_bytes())
    content[frame_position(one, 2) + 20] ^= 1
    one.path.write_bytes(content)
    whole = Slice(name, name.start, name.end)
    *good, damage = read_what_is_good(tape.folder, whole)
    commands = [c for b in good if isinstance(b, Batch) for c in b.parsed()]
    assert [c[1] for c in commands[1:]] == [b"key0", b"key1"]
    assert isinstance(damage, Damage)
    assert damage.end == name.end


def test_frames_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    tape, name = each_second(tmp_path)
    one = Stored(tape.folder, name, b"", [], [], {})
    content = bytearray(one.path.read_bytes())
    content[frame_position(one, 3)] ^= 1
    one.path.write_bytes(content)
    whole = Slice(name, name.start, name.end)
    asked: list[int] = []

    def wanted(facts: object, db: int) -> bool:
        asked.append(db)
        return False

    assert list(read_what_is_good(tape.folder, whole, wanted=wanted)) == []
    assert asked == [NO_DB, 3, 3, 3, 3, 3, 3]


def test_a_stream_that_is_none_of_commands_has_no_boundaries(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    name = tape.segment([(THEN, command("PING") + b"nonsense")])
    with pytest.raises(PointError, match="cannot be read as commands"):
        find_boundary(tape.folder, name, name.end - 1)
