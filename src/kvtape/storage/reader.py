"""Reading back what is stored, verified, in offset order.

Everything read is checked on the way: the facts and the stream bytes of each frame, a
segment against its name, a snapshot against its manifest. What does not fit is a
VerificationError that names the file. Blocking, with flat memory: a frame at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

import zstandard

from kvtape.errors import PointError, VerificationError
from kvtape.replication.tracker import Tracker
from kvtape.storage.repository import SourceFolder
from kvtape.storage.segments import (
    Boundary,
    opening,
    opening_at_time,
    read_frames,
    read_frames_from,
    stream_of,
)
from kvtape.tape.catalogue import Slice, Snapshot
from kvtape.tape.documents import Manifest
from kvtape.tape.facts import Facts, Receipt, receipt_of
from kvtape.tape.names import SegmentName
from kvtape.tape.plan import Plan
from kvtape.tape.rdb import RdbError
from kvtape.tape.rdb import read_header as read_rdb_header
from kvtape.tape.translate import Piece

_PIECE = 1024 * 1024

# Either may be at fault.
_OTHER = "it is not what its manifest.json says"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A plan whose end is a boundary, and when that was reached (ms).

    last_written_after is the receipt before the last one, or before the lateness that
    it is part of: what the last one brought was written in between. was_cut tells that
    what was asked for was within a command or transaction.
    """

    plan: Plan
    time: int
    last_written_after: int
    was_cut: bool


def read_snapshot(folder: SourceFolder, snapshot: Snapshot) -> Iterator[bytes]:
    """Yield a snapshot's RDB file; the last bytes come only if all are right."""
    manifest, path = snapshot.manifest, snapshot.name.rdb
    where = f"{folder.url}/{path}"
    digest = hashlib.sha256()
    length = 0
    held = b""
    try:
        with folder.open(path) as file:
            decompressor = zstandard.ZstdDecompressor()
            for piece in decompressor.read_to_iter(file, write_size=_PIECE):
                if not length and not _describes(manifest, piece):
                    raise VerificationError(f"{where} is damaged: {_OTHER}")
                digest.update(piece)
                length += len(piece)
                if held:
                    yield held
                held = piece
    except FileNotFoundError:
        raise VerificationError(f"{where} is missing") from None
    except (zstandard.ZstdError, RdbError) as error:
        raise VerificationError(f"{where} is damaged: {error}") from None
    if length != manifest.bytes or digest.hexdigest() != manifest.sha256:
        raise VerificationError(f"{where} is damaged: {_OTHER}")
    yield held


def _describes(manifest: Manifest, head: bytes) -> bool:
    """Whether a manifest is of the RDB file that begins so.

    A restore relies on what it tells, and it has no checksum of its own.
    """
    header, aux = read_rdb_header(head)
    db = aux.get(b"repl-stream-db", b"").decode("ascii", "replace")
    return (
        manifest.rdb_magic == header.magic.decode()
        and manifest.rdb_version == header.version
        and manifest.db == (int(db) if db.isdigit() else None)
    )


def read_stream(folder: SourceFolder, slices: Iterable[Slice]) -> Iterator[Piece]:
    """Yield the stream bytes of slices, in order, each piece with its facts."""
    for slice_ in slices:
        for frame in read_frames(folder, slice_.segment, slice_.end):
            facts = frame.facts
            start, end = max(facts.start, slice_.start), min(facts.end, slice_.end)
            if start < end:
                data = stream_of(folder, slice_.segment, frame)
                data = data[start - facts.start : end - facts.start]
                yield Piece(start, end, data, facts)


def differ_at(
    ours: Iterator[bytes], others: Iterator[bytes], start: int, end: float = inf
) -> int:
    """Return where the bytes of two, from start on, differ first, or one of them ends.

    What lies behind end is not asked for.
    """
    at = start
    left = right = b""
    while (
        at < end
        and (left := left or next(ours, b""))
        and (right := right or next(others, b""))
    ):
        length = min(len(left), len(right))
        if left[:length] != right[:length]:
            pairs = zip(left, right, strict=False)
            return at + next(n for n, (a, b) in enumerate(pairs) if a != b)
        left, right = left[length:], right[length:]
        at += length
    return at


