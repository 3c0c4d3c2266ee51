"""What a replay is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtape.replay.pace import FOLLOWING_GRACE, GRACE, Pace
from kvtape.replay.selection import Selection
from kvtape.server.url import ServerUrl
from kvtape.tape.point import Point


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The recording and the part of it, the target, how fast, and what of it.

    start and end are points, None as far as there is. speed is how many times as fast
    as recorded, None as fast as the target takes it. follow goes on with what is
    recorded meanwhile and looks for it every poll seconds; with a delay (s), each
    command comes so long after it was recorded. rounds is how often the range is
    replayed. announce is where the target reaches this machine for the snapshot.
    """

    repository: str
    url: ServerUrl
    source: str | None = None
    start: Point | None = None
    end: Point | None = None
    selection: Selection = field(default_factory=Selection)
    speed: float | None = 1.0
    with_snapshot: bool = False
    rounds: int = 1
    follow: bool = False
    delay: float | None = None
    stops_on_error: bool = True
    force: bool = False
    announce: tuple[str, int] | None = None
    poll: float = 2.0

    @property
    def pace(self) -> Pace:
        """How fast it is, and by how much longer keys live."""
        if self.delay is not None:
            return Pace(1.0, int(self.delay * 1000))
        is_bursty = self.follow and self.speed is None
        return Pace(self.speed, grace=FOLLOWING_GRACE if is_bursty else GRACE)
