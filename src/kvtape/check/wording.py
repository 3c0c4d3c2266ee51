"""Numbers as an operator reads them.

Sizes are binary, as a server's settings are, so that what is measured can be compared
with what is configured; a size to be set is written as the server takes it.
"""

from __future__ import annotations

_KIB = 1024

_SECONDS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))

# From this many of a unit on it is shown, rather than the next smaller one.
_FROM = 2


def size(count: float) -> str:
    """Return a length: 512 B, 1.5 MiB."""
    if count < _KIB:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= _KIB
        if count < _KIB:
            return f"{count:.1f} {unit}"
    return f"{count / _KIB:.1f} TiB"


def duration(seconds: float) -> str:
    """Return a time: 0.3 ms, 43 s, 26 h."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    for length, unit in _SECONDS:
        if seconds >= _FROM * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def setting(count: int) -> str:
    """Return a size as redis.conf takes it: 512mb."""
    for unit, length in (("gb", _KIB**3), ("mb", _KIB**2), ("kb", _KIB)):
        if count and count % length == 0:
            return f"{count // length}{unit}"
    return str(count)
