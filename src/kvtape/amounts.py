"""Amounts as people read them, the same in messages, tables and advice.

Sizes are binary, as the options that set them here (10GiB) and in redis.conf (512mb).
"""

from __future__ import annotations

_SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_TIMES = (("d", 86400), ("h", 3600), ("min", 60))

# From two on, a unit needs no tenths; the next larger one begins there, too.
_WHOLE = 2


def size(length: float) -> str:
    """Return a number of bytes: 512 B, 1.5 MiB."""
    for unit, bytes_ in _SIZES:
        if length >= bytes_:
            return f"{length / bytes_:.1f} {unit}"
    return f"{length:.0f} B"


def duration(seconds: float) -> str:
    """Return a length of time: 0.3 ms, 1.5 s, 43 s, 26 h."""
    for unit, one in _TIMES:
        if seconds >= _WHOLE * one:
            return f"{seconds / one:.0f} {unit}"
    if seconds >= _WHOLE or seconds == 0:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def setting(count: int) -> str:
    """Return a number of bytes as redis.conf takes it: 512mb."""
    for unit, bytes_ in _SIZES:
        if count and count % bytes_ == 0:
            return f"{count // bytes_}{unit[0].lower()}b"
    return str(count)
