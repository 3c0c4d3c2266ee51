"""A segment is its stream however it is split, cut or read; damage is always seen.

What is recorded is read years later, perhaps without kvtape: so plain zstd, a seekable
reader and a program that knows nothing but docs/format.md read it here, too.
"""

from __future__ import annotations

import io
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import VerificationError
from kvtape.replication.tracker import NO_DB, Summary
from kvtape.tape import facts as layout
from kvtape.tape import key_filter, segment
from kvtape.tape.segment import (
    FOOTER_SIZE,
    NEED_DATA,
    ClockDifference,
    Ending,
    Facts,
    Frame,
    Header,
    Index,
    Mark,
    Parser,
    Part,
    SegmentError,
    Writer,
    crc64,
    read_facts_frame,
    read_index,
    seek_table_size,
)

SPECIFICATION = Path(__file__).parents[1] / "docs" / "format.md"

HEADER = Header(
    "8f1c0d6b2e7a4935c1d8e0f7a6b5c4d3e2f10912", 1042, NO_DB, 1_777_604_400_000
)


@dataclass(frozen=True)
class Piece:
    """What goes into one frame. marks are lengths and ms, each after the one before."""

    data: bytes
    marks: tuple[tuple[int, int], ...] = ()
    unfinished: int = 0
    db: int = 0
    summary: Summary = field(default_factory=Summary)
    late_since: int | None = None


PIECES = (
    Piece(
        b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\n",
        marks=((23, 2), (20, 15)),
        unfinished=24,
        db=3,
        summary=Summary({b"SELECT": 2}, 3, 1),
    ),
    Piece(
        b"abc\r\n" + b"*1\r\n$4\r\nPING\r\n" * 20,
        marks=((285, 40),),
        db=3,
        summary=Summary({b"SET": 3, b"PING": 1}, NO_DB, 21),
    ),
)


def pieces_strategy() -> st.SearchStrategy[Piece]:
    names = st.dictionaries(st.binary(min_size=1, max_size=64), st.integers(0, 255))
    dbs = st.integers(-1, 2**31 - 1)
    return st.builds(
        Piece,
        data=st.binary(max_size=200)
        | st.binary(min_size=1).map(lambda data: data * 50),
        marks=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 10**6))).map(tuple),
        unfinished=st.integers(0, 100),
        db=dbs,
        summary=st.builds(
            Summary, names, dbs, st.integers(0, 2**32 - 1), st.booleans()
        ),
        late_since=st.none() | st.integers(0, 10**14),
    )


headers = st.builds(
    Header,
    st.text("0123456789abcdef", min_size=40, max_size=40),
    st.integers(0, 2**62),
    st.integers(-1, 2**31 - 1),
    st.integers(0, 10**14),
    st.none() | st.builds(ClockDifference, *[st.integers(-(2**63), 2**63 - 1)] * 2),
)


def append(writer: Writer, piece: Piece) -> bytes:
    marks = []
    offset, time = writer.end, writer.last
    for length, passed in piece.marks:
        offset, time = offset + length, time + passed
        marks.append(Mark(offset, time))
    boundary = max(writer.boundary, writer.end + len(piece.data) - piece.unfinished)
    return writer.frame(
        piece.data, marks, boundary, piece.db, piece.summary, piece.late_since
    )


def write(
    pieces: Iterable[Piece] = PIECES, header: Header = HEADER, *, finished: bool = True
) -> bytes:
    writer = Writer(header)
    content = writer.header_bytes()
    content += b"".join(append(writer, piece) for piece in pieces)
    return content + writer.ending() if finished else content


def drain(parser: Parser) -> Iterator[Part]:
    while (part := parser.next_part()) is not NEED_DATA:
        yield part


def read(content: bytes) -> list[Part]:
    """Return all parts of a finished file, and check all that can be checked."""
    parser = Parser()
    parser.receive_data(content)
    parts = list(drain(parser))
    parser.receive_end()
    assert parser.position == len(content)
    assert parser.is_finished
    for part in parts:
        if isinstance(part, Frame):
            part.stream()
    return parts


