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


def moved(words: Command, time: int, moment: int) -> Command | None:
    """Return the command with its expiry moved; None if it has none.

    time is when it was received, moment when it is replayed (ms). ValueError or
    IndexError for a command that no server would have carried out.
    """
    ttls = _moved_by(moment - time)
    # A shift makes one command of one.
    (changed,) = ttl_commands.change(absolute_ttl.absolute(words, time), ttls)
    return None if changed == words else changed


# Commands that came at once have one shift, and making it takes a third of all this.
@lru_cache(maxsize=256)
def _moved_by(shift: int) -> Ttls:
    return Ttls(shift, 0, is_lenient=True)
