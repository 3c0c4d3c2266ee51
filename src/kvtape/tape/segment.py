"""The segment file: the stream bytes [start, end) of one history, as Zstandard frames.

docs/format.md is the specification, with the byte tables; the names here are the same.
A segment is

    header  (facts  data)*  [ending  seek table]

where data is an ordinary zstd frame of stream bytes and everything else is a skippable
frame, so that `zstd -dc` prints the stream and nothing else. The facts about a data
frame stand before it and are written with it. A file without an ending is still being
written, or was when its writer died: all its whole frames are good, and what follows
the last of them is cut.

No bit of a finished segment can change unseen. The facts have a checksum of their own;
the stream bytes have two, zstd's and one in the facts; and so has the data frame as it
is stored, since some bits of a zstd frame change nothing that comes out of it.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import accumulate
from typing import Final, Self

import zstandard

from kvtape.replication.tracker import Summary
from kvtape.tape import facts as layout
from kvtape.tape.facts import (
    FORMAT_VERSION,
    ClockDifference,
    Ending,
    Facts,
    Header,
    Mark,
    SegmentError,
    crc64,
)

__all__ = [
    "FORMAT_VERSION",
    "MAX_FRAME",
    "NEED_DATA",
    "ClockDifference",
    "Ending",
    "Facts",
    "Frame",
    "Header",
    "Index",
    "Mark",
    "NeedData",
    "Parser",
    "Part",
    "SegmentError",
    "Writer",
    "crc64",
]

# How many stream bytes are gathered into one data frame: what a reader has to hold in
# memory, and to decompress to reach any one offset. What is received at once is not cut
# for it, so a frame may have more, but never twice as many.
MAX_FRAME = 1024 * 1024

# All magics of skippable frames but the seek table's own are free to use.
HEADER = 0x184D2A50
FACTS = 0x184D2A51
ENDING = 0x184D2A52
SEEK_TABLE = 0x184D2A5E

_SEEKABLE_MAGIC = 0x8F92EAB1

# Recording must keep up with any primary; a slower level is for a later rewrite. Level
# -1 takes 0.6 of the time on random values and leaves them as long as level 1 does, but
# leaves text a third longer for a tenth less. So it is for what hardly shrinks anyway.
_LEVEL, _FASTER_LEVEL = 1, -1
_HARDLY = 0.6

_FRAME = struct.Struct("<II")
_SEEK_ENTRY = struct.Struct("<II")
_SEEK_FOOTER = struct.Struct("<IBI")

# Frames of ours are below 2 MiB; a length beyond this is damage, and not worth waiting
# for the bytes.
_MAX_OWN = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """A data frame as it is stored, and the facts that stand before it."""

    facts: Facts
    stored: bytes

    def stream(self) -> bytes:
        """Return the stream bytes; SegmentError if they are not what was recorded."""
        facts = self.facts
        if crc64.calc(self.stored) != facts.stored_crc:
            raise SegmentError(f"the frame at offset {facts.start} is damaged")
        try:
            # It says how long its content is, and zstandard allocates whatever it says.
            length = zstandard.get_frame_parameters(self.stored).content_size
            if length == facts.end - facts.start:
                data = zstandard.ZstdDecompressor().decompress(
                    self.stored, allow_extra_data=False
                )
                if crc64.calc(data) == facts.crc:
                    return data
        except zstandard.ZstdError as error:
            raise SegmentError(
                f"the frame at offset {facts.start} is no data frame: {error}"
            ) from None
        raise SegmentError(f"the frame at offset {facts.start} holds other bytes")


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
        self.late_since: int | None = None  # if what came last is late
        self.frames = 0
        self._compressors = [
            zstandard.ZstdCompressor(level=level, write_checksum=True)
            for level in (_LEVEL, _FASTER_LEVEL)
        ]
        self._shrinks = True  # what came last did
        self._seek_table: list[tuple[int, int]] = []

    @property
    def can_end(self) -> bool:
        """Whether a segment may end here: with something in it, at a boundary."""
        return self.frames > 0 and self.boundary == self.end

    def header_bytes(self) -> bytes:
        """Return what the file begins with."""
        return self._own_frame(HEADER, layout.pack_header(self.header))

    def frame(  # noqa: PLR0913 each is a fact of its own
        self,
        data: bytes,
        marks: Sequence[Mark],
        boundary: int,
        db: int,
        summary: Summary,
        late_since: int | None = None,
    ) -> bytes:
        """Return the facts and the data frame for the next bytes of the stream.

        late_since is a time (ms): any of them may have been written right after it, if
        it is not None, whatever the marks say.
        Any summary and any number of marks will do: what the facts have no room for is
        left out in a way that makes them coarser, and never wrong.
        """
        stored = self._compressors[not self._shrinks].compress(data)
        facts = Facts(
            start=self.end,
            end=self.end + len(data),
            stored_length=len(stored),
            boundary=boundary,
            db=db,
            # In a late frame there may be bytes of before the lateness, too.
            after=self.last if late_since is None else min(late_since, self.last),
            marks=layout.fitting_marks(marks),
            summary=layout.fitting_summary(summary),
            crc=crc64.calc(data),
            stored_crc=crc64.calc(stored),
            is_late=late_since is not None,
        )
        own = self._own_frame(FACTS, layout.pack_facts(facts))
        self.adopt(facts)
        return own + stored

    def adopt(self, facts: Facts) -> None:
        """Count a frame that is in the file already."""
        length = facts.end - facts.start
        self._seek_table.append((facts.stored_length, length))
        self._shrinks = facts.stored_length < _HARDLY * length
        self.end, self.boundary, self.db = facts.end, facts.boundary, facts.db
        if self.first is None:
            self.first = facts.marks[0].time if facts.marks else self.last
        # Where there are no marks, nothing is known but that it came later.
        self.last = max(self.last, facts.time)
        self.late_since = facts.after if facts.is_late else None
        self.frames += 1

    def adopt_own_frame(self, stored_length: int) -> None:
        """Count a skippable frame that is in the file already."""
        self.adopt_entry(stored_length, 0)

    def adopt_entry(self, stored_length: int, length: int) -> None:
        """Count a frame of which only the seek table's entry is known."""
        self._seek_table.append((stored_length, length))

    def ending(self) -> bytes:
        """Return what a finished segment ends with."""
        first = self.last if self.first is None else self.first
        ending = Ending(self.end, self.db, first, self.last, self.frames)
        return self._own_frame(ENDING, layout.pack_ending(ending)) + self.seek_table()

    @property
    def seek_table_size(self) -> int:
        """How long the seek table is, without the header of its skippable frame."""
        return len(self._seek_table) * _SEEK_ENTRY.size + _SEEK_FOOTER.size

    def seek_table(self) -> bytes:
        """Return the seek table of the frames so far.

        The public Zstandard Seekable Format: a table that leaves out any frame of the
        file, if only a skippable one, is rejected by its readers.
        """
        entries = b"".join(_SEEK_ENTRY.pack(*entry) for entry in self._seek_table)
        footer = _SEEK_FOOTER.pack(len(self._seek_table), 0, _SEEKABLE_MAGIC)
        return _frame(SEEK_TABLE, entries + footer)

    def _own_frame(self, magic: int, content: bytes) -> bytes:
        framed = _frame(magic, layout.with_crc(content))
        self.adopt_own_frame(len(framed))
        return framed


