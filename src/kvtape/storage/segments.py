"""Reading stored segments, verified, from any offset on.

Every frame that is passed on was checked: its facts, its bytes, and its segment
against its name. What does not fit is a VerificationError that names the file. All of
it blocks; memory is flat, a frame at a time.

A reader that begins within a segment finds the frame by the seek table at its end, with
a few small reads, and neither reads nor verifies what comes before. From a segment's
beginning on, everything in it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_END
from typing import BinaryIO

from kvtape.errors import VerificationError
from kvtape.storage.repository import SourceFolder
from kvtape.tape.facts import receipt_of
from kvtape.tape.names import SegmentName
from kvtape.tape.segment import (
    FOOTER_SIZE,
    NEED_DATA,
    Ending,
    Facts,
    Frame,
    Header,
    Index,
    Parser,
    Part,
    SegmentError,
    read_facts_frame,
    read_index,
    seek_table_size,
)

_PIECE = 1024 * 1024

# A header has less than a hundred bytes; later versions may append to it.
_HEAD = 4096


@dataclass(frozen=True, slots=True)
class Boundary:
    """The end of a command: the database selected there, and when it came (ms).

    What follows it was written after since.
    """

    offset: int
    db: int
    time: int
    since: int


def read_parts(folder: SourceFolder, name: SegmentName) -> Iterator[Part]:
    """Yield the parts of a segment, its header first."""
    with _opened(folder, name) as file:
        yield from _read_on(Parser(), file, name)


def parts_of(file: BinaryIO, name: SegmentName) -> Iterator[Part]:
    """Yield the parts of the segment that is in a file, from its beginning.

    SegmentError if it is damaged, or another one than its name says.
    """
    return _read_on(Parser(), file, name)


def read_header(folder: SourceFolder, name: SegmentName) -> Header:
    """Return a segment's header."""
    with _explained(folder, name):
        return _header(folder, name)


def read_frames(folder: SourceFolder, name: SegmentName, stop: int) -> Iterator[Frame]:
    """Yield a segment's frames up to offset stop, verified but for their bytes."""
    for part in read_parts(folder, name):
        if isinstance(part, Frame):
            yield part
            if part.facts.end >= stop and stop < name.end:
                return


def read_frames_from(
    folder: SourceFolder, name: SegmentName, start: int, stop: int
) -> Iterator[Frame]:
    """Yield a segment's frames from the one that begins at start, up to offset stop."""
    if start == name.start:
        yield from read_frames(folder, name, stop)
        return
    with _opened(folder, name) as file:
        header, index = _header(folder, name), _index(file, name)
        frame = index.frame_at(start)
        file.seek(index.positions[frame])
        for part in _read_on(Parser.resumed(header, index, frame), file, name):
            if isinstance(part, Frame):
                yield part
                if part.facts.end >= stop and stop < name.end:
                    return


def opening(folder: SourceFolder, name: SegmentName, offset: int) -> Boundary:
    """Return the last boundary at or before an offset at which a frame begins.

    A command that the offset is in begins behind it, or there.
    """
    with _opened(folder, name) as file:
        header, index = _header(folder, name), _index(file, name)
        # A frame that no boundary ends holds none but its start.
        while frame := index.frame_at(offset):
            facts = _facts(folder, name, index, frame - 1)
            if facts.boundary == facts.end:
                _, time, since = receipt_of([facts], facts.end)
                return Boundary(facts.end, facts.db, time, since)
            offset = facts.start
        since = min(header.time, _facts(folder, name, index, 0).after)
        return Boundary(header.start, header.db, header.time, since)


def opening_at_time(folder: SourceFolder, name: SegmentName, time: int) -> int:
    """Return the offset of a frame before which all was received by time (ms)."""
    with _opened(folder, name) as file:
        index = _index(file, name)
        low, high = 0, len(index.starts) - 1
        while low < high:
            middle = (low + high) // 2
            if _facts(folder, name, index, middle).time <= time:
                low = middle + 1
            else:
                high = middle
        return index.starts[low]


def frame_starts(folder: SourceFolder, name: SegmentName) -> tuple[int, ...]:
    """Return the offsets at which the frames of a segment begin."""
    with _opened(folder, name) as file:
        return _index(file, name).starts


def stream_of(folder: SourceFolder, name: SegmentName, frame: Frame) -> bytes:
    """Return the stream bytes of a frame of a segment."""
    try:
        return frame.stream()
    except SegmentError as error:
        raise _damaged(folder, name, error) from None


@contextmanager
def _opened(folder: SourceFolder, name: SegmentName) -> Iterator[BinaryIO]:
    with _explained(folder, name), folder.open(name.path) as file:
        yield file


@contextmanager
def _explained(folder: SourceFolder, name: SegmentName) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise VerificationError(f"{folder.url}/{name.path} is missing") from None
    except SegmentError as error:
        raise _damaged(folder, name, error) from None


def _read_on(parser: Parser, file: BinaryIO, name: SegmentName) -> Iterator[Part]:
    """Yield what a parser makes of a file from where both stand."""
    while data := file.read(_PIECE):
        parser.receive_data(data)
        while (part := parser.next_part()) is not NEED_DATA:
            _must_fit(part, name)
            yield part
    parser.receive_end()


def _must_fit(part: Part, name: SegmentName) -> None:
    match part:
        case Header() if (part.replid, part.start) != (name.replid, name.start):
            raise SegmentError("it is another segment than its name says")
        case Ending() if part.end != name.end:
            raise SegmentError("it ends elsewhere than its name says")
        case _:
            pass


# Single frames are read by ranges: files of object stores read far ahead.


def _header(folder: SourceFolder, name: SegmentName) -> Header:
    parser = Parser()
    parser.receive_data(folder.read_range(name.path, 0, _HEAD))
    header = parser.next_part()
    if not isinstance(header, Header):
        raise SegmentError("it is cut short within its header")
    _must_fit(header, name)
    return header


def _index(file: BinaryIO, name: SegmentName) -> Index:
    size = file.seek(0, SEEK_END)
    if size >= FOOTER_SIZE:
        file.seek(size - FOOTER_SIZE)
        length = seek_table_size(file.read(FOOTER_SIZE))
        if length <= size:
            file.seek(size - length)
            return read_index(file.read(length), name.start, name.end, size)
    raise SegmentError("it has no seek table: it was cut short, or never finished")


def _facts(folder: SourceFolder, name: SegmentName, index: Index, frame: int) -> Facts:
    position, length = index.facts_at(frame)
    content = folder.read_range(name.path, position, position + length)
    return read_facts_frame(content, index.starts[frame])


def _damaged(
    folder: SourceFolder, name: SegmentName, error: SegmentError
) -> VerificationError:
    return VerificationError(f"{folder.url}/{name.path} is damaged: {error}")
