"""Which segments may name a key, without reading the segments.

Of the filter of each segment the header and one block are read, half a kilobyte each,
of several filters at once, since on an object store nearly all the time is waiting. A
filter that is missing or damaged is made from its segment, which then has to be read as
a whole; it is kept for the next time, if the repository can be written. One that a
newer kvtape has written stays where it is.

Wherever nothing is known (the segment is damaged, its commands cannot be read) the
answer is yes, so that whoever asked reads the segment, and finds out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Lock
from typing import BinaryIO

from kvtape.errors import Error, VerificationError
from kvtape.storage.repository import SourceFolder
from kvtape.storage.segments import parts_of, read_frames, stream_of
from kvtape.tape.key_filter import FilterError, hash_of, parse_directory
from kvtape.tape.named_keys import SegmentKeys
from kvtape.tape.names import FilterName, SegmentName
from kvtape.tape.segment import Frame

_log = logging.getLogger(__name__)

# What is read of a filter first. It has the header, and all of a filter of up to 600
# keys: most segments of a server that writes little take one request.
_FIRST = 1024

# How many filters are asked for at once. At 30 ms a request, 160 of them (10 GiB of
# stream) take a second.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a segment may have to do with any of some keys.

    may_name: its commands may name one of them. touches_all: it has commands that
    change keys without naming them, such as FLUSHALL.
    """

    segment: SegmentName
    may_name: bool
    touches_all: bool

    @property
    def is_needed(self) -> bool:
        """Whether what happened to the keys cannot be told without the segment."""
        return self.may_name or self.touches_all


def segments_with(
    folder: SourceFolder, segments: Iterable[SegmentName], keys: Sequence[bytes]
) -> Iterator[Answer]:
    """Yield for each of some segments, in order, whether it may name one of some keys.

    Blocks. RepositoryError if the repository cannot be read.
    """
    asker = _Asker(folder, sorted(map(hash_of, keys)))
    waiting: deque[Future[Answer]] = deque()
    rest = iter(segments)
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="kvtape-filters")
    try:
        waiting += (pool.submit(asker.ask, one) for one in islice(rest, 2 * _AT_ONCE))
        while waiting:
            answer = waiting.popleft().result()
            waiting += (pool.submit(asker.ask, one) for one in islice(rest, 1))
            yield answer
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(slots=True)
class _Asker:
    """Asks filters for keys with these hashes; any thread may."""

    folder: SourceFolder
    hashes: Sequence[int]
    _can_write: bool = True
    # One is made at a time: it is work for the processor, and takes memory.
    _making: Lock = field(default_factory=Lock)

    def ask(self, segment: SegmentName) -> Answer:
        read = partial(self.folder.read_range, FilterName(segment).path)
        try:
            return _look(read, segment, self.hashes)
        except FileNotFoundError:
            return self._make(segment, is_damaged=False)
        except FilterError as error:
            where = f"{self.folder.url}/{FilterName(segment).path}"
            _log.warning("%s: %s; it is made anew", where, error)
            return self._make(segment, is_damaged=not error.is_newer)

    def _make(self, segment: SegmentName, *, is_damaged: bool) -> Answer:
        with self._making:
            try:
                content = make_filter(self.folder, segment)
            except VerificationError as error:
                _log.warning("%s", error)
                return Answer(segment, may_name=True, touches_all=True)
            if self._can_write:
                self._keep(segment, content, is_damaged=is_damaged)
        return _look(lambda start, end: content[start:end], segment, self.hashes)

    def _keep(self, segment: SegmentName, content: bytes, *, is_damaged: bool) -> None:
        path = FilterName(segment).path
        try:
            if is_damaged:
                self.folder.delete(path)
            self.folder.put(path, content)
        except Error as error:
            # Nothing that a reader needs: it may read only, or a newer kvtape wrote it.
            _log.info("the key filters that were missing are not kept: %s", error)
            self._can_write = False


def _look(
    read: Callable[[int, int], bytes], segment: SegmentName, hashes: Sequence[int]
) -> Answer:
    """Ask a filter of which read returns ranges."""
    head = read(0, _FIRST)
    directory = parse_directory(head, segment)
    may_name = directory.is_vague
    for key_hash in hashes if directory.blocks else ():
        number, start, end = directory.place(key_hash)
        block = head[start:end] if end <= len(head) else read(start, end)
        may_name = may_name or directory.may_name(key_hash, number, block)
    return Answer(segment, may_name, directory.touches_all)


def make_filter(folder: SourceFolder, segment: SegmentName) -> bytes:
    """Return the filter of a stored segment.

    Blocks. VerificationError if the segment is missing or damaged, or if no filter that
    others could read can be made here.
    """
    keys = SegmentKeys()
    for frame in read_frames(folder, segment, segment.end):
        keys.feed(frame.facts, stream_of(folder, segment, frame))
    return keys.filter(segment)


def filter_of(file: BinaryIO, segment: SegmentName) -> bytes:
    """Return the filter of the segment that is in a file.

    Blocks. SegmentError if it is damaged. Memory is that of a frame, and 8 bytes a key.
    """
    keys = SegmentKeys()
    for part in parts_of(file, segment):
        if isinstance(part, Frame):
            keys.feed(part.facts, part.stream())
    return keys.filter(segment)
