"""Choosing what to restore from: a point and a catalogue in, a plan out.

A plan is a value; nothing here reads a file. What a name cannot tell (the offset of a
time within a segment, the command that an offset falls into) the reader finds out
afterwards, and it can only lower the plan's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtape.errors import PointError, UsageError
from kvtape.tape.catalogue import Catalogue, Part, Range, Slice, Snapshot
from kvtape.tape.point import Point, ToLatest, ToOffset, ToTime, format_time


@dataclass(frozen=True, slots=True)
class Plan:
    """A snapshot, and the stream from there to offset in the history replid.

    time is set if the end is the last byte received by that time (ms), which lies in
    the last slice.
    """

    replid: str
    offset: int
    snapshot: Snapshot
    slices: tuple[Slice, ...]
    time: int | None = None

    @property
    def stream_bytes(self) -> int:
        """The length of the stream to apply to the snapshot."""
        return self.offset - self.snapshot.name.offset

    def cut(self, offset: int) -> Plan:
        """Return the plan that stops at an earlier offset of its last slice."""
        slices = self.slices
        if slices and offset < slices[-1].end:
            last = slices[-1]
            slices = slices[:-1]
            if offset > last.start:
                slices += (Slice(last.segment, last.start, offset),)
        return Plan(self.replid, offset, self.snapshot, slices)


def choose(catalogue: Catalogue, point: Point) -> Plan:
    """Return the plan for a point; PointError names the nearest possible ones."""
    ranges = catalogue.all_ranges()
    if not ranges:
        raise PointError(
            "nothing can be restored yet: no snapshot is complete; let kvtape record "
            "run until it says that the snapshot is stored"
        )
    match point:
        case ToLatest():
            last = max(ranges, key=lambda range_: (range_.end_time, range_.end))
            return _to_offset(catalogue, last.replid, last.end)
        case ToTime(time):
            return _to_time(catalogue, ranges, time)
        case ToOffset(offset, prefix):
            if prefix is None:
                return _to_bare_offset(catalogue, ranges, offset)
            return _to_offset(catalogue, _history(catalogue, prefix), offset)


def _history(catalogue: Catalogue, prefix: str) -> str:
    found = [replid for replid in catalogue.histories if replid.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"several histories begin with {prefix}: {', '.join(found)}")
    raise PointError(
        f"no history begins with {prefix}; there are: {', '.join(catalogue.histories)}"
    )


def _to_bare_offset(catalogue: Catalogue, ranges: Sequence[Range], offset: int) -> Plan:
    newest = catalogue.newest_history()
    assert newest is not None  # there are ranges, so there are histories
    plan = _find(catalogue, newest, offset)
    if plan is not None:
        return plan
    fitting = [r for r in ranges if r.start <= offset <= r.end]
    if fitting:
        raise PointError(
            f"offset {offset} is not in the newest history ({newest}) or its ancestors,"
            " but in "
            + ", ".join(f"{range_.replid}:{offset}" for range_ in fitting)
            + "; name the one you mean"
        )
    raise _not_restorable(catalogue, newest, offset)


def _to_offset(catalogue: Catalogue, replid: str, offset: int) -> Plan:
    plan = _find(catalogue, replid, offset)
    if plan is None:
        raise _not_restorable(catalogue, replid, offset)
    return plan


def _find(catalogue: Catalogue, replid: str, offset: int) -> Plan | None:
    lineage = catalogue.lineage(replid)
    # The newest snapshot wants the least stream; an older one may reach where a newer
    # one, behind a hole, does not.
    snapshots = [
        snapshot
        for snapshot in catalogue.snapshots
        if snapshot.name.offset <= offset and _is_of(snapshot, lineage)
    ]
    for snapshot in sorted(snapshots, key=_age, reverse=True):
        start = snapshot.name.offset
        slices = catalogue.cover(lineage, start, offset)
        if (slices[-1].end if slices else start) == offset:
            holder = next(part for part in lineage if part.holds(offset))
            return Plan(holder.replid, offset, snapshot, tuple(slices))
    return None


def _is_of(snapshot: Snapshot, lineage: Sequence[Part]) -> bool:
    name = snapshot.name
    return any(
        part.replid == name.replid and (part.end is None or name.offset <= part.end)
        for part in lineage
    )


def _age(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.name.offset, snapshot.name.time


def _to_time(catalogue: Catalogue, ranges: Sequence[Range], time: int) -> Plan:
    holding = [r for r in ranges if r.start_time <= time <= r.end_time]
    if not holding:
        before = max((r.end_time for r in ranges if r.end_time < time), default=None)
        after = min((r.start_time for r in ranges if r.start_time > time), default=None)
        nearest = [format_time(near) for near in (before, after) if near is not None]
        why = (
            "is after the last recorded byte"
            if after is None
            else "is before the first snapshot"
            if before is None
            else "is in a gap"
        )
        raise PointError(
            f"{format_time(time)} {why}; the nearest that can be restored: "
            + " and ".join(nearest)
        )
    range_ = max(holding, key=lambda range_: range_.start_time)
    # Up to the end of the last segment that was begun by then. Within that segment the
    # reader looks for the offset.
    begun = [
        slice_
        for slice_ in catalogue.cover(
            catalogue.lineage(range_.replid), range_.start, range_.end
        )
        if slice_.segment.first <= time
    ]
    plan = _to_offset(
        catalogue, range_.replid, begun[-1].end if begun else range_.start
    )
    is_within = bool(begun) and begun[-1].segment.last > time
    return Plan(
        plan.replid,
        plan.offset,
        plan.snapshot,
        plan.slices,
        time if is_within else None,
    )


def _not_restorable(catalogue: Catalogue, replid: str, offset: int) -> PointError:
    ranges = [
        range_
        for part in catalogue.lineage(replid)
        for range_ in catalogue.ranges(part.replid)
    ]
    if not ranges:
        return PointError(
            f"nothing of the history {replid} can be restored: it has no snapshot"
        )
    below = max((r.end for r in ranges if r.end < offset), default=None)
    above = min((r.start for r in ranges if r.start > offset), default=None)
    if below is None:
        return PointError(
            f"offset {offset} is before the first snapshot; the first that can be "
            f"restored is {above}"
        )
    if above is None:
        return PointError(
            f"offset {offset} is after the last recorded byte; the last that can be "
            f"restored is {below}"
        )
    reasons = [
        f" ({gap.reason})"
        for gap in catalogue.gaps
        if gap.start_offset <= offset and (gap.end_offset or offset) >= offset
    ]
    return PointError(
        f"offset {offset} is in a gap{''.join(reasons[:1])}; the nearest that can be "
        f"restored are {below} and {above}"
    )
