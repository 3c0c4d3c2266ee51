"""Keeping a link to the primary: one after another, for as long as it takes.

Before each link the server is asked who it is, over a connection of its own; what
follows from that is decided before PSYNC, since a server that cannot continue answers
PSYNC with a full resync, and there is no way to ask for less.

What does not get better by waiting (a wrong password, a server that does not know
PSYNC, nobody at the address) is raised if it happens before the first link stood. Later
it is only said, loudly: an agent that has recorded for a month must not end because a
password was changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import trio

from kvtape.errors import RepositoryError, ServerError, UsageError, cause_of
from kvtape.record.acknowledge import choose_ack
from kvtape.record.backoff import Backoff
from kvtape.record.events import (
    FullResyncPostponed,
    LinkLost,
    SourceFound,
    SpoolFull,
    tell,
)
from kvtape.record.histories.commits import Commits
from kvtape.record.histories.identity import Identity
from kvtape.record.histories.resyncs import FullResyncs
from kvtape.record.histories.rewind import Rewinder
from kvtape.record.linking.abreast import Ask
from kvtape.record.linking.breaks import Breaks
from kvtape.record.linking.session import Session
from kvtape.record.options import RecordOptions
from kvtape.record.seeding.seeder import Seeder
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.recorder import Recorder
from kvtape.record.spooling.room import Room
from kvtape.record.uploading.uploader import Uploader
from kvtape.replication.refusal import RefusedError
from kvtape.replication.replica import (
    HIDDEN,
    Announced,
    FullResync,
    LinkError,
    Replica,
)
from kvtape.server.client import connect, open_client, peer_of
from kvtape.server.info import ServerInfo, ask_with_limits
from kvtape.server.sentinel import Finder
from kvtape.server.url import SentinelUrl, ServerUrl
from kvtape.signal import Signal
from kvtape.storage.spool import Spool, SpoolFullError

# How often a server that could not continue is asked whether it can now, in seconds.
_ASK_AGAIN = 10.0


@dataclass(slots=True)
class Linker:
    """Records over one link after another, until it is cancelled.

    session is the link that stands, or stood last, peer the address it leads to, url
    where the server was found last; trouble says why none stands now.
    """

    options: RecordOptions
    finder: Finder
    spool: Spool
    recorder: Recorder
    clock: ReceiptClock
    commits: Commits
    resyncs: FullResyncs
    identity: Identity
    rewinder: Rewinder
    queued: Signal
    uploader: Uploader
    announced: Announced = HIDDEN
    seeder: Seeder | None = None
    session: Session | None = None
    peer: tuple[str, int] | None = None
    url: ServerUrl | None = None
    trouble: str | None = None
    breaks: Breaks = field(default_factory=Breaks)
    _room: Room = field(init=False)
    _full: SpoolFullError | None = None  # why the last link was dropped
    _has_linked: bool = False
    _is_over_limit: bool = False  # a full resync was answered that is not allowed
    _info: ServerInfo = field(default_factory=lambda: ServerInfo({}))

    def __post_init__(self) -> None:
        self._room = Room(self.spool, self.clock)

    async def run(self) -> None:
        """Record for ever. Raises OSError of the disk, or what waiting cannot mend."""
        async with trio.open_nursery() as nursery:
            if self.seeder is not None:
                nursery.start_soon(self.seeder.run)
            await self._keep_linking()

    async def _keep_linking(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._link()
            except (ServerError, UsageError, ExceptionGroup) as group:
                error = cause_of(group)
                if not self._may_pass(error):
                    raise
                self._note(error)
                if isinstance(error, SpoolFullError):
                    continue
                if self.session is not None and self.session.is_online:
                    backoff.reset()
                wait = backoff.next()
                tell(LinkLost(str(error), wait, is_repeated=self.trouble == str(error)))
                self.trouble = str(error)
                await trio.sleep(wait)

    def _may_pass(self, error: BaseException) -> bool:
        """Whether to try again after an error."""
        if isinstance(error, LinkError | SpoolFullError):
            return True
        if isinstance(error, RefusedError) and error.is_passing:
            return True
        # The server may have become unfit for the options; it may be changed back.
        return self._has_linked and isinstance(error, ServerError | UsageError)

    def _note(self, error: BaseException) -> None:
        """Take from the end of a link what is to be known later."""
        session = self.session
        self.breaks.note(session, error)
        self.breaks.refuse(error)
        if isinstance(error, SpoolFullError):
            self._full = error
            if session is not None and session.progress.phase == "snapshot":
                self._room.note_too_little()

    async def _link(self) -> None:
        """Find the server, and record until the link breaks or the server moves."""
        self.rewinder.undo()
        self.breaks.begin()
        await self._wait_for_room()
        self.session = None
        url = await self.finder.find()
        if isinstance(self.options.url, SentinelUrl) and url != self.url:
            tell(SourceFound(url.address, self.finder.role))
        self.url = url
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.finder.watch, url)
            await self._link_to(url)

    async def _link_to(self, url: ServerUrl) -> None:
        recorder, asked = self.recorder, self.clock.now()
        info = await ask_server(url)
        recorder.server_clock = info.clock_ahead(asked, self.clock.now())
        self._explain(info)
        has_endpoint = self.announced != HIDDEN
        ack = choose_ack(self.options.ack, info, url.address, has_endpoint=has_endpoint)
        info = self._info = await self._prepare(url, info, asked)
        self.commits.attach(info, self.identity.address, self.clock.now())
        async with await connect(url) as stream:
            self.peer = peer_of(stream, url)
            replid, offset = self._position() or (None, 0)
            replica = Replica(
                replid,
                offset,
                username=url.username,
                password=url.password,
                announced=self.announced,
            )
            self.session = Session(
                stream,
                replica,
                recorder,
                self.spool,
                self.clock,
                self.commits,
                self.queued,
                ack,
                self.uploader,
                on_link=self._linked,
                on_full_resync=self._allow_full_resync,
                before_fork=self._ask_for_fork,
                must_fork=self.rewinder.must_fork,
                why_again="reconnect" if self._has_linked else "start",
                ask=None if info.offset is None else self._asking(url, self.peer),
            )
            await self.session.run()

    @staticmethod
    def _asking(url: ServerUrl, peer: tuple[str, int]) -> Ask:
        """Return what connects to the very server that a link leads to.

        Its name may have several addresses.
        """
        host, port = peer
        tls = url.tls
        if tls is not None:
            tls = replace(tls, server_name=tls.server_name or url.host)
        return partial(open_client, replace(url, host=host, port=port, tls=tls))

    def _linked(self) -> None:
        self._has_linked = True
        if self.session is not None and self.session.is_online:
            self.rewinder.agree()
        self.identity.confirm()
        self.trouble = None
        self.breaks.stand(self._info)
        if self.seeder is not None:
            self.seeder.linked()

    async def _ask_for_fork(self, replid: str) -> None:
        """Find out where a history forked that nothing was said of before the link.

        The server was promoted between INFO and PSYNC.
        """
        if self.url is not None and self._info.replid not in (None, replid):
            self._info = await ask_server(self.url)
            now = self.clock.now()
            self.commits.attach(self._info, self.identity.address, now)

    def _explain(self, info: ServerInfo) -> None:
        position = self.recorder.position
        can = None if position is None else info.can_continue(*position)
        next_step = {
            True: "its backlog still has the rest, and recording goes on from there",
            False: "it does not have what follows on what is recorded",
            None: "it is asked for the rest",
        }[can]
        if info.fork is not None and self.rewinder.is_ahead_of(info):
            next_step = f"it lagged, and recording goes back to {info.fork[1]}"
        self.trouble = self.breaks.explain(info, next_step) or self.trouble

    # The spool's limit.

    async def _wait_for_room(self) -> None:
        """Wait while the spool is full, with everything that is whole on its way."""
        full, self._full = self._full, None
        try:
            self.spool.require_room()
        except SpoolFullError as error:
            full = error
        if full is None:
            return
        self.trouble = (
            f"{full}; nothing is received until some of it is stored, and nothing is "
            "lost as long as the primary's backlog reaches back"
        )
        tell(SpoolFull(self.trouble))
        recorder = self.recorder
        if recorder.position is not None:
            await recorder.settle()
            self.queued.fire()
        self.commits.outage = await self._room.wait(recorder.end)

    # Full resyncs.

    async def _prepare(
        self, url: ServerUrl, info: ServerInfo, asked: int
    ) -> ServerInfo:
        """Have the recorder stand where the link is to begin; return the last INFO.

        asked is when the server was asked for the one that there is (ms).
        """
        if self.seeder is not None:
            await self._can_continue(info)  # goes back, and looks whom it has before it
            self.commits.attach(info, self.identity.address, self.clock.now())
            if await self.seeder.join(info, url.address, asked):
                return info
        return await self._respect_limit(url, info)

    async def _respect_limit(self, url: ServerUrl, info: ServerInfo) -> ServerInfo:
        """Wait until the limit allows the full resync that is needed, if one is.

        Return what the server said last, when the recorder stands where it is asked.
        Where the server does not tell, it is asked for the rest of the stream as long
        as it never answered that with a full resync beyond the limit.
        """
        said = None
        while not await self._can_continue(info):
            obstacle = await self._obstacle(info)
            if obstacle is None:
                self._is_over_limit = False
                now = self.clock.now()
                await trio.to_thread.run_sync(self.resyncs.expect, now)
                return info
            kind, self.trouble, wait = obstacle
            if said != kind:
                tell(FullResyncPostponed(self.trouble, wait))
            said = kind
            await trio.sleep(min(wait, _ASK_AGAIN))
            info = await ask_server(url)
        return info

    def _position(self) -> tuple[str, int] | None:
        """Return where to go on: nowhere, if no snapshot leads there or ever will."""
        is_rooted = self.commits.is_rooted or self.seeder is not None
        return self.recorder.position if is_rooted else None

    async def _obstacle(self, info: ServerInfo) -> tuple[str, str, float] | None:
        """Return what stands against a full resync now: kind, sentence, how long (s).

        RepositoryError at the first link, if it will not go away by waiting.
        """
        wait = self.resyncs.wait(self.clock.now()) / 1000
        if wait > 0:
            limit = (
                f"{self.resyncs.per_hour} full resyncs were begun within the last "
                "hour (--full-resyncs-per-hour)"
            )
            return "limit", limit, wait
        memory = info.data_memory
        shortage = await trio.to_thread.run_sync(self._room.shortage, memory)
        if shortage is None:
            return None
        if shortage.is_lasting and not self._has_linked:
            raise RepositoryError(shortage.sentence)
        return "room", shortage.sentence, _ASK_AGAIN

    async def _can_continue(self, info: ServerInfo) -> bool:
        await self.rewinder.go_back(info, may_leave=self.commits.is_rooted)
        position = self._position()
        can = False if position is None else info.can_continue(*position)
        if can is False:
            _must_not_lag(info, position)
            self.identity.check(info)
        return not self._is_over_limit if can is None else can

    def _allow_full_resync(self, announced: FullResync, now: int) -> None:
        """Count a full resync that was announced; LinkError if it is one too many.

        IdentityError if it is none of this source's.
        """
        is_over = self.resyncs.wait(now) > 0
        self.resyncs.announce(now)
        self.identity.check(self._info, announced.replid)
        if self.seeder is not None and not self.seeder.allows_full_resyncs:
            raise LinkError(
                "the primary answered with a full resync, which it said it need not: "
                "the link was dropped at once"
            )
        if is_over:
            self._is_over_limit = True
            raise LinkError(
                "the primary cannot continue, and began a full resync at "
                f"{announced.offset} of {announced.replid}"
            )


def _must_not_lag(info: ServerInfo, position: tuple[str, int] | None) -> None:
    """LinkError for a replica that does not have yet what is recorded.

    It would answer with a full resync now, and continues in a moment: when it has
    caught up with its primary, or was promoted without that.
    """
    if position is None or info.server.role != "replica" or info.offset is None:
        return
    if info.replid == position[0] and info.offset < position[1]:
        raise LinkError(
            f"the server is a replica that has its primary's stream up to {info.offset}"
            f" only, and recorded is up to {position[1]}: it is asked again when it "
            "has caught up"
        )


async def ask_server(url: ServerUrl) -> ServerInfo:
    """Ask a server who it is, over a connection of its own.

    On the link itself nothing may be asked that is not allowed: the refusal would stand
    between the replies that the handshake waits for.
    """
    async with open_client(url) as client:
        return await ask_with_limits(client)
