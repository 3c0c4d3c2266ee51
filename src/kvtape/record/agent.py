"""kvtape record: keep a link to the primary, and everything behind it, going.

The agent owns the lifetimes. One task uploads, one writes what is received to the
spool, and one keeps a link. What goes wrong with the disk ends the last two together;
where to go on is then read back from the spool, as at the start.
"""

from __future__ import annotations

import errno
import logging
import time
from functools import partial
from pathlib import Path

import trio

from kvtape.errors import RepositoryError, cause_of
from kvtape.record.acknowledge import choose_ack, doubts_about
from kvtape.record.backoff import Backoff
from kvtape.record.events import (
    DiskFails,
    DiskRecovers,
    StartWaits,
    Stopped,
    tell,
    tell_to,
)
from kvtape.record.journal import Journal
from kvtape.record.linking.endpoint import Endpoint, Standing, open_endpoint
from kvtape.record.linking.linker import Linker, ask_server
from kvtape.record.linking.session import Session
from kvtape.record.options import RecordOptions
from kvtape.record.parts import Assembler, Place
from kvtape.record.spooling.place import default_spool, source_folder
from kvtape.record.spooling.position import (
    recover,
)
from kvtape.record.spooling.recorder import Recorder
from kvtape.record.spooling.room import Gauge, has_enough_free, watch
from kvtape.record.uploading.filters import FilterWriter
from kvtape.record.uploading.uploader import Uploader
from kvtape.replication.replica import HIDDEN
from kvtape.server.info import ServerInfo
from kvtape.server.sentinel import Finder, NotFoundError
from kvtape.signal import Signal
from kvtape.storage.filter_child import FilterChild
from kvtape.storage.repository import Repository, SourceFolder, create_repository
from kvtape.storage.spool import Spool
from kvtape.storage.store import open_store

_log = logging.getLogger(__name__)

# A store that does not answer must not keep us from stopping.
_in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)

# How often a full disk is looked at, and how long at most before it is tried again, in
# seconds. A link a minute is nothing to a primary.
_LOOK_AGAIN = 1.0
_TRY_AGAIN = 60.0

# How long a stop waits for the key filters of the last segments, in seconds. Nobody
# misses them: they are made when they are asked for.
_FILTERS_TIMEOUT = 2.0


