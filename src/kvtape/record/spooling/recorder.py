"""From received bytes to durable frames: group commit, and when a segment ends.

receive() is called for every piece of the stream as it comes; it follows the commands
and keeps the bytes in memory. run() takes them out in batches, and has a thread
compress them, write them to the spool and sync them. Both sides are bounded: the
receiver waits while MOST_PENDING bytes are not yet written.

Frames are cut at boundaries, so that a segment can end after any of them. Only a
command or transaction longer than a frame is spread over several; a segment cannot end
within it, and after a crash the tracker follows it again from the boundary before it.

A segment ends when it is large enough, or old enough to be uploaded and holds more than
PINGs; one that holds nothing else is uploaded once in PROOF_OF_LIFE, so that an idle
server costs nothing and a dead recorder is still told from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import trio

from kvtape.record.spooling.position import Position, recover
from kvtape.record.spooling.stretch import MARK_RESOLUTION, Stretch, frames
from kvtape.replication.tracker import Summary, Tracker
from kvtape.signal import Signal
from kvtape.storage.spool import Spool
from kvtape.tape.segment import MAX_FRAME, ClockDifference, Header, Mark

# So many bytes may wait for a disk that stalls before the primary has to keep them: at
# 10 MB/s, 1.5 s. As many may be on their way to the disk; with both, the whole program
# takes less than 100 MiB. docs/design.md has the sum.
MOST_PENDING = 16 * MAX_FRAME

PROOF_OF_LIFE = 600.0

# So many stretches are joined, or many short commands would cost more than their bytes.
_MOST_STRETCHES = 1024

_NOWHERE = Position("", 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """When what was received is synced, and when a segment ends (s, s, bytes)."""

    flush_interval: float = 0.2
    upload_interval: float = 10.0
    segment_size: int = 64 * 1024 * 1024


@dataclass(slots=True)
class _Batch:
    """What one write takes to the spool."""

    stretches: list[Stretch] = field(default_factory=list)
    size: int = 0


class Recorder:
    """Records one history after another into a spool.

    received is the offset up to which bytes came, and where a new link has to go on;
    durable is the boundary up to which they are synced, which is what may be
    acknowledged; written fires when they move, asked and ack_due when what came before
    a GETACK is synced, and queued when a segment is. Others may fire ack_due, too.
    run() raises OSError of the disk; after that, call restart().

    heard is when the newest byte of the stream was received, and unsealed when the
    first write of the open segment was, which holds none if it is None (ms).

    What is received is late, from each follow() on, until it is said that we are
    abreast of the primary: catch_up(). late_since is then what it may have been written
    right after (ms). server_clock is how far the primary's clock is ahead, for the
    headers.
    """

    def __init__(self, spool: Spool, limits: Limits, queued: Signal) -> None:
        self.replid: str | None = None
        self.received = 0
        self.durable = 0
        self.lost_because: str | None = None
        self.heard = 0
        self.unsealed: int | None = None
        self.server_clock: ClockDifference | None = None
        self.asked = Signal()
        self.ack_due = Signal()
        self.written = Signal()
        self._queued = queued
        self._spool = spool
        self._limits = limits
        self._tracker = Tracker(0)
        self._batch = _Batch()
        self._batch_begun = math.inf
        self._carry: list[bytes] = []  # bytes from _cut on, of no stretch yet
        self._carried = 0
        self._cut = 0
        self._marks: list[Mark] = []
        self._stamped = -math.inf  # the first receipt that the last mark stands for
        self._seen_early = Summary()  # of commands in carry
        self._late_since = 0
        self._late_until = math.inf  # the offset that the lateness ends at
        self._changed = Signal()
        self._has_getack = False
        self._is_held = False
        self._before = _NOWHERE  # where what is held began to be received
        self._must_seal = False
        self._seals_soon = False
        self._has_finished = False
        # What follows is the writing thread's while it runs.
        self._sealed = _NOWHERE  # where the last segment ended
        self._end = _NOWHERE  # of what is written
        self._last_sync = -math.inf
        self._is_synced = True
        self._segment_begun = math.inf
        self._segment_is_idle = True

    # Where recording stands.

    @property
    def position(self) -> tuple[str, int] | None:
        """The history that is followed and the offset to continue at."""
        return None if self.replid is None else (self.replid, self.received)

    @property
    def end(self) -> Position | None:
        """Where what is written ends."""
        return None if self.replid is None else self._end

    @property
    def is_full(self) -> bool:
        """Whether the receiver has to wait until something is written."""
        return self._batch.size + self._carried >= MOST_PENDING

    @property
    def late_since(self) -> int | None:
        """What is received now may have been written right after it; None: abreast."""
        return self._late_since if self._late_until == math.inf else None

    # What the link calls.

    def follow(self, position: Position) -> None:
        """Go on from a position; what was received beyond it is forgotten."""
        self.replid = position.replid or None
        self._tracker = Tracker(position.boundary, position.db)
        for frame in position.unfinished:
            skip = max(0, position.boundary - frame.facts.start)
            self._tracker.feed(frame.stream()[skip:])
        self._tracker.take_summary()
        self.lost_because = None
        self.received = self._cut = position.offset
        self.durable = position.boundary
        self._carry, self._carried, self._marks = [], 0, []
        self._seen_early, self._batch = Summary(), _Batch()
        self._has_getack = False
        self._batch_begun = math.inf
        self._end = position
        self._is_synced = True
        self.heard, self.unsealed = position.time, None
        since = position.late_since
        self._late_since = position.time if since is None else since
        self._late_until = math.inf
        if self._spool.segment is None:
            self._sealed = position
            self._segment_begun = math.inf
        else:
            header = self._spool.segment.writer.header
            self._sealed = Position(
                header.replid, header.start, header.start, header.db, header.time
            )
            # It is as old as can be, and what is in it is not known any more.
            self._segment_begun, self._segment_is_idle = -math.inf, False
            self.unsealed = header.time
        self._changed.fire()

    def fall_behind(self, since: int) -> None:
        """Take what was received after since (ms), and what will be, for late.

        Call it before what came late is received: what is being written is not changed.
        """
        if self._late_until == math.inf and since >= self._late_since:
            return
        if self._cut < self._late_until:
            # Something late is not written yet, and one frame may have some of both.
            since = min(since, self._late_since)
        self._late_since, self._late_until = since, math.inf
        for stretch in self._batch.stretches:
            if any(mark.time > since for mark in stretch.marks):
                known = stretch.late_since
                stretch.late_since = since if known is None else min(known, since)

    def catch_up(self) -> None:
        """Say that what is received from now on is written at this time."""
        self._late_until = min(self._late_until, self.received)

    async def until_received(self, offset: int) -> None:
        """Wait until the stream has come up to an offset."""
        while self.received < offset:
            await self._changed.wait()

    def receive(self, data: bytes, time: int) -> None:
        """Take the next bytes of the stream, received at time (ms)."""
        self.heard = time
        while data:
            # A frame takes no more, and where its last boundary is has to be known.
            room = MAX_FRAME - self._carried
            self._take(data[:room], time)
            data = data[room:]
        self._changed.fire()

    def _take(self, data: bytes, time: int) -> None:
        tracker = self._tracker
        tracker.feed(data)
        self._carry.append(data)
        self._carried += len(data)
        self.received += len(data)
        if self._marks and time - self._stamped < MARK_RESOLUTION:
            self._marks.pop()
        else:
            self._stamped = time
        self._marks.append(Mark(self.received, time))
        self.lost_because = tracker.lost_because
        self._has_getack = tracker.take_getack() or self._has_getack
        if tracker.boundary > self._cut:
            self._cut_at(tracker.boundary)
        elif self._carried == MAX_FRAME:
            self._cut_at(self.received)

    def _cut_at(self, offset: int) -> None:
        """Complete a stretch that ends at offset."""
        whole = b"".join(self._carry)
        length = offset - self._cut
        seen = self._tracker.take_summary()
        summary = Summary(dict(seen.names), seen.highest_db, seen.commands, seen.lost)
        summary.merge(self._seen_early)
        # Within a transaction, commands are seen before the boundary passes them.
        seen.commands = 0
        self._seen_early = seen if self._tracker.in_multi else Summary()
        marks = [mark for mark in self._marks if mark.offset <= offset]
        self._marks = self._marks[len(marks) :]
        if self._marks and (not marks or marks[-1].offset < offset):
            marks.append(Mark(offset, self._marks[0].time))
        batch = self._batch
        if not batch.stretches:
            self._batch_begun = trio.current_time()
        batch.stretches.append(
            Stretch(
                whole[:length],
                marks,
                self._tracker.boundary,
                self._tracker.db,
                summary,
                self._late_since if self._cut < self._late_until else None,
            )
        )
        batch.size += length
        if len(batch.stretches) > _MOST_STRETCHES:
            batch.stretches = list(frames(batch.stretches))
        self._cut = offset
        self._carry = [whole[length:]] if length < len(whole) else []
        self._carried = len(whole) - length

    def fork(self, replid: str) -> Position:
        """Go on under another replid; return where the two histories part.

        Call it when settled. What was received up to now is the same in both.
        """
        end = self._end
        self.replid = replid
        self._end = replace(end, replid=replid, unfinished=())
        self._sealed = self._end
        return self._end

    # What the agent calls.

    def hold(self) -> None:
        """Keep what is received in memory until release(): its snapshot comes first.

        Call it when settled, and follow() the stream behind the snapshot.
        """
        self._is_held = True
        self._before = self._end

    def release(self) -> None:
        """Write again: the snapshot is durable."""
        self._is_held = False
        self._changed.fire()

    def give_up(self) -> None:
        """Go back to where hold() was called, if there was no release()."""
        if self._is_held:
            self._is_held = False
            self.follow(self._before)

    async def settle(self) -> bool:
        """Write what is whole and end the segment, while nothing is received.

        Return False if a part of an unfinished command had to be dropped for that, so
        that a new link has to ask for it again.
        """
        self._must_seal = True
        self._changed.fire()
        while self._must_seal:
            await self.written.wait()
        if self._end.offset == self._cut:
            return True
        self.follow(self._end)
        return False

    async def seal(self) -> int:
        """End the segment with what is whole by now, or as soon as it can end.

        Return where the last segment ended then. What is received meanwhile is taken.
        """
        self._seals_soon = True
        self._changed.fire()
        while self._seals_soon:
            await self.written.wait()
        return self._sealed.offset

    def finish(self) -> None:
        """Have run() write what is whole, end the segment, and return."""
        self._has_finished = self._must_seal = True
        self._changed.fire()

    def restart(self, position: Position | None) -> None:
        """Go on after an error of the disk, from where the open segment ends.

        None means that there is none: what was sealed last is where to go on.
        """
        self.give_up()
        self._must_seal = self._seals_soon = self._has_finished = False
        self.follow(position or self._sealed)

    async def end_segment(self) -> None:
        """Queue what is on the disk, after restart() and before run()."""
        now = trio.current_time()
        await trio.to_thread.run_sync(self._seal_if_due, now, True)
        if (end := self.end) is not None:
            self.follow(end)

    async def run(self) -> None:
        """Write what is received, until finish()."""
        while True:
            await self._wait_until_due()
            batch, self._batch = self._batch, _Batch()
            if self._is_held:
                batch = _Batch()  # its snapshot will never be whole
            getack, self._has_getack = self._has_getack, False
            # Now, with the batch: what is whole at a later moment is not in this one.
            must_seal, now = self._must_seal, trio.current_time()
            seals_soon = self._seals_soon
            await trio.to_thread.run_sync(self._write, batch, now, getack, must_seal)
            self._batch_begun = now if self._batch.stretches else math.inf
            if must_seal:
                self._must_seal = False
            if seals_soon and self._spool.segment is None:
                self._seals_soon = False
            self.written.fire()
            if getack:
                self.asked.fire()
                self.ack_due.fire()
            if self._has_finished and must_seal:
                return

    async def _wait_until_due(self) -> None:
        """Wait until there is enough to write, or until it has waited long enough."""
        while not self._is_due(trio.current_time()):
            with trio.move_on_at(self._due()):
                await self._changed.wait()

    def _is_due(self, now: float) -> bool:
        if self._is_held:
            return self._has_finished
        if self._must_seal or self._can_seal_soon:
            return True
        full = self._batch.size >= MAX_FRAME
        return full or self._has_getack or now >= self._due()

    @property
    def _can_seal_soon(self) -> bool:
        return self._seals_soon and self._end.boundary == self._end.offset

    def _due(self) -> float:
        if self._is_held:
            return math.inf
        flush = self._batch_begun + self._limits.flush_interval
        sync = self._last_sync + self._limits.flush_interval
        return min(flush, math.inf if self._is_synced else sync, self._seal_due())

    def _seal_due(self) -> float:
        """Return when the segment is old enough to end, if it may end where it is."""
        if self._end.boundary != self._end.offset:
            return math.inf
        idle = self._segment_is_idle
        age = PROOF_OF_LIFE if idle else self._limits.upload_interval
        return self._segment_begun + age

    # The writing thread.

    def _write(
        self, batch: _Batch, now: float, is_urgent: bool, must_seal: bool
    ) -> None:
        spool, limits = self._spool, self._limits
        for stretch in frames(batch.stretches):
            self._append(stretch, now)
        self._is_synced = self._is_synced and not batch.stretches
        is_due = now - self._last_sync >= limits.flush_interval
        if not self._is_synced and (is_urgent or must_seal or is_due):
            spool.sync()
            self._is_synced = True
            self._last_sync = now
        if self._is_synced:
            self.durable = self._end.boundary
        self._seal_if_due(now, must_seal)

    def _append(self, stretch: Stretch, now: float) -> None:
        spool, end = self._spool, self._end
        segment = spool.segment
        if segment is None:
            clock = self.server_clock
            header = Header(end.replid, end.offset, end.db, end.time, clock)
            segment = spool.begin_segment(header)
            self._segment_begun = now
            self._segment_is_idle = True
        writer = segment.writer
        spool.append(
            writer.frame(
                stretch.data,
                stretch.marks,
                stretch.boundary,
                stretch.db,
                stretch.summary,
                stretch.late_since,
            )
        )
        idle = stretch.summary.is_idle
        self._segment_is_idle = self._segment_is_idle and idle
        if self.unsealed is None and not idle:
            self.unsealed = stretch.marks[0].time if stretch.marks else end.time
        self._end = Position(
            end.replid,
            writer.end,
            writer.boundary,
            writer.db,
            writer.last,
            late_since=writer.late_since,
        )

    def _seal_if_due(self, now: float, must_seal: bool) -> None:
        if must_seal:
            self._drop_unfinished()
        segment = self._spool.segment
        if segment is None or not segment.writer.can_end:
            return
        is_large = segment.size >= self._limits.segment_size
        must_seal = must_seal or self._seals_soon
        if must_seal or is_large or now >= self._seal_due():
            # First: if it fails, the segment may be in the queue all the same, and if
            # it is not, it is still there to be recovered.
            self._sealed = self._end
            self._spool.seal()
            self._is_synced = True
            self.durable = self._end.boundary
            self._segment_begun = math.inf
            self.unsealed = None
            trio.from_thread.run_sync(self._queued.fire)

    def _drop_unfinished(self) -> None:
        """Cut an unfinished command off the segment, so that it can end."""
        segment = self._spool.segment
        if segment is not None and not segment.writer.can_end:
            self._spool.cut_to_boundary()
            self._end = recover(self._spool) or self._sealed
