"""Whether a server is one to record from: who it is, what it allows, how it is.

Plain judgements of facts. What an answer needs that the user may not ask is unknown,
and the hint names the permission.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvtape.amounts import duration, size
from kvtape.check.facts import ServerFacts
from kvtape.check.finding import Finding, Verdict, judged
from kvtape.errors import UsageError
from kvtape.record.acknowledge import AckOption, choose_ack
from kvtape.replication.replica import HIDDEN_PORT

# The releases that are tested, by their first numbers; 6.2 is the first of Redis.
TESTED = {"redis": (6, 8), "valkey": (8, 9)}
_FIRST = (6, 2)

# A slower server is far away, or busy. Recording bears it; WAIT and uploads show it.
SLOW = 0.1

# Times are those of our clock, and people look for a moment by the server's.
SKEW_WARN, SKEW_FAIL = 1.0, 60.0

# A fork stops the server; longer than this is noticed by its clients.
FORK_WARN = 1.0

_COMMANDS = ("psync", "replconf")
_ALLOW = "allow it by ACL SETUSER <user> +psync +replconf"

NEEDS_INFO = "allow it by ACL SETUSER <user> +info"
UNASKED = "INFO is not allowed"


def unknown(name: str, message: str = UNASKED, hint: str = NEEDS_INFO) -> Finding:
    """Return the finding for what could not be asked."""
    return Finding(name, "unknown", message, {}, hint)


def fitness(
    facts: ServerFacts, ack: AckOption, *, has_endpoint: bool = False
) -> Iterator[Finding]:
    """Yield what there is to say of a server that answers."""
    yield reachability(facts)
    yield permission(facts)
    yield version(facts)
    yield role(facts)
    yield cluster(facts)
    yield min_replicas(facts, ack)
    yield acknowledging(facts, ack, has_endpoint=has_endpoint)
    yield sharing(facts)
    yield persistence(facts)
    yield fork_memory(facts)
    yield clock(facts)


def reachability(facts: ServerFacts) -> Finding:
    """Whether it lets us in, and how long an answer takes."""
    if facts.trouble is not None:
        return Finding(
            "reachability",
            "fail",
            facts.trouble,
            hint="mend the URL, the password, the server, or the way there from here",
        )
    connecting, answer = facts.connect_seconds or 0.0, facts.round_trip or 0.0
    measured = {"connect_seconds": connecting, "round_trip_seconds": answer}
    message = f"connected in {duration(connecting)}, answers in {duration(answer)}"
    if answer > SLOW:
        hint = "record from nearer to the server, or at a time when it is less busy"
        return Finding("reachability", "warn", message, measured, hint)
    return Finding("reachability", "ok", message, measured)


def permission(facts: ServerFacts) -> Finding:
    """Whether the user may replicate. PSYNC itself is never tried."""
    refused = [name.upper() for name in _COMMANDS if facts.may.get(name) is False]
    if refused:
        message = facts.refusal or f"the user may not run {' and '.join(refused)}"
        hint = "" if facts.refusal else _ALLOW
        return Finding("permission", "fail", message, _allowed(facts), hint)
    if facts.may.get("psync") is None or facts.may.get("replconf") is None:
        return Finding(
            "permission",
            "unknown",
            "REPLCONF is allowed; whether PSYNC is cannot be asked"
            if facts.may.get("replconf")
            else "cannot be asked",
            _allowed(facts),
            "the first link tells; to ask before, ACL SETUSER <user> +acl|whoami "
            "+acl|dryrun (+acl before Redis 7)",
        )
    message = "the user may run PSYNC and REPLCONF"
    return Finding("permission", "ok", message, _allowed(facts))


def _allowed(facts: ServerFacts) -> dict[str, bool | None]:
    return {name: facts.may.get(name) for name in _COMMANDS}


def version(facts: ServerFacts) -> Finding:
    """Whether kvtape is tested with this family and release."""
    family, release = facts.who.family, facts.who.version
    if family is None or release is None:
        return unknown("version", "the server does not say what it is")
    message = f"{family.capitalize()} {release}"
    measured = {"family": family, "version": release}
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    lowest, highest = TESTED[family]
    is_tested = bool(numbers) and lowest <= numbers[0] <= highest
    if is_tested and (family != "redis" or numbers >= _FIRST):
        return Finding("version", "ok", message, measured)
    return Finding(
        "version",
        "warn",
        f"{message} is not tested",
        measured,
        "tested are Redis 6.2 to 8 and Valkey 8 to 9: try a whole recording and "
        "restore of a copy before you rely on it",
    )


def role(facts: ServerFacts) -> Finding:
    """Which end of replication it is; a replica is the better source."""
    role_ = facts.who.role
    if role_ is None:
        return unknown("role", "the server does not say whether it is a replica")
    measured: dict[str, str | None] = {"role": role_}
    if role_ == "primary":
        return Finding(
            "role",
            "warn",
            "it is a primary",
            measured,
            "prefer one of its replicas: a snapshot then costs the primary no fork, "
            "and nothing there counts kvtape as a replica",
        )
    link = facts.info.fields.get("master_link_status")
    if link in (None, "up"):
        message = "a replica" if link is None else "a replica, its own link is up"
        return Finding("role", "ok", message, measured | {"link": link})
    return Finding(
        "role",
        "fail",
        f"a replica whose link to its own primary is {link}",
        measured | {"link": link},
        "it refuses PSYNC until the link is up: mend that first, or record from "
        "another replica",
    )


def cluster(facts: ServerFacts) -> Finding:
    """Whether it holds only a part of the data."""
    enabled = facts.info.number("cluster_enabled")
    if enabled is None:
        return unknown("cluster")
    measured = {"cluster_enabled": bool(enabled)}
    if enabled:
        return Finding(
            "cluster",
            "warn",
            "a node of a cluster: its own slots are recorded, no others",
            measured,
            "record each primary of the cluster (or a replica of each) as a source "
            "of its own",
        )
    return Finding("cluster", "ok", "not a cluster", measured)


def min_replicas(facts: ServerFacts, option: AckOption) -> Finding:
    """Whether it would count kvtape among the replicas that it must have."""
    name = "min-replicas"
    if not facts.has_info and facts.who.role != "replica":
        return unknown(name)
    needed = facts.settings.get("min-replicas-to-write", "")
    measured = {"min_replicas_to_write": int(needed) if needed.isdigit() else None}
    if not _counts_replicas(facts):
        return Finding(name, "ok", "nothing here counts replicas", measured)
    message = "min-replicas-to-write is set, and would count this recording"
    if option != "auto":
        message += f"; accepted by --ack {option}"
        hint = "set it higher by one, so that as many true replicas are needed"
        return Finding(name, "warn", message, measured, hint)
    hint = "record from a replica, or accept that by --ack hidden, received or stored"
    return Finding(name, "fail", message, measured, hint)


def acknowledging(
    facts: ServerFacts, option: AckOption, *, has_endpoint: bool = False
) -> Finding:
    """Report what record would tell the server that it has."""
    if _counts_replicas(facts) and option == "auto":
        return Finding("ack", "unknown", "nothing can be chosen: see min-replicas")
    try:
        ack = choose_ack(option, facts.info, facts.address, has_endpoint=has_endpoint)
    except UsageError as error:
        return Finding("ack", "fail", str(error), {"option": option})
    measured = {"option": option, "ack": ack}
    if option == "auto" and facts.who.role is None:
        return unknown("ack", "what --ack auto means depends on its role")
    given = " with --announce" if has_endpoint else ""
    message = f"--ack {option}{given} means {ack} here"
    return Finding("ack", "ok", message, measured)


def _counts_replicas(facts: ServerFacts) -> bool:
    return facts.info.needs_replicas and facts.who.role == "primary"


def sharing(facts: ServerFacts) -> Finding:
    """Who else replicates from it."""
    if not facts.has_info:
        return unknown("sharing")
    ports = facts.info.replica_ports
    recorders = ports.count(HIDDEN_PORT)
    others = len(ports) - recorders
    message = f"{others} other replica{'' if others == 1 else 's'}"
    if recorders:
        message += f", {recorders} recording already"
    return Finding("sharing", "ok", message, {"replicas": others, "tapes": recorders})


# How it is.

_STATES = (
    ("rdb_last_bgsave_status", "the last RDB file could not be written"),
    ("aof_last_bgrewrite_status", "the last rewrite of the AOF failed"),
    ("aof_last_write_status", "the AOF cannot be written"),
)
_BUSY = (
    ("loading", "it is loading its data"),
    ("rdb_bgsave_in_progress", "it is writing an RDB file"),
    ("aof_rewrite_in_progress", "it is rewriting its AOF"),
)


def persistence(facts: ServerFacts) -> Finding:
    """Whether its disk and its forks work, as a full resync needs."""
    name, fields = "persistence", facts.info.fields
    if not facts.has_info:
        return unknown(name)
    broken = [said for field, said in _STATES if fields.get(field, "ok") != "ok"]
    busy = [said for field, said in _BUSY if fields.get(field, "0") != "0"]
    measured = {field: fields.get(field) for field, _ in _STATES}
    measured |= {field: fields.get(field) for field, _ in _BUSY}
    if broken:
        hint = "its log says why: its disk is full, or it could not fork"
        return Finding(name, "fail", "; ".join(broken), measured, hint)
    if busy:
        hint = "a full resync has to wait for that: attach afterwards"
        return Finding(name, "warn", "; ".join(busy), measured, hint)
    message = "what it wrote last was written, and no child is at work"
    return Finding(name, "ok", message, measured)


def fork_memory(facts: ServerFacts) -> Finding:
    """Whether a full resync could take all memory, and how long its fork stops it.

    While the child lives, each page that is written is copied: twice the memory, at
    worst. Whether the kernel overcommits cannot be seen from here.
    """
    name, info = "fork-memory", facts.info
    used = max(info.number("used_memory") or 0, info.number("used_memory_rss") or 0)
    total = info.number("total_system_memory")
    if not used or not total:
        return unknown(name)
    fork = (info.number("latest_fork_usec") or 0) / 1_000_000
    measured = {
        "used_bytes": used,
        "system_bytes": total,
        "maxmemory_bytes": info.number("maxmemory"),
        "latest_fork_seconds": fork,
    }
    message = f"{size(used)} of {size(total)} used"
    if fork:
        message += f"; the last fork took {duration(fork)}"
    verdict: Verdict = "warn" if 2 * used > total or fork > FORK_WARN else "ok"
    hints = []
    if 2 * used > total:
        hints.append("a fork may need twice the memory that is used")
    if fork > FORK_WARN:
        hints.append("a fork stops the server for so long")
    if hints:
        hints.append("record from a replica, or attach when little is written")
    return Finding(name, verdict, message, measured, "; ".join(hints))


def clock(facts: ServerFacts) -> Finding:
    """Whether both clocks agree.

    What the round trip leaves open is taken to be in the server's favour.
    """
    if facts.clock_offset is None or facts.round_trip is None:
        return unknown(
            "clock", "TIME is not allowed", "allow it by ACL SETUSER <user> +time"
        )
    offset = facts.clock_offset
    surely = max(0.0, abs(offset) - facts.round_trip / 2)
    measured = {
        "offset_seconds": offset,
        "uncertainty_seconds": facts.round_trip / 2,
    }
    verdict = judged(-surely, warn=-SKEW_WARN, fail=-SKEW_FAIL)
    if verdict == "ok":
        return Finding("clock", "ok", "the same as here", measured)
    where = "ahead of" if offset > 0 else "behind"
    return Finding(
        "clock",
        verdict,
        f"the server is {duration(surely)} {where} this machine",
        measured,
        "run NTP on both: a moment is found by the time here, and a TTL that counts "
        "from now ends by it",
    )
