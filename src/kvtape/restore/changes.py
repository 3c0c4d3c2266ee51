"""How a restore is to differ from what was: other expiries, commands undone."""

from __future__ import annotations

from dataclasses import dataclass

from kvtape.tape.command_pattern import CommandPattern
from kvtape.tape.documents import Manifest
from kvtape.tape.point import ToOffset
from kvtape.tape.ttls import MOST, MOST_OF_REDIS_FIELDS, Mode, Ttls


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes of expiries, and which commands are left out as if never run.

    skip_offsets are where they begin, as an audit shows it.
    """

    ttl: Mode = "keep"
    skip_offsets: tuple[ToOffset, ...] = ()
    skip_commands: tuple[CommandPattern, ...] = ()

    def ttls(self, manifest: Manifest, point: int, now: int) -> Ttls | None:
        """Return how expiries change, given the times of the point and now (ms)."""
        most = MOST_OF_REDIS_FIELDS if manifest.rdb_magic == "REDIS" else MOST
        match self.ttl:
            case "keep":
                return None
            case "shift":
                return Ttls(now - point, point, most)
            case "drop":
                return Ttls(None, point, most)
