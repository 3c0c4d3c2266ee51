"""Numbers as an operator reads them, where what is short or to be set counts too."""

from __future__ import annotations

from kvtape import amounts

_UNITS = (("gb", 2**30), ("mb", 2**20), ("kb", 2**10))

# Below this many seconds a tenth of one counts.
_SHORT = 2.0


def duration(seconds: float) -> str:
    """Return a time: 0.3 ms, 1.5 s, 43 s, 26 h."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s" if seconds < _SHORT else amounts.duration(seconds)


def setting(count: int) -> str:
    """Return a size as redis.conf takes it: 512mb."""
    for unit, length in _UNITS:
        if count and count % length == 0:
            return f"{count // length}{unit}"
    return str(count)
