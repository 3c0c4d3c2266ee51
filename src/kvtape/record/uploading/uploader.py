"""From the spool's queue to the repository, in order, for as long as it takes.

The repository may be slow or gone for hours: nothing here is waited for by the
recording. What may pass is tried again after longer and longer waits. What needs a hand
(a bucket to create, a permission to grant) is said once, and asked about rarely. Only
another recording's bytes in the place of ours end it, since neither helps there.

**There is one lane.** A snapshot of hours holds up the segments behind it, on purpose:
before it is stored nobody can restore to them, and what is stored is always something
that can be restored, up to its end.
"""

from __future__ import annotations

import logging

import trio
from msgspec import structs

from kvtape.errors import IdentityError, RepositoryError, VerificationError
from kvtape.record.backoff import Backoff
from kvtape.record.events import FileStored, UploadsFail, UploadsRecover, tell
from kvtape.record.spooling.position import stored_catalogue
from kvtape.record.uploading.comparison import Comparison, first_difference
from kvtape.record.uploading.filters import FilterWriter
from kvtape.record.uploading.stored import Stored, stored_before
from kvtape.signal import Signal
from kvtape.storage.repository import Repository, SourceFolder
from kvtape.storage.spool import Spool
from kvtape.storage.store import LocalStore
from kvtape.tape import documents
from kvtape.tape.documents import History
from kvtape.tape.names import (
    GapName,
    HistoryName,
    SegmentName,
    SnapshotName,
    parse,
)

_log = logging.getLogger(__name__)

# How long to wait where waiting alone does not help: the bucket may be created, the
# permission granted.
_BY_HAND = 60.0

# How often what was stored is compared with what another agent stored. Each time costs
# one listing of a day, which late in it is up to 18 requests to S3 for two agents.
_COMPARE = 60.0


_FAR = float("inf")


