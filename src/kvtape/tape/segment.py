"""The segment file: the stream bytes [start, end) of one history, as Zstandard frames.

docs/format.md is the specification, with the byte tables; the names here are the same.
A segment is

    header  (facts  data)*  [ending  seek table]

where data is an ordinary zstd frame of stream bytes and everything else is a skippable
frame, so that `zstd -dc` prints the stream and nothing else. The facts about a data
frame stand before it and are written with it. A file without an ending is still being
written, or was when its writer died: all its whole frames are good, and what follows
the last of them is cut.

Every fact has a checksum (CRC64, as in RDB files) and the stream bytes have two: zstd's
own, and a CRC64 in the facts, which also ties them to their place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import anycrc
import zstandard

from kvtape.errors import VerificationError
from kvtape.replication.tracker import Summary

FORMAT_VERSION = 1

# The most stream bytes in one data frame: what a reader has to hold in memory, and what
# it has to decompress to reach any one offset.
MAX_FRAME = 1024 * 1024

# All magics of skippable frames but the seek table's own are free to use.
HEADER = 0x184D2A50
FACTS = 0x184D2A51
ENDING = 0x184D2A52
SEEK_TABLE = 0x184D2A5E

_SEEKABLE_MAGIC = 0x8F92EAB1

# Recording must keep up with any primary; a slower level is for a later rewrite.
_LEVEL = 1

_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<6sH40sQiQ")
_FACTS = struct.Struct("<QIIQiiIBBHHQQ")
_MARK = struct.Struct("<IQ")
_NAME = struct.Struct("<BB")
_ENDING = struct.Struct("<QiQQI")
_CRC = struct.Struct("<Q")
_SEEK_ENTRY = struct.Struct("<II")
_SEEK_FOOTER = struct.Struct("<IBI")

_MAGIC = b"kvtape"
_LOST = 1

# Our own frames are small; a length beyond this is damage, not a frame to wait for.
_MAX_FACTS = 4 * 1024 * 1024

crc64 = anycrc.Model("CRC64-REDIS")


class SegmentError(VerificationError):
    """The bytes are not a segment, or not the one they were. The path is not known."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment begins with.

    start is a boundary: the end of a command, outside MULTI. db is the database
    selected there, or NO_DB. time is that of the last receipt before start, in ms since
    the epoch, or of the snapshot's announcement: start was reached by then.
    """

    replid: str
    start: int
    db: int
    time: int


@dataclass(frozen=True, slots=True)
class Mark:
    """The stream was received up to offset at time (ms since the epoch)."""

    offset: int
    time: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one data frame, which holds the stream bytes [start, end).

    after is the time of the receipt before the frame's first one: the first mark's
    bytes were written after it. boundary is the last one at or before end, and db the
    database selected there. crc is over the stream bytes.
    """

    start: int
    end: int
    stored_length: int
    boundary: int
    db: int
    after: int
    marks: tuple[Mark, ...]
    summary: Summary
    crc: int

    @property
    def time(self) -> int:
        """When the last byte of it was received, in ms since the epoch."""
        return self.marks[-1].time if self.marks else self.after


