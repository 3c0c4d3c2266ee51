"""Waking those who wait for something that happens again and again."""

from __future__ import annotations

import trio


class Signal:
    """Something that happens more than once. fire() wakes whoever waits by then."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def fire(self) -> None:
        """Wake all who wait."""
        self._event.set()
        self._event = trio.Event()

    def next(self) -> trio.Event:
        """Return the event of the next time, to look first and wait for it then."""
        return self._event

    async def wait(self) -> None:
        """Wait for the next time."""
        await self._event.wait()
