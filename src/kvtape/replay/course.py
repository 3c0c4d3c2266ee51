"""Which bytes a replay goes through: from a point to another, or on and on.

Without a snapshot it is what an audit of the same range reads. With one, and where it
is followed, it is one history with its ancestors, as what the target holds must be what
the next byte came after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvtape.errors import PointError
from kvtape.tape.catalogue import Catalogue, Slice
from kvtape.tape.point import format_time
from kvtape.tape.span import Span

_FAR = 2**63


def must_be_whole(span: Span, *, force: bool) -> None:
    """Raise PointError for what is missing in a span; with force it is left out."""
    for hole in () if force else span.holes:
        raise PointError(
            f"between offset {hole.start} of {hole.replid[:8]} and {hole.end} of "
            f"{hole.end_replid[:8]} the stream is not recorded"
            f"{f' ({hole.reason})' if hole.reason else ''}: end the replay at "
            f"{format_time(hole.start_time)}, begin it behind, or leave the hole out "
            "by --force"
        )


def behind(
    catalogue: Catalogue, slices: Sequence[Slice], replid: str, offset: int
) -> tuple[Slice, ...]:
    """Return what of slices is behind a position; PointError if that is not in them."""
    for number, slice_ in enumerate(slices):
        is_in = slice_.start <= offset <= slice_.end
        if is_in and _knows(catalogue, slice_.segment.replid, replid, offset):
            first = replace(slice_, start=offset)
            rest = tuple(slices[number + 1 :])
            return (first, *rest) if first.start < first.end else rest
    raise PointError(
        f"the target has had the stream up to offset {offset} of {replid}, which is "
        "not in the range: ask for one that it is in, or replay into another server"
    )


def _knows(catalogue: Catalogue, replid: str, ancestor: str, offset: int) -> bool:
    """Whether an offset of one history is one of another that may come from it."""
    if replid == ancestor:
        return True
    if replid not in catalogue.histories:
        return False
    return any(
        part.replid == ancestor and (part.end is None or offset <= part.end)
        for part in catalogue.lineage(replid)
    )


def next_slices(catalogue: Catalogue, replid: str, offset: int) -> tuple[Slice, ...]:
    """Return what was recorded since, in the history that is recorded now.

    PointError if there is no way from the position to there.
    """
    newest = catalogue.newest_history()
    if newest is None:
        return ()
    if not _knows(catalogue, newest, replid, offset):
        raise PointError(
            f"the recording went on without what follows offset {offset} of {replid}: "
            "with a full resync, or from before it after a failover; replay anew, with "
            "--with-snapshot"
        )
    lineage = catalogue.lineage(newest)
    slices = catalogue.bytes_of(lineage, offset, _FAR)
    if slices and slices[0].start > offset:
        raise PointError(
            f"between offset {offset} and {slices[0].start} the stream is not "
            "recorded: replay anew, with --with-snapshot"
        )
    end = offset
    for number, slice_ in enumerate(slices):
        if slice_.start != end:
            return slices[:number]
        end = slice_.end
    return slices
