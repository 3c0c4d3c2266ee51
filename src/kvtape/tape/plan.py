"""Choosing what to restore from: a point and a catalogue in, a plan out.

A plan is a value; nothing here reads a file. What a name cannot tell (the offset of a
time within a segment, the command that an offset falls into) the reader finds out
afterwards, and it can only lower the plan's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvtape.errors import PointError, UsageError
from kvtape.tape.catalogue import (
    Catalogue,
    Part,
    Range,
    Slice,
    Snapshot,
    Stretch,
    clip,
)
from kvtape.tape.point import Point, ToLatest, ToTime, format_time


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
        """Return the plan that stops at an earlier offset, not before its snapshot."""
        slices = clip(self.slices, self.snapshot.name.offset, offset)
        return Plan(self.replid, offset, self.snapshot, slices)


def choose(catalogue: Catalogue, point: Point) -> Plan:
    """Return the plan for a point; PointError names the nearest possible ones."""
    ranges = catalogue.all_ranges()
    if not ranges:
        raise PointError(
            "nothing can be restored yet: no snapshot is complete; let kvtape record "
            "run until it says that the snapshot is stored"
        )
    if isinstance(point, ToLatest):
        return _to_latest(catalogue, ranges)
    if isinstance(point, ToTime):
        return _to_time(catalogue, ranges, point.time)
    if point.replid is None:
        return _to_bare_offset(catalogue, ranges, point.offset)
    return _to_offset(catalogue, point.replid, point.offset)


def _to_offset(catalogue: Catalogue, prefix: str, offset: int) -> Plan:
    replid = history_named(catalogue, prefix)
    plan = _find(catalogue, replid, offset)
    if plan is None:
        raise _not_restorable(catalogue, replid, offset, f"{prefix}:")
    return plan


def history_named(catalogue: Catalogue, prefix: str) -> str:
    """Return the history whose name begins so; UsageError if it could be several."""
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
            f"offset {offset} cannot be restored of the newest history, {newest}, but "
            "it can of others: name the one you mean, "
            + " or ".join(f"{range_.replid}:{offset}" for range_ in fitting)
        )
    raise _not_restorable(catalogue, newest, offset, "")


def _find(catalogue: Catalogue, replid: str, offset: int) -> Plan | None:
    lineage = catalogue.lineage(replid)
    for stretch in catalogue.stretches(lineage):
        if stretch.start <= offset <= stretch.end:
            return _plan(catalogue, lineage, stretch, offset)
    return None


def _plan(
    catalogue: Catalogue,
    lineage: Sequence[Part],
    stretch: Stretch,
    offset: int,
    time: int | None = None,
) -> Plan:
    """Return the plan for an offset of a stretch; time is when to be back there.

    The newest snapshot wants the least stream. But one taken after the time may hold
    more than there was then.
    """
    snapshot = _newest_snapshot(catalogue, lineage, stretch, offset, time)
    assert snapshot is not None  # a stretch begins with one
    holder = next(part for part in lineage if part.holds(offset))
    slices = clip(stretch.slices, snapshot.name.offset, offset)
    return Plan(holder.replid, offset, snapshot, slices)


def _newest_snapshot(
    catalogue: Catalogue,
    lineage: Sequence[Part],
    stretch: Stretch,
    offset: int,
    time: int | None = None,
) -> Snapshot | None:
    return max(
        (
            snapshot
            for snapshot in catalogue.snapshots_of(lineage)
            if stretch.start <= snapshot.name.offset <= offset
            and (time is None or snapshot.name.time <= time)
        ),
        key=lambda snapshot: (snapshot.name.offset, snapshot.name.time),
        default=None,
    )


def begin_by(catalogue: Catalogue, plan: Plan, offset: int) -> Plan:
    """Return a plan to the same end whose snapshot is at an offset or before it.

    PointError if there is none from which the stream goes on without a hole.
    """
    if plan.snapshot.name.offset <= offset:
        return plan
    lineage = catalogue.lineage(plan.replid)
    for stretch in catalogue.stretches(lineage):
        if stretch.start <= plan.offset <= stretch.end:
            snapshot = _newest_snapshot(catalogue, lineage, stretch, offset)
            if snapshot is not None:
                slices = clip(stretch.slices, snapshot.name.offset, plan.offset)
                return Plan(plan.replid, plan.offset, snapshot, slices)
    raise PointError(
        f"offset {offset} is before the snapshot at {plan.snapshot.name.offset}, which "
        "has what was done until then, and there is no older one that the stream goes "
        f"on from to {plan.offset}"
    )


def _to_latest(catalogue: Catalogue, ranges: Sequence[Range]) -> Plan:
    def age(range_: Range) -> tuple[int, int, int]:
        return (
            range_.end_time,
            catalogue.histories[range_.replid].created,
            range_.end,
        )

    latest = max(ranges, key=age)
    plan = _find(catalogue, latest.replid, latest.end)
    assert plan is not None  # that is what a range says
    return plan


def _to_time(catalogue: Catalogue, ranges: Sequence[Range], time: int) -> Plan:
    holding = [r for r in ranges if r.start_time <= time <= r.end_time]
    if not holding:
        raise _no_such_time(ranges, time)
    # Of a history and the one that forked from it, the later one.
    range_ = max(reversed(holding), key=lambda range_: range_.start_time)
    lineage = catalogue.lineage(range_.replid)
    stretch = next(
        stretch
        for stretch in catalogue.stretches(lineage)
        if stretch.start <= range_.start <= stretch.end
    )
    offset, goes_on = _received_by(time, range_.start, stretch.slices)
    plan = _plan(catalogue, lineage, stretch, offset, time)
    return replace(plan, time=time) if goes_on and plan.slices else plan


def _received_by(time: int, start: int, slices: Sequence[Slice]) -> tuple[int, bool]:
    """Return the end of the last segment begun by a time, and whether it goes on.

    If it does, the reader looks for the offset in it, and no segment behind it counts:
    where they overlap, it may say that its bytes came earlier, by another clock.
    """
    offset = start
    for slice_ in slices:
        if slice_.end > start:
            if slice_.segment.first > time:
                break
            offset = slice_.end
            if slice_.segment.last > time:
                return offset, True
    return offset, False


def _no_such_time(ranges: Sequence[Range], time: int) -> PointError:
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
    return PointError(
        f"{format_time(time)} {why}; the nearest that can be restored: "
        + " and ".join(nearest)
    )


def _not_restorable(
    catalogue: Catalogue, replid: str, offset: int, prefix: str
) -> PointError:
    """Name the nearest offsets of a lineage, as the user would have to name them."""
    lineage = catalogue.lineage(replid)
    stretches = catalogue.stretches(lineage)
    if not stretches:
        return PointError(
            f"nothing of the history {replid} can be restored: it has no snapshot; "
            "kvtape info lists what can be"
        )
    below = max((s.end for s in stretches if s.end < offset), default=None)
    above = min((s.start for s in stretches if s.start > offset), default=None)
    if below is None:
        return PointError(
            f"offset {offset} is before the first snapshot; the first that can be "
            f"restored is {prefix}{above}"
        )
    why = _gap_reason(catalogue, lineage, offset, is_last=above is None)
    if above is None:
        return PointError(
            f"offset {offset} is after the last recorded byte{why}; the last that can "
            f"be restored is {prefix}{below}"
        )
    return PointError(
        f"offset {offset} is in a gap{why}; the nearest that can be restored are "
        f"{prefix}{below} and {prefix}{above}"
    )


def _gap_reason(
    catalogue: Catalogue, lineage: Sequence[Part], offset: int, *, is_last: bool
) -> str:
    holder = next(part for part in lineage if part.holds(offset)).replid
    # A full resync's gap begins in the history before it, and ends in the next.
    earlier = {part.replid for part in lineage if not is_last} - {holder}
    for gap in catalogue.gaps:
        ends = gap.end_offset is None or offset < gap.end_offset
        is_its = gap.replid == holder
        is_its = is_its or (gap.replid in earlier and gap.end_offset is None)
        if is_its and gap.start_offset < offset and ends:
            return f" ({gap.reason})"
    return ""
