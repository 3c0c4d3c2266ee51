"""The names in a repository: names carry the facts, so a listing is a catalogue.

The tree is a contract (docs/format.md). All paths here are relative to the folder of
one source, with / between their parts whatever the store; the spool in front of the
repository has the same tree. Times are ms since the epoch, UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

REPOSITORY_DOCUMENT = "kvtape.json"
SOURCE_DOCUMENT = "source.json"

# What a source may be called: it is a folder's name on any store, beside kvtape.json.
SOURCE_NAME = re.compile(r"(?!kvtape\.json$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# A time has at most 14 digits: it is then before the year 5139, and has a day.
_REPLID, _OFFSET, _TIME = "([0-9A-Za-z]{40})", "([0-9]{20})", "(0|[1-9][0-9]{0,13})"

_DAY_MS = 24 * 60 * 60 * 1000

_HISTORY = re.compile(rf"histories/{_REPLID}\.json")
_RANGE = rf"{_REPLID}/[0-9]{{8}}/{_OFFSET}-{_OFFSET}-{_TIME}-{_TIME}"
_SEGMENT = re.compile(rf"stream/{_RANGE}\.seg")
_FILTER = re.compile(rf"filters/{_RANGE}\.keys")
_SNAPSHOT = re.compile(
    rf"snapshots/{_REPLID}/{_OFFSET}-{_TIME}/(?:rdb\.zst|manifest\.json)"
)
_GAP = re.compile(rf"gaps/{_REPLID}/{_OFFSET}-(?:{_OFFSET}|resync)\.json")


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """The stream bytes [start, end) of one history, received from first to last."""

    replid: str
    start: int
    end: int
    first: int
    last: int

    @property
    def path(self) -> str:
        """Where it is."""
        return f"stream/{_range(self)}.seg"


@dataclass(frozen=True, slots=True, order=True)
class FilterName:
    """The filter that tells which keys a segment may name; it can be made anew."""

    segment: SegmentName

    @property
    def replid(self) -> str:
        """The history of the segment."""
        return self.segment.replid

    @property
    def path(self) -> str:
        """Where it is."""
        return f"filters/{_range(self.segment)}.keys"


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """The snapshot at an offset, which the primary announced at time."""

    replid: str
    offset: int
    time: int

    @property
    def folder(self) -> str:
        """Where its two files are."""
        return f"snapshots/{self.replid}/{self.offset:020}-{self.time}"

    @property
    def rdb(self) -> str:
        """Where the RDB file is, compressed."""
        return f"{self.folder}/rdb.zst"

    @property
    def manifest(self) -> str:
        """Where its manifest is; a snapshot without one is not complete."""
        return f"{self.folder}/manifest.json"


@dataclass(frozen=True, slots=True)
class GapName:
    """A hole in a history from start on; end is None across a full resync."""

    replid: str
    start: int
    end: int | None

    @property
    def path(self) -> str:
        """Where what is known of it is."""
        end = "resync" if self.end is None else f"{self.end:020}"
        return f"gaps/{self.replid}/{self.start:020}-{end}.json"


@dataclass(frozen=True, slots=True, order=True)
class HistoryName:
    """What is known of a history as a whole."""

    replid: str

    @property
    def path(self) -> str:
        """Where it is."""
        return f"histories/{self.replid}.json"


def segment_folders(replid: str, first: int, last: int) -> list[str]:
    """Return the folders of the segments that begin between two times, with a /."""
    days = [_day(time) for time in range(first, last, _DAY_MS)] + [_day(last)]
    return [f"stream/{replid}/{day}/" for day in dict.fromkeys(days)]


def _range(segment: SegmentName) -> str:
    # Days keep the folders small, and sort as the offsets do: time never goes back
    # within a history, even when the clock does.
    name = f"{segment.start:020}-{segment.end:020}-{segment.first}-{segment.last}"
    return f"{segment.replid}/{_day(segment.first)}/{name}"


def _day(time: int) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y%m%d")


Name = SegmentName | SnapshotName | GapName | HistoryName | FilterName


def parse(path: str) -> Name | None:
    """Return what a path names, or None if it is no name of ours.

    Both files of a snapshot name the snapshot.
    """
    if match := _SEGMENT.fullmatch(path):
        segment = _segment(match)
        return segment if _is_written(segment, segment, path) else None
    if match := _FILTER.fullmatch(path):
        name = FilterName(_segment(match))
        return name if _is_written(name, name.segment, path) else None
    if match := _SNAPSHOT.fullmatch(path):
        return SnapshotName(match[1], int(match[2]), int(match[3]))
    if match := _GAP.fullmatch(path):
        return GapName(match[1], int(match[2]), int(match[3]) if match[3] else None)
    if match := _HISTORY.fullmatch(path):
        return HistoryName(match[1])
    return None


def _segment(match: re.Match[str]) -> SegmentName:
    replid, start, end, first, last = match.groups()
    return SegmentName(replid, int(start), int(end), int(first), int(last))


def _is_written(
    name: SegmentName | FilterName, segment: SegmentName, path: str
) -> bool:
    # In the folder of another day, or empty, it is none that was ever written.
    return segment.start < segment.end and name.path == path
