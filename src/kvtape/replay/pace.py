"""When what was recorded is due again, and what time it is then for what expires.

Recorded times and those of a replay are ms since the epoch. At a speed, the gaps
between commands are the recorded ones, divided by it; without one, all is due at once.

Expiries are moved by the moment of their replay less the recorded time. Where that is
paced, the moment is when a command was due, not when it was sent, so that all are moved
alike and none lapses before what came before it; unless the target fell behind by more
than SLACK, from where on they are moved by what it is behind, too. GRACE is added: what
a command finds a moment before a key's end must be there also where it comes a little
late. At the right place in the stream, the recorded DEL ends the key anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

# How far (ms) a paced replay may be behind before expiries are moved for it.
SLACK = 1000

# By how much (ms) longer a key lives; and where segments are waited for, as one that is
# replayed late may hold what was done to a key just after the segment before.
GRACE = 1000
FOLLOWING_GRACE = 60_000


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to replay: speed times as fast as recorded, None as fast as it goes.

    With a delay (ms), each command is due so long after it was recorded.
    """

    speed: float | None = 1.0
    delay: int | None = None
    grace: int = GRACE

    @property
    def is_free(self) -> bool:
        """Whether all is due at once."""
        return self.speed is None and self.delay is None

    def begin(self, time: int, now: float) -> Timeline:
        """Return the timeline of a replay whose first command was recorded at time."""
        if self.delay is not None:
            return Timeline(0, self.delay, 1.0, self.grace)
        return Timeline(time, now, self.speed, self.grace)


@dataclass(frozen=True, slots=True)
class Timeline:
    """The recorded time origin is at start; what follows, at speed."""

    origin: int
    start: float
    speed: float | None
    grace: int = GRACE

    def due(self, time: int) -> float:
        """Return when a command that was recorded at time is due."""
        if self.speed is None:
            return self.start
        return self.start + (time - self.origin) / self.speed

    def reached(self, now: float) -> int | None:
        """Return up to which recorded time all is due by now; None is without end."""
        if self.speed is None:
            return None
        return int(self.origin + (now - self.start) * self.speed)

    def moment(self, time: int, now: float) -> int:
        """Return the moment that a command is replayed at, for what expires."""
        due = now if self.speed is None else max(self.due(time), now - SLACK)
        return int(due) + self.grace
