"""Choosing what to read: two ends and a catalogue in, the stream between them out.

Unlike a restore this needs no snapshot, only the bytes. By times, it is the story of
the source that is read, through failovers and full resyncs, without what failovers
lost. By offsets, it is one history and its ancestors. What is missing in between is
part of the answer: an audit must not be silent about what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvtape.errors import PointError, UsageError
from kvtape.tape.catalogue import Catalogue, Part, Slice, clip
from kvtape.tape.orphans import stories
from kvtape.tape.plan import history_named
from kvtape.tape.point import Point, ToOffset, ToTime, format_time

_FAR = 2**63


@dataclass(frozen=True, slots=True)
class Hole:
    """What is not recorded: from start of replid on, up to end of end_replid.

    reason is what the recording says of it, if it does; times are ms since the epoch.
    """

    replid: str
    start: int
    end_replid: str
    end: int
    start_time: int
    end_time: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """The stream bytes of slices, in order, and what is missing between them.

    after and until (ms) bound them further: only what was received after the one and by
    the other counts. Where they lie within a slice, that has more.
    """

    slices: tuple[Slice, ...]
    holes: tuple[Hole, ...] = ()
    after: int | None = None
    until: int | None = None


def choose_span(
    catalogue: Catalogue, start: Point | None = None, end: Point | None = None
) -> Span:
    """Return what is recorded from one point to another; None is as far as there is.

    PointError if an end is not recorded, or nothing is in between.
    """
    if not catalogue.segments:
        raise PointError(
            "no stream is recorded yet: let kvtape record run until something was "
            "written to the server"
        )
    after = start.time if isinstance(start, ToTime) else None
    until = end.time if isinstance(end, ToTime) else None
    if after is not None and until is not None and after > until:
        raise UsageError(
            f"the range ends at {format_time(until)}, before it begins at "
            f"{format_time(after)}"
        )
    if isinstance(start, ToOffset) or isinstance(end, ToOffset):
        slices, missing = _by_offset(catalogue, start, end)
    else:
        slices = _story(catalogue)
        missing = list(_holes(catalogue, slices))
    low, high = -1 if after is None else after, _FAR if until is None else until
    holes = tuple(
        hole
        for hole in missing
        # Clocks may differ on both sides of it: then it may end before it begins.
        if max(hole.start_time, hole.end_time) > low
        and min(hole.start_time, hole.end_time) <= high
    )
    return Span(_by_time(slices, low, high), holes, after, until)


def _story(catalogue: Catalogue) -> tuple[Slice, ...]:
    told = [catalogue.bytes_of(story, 0, _FAR) for story in stories(catalogue)]
    told = [slices for slices in told if slices]
    told.sort(key=lambda slices: slices[0].segment.first)
    return tuple(slice_ for slices in told for slice_ in slices)


def _newest(catalogue: Catalogue) -> tuple[Part, ...]:
    """Return the story of which something was received last.

    That nothing of it can be restored does not matter here.
    """

    def last(story: tuple[Part, ...]) -> int:
        slices = catalogue.bytes_of(story, 0, _FAR)
        return slices[-1].segment.last if slices else -1

    return max(stories(catalogue), key=last)


def _by_offset(
    catalogue: Catalogue, start: Point | None, end: Point | None
) -> tuple[tuple[Slice, ...], list[Hole]]:
    lineage = _lineage(catalogue, start, end)
    stored = catalogue.bytes_of(lineage, 0, _FAR)
    first = start.offset if isinstance(start, ToOffset) else 0
    last = end.offset if isinstance(end, ToOffset) else _FAR
    if first > last:
        raise UsageError(f"the range ends at {last}, before it begins at {first}")
    for point in (start, end):
        if isinstance(point, ToOffset):
            _must_be_recorded(lineage[-1].replid, stored, point.offset)
    # Both ends may be at the other side of a hole.
    holes = [
        hole
        for hole in _holes(catalogue, stored)
        if first <= hole.start and hole.end <= last
    ]
    return clip(stored, first, last), holes


def _lineage(
    catalogue: Catalogue, start: Point | None, end: Point | None
) -> tuple[Part, ...]:
    """Return the history that both ends are of, with its ancestors."""
    replids = [
        history_named(catalogue, point.replid)
        for point in (start, end)
        if isinstance(point, ToOffset) and point.replid is not None
    ]
    if not replids:
        return _newest(catalogue)
    lineage = catalogue.lineage(replids[-1])
    ends = {part.replid: part.end for part in lineage}
    if replids[0] not in ends:
        raise PointError(
            f"the history {replids[-1]} does not come from {replids[0]}, so there is "
            "no stream from the one to the other; kvtape info shows how histories part"
        )
    fork = ends[replids[0]]
    if isinstance(start, ToOffset) and fork is not None and start.offset > fork:
        raise PointError(
            f"offset {start.offset} of the history {replids[0]} is no part of "
            f"{replids[-1]}, which parted from it at {fork}"
        )
    return lineage


def _must_be_recorded(replid: str, stored: Sequence[Slice], offset: int) -> None:
    if any(slice_.start <= offset <= slice_.end for slice_ in stored):
        return
    below = max((s.end for s in stored if s.end < offset), default=None)
    above = min((s.start for s in stored if s.start > offset), default=None)
    near = [str(nearest) for nearest in (below, above) if nearest is not None]
    what = f"of the history {replid}"
    if not near:
        raise PointError(f"nothing is recorded {what}; kvtape info lists what is")
    raise PointError(
        f"offset {offset} {what} is not recorded; the nearest that "
        f"{'is' if len(near) == 1 else 'are'}: {' and '.join(near)}"
    )


def _by_time(slices: Sequence[Slice], low: int, high: int) -> tuple[Slice, ...]:
    within = tuple(
        slice_
        for slice_ in slices
        if slice_.segment.last > low and slice_.segment.first <= high
    )
    if slices and not within:
        raise _nothing_received(slices, low, high)
    return within


def _nothing_received(slices: Sequence[Slice], low: int, high: int) -> PointError:
    lasts = [s.segment.last for s in slices if s.segment.last <= low]
    firsts = [s.segment.first for s in slices if s.segment.first > high]
    if not lasts:
        return PointError(
            "the range ends before the first recorded byte, which was received at "
            + format_time(min(firsts))
        )
    if not firsts:
        return PointError(
            "the range begins after the last recorded byte, which was received at "
            + format_time(max(lasts))
        )
    return PointError(
        "nothing is recorded of the range; what is nearest was received at "
        f"{format_time(max(lasts))} and {format_time(min(firsts))}"
    )


def runs(catalogue: Catalogue, slices: Iterable[Slice]) -> list[list[Slice]]:
    """Return slices in groups that follow without a hole."""
    found: list[list[Slice]] = []
    for slice_ in slices:
        if found and _follows(catalogue, found[-1][-1], slice_):
            found[-1].append(slice_)
        else:
            found.append([slice_])
    return found


def _holes(catalogue: Catalogue, slices: Iterable[Slice]) -> Iterator[Hole]:
    for one, other in pairwise(runs(catalogue, slices)):
        before, behind = one[-1], other[0]
        yield Hole(
            before.segment.replid,
            before.end,
            behind.segment.replid,
            behind.start,
            before.segment.last,
            behind.segment.first,
            _reason(catalogue, before, behind),
        )


def _follows(catalogue: Catalogue, before: Slice, slice_: Slice) -> bool:
    if before.end != slice_.start:
        return False
    lineage = catalogue.lineage(slice_.segment.replid)
    return before.segment.replid in {part.replid for part in lineage}


def _reason(catalogue: Catalogue, before: Slice, slice_: Slice) -> str | None:
    """Return what was written down of a hole between two slices."""
    for gap in catalogue.gaps:
        ends = gap.end_offset is None or gap.end_offset >= before.end
        is_here = gap.replid in (before.segment.replid, slice_.segment.replid)
        if is_here and ends and gap.start_offset <= max(before.end, slice_.start):
            in_time = gap.end_time >= before.segment.last
            if in_time and gap.start_time <= slice_.segment.last:
                return gap.reason
    return None
