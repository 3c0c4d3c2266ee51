"""Naming a moment, and saying it back.

A point is an offset, a time, or the latest there is. Times are ms since the epoch
inside kvtape; people write RFC 3339 with a zone, or how long ago. A time without a zone
is refused: at 3 a.m. nobody should have to guess which clock was meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kvtape.errors import UsageError

_OFFSET = re.compile(r"(?:([0-9A-Za-z]{1,40}):)?([0-9]{1,19})")
_AGO = re.compile(r"now(?:-([0-9]{1,15})(ms|s|m|h|d))?")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

# The shortest beginning of a replid that may stand for it.
_SHORTEST_REPLID = 4

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

# A time outside of these is as good as the nearer one: nothing was recorded there.
_EARLIEST, _LATEST = 0, (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MS


@dataclass(frozen=True, slots=True)
class ToOffset:
    """The state after every command that ends at or before offset.

    replid is the history, or the beginning of its name; None means the newest history
    and its ancestors.
    """

    offset: int
    replid: str | None = None


@dataclass(frozen=True, slots=True)
class ToTime:
    """The state after everything that was received by time, in ms since the epoch."""

    time: int


@dataclass(frozen=True, slots=True)
class ToLatest:
    """The last moment that can be restored."""


Point = ToOffset | ToTime | ToLatest


def parse_offset(text: str) -> ToOffset:
    """Read [REPLID:]N."""
    match = _OFFSET.fullmatch(text.strip())
    if match is None or (match[1] and len(match[1]) < _SHORTEST_REPLID):
        raise UsageError(
            f"{text!r} is no offset: give N or REPLID:N, as INFO replication shows them"
        )
    return ToOffset(int(match[2]), match[1])


def parse_time(text: str, now: int) -> ToTime:
    """Read RFC 3339 with a zone, or now-15m; now is in ms since the epoch.

    What is finer than a ms is left out: the state at .0009 is that at .000.
    """
    if match := _AGO.fullmatch(text.strip()):
        ago = int(match[1]) * _UNIT_MS[match[2]] if match[1] else 0
        return _clamped(now - ago)
    try:
        # In RFC 3339, not in Python, the Z may be small.
        moment = datetime.fromisoformat(text.strip().upper())
    except ValueError:
        raise UsageError(
            f"{text!r} is no time: give one such as 2026-05-01T03:00:00Z or now-15m"
        ) from None
    if moment.tzinfo is None:
        raise UsageError(
            f"{text!r} has no zone: end it with Z for UTC, or with one such as +02:00"
        )
    return _clamped((moment - _EPOCH) // _MS)


def _clamped(time: int) -> ToTime:
    return ToTime(min(max(time, _EARLIEST), _LATEST))


def format_time(time: int) -> str:
    """Return a time (ms since the epoch) as RFC 3339, UTC, with milliseconds."""
    moment = _EPOCH + time * _MS
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