def stream_of(parts: Iterable[Part]) -> bytes:
    return b"".join(part.stream() for part in parts if isinstance(part, Frame))


EXAMPLE = write()
STREAM = b"".join(piece.data for piece in PIECES)
PARTS = read(EXAMPLE)


def frame_bounds(content: bytes) -> list[int]:
    """Return where each part of a file ends, according to a parser fed with it all."""
    parser = Parser()
    parser.receive_data(content)
    return [parser.position for _ in drain(parser)]


# Round trips.


@given(headers, st.lists(pieces_strategy(), max_size=4))
def test_a_segment_reads_back_as_it_was_written(
    header: Header, pieces: list[Piece]
) -> None:
    first, *frames, ending = read(write(pieces, header))
    assert first == header
    offset, time, times = header.start, header.time, []
    for piece, frame in zip(pieces, frames, strict=True):
        assert isinstance(frame, Frame)
        facts = frame.facts
        assert frame.stream() == piece.data
        assert (facts.start, facts.end) == (offset, offset + len(piece.data))
        since = piece.late_since
        assert facts.db == piece.db
        assert facts.is_late == (since is not None)
        assert facts.after == (time if since is None else min(since, time))
        assert facts.summary == piece.summary
        lengths = [mark.offset for mark in facts.marks]
        assert [b - a for a, b in zip([offset, *lengths], lengths, strict=False)] == [
            length for length, _ in piece.marks
        ]
        time += sum(passed for _, passed in piece.marks)
        if facts.marks or not facts.is_late:
            assert facts.time == time
        times += [mark.time for mark in facts.marks] or [time]
        offset = facts.end
    db = pieces[-1].db if pieces else header.db
    begun = times[0] if times else header.time
    assert ending == Ending(offset, db, begun, time, len(pieces))


def test_the_example_is_what_it_should_be() -> None:
    header, first, second, ending = PARTS
    assert header == HEADER
    assert isinstance(first, Frame)
    assert isinstance(second, Frame)
    assert first.facts.boundary == 1042 + 23
    assert second.facts.boundary == second.facts.end == 1042 + len(STREAM)
    assert first.facts.marks == (
        Mark(1065, 1_777_604_400_002),
        Mark(1085, 1_777_604_400_017),
    )
    assert second.facts.after == first.facts.time == 1_777_604_400_017
    assert ending == Ending(1374, 3, 1_777_604_400_002, 1_777_604_400_057, 2)


def test_a_segment_at_the_epoch_keeps_its_times() -> None:
    header = replace(HEADER, time=0)
    ending = read(write([Piece(b"x", ((1, 0),)), Piece(b"y", ((1, 5),))], header))[-1]
    assert isinstance(ending, Ending)
    assert (ending.first, ending.last) == (0, 5)


def test_a_late_frame_says_since_when_and_the_next_goes_on_from_its_marks() -> None:
    pieces = [
        Piece(b"a", ((1, 10),)),
        Piece(b"b", ((1, 3_600_000),), late_since=HEADER.time + 10),
        # The lateness began after bytes that came before, and are in the same frame.
        Piece(b"c", ((1, 10),), late_since=HEADER.time + 9_000_000),
        Piece(b"d", (), late_since=HEADER.time + 10),
        Piece(b"e", ((1, 10),)),
    ]
    frames = [part.facts for part in read(write(pieces)) if isinstance(part, Frame)]
    last = HEADER.time + 3_600_020
    assert [(facts.is_late, facts.after) for facts in frames] == [
        (False, HEADER.time),
        (True, HEADER.time + 10),
        (True, last - 10),
        (True, HEADER.time + 10),
        (False, last),
    ]
    assert frames[-1].time == last + 10


def test_a_segment_may_end_only_at_a_boundary_and_with_something_in_it() -> None:
    writer = Writer(HEADER)
    assert not writer.can_end
    append(writer, PIECES[0])
    assert not writer.can_end
    append(writer, PIECES[1])
    assert writer.can_end


