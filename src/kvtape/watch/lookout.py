"""All that watches a fleet: a socket in each spool, HTTP, systemd.

Whatever is asked, the answer is made from the same statuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from kvtape.record.agent import Agent
from kvtape.record.fleet import Fleet, Recording
from kvtape.record.options import RecordOptions
from kvtape.watch import metrics
from kvtape.watch.headroom import Headroom
from kvtape.watch.notify import Notifier
from kvtape.watch.status import Status, status_of, unready
from kvtape.watch.status_socket import serve_status
from kvtape.watch.web import Page, Pages, serve_pages


class Lookout:
    """A fleet, and those who ask what it does."""

    def __init__(self, options: Sequence[RecordOptions]) -> None:
        self.fleet = Fleet(options, self._watch)
        self._headrooms: dict[Agent, Headroom] = {}

    def statuses(self) -> list[Status]:
        """Return what each source does now."""
        return [self._status(recording) for recording in self.fleet.recordings]

    def _status(self, recording: Recording) -> Status:
        agent = recording.agent
        status = status_of(recording.journal, agent, recording.trouble)
        headroom = None if agent is None else self._headrooms.get(agent)
        if headroom is None:
            return status
        return msgspec.structs.replace(
            status, headroom_seconds=headroom.seconds, write_rate=headroom.rate
        )

    async def _watch(self, agent: Agent) -> None:
        """Watch an agent whose spool is open, until cancelled."""
        headroom = self._headrooms[agent] = Headroom()
        [recording] = [one for one in self.fleet.recordings if one.agent is agent]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(headroom.watch, agent)
                await serve_status(agent.spool.folder, partial(self._status, recording))
        finally:
            del self._headrooms[agent]

    async def serve(
        self, listeners: list[trio.SocketListener], most_at_risk: float
    ) -> None:
        """Serve pages until cancelled; /readyz fails beyond most_at_risk (s)."""
        pages: Pages = {
            "/metrics": self._metrics,
            "/healthz": _healthz,
            "/readyz": lambda: readyz(self.statuses(), most_at_risk),
        }
        await serve_pages(listeners, pages)

    def _metrics(self) -> Page:
        readings = [
            metrics.Reading(
                self._status(one),
                one.journal.uploads,
                None if (last := one.journal.last_snapshot) is None else last.time,
            )
            for one in self.fleet.recordings
        ]
        return Page(200, metrics.exposition(readings), metrics.CONTENT_TYPE)

    async def notify(self, notifier: Notifier) -> None:
        """Tell systemd, once every source has begun, until cancelled."""
        for recording in self.fleet.recordings:
            await recording.has_begun.wait()
        await notifier.keep_telling(lambda: summary(self.statuses()))


def _healthz() -> Page:
    # Whoever answers is the loop that all recording runs in, and a task of it that
    # fails takes its source's others with it.
    return Page(200, b"ok\n")


def readyz(statuses: Sequence[Status], most_at_risk: float) -> Page:
    """Return 200 if all sources are recorded and little is at risk, else 503: why."""
    reasons = [
        f"{status.source}: {reason}"
        for status in statuses
        for reason in unready(status, most_at_risk)
    ]
    if not reasons:
        return Page(200, b"ok\n")
    return Page(503, "".join(f"{reason}\n" for reason in reasons).encode())


def summary(statuses: Sequence[Status]) -> str:
    """Return a line about all sources."""
    waiting = [status for status in statuses if not status.is_recording]
    line = f"{len(statuses) - len(waiting)} of {len(statuses)} sources recording"
    return "; ".join(
        [line, *(f"{one.source}: {one.waiting_for or one.phase}" for one in waiting)]
    )
