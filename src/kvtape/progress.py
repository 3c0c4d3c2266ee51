"""How far a long work is, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

# Called with the number of bytes done since the last call.
Advance: TypeAlias = Callable[[int], None]


class Watch(Protocol):
    """Shows how far a work is."""

    def stage(self, name: str, length: int) -> Advance:
        """Begin a stage of so many bytes, and end the one before."""


class NoWatch:
    """Shows nothing."""

    def stage(self, name: str, length: int) -> Advance:
        """Begin a stage that nobody watches."""
        return lambda _: None
