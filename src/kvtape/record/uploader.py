"""From the spool's queue to the repository, in order, for as long as it takes.

The repository may be slow or gone for hours: nothing here is waited for by the
recording. What fails is tried again, after longer and longer waits; only another
recording's bytes under one of our names end it, since waiting does not help there.
"""

from __future__ import annotations

import logging

import trio

from kvtape.errors import IdentityError, RepositoryError
from kvtape.record.backoff import Backoff
from kvtape.signal import Signal
from kvtape.storage.repository import SourceFolder
from kvtape.storage.spool import Spool
from kvtape.tape.names import GapName, HistoryName, SegmentName, parse

_log = logging.getLogger(__name__)


class Uploader:
    """Uploads what is queued; queued fires when there is more.

    stored is the end of the last segment it stored; error is why the last upload
    failed, until one succeeds; queued_bytes is what waits.
    """

    def __init__(self, spool: Spool, folder: SourceFolder, queued: Signal) -> None:
        self.stored = 0
        self.error: RepositoryError | None = None
        self.queued_bytes = 0
        self._spool = spool
        self._folder = folder
        self._queued = queued
        self._finishing = trio.Event()

    def finish(self) -> None:
        """Have run() upload what is queued by now, and return."""
        self._finishing.set()
        self._queued.fire()

    async def run(self) -> None:
        """Upload until finish(). It can be cancelled at any time."""
        backoff = Backoff()
        while True:
            is_finishing, next_queued = self._finishing.is_set(), self._queued.next()
            try:
                await self.upload_all()
            except RepositoryError as error:
                self.error = error
                await self._pause(backoff)
                continue
            if is_finishing:
                return
            backoff.reset()
            await next_queued.wait()

    async def _pause(self, backoff: Backoff) -> None:
        """Wait before trying again; finish() cuts it short, once."""
        wait = backoff.next()
        _log.warning("%s; trying again in %.1f s", self.error, wait)
        if self._finishing.is_set():
            await trio.sleep(wait)
            return
        with trio.move_on_after(wait):
            await self._finishing.wait()
            backoff.reset()

    async def upload_all(self) -> None:
        """Upload everything that is queued now."""
        while queue := await trio.to_thread.run_sync(self._spool.queued):
            self.queued_bytes = sum(queue.values())
            for path, size in queue.items():
                await self._upload(path)
                self.queued_bytes -= size
        self.queued_bytes = 0

    async def _upload(self, path: str) -> None:
        file = self._spool.queued_file(path)
        # A store that does not answer must not keep the program from stopping. An
        # upload that is abandoned harms nobody: it is whole or not there.
        try:
            await trio.to_thread.run_sync(
                self._folder.put, path, file, abandon_on_cancel=True
            )
        except IdentityError:
            # Two agents write down the same fork, or the same gap, each with times of
            # its own. What was written first stays.
            if not isinstance(parse(path), HistoryName | GapName):
                raise
        # Not before it is stored: a crash between the two uploads it again, and finds
        # the same content in its place.
        try:
            await trio.to_thread.run_sync(self._spool.dequeue, path)
        except OSError as error:
            raise RepositoryError(
                f"cannot delete {file}, which is stored: {error.strerror}"
            ) from error
        self.error = None
        if isinstance(name := parse(path), SegmentName):
            self.stored = name.end
        _log.debug("stored %s", path)
