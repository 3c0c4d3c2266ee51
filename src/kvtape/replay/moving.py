"""Moving expiries in time, so that an hour left then is an hour left now.

Each command is replayed at a moment of its own, so the shift is another for each. What
is changed, and how, is what a restore with other expiries does (kvtape.tape.ttls); what
cannot be moved is passed on as it is, as a replay is a client's work and no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from kvtape.tape import absolute_ttl, ttl_commands
from kvtape.tape.field_ttl import Command
from kvtape.tape.ttls import Ttls

NAMES: Final = absolute_ttl.NAMES | ttl_commands.NAMES
"""The commands that may have an expiry."""

ENDS_WITH_TIME: Final = frozenset(
    {b"*5\r\n$3\r\nSET\r\n", b"*3\r\n$9\r\nPEXPIREAT\r\n"}
)
"""The heads of commands that may end with a time, and no other; see last_times()."""

# Times in ms have as many digits from the year 2001 to 2286.
DIGITS: Final = 13
_FIRST = 10**12


def moved(words: Command, time: int, moment: int) -> Command | None:
    """Return the command with its expiry moved; None if it has none.

    time is when it was received, moment when it is replayed (ms). ValueError or
    IndexError for a command that no server would have carried out.
    """
    ttls = _moved_by(moment - time)
    # A shift makes one command of one.
    (changed,) = ttl_commands.change(absolute_ttl.absolute(words, time), ttls)
    return None if changed == words else changed


def last_times(commands: Sequence[Command]) -> list[int | None]:
    """Return the time (ms) that each of some commands ends with, in DIGITS digits.

    Their heads are in ENDS_WITH_TIME. None for one of which moved() knows more.
    """
    return [
        int(digits)
        if len(digits) == DIGITS
        and digits.isdigit()
        and (len(words) == 3 or words[3] == b"PXAT")
        else None
        for words in commands
        for digits in (words[-1],)
    ]


def moved_times(times: Sequence[int], shift: int) -> list[bytes] | None:
    """Return times moved by shift (ms); None if one has other than DIGITS digits."""
    if min(times) + shift < _FIRST or max(times) + shift >= 10 * _FIRST:
        return None
    new = tuple([time + shift for time in times])
    # One format for all takes half as long as one for each.
    return ("%d " * len(new) % new).encode().split()


# Commands that came at once have one shift, and making it takes a third of all this.
@lru_cache(maxsize=256)
def _moved_by(shift: int) -> Ttls:
    return Ttls(shift, 0, is_lenient=True)