class Agent:
    """Records one source until stop(). What it is made of is there to be watched.

    They are there when is_ready is set. begun is set then, or when it waits for what
    may pass. filter_child is for agents that share one; otherwise it has its own.
    """

    spool: Spool
    recorder: Recorder
    uploader: Uploader
    linker: Linker
    endpoint: Endpoint | None = None

    filters: FilterWriter | None = None

    def __init__(
        self,
        options: RecordOptions,
        journal: Journal | None = None,
        filter_child: FilterChild | None = None,
    ) -> None:
        self.options = options
        self.journal = journal or Journal(options.name)
        self.begun = trio.Event()
        self.opened = trio.Event()
        self.is_ready = False
        self._finder = Finder(options.url, options.prefer)
        self._filter_child = filter_child or FilterChild()
        self._owns_child = filter_child is None
        self._folder: SourceFolder
        self._queued = Signal()
        self._stopping = trio.Event()
        self._disk_trouble: str | None = None
        self._start_trouble: str | None = None  # what the start waits for

    @property
    def session(self) -> Session | None:
        """The link that stands, or stood last."""
        return self.linker.session if self.is_ready else None

    @property
    def stored(self) -> int | None:
        """Up to which offset the history that is recorded is in the repository."""
        if not self.is_ready:
            return None
        return self.uploader.stored.end(self.recorder.replid)

    @property
    def repository_url(self) -> str:
        """Where it stores, without secrets."""
        return self._folder.store.url

    @property
    def trouble(self) -> str | None:
        """Why nothing is recorded now; None if it is."""
        if self._disk_trouble is not None:
            return self._disk_trouble
        if not self.is_ready:
            return self._start_trouble
        seeder = self.linker.seeder
        return self.linker.trouble or (seeder.trouble if seeder is not None else None)

    def stop(self) -> None:
        """Have run() write and upload what there is, and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Record until stop(), or until the offset of the options is stored.

        Raises an Error of kvtape; RepositoryError if something could not be uploaded in
        time, which then stays in the spool for the next start.
        """
        tell_to(self.journal)
        # First, so that a wrong address leaves no trace of a repository.
        info = await self._ask_unless_stopped()
        if info is None:
            return
        options = self.options
        address, has_endpoint = options.url.address, options.announce is not None
        choose_ack(options.ack, info, address, has_endpoint=has_endpoint)
        for doubt in doubts_about(options.ack, info, address):
            _log.warning("%s", doubt)
        if options.announce is not None:
            self.endpoint = await open_endpoint(*options.announce)
        try:
            if await self._open_unless_stopped(info):
                self.begun.set()
                self.opened.set()
                await self._run_with_endpoint()
        except ExceptionGroup as group:
            raise cause_of(group) from group
        finally:
            if self.is_ready:
                self.spool.close()
            if self.endpoint is not None:
                self.endpoint.close()
            if self._owns_child:
                self._filter_child.close()

    # Starting.

    async def _ask_unless_stopped(self) -> ServerInfo | None:
        """Ask the server who it is; None if it is time to stop before it answers."""
        info: ServerInfo | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_in_time, nursery.cancel_scope)
                info = await self._ask_in_the_end()
                nursery.cancel_scope.cancel()
        except ExceptionGroup as group:
            raise cause_of(group) from group
        return info

    async def _ask_in_the_end(self) -> ServerInfo:
        """Ask the server who it is, waiting while Sentinels name none that answers.

        That is how it is during each failover. Nobody at all at the address is told at
        once: it is more likely to be wrong.
        """
        backoff = Backoff()
        while True:
            try:
                return await ask_server(await self._finder.find())
            except NotFoundError as error:
                await self._wait_to_start(str(error), backoff)

    async def _wait_to_start(self, trouble: str, backoff: Backoff) -> None:
        """Wait for what may pass, and say so when it is something else than before."""
        tell(StartWaits(trouble, is_repeated=self._start_trouble == trouble))
        self._start_trouble = trouble
        self.begun.set()
        await trio.sleep(backoff.next())

    async def _open_unless_stopped(self, info: ServerInfo) -> bool:
        """Open repository and spool; False if it is time to stop before they are."""
        is_open = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_in_time, nursery.cancel_scope)
                await self._open_in_the_end(info)
                is_open = self.is_ready
                nursery.cancel_scope.cancel()
        except ExceptionGroup as group:
            raise cause_of(group) from group
        return is_open

    async def _open_in_the_end(self, info: ServerInfo) -> None:
        """Open repository and spool, waiting for a store that may come back.

        An agent that is started by the machine at 3 a.m. must not give up because of
        what gives it back the morning after; nor, where its spool knows how to go on,
        because of credentials that somebody has to renew.
        """
        backoff, repository = Backoff(), self.options.repository
        while True:
            try:
                # By itself before all else, so that the spool's lock is taken late.
                await _in_thread(create_repository, repository, _now())
                await _in_thread(self._open, info)
            except RepositoryError as error:
                if await _in_thread(self._open_without):
                    tell(StartWaits(str(error), is_recording=True))
                    return
                if not error.is_passing:
                    raise
                await self._wait_to_start(str(error), backoff)
            else:
                self._start_trouble = None
                return

    def _open_without(self) -> bool:
        """Open the spool alone, if it knows where to go on without the repository."""
        options = self.options
        folder, source = options.spool, options.source
        try:
            store = open_store(options.repository)
        except RepositoryError:
            return False
        if folder is None and source is not None:
            folder = default_spool(SourceFolder(store, source))
        identity = None if folder is None else Spool(folder).identity()
        if identity is None:
            return False
        self._folder = SourceFolder(store, source or identity.source)
        return self._open_by(Repository(store, identity.repository), is_reached=False)

    def _open(self, info: ServerInfo) -> None:
        """Open the repository and the spool, and find where to go on. Blocks."""
        options = self.options
        repository = create_repository(options.repository, _now())
        self._folder = source_folder(
            repository, options.source, options.url, info.server, _now()
        )
        self._open_by(repository, is_reached=True)

    def _open_by(self, repository: Repository, *, is_reached: bool) -> bool:
        options = self.options
        self.journal.source = self._folder.name
        folder = options.spool or default_spool(self._folder)
        self.spool = Spool(folder, options.spool_limit)
        self._gauge = Gauge(options.spool_limit)
        try:
            place = Place(repository, self._folder, self.spool, is_reached)
            announced = HIDDEN if self.endpoint is None else self.endpoint.announced
            parts = Assembler(
                options, self._finder, self.journal, self._queued, announced
            ).assemble(place)
            if parts is None:
                self.spool.close()
                return False
            self.recorder, self.uploader = parts.recorder, parts.uploader
            self.linker = parts.linker
            if options.key_filters:
                self.filters = FilterWriter(self._folder, self._filter_child)
                self.uploader.filters = self.filters
        except OSError as error:
            self.spool.close()
            raise _disk_error(folder, error) from error
        except BaseException:
            self.spool.close()
            raise
        if self._stopping.is_set():
            # Nobody may be waiting for this any more.
            self.spool.close()
            return False
        self.is_ready = True
        _log.info(
            "recording %s as source %s into %s, by way of the spool %s",
            options.url.address,
            self._folder.name,
            repository.store.url,
            folder,
        )
        return True

    # Running.

    async def _run_with_endpoint(self) -> None:
        async with trio.open_nursery() as nursery:
            if self.endpoint is not None:
                nursery.start_soon(self.endpoint.run, self._standing)
            await self._run()
            nursery.cancel_scope.cancel()

    def _standing(self) -> Standing:
        session = self.session
        # Before the first link nobody knows which server it will be.
        host, port = self.linker.peer or ("0.0.0.0", 0)
        is_up = session is not None and session.is_online and self.trouble is None
        return Standing(host, port, is_up, self.recorder.durable)

    async def _run(self) -> None:
        async with trio.open_nursery() as behind:
            if self.filters is not None:
                behind.start_soon(self.filters.run)
            await self._run_until_stored()
            if self.filters is not None:
                self.filters.finish()
                behind.cancel_scope.deadline = trio.current_time() + _FILTERS_TIMEOUT

    async def _run_until_stored(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.uploader.run)
            await self._record()
            self.uploader.finish()
            deadline = trio.current_time() + self.options.stop_timeout
            nursery.cancel_scope.deadline = deadline
        if not nursery.cancel_scope.cancelled_caught:
            tell(Stopped(self.recorder.replid, self.stored))
        else:
            why = f" ({self.uploader.error})" if self.uploader.error else ""
            raise RepositoryError(
                f"not everything could be stored within {self.options.stop_timeout:g} s"
                f"{why}; it is kept in the spool {self.spool.folder}, and the next "
                "start stores it"
            )

    async def _record(self) -> None:
        """Record until it is time to stop, beginning anew where the disk fails."""
        backoff = Backoff()
        while True:
            durable = self.recorder.durable
            error = await self._record_until_disk_fails()
            if self.recorder.durable > durable:
                backoff.reset()
            if error is None:
                return
            # Going on without knowing what the disk has would record over it.
            while error is not None:
                await self._wait_for_disk(error, backoff)
                error = await self._recover(is_full=error.errno == errno.ENOSPC)

    async def _wait_for_disk(self, error: OSError, backoff: Backoff) -> None:
        wait = backoff.next()
        trouble = _disk_error(self.spool.folder, error)
        if self._stopping.is_set():
            raise trouble from error
        self._disk_trouble = str(trouble)
        tell(DiskFails(str(trouble), wait))
        with trio.move_on_after(wait):
            await self._stopping.wait()

    async def _record_until_disk_fails(self) -> OSError | None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.recorder.run)
                async with trio.open_nursery() as links:
                    links.start_soon(self._stop_in_time, links.cancel_scope)
                    links.start_soon(watch, self.spool, self._gauge)
                    await self.linker.run()
                self.recorder.finish()
        except (OSError, ExceptionGroup) as error:
            cause = cause_of(error)
            if isinstance(cause, OSError):
                return cause
            raise
        return None

    async def _recover(self, *, is_full: bool) -> OSError | None:
        """Find out what the disk has, after it failed; return why it fails again.

        A full disk is left alone until something on it was freed, for which what is
        recorded is queued: each try to go on would be a link that breaks at once.
        """
        try:
            position = await trio.to_thread.run_sync(recover, self.spool)
            self.recorder.restart(position)
            if is_full:
                await self.recorder.end_segment()
                await self._wait_for_free()
        except OSError as error:
            return error
        self._disk_trouble = None
        tell(DiskRecovers())
        return None

    async def _wait_for_free(self) -> None:
        with trio.move_on_after(_TRY_AGAIN):
            while not await trio.to_thread.run_sync(has_enough_free, self.spool):
                with trio.move_on_after(_LOOK_AGAIN):
                    await self._stopping.wait()
                    return

    def _has_recorded(self, offset: int) -> bool:
        recorder, is_rooted = self.recorder, self.linker.commits.is_rooted
        return recorder.durable >= offset and recorder.replid is not None and is_rooted

    async def _stop_in_time(self, links: trio.CancelScope) -> None:
        """Cut the link when it is time to stop."""
        until = self.options.until_offset if self.is_ready else None
        while until is not None and not self._stopping.is_set():
            if self._has_recorded(until):
                self.stop()
            else:
                with trio.move_on_after(1):
                    await self.recorder.written.wait()
        await self._stopping.wait()
        links.cancel()


def _disk_error(folder: Path, error: OSError) -> RepositoryError:
    return RepositoryError(
        f"cannot write to the spool {folder}: {error.strerror or error}"
    )


def _now() -> int:
    return int(time.time() * 1000)
