"""The last link that broke, until it is known why.

When a link breaks, the server is often gone for a while; only when it answers again is
there something to compare. So what is known of the break is kept until then, and said
once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from kvtape.record.events import BreakExplained, tell
from kvtape.record.linking.cut import Cut, explain
from kvtape.record.linking.session import Session
from kvtape.replication.refusal import RefusedError
from kvtape.server.info import ServerInfo


@dataclass(slots=True)
class Breaks:
    """Explains breaks. last is why the last link broke, None if none did yet."""

    last: str | None = None
    _before: ServerInfo | None = None  # of the link that stands
    _broken: tuple[ServerInfo, Cut, float] | None = None  # not yet explained

    def begin(self) -> None:
        """Say that a new link is tried."""
        self._before = None

    def stand(self, info: ServerInfo) -> None:
        """Say that a link stands, and what the server said of itself before."""
        self._before = info

    def note(self, session: Session | None, error: BaseException) -> None:
        """Remember what there is to know of a link that ended with an error."""
        before, self._before = self._before, None
        if before is None or session is None or not session.was_cut:
            # Nothing stood, or it was we who ended it, and have said why.
            return
        pace, position = session.pace, session.recorder.position
        is_streaming = session.progress.phase == "streaming"
        cut = Cut(
            str(error),
            session.progress.phase,
            0 if position is None else position[1],
            position[0] if position is not None and is_streaming else None,
            lasted=pace.lasted,
            paused=pace.paused,
            unread=pace.unread,
            was_silent=session.was_silent,
        )
        self._broken = (before, cut, time.monotonic())

    def refuse(self, error: BaseException) -> None:
        """Say so, if the break is that the server does not let us in any more."""
        if isinstance(error, RefusedError) and not error.is_passing:
            if self._broken is not None:
                before, cut, when = self._broken
                self._broken = (before, replace(cut, refusal=str(error)), when)
            self.explain(None, "trying again, in case that is changed back")

    def explain(self, after: ServerInfo | None, next_step: str) -> str | None:
        """Say why the last link broke, if that was not said yet; return it.

        after is what the server says of itself now, None if it does not let us ask.
        """
        if self._broken is None:
            return None
        before, cut, when = self._broken
        self._broken = None
        cut = replace(cut, ago=time.monotonic() - when)
        self.last = explain(before, after, cut)
        tell(BreakExplained(self.last, cut.lasted, next_step))
        return self.last
