"""What is written down about a recording besides its bytes: histories and gaps.

A full resync is where stories break: the stream from the last stored byte to the new
snapshot is nowhere. It is written down as a gap, with the snapshot that ends it, and
only when that is durable: until then the old history may still be continued.

Where two histories part is what the server says (INFO, before the link) if it says it,
so that two agents that lost their links at different offsets write the same.

All calls block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvtape.record.position import Position
from kvtape.record.room import Outage
from kvtape.server.info import ServerInfo
from kvtape.storage.spool import Spool
from kvtape.tape import documents
from kvtape.tape.documents import Gap, History, Manifest, Server
from kvtape.tape.names import GapName, HistoryName, SnapshotName
from kvtape.tape.point import format_time


class Commits:
    """Queues the documents of one source. known are the paths of those it has.

    run_ids tell which run of a server each history was recorded from, where that is
    known; server is who is recorded from now, as far as it is known; outage the last
    time that the spool was full.
    """

    def __init__(
        self,
        spool: Spool,
        known: Iterable[str],
        run_ids: Mapping[str, str | None] | None = None,
    ) -> None:
        self.server = Server()
        self.outage: Outage | None = None
        self.gaps: list[Gap] = []  # found by this process
        self._spool = spool
        self._known = set(known)
        self._run_ids = dict(run_ids or {})
        self._info = ServerInfo({})
        self._address: str | None = None
        self._started: int | None = None

    def attach(self, info: ServerInfo, address: str, now: int) -> None:
        """Note who is recorded from the next link on; now is in ms."""
        self.server = info.server
        self._info, self._address = info, address
        uptime = info.number("uptime_in_seconds")
        # In whole seconds, counted down: it may have started a second later.
        self._started = None if uptime is None else now - 1000 * (uptime + 1)

    def knows(self, replid: str) -> bool:
        """Whether a history is one of this source."""
        return HistoryName(replid).path in self._known

    def fork(self, parent: str | None, fork: Position) -> None:
        """Write down that the primary goes on under another replid from here."""
        shared = self._shared(parent, fork.replid)
        self._run_ids[fork.replid] = self.server.run_id
        self._begin_history(
            History(
                replid=fork.replid,
                reason="failover",
                created=fork.time,
                parent=parent,
                parent_offset=max(fork.offset, shared or 0),
                address=self._address,
            )
        )

    def snapshot(self, manifest: Manifest, before: Position | None) -> None:
        """Queue a synced snapshot, and what is missing between it and before."""
        parent = None if before is None else before.replid
        shared = self._shared(parent, manifest.replid)
        self._begin_history(
            History(
                replid=manifest.replid,
                reason="first" if before is None else "full-resync",
                created=manifest.time,
                parent=None if shared is None else parent,
                parent_offset=shared,
                address=self._address,
            )
        )
        if before is not None:
            self._note_gap(before, manifest, shared)
        self._run_ids[manifest.replid] = manifest.server.run_id
        name = SnapshotName(manifest.replid, manifest.offset, manifest.time)
        self._spool.queue_snapshot(name, documents.encode(manifest))

    def _shared(self, parent: str | None, replid: str) -> int | None:
        """Return the last offset that two histories share, if the server told it."""
        fork = self._info.fork
        is_told = fork is not None and (parent, replid) == (fork[0], self._info.replid)
        return fork[1] if fork is not None and is_told else None

    def _begin_history(self, history: History) -> None:
        self._queue_once(HistoryName(history.replid).path, history)

    def _note_gap(
        self, before: Position, manifest: Manifest, shared: int | None
    ) -> None:
        is_same = before.replid == manifest.replid
        if is_same and manifest.offset <= before.offset:
            return
        gap = Gap(
            replid=before.replid,
            start_offset=before.offset
            if shared is None
            else min(before.offset, shared),
            end_offset=manifest.offset if is_same else None,
            start_time=before.time,
            end_time=manifest.time,
            reason=self._reason(before, manifest, shared) + self._because(before),
        )
        name = GapName(gap.replid, gap.start_offset, gap.end_offset)
        self._queue_once(name.path, gap)
        self.gaps.append(gap)

    def _because(self, before: Position) -> str:
        """Return why nothing was recorded after a position, if we know."""
        outage = self.outage
        here = (before.replid, before.offset)
        if outage is None or (outage.replid, outage.offset) != here:
            return ""
        return f"; {outage}"

    def _queue_once(self, path: str, document: History | Gap) -> None:
        # A crash between these documents and the manifest makes us come here again,
        # with other times; what was written first stays.
        if path not in self._known:
            self._spool.queue_document(path, documents.encode(document))
            self._known.add(path)

    def _reason(self, before: Position, manifest: Manifest, shared: int | None) -> str:
        """Return why a primary could not continue, in words for its operator."""
        if before.replid == manifest.replid:
            return _lacks(self._info, before.offset, "the last recorded byte")
        if shared is not None:
            start = min(before.offset, shared)
            where = "that" if start == shared else "the last recorded byte"
            return (
                f"failed over: the server goes on from {shared} as {manifest.replid}; "
                + _lacks(self._info, start, where)
            )
        other = f"the server knows another history, {manifest.replid}"
        if not self._info.fields:
            return f"{other}: why is unknown, since its user lacks +info"
        if self._started is not None and self._started > before.time:
            return f"restarted about {format_time(self._started)}: {other}"
        run_ids = {self._run_ids.get(before.replid), manifest.server.run_id} - {None}
        if len(run_ids) > 1:
            return f"restarted or replaced (its run_id changed): {other}"
        return f"{other}: it freed its backlog, or failed over more than once"


def _lacks(info: ServerInfo, offset: int, where: str) -> str:
    """Say how much too late a backlog begins: after where, which is offset."""
    first = info.number("repl_backlog_first_byte_offset")
    if first is None or first <= offset + 1:
        return f"the backlog did not reach back to {where}"
    return f"the backlog begins at {first}, {first - offset - 1} bytes after {where}"
