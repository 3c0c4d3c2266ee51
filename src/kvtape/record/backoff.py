"""How long to wait before trying again: longer each time, and never in step."""

from __future__ import annotations

import random

_FIRST = 0.5
_LONGEST = 30.0


class Backoff:
    """Growing waits, in seconds. The jitter keeps many agents from coming at once."""

    def __init__(self) -> None:
        self._wait = _FIRST

    def next(self) -> float:
        """Return how long to wait now."""
        wait, self._wait = self._wait, min(2 * self._wait, _LONGEST)
        return wait * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._wait = _FIRST
