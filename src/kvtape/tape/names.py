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

# What a source may be called: it is a folder's name on any store.
SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_HISTORY = re.compile(r"histories/([^/]{40})\.json")
_SEGMENT = re.compile(r"stream/([^/]{40})/(\d{8})/(\d{20})-(\d{20})-(\d+)-(\d+)\.seg")
_SNAPSHOT = re.compile(r"snapshots/([^/]{40})/(\d{20})-(\d+)/(rdb\.zst|manifest\.json)")
_GAP = re.compile(r"gaps/([^/]{40})/(\d{20})-(\d{20}|resync)\.json")


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
        # Days keep the folders small, and sort as the offsets do: time never goes back
        # within a history, even when the clock does.
        day = datetime.fromtimestamp(self.first / 1000, UTC).strftime("%Y%m%d")
        name = f"{self.start:020}-{self.end:020}-{self.first}-{self.last}.seg"
        return f"stream/{self.replid}/{day}/{name}"


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


@dataclass(frozen=True, slots=True, order=True)
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


Name = SegmentName | SnapshotName | GapName | HistoryName


def parse(path: str) -> Name | None:
    """Return what a path names, or None if it is no name of ours.

    Both files of a snapshot name the snapshot.
    """
    if match := _SEGMENT.fullmatch(path):
        replid, _, start, end, first, last = match.groups()
        return SegmentName(replid, int(start), int(end), int(first), int(last))
    if match := _SNAPSHOT.fullmatch(path):
        return SnapshotName(match[1], int(match[2]), int(match[3]))
    if match := _GAP.fullmatch(path):
        end_word = match[3]
        gap_end = None if end_word == "resync" else int(end_word)
        return GapName(match[1], int(match[2]), gap_end)
    if match := _HISTORY.fullmatch(path):
        return HistoryName(match[1])
    return None
