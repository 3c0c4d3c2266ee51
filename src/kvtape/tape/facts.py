"""The facts of a segment: what its skippable frames say, and the bytes that say it.

docs/format.md has the byte tables; the names here are the same. Each of these frames
ends with a CRC64 over what stands before it. A later kvtape may append fields: what
follows those that are known here is ignored.

What a frame has no room for is left out in a way that makes the facts coarser and never
wrong, since recording must not stop for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import anycrc

from kvtape.errors import VerificationError
from kvtape.replication.tracker import Summary

FORMAT_VERSION = 1

_MAGIC = b"kvtape"

_HEADER = struct.Struct("<6sH40sQiQBqq")
_FACTS = struct.Struct("<QIIQiiIBBHHQQQ")
_MARK = struct.Struct("<IQ")
_NAME = struct.Struct("<BB")
_ENDING = struct.Struct("<QiQQI")
_CRC = struct.Struct("<Q")

# What a header has at least: what follows it was appended later.
_SHORTEST_HEADER = struct.calcsize("<6sH40sQiQ")

# The flag of a header that says how far the server's clock was ahead.
_CLOCK_KNOWN = 1

# The flags of a frame whose commands could not be followed, and of one whose bytes may
# have been written long before they came.
_LOST = 1
_LATE = 2

# A frame gets a mark each 10 ms, so it gets this many if the disk hangs for 11 minutes.
_MOST_MARKS = 0xFFFF

# Servers have some hundred commands. What has this many, or one with such a name, is no
# stream of commands; the bound keeps the facts of any frame below 2 MiB.
_MOST_NAMES = 4096
_LONGEST_NAME = 0xFF
_MOST_WORDS = 0xFF

crc64 = anycrc.Model("CRC64-REDIS")


class SegmentError(VerificationError):
    """The bytes are not a segment, or not the one they were. The path is not known."""


@dataclass(frozen=True, slots=True)
class ClockDifference:
    """By how much (ms) a server's clock is ahead of the one that stamps: low to high.

    Below 0 it is behind. It was asked, which takes its time; so it is an interval.
    """

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment begins with.

    start is a boundary: the end of a command, outside MULTI. db is the database
    selected there, or NO_DB. time is that of the last receipt before start, in ms since
    the epoch, or of the snapshot's announcement: start was reached by then. clock is
    how far the primary's clock was ahead when it was asked last, None if unknown.
    """

    replid: str
    start: int
    db: int
    time: int
    clock: ClockDifference | None = None


class Mark(NamedTuple):
    """The stream was received up to offset at time (ms since the epoch)."""

    offset: int
    time: int


class Receipt(NamedTuple):
    """What came up to offset came at time, and was written after `after` (ms)."""

    offset: int
    time: int
    after: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one data frame, which holds the stream bytes [start, end).

    after is the time of the receipt before the frame's first one: the first mark's
    bytes were written after it. In a frame that is late, it is that of the last receipt
    before the lateness began, and all its bytes may have been written right after it.
    boundary is the last one at or before end, and db the database selected there. crc
    is over the stream bytes, and stored_crc over the data frame, which has
    stored_length bytes.
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
    stored_crc: int
    is_late: bool = False

    @property
    def time(self) -> int:
        """When the last byte of it was received, in ms since the epoch.

        A frame without marks does not tell, and one that is late least of all.
        """
        return self.marks[-1].time if self.marks else self.after

    @property
    def receipts(self) -> Iterator[Receipt]:
        """The receipts that the marks tell of, in order."""
        after = self.after
        for mark in self.marks:
            yield Receipt(mark.offset, mark.time, after)
            if not self.is_late:
                after = mark.time


def receipt_of(frames: Sequence[Facts], offset: int) -> Receipt:
    """Return the receipt of the byte before an offset, which is in some frames."""
    found = Receipt(frames[0].start, frames[0].after, frames[0].after)
    for frame in frames:
        if offset <= frame.start:
            break
        for found in frame.receipts:
            if found.offset >= offset:
                return found
    return found


@dataclass(frozen=True, slots=True)
class Ending:
    """What a finished segment ends with. first and last are times of receipt in ms."""

    end: int
    db: int
    first: int
    last: int
    frames: int


def with_crc(content: bytes) -> bytes:
    """Return what a skippable frame holds: content, and the checksum of it."""
    return content + _CRC.pack(crc64.calc(content))