# Splitting, cutting and going on.


def test_a_file_is_the_same_parts_byte_by_byte() -> None:
    parser = Parser()
    parts: list[Part] = []
    for position in range(len(EXAMPLE)):
        parser.receive_data(EXAMPLE[position : position + 1])
        parts += drain(parser)
    parser.receive_end()
    assert parts == PARTS


def test_a_file_is_the_same_parts_cut_in_two_anywhere() -> None:
    for cut in range(len(EXAMPLE) + 1):
        parser = Parser()
        parser.receive_data(EXAMPLE[:cut])
        parts = list(drain(parser))
        parser.receive_data(EXAMPLE[cut:])
        parts += drain(parser)
        parser.receive_end()
        assert parts == PARTS


def test_what_a_crash_left_is_whole_parts_and_a_place_to_cut() -> None:
    bounds = [0, *frame_bounds(EXAMPLE)]
    for cut in range(len(EXAMPLE)):
        parser = Parser()
        parser.receive_data(EXAMPLE[:cut])
        parts = list(drain(parser))
        assert parts == PARTS[: len(parts)]
        assert parser.position == max(bound for bound in bounds if bound <= cut)
        assert parser.position == bounds[len(parts)]
        assert parser.next_part() is NEED_DATA
        with pytest.raises(SegmentError, match="cut short"):
            parser.receive_end()


@given(headers, st.lists(pieces_strategy(), max_size=4), st.data())
def test_a_cut_file_goes_on_as_if_it_had_never_been_cut(
    header: Header, pieces: list[Piece], data: st.DataObject
) -> None:
    content = write(pieces, header)
    unfinished = len(write(pieces, header, finished=False))
    cut = data.draw(st.integers(len(write([], header, finished=False)), unfinished))
    parser = Parser()
    parser.receive_data(content[:cut])
    left = [part for part in drain(parser) if isinstance(part, Frame)]
    writer = parser.writer
    assert writer is not None
    again = content[: parser.position]
    again += b"".join(append(writer, piece) for piece in pieces[len(left) :])
    assert again + writer.ending() == content


def test_a_cut_file_goes_on_at_the_level_that_it_had() -> None:
    hard = bytes(random.Random(1).choices(range(64), k=20_000))
    text = b"".join(b"%d, %d; " % (n, n * n) for n in range(2000))
    pieces = [Piece(hard), Piece(text), Piece(text)]
    content = write(pieces)
    _, _, second, third, _ = read(content)
    assert isinstance(second, Frame)
    assert isinstance(third, Frame)
    assert second.stored != third.stored
    parser = Parser()
    parser.receive_data(content)
    assert [type(parser.next_part()) for _ in range(2)] == [Header, Frame]
    assert parser.writer is not None
    again = content[: parser.position]
    again += b"".join(append(parser.writer, piece) for piece in pieces[1:])
    assert again + parser.writer.ending() == content


def test_a_finished_file_can_go_on_without_its_ending() -> None:
    """A crash after the ending was written, and before the file was queued."""
    parser = Parser()
    parser.receive_data(EXAMPLE)
    *_, last = (parser.position for part in drain(parser) if isinstance(part, Frame))
    assert EXAMPLE[:last] == write(finished=False)


# Damage.


def test_a_flipped_bit_is_seen_wherever_it_is() -> None:
    for position in range(len(EXAMPLE)):
        for bit in range(8):
            damaged = bytearray(EXAMPLE)
            damaged[position] ^= 1 << bit
            with pytest.raises(SegmentError):
                read(bytes(damaged))


def test_a_flipped_bit_is_seen_in_a_frame_with_a_window() -> None:
    """Its frame header can say many sizes of window that all decompress the same."""
    content = write([Piece(b"x" * 2_000_000)])
    assert len(content) < 1000
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            with pytest.raises(SegmentError):
                read(bytes(damaged))


