"""What is written down about a recording besides its bytes: histories and gaps.

A full resync is where stories break: the stream from the last stored byte to the new
snapshot is nowhere. It is written down as a gap, with the snapshot that ends it, and
only when that is durable: until then the old history may still be continued.

All calls block.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvtape.record.position import Position
from kvtape.storage.spool import Spool
from kvtape.tape import documents
from kvtape.tape.documents import Gap, History, Manifest, Server
from kvtape.tape.names import GapName, HistoryName, SnapshotName


class Commits:
    """Queues the documents of one source. known are the paths of those it has.

    server is who is recorded from now, as far as it is known.
    """

    def __init__(self, spool: Spool, known: Iterable[str]) -> None:
        self.server = Server()
        self.gaps: list[Gap] = []  # found by this process
        self._spool = spool
        self._known = set(known)

    def fork(self, parent: str | None, fork: Position) -> None:
        """Write down that the primary goes on under another replid from here."""
        self._begin_history(
            History(
                replid=fork.replid,
                reason="failover",
                created=fork.time,
                parent=parent,
                parent_offset=fork.offset,
            )
        )

    def snapshot(self, manifest: Manifest, before: Position | None) -> None:
        """Queue a synced snapshot, and what is missing between it and before."""
        self._begin_history(
            History(
                replid=manifest.replid,
                reason="first" if before is None else "full-resync",
                created=manifest.time,
            )
        )
        if before is not None:
            self._note_gap(before, manifest)
        name = SnapshotName(manifest.replid, manifest.offset, manifest.time)
        self._spool.queue_snapshot(name, documents.encode(manifest))

    def _begin_history(self, history: History) -> None:
        self._queue_once(HistoryName(history.replid).path, history)

    def _note_gap(self, before: Position, manifest: Manifest) -> None:
        is_same = before.replid == manifest.replid
        if is_same and manifest.offset <= before.offset:
            return
        gap = Gap(
            replid=before.replid,
            start_offset=before.offset,
            end_offset=manifest.offset if is_same else None,
            start_time=before.time,
            end_time=manifest.time,
            reason=_reason(before, manifest),
        )
        name = GapName(gap.replid, gap.start_offset, gap.end_offset)
        self._queue_once(name.path, gap)
        self.gaps.append(gap)

    def _queue_once(self, path: str, document: History | Gap) -> None:
        # A crash between these documents and the manifest makes us come here again,
        # with other times; what was written first stays.
        if path not in self._known:
            self._spool.queue_document(path, documents.encode(document))
            self._known.add(path)


def _reason(before: Position, manifest: Manifest) -> str:
    if before.replid == manifest.replid:
        return "the backlog of the primary did not reach back to the last recorded byte"
    return (
        f"the primary knows another history, {manifest.replid}: it was restarted or "
        "replaced, or freed its backlog"
    )
