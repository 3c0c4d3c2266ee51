"""The pages that a fleet is watched by over HTTP: /metrics, /healthz and /readyz.

Only --metrics imports this module, and the libraries behind it: they would be a sixth
of the time that every other verb takes to start.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from kvtape.watch import metrics
from kvtape.watch.fleet import WatchedFleet
from kvtape.watch.status import Status, unready
from kvtape.watch.web import Page, listen, serve_pages


async def serve(
    watched: WatchedFleet,
    address: str,
    most_at_risk: float,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; /readyz fails beyond most_at_risk (s).

    Starts with the port; UsageError if the address cannot be had.
    """
    listeners = await listen(address)
    task_status.started(listeners[0].socket.getsockname()[1])

    def exposition() -> Page:
        return Page(200, metrics.exposition(_readings(watched)), metrics.CONTENT_TYPE)

    await serve_pages(
        listeners,
        {
            "/metrics": exposition,
            "/healthz": _healthz,
            "/readyz": lambda: readyz(watched.statuses(), most_at_risk),
        },
    )


def _readings(watched: WatchedFleet) -> list[metrics.Reading]:
    return [
        metrics.Reading(
            watched.status(one),
            one.journal.uploads,
            None if (last := one.journal.last_snapshot) is None else last.time,
        )
        for one in watched.fleet.recordings
    ]


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
