"""Room in the spool: when it gets short, and what to do when there is none.

The repository may be gone for longer than the spool lasts. Then something has to give,
and it is the link: what is recorded stays, uploading goes on, and the primary keeps
nothing for a replica that it does not have. As long as its backlog reaches back, the
next link loses nothing.

Three decisions are here: how full is worth a word (Gauge), when to link again (Room),
and whether a snapshot would fit, which is to be known before the primary makes one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

import trio

from kvtape.amounts import duration, size
from kvtape.record.events import SpoolFills, SpoolHasRoom, tell
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.position import Position
from kvtape.storage.spool import Spool

# Linking at the first free byte would be a link for every segment that is uploaded.
_ROOM_AGAIN = 0.9

_LEVELS = (70, 90)

# A level is left at five points less, or a segment more or less would be a message.
_SLACK = 5

# The rate is that of the last minute.
_WINDOW = 60.0

_LOOK_AGAIN = 1.0

# A disk that was full is not written to again until it has this much free, or a small
# one half of its size: twice what may be waiting to be written.
_ENOUGH_FREE = 64 * 1024 * 1024


class Gauge:
    """Says once when the spool is filled beyond a level, and once when it is not."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._level = 0
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, used: int, now: float) -> str | None:
        """Return what to say of so many bytes at a time (s), if anything."""
        self._seen.append((now, used))
        while now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        before, percent = self._level, 100 * used / self._limit
        reached = max((level for level in _LEVELS if percent >= level), default=0)
        if reached > before:
            self._level = reached
            return (
                f"the spool is {percent:.0f} % full: {size(used)} of "
                f"{size(self._limit)} (--spool-limit); {self._outlook(used, now)}"
            )
        if before and percent < before - _SLACK:
            self._level = reached
            return f"the spool is below {before} % again: {size(used)}"
        return None

    def _outlook(self, used: int, now: float) -> str:
        if used >= self._limit:
            return "nothing more is received until some of it is stored"
        then, base = self._seen[0]
        if used <= base or now <= then:
            return "it does not grow now"
        left = (self._limit - used) * (now - then) / (used - base)
        return f"at the present rate it is full in {duration(max(0.0, left))}"


async def watch(spool: Spool, gauge: Gauge) -> NoReturn:
    """Say when the spool gets full."""
    while True:
        said = gauge.look(spool.used, trio.current_time())
        if said is not None:
            tell(SpoolFills(said, round(100 * spool.used / spool.limit)))
        await trio.sleep(_LOOK_AGAIN)


@dataclass(frozen=True, slots=True)
class Outage:
    """The spool was full, and what was recorded until then ended at offset."""

    replid: str
    offset: int
    since: int
    until: int

    def __str__(self) -> str:
        return f"the spool was full from {_moment(self.since)} to {_moment(self.until)}"


class Room:
    """Whether the spool has room for more. Times are in ms."""

    def __init__(self, spool: Spool, clock: ReceiptClock) -> None:
        self._spool = spool
        self._clock = clock
        self._full_at = -1  # the offset at which it was full last
        self._too_little = -1  # so much was free, and a snapshot did not fit into it

    async def wait(self, end: Position | None) -> Outage | None:
        """Return when there is room again; what is written ends at end meanwhile.

        A command that did not fit has all the room there is the next time: it was not
        kept in part, so that it would be sent again and again.
        """
        spool, since = self._spool, self._clock.now()
        at = -1 if end is None else end.offset
        most = 1 if at == self._full_at else _ROOM_AGAIN * spool.limit
        self._full_at = at
        while spool.used >= most:  # noqa: ASYNC110
            await trio.sleep(_LOOK_AGAIN)
        tell(SpoolHasRoom(spool.used, spool.limit))
        if end is None:
            return None
        return Outage(end.replid, end.offset, since, self._clock.now())

    def note_too_little(self) -> None:
        """Remember that a snapshot, which is deleted by now, did not fit."""
        self._too_little = self._spool.limit - self._spool.used

    def shortage(self, data_memory: int | None) -> Shortage | None:
        """Return why a snapshot does not fit, None if it does or who knows.

        data_memory is the server's, None if it does not tell. Blocks.
        """
        spool = self._spool
        used, (_, free) = spool.used, spool.disk()
        room = min(spool.limit - used, free)
        is_lasting = False
        if data_memory is not None and data_memory > room:
            need = f"up to {size(data_memory)} (the memory that its data takes)"
            is_lasting = data_memory > min(spool.limit, free + used)
        elif room <= self._too_little:
            need = f"more than {size(self._too_little)}, as the last one showed"
        else:
            return None
        return Shortage(
            f"a snapshot needs {need}, and the spool {spool.folder} has room for "
            f"{size(max(0, room))}: it may hold {size(spool.limit)} (--spool-limit) "
            f"and holds {size(used)}, and its disk has {size(free)} free; raise "
            "--spool-limit, or give it a larger disk (--spool)",
            is_lasting=is_lasting,
        )


@dataclass(frozen=True, slots=True)
class Shortage:
    """A snapshot does not fit; is_lasting: nor would it if all was uploaded."""

    sentence: str
    is_lasting: bool


def has_enough_free(spool: Spool) -> bool:
    """Whether a disk that was full can be written to for a while. Blocks."""
    total, free = spool.disk()
    return free >= min(_ENOUGH_FREE, total // 2)


def _moment(time: int) -> str:
    return f"{datetime.fromtimestamp(time // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
