"""What the repository holds when an agent starts, for its journal.

It is known from a listing; where the repository cannot be reached, from the spool: what
leaves it goes nowhere but to the repository.
"""

from __future__ import annotations

from kvtape.record.events import GapFound
from kvtape.record.journal import Journal
from kvtape.record.spooling.position import Position
from kvtape.storage.spool import Spool
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.names import SegmentName, SnapshotName, parse


def note_stored(journal: Journal, stored: Catalogue, spool: Spool) -> None:
    """Note what repository and queue hold together, without what is queued. Blocks."""
    _note_gaps(journal, stored)
    queued = spool.queued()
    for snapshot in stored.snapshots:
        name = snapshot.name
        if name.manifest not in queued:
            journal.note_held(name.replid, name.offset, name.time)
    if journal.stored_time is None:
        return
    for names in stored.segments.values():
        for segment in names:
            if segment.path not in queued:
                journal.note_held(segment.replid, segment.end, segment.last)


def _note_gaps(journal: Journal, stored: Catalogue) -> None:
    """Note the gaps within what can be restored, as they were found then."""
    first = min((range_.start_time for range_ in stored.all_ranges()), default=None)
    for gap in sorted(stored.gaps, key=lambda gap: gap.end_time):
        if first is not None and gap.end_time > first:
            found = GapFound(
                gap.replid,
                gap.start_offset,
                gap.end_offset,
                gap.start_time,
                gap.end_time,
                gap.reason,
            )
            journal.note_gap(found)


def note_not_spooled(journal: Journal, position: Position, spool: Spool) -> None:
    """Note what came before all that is in the spool. Blocks."""
    queued = [parse(path) for path in spool.queued()]
    mine = [one for one in queued if one and one.replid == position.replid]
    if any(isinstance(one, SnapshotName) for one in mine):
        return
    held = position.offset, position.time
    if spool.segment is not None:
        header = spool.segment.writer.header
        held = header.start, header.time
    segments = [one for one in mine if isinstance(one, SegmentName)]
    held = min([(one.start, one.first) for one in segments], default=held)
    journal.note_held(position.replid, *held)
