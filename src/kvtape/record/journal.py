"""What happened to one source since this process began, counted.

It is fed by events alone, and outlives the agents of its source, so that a source that
is started again keeps its counts: a counter that goes back is how monitoring is fooled.
It also knows what no agent does after a restart: how far the repository was filled by
whoever recorded before.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from kvtape.record.events import (
    BreakExplained,
    DiskFails,
    DiskRecovers,
    Event,
    FileStored,
    FiltersFail,
    FullResyncBegun,
    FullResyncComplete,
    FullResyncPostponed,
    GapFound,
    Linked,
    LinkLost,
    SeedFails,
    SourceFails,
    SpoolFull,
    StartWaits,
    UploadsFail,
    UploadsRecover,
)
from kvtape.tape.names import SegmentName, SnapshotName, parse

# Upper bounds of the upload histogram, in seconds. A segment of 64 MiB takes some
# seconds at 100 Mbit/s; beyond a minute, something is wrong.
UPLOAD_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_MOST_GAPS = 20

HistoryReason = Literal["first", "failover", "full-resync"]

_BEGINS: dict[str, HistoryReason] = {"first": "first", "history": "full-resync"}

# What begins a phase.
_CHANGES = (
    *(Linked, LinkLost, FullResyncPostponed, FullResyncBegun, FullResyncComplete),
    *(DiskFails, DiskRecovers, SourceFails, SpoolFull),
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """The last thing that went wrong. time is in ms."""

    time: int
    reason: str


def _now() -> int:
    return int(time.time() * 1000)


@dataclass(slots=True)
class Durations:
    """How long something took: the counts of a histogram, the last beyond all."""

    bounds: tuple[float, ...] = UPLOAD_BOUNDS
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Journal:
    """The counts of one source. Times are in ms since the epoch."""

    source: str
    began: int = field(default_factory=_now)
    changed: int = field(default_factory=_now)
    history_reason: HistoryReason | None = None
    _next_reason: HistoryReason | None = None  # once the snapshot is whole
    # What the repository holds of each history, and when the newest of it was received.
    # None of it counts before there is a snapshot.
    stored: dict[str, int] = field(default_factory=dict)
    stored_time: int | None = None
    full_resyncs: Counter[str] = field(default_factory=Counter)
    partial_resyncs: Counter[str] = field(default_factory=Counter)
    upload_errors: Counter[str] = field(default_factory=Counter)
    uploads: Durations = field(default_factory=Durations)
    filter_errors: int = 0
    # Those of earlier runs, too: what is missing is missing.
    gaps: int = 0
    last_gaps: list[GapFound] = field(default_factory=list)
    _known_gaps: set[tuple[str, int]] = field(default_factory=set)
    last_snapshot: FullResyncComplete | None = None
    last_trouble: Trouble | None = None
    # Set while what is written at the primary cannot become part of what is recorded:
    # why a full resync is needed, until its snapshot is whole.
    open_gap: str | None = None

    def note(self, event: Event) -> None:
        """Keep what follows from an event."""
        if isinstance(event, _CHANGES) and not getattr(event, "is_repeated", False):
            self.changed = _now()
        match event:
            case (
                LinkLost()
                | BreakExplained()
                | DiskFails()
                | SourceFails()
                | SpoolFull()
                | SeedFails()
                | StartWaits()
            ):
                self._note_trouble(event)
            case UploadsFail(is_passing=is_passing):
                self.upload_errors["passing" if is_passing else "lasting"] += 1
                self._note_trouble(event)
            case FullResyncPostponed(reason=reason):
                self.open_gap = reason
                self._note_trouble(event)
            case FileStored(path=path, seconds=seconds):
                self.uploads.add(seconds)
                self._note_stored(path)
            case FiltersFail():
                self.filter_errors += 1
            case DiskRecovers() | UploadsRecover():
                pass
            case _:
                self._note_link(event)

    def _note_trouble(
        self,
        event: LinkLost
        | BreakExplained
        | DiskFails
        | SourceFails
        | SpoolFull
        | SeedFails
        | StartWaits
        | UploadsFail
        | FullResyncPostponed,
    ) -> None:
        self.last_trouble = Trouble(_now(), event.reason)

    def _note_link(self, event: Event) -> None:
        match event:
            case Linked(reason=why):
                self.partial_resyncs[why] += 1
                self.open_gap = None
                if why == "failover":
                    self.history_reason = "failover"
            case FullResyncBegun(reason=why):
                self.full_resyncs[why] += 1
                self._next_reason = _BEGINS.get(why, self.history_reason)
                if why != "first":
                    self.open_gap = "a full resync is under way"
            case FullResyncComplete():
                self.open_gap = None
                self.last_snapshot = event
                # One that was begun elsewhere was not announced here.
                self.history_reason = (
                    self._next_reason or self.history_reason or "first"
                )
            case GapFound():
                self.note_gap(event)
            case _:
                pass

    def note_gap(self, gap: GapFound) -> None:
        """Count a gap, once."""
        name = gap.replid, gap.start_offset
        if name not in self._known_gaps:
            self._known_gaps.add(name)
            self.gaps += 1
            self.last_gaps = [*self.last_gaps, gap][-_MOST_GAPS:]

    def _note_stored(self, path: str) -> None:
        match name := parse(path):
            case SegmentName() if self.stored_time is not None:
                self.note_held(name.replid, name.end, name.last)
            case SnapshotName() if path == name.manifest:
                self.note_held(name.replid, name.offset, name.time)
            case _:
                pass

    def note_held(self, replid: str, end: int, received: int) -> None:
        """Note that the repository holds a history up to an offset."""
        self.stored[replid] = max(end, self.stored.get(replid, 0))
        self.stored_time = max(received, self.stored_time or 0)
