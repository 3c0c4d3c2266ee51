"""What a source's folder holds, and what follows from it: what can be restored.

Built from a listing and the small documents that it names, never from anything that has
to be kept up to date. A snapshot without its manifest, or whose RDB file is not as long
as the manifest says, is not there. A document that is damaged is not there either: one
bad byte must not stand between an operator and all the rest. It is in problems.

The offsets that can be restored are worked out in one place, stretches(): what info
lists and what a plan is made of cannot differ.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from kvtape.errors import VerificationError
from kvtape.tape import documents
from kvtape.tape.documents import Gap, History, Manifest
from kvtape.tape.names import (
    GapName,
    HistoryName,
    Name,
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

    start is None at the root; end is None for the history the lineage leads to. The
    offsets up to start are its parent's as well, and so are the bytes before it.
    """

    replid: str
    start: int | None
    end: int | None

    def holds(self, offset: int) -> bool:
        """Whether the state at this offset is told by this history."""
        return offset != self.start and self.may_begin_at(offset)

    def may_begin_at(self, offset: int) -> bool:
        """Whether a snapshot of this history at this offset is one of the lineage."""
        after = self.start is None or offset >= self.start
        return after and (self.end is None or offset <= self.end)


@dataclass(frozen=True, slots=True)
class Slice:
    """The stream bytes [start, end), out of a segment that may hold more."""

    segment: SegmentName
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Offsets of a lineage of which each can be restored: from a snapshot to a hole.

    start and time (ms) are the first snapshot's; slices hold the bytes from there on.
    """

    start: int
    time: int
    slices: tuple[Slice, ...]

    @property
    def end(self) -> int:
        """The last offset."""
        return self.slices[-1].end if self.slices else self.start


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
        """Return a history's ancestors and itself, the oldest first.

        A history whose parent is not here, or that would be its own ancestor, is taken
        as the first.
        """
        parts: list[Part] = []
        seen: set[str] = set()
        current, end = self.histories[replid], None
        while True:
            seen.add(current.replid)
            parent = self.histories.get(current.parent or "")
            fork = current.parent_offset
            if parent is None or parent.replid in seen or fork is None:
                parts.append(Part(current.replid, None, end))
                return tuple(reversed(parts))
            parts.append(Part(current.replid, fork, end))
            # A child that forked before its parent did shares less with the ancestors.
            end = fork if end is None else min(end, fork)
            current = parent

    def snapshots_of(self, lineage: Sequence[Part]) -> list[Snapshot]:
        """Return the snapshots that a lineage can be restored from, in offset order."""
        parts = {part.replid: part for part in lineage}
        found = []
        for snapshot in self.snapshots:
            part = parts.get(snapshot.name.replid)
            if part is not None and part.may_begin_at(snapshot.name.offset):
                found.append(snapshot)
        return sorted(found, key=lambda found: (found.name.offset, found.name.time))

    def stretches(self, lineage: Sequence[Part]) -> list[Stretch]:
        """Return everything that can be restored of a lineage, in offset order.

        Between two of them at least one byte is missing, or no snapshot reaches it.
        """
        runs = self._runs(lineage)
        begins = [run[0].start for run in runs]
        found: list[Stretch] = []
        for snapshot in self.snapshots_of(lineage):
            offset = snapshot.name.offset
            if not found or offset > found[-1].end:
                # The run before the first one is none at all.
                run = [[], *runs][bisect_right(begins, offset)]
                slices = clip(run, offset, _FAR)
                found.append(Stretch(offset, snapshot.name.time, slices))
        return found

    def _runs(self, lineage: Sequence[Part]) -> list[list[Slice]]:
        """Return the stream bytes of a lineage: slices that follow without a hole.

        Where segments overlap, as those of two agents do, the one that reaches furthest
        is taken. Of an ancestor's bytes, none are behind the fork.
        """
        pieces = []
        for part in lineage:
            stop = _FAR if part.end is None else part.end
            pieces += [
                (segment.start, min(segment.end, stop), segment)
                for segment in self.segments.get(part.replid, ())
                if segment.start < stop
            ]
        pieces.sort(key=itemgetter(0))
        runs: list[list[Slice]] = []
        taken = reached = -1
        furthest: SegmentName | None = None
        for start, end, segment in pieces:
            # What comes now begins behind what is taken, so it is time to choose.
            if furthest is not None and taken < reached and taken < start:
                runs[-1].append(Slice(furthest, taken, reached))
                taken = reached
            if taken < start:
                runs.append([])
                taken = reached = start
            if reached < end:
                furthest, reached = segment, end
        if furthest is not None and taken < reached:
            runs[-1].append(Slice(furthest, taken, reached))
        return runs

    def bytes_of(
        self, lineage: Sequence[Part], start: int, end: int
    ) -> tuple[Slice, ...]:
        """Return what is stored of a lineage between two offsets, holes or not."""
        runs = self._runs(lineage)
        return clip((slice_ for run in runs for slice_ in run), start, end)

    def bytes_behind(self, replid: str, offset: int) -> tuple[Slice, ...]:
        """Return what is stored under a history behind an offset, holes or not."""
        return self.bytes_of([Part(replid, None, None)], offset, _FAR)

    def ranges(self, replid: str) -> list[Range]:
        """Return what can be restored of a history, in offset order.

        Its ancestors are left out, but for the offset that it forked at, which is the
        same state in both. Where its own bytes begin before that, so do its ranges.
        """
        lineage = self.lineage(replid)
        begin = self._begin(lineage[-1])
        ranges = []
        for stretch in self.stretches(lineage):
            start, time = stretch.start, stretch.time
            if begin is not None and stretch.start <= begin:
                if stretch.end < begin or self._is_left_at(replid, stretch.end):
                    continue
                start, time = begin, self._time_at(begin, stretch, replid)
            times = [s.segment.last for s in stretch.slices if s.end > start]
            ranges.append(Range(replid, start, stretch.end, time, max([time, *times])))
        return ranges

    def _begin(self, part: Part) -> int | None:
        """Return where a history takes over from its parent: where its bytes begin.

        That is before the fork if its parent was not recorded up to there.
        """
        if part.start is None:
            return None
        own = self.segments.get(part.replid, ())
        return min([part.start, *(segment.start for segment in own)])

    def _is_left_at(self, replid: str, offset: int) -> bool:
        """Whether a stretch that ends at offset is one before a full resync's gap.

        The history has such an offset from its parent, and never was there itself.
        """
        history = self.histories[replid]
        fork = history.parent_offset
        return history.reason == "full-resync" and fork is not None and offset <= fork

    def _time_at(self, offset: int, stretch: Stretch, replid: str) -> int:
        """Return when a stretch reached the offset that a history took over at."""
        before = [slice_ for slice_ in stretch.slices if slice_.start < offset]
        if not before:
            return stretch.time
        last = before[-1].segment
        if last.end <= offset:
            return max(stretch.time, last.last)
        created = self.histories[replid].created
        return max(stretch.time, min(max(created, last.first), last.last))

    def all_ranges(self) -> list[Range]:
        """Return everything that can be restored, the oldest history first."""
        return [range_ for replid in self.histories for range_ in self.ranges(replid)]

    def newest_history(self) -> str | None:
        """Return the history of which something was stored last.

        One of which nothing can be restored does not count: its bytes without its
        snapshot are worth nothing, and are not to be continued.
        """
        stored = [
            replid
            for replid in self.histories
            if self.end(replid) is not None and self.ranges(replid)
        ]
        return max(stored, key=self.last_time, default=None)

    def last_time(self, replid: str) -> tuple[int, int]:
        """Return when the last of a history was stored, and when it began (ms)."""
        segments = self.segments.get(replid, ())
        times = [segment.last for segment in segments]
        times += [s.name.time for s in self.snapshots if s.name.replid == replid]
        return max(times), self.histories[replid].created

    def tip(self, replid: str) -> SegmentName | SnapshotName | None:
        """Return what ends where a recording of a history has to go on.

        That is the end of what is stored, unless a later snapshot tells that the server
        went back behind it (it was restored from an image of its disk, with its replid
        and all): what was received before that snapshot does not count then.
        """
        snapshots = [s.name for s in self.snapshots if s.name.replid == replid]
        announced = max((name.time for name in snapshots), default=0)
        segments = self.segments.get(replid, ())
        tips: list[tuple[int, SegmentName | SnapshotName]] = [
            (name.offset, name) for name in snapshots if name.time == announced
        ]
        tips += [(name.end, name) for name in segments if name.last >= announced]
        # Of both at an offset the segment, which knows the database.
        return max(reversed(tips), key=itemgetter(0), default=(0, None))[1]

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


def clip(slices: Iterable[Slice], start: int, end: int) -> tuple[Slice, ...]:
    """Return what lies in [start, end) of slices."""
    return tuple(
        Slice(slice_.segment, max(slice_.start, start), min(slice_.end, end))
        for slice_ in slices
        if max(slice_.start, start) < min(slice_.end, end)
    )


def build(listing: Mapping[str, int], contents: Mapping[str, bytes]) -> Catalogue:
    """Build the catalogue of a source.

    listing maps each path in the source's folder to its length in bytes; contents has
    the documents that documents_of() names.
    """
    catalogue = Catalogue(stored_bytes=sum(listing.values()))
    histories: list[History] = []
    for path in sorted(listing):
        try:
            match parse(path):
                case SegmentName() as segment:
                    catalogue.segments.setdefault(segment.replid, []).append(segment)
                case HistoryName() as name:
                    histories.append(_history(contents[path], path, name))
                case SnapshotName() as name if path == name.manifest:
                    snapshot = _snapshot(contents[path], path, name, listing)
                    catalogue.snapshots.append(snapshot)
                case GapName() as name:
                    catalogue.gaps.append(_gap(contents[path], path, name))
                case _:
                    pass
        except VerificationError as error:
            catalogue.problems.append(str(error))
    for segments in catalogue.segments.values():
        segments.sort(key=lambda segment: (segment.start, -segment.end))
    for replid in _undocumented(catalogue, histories):
        path = HistoryName(replid).path
        if path not in listing:
            catalogue.problems.append(f"{path} is missing")
        histories.append(History(replid, "full-resync", _begun(catalogue, replid)))
    histories.sort(key=lambda history: history.created)
    catalogue.histories = {history.replid: history for history in histories}
    return catalogue


def _history(content: bytes, path: str, name: HistoryName) -> History:
    history = documents.decode(History, content, path)
    _must_fit(path, name, HistoryName(history.replid))
    return history


def _snapshot(
    content: bytes, path: str, name: SnapshotName, listing: Mapping[str, int]
) -> Snapshot:
    manifest = documents.decode(Manifest, content, path)
    of = SnapshotName(manifest.replid, manifest.offset, manifest.time)
    _must_fit(path, name, of)
    if listing.get(name.rdb) != manifest.stored_bytes:
        raise VerificationError(
            f"{name.rdb} is missing or not {manifest.stored_bytes} bytes"
        )
    return Snapshot(name, manifest)


def _gap(content: bytes, path: str, name: GapName) -> Gap:
    gap = documents.decode(Gap, content, path)
    _must_fit(path, name, GapName(gap.replid, gap.start_offset, gap.end_offset))
    return gap


def _must_fit(path: str, name: Name, of: Name) -> None:
    if name != of:
        raise VerificationError(f"{path} is damaged: it is about something else")


def _undocumented(catalogue: Catalogue, histories: Sequence[History]) -> list[str]:
    named = set(catalogue.segments)
    named |= {snapshot.name.replid for snapshot in catalogue.snapshots}
    return sorted(named - {history.replid for history in histories})


def _begun(catalogue: Catalogue, replid: str) -> int:
    times = [segment.first for segment in catalogue.segments.get(replid, ())]
    times += [s.name.time for s in catalogue.snapshots if s.name.replid == replid]
    return min(times)
