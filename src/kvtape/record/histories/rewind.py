"""Going back to where a promoted server's history parts from what is recorded.

A server that was promoted while it lagged behind its primary does not know the last
bytes of the old history. Asked for what follows them it can but answer with a full
resync; asked for what follows the last byte that both share, it continues. Which that
is INFO tells (second_repl_offset), so recording goes back to it first, and the new
history forks there. What is recorded beyond stays where it is, as the old history's
orphaned end.

Nothing of it is remembered on disk. Until the server has agreed, the position that is
gone back from is kept here, and every new link begins from it again; after a crash it
is read back from what is stored, which ends the same way.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from kvtape.errors import PointError, RepositoryError, VerificationError
from kvtape.record.spooling.position import Position, stored_catalogue
from kvtape.record.spooling.recorder import Recorder
from kvtape.replication.replica import LinkError
from kvtape.server.info import ServerInfo
from kvtape.storage.reader import Boundary, find_boundary
from kvtape.storage.repository import SourceFolder
from kvtape.storage.spool import Spool
from kvtape.storage.store import LocalStore
from kvtape.tape.names import SegmentName, parse

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Rewinder:
    """Takes a recorder back where a server needs it, and forth where it did not.

    Call it between two links, while the recorder runs.
    """

    recorder: Recorder
    folder: SourceFolder
    spool: Spool
    _end: Position | None = None  # where recording went back from
    _start: Position | None = None  # and to

    @property
    def is_back(self) -> bool:
        """Whether recording stands where it went back to, and must fork there."""
        return self._start is not None and self.recorder.end is self._start

    def undo(self) -> None:
        """Stand at the end of what is recorded again, unless a new history began."""
        if self.is_back and self._end is not None:
            self.recorder.follow(self._end)
        self._start = self._end = None

    async def go_back(self, info: ServerInfo) -> None:
        """Go back if a server shares less of the history than is recorded of it.

        LinkError if where to go back to cannot be read now; OSError of the spool.
        """
        self.undo()
        recorder, fork = self.recorder, info.fork
        if fork is None or not self.is_ahead_of(info):
            return
        received = recorder.received
        await recorder.settle()
        if not self.is_ahead_of(info):
            return
        end, (replid, shared) = recorder.end, fork
        try:
            found = await trio.to_thread.run_sync(self._find, replid, shared)
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
        start = Position(replid, found.offset, found.offset, found.db, found.time)
        recorder.follow(start)
        self._end, self._start = end, start

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
        for stretch in stored.stretches(stored.lineage(replid)):
            for slice_ in stretch.slices:
                if slice_.start <= shared <= slice_.end:
                    name = slice_.segment
                    is_queued = self.spool.queued_file(name.path).exists()
                    if is_queued and (found := _boundary(queue, name, shared)):
                        return found
                    # Never queued, or uploaded while it was read.
                    return _boundary(self.folder, name, shared)
        return None


def _boundary(folder: SourceFolder, name: SegmentName, limit: int) -> Boundary | None:
    try:
        return find_boundary(folder, name, limit)
    except (PointError, VerificationError) as error:
        _log.warning("cannot go back to where the histories part: %s", error)
        return None