@pytest.mark.parametrize(
    "rest",
    [b"\x00", EXAMPLE[:1], EXAMPLE, zstandard.compress(b"more"), write([])[-17:]],
)
def test_what_follows_the_end_is_an_error(rest: bytes) -> None:
    parser = Parser()
    parser.receive_data(EXAMPLE + rest)
    with pytest.raises(SegmentError, match=f"goes on after its end at {len(EXAMPLE)}"):
        list(drain(parser))
    assert parser.position == len(EXAMPLE)


def test_a_file_without_an_ending_is_said_to_be_none() -> None:
    parser = Parser()
    parser.receive_data(write(finished=False))
    assert len(list(drain(parser))) == 3
    with pytest.raises(SegmentError, match="it has no ending"):
        parser.receive_end()


@given(st.binary(max_size=200), st.integers(0, len(EXAMPLE)))
def test_garbage_is_parts_or_a_segment_error(garbage: bytes, cut: int) -> None:
    for content in (garbage, EXAMPLE[:cut] + garbage):
        try:
            parts = read(content)
        except SegmentError:
            continue
        assert parts == PARTS


def own_frame(magic: int, content: bytes) -> bytes:
    """Return a skippable frame with a checksum that is right."""
    return struct.pack("<II", magic, len(content) + 8) + content + crc64_of(content)


def crc64_of(content: bytes) -> bytes:
    return struct.pack("<Q", crc64.calc(content))


def ending_frame(end: int, frames: int) -> bytes:
    content = layout.pack_ending(Ending(end, 0, HEADER.time, HEADER.time, frames))
    return own_frame(segment.ENDING, content)


HEADER_FRAME = write([], finished=False)
FRAME = write([PIECES[0]], finished=False)[len(HEADER_FRAME) :]
EMPTY_END = write([])[len(HEADER_FRAME) :]
ENDING_FRAME, EMPTY_TABLE = EMPTY_END[:-33], EMPTY_END[-33:]
ONE_ENTRY = struct.pack("<IIIIIBI", segment.SEEK_TABLE, 17, 101, 0, 1, 0, 0x8F92EAB1)


@given(
    st.sampled_from([segment.HEADER, segment.FACTS, segment.ENDING]),
    st.binary(max_size=120),
    st.sampled_from([b"", HEADER_FRAME, HEADER_FRAME + FRAME]),
)
def test_garbage_with_a_right_checksum_is_a_segment_error_too(
    magic: int, content: bytes, before: bytes
) -> None:
    with pytest.raises(SegmentError):
        read(before + own_frame(magic, content))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (FRAME, "the frame at 0 is out of its place"),
        (ENDING_FRAME, "the frame at 0 is out of its place"),
        (EMPTY_TABLE, "it does not begin with a header"),
        (HEADER_FRAME * 2, "out of its place"),
        (HEADER_FRAME + ONE_ENTRY, "the seek table at 101 is out of its place"),
        (HEADER_FRAME + ENDING_FRAME + FRAME, "out of its place"),
        (HEADER_FRAME + ENDING_FRAME * 2, "out of its place"),
        (HEADER_FRAME + FRAME * 2, "starts at offset 1042, not at 1089"),
        (HEADER_FRAME + FRAME + ENDING_FRAME, "ends at offset 1089 and says .* 1042"),
        (HEADER_FRAME + FRAME + ending_frame(1089, 2), "ends at offset 1089 and says"),
        (HEADER_FRAME + FRAME + ending_frame(1088, 1), "ends at offset 1089 and says"),
        (zstandard.compress(b"x" * 100), "there is no frame of a segment at 0"),
        (own_frame(0x184D2A53, b""), "there is no frame of a segment at 0"),
        (struct.pack("<II", segment.FACTS, 2**31), "there is no frame of a segment"),
        (own_frame(segment.HEADER, b"kvtape"), "it is no segment of kvtape"),
        (own_frame(segment.HEADER, b"x" * 68), "it is no segment of kvtape"),
        (struct.pack("<IIB", segment.HEADER, 1, 0), "the facts at 0 are damaged"),
        (
            HEADER_FRAME + own_frame(segment.FACTS, b"x"),
            "facts of a frame are cut short",
        ),
        (HEADER_FRAME + own_frame(segment.ENDING, b"x"), "its ending is cut short"),
    ],
)
def test_what_is_no_segment_is_refused_with_a_reason(content: bytes, why: str) -> None:
    with pytest.raises(SegmentError, match=why):
        read(content)


