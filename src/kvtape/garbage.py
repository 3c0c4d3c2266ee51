"""How often Python looks for cycles of objects that nobody can reach.

It does after each 700 objects that were made and not yet dropped, and goes through all
of them. Commands are lists of words, made by the ten thousand and without cycles; to
look for some took an eighth of the time of an audit and a replay.
"""

from __future__ import annotations

import atexit
import gc

# What is parsed and not yet used: some MiB of the shortest commands.
_OBJECTS = 200_000


def collect_seldom() -> None:
    """Look for cycles seldom, and not at the end: called where a process begins."""
    _, *others = gc.get_threshold()
    gc.set_threshold(_OBJECTS, *others)
    # What is frozen is not looked through: it goes with the process.
    atexit.register(gc.freeze)
