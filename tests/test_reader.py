"""What is stored is read back as it was recorded, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtape.errors import PointError, VerificationError
from kvtape.restore.job import notes_on
from kvtape.storage.reader import (
    Resolved,
    find_boundary,
    read_facts,
    read_snapshot,
    read_stream,
    resolve,
)
from kvtape.storage.segments import Boundary
from kvtape.tape.catalogue import Slice
from kvtape.tape.names import SegmentName
from kvtape.tape.plan import choose
from kvtape.tape.point import Point, ToLatest, ToOffset, ToTime
from recording import THEN, Tape, rdb
from tapes import command, decompressed

START = 1000

SET = command("SET", "key", "value")
MULTI = command("MULTI")
EXEC = command("EXEC")

# Two segments, of frames of all kinds. What came in one piece has one time.
FRAMES: list[list[list[tuple[int, bytes]]]] = [
    [
        [(THEN + 1000, SET + SET[:10]), (THEN + 2000, SET[10:])],
        [(THEN + 3000, MULTI + SET)],
        [(THEN + 4000, SET), (THEN + 5000, EXEC)],
    ],
    [
        [(THEN + 6000, SET[:5])],
        [(THEN + 9000, SET[5:]), (THEN + 9500, SET)],
    ],
]
STREAM = b"".join(data for segment in FRAMES for frame in segment for _, data in frame)
END = START + len(STREAM)

# Where a command and no transaction ends, in order.
IN_MULTI = START + 2 * len(SET)
AFTER_MULTI = IN_MULTI + len(MULTI + SET + SET + EXEC)
BOUNDARIES = [
    START,
    START + len(SET),
    IN_MULTI,
    AFTER_MULTI,
    AFTER_MULTI + len(SET),
    END,
]


@pytest.fixture
def tape(tmp_path: Path) -> Tape:
    """Return the tape of FRAMES."""
    tape = Tape(tmp_path / "repo").snapshot(rdb((0, "key", "old", None)))
    for frames in FRAMES:
        tape.segment(*frames)
    return tape


def segments_of(tape: Tape) -> list[SegmentName]:
    return tape.folder.catalogue().segments[tape.replid]


def whole(tape: Tape) -> list[Slice]:
    return [Slice(name, name.start, name.end) for name in segments_of(tape)]


def resolved(tape: Tape, point: Point) -> Resolved:
    return resolve(tape.folder, choose(tape.folder.catalogue(), point))


def test_the_stream_is_read_back_in_order(tape: Tape) -> None:
    pieces = list(read_stream(tape.folder, whole(tape)))
    assert b"".join(piece.data for piece in pieces) == STREAM
    assert [piece.is_whole for piece in pieces] == [True] * 5
    assert [piece.start for piece in pieces] == [START, *(p.end for p in pieces[:-1])]
    facts = list(read_facts(tape.folder, whole(tape)))
    assert facts == [piece.facts for piece in pieces]


def test_any_slice_is_read_alone(tape: Tape) -> None:
    first, _ = segments_of(tape)
    for start in range(START, first.end):
        for end in (start + 1, start + 40, first.end):
            if end <= first.end:
                pieces = list(read_stream(tape.folder, [Slice(first, start, end)]))
                assert (pieces[0].start, pieces[-1].end) == (start, end)
                data = b"".join(piece.data for piece in pieces)
                assert data == STREAM[start - START : end - START]


def test_what_is_behind_the_slice_is_not_read(tape: Tape) -> None:
    first, _ = segments_of(tape)
    path = Path(tape.folder.url) / first.path
    content = path.read_bytes()
    path.write_bytes(content[:-150])
    slice_ = Slice(first, START, START + len(SET))
    assert b"".join(p.data for p in read_stream(tape.folder, [slice_])) == SET


def test_a_snapshot_is_read_back(tape: Tape) -> None:
    [snapshot] = tape.folder.catalogue().snapshots
    content = b"".join(read_snapshot(tape.folder, snapshot))
    assert content == rdb((0, "key", "old", None))
    path = Path(tape.folder.url) / snapshot.name.rdb
    assert content == decompressed(path.read_bytes())


# Points.


def test_any_offset_rounds_down_to_the_boundary_before_and_says_so(tape: Tape) -> None:
    for offset in range(START, END + 1):
        boundary = max(b for b in BOUNDARIES if b <= offset)
        point = ToOffset(offset)
        found = resolved(tape, point)
        assert found.plan.offset == boundary
        assert found.was_cut == (boundary < offset)
        slices = found.plan.slices
        assert slices == () if boundary == START else slices[-1].end == boundary
        assert sum(s.end - s.start for s in slices) == boundary - START
        notes = notes_on(point, found)
        if boundary < offset:
            assert len(notes) == 1
            assert f"offset {offset} is within a command or transaction" in notes[0]
            assert str(boundary) in notes[0]
        else:
            assert notes == []


def test_the_time_of_an_offset_is_when_it_was_received(tape: Tape) -> None:
    times = {
        boundary: resolved(tape, ToOffset(boundary)).time for boundary in BOUNDARIES
    }
    seconds = [0, 1, 2, 5, 9, 9.5]
    wanted = [THEN + int(1000 * second) for second in seconds]
    assert list(times.values()) == wanted
    # Rounded down to the end of a segment, or of the snapshot, it is the time of that.
    for boundary in (START, AFTER_MULTI):
        assert resolved(tape, ToOffset(boundary + 3)).time == times[boundary]


@pytest.mark.parametrize(
    ("second", "boundary"),
    [
        (0, START),
        (0.999, START),
        (1, START + len(SET)),
        (1.999, START + len(SET)),
        (2, IN_MULTI),
        (3, IN_MULTI),
        (4.5, IN_MULTI),
        (5, AFTER_MULTI),
        (6, AFTER_MULTI),
        (8.999, AFTER_MULTI),
        (9, AFTER_MULTI + len(SET)),
        (9.499, AFTER_MULTI + len(SET)),
        (9.5, END),
    ],
)
def test_a_time_means_what_was_received_by_then(
    tape: Tape, second: float, boundary: int
) -> None:
    found = resolved(tape, ToTime(THEN + int(second * 1000)))
    assert found.plan.offset == boundary
    assert found.time <= THEN + int(second * 1000)


def test_a_wide_interval_of_receipt_is_told(tape: Tape) -> None:
    point = ToTime(THEN + 9000)
    [note] = notes_on(point, resolved(tape, point))
    assert "2023-11-14T22:13:29.000Z was written some time after" in note
    assert "2023-11-14T22:13:26.000Z" in note
    point = ToTime(THEN + 9500)
    assert notes_on(point, resolved(tape, point)) == []


def test_what_is_late_was_written_at_any_time_since_the_lateness_began(
    tmp_path: Path,
) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.segment([(THEN + 1000, SET)])
    late = tape.segment(
        [(THEN + 3_600_000, SET), (THEN + 3_600_100, SET)],
        [(THEN + 3_600_200, SET), (THEN + 3_600_300, SET)],
        late_since=THEN + 1000,
    )
    tape.segment([(THEN + 3_600_400, SET), (THEN + 3_600_500, SET)])
    times = [1000, 3_600_000, 3_600_100, 3_600_200, 3_600_300, 3_600_400, 3_600_500]
    for number, time in enumerate(times, 1):
        found = resolved(tape, ToTime(THEN + time))
        assert found.plan.offset == START + number * len(SET)
        assert found.time == THEN + time
        after = THEN if number == 1 else THEN + 1000
        # Abreast again: from the last receipt of what was late on.
        after = THEN + times[number - 2] if number > 5 else after
        assert found.last_written_after == after
    for limit in range(late.start, late.end + 1):
        boundary = find_boundary(tape.folder, late, limit)
        assert boundary.since == THEN + 1000
        assert boundary.time >= THEN + 1000


def test_the_receipt_of_a_boundary_between_two_segments_is_in_the_first(
    tmp_path: Path,
) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.segment([(THEN + 1000, SET)], [(THEN + 5000, SET)])
    tape.segment([(THEN + 9000, SET[:9])], [(THEN + 9500, SET[9:])], late_since=THEN)
    found = resolved(tape, ToTime(THEN + 9100))
    assert found.plan.offset == START + 2 * len(SET)
    assert (found.time, found.last_written_after) == (THEN + 5000, THEN + 1000)


def test_the_latest_is_the_end(tape: Tape) -> None:
    found = resolved(tape, ToLatest())
    assert (found.plan.offset, found.was_cut) == (END, False)


def test_what_two_agents_recorded_is_read_once(tape: Tape, tmp_path: Path) -> None:
    # The second agent was there from the end of the first command on, and longer.
    other = Tape(tmp_path / "other", start=START + len(SET), time=THEN + 1000)
    other.segment([(THEN + 20_000, STREAM[len(SET) :] + SET)])
    for name in segments_of(other):
        tape.folder.put(name.path, Path(other.folder.url, name.path))
    for offset, end in ((END + len(SET), END + len(SET)), (END + 3, END)):
        plan = resolved(tape, ToOffset(offset)).plan
        assert plan.offset == end
        data = b"".join(p.data for p in read_stream(tape.folder, plan.slices))
        assert data == (STREAM + SET)[: end - START]


def test_the_boundary_before_any_offset_of_a_segment_is_found(tmp_path: Path) -> None:
    tape = Tape(tmp_path, db=4).snapshot()
    turn = command("SELECT", 7)
    name = tape.segment(
        [(THEN + 1000, SET + SET[:10]), (THEN + 2000, SET[10:] + turn)],
        [(THEN + 3000, SET[:5])],
        [(THEN + 4000, SET[5:])],
    )
    expected = [
        Boundary(START, 4, THEN, THEN),
        Boundary(START + len(SET), 4, THEN + 1000, THEN),
        Boundary(START + 2 * len(SET), 4, THEN + 2000, THEN + 1000),
        Boundary(START + 2 * len(SET) + len(turn), 7, THEN + 2000, THEN + 1000),
        Boundary(tape.end, 7, THEN + 4000, THEN + 3000),
    ]
    for limit in range(START, tape.end + 1):
        before = [boundary for boundary in expected if boundary.offset <= limit]
        assert find_boundary(tape.folder, name, limit) == before[-1]


def test_no_boundary_is_found_in_what_cannot_be_read(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    name = tape.segment([(THEN, SET + b"+what is this?")])
    with pytest.raises(PointError, match=f"{START} can be restored"):
        find_boundary(tape.folder, name, tape.end - 1)
    path = Path(tape.folder.url, name.path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(VerificationError, match="is damaged"):
        find_boundary(tape.folder, name, START)
    path.unlink()
    with pytest.raises(VerificationError, match="is missing"):
        find_boundary(tape.folder, name, START)


def test_a_stream_that_is_no_commands_can_be_restored_up_to_there(
    tmp_path: Path,
) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.segment([(THEN + 1, SET)], [(THEN + 2, b"what is this\r\n" + SET)])
    assert resolved(tape, ToOffset(START + len(SET))).plan.offset == START + len(SET)
    with pytest.raises(PointError, match=f"{START + len(SET)} can be restored"):
        resolved(tape, ToOffset(START + len(SET) + 5))


# Damage.


def read_everything(tape: Tape) -> bytes:
    catalogue = tape.folder.catalogue()
    plan = choose(catalogue, ToOffset(END))
    data = b"".join(read_snapshot(tape.folder, plan.snapshot))
    return data + b"".join(p.data for p in read_stream(tape.folder, plan.slices))


def objects_of(tape: Tape) -> list[str]:
    return [path for path in tape.folder.list() if path.endswith((".seg", ".zst"))]


def test_any_byte_that_changed_is_found_and_the_file_is_named(tape: Tape) -> None:
    whole = read_everything(tape)
    harmless = 0
    for path in objects_of(tape):
        file = Path(tape.folder.url, path)
        content = file.read_bytes()
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            try:
                assert read_everything(tape) == whole
                harmless += 1
            except VerificationError as error:
                found = str(error)
                assert f"{path} is damaged" in found
        file.write_bytes(content)
    # A bit of a Zstandard frame's header that nothing uses: it is in rdb.zst.
    assert harmless == 1


def test_any_segment_that_was_cut_short_or_went_on_is_named(tape: Tape) -> None:
    for path in (name.path for name in segments_of(tape)):
        file = Path(tape.folder.url, path)
        content = file.read_bytes()
        for changed in (*(content[:n] for n in range(len(content))), content + b"\0"):
            file.write_bytes(changed)
            with pytest.raises(VerificationError, match=f"{path} is damaged"):
                read_everything(tape)
        file.write_bytes(content)


def test_a_snapshot_whose_length_is_another_is_not_there(tape: Tape) -> None:
    [path] = [path for path in objects_of(tape) if path.endswith(".zst")]
    file = Path(tape.folder.url, path)
    content = file.read_bytes()
    for changed in (content[:-1], b"", content + b"\0"):
        file.write_bytes(changed)
        catalogue = tape.folder.catalogue()
        assert catalogue.snapshots == []
        assert path in catalogue.problems[0]
        with pytest.raises(PointError, match="nothing can be restored"):
            read_everything(tape)


def test_a_snapshot_that_grew_behind_our_back_is_read_no_further(tape: Tape) -> None:
    [snapshot] = tape.folder.catalogue().snapshots
    file = Path(tape.folder.url, snapshot.name.rdb)
    content = file.read_bytes()
    for changed in (content[: len(content) // 2], b""):
        file.write_bytes(changed)
        with pytest.raises(VerificationError, match=r"rdb\.zst is damaged"):
            list(read_snapshot(tape.folder, snapshot))
    file.unlink()
    with pytest.raises(VerificationError, match=r"rdb\.zst is missing"):
        list(read_snapshot(tape.folder, snapshot))


def test_a_segment_under_anothers_name_is_found(tape: Tape) -> None:
    first, second = (Path(tape.folder.url, name.path) for name in segments_of(tape))
    first.write_bytes(second.read_bytes())
    with pytest.raises(VerificationError, match="another segment than its name says"):
        read_everything(tape)


def test_a_segment_that_ends_elsewhere_than_its_name_says_is_found(tape: Tape) -> None:
    _, last = segments_of(tape)
    longer = SegmentName(last.replid, last.start, last.end + 9, last.first, last.last)
    folder = Path(tape.folder.url)
    (folder / last.path).rename(folder / longer.path)
    plan = choose(tape.folder.catalogue(), ToOffset(END + 9))
    with pytest.raises(VerificationError, match="ends elsewhere than its name says"):
        list(read_stream(tape.folder, plan.slices))


def test_a_segment_that_is_gone_is_a_hole_or_named(tape: Tape) -> None:
    catalogue = tape.folder.catalogue()
    plan = choose(catalogue, ToOffset(END))
    first, _ = segments_of(tape)
    Path(tape.folder.url, first.path).unlink()
    with pytest.raises(VerificationError, match=f"{first.path} is missing"):
        list(read_stream(tape.folder, plan.slices))
    with pytest.raises(PointError, match=f"the last that can be restored is {START}"):
        resolved(tape, ToOffset(END))


@pytest.mark.parametrize("kind", ["snapshots", "histories"])
def test_a_damaged_document_is_named_wherever_the_rest_leads(
    tape: Tape, kind: str
) -> None:
    [path] = [
        path
        for path in tape.folder.list()
        if path.startswith(kind) and path.endswith(".json")
    ]
    file = Path(tape.folder.url, path)
    content = file.read_bytes()
    for changed in (b"", b"{}", content[:-3], b"\xff" + content):
        file.write_bytes(changed)
        if kind == "histories":
            # All that is lost is how the history began.
            assert any(str(file) in note for note in tape.job().notes)
        else:
            with pytest.raises(PointError, match=str(file)):
                tape.job()
