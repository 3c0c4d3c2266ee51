"""Attaching without a fork: the primary's stream, and a snapshot from elsewhere.

The stream is joined first, by a partial resync at an offset that INFO tells, and
recorded; the snapshot comes meanwhile, over minutes and any number of links. When it is
stored, what was recorded since its offset can be restored. Until then nothing can, and
nothing is acknowledged (Commits.is_rooted).

Invariants:

- The primary is never sent a PSYNC that INFO says it would answer with a full resync.
  If it answers with one all the same, the link is dropped at once.
- A snapshot is committed only for the stretch of stream that is followed at that
  moment, and only when the stream is durable up to the snapshot's offset.
- A crash leaves a stretch without a snapshot; the next start knows it by that, and
  has the snapshot made again.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from kvtape.errors import ServerError, UsageError, cause_of
from kvtape.record.backoff import Backoff
from kvtape.record.events import SeedBegun, SeedFails, SeedJoined, complete, tell
from kvtape.record.histories.commits import Commits
from kvtape.record.histories.resyncs import FullResyncs
from kvtape.record.seeding.file import FileOrigin
from kvtape.record.seeding.join import Delivery, JoinError, Wanted, require_info
from kvtape.record.seeding.replica import ReplicaOrigin
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.position import Position
from kvtape.record.spooling.recorder import Recorder
from kvtape.record.spooling.room import Room
from kvtape.record.spooling.snapshot import SnapshotReceiver
from kvtape.replication.replica import FullResync, LinkError
from kvtape.server.info import ServerInfo
from kvtape.server.url import ServerUrl
from kvtape.signal import Signal
from kvtape.storage.spool import Spool, SpoolFullError
from kvtape.tape.documents import Server
from kvtape.tape.names import SnapshotName
from kvtape.tape.point import format_time

_log = logging.getLogger(__name__)


def _without_numbers(sentence: str) -> str:
    return re.sub(r"\d+", "N", sentence)


def origin_of(
    replica: ServerUrl | None, file: Path | None
) -> ReplicaOrigin | FileOrigin | None:
    """Return where snapshots are to come from, if not from the primary."""
    if replica is not None:
        return ReplicaOrigin(replica)
    return None if file is None else FileOrigin(file)


@dataclass(slots=True)
class Seeder:
    """Joins the stream, and has a snapshot brought whenever one is lacking.

    since is where the recording of what is followed began; trouble says why the
    snapshot does not come, and received is how much of it has.
    """

    origin: ReplicaOrigin | FileOrigin
    spool: Spool
    recorder: Recorder
    clock: ReceiptClock
    commits: Commits
    resyncs: FullResyncs
    queued: Signal
    since: int
    trouble: str | None = None
    received: int = 0
    _is_linked: bool = False
    _has_linked: bool = False
    _has_seeded: bool = False
    _server: Server = field(default_factory=Server)
    _joined: tuple[str, int] = ("", 0)
    _joinings: int = 0
    _changed: Signal = field(default_factory=Signal)
    _committing: trio.Lock = field(default_factory=trio.Lock)

    @property
    def allows_full_resyncs(self) -> bool:
        """Whether the primary may make a snapshot itself, later than at the start."""
        is_under_way = self._has_linked and self.commits.is_rooted
        return self.origin.is_for_the_start and is_under_way

    # What the linker calls.

    async def join(self, info: ServerInfo, address: str, asked: int) -> bool:
        """Stand where the primary's stream can go on from.

        info is what it said of itself when it was asked, at that time (ms). Return
        False where the primary may be asked for a full resync instead. JoinError if its
        stream cannot be joined.
        """
        require_info(info, address)
        self._server = info.server
        position = self.recorder.position
        if position is not None and info.can_continue(*position):
            if self.commits.is_rooted:
                self._say_that_nothing_is_needed()
                return True
            if await self._may_still_seed(position[0]):
                return True
        if self.allows_full_resyncs:
            return False
        await self._respect_limit()
        start = await trio.to_thread.run_sync(
            self.origin.start, info, address, self.clock.now()
        )
        if start.late_since is None:
            start = replace(start, late_since=asked)
        await self._stand_at(start)
        return True

    async def _may_still_seed(self, replid: str) -> bool:
        """Whether the origin has a snapshot for what was followed without one."""
        if self._joinings or not isinstance(self.origin, FileOrigin):
            return True
        return await trio.to_thread.run_sync(self.origin.leads_to, replid, self.since)

    def linked(self) -> None:
        """Say that the primary goes on from where the recorder stands."""
        self._is_linked = self._has_linked = True
        self._changed.fire()

    def _say_that_nothing_is_needed(self) -> None:
        if self.origin.is_for_the_start and not self._has_linked:
            _log.info("the recording goes on; %s is not needed", self.origin.name)

    async def _respect_limit(self) -> None:
        now = self.clock.now()
        if not self.origin.costs_a_fork:
            return
        if wait := self.resyncs.wait(now):
            # Also at the start it is but a matter of time.
            raise LinkError(
                f"{self.resyncs.per_hour} snapshots were begun within the last hour "
                "(--full-resyncs-per-hour); the next may be at "
                f"{format_time(now + wait)}"
            )
        await trio.to_thread.run_sync(self.resyncs.expect, now)

    async def _stand_at(self, start: Position) -> None:
        """Leave what was recorded as it is, and follow the stream from start on."""
        recorder = self.recorder
        async with self._committing:
            if recorder.position is not None:
                await recorder.settle()
            self._is_linked = False
            self._joinings += 1
            # Another clock than ours may be behind it.
            not_before = 0 if recorder.end is None else recorder.end.time
            start = replace(start, time=max(start.time, not_before))
            await trio.to_thread.run_sync(self.commits.join, start, recorder.end)
            recorder.follow(start)
            self._joined = (start.replid, start.offset)
            self.since = start.offset
        self._changed.fire()
        tell(SeedJoined(start.replid, start.offset))

    # Bringing the snapshot.

    async def run(self) -> None:
        """Bring a snapshot whenever one is lacking, until cancelled.

        Raises UsageError or VerificationError for an origin that will never do.
        """
        backoff = Backoff()
        while True:
            while self.commits.is_rooted or not self._is_linked:
                await self._changed.wait()
            try:
                await self._seed()
            except (ServerError, UsageError, SpoolFullError, ExceptionGroup) as group:
                error = cause_of(group)
                if not self._may_pass(error):
                    raise
                trouble = f"no snapshot from {self.origin.name} yet: {error}"
                # How far a replica lags is another number each time, for hours.
                same = _without_numbers(self.trouble or "") == _without_numbers(trouble)
                tell(SeedFails(trouble, is_repeated=same))
                self.trouble = trouble
                await trio.sleep(backoff.next())
            else:
                self.trouble = None
                self._has_seeded = True
                backoff.reset()

    def _may_pass(self, error: BaseException) -> bool:
        if isinstance(error, UsageError):
            # The roles of servers change; what was good once may be again.
            return self._has_seeded
        return isinstance(error, ServerError | SpoolFullError)

    async def _seed(self) -> None:
        await self._respect_limit()
        joinings, replid = self._joinings, self.recorder.replid or ""
        since = max(self.since, self.commits.forks.get(replid, 0))
        wanted = Wanted(replid, since, self._server, Room(self.spool, self.clock))
        async with self.origin.open(wanted) as delivery:
            announced = delivery.announced
            if self.origin.costs_a_fork:
                now = self.clock.now()
                await trio.to_thread.run_sync(self.resyncs.announce, now)
            if not self._fits(announced, since):
                raise JoinError(
                    f"it has one at {announced.offset} of {announced.replid}, and "
                    f"{replid} is recorded since {since}"
                )
            tell(SeedBegun(self.origin.name, announced.offset))
            await self._receive(delivery, joinings)

    def _fits(self, announced: FullResync, since: int) -> bool:
        place = (announced.replid, announced.offset)
        is_of_this = announced.replid == self.recorder.replid
        return place == self._joined or (is_of_this and announced.offset >= since)

    async def _receive(self, delivery: Delivery, joinings: int) -> None:
        announced = delivery.announced
        # As early as can be: what comes later is behind the snapshot.
        self.received, time = 0, self._time_of(announced)
        receiver = SnapshotReceiver(self.spool, announced, self.clock.now())
        try:
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(
                    self._store, receiver, delivery.server, scope, joinings
                )
                while piece := await delivery.next():
                    await receiver.receive(piece)
                    self.received = receiver.received
                    time = time or self._time_of(announced)
                while time is None:
                    await self._recorded_more(announced, joinings)
                    time = self._time_of(announced)
                while self.recorder.durable < announced.offset:
                    await self._recorded_more(announced, joinings)
                if delivery.time is not None:
                    time = max(self.commits.restorable_until, min(time, delivery.time))
                receiver.name = SnapshotName(announced.replid, announced.offset, time)
                receiver.end()
                # Whole as it is, it must not be lost because it is time to stop.
                scope.shield = True
        finally:
            receiver.drop()

    def _time_of(self, announced: FullResync) -> int | None:
        """Return a time by which the stream was received up to the snapshot.

        Its state cannot be told from that of another moment before.
        """
        place = (announced.replid, announced.offset)
        is_of_this = announced.replid == self.recorder.replid
        has_it = is_of_this and self.recorder.received >= announced.offset
        return self.clock.now() if has_it or place == self._joined else None

    async def _recorded_more(self, announced: FullResync, joinings: int) -> None:
        """Wait for more of the stream; LinkError if it will never lead so far."""
        self._require_joined(joinings)
        with trio.move_on_after(1):
            await self.recorder.written.wait()
        if self._time_of(announced) is None and (
            announced.replid != self.recorder.replid
        ):
            raise JoinError(
                f"the primary goes on as {self.recorder.replid} before the snapshot's "
                f"offset, {announced.offset}"
            )

    def _require_joined(self, joinings: int) -> None:
        if self._joinings != joinings:
            raise JoinError("the stream was joined anew, behind a gap")

    async def _store(
        self,
        receiver: SnapshotReceiver,
        server: Server,
        scope: trio.CancelScope,
        joinings: int,
    ) -> None:
        """Write the snapshot as it comes, and commit it when it is whole."""
        with scope:
            manifest = await receiver.run(self.clock.now, server)
            async with self._committing:
                self._require_joined(joinings)
                await trio.to_thread.run_sync(self.commits.snapshot, manifest, None)
            tell(complete(manifest))
            self.queued.fire()
