"""Copies: every pause of a trial brought back by each destination, and judged.

It hides how a destination is used: a folder has a server started on the redis.conf
that was written into it, and is then removed; a running server of the same release is
used for all moments, one after another. Destinations work side by side, since a target
waits most of the time.

Decided against: restoring by the command line, a process each, which would double the
time of a trial. The verbs have tests of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

import trio

from kvtape.errors import PointError
from kvtape.restore.data_dir import layout_for, restore_data_dir
from kvtape.restore.into import IntoOptions, restore_into
from kvtape.restore.job import Job, Result, open_job
from kvtape.server.url import ServerUrl
from kvtape.tape.point import ToOffset, ToTime
from oracle import Difference, Fingerprint, fingerprint, judge
from servers import Server
from trials import SOURCE, Reading, Recording

Destination: TypeAlias = Literal["data-dir", "into"]

DESTINATIONS: Final[tuple[Destination, ...]] = ("data-dir", "into")

LATE: Final = "sent while nobody received, by a release that sends relative expiries"

# Restores a job and reads the copy.
Restore: TypeAlias = Callable[[Job], tuple[Result, Fingerprint]]


@dataclass(frozen=True, slots=True)
class Check:
    """One restore of one reading.

    A refusal is kvtape's own sentence of why the point cannot be exact. What is
    explained has a reason in words. off_by is by how much an expiry (ms) of what is
    not explained is off at most.
    """

    reading: Reading
    destination: Destination
    result: Result | None
    differences: Sequence[Difference] = ()
    explained: Sequence[Difference] = ()
    refusal: str = ""
    off_by: int = 0

    @property
    def keys(self) -> int:
        """How many keys were compared."""
        return len(self.reading.state.keys) if self.result is not None else 0

    def __str__(self) -> str:
        found = self.refusal or "\n  ".join(map(str, self.differences))
        return f"{self.destination} at {self.reading.offset}:\n  {found}"


def check(
    recording: Recording,
    destinations: Sequence[Destination] = DESTINATIONS,
    *,
    lanes: int = 2,
) -> list[Check]:
    """Restore each reading to each destination, and judge it.

    `lanes` is how many restores to the same destination there are at once.
    """
    shares = [
        (destination, recording.readings[lane::lanes])
        for destination in destinations
        for lane in range(lanes)
    ]
    with ThreadPoolExecutor(max_workers=len(shares)) as pool:
        jobs = [pool.submit(_check_all, recording, *share) for share in shares]
        return [checked for job in jobs for checked in job.result()]


def _check_all(
    recording: Recording, destination: Destination, readings: Sequence[Reading]
) -> list[Check]:
    with RESTORERS[destination](recording) as restore:
        return [_check(recording, destination, it, restore) for it in readings]


def _check(
    recording: Recording, destination: Destination, reading: Reading, restore: Restore
) -> Check:
    try:
        result, state = restore(job_for(recording, ToOffset(reading.offset)))
    except PointError as error:
        return Check(reading, destination, None, refusal=str(error))
    verdict = judge(reading.state, state)
    late = [it for it in verdict.differences if is_late(recording, reading, state, it)]
    explained = [*verdict.explained, *(replace(it, reason=LATE) for it in late)]
    return Check(
        reading,
        destination,
        result,
        [it for it in verdict.differences if it not in late],
        explained,
        off_by=worst_expiry(reading.state, state, explained),
    )


def is_late(
    recording: Recording, reading: Reading, copy: Fingerprint, found: Difference
) -> bool:
    """Whether Redis 6.2 sent an expiry while nobody received (see `trials.Late`)."""
    if found.database is None or found.key is None:
        return False
    place = (found.database, found.key)
    if not found.what.startswith("expires at ") or place not in copy.keys:
        return False
    expected, actual = reading.state.keys[place], copy.keys[place]
    return any(late.covers(expected, actual) for late in recording.late)


def worst_expiry(
    expected: Fingerprint, actual: Fingerprint, explained: Sequence[Difference]
) -> int:
    """Return by how much the expiry of a key is off at most, of those not explained."""
    places = expected.keys.keys() & actual.keys.keys()
    places -= {(it.database or 0, it.key or b"") for it in explained}
    pairs = ((expected.keys[it].expiry, actual.keys[it].expiry) for it in places)
    return max(
        (abs(a - b) for a, b in pairs if a is not None and b is not None), default=0
    )


def job_for(recording: Recording, point: ToOffset | ToTime) -> Job:
    """Return what restoring a point of a recording takes."""
    return open_job(str(recording.repository), SOURCE, point)


@contextmanager
def into_folders(recording: Recording) -> Iterator[Restore]:
    """Restore each job into a folder of its own, and start a server on it."""
    name = recording.setting.server_name

    def restore(job: Job) -> tuple[Result, Fingerprint]:
        with tempfile.TemporaryDirectory(prefix="kvtape-copy-") as parent:
            folder = Path(parent) / "restored"
            layout = layout_for(job.plan.snapshot.manifest)
            result = restore_data_dir(job, folder, layout)
            with Server(name, config_file=folder / "redis.conf") as copy:
                return result, fingerprint(copy.client())

    yield restore


@contextmanager
def into_server(recording: Recording) -> Iterator[Restore]:
    """Restore each job into the same running server, over what the last one left."""
    with Server(recording.setting.server_name) as copy:
        url, client = ServerUrl("127.0.0.1", copy.port), copy.client()

        def restore(job: Job) -> tuple[Result, Fingerprint]:
            # Not by force, which would accept what is not exact.
            client.flushall()
            result = trio.run(restore_into, job, IntoOptions(url))
            return result, fingerprint(client)

        yield restore


RESTORERS: Final = {"data-dir": into_folders, "into": into_server}
