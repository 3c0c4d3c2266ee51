"""How amounts are written in messages."""

from __future__ import annotations


def size(length: float) -> str:
    """Return a number of bytes for a message."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if length >= bytes_:
            return f"{length / bytes_:.1f} {unit}"
    return f"{length:.0f} B"


def duration(seconds: float) -> str:
    """Return a length of time for a message."""
    for unit, one in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * one:
            return f"{seconds / one:.0f} {unit}"
    return f"{seconds:.0f} s"
