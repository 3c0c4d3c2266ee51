"""What is restored at an offset is what the primary held at it: the proof of kvtape.

Ten pauses of a busy writer for each server and way of sending snapshots, each restored
into a folder and into a running server. docs/correctness.md says what is compared and
excused, and has the figures of the long form (tools/oracle).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from copies import DESTINATIONS, LATE, Check, check, into_folders, job_for
from kvtape.tape.point import ToOffset, ToTime
from oracle import EXPIRED, RELATIVE_TOLERANCE_MS, Fingerprint, stable_fingerprint
from plain_client import PlainClient, as_bytes
from replicas import wait_until
from servers import StartServer
from trials import (
    HELD_BACK,
    MIB,
    MODES,
    Mode,
    Reading,
    Recording,
    Setting,
    agent_for,
    record,
)

TYPES: Final = {"string", "list", "set", "zset", "hash", "stream"}

# 64 MiB once, and for the rest a size that takes less time.
LARGE: Final = {("valkey-8.1", "diskless"): 64 * MIB}

# Which of the trials also kill the agent: one of each server.
KILLS: Final[dict[str, Mode]] = {
    "redis-6.2": "disk",
    "redis-7.0": "diskless",
    "redis-8.0": "disk",
    "valkey-8.0": "diskless",
    "valkey-8.1": "disk",
    "valkey-9.1": "diskless",
}


def assert_exact(checks: Sequence[Check]) -> None:
    different = [str(it) for it in checks if it.differences or it.result is None]
    assert not different, "\n".join(different)
    for it in checks:
        assert it.result is not None
        assert it.result.offset == it.reading.offset
        lapsed = [found for found in it.explained if found.reason == EXPIRED]
        assert len(lapsed) <= len(it.reading.state.keys) / 4
        if not it.reading.state.release.before_7:
            assert LATE not in {found.reason for found in it.explained}


def assert_has_everything(state: Fingerprint) -> None:
    """Check that what the recording begins with puts all to the test."""
    assert {key.kind for key in state.keys.values()} == TYPES
    assert {database for database, _ in state.keys} == {0, 1, 3, 9, 15}
    soon = state.end + 60_000
    assert any(key.expiry is not None for key in state.keys.values())
    assert any(key.expiry and key.expiry < soon for key in state.keys.values())
    assert state.functions or state.release.before_7


def assert_recorded_to_the_end(recording: Recording) -> None:
    catalogue = recording.catalogue()
    [restorable] = catalogue.all_ranges()
    assert restorable.end == recording.end
    assert not catalogue.gaps
    assert not catalogue.problems
    [_] = catalogue.snapshots
    assert len(job_for(recording, ToOffset(recording.end)).plan.slices) >= 10


def assert_times_lead_to_their_offsets(recording: Recording) -> None:
    quiet = [it for it in recording.readings if it.time is not None]
    for it in quiet:
        assert it.time is not None
        assert job_for(recording, ToTime(it.time)).plan.offset == it.offset


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_pause_of_the_writer_is_restored_exactly(
    server_name: str, mode: Mode, tmp_path: Path
) -> None:
    setting = Setting(
        server_name,
        mode,
        seed=11,
        large_value=LARGE.get((server_name, mode), 4 * MIB),
        kills_agent=KILLS[server_name] == mode,
    )
    recording = record(setting, tmp_path)
    assert_has_everything(recording.before)
    assert_recorded_to_the_end(recording)
    assert_times_lead_to_their_offsets(recording)
    assert_exact(check(recording))


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_fields_whose_time_has_passed_are_restored_exactly(
    server_name: str, tmp_path: Path
) -> None:
    setting = Setting(server_name, "diskless", seed=12, field_ttls="short")
    assert_exact(check(record(setting, tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-8.0"], indirect=True)
@pytest.mark.parametrize("is_calm", [True, False])
def test_a_server_that_hides_lapsed_fields_is_restored_exactly_or_not_at_all(
    server_name: str, tmp_path: Path, *, is_calm: bool
) -> None:
    setting = Setting(
        server_name,
        "disk",
        seed=13,
        points=20 if is_calm else 10,
        field_ttls="short",
        # Without hashes in the snapshot most increments can be followed.
        early_operations=0 if is_calm else 2500,
        operations=(5, 80) if is_calm else (30, 600),
        is_calm=is_calm,
    )
    checks = check(record(setting, tmp_path))
    restored = [it for it in checks if it.result is not None]
    assert_exact(restored)
    refused = [it for it in checks if it.result is None]
    assert all("the restore cannot be exact" in it.refusal for it in refused)
    if is_calm:
        assert len(restored) >= 20


def test_what_a_server_hides_of_a_snapshots_field_is_refused(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("redis-8.0")
    setting = Setting("redis-8.0", "disk", seed=0)
    with PlainClient(server.client()) as plain, agent_for(server, tmp_path) as agent:
        before = [("HSET", "h", "f", 1), ("HPEXPIRE", "h", 60_000, "FIELDS", 1, "f")]
        plain.exchange(before)
        agent.start()
        wait_until(
            lambda: "state=online" in plain.info("replication").get("slave0", "")
        )
        plain.exchange([("SET", "key", 1)])
        early, state = stable_fingerprint(server.client())
        # Whether it is the field's first value depends on when a server does it.
        plain.exchange([("HINCRBY", "h", "f", 1)])
        late, end = stable_fingerprint(server.client())
        agent.catch_up(late)
        agent.stop()
    readings = [Reading(early, state), Reading(late, end)]
    checks = check(Recording(setting, agent.repository, state, readings, late, 0, []))
    assert_exact([it for it in checks if it.reading.offset == early])
    refused = [it.refusal for it in checks if it.reading.offset == late]
    assert len(refused) == len(DESTINATIONS)
    assert all("the restore cannot be exact" in it for it in refused)


@pytest.mark.slow
def test_a_relative_expiry_that_was_recorded_ends_when_it_would_have(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("redis-6.2", repl_diskless_sync="yes")
    setting = Setting("redis-6.2", "diskless", seed=0)
    with PlainClient(server.client()) as plain, agent_for(server, tmp_path) as agent:
        plain.exchange([("SET", name, 1) for name in "abcdef"])
        agent.start()
        wait_until(
            lambda: "state=online" in plain.info("replication").get("slave0", "")
        )
        # Until the agent's next acknowledgement the primary may hold the stream back.
        time.sleep(HELD_BACK)
        payload = as_bytes(plain.ask("DUMP", "a"))
        plain.exchange(
            [
                ("EXPIRE", "a", 4),
                ("PEXPIRE", "b", 4000),
                ("SET", "c", 1, "PX", 4000),
                ("SETEX", "d", 4, 1),
                ("GETEX", "e", "EX", 4),
                ("RESTORE", "f", 4000, payload, "REPLACE"),
            ]
        )
        offset, state = stable_fingerprint(server.client())
        agent.catch_up(offset)
        agent.stop()
        recording = Recording(setting, agent.repository, state, [], offset, 0, [])
    with into_folders(recording) as restore:
        _, copy = restore(job_for(recording, ToOffset(offset)))
    assert len(copy.keys) == 6
    for place, key in state.keys.items():
        assert key.expiry is not None
        copied = copy.keys[place].expiry
        assert copied is not None
        assert abs(copied - key.expiry) <= RELATIVE_TOLERANCE_MS
