"""kvtape record: keep a link to the primary, and everything behind it, going.

The agent owns the lifetimes. One task uploads, one writes what is received to the
spool, and one keeps a link: it asks the server who it is, connects, and records until
the link breaks, then again after a growing wait. What goes wrong with the disk ends the
last two together; where to go on is then read back from the spool, as at the start.

What does not get better by waiting (a wrong password, a server that does not know
PSYNC, nobody at the address) ends the program if it happens before the first link
stood. Later it is only said, loudly: an agent that has recorded for a month must not
end because a password was changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio

from kvtape.errors import RepositoryError, ServerError, UsageError, cause_of
from kvtape.record.backoff import Backoff
from kvtape.record.clock import ReceiptClock
from kvtape.record.commits import Commits
from kvtape.record.position import recover, stored_catalogue, stored_position
from kvtape.record.recorder import Limits, Recorder
from kvtape.record.session import Ack, Session
from kvtape.record.uploader import Uploader
from kvtape.replication.refusal import RefusedError
from kvtape.replication.replica import LinkError, Replica
from kvtape.server.client import connect, open_client
from kvtape.server.info import ServerInfo, ask
from kvtape.server.url import ServerUrl
from kvtape.signal import Signal
from kvtape.storage.repository import Repository, SourceFolder, create_repository
from kvtape.storage.spool import Spool
from kvtape.tape.documents import Source
from kvtape.tape.names import GapName, HistoryName

_log = logging.getLogger(__name__)

# How often a server that could not continue is asked whether it can now, in seconds.
_ASK_AGAIN = 10.0


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What to record, and how. Times are in seconds.

    source and spool may be left out: the source is then named after the address, and
    the spool stands in the user's state folder.
    """

    url: ServerUrl
    repository: str
    source: str | None = None
    spool: Path | None = None
    ack: Literal["auto", "hidden", "received"] = "auto"
    limits: Limits = field(default_factory=Limits)
    full_resyncs_per_hour: int = 2
    stop_timeout: float = 20.0
    until_offset: int | None = None