def read_facts(folder: SourceFolder, slices: Iterable[Slice]) -> Iterator[Facts]:
    """Yield the facts of all frames of slices, without decompressing anything."""
    for slice_ in slices:
        for frame in read_frames(folder, slice_.segment, slice_.end):
            if frame.facts.end > slice_.start:
                yield frame.facts


def resolve(folder: SourceFolder, plan: Plan) -> Resolved:
    """Find the boundary that a plan ends at: the last one up to where it should end."""
    name = plan.snapshot.name
    if not plan.slices:
        return Resolved(plan, name.time, name.time, was_cut=False)
    last = plan.slices[-1]
    facts = list(read_facts(folder, [last]))
    limit = last.end if plan.time is None else _offset_at(facts, last.start, plan.time)
    boundary = _track(folder, last, facts, limit, Tracker(last.segment.start)).boundary
    if boundary <= name.offset:
        return Resolved(plan.cut(name.offset), name.time, name.time, limit > boundary)
    _, time, after = _receipt_in(folder, plan.slices, boundary)
    return Resolved(plan.cut(boundary), time, after, was_cut=limit > boundary)


def _receipt_in(folder: SourceFolder, slices: Sequence[Slice], offset: int) -> Receipt:
    """Return the receipt of the byte before an offset behind the start of slices.

    The last boundary of the last one may be where it begins.
    """
    slice_ = next(s for s in reversed(slices) if s.start < offset)
    return receipt_of(list(read_facts(folder, [slice_])), offset)


def _offset_at(facts: list[Facts], start: int, time: int) -> int:
    """Return the end of what was received by time."""
    offsets = [mark.offset for f in facts for mark in f.marks if mark.time <= time]
    return max([start, *offsets])


def find_boundary(folder: SourceFolder, name: SegmentName, limit: int) -> Boundary:
    """Return the last boundary of a segment at or before limit, which lies in it.

    PointError if its bytes cannot be read as commands. Of the segment, only the frames
    around it are read.
    """
    begin = opening(folder, name, limit)
    tracker = Tracker(begin.offset, begin.db)
    receipts: list[Facts] = []
    if begin.offset < limit:
        for frame in read_frames_from(folder, name, begin.offset, limit):
            receipts.append(frame.facts)
            data = stream_of(folder, name, frame)
            _feed(tracker, data[: limit - frame.facts.start], begin.offset, limit)
    if tracker.boundary == begin.offset:
        return begin
    _, time, since = receipt_of(receipts, tracker.boundary)
    return Boundary(tracker.boundary, tracker.db, time, since)


def boundary_by(folder: SourceFolder, name: SegmentName, time: int) -> int:
    """Return the last boundary of a segment that had been received by time (ms)."""
    start = opening_at_time(folder, name, time)
    frame = next(read_frames_from(folder, name, start, start + 1))
    return find_boundary(folder, name, _offset_at([frame.facts], start, time)).offset


def _track(
    folder: SourceFolder,
    slice_: Slice,
    facts: list[Facts],
    limit: int,
    tracker: Tracker,
) -> Tracker:
    """Return a tracker that stands at limit, given one at the segment's start."""
    for frame in facts:
        if tracker.boundary < frame.boundary <= limit:
            tracker = Tracker(frame.boundary, frame.db)
    known = tracker.boundary
    if known == limit:
        return tracker
    within = Slice(slice_.segment, known, limit)
    for piece in read_stream(folder, [within]):
        _feed(tracker, piece.data, known, limit)
    return tracker


def _feed(tracker: Tracker, data: bytes, known: int, limit: int) -> None:
    tracker.feed(data)
    if tracker.lost_because is not None:
        raise PointError(
            f"the stream cannot be read as commands between {known} and {limit}; "
            f"{known} can be restored"
        )
