"""How much of a history is in the repository, for certain: what may be called durable.

A byte counts from when everything is stored that a restore to it takes: what its
history is, a snapshot with its manifest, and all segments from there on, also those of
the histories that it forked from. It is worked out once from the catalogue, at the
start, and from each upload then; nothing is listed again while recording.

Uploads of another agent into the same source are not seen before the next start, so it
can be less than the truth, and is never more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from msgspec import structs

from kvtape.tape.catalogue import Catalogue
from kvtape.tape.documents import History
from kvtape.tape.names import HistoryName, SegmentName, SnapshotName

_FAR = 2**63


@dataclass(slots=True)
class Stored:
    """What is in the repository of the histories that are recorded."""

    _histories: dict[str, History] = field(default_factory=dict)
    _ends: dict[str, int] = field(default_factory=dict)
    # Ranges that nothing before them reaches yet, in order and apart from each other.
    _loose: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    # Those of which nothing counts before the next snapshot.
    _gone_back: set[str] = field(default_factory=set)

    def add_history(self, history: History) -> None:
        """Take note that the document of a history is stored, and of what it says."""
        self._histories[history.replid] = history

    def add_snapshot(self, name: SnapshotName) -> None:
        """Take note that a snapshot is stored, its manifest too."""
        if name.replid in self._gone_back:
            # It is uploaded behind all that was received before it.
            self._gone_back.remove(name.replid)
            self._loose.pop(name.replid, None)
        self.reach(name.replid, name.offset)

    def add_segment(self, name: SegmentName) -> None:
        """Take note that a segment is stored."""
        ranges = sorted([*self._loose.get(name.replid, ()), (name.start, name.end)])
        joined = ranges[:1]
        for start, end in ranges[1:]:
            first, last = joined[-1]
            if start <= last:
                joined[-1] = first, max(last, end)
            else:
                joined.append((start, end))
        self._loose[name.replid] = joined
        self.end(name.replid)

    def merge(self, found: Stored) -> None:
        """Take note of what was found in a listing; what is known better stays."""
        for replid, history in found._histories.items():
            if replid not in self._gone_back:
                self._histories.setdefault(replid, history)
        for replid, end in found._ends.items():
            if replid not in self._gone_back:
                self.reach(replid, end)

    def go_back(self, replid: str, offset: int) -> None:
        """Take note that a snapshot at an offset was received, and is not stored yet.

        Before the end of what is stored it tells that the server went back (it was
        restored from an image of its disk, with its replid and all). Then nothing is
        certain of that history until this snapshot is stored; nor is it where the end
        is not known.
        """
        end = self.end(replid)
        if end is None or offset < end:
            self._ends.pop(replid, None)
            self._gone_back.add(replid)
            if (begun := self._histories.get(replid)) is not None:
                self._histories[replid] = structs.replace(begun, parent=None)

    def reach(self, replid: str, end: int) -> None:
        """Take note that a history is stored up to an offset."""
        self._ends[replid] = max(self._ends.get(replid, end), end)

    def end(self, replid: str | None) -> int | None:
        """Return the last offset of a history up to which nothing is missing.

        None if no snapshot is stored that it could be restored from.
        """
        end: int | None = None
        for history in reversed(list(self._lineage(replid))):
            if end is not None and history.parent_offset is not None:
                end = min(end, history.parent_offset)
            known = self._ends.get(history.replid)
            if end is None or (known is not None and known > end):
                end = known
            if end is not None:
                end = self._extend(history.replid, end)
        return end

    def _lineage(self, replid: str | None) -> Iterator[History]:
        """Yield a history, its parent, and so on, as far as they are stored."""
        seen = set()
        while (history := self._histories.get(replid or "")) and replid not in seen:
            seen.add(replid)
            yield history
            replid = None if history.parent_offset is None else history.parent

    def _extend(self, replid: str, end: int) -> int:
        """Follow what is loose of a history from end on; return how far that goes."""
        loose = self._loose.get(replid)
        while loose and loose[0][0] <= end:
            _, last = loose.pop(0)
            if last > end:
                end = last
                self.reach(replid, end)
        return end


def stored_before(catalogue: Catalogue, queued: Collection[str]) -> Stored:
    """Return what was stored of all histories before this start.

    The catalogue is of the repository and of what is queued, together. A history of
    which no byte is stored yet counts, too: its document is not uploaded again.
    """
    stored = Stored()
    there = Catalogue(
        histories=catalogue.histories,
        segments={
            of: [name for name in names if name.path not in queued]
            for of, names in catalogue.segments.items()
        },
        snapshots=[s for s in catalogue.snapshots if s.name.manifest not in queued],
    )
    for replid, history in there.histories.items():
        if HistoryName(replid).path not in queued:
            stored.add_history(history)
        tip = catalogue.tip(replid)
        most = tip.end if isinstance(tip, SegmentName) else _FAR
        if isinstance(tip, SnapshotName):
            most = tip.offset
        if stretches := there.stretches(there.lineage(replid)):
            stored.reach(replid, min(stretches[-1].end, most))
    return stored