@dataclass(frozen=True, slots=True)
class Index:
    """Where each data frame of a finished segment is: its seek table, added up.

    starts has the offset that each data frame begins at, positions where the facts
    before it stand in the file. Nothing of it is verified but that it adds up to the
    file; whoever reads a frame by it verifies that.
    """

    starts: tuple[int, ...]
    positions: tuple[int, ...]
    entries: tuple[tuple[int, int], ...]

    def frame_at(self, offset: int) -> int:
        """Return the number of the frame that the byte behind an offset is in."""
        return max(0, bisect_right(self.starts, offset) - 1)

    def facts_at(self, frame: int) -> tuple[int, int]:
        """Return where in the file the facts of a frame stand, and their length."""
        return self.positions[frame], self.entries[1 + 2 * frame][0]


# The end of a file that tells how much more of it the seek table takes.
FOOTER_SIZE = _SEEK_FOOTER.size


def seek_table_size(footer: bytes) -> int:
    """Return how long the seek table is that ends with a footer, with its header."""
    count, _, magic = _SEEK_FOOTER.unpack(footer)
    if magic != _SEEKABLE_MAGIC:
        raise SegmentError("it has no seek table: it was cut short, or never finished")
    return _FRAME.size + int(count) * _SEEK_ENTRY.size + FOOTER_SIZE


