"""How long things last at the rate at which the server is written to.

Plain judgements of facts, again. The bars are numbers of seconds, and why each is what
it is stands in docs/check.md. A rate that is only a bound never fails a check: it may
be the reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvtape.amounts import duration, setting, size
from kvtape.check.facts import DiskFacts, Position, Rate, ServerFacts
from kvtape.check.finding import Finding, Verdict, judged
from kvtape.check.fitness import unknown
from kvtape.replication.replica import HIDDEN_PORT

_MIB = 1024 * 1024

# A restart or a new version of the agent takes seconds, a reboot minutes.
BACKLOG_WARN, BACKLOG_FAIL = 600.0, 60.0
# Somebody has been called, and is there.
BACKLOG_GOOD = 3600.0
# No more of the machine's memory than this is recommended for an hour's backlog.
_MEMORY_SHARE = 8

HOUR = 3600.0

# A store that is gone is back within hours, most of the time.
SPOOL_WARN, SPOOL_FAIL = 6 * HOUR, 600.0

# How fast a snapshot is made and sent, where no RDB file tells: a slow disk.
SNAPSHOT_RATE = 50 * _MIB

# The agent syncs five times a second.
SYNC_WARN = 0.1


def headroom(facts: ServerFacts, position: Position | None) -> Iterator[Finding]:
    """Yield how long the server's buffers last."""
    yield backlog(facts)
    if position is not None:
        yield resume(facts, position)
    yield backlog_ttl(facts)
    yield output_buffer(facts)


def backlog(facts: ServerFacts) -> Finding:
    """How long recording may be away and still continue."""
    size_ = facts.info.number("repl_backlog_size")
    rate = facts.rate
    if size_ is None or rate is None:
        return unknown("backlog")
    wanted = _recommended(rate, facts)
    measured: dict[str, float | None] = {
        "backlog_bytes": size_,
        **_measured(rate),
        "recommended_bytes": max(wanted, size_),
    }
    if not rate.bytes_per_second:
        message = f"{size(size_)}; nothing was written in {duration(facts.seconds)}"
        verdict: Verdict = "ok"
    else:
        seconds = size_ / rate.bytes_per_second
        measured["covers_seconds"] = seconds
        verdict = judged(seconds, warn=BACKLOG_WARN, fail=BACKLOG_FAIL)
        covers = f"{'at least ' if rate.is_bound else ''}{duration(seconds)}"
        message = f"{size(size_)} covers {covers} of writes{_at(rate)}"
        if verdict != "ok":
            message += "; an outage longer than that needs a full resync"
    hint = _advice(rate, wanted, size_, verdict)
    if not facts.info.has_backlog:
        message += "; no backlog exists yet: the first link is a full resync (one fork)"
        verdict, hint = (
            "warn",
            "; ".join(filter(None, ["attach at a quiet time", hint])),
        )
    return Finding("backlog", verdict, message, measured, hint)


