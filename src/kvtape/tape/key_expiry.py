"""When a key expires after a command: what the stream tells of TTLs.

An expiry is an interval by the server's clock. Absolute ones are exact; of what counts
from the moment it was carried out (all that Redis 6.2 streams), only the receipt is
known, and by how much the clocks differ. NEVER and UNKNOWN are intervals, too, so that
"has certainly passed" and "may have passed" are plain comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from kvtape.tape.commands import RecordedCommand
from kvtape.tape.facts import ClockDifference

_FAR: Final = 2**63

# Returns by how much the server's clock was ahead when a command was received.
Clock = Callable[[RecordedCommand], ClockDifference]


class Expiry(NamedTuple):
    """When a key expires: between low and high, in ms by the server's clock."""

    low: int
    high: int

    def has_passed(self, command: RecordedCommand, clock: Clock) -> bool:
        """Whether it certainly had when a command was carried out.

        In the millisecond itself a key is still there.
        """
        return self.high < _FAR and command.after + clock(command).low > self.high

    def may_have_passed(self, command: RecordedCommand, clock: Clock) -> bool:
        """Whether it could have when a command was carried out."""
        return self.low < _FAR and command.time + clock(command).high >= self.low

    def or_else(self, other: Expiry) -> Expiry:
        """Return what is known if it is either of both."""
        return Expiry(min(self.low, other.low), max(self.high, other.high))

    @property
    def time(self) -> int | None:
        """When it is, where that is known exactly."""
        return self.low if self.low == self.high != _FAR else None


NEVER: Final = Expiry(_FAR, _FAR)
UNKNOWN: Final = Expiry(0, _FAR)

# Returns the expiry that a command gives its key; None leaves it what it is.
_Rule = Callable[[RecordedCommand, Clock], Expiry | None]

_UNITS: Final = {b"EX": 1000, b"PX": 1, b"EXAT": 1000, b"PXAT": 1}

# What stands before a value that the old one is compared with.
_COMPARED: Final = frozenset({b"IFEQ", b"IFNE", b"IFDEQ", b"IFDNE"})


def at(time: int) -> Expiry:
    """Return the expiry at a time of the server's clock (ms)."""
    return Expiry(time, time)


def given_by(command: RecordedCommand, clock: Clock) -> Expiry | None:
    """Return the expiry that a command gives the key that it names first.

    None if it leaves the expiry as it was, or a new key without one. What comes from
    another key (RENAME, COPY) is not told here.
    """
    rule = _RULES.get(command.name)
    try:
        return None if rule is None else rule(command, clock)
    except (ValueError, IndexError):
        return UNKNOWN


def _in(ms: int, command: RecordedCommand, clock: Clock) -> Expiry:
    """Return the expiry so many ms after a command was carried out."""
    ahead = clock(command)
    return Expiry(command.after + ahead.low + ms, command.time + ahead.high + ms)


def _cleared(_command: RecordedCommand, _clock: Clock) -> Expiry:
    return NEVER


def _by_options(
    options: Sequence[bytes], command: RecordedCommand, clock: Clock
) -> Expiry | None:
    """Return what options such as PXAT ms say; None if there is none of them."""
    for option, value in pairwise(options):
        name = option.upper()
        if unit := _UNITS.get(name):
            ms = int(value) * unit
            return at(ms) if name.endswith(b"AT") else _in(ms, command, clock)
    return None


def _set(command: RecordedCommand, clock: Clock) -> Expiry | None:
    """Read SET key value [options], and MSETEX n (key value)… [options]."""
    words = command.words
    begin = 3 if command.name == b"SET" else 2 + 2 * int(words[1])
    options = list(words[begin:])
    for number, option in enumerate(options):
        if option.upper() in _COMPARED:
            # What follows it is a value, and may look like an option.
            del options[number : number + 2]
            break
    if any(option.upper() == b"KEEPTTL" for option in options):
        return None
    return _by_options(options, command, clock) or NEVER


def _setex(command: RecordedCommand, clock: Clock) -> Expiry:
    unit = 1 if command.name == b"PSETEX" else 1000
    return _in(int(command.words[2]) * unit, command, clock)


def _getex(command: RecordedCommand, clock: Clock) -> Expiry | None:
    options = command.words[2:]
    if any(option.upper() == b"PERSIST" for option in options):
        return NEVER
    return _by_options(options, command, clock)


def _expire(command: RecordedCommand, clock: Clock) -> Expiry:
    """Read [P]EXPIRE[AT] key number."""
    name = command.name
    ms = int(command.words[2]) * (1 if name.startswith(b"P") else 1000)
    return at(ms) if name.endswith(b"AT") else _in(ms, command, clock)


def _restore(command: RecordedCommand, clock: Clock) -> Expiry:
    """Read RESTORE key ttl payload [options]."""
    ms = int(command.words[2])
    if not ms:
        return NEVER
    is_absolute = any(word.upper() == b"ABSTTL" for word in command.words[4:])
    return at(ms) if is_absolute else _in(ms, command, clock)


# What makes a new key, or deletes the key if it comes to nothing.
STORES: Final = frozenset(
    {
        *(b"SDIFFSTORE", b"SINTERSTORE", b"SUNIONSTORE", b"BITOP", b"SORT"),
        *(b"ZDIFFSTORE", b"ZINTERSTORE", b"ZUNIONSTORE", b"ZRANGESTORE"),
        *(b"GEORADIUS", b"GEORADIUSBYMEMBER", b"GEOSEARCHSTORE"),
    }
)

_RULES: Final[Mapping[bytes, _Rule]] = {
    b"SET": _set,
    b"MSETEX": _set,
    b"SETEX": _setex,
    b"PSETEX": _setex,
    b"GETEX": _getex,
    b"EXPIRE": _expire,
    b"EXPIREAT": _expire,
    b"PEXPIRE": _expire,
    b"PEXPIREAT": _expire,
    b"RESTORE": _restore,
    b"RESTORE-ASKING": _restore,
    **dict.fromkeys((b"PERSIST", b"GETSET", b"MSET", b"MSETNX", *STORES), _cleared),
}
