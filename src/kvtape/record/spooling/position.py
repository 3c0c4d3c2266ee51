"""How far a source is recorded: read back from what is stored, never remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvtape.replication.tracker import NO_DB
from kvtape.storage.repository import SourceFolder
from kvtape.storage.spool import Spool
from kvtape.tape import catalogue, segment
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.names import SegmentName, SnapshotName


@dataclass(frozen=True, slots=True)
class Position:
    """How far a history is recorded.

    offset is the end of what is stored, boundary the last one at or before it, db the
    database selected at that boundary, time that of the last receipt (ms), unfinished
    the frames that hold what is stored from the boundary on. What follows may have been
    written right after late_since (ms), or after time if that is None.
    """

    replid: str
    offset: int
    boundary: int
    db: int
    time: int
    unfinished: tuple[segment.Frame, ...] = ()
    late_since: int | None = None


def recover(spool: Spool) -> Position | None:
    """Open the segment that is being written; return where it ends, if there is one."""
    unfinished: list[segment.Frame] = []
    for frame in spool.recover():
        facts = frame.facts
        if facts.boundary > facts.start:
            unfinished.clear()
        if facts.boundary < facts.end:
            unfinished.append(frame)
    if spool.segment is None:
        return None
    writer = spool.segment.writer
    return Position(
        writer.header.replid,
        writer.end,
        writer.boundary,
        writer.db,
        writer.last,
        tuple(unfinished),
        writer.late_since,
    )


def spooled_position(folder: SourceFolder, spool: Spool) -> Position | None:
    """Return where what is queued ends: what can be known without the repository."""
    queued = catalogue_of(folder, spool, {})
    if (position := stored_position(queued, folder, spool)) is not None:
        return position
    # What is queued of a history is of one whose snapshot was whole.
    segments = [name for names in queued.segments.values() for name in names]
    newest = max(segments, key=lambda name: (name.last, name.end), default=None)
    if newest is None:
        return None
    return _position_behind(newest, folder, spool)


def stored_catalogue(folder: SourceFolder, spool: Spool) -> Catalogue:
    """Return what is in the repository and in the queue, together."""
    # The queue first: what is uploaded meanwhile is in both, and else in neither.
    queued = spool.queued()
    return _catalogue(folder, spool, {**folder.list(), **queued})


def catalogue_of(
    folder: SourceFolder, spool: Spool, listing: Mapping[str, int]
) -> Catalogue:
    """Return what is in a listing of the repository and in the queue, together."""
    return _catalogue(folder, spool, {**listing, **spool.queued()})


def _catalogue(
    folder: SourceFolder, spool: Spool, everything: Mapping[str, int]
) -> Catalogue:
    contents = {
        path: _read(folder, spool, path) for path in catalogue.documents_of(everything)
    }
    return catalogue.build(everything, contents)


def stored_position(
    stored: Catalogue, folder: SourceFolder, spool: Spool
) -> Position | None:
    """Return where the newest history ends.

    A history whose first snapshot is not complete is not continued: what its snapshot
    would have held is nowhere.
    """
    replid = stored.newest_history()
    tip = None if replid is None else stored.tip(replid)
    return None if tip is None else position_at(tip, stored, folder, spool)


def position_at(
    tip: SegmentName | SnapshotName,
    stored: Catalogue,
    folder: SourceFolder,
    spool: Spool,
) -> Position:
    """Return where a history goes on behind the last that is stored of it."""
    if isinstance(tip, SegmentName):
        return _position_behind(tip, folder, spool)
    manifest = next(s.manifest for s in stored.snapshots if s.name == tip)
    db = NO_DB if manifest.db is None else manifest.db
    # One that came from elsewhere may have reached its offset long before its time.
    segments = stored.segments.get(tip.replid, [])
    before = max((s.last for s in segments if s.end <= tip.offset), default=tip.time)
    since = min(before, tip.time)
    return Position(tip.replid, tip.offset, tip.offset, db, tip.time, late_since=since)


def root(stored: Catalogue, position: Position, spool: Spool) -> tuple[bool, int]:
    """Return whether a snapshot leads up to a position, and since where it is recorded.

    The stream may have been joined without one, and the recorder have died before the
    snapshot was there.
    """
    segment = spool.segment
    start = position.offset if segment is None else segment.writer.header.start
    replid = position.replid
    known = replid in stored.histories
    stretches = stored.stretches(stored.lineage(replid)) if known else []
    is_rooted = any(stretch.start <= start <= stretch.end for stretch in stretches)
    for name in reversed(stored.segments.get(replid, [])):
        if name.start < start <= name.end:
            start = name.start
    return is_rooted, start


def last_restorable(stored: Catalogue) -> Position | None:
    """Return where the story ends that can be restored."""
    ranges = stored.all_ranges()
    if not ranges:
        return None
    last = max(ranges, key=lambda range_: (range_.end_time, range_.end))
    return Position(last.replid, last.end, last.end, NO_DB, last.end_time)


def _position_behind(name: SegmentName, folder: SourceFolder, spool: Spool) -> Position:
    """Return where a history goes on behind a segment that is stored or queued."""
    parser = segment.Parser()
    parser.receive_data(_read(folder, spool, name.path))
    late_since = None
    while (part := parser.next_part()) is not segment.NEED_DATA:
        if isinstance(part, segment.Frame):
            late_since = part.facts.after if part.facts.is_late else None
        if isinstance(part, segment.Ending):
            return Position(
                name.replid, name.end, name.end, part.db, name.last, (), late_since
            )
    raise segment.SegmentError(f"{name.path} has no ending")


def _read(folder: SourceFolder, spool: Spool, path: str) -> bytes:
    try:
        return spool.queued_file(path).read_bytes()
    except FileNotFoundError:
        return folder.read(path)  # also if it was uploaded this very moment