class Agent:
    """Records one source until stop(). What it is made of is there to be watched.

    session is the link that stands, or stood last; trouble says why none stands now.
    """

    spool: Spool
    recorder: Recorder
    uploader: Uploader

    def __init__(self, options: RecordOptions) -> None:
        self.options = options
        self.session: Session | None = None
        self.trouble: str | None = None
        self.is_ready = False  # recorder and uploader are there
        self._clock = ReceiptClock()
        self._commits: Commits
        self._folder: SourceFolder
        self._queued = Signal()
        self._stopping = trio.Event()
        self._has_linked = False
        self._is_over_limit = False  # a full resync was answered that is not allowed

    def stop(self) -> None:
        """Have run() write and upload what there is, and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Record until stop(), or until the offset of the options is stored.

        Raises an Error of kvtape; RepositoryError if something could not be uploaded in
        time, which then stays in the spool for the next start.
        """
        # First, so that a wrong address leaves no trace of a repository.
        info = await self._ask_unless_stopped()
        if info is None:
            return
        self._choose_ack(info)
        self._say_what_is_unknown(info)
        await trio.to_thread.run_sync(self._open, info)
        try:
            await self._run()
        except ExceptionGroup as group:
            raise cause_of(group) from group
        finally:
            self.spool.close()

    # Starting.

    async def _ask_unless_stopped(self) -> ServerInfo | None:
        """Ask the server who it is; None if it is time to stop before it answers."""
        info: ServerInfo | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_in_time, nursery.cancel_scope)
                info = await self._ask()
                nursery.cancel_scope.cancel()
        except ExceptionGroup as group:
            raise cause_of(group) from group
        return info

    def _say_what_is_unknown(self, info: ServerInfo) -> None:
        if info.server.role is None and self.options.ack == "auto":
            _log.warning(
                "%s does not tell what it is (its user lacks +info): if it has "
                "min-replicas-to-write set, it counts this recording as a replica",
                self.options.url.address,
            )

    def _open(self, info: ServerInfo) -> None:
        """Open the repository and the spool, and find where to go on. Blocks."""
        options = self.options
        repository = create_repository(options.repository, _now())
        self._folder = _source_folder(repository, options, info)
        folder = options.spool or default_spool(self._folder)
        self.spool = Spool(folder)
        try:
            self._open_spool(repository)
        except OSError as error:
            self.spool.close()
            raise _disk_error(folder, error) from error
        except BaseException:
            self.spool.close()
            raise
        _log.info(
            "recording %s as source %s into %s, by way of the spool %s",
            options.url.address,
            self._folder.name,
            repository.store.url,
            folder,
        )

    def _open_spool(self, repository: Repository) -> None:
        """Open the spool, and make all that writes to it and reads from it."""
        self.spool.open(repository.id, self._folder.name)
        stored = stored_catalogue(self._folder, self.spool)
        position = recover(self.spool) or stored_position(
            stored, self._folder, self.spool
        )
        self._clock = ReceiptClock(position.time if position else 0)
        known = [HistoryName(replid).path for replid in stored.histories]
        known += [
            GapName(gap.replid, gap.start_offset, gap.end_offset).path
            for gap in stored.gaps
        ]
        self._commits = Commits(self.spool, known)
        self.recorder = Recorder(self.spool, self.options.limits, self._queued)
        self.uploader = Uploader(self.spool, self._folder, self._queued)
        if position is not None:
            self.recorder.follow(position)
        self.is_ready = True

    # Running.

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.uploader.run)
            await self._record()
            self.uploader.finish()
            deadline = trio.current_time() + self.options.stop_timeout
            nursery.cancel_scope.deadline = deadline
        if nursery.cancel_scope.cancelled_caught:
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
                error = await self._recover()

    async def _wait_for_disk(self, error: OSError, backoff: Backoff) -> None:
        wait = backoff.next()
        trouble = _disk_error(self.spool.folder, error)
        if self._stopping.is_set():
            raise trouble from error
        self.trouble = str(trouble)
        _log.error("%s; trying again in %.1f s", trouble, wait)
        with trio.move_on_after(wait):
            await self._stopping.wait()

    async def _record_until_disk_fails(self) -> OSError | None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.recorder.run)
                async with trio.open_nursery() as links:
                    links.start_soon(self._stop_in_time, links.cancel_scope)
                    await self._keep_linked()
                self.recorder.finish()
        except (OSError, ExceptionGroup) as error:
            cause = cause_of(error)
            if isinstance(cause, OSError):
                return cause
            raise
        return None

    async def _recover(self) -> OSError | None:
        """Find out what the disk has, after it failed; return why it fails again."""
        try:
            position = await trio.to_thread.run_sync(recover, self.spool)
        except OSError as error:
            return error
        self.recorder.restart(position)
        return None

    async def _stop_in_time(self, links: trio.CancelScope) -> None:
        """Cut the link when it is time to stop."""
        until = self.options.until_offset if self.is_ready else None
        while until is not None and not self._stopping.is_set():
            if self.recorder.durable >= until and self.recorder.replid is not None:
                self.stop()
            else:
                with trio.move_on_after(1):
                    await self.recorder.written.wait()
        await self._stopping.wait()
        links.cancel()

    # Linking.

    async def _keep_linked(self) -> None:
        """Record over one link after another, for ever."""
        backoff = Backoff()
        while True:
            try:
                await self._link()
            except (ServerError, UsageError, ExceptionGroup) as group:
                error = cause_of(group)
                if not self._may_pass(error):
                    raise
                if self.session is not None and self.session.is_online:
                    backoff.reset()
                wait = backoff.next()
                self.trouble = str(error)
                _log.warning("%s; connecting again in %.1f s", error, wait)
                await trio.sleep(wait)

    def _may_pass(self, error: BaseException) -> bool:
        """Whether to try again after an error."""
        if isinstance(error, LinkError):
            return True
        if isinstance(error, RefusedError) and error.is_passing:
            return True
        # The server may have become unfit for the options; it may be changed back.
        return self._has_linked and isinstance(error, ServerError | UsageError)

    async def _link(self) -> None:
        """Connect, and record until the link breaks."""
        options, recorder = self.options, self.recorder
        self.session = None
        info = await self._ask()
        ack = self._choose_ack(info)
        await self._respect_limit(info)
        self._commits.server = info.server
        async with await connect(options.url) as stream:
            replid, offset = recorder.position or (None, 0)
            replica = Replica(
                replid,
                offset,
                username=options.url.username,
                password=options.url.password,
            )
            self.session = Session(
                stream,
                replica,
                recorder,
                self.spool,
                self._clock,
                self._commits,
                self._queued,
                ack,
                on_link=self._linked,
                on_full_resync=self._allow_full_resync,
            )
            await self.session.run()

    def _linked(self) -> None:
        self._has_linked = True
        self.trouble = None

    async def _ask(self) -> ServerInfo:
        """Ask the server who it is, over a connection of its own.

        On the link itself nothing may be asked that is not allowed: the refusal would
        stand between the replies that the handshake waits for.
        """
        async with open_client(self.options.url) as client:
            return await ask(client)

    def _choose_ack(self, info: ServerInfo) -> Ack:
        """Return what to acknowledge; docs/design.md has the reasons."""
        if self.options.ack != "auto":
            return self.options.ack
        server = info.server
        if server.role == "replica":
            return "received"
        if info.needs_replicas:
            raise UsageError(
                f"{self.options.url.address} has min-replicas-to-write set and would "
                "count this recording as a replica: record from a replica, or accept "
                "that by --ack hidden or --ack received"
            )
        # On a cluster-enabled Valkey, CLUSTER SETSLOT waits for every replica's ACK.
        if server.family == "valkey" and info.is_clustered:
            return "received"
        return "hidden"

    async def _respect_limit(self, info: ServerInfo) -> None:
        """Wait until the limit allows the full resync that is needed, if one is.

        Where the server does not tell, it is asked for the rest of the stream as long
        as it never answered that with a full resync beyond the limit.
        """
        limit = self.options.full_resyncs_per_hour
        while not self._can_continue(info):
            wait = self._commits.wait_for_full_resync(limit, self._clock.now()) / 1000
            if wait <= 0:
                self._is_over_limit = False
                now = self._clock.now()
                await trio.to_thread.run_sync(self._commits.expect, now)
                return
            trouble = (
                f"{limit} full resyncs were begun within the last hour "
                "(--full-resyncs-per-hour)"
            )
            if self.trouble != trouble:
                _log.warning("%s; waiting up to %.0f s for the next", trouble, wait)
            self.trouble = trouble
            await trio.sleep(min(wait, _ASK_AGAIN))
            info = await self._ask()

    def _can_continue(self, info: ServerInfo) -> bool:
        position = self.recorder.position
        if position is None:
            return False
        can = info.can_continue(*position)
        return not self._is_over_limit if can is None else can

    def _allow_full_resync(self, now: int) -> None:
        """Count a full resync that was announced; LinkError if it is one too many."""
        limit = self.options.full_resyncs_per_hour
        is_over = self._commits.wait_for_full_resync(limit, now) > 0
        self._commits.announce(now)
        if is_over:
            self._is_over_limit = True
            raise LinkError("the primary cannot continue, and began a full resync")


def default_spool(folder: SourceFolder) -> Path:
    """Return where the spool of a source stands if nobody says: in the user's state."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    where = hashlib.sha256(folder.store.url.encode()).hexdigest()[:8]
    return Path(state) / "kvtape" / f"{folder.name}-{where}"


def _source_folder(
    repository: Repository, options: RecordOptions, info: ServerInfo
) -> SourceFolder:
    sources = repository.sources()
    name, address = options.source, options.url.address
    if name is None:
        only = next(iter(sources)) if len(sources) == 1 else None
        name = only or re.sub(r"[^A-Za-z0-9.]+", "-", address).strip("-")
        source = sources.get(name)
        if source is not None and source.address != address:
            raise UsageError(
                f"{repository.store.url} holds the source {name}, which was recorded "
                f"from {source.address}: say --source {name} if {address} is the same "
                "server's story, and another name if not"
            )
    return repository.add_source(Source(name, address, _now(), info.server))


def _disk_error(folder: Path, error: OSError) -> RepositoryError:
    reason = error.strerror or str(error)
    return RepositoryError(f"cannot write to the spool {folder}: {reason}")


def _now() -> int:
    return int(time.time() * 1000)