@dataclass(frozen=True, slots=True)
class Frame:
    """A data frame as it is stored, and the facts that stand before it."""

    facts: Facts
    stored: bytes

    def stream(self) -> bytes:
        """Return the stream bytes; SegmentError if they are not what was recorded."""
        facts = self.facts
        length = facts.end - facts.start
        try:
            data = zstandard.ZstdDecompressor().decompress(
                self.stored, max_output_size=length, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise SegmentError(
                f"the frame at {facts.start} is damaged: {error}"
            ) from None
        if len(data) != length or crc64.calc(data) != facts.crc:
            raise SegmentError(f"the frame at {facts.start} holds other bytes")
        return data


@dataclass(frozen=True, slots=True)
class Ending:
    """What a finished segment ends with. first and last are times of receipt in ms."""

    end: int
    db: int
    first: int
    last: int
    frames: int


class Writer:
    """Turns stream bytes into the frames of one segment. It writes nothing itself.

    Call header() first, frame() for each piece of the stream in order, ending() last;
    each returns the bytes to append to the file.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self.end = header.start
        self.boundary = header.start
        self.db = header.db
        self.first: int | None = None  # time of the first receipt, in ms
        self.last = header.time
        self.frames = 0
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._seek_table: list[tuple[int, int]] = []

    @property
    def can_end(self) -> bool:
        """Whether a segment may end here: with something in it, at a boundary."""
        return self.frames > 0 and self.boundary == self.end

    def header_bytes(self) -> bytes:
        """Return what the file begins with."""
        header = self.header
        return self._own_frame(
            HEADER,
            _HEADER.pack(
                _MAGIC,
                FORMAT_VERSION,
                header.replid.encode("ascii"),
                header.start,
                header.db,
                header.time,
            ),
        )

    def frame(
        self,
        data: bytes,
        marks: Sequence[Mark],
        boundary: int,
        db: int,
        summary: Summary,
    ) -> bytes:
        """Return the facts and the data frame for the next bytes of the stream."""
        stored = self._compressor.compress(data)
        facts = Facts(
            start=self.end,
            end=self.end + len(data),
            stored_length=len(stored),
            boundary=boundary,
            db=db,
            after=self.last,
            marks=tuple(marks),
            summary=summary,
            crc=crc64.calc(data),
        )
        own = self._own_frame(FACTS, _pack_facts(facts))
        self.adopt(facts)
        return own + stored

    def adopt(self, facts: Facts) -> None:
        """Count a frame that is in the file already."""
        self._seek_table.append((facts.stored_length, facts.end - facts.start))
        self.end, self.boundary, self.db = facts.end, facts.boundary, facts.db
        if self.first is None:
            self.first = facts.marks[0].time if facts.marks else facts.after
        self.last = facts.time
        self.frames += 1

    def adopt_own_frame(self, stored_length: int) -> None:
        """Count a skippable frame that is in the file already."""
        self._seek_table.append((stored_length, 0))

    def ending(self) -> bytes:
        """Return what a finished segment ends with."""
        ending = self._own_frame(
            ENDING,
            _ENDING.pack(
                self.end, self.db, self.first or self.last, self.last, self.frames
            ),
        )
        return ending + self.seek_table()

    def seek_table(self) -> bytes:
        """Return the seek table of the frames so far.

        The public Zstandard Seekable Format: a table that leaves out any frame of the
        file, if only a skippable one, is rejected by its readers.
        """
        entries = b"".join(_SEEK_ENTRY.pack(*entry) for entry in self._seek_table)
        footer = _SEEK_FOOTER.pack(len(self._seek_table), 0, _SEEKABLE_MAGIC)
        return _frame(SEEK_TABLE, entries + footer)

    def _own_frame(self, magic: int, payload: bytes) -> bytes:
        framed = _frame(magic, payload + _CRC.pack(crc64.calc(payload)))
        self.adopt_own_frame(len(framed))
        return framed


class NeedData(Enum):
    """The type of NEED_DATA, so that mypy can tell it from a part of a segment."""

    NEED_DATA = auto()


NEED_DATA: Final = NeedData.NEED_DATA

Part = Header | Frame | Ending


class Parser:
    """Takes a segment file apart: bytes in, Header, Frames and the Ending out.

    What it returns is verified but for the stream bytes, which Frame.stream() does.
    position is where the next part begins: after an error or at the end of the data,
    everything before it is good. is_finished is True once the seek table was read; it
    must then be the end of the file.
    """

    def __init__(self) -> None:
        self.position = 0
        self.is_finished = False
        self.writer: Writer | None = None  # as it stood after the last part returned
        self._buffer = b""
        self._facts: Facts | None = None
        self._facts_length = 0
        self._ending: Ending | None = None
        self._taken = 0  # bytes of the buffer that are parsed

    def receive_data(self, data: bytes) -> None:
        """Add the next bytes of the file."""
        self._buffer = self._buffer[self._taken :] + data
        self._taken = 0

    def receive_end(self) -> None:
        """Raise SegmentError unless the file is whole and finished."""
        if self._taken < len(self._buffer) or self._facts is not None:
            raise SegmentError(f"it is cut short within the part at {self.position}")
        if not self.is_finished:
            raise SegmentError("it has no ending: it was cut short, or never finished")

    def next_part(self) -> Part | NeedData:
        """Return the next part of the file, or NEED_DATA."""
        while True:
            if self._facts is not None:
                return self._next_data(self._facts)
            own = self._next_own_frame()
            if own is None:
                return NEED_DATA
            magic, payload, length = own
            part = self._read_own(magic, payload, length)
            if part is not None:
                self.position += length
                return part

    def _next_own_frame(self) -> tuple[int, bytes, int] | None:
        left = len(self._buffer) - self._taken
        if left and self.is_finished:
            raise SegmentError(f"it goes on after its end at {self.position}")
        if left < _FRAME.size:
            return None
        magic, size = _FRAME.unpack_from(self._buffer, self._taken)
        if magic not in (HEADER, FACTS, ENDING, SEEK_TABLE) or size > _MAX_FACTS:
            raise SegmentError(f"there is no frame of a segment at {self.position}")
        length = _FRAME.size + size
        if left < length:
            return None
        payload = self._buffer[self._taken + _FRAME.size : self._taken + length]
        self._taken += length
        return magic, payload, length

    def _read_own(self, magic: int, payload: bytes, length: int) -> Part | None:
        """Read a frame of ours; None for those that are not a part of their own."""
        if magic == SEEK_TABLE:
            self._check_seek_table(payload)
            self.position += length
            return None
        content = _checked(payload, self.position)
        if (magic == HEADER) != (self.writer is None) or self._ending is not None:
            raise SegmentError(f"the frame at {self.position} is out of its place")
        if magic == HEADER:
            header = _unpack_header(content)
            self.writer = Writer(header)
            self.writer.adopt_own_frame(length)
            return header
        if magic == FACTS:
            self._facts = _unpack_facts(content)
            self._facts_length = length
            return None
        self._ending = Ending(*_unpack(_ENDING, content, self.position))
        self._check_ending(self._ending, length)
        return self._ending

    def _next_data(self, facts: Facts) -> Frame | NeedData:
        end = self._taken + facts.stored_length
        if len(self._buffer) < end:
            return NEED_DATA
        stored = self._buffer[self._taken : end]
        self._taken = end
        writer = self._started()
        if facts.start != writer.end:
            raise SegmentError(
                f"the frame at {self.position} starts at offset {facts.start}, not at "
                f"{writer.end}"
            )
        writer.adopt_own_frame(self._facts_length)
        writer.adopt(facts)
        self.position += self._facts_length + len(stored)
        self._facts = None
        return Frame(facts, stored)

    def _started(self) -> Writer:
        if self.writer is None:
            raise SegmentError("it does not begin with a header")
        return self.writer

    def _check_ending(self, ending: Ending, length: int) -> None:
        writer = self._started()
        if ending.end != writer.end or ending.frames != writer.frames:
            raise SegmentError(
                f"it ends at offset {writer.end} and says that it ends at {ending.end}"
            )
        writer.adopt_own_frame(length)

    def _check_seek_table(self, payload: bytes) -> None:
        writer = self._started()
        if self._ending is None:
            raise SegmentError(f"the seek table at {self.position} is out of its place")
        if _frame(SEEK_TABLE, payload) != writer.seek_table():
            raise SegmentError("its seek table is damaged")
        self.is_finished = True


def _frame(magic: int, payload: bytes) -> bytes:
    return _FRAME.pack(magic, len(payload)) + payload


def _checked(payload: bytes, position: int) -> bytes:
    content, crc = payload[: -_CRC.size], payload[-_CRC.size :]
    if len(crc) != _CRC.size or _CRC.unpack(crc)[0] != crc64.calc(content):
        raise SegmentError(f"the facts at {position} are damaged")
    return content


def _unpack(layout: struct.Struct, content: bytes, position: int) -> tuple[int, ...]:
    if len(content) != layout.size:
        raise SegmentError(f"the facts at {position} have a wrong length")
    return layout.unpack(content)


def _unpack_header(content: bytes) -> Header:
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        raise SegmentError("it is no segment of kvtape")
    _, version, replid, start, db, time = _HEADER.unpack_from(content)
    if version != FORMAT_VERSION:
        raise SegmentError(
            f"it has format version {version}, and this kvtape reads {FORMAT_VERSION}: "
            "use a newer one"
        )
    return Header(replid.decode("ascii", "replace"), start, db, time)


def _pack_facts(facts: Facts) -> bytes:
    summary = facts.summary
    fixed = _FACTS.pack(
        facts.start,
        facts.end - facts.start,
        facts.stored_length,
        facts.boundary,
        facts.db,
        summary.highest_db,
        summary.commands,
        _LOST if summary.lost else 0,
        0,
        len(facts.marks),
        len(summary.names),
        facts.after,
        facts.crc,
    )
    marks = [_MARK.pack(mark.offset - facts.start, mark.time) for mark in facts.marks]
    names = [
        _NAME.pack(len(name), words) + name for name, words in summary.names.items()
    ]
    return b"".join((fixed, *marks, *names))


def _unpack_facts(content: bytes) -> Facts:
    try:
        start, length, stored_length, boundary, db, highest_db, commands, *rest = (
            _FACTS.unpack_from(content)
        )
        flags, _, mark_count, name_count, after, crc = rest
        position = _FACTS.size
        marks = []
        for _ in range(mark_count):
            delta, time = _MARK.unpack_from(content, position)
            marks.append(Mark(start + delta, time))
            position += _MARK.size
        names = {}
        for _ in range(name_count):
            size, words = _NAME.unpack_from(content, position)
            position += _NAME.size
            names[content[position : position + size]] = words
            position += size
    except struct.error as error:
        raise SegmentError(f"the facts of a frame are damaged: {error}") from None
    return Facts(
        start=start,
        end=start + length,
        stored_length=stored_length,
        boundary=boundary,
        db=db,
        after=after,
        marks=tuple(marks),
        summary=Summary(names, highest_db, commands, bool(flags & _LOST)),
        crc=crc,
    )
