"""What a recording does now, as one value for all who ask.

status_of() only reads, and asks nobody: neither disk nor server. So it can be called
at any moment, and says the same to everyone who looks.

What is at risk (lag_seconds) is how far back the oldest write may lie that would be
lost if this machine and the server were gone now. While the stream flows that is the
age of the oldest write that was received and is not in the repository, or the time
since the primary was heard last, whichever is longer: an idle primary pings every 10 s,
and what it says between these is not known to be nothing. While the newest snapshot is
not stored, what follows it is worth nothing yet, and everything since the newest stored
byte of the history before it is at risk. Nothing stored at all: None.

Decided against: the age of the newest stored byte. It is the same under steady writes,
but after an idle hour it is an hour, though nothing is at risk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, Literal

import msgspec

from kvtape.amounts import duration
from kvtape.record.agent import Agent
from kvtape.record.journal import HistoryReason, Journal
from kvtape.tape.documents import server_name
from kvtape.tape.names import SegmentName, SnapshotName, parse
from kvtape.tape.point import format_time

Phase = Literal["starting", "connecting", "snapshot", "streaming", "waiting"]

# Text from elsewhere may be long; a status is for reading.
_LONGEST = 500


class Gap(msgspec.Struct, frozen=True):
    """What was lost to the recording. end_offset None: up to a full resync."""

    replid: str
    start_offset: int
    end_offset: int | None
    start_time: str
    end_time: str
    reason: str


class SnapshotTaken(msgspec.Struct, frozen=True):
    """The last snapshot of this process; seconds from its announcement to the disk."""

    replid: str
    offset: int
    time: str
    bytes: int
    stored_bytes: int
    seconds: float


class LastError(msgspec.Struct, frozen=True):
    """The last thing that went wrong, also if it is over."""

    time: str
    message: str


class Status(msgspec.Struct, frozen=True):
    """One source's recording. Its field names are what scripts rely on.

    Times are RFC 3339, durations in seconds. None is unknown, or not there yet.
    """

    source: str
    address: str
    phase: Phase
    phase_since: str
    is_recording: bool
    problems: tuple[str, ...]
    waiting_for: str | None = None
    snapshot_bytes: int | None = None
    snapshot_length: int | None = None
    server: str | None = None
    role: str | None = None
    ack: str | None = None
    replid: str | None = None
    history_reason: HistoryReason | None = None
    received_offset: int | None = None
    spooled_offset: int | None = None
    stored_offset: int | None = None
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    stored_time: str | None = None
    headroom_seconds: float | None = None
    write_rate: float | None = None
    repository: str | None = None
    spool: str | None = None
    spool_bytes: int | None = None
    spool_limit: int | None = None
    queue_length: int | None = None
    gaps_total: int = 0
    gaps: tuple[Gap, ...] = ()
    open_gap: str | None = None
    full_resyncs: dict[str, int] = {}
    partial_resyncs: dict[str, int] = {}
    last_snapshot: SnapshotTaken | None = None
    upload_errors: dict[str, int] = {}
    upload_error: str | None = None
    last_error: LastError | None = None
    pid: int = 0
    version: str = ""
    uptime: float = 0.0


VERSION = metadata.version("kvtape")


def status_of(
    journal: Journal,
    agent: Agent | None,
    trouble: str | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> Status:
    """Return what a source's recording does; trouble says why there is no agent."""
    now = int(clock() * 1000)
    if trouble is None and agent is not None and not agent.is_ready:
        trouble = agent.trouble
    known = {**_of_process(journal, now), **_of_journal(journal)}
    if agent is None or trouble is not None or not agent.is_ready:
        return Status(
            source=journal.source,
            address="" if agent is None else agent.options.url.address,
            phase="starting" if trouble is None else "waiting",
            phase_since=format_time(journal.changed),
            is_recording=False,
            problems=("not recording: " + (trouble or "starting"),),
            waiting_for=_short(trouble),
            **known,
        )
    lag = lag_seconds(journal, agent, now)
    phase = _phase(agent)
    is_recording = phase == "streaming"
    return Status(
        source=journal.source,
        address=(agent.linker.url or agent.options.url).address,
        phase=phase,
        phase_since=format_time(journal.changed),
        is_recording=is_recording,
        problems=_problems(journal, agent, phase),
        waiting_for=_short(agent.trouble) if phase == "waiting" else None,
        lag_seconds=None if lag is None else round(lag, 3),
        **_of_link(journal, agent),
        **_of_storage(agent),
        **known,
    )


def absent(source: str, *, clock: Callable[[], float] = time.time) -> Status:
    """Return the status of a source that should be recorded, and no agent tells of."""
    return Status(
        source=source,
        address="",
        phase="waiting",
        phase_since=format_time(int(clock() * 1000)),
        is_recording=False,
        problems=("not recording: no agent tells of it",),
        waiting_for="an agent",
    )


