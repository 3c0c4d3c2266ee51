"""Whether all who record a source tell the same story of the same bytes.

The stream is a function of (replication ID, offset): what two agents stored of the same
range must be equal, however each cut it, and readers take from both. If it is not, two
servers go by one replication ID (one was copied from the other's disk or image, or went
back to an older one), and neither recording can be trusted to be the whole story. That
must be loud, and both are kept.

Each agent compares what it has stored with what lies in the same range, *after* it
stored it: of two who do so at once, at least the later one sees the other. What is ours
is looked at once, so there is nothing to remember. Where nobody else records, no ranges
overlap, and nothing is ever read back; what it costs is a listing now and then: of the
day, and of the whole history where something older may lie in our range: at first,
after a time in which nothing was stored, and when the offsets went back.

All calls block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvtape.errors import IdentityError, VerificationError
from kvtape.storage.reader import differ_at, read_stream
from kvtape.storage.repository import SourceFolder
from kvtape.tape.catalogue import Slice
from kvtape.tape.names import SegmentName, parse, segment_folders

_log = logging.getLogger(__name__)

# How far the receipts of two agents for the same bytes may lie apart, in ms, without
# one of them having been away.
_APART = 30 * 60 * 1000


@dataclass(slots=True)
class Comparison:
    """Compares what this agent stored with what others did.

    unchecked are the segments that it stored and did not compare yet.
    """

    folder: SourceFolder
    unchecked: list[SegmentName] = field(default_factory=list)
    _last: SegmentName | None = None  # the last one that was compared

    def check(self) -> None:
        """Compare all that is unchecked; IdentityError if the bytes differ."""
        batch = list(self.unchecked)
        for replid in {name.replid for name in batch}:
            ours = [name for name in batch if name.replid == replid]
            stored = self._stored(ours)
            for name in ours:
                for other in overlapping(name, stored):
                    self._compare(name, other)
        if batch:
            self._last = batch[-1]
        del self.unchecked[: len(batch)]

    def _stored(self, ours: list[SegmentName]) -> list[SegmentName]:
        """Return what is stored of a history around the time of ours."""
        first, last = min(n.first for n in ours), max(n.last for n in ours)
        start = min(name.start for name in ours)
        before = self._last
        if (
            before is None
            or before.replid != ours[0].replid
            or start < before.end
            or first - before.last > _APART
        ):
            prefixes = [f"stream/{ours[0].replid}/"]
        else:
            prefixes = segment_folders(ours[0].replid, first - _APART, last + _APART)
        names = [
            parse(path) for prefix in prefixes for path in self.folder.list(prefix)
        ]
        return [name for name in names if isinstance(name, SegmentName)]

    def _compare(self, ours: SegmentName, other: SegmentName) -> None:
        try:
            at = first_difference((self.folder, ours), (self.folder, other))
        except VerificationError as error:
            # Damage is no other story. Who restores takes note of it, too.
            _log.error("%s: it cannot be compared with %s", error, ours.path)
            return
        if at is not None:
            raise IdentityError(
                f"{self.folder.url}/{ours.path} and {other.path} hold different bytes "
                f"at offset {at} of {ours.replid}: two servers go by this replication "
                "ID, or one went back to an older image; both recordings are kept: "
                "record each server as a --source of its own, and begin with a new "
                "--spool"
            )


def overlapping(name: SegmentName, stored: list[SegmentName]) -> list[SegmentName]:
    """Return the other segments that hold some of the same range."""
    return [
        other
        for other in stored
        if other != name and other.start < name.end and name.start < other.end
    ]


def first_difference(
    one: tuple[SourceFolder, SegmentName], other: tuple[SourceFolder, SegmentName]
) -> int | None:
    """Return the first offset at which two segments differ where they overlap."""
    at = max(one[1].start, other[1].start)
    end = min(one[1].end, other[1].end)
    pieces, others = _pieces(*one, at, end), _pieces(*other, at, end)
    differs = differ_at(pieces, others, at, end)
    return differs if differs < end else None


def _pieces(
    folder: SourceFolder, name: SegmentName, start: int, end: int
) -> Iterator[bytes]:
    for piece in read_stream(folder, [Slice(name, start, end)]):
        yield piece.data
    raise VerificationError(f"{folder.url}/{name.path} is damaged: it ends too early")