def test_the_names_of_a_frame_must_all_be_there() -> None:
    content = layout.pack_facts(
        PARTS[2].facts if isinstance(PARTS[2], Frame) else facts()
    )
    assert layout.unpack_facts(content).summary.names == {b"SET": 3, b"PING": 1}
    with pytest.raises(SegmentError, match="cut short"):
        layout.unpack_facts(content[:-1])


def facts(data: bytes = b"", stored: bytes = b"", length: int | None = None) -> Facts:
    return Facts(
        start=10,
        end=10 + (len(data) if length is None else length),
        stored_length=len(stored),
        boundary=10,
        db=0,
        after=0,
        marks=(),
        summary=Summary(),
        crc=crc64.calc(data),
        stored_crc=crc64.calc(stored),
    )


def test_a_frame_must_hold_what_its_facts_say() -> None:
    """However right the checksum of what is stored is: another program wrote it."""
    good, other = zstandard.compress(b"abc"), zstandard.compress(b"abd")
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    assert Frame(facts(b"abc", good), good).stream() == b"abc"
    with pytest.raises(SegmentError, match="frame at offset 10 holds other bytes"):
        Frame(facts(b"abc", other), other).stream()
    with pytest.raises(SegmentError, match="frame at offset 10 holds other bytes"):
        Frame(facts(b"abc", good, length=2), good).stream()
    with pytest.raises(SegmentError, match="frame at offset 10 holds other bytes"):
        Frame(facts(b"abc", endless), endless).stream()
    with pytest.raises(SegmentError, match="frame at offset 10 is no data frame"):
        Frame(facts(b"abc", good + b"x"), good + b"x").stream()
    with pytest.raises(SegmentError, match="frame at offset 10 is no data frame"):
        Frame(facts(), b"").stream()
    with pytest.raises(SegmentError, match="frame at offset 10 is damaged"):
        Frame(facts(b"abc", good), other).stream()


def test_damage_is_a_verification_error() -> None:
    assert SegmentError("x").exit_status == VerificationError.exit_status == 4


# Versions.


def test_a_later_version_is_refused_with_what_to_do() -> None:
    content = bytearray(layout.pack_header(HEADER))
    struct.pack_into("<H", content, 6, layout.FORMAT_VERSION + 1)
    with pytest.raises(SegmentError, match=r"format version 2, .* use a newer kvtape"):
        read(own_frame(segment.HEADER, bytes(content)))


def test_fields_that_a_later_kvtape_appended_are_ignored() -> None:
    first, _, second, ending = PARTS[0], PARTS[1], PARTS[2], PARTS[3]
    assert isinstance(first, Header)
    assert isinstance(second, Frame)
    assert isinstance(ending, Ending)
    assert layout.unpack_header(layout.pack_header(first) + b"new") == first
    assert layout.unpack_facts(layout.pack_facts(second.facts) + b"new") == second.facts
    assert layout.unpack_ending(layout.pack_ending(ending) + b"new") == ending


# The header of the first release, byte by byte.
OLD_HEADER = (
    b"kvtape\x01\x00"
    b"8f1c0d6b2e7a4935c1d8e0f7a6b5c4d3e2f10912"
    b"\x12\x04\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\x80\x93\x7a\xe1\x9d\x01\x00\x00"
)