def read_index(table: bytes, start: int, end: int, size: int) -> Index:
    """Read the seek table at the end of the segment [start, end), a file of size bytes.

    SegmentError if it does not add up.
    """
    content = table[_FRAME.size : -FOOTER_SIZE]
    if len(content) % _SEEK_ENTRY.size:
        raise SegmentError("its seek table is damaged")
    entries = tuple(_SEEK_ENTRY.iter_unpack(content))
    ends = list(accumulate(length for length, _ in entries))
    offsets = list(accumulate((length for _, length in entries), initial=start))
    if not ends or ends[-1] + len(table) != size or offsets[-1] != end:
        raise SegmentError("its seek table is damaged")
    # The header, facts and data in turn, the ending.
    if [n for n, (_, length) in enumerate(entries) if length] != [
        *range(2, len(entries) - 1, 2)
    ]:
        raise SegmentError("its seek table is damaged")
    starts = tuple(offsets[2:-2:2])
    return Index(starts, tuple(ends[0:-2:2]), entries)


def read_facts_frame(content: bytes, start: int) -> Facts:
    """Read a frame of facts by itself, of the data frame that begins at start."""
    own = content[_FRAME.size :]
    # The length is the table's, and so may be anything.
    if content != _frame(FACTS, own):
        raise SegmentError("its seek table is damaged")
    facts = layout.unpack_facts(layout.without_crc(own, start))
    if facts.start != start:
        raise SegmentError("its seek table is damaged")
    return facts


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

    @classmethod
    def resumed(cls, header: Header, index: Index, frame: int) -> Self:
        """Return a parser that stands before a frame of a segment, facts and all.

        What comes before it is not verified; the rest is, with the ending.
        """
        parser = cls()
        parser.position = index.positions[frame]
        writer = parser.writer = Writer(header)
        # The header, and facts and data of each frame before this one.
        for entry in index.entries[: 1 + 2 * frame]:
            writer.adopt_entry(*entry)
        writer.end = index.starts[frame]
        writer.frames = frame
        return parser

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
        if magic not in (HEADER, FACTS, ENDING, SEEK_TABLE) or size > self._most(magic):
            raise SegmentError(f"there is no frame of a segment at {self.position}")
        length = _FRAME.size + size
        if left < length:
            return None
        payload = self._buffer[self._taken + _FRAME.size : self._taken + length]
        self._taken += length
        return magic, payload, length

    def _most(self, magic: int) -> int:
        """Return the most bytes that a frame of this kind can have here."""
        if magic == SEEK_TABLE and self.writer is not None:
            return self.writer.seek_table_size
        return _MAX_OWN

    def _read_own(self, magic: int, payload: bytes, length: int) -> Part | None:
        """Read a frame of ours; None for those that are not a part of their own."""
        if magic == SEEK_TABLE:
            self._check_seek_table(payload)
            self.position += length
            return None
        content = layout.without_crc(payload, self.position)
        if (magic == HEADER) != (self.writer is None) or self._ending is not None:
            raise SegmentError(f"the frame at {self.position} is out of its place")
        if magic == HEADER:
            header = layout.unpack_header(content)
            self.writer = Writer(header)
            self.writer.adopt_own_frame(length)
            return header
        if magic == FACTS:
            self._facts = layout.unpack_facts(content)
            self._facts_length = length
            return None
        self._ending = layout.unpack_ending(content)
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
