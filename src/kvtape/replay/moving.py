"""Moving expiries in time, so that an hour left then is an hour left now.

Each command is replayed at a moment of its own, so the shift is another for each. What
is changed, and how, is what a restore with other expiries does (kvtape.tape.ttls); what
cannot be moved is passed on as it is, as a replay is a client's work and no copy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from kvtape.tape import absolute_ttl, ttl_commands
from kvtape.tape.field_ttl import Command
from kvtape.tape.ttls import Ttls

NAMES: Final = absolute_ttl.NAMES | ttl_commands.NAMES
"""The commands that may have an expiry."""

# Times in ms have as many digits from the year 2001 to 2286.
_FIRST = 10**12
_DIGITS = 13


def moved(words: Command, time: int, moment: int) -> Command | None:
    """Return the command with its expiry moved; None if it has none.

    time is when it was received, moment when it is replayed (ms). ValueError or
    IndexError for a command that no server would have carried out.
    """
    ttls = _moved_by(moment - time)
    # A shift makes one command of one.
    (changed,) = ttl_commands.change(absolute_ttl.absolute(words, time), ttls)
    return None if changed == words else changed


def moved_in_place(words: Command, shift: int) -> bytes | None:
    """Return what to write over the last word of a command, moved by shift (ms).

    It has as many digits. None for a command that does not end with a time, and one
    whose time becomes longer or shorter: of these moved() knows more.
    """
    if len(words) == 5:
        ends_with_time = words[3] == b"PXAT" and words[0] == b"SET"
    else:
        ends_with_time = len(words) == 3 and words[0] == b"PEXPIREAT"
    if not ends_with_time or len(words[-1]) != _DIGITS or not words[-1].isdigit():
        return None
    time = int(words[-1]) + shift
    return b"%d" % time if _FIRST <= time < 10 * _FIRST else None


# Commands that came at once have one shift, and making it takes a third of all this.
@lru_cache(maxsize=256)
def _moved_by(shift: int) -> Ttls:
    return Ttls(shift, 0, is_lenient=True)