@pytest.mark.parametrize("clock", [None, ClockDifference(-7, 2**40)])
def test_a_header_without_the_clock_is_read_and_one_with_it_by_an_older_reader(
    clock: ClockDifference | None,
) -> None:
    assert layout.unpack_header(OLD_HEADER) == HEADER
    frames = write(finished=False).removeprefix(HEADER_FRAME)
    parser = Parser()
    parser.receive_data(own_frame(segment.HEADER, OLD_HEADER) + frames)
    assert list(drain(parser)) == PARTS[:3]
    new = layout.pack_header(replace(HEADER, clock=clock))
    assert new.startswith(OLD_HEADER)
    assert layout.unpack_header(new).clock == clock


# Limits.


@pytest.mark.parametrize("count", [1, 0xFFFF, 0x10000, 0x20000, 200_000])
def test_too_many_marks_are_thinned_out_and_none_is_made_earlier(count: int) -> None:
    marks = [Mark(1042 + n, 1_777_604_400_000 + n) for n in range(1, count + 1)]
    writer = Writer(HEADER)
    content = writer.header_bytes()
    content += writer.frame(b"x" * count, marks, 1042 + count, 0, Summary())
    _, frame, _ = read(content + writer.ending())
    assert isinstance(frame, Frame)
    kept = frame.facts.marks
    assert kept[-1] == marks[-1]
    assert set(kept) <= set(marks)
    assert list(kept) == sorted(kept, key=lambda mark: mark.offset)
    assert min(count, 0x8000) <= len(kept) <= 0xFFFF
    assert len(kept) == count or count > 0xFFFF


@pytest.mark.parametrize(
    "names",
    [
        {b"%d" % n: 1 for n in range(4097)},
        {b"%d" % n: 1 for n in range(70_000)},
        {b"GET": 2, b"x" * 256: 1},
    ],
)
def test_names_that_do_not_fit_are_unknown_names(names: dict[bytes, int]) -> None:
    _, frame, _ = read(write([Piece(b"x", summary=Summary(names, 5, 9))]))
    assert isinstance(frame, Frame)
    assert frame.facts.summary == Summary({}, 5, 9, lost=True)


def test_names_that_just_fit_are_known() -> None:
    names = {b"%0255d" % n: 255 for n in range(4096)}
    _, frame, _ = read(write([Piece(b"x", summary=Summary(names, 5, 9))]))
    assert isinstance(frame, Frame)
    assert frame.facts.summary == Summary(names, 5, 9)


def test_more_words_than_can_be_counted_are_the_most_that_can() -> None:
    _, frame, _ = read(write([Piece(b"x", summary=Summary({b"DEL": 1000}))]))
    assert isinstance(frame, Frame)
    assert frame.facts.summary.names == {b"DEL": 255}


def test_a_seek_table_may_be_longer_than_any_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A day of frames, 200 ms each, has a seek table of 7 MiB."""
    monkeypatch.setattr(segment, "_MAX_OWN", 200)
    pieces = [Piece(b"x", ((1, 200),))] * 100
    assert len(read(write(pieces))) == 102
    table = struct.pack("<II", segment.SEEK_TABLE, 2**31)
    with pytest.raises(SegmentError, match="there is no frame of a segment"):
        read(write(pieces, finished=False) + table)


# Reading without kvtape.


@given(headers, st.lists(pieces_strategy(), max_size=3))
def test_a_zstd_library_reads_the_stream(header: Header, pieces: list[Piece]) -> None:
    for finished in (True, False):
        file = io.BytesIO(write(pieces, header, finished=finished))
        with zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True
        ) as reader:
            assert reader.read() == b"".join(piece.data for piece in pieces)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="there is no zstd here")
def test_the_zstd_program_prints_the_stream_of_a_history(tmp_path: Path) -> None:
    (tmp_path / "1.seg").write_bytes(write(PIECES[:1]))
    (tmp_path / "2.seg").write_bytes(write(PIECES[1:], replace(HEADER, start=1089)))
    done = subprocess.run(
        ["zstd", "-dc", "1.seg", "2.seg"], cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout == STREAM
    subprocess.run(["zstd", "-tq", "1.seg"], cwd=tmp_path, check=True)


class SeekableReader:
    """Reads a file in the Zstandard Seekable Format, from its public specification.

    Written without a look at kvtape's own code.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        count, descriptor, magic = struct.unpack("<IBI", content[-9:])
        assert magic == 0x8F92EAB1
        assert descriptor & 0b0111_1100 == 0, "reserved bits"
        entry_size = 12 if descriptor & 0x80 else 8
        table = len(content) - 9 - count * entry_size - 8
        assert table >= 0
        skippable, size = struct.unpack_from("<II", content, table)
        assert (skippable, size) == (0x184D2A5E, count * entry_size + 9)
        self.frames: list[tuple[int, int, int]] = []  # position, length, content length
        position = 0
        for entry in range(count):
            length, decompressed = struct.unpack_from(
                "<II", content, table + 8 + entry * entry_size
            )
            self.frames.append((position, length, decompressed))
            position += length
        assert position == table, "every frame before the table is in it"

    def read(self, offset: int, length: int) -> bytes:
        """Return decompressed bytes; only the frames they lie in are looked at."""
        found, start = b"", 0
        for position, stored, size in self.frames:
            if size and start < offset + length and offset < start + size:
                data = zstandard.decompress(self.content[position : position + stored])
                assert len(data) == size
                found += data[max(0, offset - start) : offset + length - start]
            start += size
        return found