def lag_seconds(journal: Journal, agent: Agent, now: int) -> float | None:
    """Return how far back what is at risk begins (see above); now is in ms."""
    recorder, stored = agent.recorder, journal.stored_time
    if stored is None:
        return None
    waiting = [parse(path) for path in list(agent.uploader.waiting)]
    is_unfounded = any(isinstance(name, SnapshotName) for name in waiting)
    # A fork is of the same stream, and needs no snapshot of its own.
    if recorder.replid not in journal.stored and journal.history_reason != "failover":
        is_unfounded = True
    if is_unfounded or journal.open_gap is not None:
        return max(0, now - stored) / 1000
    # A segment whose first write is older than this has ended before.
    span = int(agent.options.limits.upload_interval * 1000)
    since = [recorder.heard]
    since += [
        max(name.first, name.last - span)
        for name in waiting
        if isinstance(name, SegmentName)
    ]
    if recorder.unsealed is not None:
        since.append(recorder.unsealed)
    return max(0, now - min(since)) / 1000


def unready(status: Status, most_at_risk: float) -> list[str]:
    """Return why a source is not recorded as it should be."""
    reasons: list[str] = []
    if not status.is_recording or status.open_gap is not None:
        reasons += status.problems
    if status.lag_seconds is None:
        reasons = reasons or ["nothing is stored yet"]
    elif status.lag_seconds > most_at_risk:
        reasons.append(
            f"the writes of the last {duration(status.lag_seconds)} are at risk, which "
            f"is more than {duration(most_at_risk)}"
        )
    return reasons


def _phase(agent: Agent) -> Phase:
    if agent.trouble is not None:
        return "waiting"
    if agent.session is None:
        return "connecting"
    phase = agent.session.progress.phase
    return "snapshot" if _is_seeding(agent) and phase == "streaming" else phase


def _is_seeding(agent: Agent) -> bool:
    """Whether the snapshot comes from elsewhere, and is not there yet."""
    return agent.linker.seeder is not None and not agent.linker.commits.is_rooted


def _problems(journal: Journal, agent: Agent, phase: Phase) -> tuple[str, ...]:
    """Return why somebody should look, in words; nothing if all is well."""
    problems = []
    if phase == "waiting":
        problems.append(f"not recording: {agent.trouble}")
    elif phase != "streaming":
        problems.append(f"not recording yet: {phase}")
    if journal.open_gap is not None:
        problems.append(f"a gap is open: {journal.open_gap}")
    if journal.gaps:
        problems.append(f"gaps within what can be restored: {journal.gaps}")
    if journal.stored_time is None:
        problems.append("nothing can be restored yet: no snapshot is stored")
    if agent.uploader.error is not None:
        problems.append(f"not storing: {agent.uploader.error}")
    return tuple(problem[:_LONGEST] for problem in problems)


def _of_process(journal: Journal, now: int) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "version": VERSION,
        "uptime": max(0, now - journal.began) / 1000,
    }


def _of_journal(journal: Journal) -> dict[str, Any]:
    snapshot, trouble = journal.last_snapshot, journal.last_trouble
    taken = snapshot and SnapshotTaken(
        replid=snapshot.replid,
        offset=snapshot.offset,
        time=format_time(snapshot.time),
        bytes=snapshot.bytes,
        stored_bytes=snapshot.stored_bytes,
        seconds=snapshot.seconds,
    )
    gaps = tuple(
        Gap(
            gap.replid,
            gap.start_offset,
            gap.end_offset,
            format_time(gap.start_time),
            format_time(gap.end_time),
            gap.reason,
        )
        for gap in list(journal.last_gaps)
    )
    return {
        "stored_time": None
        if journal.stored_time is None
        else format_time(journal.stored_time),
        "history_reason": journal.history_reason,
        "gaps_total": journal.gaps,
        "gaps": gaps,
        "open_gap": journal.open_gap,
        "full_resyncs": dict(journal.full_resyncs),
        "partial_resyncs": dict(journal.partial_resyncs),
        "last_snapshot": taken,
        "upload_errors": dict(journal.upload_errors),
        "last_error": None
        if trouble is None
        else LastError(format_time(trouble.time), trouble.reason[:_LONGEST]),
    }


def _of_link(journal: Journal, agent: Agent) -> dict[str, Any]:
    recorder, session = agent.recorder, agent.session
    server = agent.linker.commits.server
    found: dict[str, Any] = {"server": server_name(server), "role": server.role}
    if session is not None:
        found["ack"] = session.ack
        seeder = agent.linker.seeder
        if seeder is not None and _is_seeding(agent):
            found["snapshot_bytes"] = seeder.received
        elif session.progress.phase == "snapshot":
            found["snapshot_bytes"] = session.progress.snapshot_bytes
            found["snapshot_length"] = session.progress.snapshot_length
    if recorder.replid is not None:
        stored = agent.stored
        found |= {
            "replid": recorder.replid,
            "received_offset": recorder.received,
            "spooled_offset": recorder.durable,
            "stored_offset": stored,
            "lag_bytes": None if stored is None else max(0, recorder.received - stored),
        }
    return found


def _of_storage(agent: Agent) -> dict[str, Any]:
    uploader = agent.uploader
    error = uploader.error
    return {
        "repository": agent.repository_url,
        "spool": str(agent.spool.folder),
        "spool_bytes": agent.spool.used,
        "spool_limit": agent.spool.limit,
        "queue_length": len(uploader.waiting),
        "upload_error": None if error is None else _short(str(error)),
    }


def _short(text: str | None) -> str | None:
    return None if text is None else text[:_LONGEST]