class Uploader:
    """Uploads what is queued; queued fires when there is more.

    stored is what is in the repository, and moved fires when it is more; error is why
    the last upload failed, until one succeeds; waiting are the paths and sizes of what
    waits. uploads and failures count objects and tries.

    filters, if there is one, is offered each segment that is stored.

    unconfirmed is the repository that the spool was begun for, if nobody could ask yet
    whether it is what stands there; that is done before anything is uploaded.
    """

    def __init__(
        self,
        spool: Spool,
        folder: SourceFolder,
        queued: Signal,
        stored: Stored,
        unconfirmed: Repository | None = None,
    ) -> None:
        self.stored = stored
        self.filters: FilterWriter | None = None
        self.moved = Signal()
        self.error: RepositoryError | None = None
        self.waiting: dict[str, int] = {}
        self.uploads = 0
        self.failures = 0
        self._failing_since: float | None = None
        self._spool = spool
        self._folder = folder
        self._queued = queued
        self._unconfirmed = unconfirmed
        self._comparison = Comparison(folder)
        self._compare_at = 0.0
        self._finishing = trio.Event()

    def finish(self) -> None:
        """Have run() upload what is queued by now, and return."""
        self._finishing.set()
        self._queued.fire()

    def learn(self, stored: Stored) -> None:
        """Take over what somebody found to be stored."""
        self.stored.merge(stored)

    async def run(self) -> None:
        """Upload until finish(). It can be cancelled at any time."""
        backoff = Backoff()
        while True:
            is_finishing, next_queued = self._finishing.is_set(), self._queued.next()
            try:
                await self.upload_all()
                await self._compare(is_finishing=is_finishing)
            except RepositoryError as error:
                self.failures += 1
                await self._pause(error, backoff)
                continue
            self._recovered()
            if is_finishing:
                return
            backoff.reset()
            with trio.move_on_at(
                self._compare_at if self._comparison.unchecked else _FAR
            ):
                await next_queued.wait()

    def _note_error(self, error: RepositoryError) -> None:
        if self._failing_since is None:
            self._failing_since = trio.current_time()
        is_repeated = str(error) == str(self.error)
        tell(UploadsFail(str(error), error.is_passing, is_repeated))
        self.error = error

    async def _pause(self, error: RepositoryError, backoff: Backoff) -> None:
        """Wait before trying again; finish() cuts it short, once."""
        self._note_error(error)
        wait = backoff.next()
        if self._finishing.is_set():
            await trio.sleep(wait)
            return
        if not error.is_passing:
            wait = _BY_HAND
        with trio.move_on_after(wait):
            await self._finishing.wait()
            backoff.reset()

    def _recovered(self) -> None:
        if self._failing_since is not None:
            tell(UploadsRecover(trio.current_time() - self._failing_since))
        self.error = self._failing_since = None

    async def upload_all(self) -> None:
        """Upload everything that is queued now."""
        while queue := await trio.to_thread.run_sync(self._spool.queued):
            self.waiting = queue
            if self._unconfirmed is not None:
                there = await trio.to_thread.run_sync(
                    self._confirm, self._unconfirmed, abandon_on_cancel=True
                )
                # Unless what came since contradicts what was there at the start.
                if self.stored == Stored():
                    self.stored = there
                self._unconfirmed = None
            for path in list(queue):
                await self._upload(path)
                del queue[path]
        self.waiting = {}

    def _confirm(self, repository: Repository) -> Stored:
        """Make sure of the repository, and find out what is in it. Blocks."""
        repository.confirm()
        stored = stored_catalogue(self._folder, self._spool)
        return stored_before(stored, self._spool.queued())

    async def _upload(self, path: str) -> None:
        began = trio.current_time()
        # A store that does not answer must not keep the program from stopping. An
        # upload that is abandoned harms nobody: it is whole or not there.
        try:
            history = await trio.to_thread.run_sync(
                self._put, path, abandon_on_cancel=True
            )
        except OSError as error:
            # Of the spool's disk, or what stood in the place of ours is gone again.
            raise RepositoryError(
                f"cannot compare {self._spool.queued_file(path)} with what is stored: "
                f"{error.strerror or error}",
                is_passing=True,
            ) from error
        self.uploads += 1
        name = parse(path)
        if isinstance(name, SegmentName):
            self._comparison.unchecked.append(name)
            if self.filters is not None:
                self.filters.offer(name, self._spool.queued_file(path))
        # Not before it is stored: a crash between the two uploads it again, and finds
        # the same content in its place.
        try:
            await trio.to_thread.run_sync(self._spool.dequeue, path)
        except OSError as error:
            raise RepositoryError(
                f"cannot delete {self._spool.queued_file(path)}, which is stored: "
                f"{error.strerror}",
                is_passing=True,
            ) from error
        self._recovered()
        self._note(path, history)
        tell(FileStored(path, trio.current_time() - began))

    def _note(self, path: str, history: History | None) -> None:
        match parse(path):
            case SegmentName() as segment:
                self.stored.add_segment(segment)
            case SnapshotName() as snapshot if path == snapshot.manifest:
                self.stored.add_snapshot(snapshot)
            case _:
                if history is not None:
                    self.stored.add_history(history)
        self.moved.fire()

    def _put(self, path: str) -> History | None:
        """Store what is queued under a name. Blocks.

        Return what a history's document says that is stored, which may be another's.
        """
        file = self._spool.queued_file(path)
        is_ours = True
        try:
            self._folder.put(path, file)
        except IdentityError as error:
            if not self._is_as_good(path):
                raise IdentityError(f"{error}; ours is kept in {file}") from None
            is_ours = False
        if not isinstance(parse(path), HistoryName):
            return None
        try:
            content = file.read_bytes() if is_ours else self._folder.read(path)
            return documents.decode(History, content, path)
        except VerificationError as error:
            _log.warning("%s: nothing of it counts as stored", error)
            return None

    def _is_as_good(self, path: str) -> bool:
        """Whether what another agent stored under one of our names does as well."""
        match parse(path):
            case HistoryName() | GapName():
                # Two agents write down the same fork, or the same gap, each with times
                # of its own. What was written first stays.
                return True
            case SegmentName() as name:
                return self._is_same_stream(name)
            case SnapshotName() as name if path == name.manifest:
                ours = self._spool.queued_file(path).read_bytes()
                return _is_same_snapshot(ours, self._folder.read(path), path)
            case _:
                return False

    def _is_same_stream(self, name: SegmentName) -> bool:
        """Whether a segment of ours was but cut into other frames."""
        queue = SourceFolder(LocalStore(self._spool.folder), "queue")
        try:
            return first_difference((queue, name), (self._folder, name)) is None
        except VerificationError:
            return False

    async def _compare(self, *, is_finishing: bool) -> None:
        """Compare what was stored with what others stored, if it is time to."""
        is_due = is_finishing or trio.current_time() >= self._compare_at
        if self._comparison.unchecked and is_due:
            check = self._comparison.check
            await trio.to_thread.run_sync(check, abandon_on_cancel=True)
            self._compare_at = trio.current_time() + _COMPARE


def _is_same_snapshot(ours: bytes, theirs: bytes, path: str) -> bool:
    """Whether two manifests differ in no more than when each agent was done."""
    try:
        one = documents.decode(documents.Manifest, ours, path)
        other = documents.decode(documents.Manifest, theirs, path)
    except VerificationError:
        return False
    return structs.replace(one, completed=0) == structs.replace(other, completed=0)
