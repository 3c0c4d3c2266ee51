"""How far a replay is, for whoever watches it, and what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_UNKNOWN = "ERR unknown command"


def kind_of(message: str) -> str:
    """Return the kind of an error that a server answered: its first word, mostly."""
    if message.startswith(_UNKNOWN):
        return _UNKNOWN
    return message.partition(" ")[0]


@dataclass(slots=True)
class Progress:
    """What a replay has done by now; it is changed while the replay runs.

    replid, offset and time (ms) are those of the last byte that was replayed, and
    started where it began. commands and stream_bytes are of what was gone through by
    this run. late is by how much (s) the last parcel missed its time, behind how long
    ago what it holds was recorded. errors has how often each kind of error was
    answered, and first the first answer of each; untold is what was left out because
    nobody can tell what it does to a part of the data.
    """

    replid: str = ""
    started: int = 0
    offset: int = 0
    time: int = 0
    round: int = 1
    commands: int = 0
    stream_bytes: int = 0
    late: float = 0.0
    behind: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    untold: Counter[str] = field(default_factory=Counter)

    def count_error(self, message: str, told: str) -> bool:
        """Count an error; return whether it is the first of its kind."""
        kind = kind_of(message)
        self.errors[kind] += 1
        return self.first.setdefault(kind, told) is told

    def count_untold(self, reason: str) -> bool:
        """Count what was left out; return whether it is the first for that reason."""
        self.untold[reason] += 1
        return self.untold[reason] == 1
