"""Going back to where a promoted server's history parts from what is recorded.

A server that was promoted while it lagged behind its primary does not know the last
bytes of the old history. Asked for what follows them it can but answer with a full
resync; asked for what follows the last byte that both share, it continues. Which that
is INFO tells (second_repl_offset), so recording goes back to it first, and the new
history forks there. What is recorded beyond stays where it is, as the old history's
orphaned end.

The server may also go on from another recorded history than the one that was received
last: an old primary that came back, or another heir of it; or from one that only
another agent recorded. What INFO names of the server's story is then looked for in all
that is stored, before a full resync is taken. It is only gone to if the server says
that it can continue there.

Nothing of it is remembered on disk. Until the server has agreed, the position that is
gone back from is kept here, and every new link begins from it again; after a crash it
is read back from what is stored, which ends the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from kvtape.errors import PointError, RepositoryError, VerificationError
from kvtape.record.spooling.position import Position, position_at, stored_catalogue
from kvtape.record.spooling.recorder import Recorder
from kvtape.record.uploading.stored import Stored, stored_before
from kvtape.replication.replica import LinkError
from kvtape.server.info import ServerInfo
from kvtape.storage.reader import find_boundary
from kvtape.storage.repository import SourceFolder
from kvtape.storage.segments import Boundary
from kvtape.storage.spool import Spool
from kvtape.storage.store import LocalStore
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.names import SegmentName, parse

_log = logging.getLogger(__name__)

_FAR = 2**63


@dataclass(slots=True)
class Rewinder:
    """Takes a recorder back where a server needs it, and forth where it did not.

    Call it between two links, while the recorder runs. learn is told what was found to
    be stored of other histories.
    """

    recorder: Recorder
    folder: SourceFolder
    spool: Spool
    learn: Callable[[Stored], None] = lambda stored: None
    _end: Position | None = None  # where recording went back from
    _start: Position | None = None  # and to
    _forks: bool = False  # a new history begins there

    @property
    def is_back(self) -> bool:
        """Whether recording stands where it went back to."""
        return self._start is not None and self.recorder.end is self._start

    @property
    def must_fork(self) -> bool:
        """Whether the server must begin a new history where recording stands."""
        return self.is_back and self._forks

    def agree(self) -> None:
        """Stay where recording stands: the server has continued from there."""
        self._start = self._end = None

    def undo(self) -> None:
        """Stand at the end of what is recorded again, unless a new history began."""
        if self.is_back and self._end is not None:
            self.recorder.follow(self._end)
        self._start = self._end = None

    async def go_back(self, info: ServerInfo, *, may_leave: bool = True) -> None:
        """Go back if a server shares less of the history than is recorded of it.

        may_leave tells whether it may be to another history than the one received last.
        LinkError if where to go back to cannot be read now; OSError of the spool.
        """
        self.undo()
        recorder, fork = self.recorder, info.fork
        if fork is None or not self.is_ahead_of(info):
            if may_leave:
                await self._go_elsewhere(info)
            return
        received = recorder.received
        await recorder.settle()
        if not self.is_ahead_of(info):
            return
        end, (replid, shared) = recorder.end, fork
        try:
            found = await trio.to_thread.run_sync(
                self._find, replid, shared, abandon_on_cancel=True
            )
        except RepositoryError as error:
            raise LinkError(
                f"the server shares {replid} up to {shared} only, and what is recorded "
                f"there cannot be read: {error}"
            ) from error
        if end is None or found is None:
            return
        _log.warning(
            "the server shares %s up to %d only: going back from %d to %d",
            replid,
            shared,
            received,
            found.offset,
        )
        self._go(_position(replid, found), forks=True)

    def _go(self, start: Position, *, forks: bool) -> None:
        end = self.recorder.end
        self.recorder.follow(start)
        self._end, self._start, self._forks = end, start, forks

    async def _go_elsewhere(self, info: ServerInfo) -> None:
        """Go to another recorded history, if the server continues that one only."""
        recorder = self.recorder
        if not self._is_elsewhere(info):
            return
        await recorder.settle()
        try:
            found = await trio.to_thread.run_sync(
                self._find_elsewhere, info, abandon_on_cancel=True
            )
        except (RepositoryError, VerificationError) as error:
            # A full resync loses less than waiting for a repository that is away.
            _log.warning("cannot look for what the server continues: %s", error)
            return
        if found is None or not self._is_elsewhere(info):
            return
        start, stored = found
        _log.warning(
            "the server goes on from another recorded history: going to %d of %s",
            start.offset,
            start.replid,
        )
        self.learn(stored)
        self._go(start, forks=start.replid != info.replid)

    def _is_elsewhere(self, info: ServerInfo) -> bool:
        """Whether a server says that it knows nothing of the history received last."""
        position, fork = self.recorder.position, info.fork
        if position is None or info.can_continue(*position) is not False:
            return False
        return position[0] not in (info.replid, fork[0] if fork else None)

    def _find_elsewhere(self, info: ServerInfo) -> tuple[Position, Stored] | None:
        """Find the end of what a server continues in what is stored. Blocks."""
        queued = self.spool.queued()
        stored = stored_catalogue(self.folder, self.spool)
        candidates = [(info.replid, _FAR), info.fork or (None, 0)]
        for replid, shared in candidates:
            if replid is None or replid not in stored.histories:
                continue
            start = self._end_in(stored, replid, shared)
            if start is not None and info.can_continue(replid, start.offset):
                return start, stored_before(stored, queued)
        return None

    def _end_in(self, stored: Catalogue, replid: str, shared: int) -> Position | None:
        """Return the last boundary up to an offset that a restore can reach."""
        tip = stored.tip(replid)
        if tip is None:
            return None
        end = position_at(tip, stored, self.folder, self.spool)
        stretches = stored.stretches(stored.lineage(replid))
        if end.offset > shared:
            found = self._find_in(stored, replid, shared)
            return None if found is None else _position(replid, found)
        is_rooted = any(one.start <= end.offset <= one.end for one in stretches)
        return end if is_rooted else None

    def is_ahead_of(self, info: ServerInfo) -> bool:
        """Whether more was received than a server shares of the history."""
        position, fork = self.recorder.position, info.fork
        if position is None or fork is None or info.replid == fork[0]:
            return False
        return position[0] == fork[0] and position[1] > fork[1]

    def _find(self, replid: str, shared: int) -> Boundary | None:
        """Find the last boundary up to an offset in what is stored. Blocks."""
        # What was received last is most likely to be in the queue still, and there it
        # can be read whatever has become of the repository.
        queue = SourceFolder(LocalStore(self.spool.folder), "queue")
        for path in self.spool.queued():
            name = parse(path)
            if not isinstance(name, SegmentName) or name.replid != replid:
                continue
            if name.start <= shared <= name.end:
                try:
                    return find_boundary(queue, name, shared)
                except (PointError, VerificationError):
                    break  # it may have been uploaded meanwhile
        stored = stored_catalogue(self.folder, self.spool)
        if replid not in stored.histories:
            return None
        return self._find_in(stored, replid, shared)

    def _find_in(self, stored: Catalogue, replid: str, shared: int) -> Boundary | None:
        for stretch in stored.stretches(stored.lineage(replid)):
            for slice_ in stretch.slices:
                if slice_.start <= shared <= slice_.end:
                    return self._boundary(slice_.segment, shared)
        return None

    def _boundary(self, name: SegmentName, limit: int) -> Boundary | None:
        queue = SourceFolder(LocalStore(self.spool.folder), "queue")
        if self.spool.queued_file(name.path).exists():
            try:
                return find_boundary(queue, name, limit)
            except VerificationError:
                pass  # it may have been uploaded meanwhile
        try:
            return find_boundary(self.folder, name, limit)
        except (PointError, VerificationError) as error:
            _log.warning("cannot go back to where the histories part: %s", error)
            return None


def _position(replid: str, at: Boundary) -> Position:
    return Position(replid, at.offset, at.offset, at.db, at.time, late_since=at.since)