def without_crc(payload: bytes, position: int) -> bytes:
    """Return the content of the skippable frame at position, once it is verified."""
    content, crc = payload[: -_CRC.size], payload[-_CRC.size :]
    if len(crc) != _CRC.size or _CRC.unpack(crc)[0] != crc64.calc(content):
        raise SegmentError(f"the facts at {position} are damaged")
    return content


def pack_header(header: Header) -> bytes:
    """Return the content of a header frame."""
    clock = header.clock or ClockDifference(0, 0)
    return _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        header.replid.encode("ascii"),
        header.start,
        header.db,
        header.time,
        0 if header.clock is None else _CLOCK_KNOWN,
        clock.low,
        clock.high,
    )


def unpack_header(content: bytes) -> Header:
    """Read a header; SegmentError for what is none, or one of a later version."""
    if len(content) < _SHORTEST_HEADER or not content.startswith(_MAGIC):
        raise SegmentError("it is no segment of kvtape")
    # What an older kvtape did not write is 0, which is: not known.
    _, version, replid, start, db, time, flags, *clock = _HEADER.unpack_from(
        content.ljust(_HEADER.size, b"\0")
    )
    if version != FORMAT_VERSION:
        raise SegmentError(
            f"it has format version {version}, and this kvtape reads {FORMAT_VERSION}: "
            "use a newer kvtape"
        )
    difference = ClockDifference(*clock) if flags & _CLOCK_KNOWN else None
    return Header(replid.decode("ascii", "replace"), start, db, time, difference)


def pack_ending(ending: Ending) -> bytes:
    """Return the content of an ending frame."""
    return _ENDING.pack(ending.end, ending.db, ending.first, ending.last, ending.frames)


def unpack_ending(content: bytes) -> Ending:
    """Read an ending."""
    if len(content) < _ENDING.size:
        raise SegmentError("its ending is cut short")
    return Ending(*_ENDING.unpack_from(content))


def fitting_marks(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Leave as many marks as there is room for, the last one among them.

    Without a mark its bytes count as received with the next one: later, never earlier.
    """
    step = -(-len(marks) // _MOST_MARKS) or 1
    return tuple(marks[(len(marks) - 1) % step :: step])


def fitting_summary(summary: Summary) -> Summary:
    """Leave out the names if there is no room for them: then they are not known."""
    names = {name: min(words, _MOST_WORDS) for name, words in summary.names.items()}
    if len(names) > _MOST_NAMES or any(len(name) > _LONGEST_NAME for name in names):
        return replace(summary, names={}, lost=True)
    return replace(summary, names=names)


def pack_facts(facts: Facts) -> bytes:
    """Return the content of a facts frame. Its marks and summary must fit."""
    summary = facts.summary
    fixed = _FACTS.pack(
        facts.start,
        facts.end - facts.start,
        facts.stored_length,
        facts.boundary,
        facts.db,
        summary.highest_db,
        summary.commands,
        (_LOST if summary.lost else 0) | (_LATE if facts.is_late else 0),
        0,
        len(facts.marks),
        len(summary.names),
        facts.after,
        facts.crc,
        facts.stored_crc,
    )
    marks = [_MARK.pack(mark.offset - facts.start, mark.time) for mark in facts.marks]
    names = [
        _NAME.pack(len(name), words) + name for name, words in summary.names.items()
    ]
    return b"".join((fixed, *marks, *names))


def unpack_facts(content: bytes) -> Facts:
    """Read the facts of a data frame."""
    try:
        start, length, stored_length, boundary, db, highest_db, commands, *rest = (
            _FACTS.unpack_from(content)
        )
        flags, _, mark_count, name_count, after, crc, stored_crc = rest
        position = _FACTS.size
        end = position + mark_count * _MARK.size
        # There are a hundred a second of stream, and this takes a third of a loop.
        marks = [
            Mark(start + delta, time)
            for delta, time in _MARK.iter_unpack(content[position:end])
        ]
        if len(marks) < mark_count:
            raise SegmentError("the facts of a frame are cut short")
        position = end
        names = {}
        for _ in range(name_count):
            size, words = _NAME.unpack_from(content, position)
            position += _NAME.size
            (name,) = struct.unpack_from(f"{size}s", content, position)
            names[name] = words
            position += size
    except struct.error:
        raise SegmentError("the facts of a frame are cut short") from None
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
        stored_crc=stored_crc,
        is_late=bool(flags & _LATE),
    )
