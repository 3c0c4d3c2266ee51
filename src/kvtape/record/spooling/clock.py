"""The receiver's clock, which stamps the stream.

The stream has no time in it, so the time of receipt has to do. A stamp must never be
earlier than the one before, or a restore to a time would have two answers, and clocks
are set back. Freezing until the clock has caught up would give an hour of the same
stamp; going on at full speed would be an hour off for ever. So after a step back the
stamps go on at half speed, until the clock has caught up with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class ReceiptClock:
    """Stamps in ms since the epoch, none of them earlier than the one before.

    not_before is the last stamp that is stored already. wall returns seconds since the
    epoch, and steady seconds since anything.
    """

    def __init__(
        self,
        not_before: int = 0,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._last = float(not_before)
        self._last_steady = steady()

    def now(self) -> int:
        """Return the stamp for what is received now."""
        wall, steady = self._wall() * 1000, self._steady()
        passed = (steady - self._last_steady) * 1000
        self._last = max(wall, self._last + (passed / 2 if wall < self._last else 0))
        self._last_steady = steady
        return int(self._last)
