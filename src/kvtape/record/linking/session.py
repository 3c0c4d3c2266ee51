"""One link to the primary: from the handshake until it breaks.

The loop is: read the socket, give the bytes to the protocol, act on each event. Beside
it, a heartbeat tells the primary every second that we are alive; it never depends on
how busy the disk is. Another task finds out whether what comes is new, or was written
long ago. While a snapshot is being completed the stream already flows; it
is kept in memory, and written when its snapshot is durable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import trio

from kvtape.record.acknowledge import Ack, acknowledgement
from kvtape.record.events import (
    FullReason,
    FullResyncBegun,
    Linked,
    PartialReason,
    complete,
    tell,
)
from kvtape.record.histories.commits import Commits
from kvtape.record.linking.abreast import Abreast, Ask
from kvtape.record.linking.pace import Pace
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.position import Position
from kvtape.record.spooling.recorder import Recorder
from kvtape.record.spooling.snapshot import SnapshotReceiver
from kvtape.record.uploading.uploader import Uploader
from kvtape.replication.replica import (
    NEED_DATA,
    Continue,
    Event,
    FullResync,
    LinkError,
    Replica,
    SnapshotData,
    SnapshotEnd,
    SnapshotStart,
    StreamData,
)
from kvtape.signal import Signal
from kvtape.storage.spool import Spool

HEARTBEAT = 1.0

# A primary pings every 10 s by default, and gives a replica up after 60 s of silence
# (repl-timeout); so do we. In the handshake newlines count, too.
SILENCE = 60.0

_RECEIVE = 512 * 1024

# After a snapshot that ended with a mark, the stream starts at an ACK, and one that
# comes before the primary has reaped its child (some 100 ms) is forgotten. So the first
# ones come faster than a heartbeat, for this many times.
_EAGER_HEARTBEAT = 0.2
_EAGER_TIMES = 10


async def _nothing_to_ask(replid: str) -> None:
    del replid


@dataclass(slots=True)
class Progress:
    """What a session does, for those who watch."""

    phase: Literal["connecting", "snapshot", "streaming"] = "connecting"
    snapshot_bytes: int = 0
    snapshot_length: int | None = None


@dataclass(slots=True)
class Session:
    """Records over one link. run() always raises: LinkError, RefusedError, OSError."""

    stream: trio.abc.Stream
    replica: Replica
    recorder: Recorder
    spool: Spool
    clock: ReceiptClock
    commits: Commits
    queued: Signal
    ack: Ack
    uploader: Uploader
    on_link: Callable[[], None] = lambda: None  # called when the primary agreed
    # Called in a thread before a snapshot is taken; an error refuses it.
    on_full_resync: Callable[[FullResync, int], None] = lambda announced, now: None
    # Called before a new history is written down, while nothing is received.
    before_fork: Callable[[str], Awaitable[None]] = _nothing_to_ask
    must_fork: bool = False  # it continues from where a new history has to begin
    why_again: PartialReason = "start"  # why this link was made
    ask: Ask | None = None  # the server, over another connection, if it tells
    progress: Progress = field(default_factory=Progress)
    pace: Pace = field(default_factory=Pace)
    was_cut: bool = False  # the primary or the network ended the link
    was_silent: bool = False  # by saying nothing any more
    _sending: trio.Lock = field(default_factory=trio.Lock)
    _snapshot: SnapshotReceiver | None = None
    _storing: trio.CancelScope = field(default_factory=trio.CancelScope)
    _before: Position | None = None  # where recording stood before the snapshot
    _heard: int = 0  # when the primary said something last (ms)
    _since: int = 0  # the same, before it announced the snapshot
    _eager: int = 0
    _abreast: Abreast = field(init=False)
    _nursery: trio.Nursery = field(init=False)

    def __post_init__(self) -> None:
        self._abreast = Abreast(self.recorder, self.clock, self.ask)

    @property
    def is_online(self) -> bool:
        """Whether the stream flows, or flowed until the link broke."""
        return self.replica.is_online

    async def run(self) -> None:
        """Record until the link breaks."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._keep_alive)
                if self.ack == "stored":
                    nursery.start_soon(self._store_when_asked)
                await self._read()
        finally:
            if self._snapshot is not None:
                self.recorder.give_up()
                self._snapshot.drop()

    async def _read(self) -> None:
        recorder, replica, abreast = self.recorder, self.replica, self._abreast
        self._heard = self.clock.now()
        while True:
            self.spool.require_room()
            await self._send()
            abreast.listen()
            data = await self._receive()
            abreast.hear(leaves_some=len(data) == _RECEIVE)
            now = self.clock.now()
            if not data:
                self.was_cut = True
                raise replica.receive_end()
            replica.receive_data(data)
            while (event := replica.next_event()) is not NEED_DATA:
                await self._act(event, now)
            self._heard = now
            while recorder.is_full:
                abreast.stall()
                with self.pace.not_reading():
                    await recorder.written.wait()

    async def _receive(self) -> bytes:
        try:
            with trio.fail_after(SILENCE):
                return bytes(await self.stream.receive_some(_RECEIVE))
        except trio.BrokenResourceError as error:
            self.was_cut = True
            raise LinkError(f"the link broke: {error.__cause__ or error}") from error
        except trio.TooSlowError:
            self.was_cut = self.was_silent = True
            raise LinkError(
                f"the primary was silent for {SILENCE:.0f} s: it hangs, or the network "
                "lost it, or it is a replica without its own primary"
            ) from None

    async def _send(self) -> None:
        data = self.replica.data_to_send()
        if data:
            async with self._sending:
                try:
                    await self.stream.send_all(data)
                except trio.BrokenResourceError as error:
                    self.was_cut = True
                    why = error.__cause__ or error
                    raise LinkError(f"the link broke: {why}") from error

    async def _keep_alive(self) -> None:
        """Send an ACK every second, and when one was asked for and is due."""
        while True:
            self.pace.beat()
            self.spool.require_room()
            interval, due = HEARTBEAT, self.recorder.ack_due.next()
            if self.replica.is_online:
                self.replica.ack(*self._acknowledgement())
                try:
                    await self._send()
                except LinkError:
                    # What the primary said before it hung up is still to be read;
                    # whoever reads it comes to the end, too.
                    return
            if self._eager:
                self._eager -= 1
                interval = _EAGER_HEARTBEAT
            with trio.move_on_after(interval):
                await due.wait()

    def _acknowledgement(self) -> tuple[int, int | None]:
        recorder = self.recorder
        # A snapshot that is not durable yet is nothing to acknowledge anything on.
        is_rooted = self._snapshot is None and self.commits.is_rooted
        synced = recorder.durable if is_rooted else 0
        stored = self.uploader.stored.end(recorder.replid) if is_rooted else None
        return acknowledgement(self.ack, synced, stored)

    async def _store_when_asked(self) -> None:
        """Upload what is there when an ACK is asked for, and send it then.

        Whoever asks meanwhile is answered by one upload more, for all of them.
        """
        recorder, uploader = self.recorder, self.uploader
        asked = recorder.asked.next()
        while True:
            await asked.wait()
            asked = recorder.asked.next()
            end, replid = await recorder.seal(), recorder.replid
            moved = uploader.moved.next()
            while recorder.replid == replid and not self._has_stored(end):
                await moved.wait()
                moved = uploader.moved.next()
            recorder.ack_due.fire()

    def _has_stored(self, offset: int) -> bool:
        end = self.uploader.stored.end(self.recorder.replid)
        return end is not None and end >= offset

    async def _act(self, event: Event, now: int) -> None:
        match event:
            case StreamData(data=data):
                self._eager = 0
                self.recorder.receive(data, now)
            case SnapshotData(data):
                snapshot = self._announced()
                await snapshot.receive(data)
                self.progress.snapshot_bytes = snapshot.received
            case Continue(replid):
                await self._continue(replid)
                self.on_link()
                self._begin_stream()
            case FullResync():
                await self._begin_snapshot(event, now)
            case SnapshotStart(length):
                self.progress.phase = "snapshot"
                self.progress.snapshot_length = length
            case SnapshotEnd():
                self._end_snapshot()
                self._begin_stream()

    def _begin_stream(self) -> None:
        """Have what follows an interruption told from what is new."""
        self.progress.phase = "streaming"
        self._abreast.begin()
        self._nursery.start_soon(self._abreast.run)

    def _announced(self) -> SnapshotReceiver:
        if self._snapshot is None:
            raise RuntimeError("a snapshot that was not announced")
        return self._snapshot

    async def _continue(self, replid: str) -> None:
        recorder = self.recorder
        if replid == recorder.replid:
            if self.must_fork:
                # These bytes are recorded already, up to where it was gone back from.
                raise LinkError(
                    "the primary said that it has parted from the history "
                    f"{replid}, and goes on with it all the same; asking again"
                )
            tell(Linked(replid, recorder.received, self.why_again))
            return
        if not await recorder.settle():
            raise LinkError(
                "the primary goes on under a new replication ID within a command; "
                "asking again for the whole command"
            )
        await self.before_fork(replid)
        if (end := recorder.end) is not None:
            # Before anything is recorded of the new history, how it began is.
            fork = replace(end, replid=replid)
            await trio.to_thread.run_sync(self.commits.fork, end.replid, fork)
        recorder.fork(replid)
        tell(Linked(replid, recorder.received, "failover"))
        self.queued.fire()

    async def _begin_snapshot(self, announced: FullResync, now: int) -> None:
        self._since = self._heard
        tell(FullResyncBegun(announced.replid, announced.offset, self._why(announced)))
        await trio.to_thread.run_sync(self.on_full_resync, announced, now)
        self.on_link()
        if self.recorder.position is not None:
            await self.recorder.settle()
        self._snapshot = SnapshotReceiver(self.spool, announced, now)
        self._nursery.start_soon(self._store, self._snapshot)

    def _why(self, announced: FullResync) -> FullReason:
        replid = self.recorder.replid
        if replid is None:
            return "first"
        return "backlog" if replid == announced.replid else "history"

    def _end_snapshot(self) -> None:
        """Follow the stream behind the snapshot, and complete it meanwhile."""
        snapshot, recorder = self._announced(), self.recorder
        snapshot.end()
        # Whole as it is, it must not be lost because the link breaks just now.
        self._storing.shield = True
        self._before = recorder.end
        name = snapshot.name
        self.uploader.stored.go_back(name.replid, name.offset)
        recorder.hold()
        recorder.follow(
            Position(
                name.replid,
                name.offset,
                name.offset,
                snapshot.db,
                name.time,
                late_since=self._since,
            )
        )
        self._eager = _EAGER_TIMES
        recorder.ack_due.fire()

    async def _store(self, snapshot: SnapshotReceiver) -> None:
        """Write a snapshot as it comes, and commit it when it is whole."""
        with self._storing:
            manifest = await snapshot.run(self.clock.now, self.commits.server)
            await trio.to_thread.run_sync(self.commits.snapshot, manifest, self._before)
            self._snapshot = None
            self.recorder.release()
        tell(complete(manifest))
        self.queued.fire()
