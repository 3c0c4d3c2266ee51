"""What is judged of a server follows from facts: tables of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kvtape.amounts import setting
from kvtape.check.ask import allows
from kvtape.check.facts import DiskFacts, Position, ServerFacts
from kvtape.check.finding import Finding, Verdict, worst
from kvtape.check.fitness import fitness
from kvtape.check.headroom import headroom, spool_disk, spool_space
from kvtape.record.acknowledge import AckOption
from kvtape.server.info import ServerInfo

MIB = 1024 * 1024
GIB = 1024 * MIB
REPLID = "a" * 40
SECONDS = 10.0

# A replica with nothing to complain about, written to at 1 KiB/s.
GOOD = {
    "redis_version": "7.0.15",
    "role": "slave",
    "master_link_status": "up",
    "cluster_enabled": "0",
    "master_replid": REPLID,
    "master_repl_offset": str(10 * MIB),
    "repl_backlog_active": "1",
    "repl_backlog_size": str(64 * MIB),
    "repl_backlog_first_byte_offset": "1",
    "repl_backlog_histlen": str(10 * MIB),
    "total_net_input_bytes": "0",
    "used_memory": str(GIB),
    "used_memory_rss": str(GIB),
    "total_system_memory": str(8 * GIB),
    "rdb_last_bgsave_status": "ok",
    "rdb_last_bgsave_time_sec": "-1",
    "loading": "0",
}
SETTINGS = {
    "repl-backlog-ttl": "3600",
    "client-output-buffer-limit": "normal 0 0 0 slave 268435456 67108864 60 pubsub 1 1 "
    "60",
    "min-replicas-to-write": "0",
}


def facts(
    fields: Mapping[str, Any] | None = None,
    rate: int = 1024,
    settings: Mapping[str, str] = SETTINGS,
    **others: Any,  # noqa: ANN401
) -> ServerFacts:
    """Return those of a good server, with other fields; None takes one away."""
    changed = {**GOOD, **(fields or {})}
    after = {name: str(value) for name, value in changed.items() if value is not None}
    counter = (
        "master_repl_offset"
        if after.get("repl_backlog_active") == "1"
        else "total_net_input_bytes"
    )
    before = dict(after)
    if counter in after:
        before[counter] = str(int(after[counter]) - int(rate * SECONDS))
    known = {
        "connect_seconds": 0.001,
        "round_trip": 0.001,
        "clock_offset": 0.0,
        "may": {"psync": True, "replconf": True},
        **others,
    }
    return ServerFacts(
        "h:1",
        ServerInfo(before),
        ServerInfo(after),
        SECONDS,
        settings=settings,
        **known,
    )


def found(
    name: str,
    server: ServerFacts,
    ack: AckOption = "auto",
    position: Position | None = None,
) -> Finding:
    findings = [*fitness(server, ack), *headroom(server, position)]
    [finding] = [finding for finding in findings if finding.name == name]
    return finding


def test_a_good_server_is_ok_in_every_way() -> None:
    findings = [*fitness(facts(), "auto"), *headroom(facts(), Position(REPLID, MIB))]
    assert {finding.verdict for finding in findings} == {"ok"}
    assert not any(finding.hint for finding in findings)
    assert worst(finding.verdict for finding in findings) == "ok"


def test_of_nothing_known_nothing_is_said_and_nothing_fails() -> None:
    nothing = ServerFacts("h:1")
    findings = [*fitness(nothing, "auto"), *headroom(nothing, Position(REPLID, 1))]
    verdicts = {finding.name: finding.verdict for finding in findings}
    assert verdicts.pop("reachability") == "ok"
    assert set(verdicts.values()) == {"unknown"}
    assert all(f.hint for f in findings if f.verdict == "unknown" and f.name != "role")


@pytest.mark.parametrize("missing", [*GOOD, *SETTINGS])
def test_whatever_is_missing_is_no_failure(missing: str) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != missing}
    server = facts({missing: None}, settings=settings)
    for finding in [*fitness(server, "auto"), *headroom(server, Position(REPLID, MIB))]:
        # Without these it is not the good server any more.
        expected = ("fail",) if missing.startswith("repl_backlog") else ()
        assert finding.verdict in ("ok", "warn", "unknown", *expected)


PRIMARY = {"role": "master", "master_link_status": None}


@pytest.mark.parametrize(
    ("name", "fields", "verdict", "said"),
    [
        ("version", {"redis_version": "6.2.14"}, "ok", "Redis 6.2.14"),
        ("version", {"redis_version": "8.2.1"}, "ok", "Redis 8.2.1"),
        ("version", {"redis_version": "6.0.16"}, "warn", "Redis 6.0.16 is not tested"),
        ("version", {"redis_version": "9.0.0"}, "warn", "not tested"),
        ("version", {"valkey_version": "9.1.2"}, "ok", "Valkey 9.1.2"),
        ("version", {"valkey_version": "7.2.5"}, "warn", "not tested"),
        ("version", {"redis_version": "unstable"}, "warn", "not tested"),
        ("role", PRIMARY, "warn", "it is a primary"),
        ("role", {"master_link_status": "down"}, "fail", "own primary is down"),
        ("cluster", {"cluster_enabled": 1}, "warn", "no others"),
        ("min-replicas", PRIMARY, "ok", "nothing here counts replicas"),
        ("min-replicas", PRIMARY | {"min_slaves_good_slaves": 1}, "fail", "is set"),
        ("min-replicas", {"min_slaves_good_slaves": 1}, "ok", "nothing here"),
        ("sharing", {"slave0": "ip=x,port=6379"}, "ok", "1 other replica"),
        (
            "sharing",
            {"slave0": "ip=x,port=6379", "slave1": "port=70000", "slave2": "port=1"},
            "ok",
            "2 other replicas, 1 recording already",
        ),
        ("persistence", {"rdb_last_bgsave_status": "err"}, "fail", "could not be wri"),
        ("persistence", {"aof_last_write_status": "err"}, "fail", "AOF cannot be wri"),
        ("persistence", {"loading": 1}, "warn", "it is loading its data"),
        ("persistence", {"rdb_bgsave_in_progress": 1}, "warn", "writing an RDB file"),
        ("fork-memory", {"used_memory_rss": 5 * GIB}, "warn", "5.0 GiB of 8.0 GiB"),
        ("fork-memory", {"latest_fork_usec": 900_000}, "ok", "took 900.0 ms"),
        ("fork-memory", {"latest_fork_usec": 2_500_000}, "warn", "fork took 2 s"),
    ],
)
def test_fitness_is_judged(
    name: str, fields: dict[str, Any], verdict: Verdict, said: str
) -> None:
    finding = found(name, facts(fields))
    assert finding.verdict == verdict
    assert said in finding.message
    assert bool(finding.hint) == (verdict != "ok")


@pytest.mark.parametrize(
    ("may", "verdict", "said"),
    [
        ({"psync": True, "replconf": True}, "ok", "PSYNC and REPLCONF"),
        ({"psync": False, "replconf": True}, "fail", "may not run PSYNC"),
        ({"psync": True, "replconf": False}, "fail", "may not run REPLCONF"),
        ({"psync": False, "replconf": False}, "fail", "PSYNC and REPLCONF"),
        ({"psync": None, "replconf": True}, "unknown", "PSYNC is cannot be asked"),
        ({"psync": None, "replconf": False}, "fail", "may not run REPLCONF"),
    ],
)
def test_permission_is_judged(
    may: dict[str, bool | None], verdict: Verdict, said: str
) -> None:
    finding = found("permission", facts(may=may))
    assert finding.verdict == verdict
    assert said in finding.message
    assert finding.measured == may


@pytest.mark.parametrize(
    ("rules", "may"),
    [
        ("+@all", True),
        ("-@all", False),
        ("", False),
        ("-@all +psync +replconf", True),
        ("+@all -psync", False),
        ("+@all -@dangerous", False),
        ("+@all -@dangerous +psync", True),
        ("-@all +@admin", True),
        ("-@all +sync +@read", False),
    ],
)
def test_the_last_rule_on_a_command_counts(rules: str, may: bool) -> None:
    assert allows(rules, "psync") == may


def test_min_replicas_is_accepted_by_a_choice() -> None:
    server = facts(PRIMARY | {"min_slaves_good_slaves": 1})
    refused = found("min-replicas", server)
    assert refused.verdict == "fail"
    assert "--ack hidden" in refused.hint
    assert found("ack", server).verdict == "unknown"
    for ack in ("hidden", "received"):
        assert found("min-replicas", server, ack).verdict == "warn"
        assert found("ack", server, ack).measured == {"option": ack, "ack": ack}


@pytest.mark.parametrize(("fields", "ack"), [({}, "received"), (PRIMARY, "hidden")])
def test_what_will_be_acknowledged_is_told(fields: dict[str, Any], ack: str) -> None:
    finding = found("ack", facts(fields))
    assert (finding.verdict, finding.measured["ack"]) == ("ok", ack)
    assert found("ack", facts(fields | {"role": None})).verdict == "unknown"


@pytest.mark.parametrize(
    ("offset", "round_trip", "verdict", "said"),
    [
        (0.9, 0.001, "ok", "same"),
        (-0.9, 0.001, "ok", "same"),
        (1.5, 0.001, "warn", "1.5 s ahead of"),
        (-1.5, 0.001, "warn", "1.5 s behind"),
        (1.5, 1.1, "ok", "same"),
        (59.0, 0.001, "warn", "59 s ahead"),
        (61.0, 0.001, "fail", "61 s ahead"),
        (-7200.0, 0.001, "fail", "120 min behind"),
        (61.0, 4.0, "warn", "59 s"),
    ],
)
def test_a_skewed_clock_is_judged_by_what_is_certain(
    offset: float, round_trip: float, verdict: Verdict, said: str
) -> None:
    finding = found("clock", facts(clock_offset=offset, round_trip=round_trip))
    assert finding.verdict == verdict
    assert said in finding.message
    assert finding.measured["offset_seconds"] == offset


def test_a_far_server_is_a_warning_and_one_that_is_not_there_a_failure() -> None:
    assert found("reachability", facts(round_trip=0.2)).verdict == "warn"
    finding = found("reachability", ServerFacts("h:1", trouble="cannot connect to h:1"))
    assert (finding.verdict, finding.message) == ("fail", "cannot connect to h:1")


# Headroom.


@pytest.mark.parametrize(
    ("size_", "rate", "verdict", "said", "recommended"),
    [
        (MIB, 24 * 1024, "fail", "1.0 MiB covers 43 s of writes, at 24.0 KiB/s", 128),
        (10 * MIB, 24 * 1024, "warn", "covers 7 min", 128),
        (64 * MIB, 24 * 1024, "ok", "covers 46 min", 128),
        (256 * MIB, 24 * 1024, "ok", "covers 3 h", 256),
        (MIB, 0, "ok", "nothing was written in 10 s", 1),
        (MIB // 4, 0, "ok", "nothing was written in 10 s", 1),
        # An hour of it would be more than an eighth of the memory.
        (64 * MIB, MIB, "warn", "covers 64 s", 1024),
        (1024 * MIB, 2 * MIB, "warn", "covers 9 min", 1024),
    ],
)
def test_a_backlog_is_judged_by_how_long_it_lasts(
    size_: int, rate: int, verdict: Verdict, said: str, recommended: int
) -> None:
    finding = found("backlog", facts({"repl_backlog_size": size_}, rate))
    assert finding.verdict == verdict
    assert said in finding.message
    assert finding.measured["recommended_bytes"] == recommended * MIB
    if verdict != "ok":
        assert "longer than that needs a full resync" in finding.message
    if not rate:
        assert not finding.hint
    elif recommended * MIB > size_:
        assert f"repl-backlog-size {setting(recommended * MIB)} covers" in finding.hint
    else:
        assert ("more than an eighth" in finding.hint) == (verdict != "ok")


def test_without_a_backlog_the_input_is_a_bound_and_fails_nothing() -> None:
    fields = {"repl_backlog_active": "0", "total_net_input_bytes": 10**10}
    finding = found("backlog", facts(fields, rate=10 * MIB))
    assert finding.verdict == "warn"
    assert "at least 6 s of writes, no more than 10.0 MiB/s" in finding.message
    assert "the first link is a full resync (one fork)" in finding.message
    assert "attach at a quiet time; CONFIG SET" in finding.hint
    assert finding.measured["is_upper_bound"] is True
    assert found("output-buffer", facts(fields, rate=50 * MIB)).verdict == "warn"
    assert found("output-buffer", facts({}, rate=50 * MIB)).verdict == "fail"
    quiet = found("backlog", facts(fields, rate=0))
    assert (quiet.verdict, quiet.hint) == ("warn", "attach at a quiet time")


@pytest.mark.parametrize(
    ("position", "rate", "verdict", "said"),
    [
        (Position(REPLID, 10 * MIB), 1024, "ok", "0 B behind; for another 18 h"),
        (Position(REPLID, 9 * MIB), 0, "ok", "1.0 MiB behind"),
        (Position(REPLID, 0), MIB, "warn", "for another 54 s"),
        (Position(REPLID, 11 * MIB), 1024, "fail", "a full resync"),
        (Position("b" * 40, MIB), 1024, "fail", "a full resync"),
    ],
)
def test_whether_recording_can_go_on_is_judged(
    position: Position, rate: int, verdict: Verdict, said: str
) -> None:
    finding = found("resume", facts(rate=rate), position=position)
    assert finding.verdict == verdict
    assert said in finding.message
    assert finding.measured["can_continue"] == (verdict != "fail")


@pytest.mark.parametrize(
    ("fields", "ttl", "verdict", "said"),
    [
        ({}, "1", "ok", "a replica keeps its backlog"),
        (PRIMARY, "0", "ok", "kept for ever"),
        (PRIMARY, "3600", "ok", "after 60 min"),
        (PRIMARY, "600", "warn", "after 10 min"),
        (PRIMARY, "10", "fail", "after 10 s"),
        (PRIMARY | {"slave0": "port=6379"}, "10", "ok", "other replicas keep"),
        (PRIMARY | {"slave0": "port=70000"}, "10", "fail", "after 10 s"),
    ],
)
def test_a_backlog_that_ends_with_us_is_judged(
    fields: dict[str, Any], ttl: str, verdict: Verdict, said: str
) -> None:
    server = facts(fields, settings=SETTINGS | {"repl-backlog-ttl": ttl})
    finding = found("backlog-ttl", server)
    assert finding.verdict == verdict
    assert said in finding.message


def test_while_a_recording_is_attached_there_is_nothing_to_resume() -> None:
    server = facts({"slave0": "ip=x,port=70000"})
    for position in (Position("b" * 40, 0), Position(REPLID, 11 * MIB)):
        finding = found("resume", server, position=position)
        assert finding.verdict == "ok"
        assert finding.measured["is_attached"] is True


# A GiB takes 20 s where no RDB file tells.
@pytest.mark.parametrize(
    ("limit", "fields", "rate", "verdict", "said"),
    [
        ("256 64 60", {}, MIB, "ok", "about 20 s piles up 20.5 MiB of"),
        ("256 64 60", {}, 7 * MIB, "warn", "piles up 143.4 MiB"),
        ("256 64 60", {}, 20 * MIB, "fail", "limit of 256.0 MiB"),
        ("256 64 5", {}, 5 * MIB, "fail", "piles up 102.4 MiB"),
        ("0 0 0", {}, 100 * MIB, "ok", "there is none"),
        ("0 64 5", {}, 100 * MIB, "fail", "there is none"),
        ("256 0 0", {"rdb_last_bgsave_time_sec": 300}, MIB, "fail", "about 5 min"),
        ("1 0 0", {}, MIB, "ok", "limit of 64.0 MiB"),
        ("1 0 0", {"redis_version": "6.2.14"}, MIB, "fail", "limit of 1.0 MiB"),
    ],
)
def test_the_output_buffer_is_judged_by_what_a_snapshot_piles_up(
    limit: str, fields: dict[str, Any], rate: int, verdict: Verdict, said: str
) -> None:
    hard, soft, seconds = map(int, limit.split())
    for word in ("slave", "replica"):
        settings = {
            "client-output-buffer-limit": f"normal 0 0 0 {word} {hard * MIB} "
            f"{soft * MIB} {seconds} pubsub 1 1 60"
        }
        finding = found("output-buffer", facts(fields, rate, settings))
        assert finding.verdict == verdict
        assert said in finding.message
        assert ("CONFIG SET client-output" in finding.hint) == (verdict != "ok")


# The disk.


@pytest.mark.parametrize(
    ("free", "limit", "rate", "verdict", "said", "hint"),
    [
        (99, 30, MIB, "ok", "room for 30.0 GiB holds 9 h of writes, at 1.0 MiB/s", ""),
        (99, 15, MIB, "warn", "holds 4 h", "raise --spool-limit"),
        (15, 99, MIB, "warn", "holds 4 h", "give a larger disk by --spool DIR"),
        (99, 3, 10 * MIB, "fail", "holds 5 min", "raise --spool-limit"),
        (3, 99, 0, "ok", "room for 3.0 GiB", ""),
        (99, 0, 0, "fail", "a snapshot may take 1.0 GiB", "raise --spool-limit"),
    ],
)
def test_the_spool_is_judged_by_how_long_it_lasts(
    free: int, limit: int, rate: int, verdict: Verdict, said: str, hint: str
) -> None:
    for used in (0, GIB):
        disk = DiskFacts(
            *("/spool", free * GIB, 0.001),
            used_bytes=used,
            limit_bytes=limit * GIB + used,
        )
        finding = spool_space(disk, facts(rate=rate))
        assert finding.verdict == verdict
        assert said in finding.message
        assert finding.hint == hint


def test_a_disk_that_is_slow_or_not_writable_is_told() -> None:
    assert spool_disk(DiskFacts("/spool", 1, 0.01)).verdict == "ok"
    assert spool_disk(DiskFacts("/spool", 1, 0.2)).verdict == "warn"
    finding = spool_disk(DiskFacts("/spool", 1, trouble="Read-only file system"))
    assert finding.verdict == "fail"
    assert finding.message == "cannot write to /spool: Read-only file system"
    assert spool_space(DiskFacts("/spool"), None).verdict == "unknown"
    assert spool_space(DiskFacts("/spool", 1), None).verdict == "unknown"