def test_a_seekable_reader_reads_any_part_of_the_stream() -> None:
    reader = SeekableReader(EXAMPLE)
    for start in range(0, len(STREAM), 7):
        for length in (0, 1, 60, len(STREAM)):
            assert reader.read(start, length) == STREAM[start : start + length]


@given(headers, st.lists(pieces_strategy(), max_size=4))
def test_the_seek_table_lists_every_frame(header: Header, pieces: list[Piece]) -> None:
    content = write(pieces, header)
    frames = SeekableReader(content).frames
    kinds = []
    for position, stored, size in frames:
        (magic,) = struct.unpack_from("<I", content, position)
        kinds.append(magic)
        if magic == 0xFD2FB528:
            frame = content[position : position + stored]
            assert zstandard.get_frame_parameters(frame).content_size == size
        else:
            assert size == 0
            assert struct.unpack_from("<I", content, position + 4) == (stored - 8,)
    data = [segment.FACTS, 0xFD2FB528] * len(pieces)
    assert kinds == [segment.HEADER, *data, segment.ENDING]


# The specification.


def test_the_checksum_is_the_one_that_is_specified() -> None:
    assert f"0x{crc64.calc(b'123456789'):016x}" in SPECIFICATION.read_text()


SIZES = {"u8": "B", "u16": "H", "u32": "I", "i32": "i", "u64": "Q", "i64": "q"}


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Every skippable frame of kvtape", segment._FRAME),
        ("Header", layout._HEADER),
        ("Facts", layout._FACTS),
        ("Mark", layout._MARK),
        ("Name", layout._NAME),
        ("Ending", layout._ENDING),
        ("Seek table entry", segment._SEEK_ENTRY),
        ("Seek table footer", segment._SEEK_FOOTER),
        ("Filter header", struct.Struct(key_filter._HEADER.format + "Q")),
    ],
)
def test_the_byte_tables_are_the_layouts_that_are_used(
    heading: str, expected: struct.Struct
) -> None:
    text = SPECIFICATION.read_text()
    section = re.split(r"\n#+ ", text.partition(f"# {heading}\n")[2])[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.MULTILINE)
    specified, position = "<", 0
    for offset, size, kind in rows:
        assert int(offset) == position
        specified += SIZES.get(kind, f"{size}s")
        position += int(size)
        assert struct.calcsize(specified) == position
    assert specified == expected.format