def _recommended(rate: Rate, facts: ServerFacts) -> int:
    """Return the power of two that covers an hour, or the largest there is room for."""
    hour = _power_of_two(rate.bytes_per_second * BACKLOG_GOOD)
    info = facts.info
    memory = info.number("maxmemory") or info.number("total_system_memory")
    if not memory:
        return hour
    room = max(_MIB, memory // _MEMORY_SHARE)
    return min(hour, 1 << (room.bit_length() - 1))


def _advice(rate: Rate, wanted: int, size_: int, verdict: Verdict) -> str:
    """Return what to do about a backlog of this size."""
    if not rate.bytes_per_second:
        return ""
    if wanted > size_:
        covers = duration(wanted / rate.bytes_per_second)
        return f"CONFIG SET repl-backlog-size {setting(wanted)} covers {covers}"
    if verdict == "ok":
        return ""
    return (
        "a larger one would take more than an eighth of the memory: see that kvtape is "
        "never away for longer"
    )


def _power_of_two(count: float) -> int:
    return max(_MIB, 1 << (max(1, int(count)) - 1).bit_length())


def resume(facts: ServerFacts, position: Position) -> Finding:
    """Whether recording could go on from where it is.

    What is recorded goes on growing while it is, so it must have been looked at before
    the server was; and while a recording is attached, it says nothing.
    """
    info = facts.before
    attached = HIDDEN_PORT in info.replica_ports
    measured = {"offset": position.offset, "is_attached": attached}
    if attached:
        message = f"a recording is attached, which had {position.offset}"
        return Finding("resume", "ok", message, measured)
    can = info.can_continue(position.replid, position.offset)
    if can is None:
        return unknown("resume")
    if not can:
        return Finding(
            "resume",
            "fail",
            f"it cannot continue from offset {position.offset}: the next link is a "
            "full resync, and what was written meanwhile a gap",
            measured | {"can_continue": False},
            "the reason is a longer outage than the backlog covers, or another server "
            "or history at this address; record again at a quiet time",
        )
    left, rate = info.headroom(position.offset), facts.rate
    behind = max(0, (info.offset or 0) - position.offset)
    found: dict[str, int | float | str | bool | None] = {
        **measured,
        "can_continue": True,
        "behind_bytes": behind,
        "headroom_bytes": left,
    }
    message = f"can continue from offset {position.offset}, {size(behind)} behind"
    if left is None or rate is None or not rate.bytes_per_second:
        return Finding("resume", "ok", message, found)
    seconds = left / rate.bytes_per_second
    found["headroom_seconds"] = seconds
    verdict: Verdict = "warn" if seconds < BACKLOG_FAIL else "ok"
    return Finding(
        "resume",
        verdict,
        f"{message}; for another {duration(seconds)} at the present rate",
        found,
        "start kvtape record now, or its first link is a full resync"
        if verdict == "warn"
        else "",
    )


def backlog_ttl(facts: ServerFacts) -> Finding:
    """How long a primary keeps its backlog when nobody follows it."""
    name = "backlog-ttl"
    if not facts.has_info:
        return unknown(name)
    ttl = facts.settings.get("repl-backlog-ttl")
    if ttl is None or not ttl.isdigit():
        return unknown(
            name, "CONFIG is not allowed", "allow it by ACL SETUSER <user> +config|get"
        )
    others = sum(port != HIDDEN_PORT for port in facts.info.replica_ports)
    measured = {"ttl_seconds": int(ttl), "other_replicas": others}
    if facts.who.role == "replica":
        return Finding(name, "ok", "a replica keeps its backlog", measured)
    if others or ttl == "0":
        message = "other replicas keep it alive" if others else "it is kept for ever"
        return Finding(name, "ok", message, measured)
    return Finding(
        name,
        judged(int(ttl), warn=HOUR, fail=BACKLOG_FAIL),
        f"kvtape would be the only replica: after {duration(int(ttl))} without it the "
        "history ends, and a full resync follows",
        measured,
        "CONFIG SET repl-backlog-ttl 0 keeps it for ever" if int(ttl) < HOUR else "",
    )


# Output buffer.


@dataclass(frozen=True, slots=True)
class _Limit:
    """client-output-buffer-limit of replicas; 0 is none."""

    hard: int
    soft: int
    soft_seconds: int


def output_buffer(facts: ServerFacts) -> Finding:
    """Whether what is written while a snapshot is sent would end the link."""
    name = "output-buffer"
    if not facts.has_info:
        return unknown(name)
    limit = _limit(facts.settings.get("client-output-buffer-limit", ""))
    if limit is None:
        return unknown(
            name, "CONFIG is not allowed", "allow it by ACL SETUSER <user> +config|get"
        )
    rate, seconds = facts.rate, snapshot_seconds(facts)
    if rate is None or seconds is None:
        return unknown(name)
    hard = limit.hard
    if hard and facts.shares_buffers:
        hard = max(hard, facts.info.number("repl_backlog_size") or 0)
    piled = rate.bytes_per_second * seconds
    measured = {
        "hard_bytes": hard,
        "soft_bytes": limit.soft,
        "soft_seconds": limit.soft_seconds,
        "snapshot_seconds": seconds,
        "expected_bytes": piled,
        **_measured(rate),
    }
    message = (
        f"a snapshot of about {duration(seconds)} piles up {size(piled)} of a hard "
        f"limit of {size(hard) if hard else 'nothing: there is none'}"
    )
    is_cut = bool(hard and piled > hard) or _is_over_soft(limit, piled, seconds)
    verdict: Verdict = "ok"
    if is_cut:
        verdict = "warn" if rate.is_bound else "fail"
    elif hard and piled > hard / 2:
        verdict = "warn"
    wanted = _power_of_two(4 * piled)
    hint = (
        "the server would cut the link, again and again: CONFIG SET "
        f'client-output-buffer-limit "replica {setting(wanted)} {setting(wanted)} 0"'
    )
    return Finding(name, verdict, message, measured, hint if verdict != "ok" else "")


def _limit(text: str) -> _Limit | None:
    words = text.split()
    for kind, *numbers in zip(*(words[start::4] for start in range(4)), strict=False):
        if kind in ("slave", "replica") and all(map(str.isdigit, numbers)):
            return _Limit(*map(int, numbers))
    return None


def _is_over_soft(limit: _Limit, piled: float, seconds: float) -> bool:
    """Whether more than the soft limit is there for longer than it may."""
    if not limit.soft or piled <= limit.soft:
        return False
    return seconds * (1 - limit.soft / piled) > limit.soft_seconds


def snapshot_seconds(facts: ServerFacts) -> float | None:
    """Return how long a snapshot takes: as the last RDB file, or by the memory."""
    used = facts.info.number("used_memory")
    if used is None:
        return None
    last = facts.info.number("rdb_last_bgsave_time_sec") or 0
    return max(float(last), used / SNAPSHOT_RATE)


# The disk.


def spool_disk(disk: DiskFacts) -> Finding:
    """Whether the spool can be written, and how long a sync takes."""
    measured = {"folder": disk.folder, "sync_seconds": disk.sync_seconds}
    if disk.trouble is not None or disk.sync_seconds is None:
        return Finding(
            "spool-disk",
            "fail",
            f"cannot write to {disk.folder}: {disk.trouble}",
            measured,
            "give a folder on a local disk by --spool DIR",
        )
    slow = disk.sync_seconds > SYNC_WARN
    return Finding(
        "spool-disk",
        "warn" if slow else "ok",
        f"writable, a sync takes {duration(disk.sync_seconds)}",
        measured,
        "recording syncs 5 times a second: give a faster disk by --spool DIR, or "
        "record with a longer --flush-interval"
        if slow
        else "",
    )


def spool_space(disk: DiskFacts, facts: ServerFacts | None) -> Finding:
    """How long the spool lasts while the repository takes nothing."""
    name, room = "spool-space", disk.room
    if room is None:
        return unknown(name, "the free space is not known", "")
    rate = facts.rate if facts is not None else None
    snapshot = facts.info.data_memory if facts is not None else None
    measured: dict[str, float | None] = {
        "room_bytes": room,
        "free_bytes": disk.free_bytes,
        "used_bytes": disk.used_bytes,
        "limit_bytes": disk.limit_bytes,
        "snapshot_bytes": snapshot,
    }
    verdict: Verdict = "ok"
    message = f"room for {size(room)}"
    if rate is not None:
        measured |= _measured(rate)
    if rate is not None and rate.bytes_per_second:
        seconds = room / rate.bytes_per_second
        measured["holds_seconds"] = seconds
        verdict = judged(seconds, warn=SPOOL_WARN, fail=SPOOL_FAIL)
        verdict = "warn" if rate.is_bound and verdict == "fail" else verdict
        message += f" holds {duration(seconds)} of writes{_at(rate)}"
    if snapshot is not None and snapshot > room:
        verdict = "fail"
        message += f"; a snapshot may take {size(snapshot)}"
    elif rate is None:
        return unknown(name, f"{message}; how fast it fills is not known", "")
    is_limit = (disk.free_bytes or 0) > room
    hint = "raise --spool-limit" if is_limit else "give a larger disk by --spool DIR"
    return Finding(name, verdict, message, measured, hint if verdict != "ok" else "")


def _measured(rate: Rate) -> dict[str, float]:
    return {
        "write_bytes_per_second": rate.bytes_per_second,
        "is_upper_bound": rate.is_bound,
    }


def _at(rate: Rate) -> str:
    at_most = "no more than" if rate.is_bound else "at"
    return f", {at_most} {size(rate.bytes_per_second)}/s"
