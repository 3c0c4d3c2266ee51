"""How regularly this program runs, while it keeps a link.

A process that was stopped, or a machine that was suspended, finds its link cut and does
not know of anything. The gap between two of its own heartbeats tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What lies further back did not break the link.
_RECENT = 60.0


def steady_clock() -> float:
    """Return a time that goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Pace:
    """The pauses of one link, in seconds. beat() is to be called every second or so."""

    def __init__(self, clock: Callable[[], float] = steady_clock) -> None:
        self._clock = clock
        self._begun = self._beat = clock()
        self._unread_since: float | None = None
        self._pause = self._unread = (0.0, self._begun)  # the last one, and its end

    def beat(self) -> None:
        """Say that the program runs."""
        now = self._clock()
        self._pause = self._worse(self._pause, now - self._beat, now)
        self._beat = now

    @contextmanager
    def not_reading(self) -> Iterator[None]:
        """Say that the link is not read meanwhile."""
        self._unread_since = begun = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            self._unread = self._worse(self._unread, now - begun, now)
            self._unread_since = None

    @property
    def lasted(self) -> float:
        """How long it is since the beginning."""
        return self._clock() - self._begun

    @property
    def paused(self) -> float:
        """The longest pause of late, also one that has not ended by a beat yet."""
        now = self._clock()
        return self._worse(self._pause, now - self._beat, now)[0]

    @property
    def unread(self) -> float:
        """The longest time of late in which nothing was read."""
        now = self._clock()
        since = now if self._unread_since is None else self._unread_since
        return self._worse(self._unread, now - since, now)[0]

    @staticmethod
    def _worse(
        known: tuple[float, float], length: float, now: float
    ) -> tuple[float, float]:
        is_old = now - known[1] > _RECENT
        return (length, now) if is_old or length > known[0] else known
