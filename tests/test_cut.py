"""Each way that a link can break leaves its own traces, and no more is claimed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtape.record.linking.cut import Cut, explain, replica_limits
from kvtape.record.linking.pace import Pace
from kvtape.server.info import ServerInfo

OLD, NEW = "a" * 40, "b" * 40
LIMITS = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"
COUNTER = "client_output_buffer_limit_disconnections"

PRIMARY = {
    "run_id": "1" * 40,
    "uptime_in_seconds": "5000",
    "role": "master",
    "master_replid": OLD,
    "master_replid2": "0" * 40,
    "second_repl_offset": "-1",
    "master_failover_state": "no-failover",
    "client-output-buffer-limit": LIMITS,
    "repl-timeout": "20",
    COUNTER: "3",
}
REPLICA = PRIMARY | {
    "role": "slave",
    "master_host": "10.0.0.1",
    "master_port": "6379",
    "master_link_status": "up",
    "master_sync_in_progress": "0",
}
RESTARTED = {"run_id": "2" * 40, "uptime_in_seconds": "1", "master_replid": NEW}

CUT = Cut("the primary cut the link after 900", "streaming", 900, OLD, 60.0, ago=2.0)
STOPPED = replace(CUT, paused=8.0)
SILENT = replace(CUT, paused=30.0)


def said(
    before: dict[str, str],
    changes: dict[str, str] | None,
    cut: Cut = CUT,
    *,
    without: str = "",
) -> str:
    after = None if changes is None else ServerInfo(before | changes)
    known = {name: value for name, value in before.items() if name != without}
    return explain(ServerInfo(known), after, cut)


@pytest.mark.parametrize(
    ("before", "changes", "cut", "words"),
    [
        (PRIMARY, {}, CUT, "somebody or something cut this connection (CLIENT KILL"),
        (PRIMARY, RESTARTED, CUT, "restarted; whether it was shut down or crashed"),
        (
            PRIMARY,
            RESTARTED | {"master_replid2": OLD, "second_repl_offset": "901"},
            CUT,
            "restarted; it has all that was recorded, as after an orderly shutdown",
        ),
        (
            PRIMARY,
            RESTARTED | {"master_replid2": OLD, "second_repl_offset": "801"},
            CUT,
            "came back without the last 100 B of the stream",
        ),
        (
            PRIMARY,
            RESTARTED | {"uptime_in_seconds": "7200"},
            CUT,
            "another server answers at the address (its run_id is another, and it "
            "is up for 2 h)",
        ),
        (
            PRIMARY,
            {"role": "slave", "master_host": "10.0.0.2", "master_port": "6379"},
            CUT,
            "and is now a replica of 10.0.0.2:6379 (a failover, or REPLICAOF)",
        ),
        (
            PRIMARY | {"cluster_enabled": "1"},
            {"role": "slave", "master_host": "10.0.0.2", "master_port": "6379"},
            CUT,
            "is now a replica of 10.0.0.2:6379 (a cluster failover)",
        ),
        (
            REPLICA,
            {"role": "master", "master_replid": NEW, "master_replid2": OLD},
            CUT,
            "it was a replica and is now a primary",
        ),
        (
            REPLICA,
            {"master_host": "10.0.0.2"},
            CUT,
            "it was a replica of 10.0.0.1:6379 and is now one of 10.0.0.2:6379",
        ),
        (
            REPLICA,
            {"master_replid": NEW},
            CUT,
            "its own primary 10.0.0.1:6379 has another history now",
        ),
        (
            REPLICA,
            {"master_link_status": "down"},
            CUT,
            "a replica that has lost its own primary 10.0.0.1:6379",
        ),
        (
            REPLICA,
            {"master_link_status": "down", "master_sync_in_progress": "1"},
            CUT,
            "takes a new snapshot from its own primary 10.0.0.1:6379",
        ),
        (REPLICA, {}, CUT, "somebody or something cut this connection"),
        (
            PRIMARY,
            {"master_failover_state": "waiting-for-sync"},
            CUT,
            "a FAILOVER is under way",
        ),
        (
            PRIMARY,
            {"master_replid": NEW, "master_replid2": OLD},
            CUT,
            "it was made a replica and a primary again",
        ),
        (PRIMARY, {"master_replid": NEW}, CUT, "another history since"),
        (
            PRIMARY,
            {COUNTER: "4"},
            STOPPED,
            "the server's output buffer for this recording grew beyond "
            "client-output-buffer-limit replica (hard 256.0 MiB, soft 64.0 MiB for "
            "60 s); it has closed 1 connection for such a limit",
        ),
        (
            PRIMARY,
            {COUNTER: "5"},
            CUT,
            "most likely, the server's output buffer",
        ),
        (
            PRIMARY,
            {COUNTER: "4"},
            replace(CUT, unread=9.0),
            "nothing was read for 9 s, as the disk was slow",
        ),
        (
            PRIMARY,
            {},
            SILENT,
            "this program did not run for 30 s (stopped, suspended or starved), and a "
            "server gives up a replica that is silent for longer than its repl-timeout "
            "(20 s)",
        ),
        (PRIMARY, {}, STOPPED, "whether that is why the link broke"),
        (
            PRIMARY,
            {},
            replace(CUT, error="the primary was silent for 60 s", was_silent=True),
            "the primary was silent for 60 s",
        ),
        (
            PRIMARY | {"rdb_last_bgsave_status": "ok"},
            {"rdb_last_bgsave_status": "err"},
            replace(CUT, phase="snapshot", replid=None),
            "could not make the snapshot (rdb_last_bgsave_status:err)",
        ),
        (
            PRIMARY,
            None,
            replace(CUT, refusal="the server refused: WRONGPASS"),
            "it does not let this recording in any more: the server refused: WRONGPASS",
        ),
    ],
)
def test_each_way_to_break_is_known_by_its_traces(
    before: dict[str, str], changes: dict[str, str] | None, cut: Cut, words: str
) -> None:
    assert words in said(before, changes, cut)


def test_a_server_that_does_not_count_is_suspected_only_if_we_stood_still() -> None:
    old = {name: value for name, value in PRIMARY.items() if name != COUNTER}
    assert "most likely the server's output buffer" in said(old, {}, STOPPED)
    assert "output buffer" not in said(old, {}, SILENT)
    assert "output buffer" not in said(old, {})


def test_a_server_that_counts_and_closed_nothing_is_not_suspected() -> None:
    assert "and closed nothing over an output buffer limit" in said(PRIMARY, {})
    assert "grew" not in said(PRIMARY, {}, STOPPED)


def test_where_info_is_not_allowed_only_what_we_saw_is_said() -> None:
    nothing = ServerInfo({})
    assert explain(nothing, nothing, CUT) == (
        "why is unknown, since the server does not tell about itself (its user lacks "
        "+info); what was seen of it: the primary cut the link after 900"
    )
    assert "did not run for 2 min" in explain(
        nothing, nothing, replace(CUT, paused=120.0)
    )
    assert "the server was restarted" not in explain(ServerInfo(PRIMARY), nothing, CUT)


def test_a_history_is_not_compared_where_none_was_streamed() -> None:
    cut = replace(CUT, phase="snapshot", replid=None)
    text = said(PRIMARY, {"master_replid": NEW}, cut)
    assert "same run_id, role as before" in text


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("slave 0 0 0", "(hard none, soft none for 0 s)"),
        ("normal 0 0 0 replica 1048576 0 0", "(hard 1.0 MiB, soft none for 0 s)"),
        ("", "(by default 256mb, or 64mb for 60 s)"),
        ("slave much more 60", "(by default 256mb, or 64mb for 60 s)"),
    ],
)
def test_the_limits_are_shown_as_they_are_set(setting: str, shown: str) -> None:
    info = ServerInfo({"client-output-buffer-limit": setting})
    assert replica_limits(info) == f"client-output-buffer-limit replica {shown}"


# Our own clock.


def test_the_gap_between_two_beats_is_a_pause_for_a_minute() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    for now[0] in (101.0, 102.0, 110.0, 111.0):
        pace.beat()
    assert pace.paused == 8.0
    assert pace.lasted == 11.0
    for now[0] in range(112, 180):
        pace.beat()
    assert pace.paused == 1.0


def test_a_pause_that_has_just_ended_needs_no_beat_to_be_seen() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    now[0] = 90.0
    assert pace.paused == 90.0


def test_not_reading_is_measured_while_it_lasts_and_afterwards() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.unread == 0.0
    with pace.not_reading():
        now[0] = 5.0
        assert pace.unread == 5.0
    now[0] = 20.0
    assert pace.unread == 5.0
