"""What is written down about a recording besides its bytes: histories and gaps.

A full resync is where stories break: the stream from the last stored byte to the new
snapshot is nowhere. It is written down as a gap, with the snapshot that ends it, and
only when that is durable: until then the old history may still be continued.

Where two histories part is what the server says (INFO, before the link) if it says it,
so that two agents that lost their links at different offsets write the same.

Where the stream was joined without a snapshot (kvtape.record.seeding), nothing of it
can be restored until one is stored: what is followed then is not rooted.

All calls block but attach(), and may come from two threads at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from threading import Lock

from msgspec import structs

from kvtape.record.events import GapFound, tell
from kvtape.record.spooling.position import Position
from kvtape.record.spooling.room import Outage
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
    time that the spool was full. is_rooted tells whether a snapshot leads up to what is
    followed; if not, before is where the story that can be restored ends, if there is
    one. forks has the offsets that histories forked at while they were recorded.
    """

    def __init__(
        self,
        spool: Spool,
        known: Iterable[str],
        run_ids: Mapping[str, str | None] | None = None,
        *,
        is_rooted: bool = True,
        before: Position | None = None,
    ) -> None:
        self.server = Server()
        self.outage: Outage | None = None
        self.is_rooted = is_rooted
        self.forks: dict[str, int] = {}
        self.gaps: list[Gap] = []  # found by this process
        self._before = before
        self._spool = spool
        self._known = set(known)
        self._run_ids = dict(run_ids or {})
        self._info = ServerInfo({})
        self._address: str | None = None
        self._started: int | None = None
        self._lock = Lock()  # the spool makes one document at a time

    @property
    def restorable_until(self) -> int:
        """The time (ms) at which the story before a stretch without a root ends."""
        return 0 if self._before is None else self._before.time

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
        with self._lock:
            offset = max(fork.offset, self._shared(parent, fork.replid) or 0)
            self.forks[fork.replid] = offset
            self._run_ids[fork.replid] = self.server.run_id
            self._begin_history(
                History(
                    replid=fork.replid,
                    reason="failover",
                    created=fork.time,
                    parent=parent,
                    parent_offset=offset,
                    address=self._address,
                )
            )

    def join(self, start: Position, before: Position | None) -> None:
        """Write down that the stream is followed from start, without a snapshot yet.

        before is where recording stood.
        """
        with self._lock:
            if self.is_rooted:
                self._before = before
            self.is_rooted = False
            self._begin(start.replid, start.time, self._before)

    def snapshot(self, manifest: Manifest, before: Position | None) -> None:
        """Queue a synced snapshot, and what is missing between it and before."""
        with self._lock:
            if not self.is_rooted:
                before = self._before
            shared = self._begin(manifest.replid, manifest.time, before)
            if before is not None:
                self._note_gap(before, manifest, shared)
            self._run_ids[manifest.replid] = self.server.run_id
            name = SnapshotName(manifest.replid, manifest.offset, manifest.time)
            self._spool.queue_snapshot(name, documents.encode(manifest))
            self.is_rooted = True

    def _begin(self, replid: str, time: int, before: Position | None) -> int | None:
        """Write down that a history begins without the bytes before it.

        Return the last offset that it shares with the one before, if that is known.
        """
        parent = None if before is None else before.replid
        shared = self._shared(parent, replid)
        self._begin_history(
            History(
                replid=replid,
                reason="first" if before is None else "full-resync",
                created=time,
                parent=None if shared is None else parent,
                parent_offset=shared,
                address=self._address,
            )
        )
        return shared

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
        tell(GapFound(**structs.asdict(gap)))
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
