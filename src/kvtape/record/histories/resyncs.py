"""How often the primary was made to take a snapshot, and when it may be again.

A full resync costs the primary a fork. A recorder that asks for one after another is
the worst that can happen to a server in trouble, so they are counted, also across
restarts.

All calls but wait() block, and may come from two threads at once: a snapshot may come
from elsewhere while a link is made.
"""

from __future__ import annotations

from threading import Lock

from kvtape.storage.spool import Spool

_HOUR_MS = 3_600_000


class FullResyncs:
    """The full resyncs of the last hour. Times are in ms."""

    def __init__(self, spool: Spool, per_hour: int) -> None:
        self.per_hour = per_hour
        self._spool = spool
        self._times = spool.full_resyncs()
        self._lock = Lock()

    def expect(self, now: int) -> None:
        """Write to the spool, since a full resync may be next.

        A disk that cannot take a snapshot raises OSError here, before the primary has
        made one for nothing.
        """
        with self._lock:
            self._times = [time for time in self._times if time > now - _HOUR_MS]
            self._spool.note_full_resyncs(self._times)

    def announce(self, now: int) -> None:
        """Count a full resync that the primary has begun."""
        with self._lock:
            # In memory first: a full disk must not make them uncounted.
            self._times.append(now)
            self._spool.note_full_resyncs(self._times)

    def wait(self, now: int) -> int:
        """Return how long (ms) to wait until the limit allows the next one."""
        times = sorted(time for time in self._times if time > now - _HOUR_MS)
        if len(times) < self.per_hour:
            return 0
        return times[-self.per_hour] + _HOUR_MS - now