def test_the_program_of_the_specification_prints_the_times(tmp_path: Path) -> None:
    (program,) = re.findall(
        r"^```python\n(.*?)^```", SPECIFICATION.read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "times.py").write_text(program)
    (tmp_path / "1.seg").write_bytes(EXAMPLE)
    done = subprocess.run(
        [sys.executable, "-I", "times.py", "1.seg"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "1065 2026-05-01T03:00:00.002+00:00",
        "1085 2026-05-01T03:00:00.017+00:00",
        "1374 2026-05-01T03:00:00.057+00:00",
    ]


# The index.


def index_of(content: bytes) -> Index:
    size = seek_table_size(content[-FOOTER_SIZE:])
    end = HEADER.start + sum(len(piece.data) for piece in PIECES)
    return read_index(content[-size:], HEADER.start, end, len(content))


def test_the_index_tells_where_each_frame_is() -> None:
    content = write()
    index = index_of(content)
    assert index.starts == (HEADER.start, HEADER.start + len(PIECES[0].data))
    for number, start in enumerate(index.starts):
        position, length = index.facts_at(number)
        facts = read_facts_frame(content[position : position + length], start)
        assert (facts.start, facts.end - facts.start) == (
            start,
            len(PIECES[number].data),
        )
        for offset in (start, facts.end - 1):
            assert index.frame_at(offset) == number
    assert index.frame_at(HEADER.start - 1) == 0


def test_a_parser_may_begin_at_any_frame() -> None:
    content = write()
    index = index_of(content)
    whole = [part for part in read(content) if isinstance(part, Frame | Ending)]
    for number, position in enumerate(index.positions):
        for size in (1, 7, len(content)):
            parser = Parser.resumed(HEADER, index, number)
            parts: list[Part] = []
            for at in range(position, len(content), size):
                parser.receive_data(content[at : at + size])
                parts += drain(parser)
            parser.receive_end()
            assert parts == whole[number:]
            assert parser.position == len(content)


def read_on(parser: Parser, content: bytes) -> None:
    """Read all that follows, and check all that can be checked."""
    parser.receive_data(content)
    for part in drain(parser):
        if isinstance(part, Frame):
            part.stream()
    parser.receive_end()


def test_a_parser_that_begins_at_a_frame_sees_damage_behind_it() -> None:
    content = write()
    index = index_of(content)
    for at in range(index.positions[1], len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        with pytest.raises(SegmentError):
            read_on(
                Parser.resumed(HEADER, index, 1), bytes(damaged[index.positions[1] :])
            )


@given(st.binary(max_size=80), st.integers(0, 2**63), st.integers(0, 2**63))
def test_garbage_is_no_index(table: bytes, start: int, end: int) -> None:
    with pytest.raises(SegmentError):
        read_index(table, start, end, len(table) + 100)


@given(st.binary(min_size=9, max_size=9))
def test_garbage_is_no_footer(footer: bytes) -> None:
    with pytest.raises(SegmentError, match="it has no seek table"):
        seek_table_size(footer)


@given(st.binary(max_size=200))
def test_garbage_is_no_facts(content: bytes) -> None:
    with pytest.raises(SegmentError):
        read_facts_frame(content, 0)


def test_a_seek_table_that_adds_up_and_is_not_that_of_the_frames_is_damaged() -> None:
    content = write()
    index = index_of(content)
    size = seek_table_size(content[-FOOTER_SIZE:])
    end = HEADER.start + sum(len(piece.data) for piece in PIECES)
    entries = list(index.entries)
    entries[0], entries[1] = entries[1], entries[0]
    entries[2], entries[3] = entries[3], entries[2]
    table = content[-size : -size + 8] + b"".join(
        struct.pack("<II", *entry) for entry in entries
    )
    with pytest.raises(SegmentError, match="seek table is damaged"):
        read_index(table + content[-FOOTER_SIZE:], HEADER.start, end, len(content))
    # Facts that are whole, and of another frame.
    position, length = index.facts_at(1)
    with pytest.raises(SegmentError, match="seek table is damaged"):
        read_facts_frame(content[position : position + length], HEADER.start)


def test_a_seek_table_of_half_an_entry_is_damaged() -> None:
    with pytest.raises(SegmentError, match="seek table is damaged"):
        read_index(bytes(8 + 4 + FOOTER_SIZE), 0, 0, 100)
