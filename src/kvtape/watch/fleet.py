"""A fleet that can be watched: a socket in each spool, and systemd.

Whatever is asked, here or over HTTP, the answer is made from the same statuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from kvtape.amounts import duration
from kvtape.record.agent import Agent
from kvtape.record.fleet import Fleet, Recording
from kvtape.record.options import RecordOptions
from kvtape.watch.headroom import TOO_SHORT, Headroom
from kvtape.watch.notify import Notifier
from kvtape.watch.status import Status, status_of
from kvtape.watch.status_socket import serve_statuses


class WatchedFleet:
    """A fleet, and those who ask what it does."""

    def __init__(self, options: Sequence[RecordOptions]) -> None:
        self.fleet = Fleet(options, self._watch)
        self._headrooms: dict[Agent, Headroom] = {}

    def statuses(self) -> list[Status]:
        """Return what each source does now."""
        return [self.status(recording) for recording in self.fleet.recordings]

    def status(self, recording: Recording) -> Status:
        """Return what one source does now."""
        agent = recording.agent
        status = status_of(recording.journal, agent, recording.trouble)
        headroom = None if agent is None else self._headrooms.get(agent)
        if headroom is None:
            return status
        problems = status.problems
        if headroom.seconds is not None and headroom.seconds < TOO_SHORT:
            problems += (
                f"the server's backlog covers only {duration(headroom.seconds)} of "
                "writes, and a longer outage is a gap: raise repl-backlog-size there",
            )
        return msgspec.structs.replace(
            status,
            problems=problems,
            headroom_seconds=headroom.seconds,
            write_rate=headroom.rate,
        )

    async def _watch(self, agent: Agent) -> None:
        """Watch an agent whose spool is open, until cancelled."""
        headroom = self._headrooms[agent] = Headroom()
        [recording] = [one for one in self.fleet.recordings if one.agent is agent]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(headroom.watch, agent)
                told = partial(self._told_by, recording)
                await serve_statuses(agent.spool.folder, told)
        finally:
            del self._headrooms[agent]

    def _told_by(self, recording: Recording) -> list[Status]:
        """Return what a source's spool says: also of those that have none open."""
        others = [
            one for one in self.fleet.recordings if one.agent not in self._headrooms
        ]
        return [self.status(one) for one in (recording, *others)]

    async def notify(self, notifier: Notifier) -> None:
        """Tell systemd, once every source has begun, until cancelled."""
        for recording in self.fleet.recordings:
            await recording.has_begun.wait()
        await notifier.keep_telling(lambda: summary(self.statuses()))


def summary(statuses: Sequence[Status]) -> str:
    """Return a line about all sources."""
    waiting = [status for status in statuses if not status.is_recording]
    line = f"{len(statuses) - len(waiting)} of {len(statuses)} sources recording"
    return "; ".join(
        [line, *(f"{one.source}: {one.waiting_for or one.phase}" for one in waiting)]
    )
