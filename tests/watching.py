"""Recordings that are watched, and statuses that are made up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from kvtape.record.options import RecordOptions
from kvtape.record.spooling.recorder import Limits
from kvtape.server.url import ServerUrl
from kvtape.watch.fleet import WatchedFleet
from kvtape.watch.status import Status
from kvtape.watch.status_socket import ask_statuses
from replicas import wait_until
from servers import Server


def options_for(server: Server, folder: Path) -> RecordOptions:
    return RecordOptions(
        ServerUrl("127.0.0.1", server.port),
        str(folder / "repo"),
        "shop",
        folder / "spool",
        limits=Limits(flush_interval=0.01, upload_interval=0.05),
        full_resyncs_per_hour=1,
        key_filters=False,
    )


@asynccontextmanager
async def watched(options: RecordOptions) -> AsyncIterator[WatchedFleet]:
    """Record, and be watched, until this is left."""
    watched_fleet = WatchedFleet([options])
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched_fleet.fleet.run)
            yield watched_fleet
            watched_fleet.fleet.stop()


async def until(
    watched_fleet: WatchedFleet, condition: Callable[[Status], bool]
) -> Status:
    """Wait for a status of the only source."""
    while not condition(status := watched_fleet.statuses()[0]):  # noqa: ASYNC110
        await trio.sleep(0.002)
    return status


def wait_until_spooled(spool: Path, offset: int) -> None:
    """Wait for the agent of a spool, a program, to sync what was written up to here."""

    def has_synced() -> bool:
        return any((one.spooled_offset or 0) >= offset for one in ask_statuses(spool))

    wait_until(has_synced)


def is_stored(status: Status) -> bool:
    received = status.received_offset
    return received is not None and status.stored_offset == received > 0


def made_up(**fields: object) -> Status:
    return Status(
        **{  # type: ignore[arg-type]
            "source": "shop",
            "address": "127.0.0.1:6379",
            "phase": "streaming",
            "phase_since": "2026-05-01T03:00:00.000Z",
            "is_recording": True,
            "problems": (),
            "lag_seconds": 1.5,
            **fields,
        }
    )
