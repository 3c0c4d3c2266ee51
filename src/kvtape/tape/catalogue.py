"""What a source's folder holds, and what follows from it: lineages and ranges.

Built from a listing and the small documents that it names, never from anything that has
to be kept up to date. A snapshot without its manifest, or whose RDB file is not as long
as the manifest says, is not there; what is wrong with it is in problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kvtape.tape import documents
from kvtape.tape.documents import Gap, History, Manifest
from kvtape.tape.names import (
    GapName,
    HistoryName,
    SegmentName,
    SnapshotName,
    parse,
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete snapshot."""

    name: SnapshotName
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets of one history of which each can be restored, both ends included.

    Times are ms since the epoch.
    """

    replid: str
    start: int
    end: int
    start_time: int
    end_time: int


@dataclass(frozen=True, slots=True)
class Part:
    """The offsets after start, up to end, that one history gives to a lineage.

    start is None at the root; end is None for the history the lineage leads to.
    """

    replid: str
    start: int | None
    end: int | None

    def holds(self, offset: int) -> bool:
        """Whether the state at this offset is told by this history."""
        after = self.start is None or offset > self.start
        return after and (self.end is None or offset <= self.end)


@dataclass(frozen=True, slots=True)
class Slice:
    """The stream bytes [start, end), out of a segment that may hold more."""

    segment: SegmentName
    start: int
    end: int


@dataclass(slots=True)
class Catalogue:
    """Everything that is stored of one source."""

    histories: dict[str, History] = field(default_factory=dict)  # oldest first
    segments: dict[str, list[SegmentName]] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    stored_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def lineage(self, replid: str) -> tuple[Part, ...]:
        """Return a history's ancestors and itself, the oldest first."""
        parts: list[Part] = []
        end: int | None = None
        current: str | None = replid
        while current is not None and all(part.replid != current for part in parts):
            history = self.histories[current]
            parts.append(Part(current, history.parent_offset, end))
            end = history.parent_offset
            current = history.parent
            if current is not None and current not in self.histories:
                break
        return tuple(reversed(parts))

    def cover(self, lineage: Sequence[Part], start: int, end: int) -> list[Slice]:
        """Return slices from start on without a hole, as far towards end as there are.

        Where segments overlap, as those of two agents do, the one that reaches
        furthest is taken.
        """
        slices: list[Slice] = []
        position = start
        for part in lineage:
            stop = end if part.end is None else min(end, part.end)
            for segment in self.segments.get(part.replid, ()):
                if position >= stop:
                    break
                if segment.start <= position < segment.end:
                    reached = min(segment.end, stop)
                    slices.append(Slice(segment, position, reached))
                    position = reached
        return slices

    def reach(self, lineage: Sequence[Part], start: int, end: int) -> int:
        """Return how far towards end the stream is there without a hole."""
        slices = self.cover(lineage, start, end)
        return slices[-1].end if slices else start

    def ranges(self, replid: str) -> list[Range]:
        """Return what can be restored of a history, ancestors left out."""
        lineage = self.lineage(replid)
        own = lineage[-1]
        # A range begins at a snapshot, or where the history forked from its parent, if
        # that offset can be restored.
        starts = [
            (snapshot.name.offset, snapshot.name.time)
            for snapshot in self.snapshots
            if snapshot.name.replid == replid
        ]
        if own.start is not None and len(lineage) > 1:
            starts += [
                (own.start, range_.end_time)
                for range_ in self.ranges(lineage[-2].replid)
                if range_.start <= own.start <= range_.end
            ]
        ranges: list[Range] = []
        for start, time in sorted(starts):
            if ranges and start <= ranges[-1].end:
                continue
            slices = self.cover((own,), start, _FAR)
            last = slices[-1] if slices else None
            ranges.append(
                Range(
                    replid,
                    start,
                    last.end if last else start,
                    time,
                    max(time, last.segment.last) if last else time,
                )
            )
        return ranges

    def all_ranges(self) -> list[Range]:
        """Return everything that can be restored, the oldest history first."""
        return [range_ for replid in self.histories for range_ in self.ranges(replid)]

    def newest_history(self) -> str | None:
        """Return the history of which something was stored last."""
        stored = [replid for replid in self.histories if self.end(replid) is not None]
        return max(stored, key=self._last_time, default=None)

    def _last_time(self, replid: str) -> tuple[int, int]:
        segments = self.segments.get(replid, ())
        times = [segment.last for segment in segments]
        times += [s.name.time for s in self.snapshots if s.name.replid == replid]
        return max(times), self.histories[replid].created

    def end(self, replid: str) -> int | None:
        """Return the end of what is stored of a history, holes or not."""
        ends = [segment.end for segment in self.segments.get(replid, ())]
        ends += [s.name.offset for s in self.snapshots if s.name.replid == replid]
        return max(ends, default=None)


_FAR = 2**63


def documents_of(listing: Mapping[str, int]) -> list[str]:
    """Return the paths of the documents that build() needs of this listing."""
    return [
        path
        for path in listing
        if path.endswith(".json")
        and isinstance(parse(path), HistoryName | SnapshotName | GapName)
    ]


def build(listing: Mapping[str, int], contents: Mapping[str, bytes]) -> Catalogue:
    """Build the catalogue of a source.

    listing maps each path in the source's folder to its length in bytes; contents has
    the documents that documents_of() names.
    """
    catalogue = Catalogue(stored_bytes=sum(listing.values()))
    histories: dict[str, History] = {}
    for path in sorted(listing):
        match parse(path):
            case SegmentName() as segment:
                catalogue.segments.setdefault(segment.replid, []).append(segment)
            case HistoryName(replid):
                history = documents.decode(History, contents[path], path)
                histories[replid] = history
            case SnapshotName() as name if path == name.manifest:
                manifest = documents.decode(Manifest, contents[path], path)
                if listing.get(name.rdb) == manifest.stored_bytes:
                    catalogue.snapshots.append(Snapshot(name, manifest))
                else:
                    catalogue.problems.append(
                        f"{name.rdb} is missing or not {manifest.stored_bytes} bytes"
                    )
            case GapName():
                gap = documents.decode(Gap, contents[path], path)
                catalogue.gaps.append(gap)
            case _:
                pass
    for segments in catalogue.segments.values():
        segments.sort(key=lambda segment: (segment.start, -segment.end))
    for replid in _undocumented(catalogue, histories):
        catalogue.problems.append(f"{HistoryName(replid).path} is missing")
        histories[replid] = History(replid, "full-resync", _begun(catalogue, replid))
    catalogue.histories = {
        history.replid: history
        for history in sorted(histories.values(), key=lambda history: history.created)
    }
    return catalogue


def holes(segments: Sequence[SegmentName]) -> list[tuple[int, int]]:
    """Return the [start, end) that lie between segments of one history, in order."""
    found = []
    furthest = segments[0].end if segments else 0
    for _, segment in pairwise(segments):
        if segment.start > furthest:
            found.append((furthest, segment.start))
        furthest = max(furthest, segment.end)
    return found


def _undocumented(catalogue: Catalogue, histories: Mapping[str, History]) -> list[str]:
    named = set(catalogue.segments)
    named |= {snapshot.name.replid for snapshot in catalogue.snapshots}
    return sorted(named - histories.keys())


def _begun(catalogue: Catalogue, replid: str) -> int:
    times = [segment.first for segment in catalogue.segments.get(replid, ())]
    times += [s.name.time for s in catalogue.snapshots if s.name.replid == replid]
    return min(times)
