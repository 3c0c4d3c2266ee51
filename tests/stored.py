"""What an agent would have stored, without an agent: names and documents, no bytes.

The catalogue and the plan are made of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtape.tape import catalogue, documents
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.documents import Gap, History, Manifest, Reason, Server
from kvtape.tape.names import GapName, HistoryName, SegmentName, SnapshotName

A, B, C, D = (letter * 40 for letter in "abcd")

# Every byte was received 10 ms after the one before it, if nobody says otherwise.
BEGAN = 1_777_604_400_000


def time_at(offset: int) -> int:
    """Return when an offset was reached."""
    return BEGAN + 10 * offset


@dataclass
class Stored:
    """A source's folder: the length of every object, and what is in the documents."""

    listing: dict[str, int] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    def history(
        self,
        replid: str,
        parent: str | None = None,
        fork: int | None = None,
        created: int = BEGAN,
        reason: Reason = "first",
    ) -> None:
        """Store the document of a history."""
        history = History(replid, reason, created, parent, fork)
        self.document(HistoryName(replid).path, documents.encode(history))

    def segment(
        self,
        replid: str,
        start: int,
        end: int,
        first: int | None = None,
        last: int | None = None,
    ) -> SegmentName:
        """Store a segment."""
        name = SegmentName(
            replid,
            start,
            end,
            time_at(start + 1) if first is None else first,
            time_at(end) if last is None else last,
        )
        self.listing[name.path] = 100 + end - start
        return name

    def snapshot(
        self,
        replid: str,
        offset: int,
        time: int | None = None,
    ) -> SnapshotName:
        """Store a snapshot with its manifest."""
        name = SnapshotName(replid, offset, time_at(offset) if time is None else time)
        self.listing[name.rdb] = 1000
        self.document(name.manifest, documents.encode(manifest(name)))
        return name

    def gap(self, replid: str, start: int, end: int | None, reason: str) -> None:
        """Store the document of a gap."""
        gap = Gap(replid, start, end, time_at(start), time_at(end or start), reason)
        self.document(GapName(replid, start, end).path, documents.encode(gap))

    def document(self, path: str, content: bytes) -> None:
        """Store a document."""
        self.listing[path] = len(content)
        self.contents[path] = content

    def catalogue(self) -> Catalogue:
        """Return the catalogue of all this."""
        asked = catalogue.documents_of(self.listing)
        return catalogue.build(
            self.listing, {path: self.contents[path] for path in asked}
        )


def manifest(name: SnapshotName) -> Manifest:
    """Return the manifest of a snapshot whose compressed RDB file has 1000 bytes."""
    return Manifest(
        replid=name.replid,
        offset=name.offset,
        time=name.time,
        completed=name.time + 1,
        bytes=4000,
        stored_bytes=1000,
        sha256="0" * 64,
        rdb_magic="REDIS",
        rdb_version=11,
        db=None,
        used_memory=None,
        server=Server(family="valkey", version="8.0.1"),
    )
