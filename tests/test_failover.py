"""Through a failover the tape stays whole, and says exactly what the failover lost.

Real servers, without Sentinel: the recorder's address is a switch that a test turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fingerprints import Fingerprint
from kvtape.restore.data_dir import layout_for, restore_data_dir
from kvtape.restore.job import open_job
from kvtape.server.url import ServerUrl
from kvtape.tape.point import ToOffset
from oracle import compare, fingerprint, stable_fingerprint
from plain_client import PlainClient
from recording import SOURCE, Taping, options_for, taping_by
from replicas import offset_of, wait_until
from servers import Server, StartServer, quiet
from switch import Switch
from tapes import documents_of
from verbs import kvtape

Words = tuple[str | int, ...]


@dataclass
class Scene:
    """A recorder behind a switch, and the servers that take turns there."""

    folder: Path
    switch: Switch
    taping: Taping
    moments: list[tuple[str, int, Fingerprint]] = field(default_factory=list)

    @property
    def source(self) -> Path:
        """The folder of the source in the repository."""
        return self.folder / "repo" / SOURCE

    def histories(self) -> dict[str, dict[str, object]]:
        """Return the documents of the histories, by replid."""
        found = documents_of(self.source, "histories/*.json")
        return {str(document["replid"]): document for document in found}

    def write(self, server: Server, *commands: Words) -> int:
        """Write to the server that is recorded; return the offset once it is synced."""
        self.taping.server = server
        with PlainClient(server.client()) as plain:
            plain.exchange(commands)
        return self.taping.catch_up()

    def mark(self, server: Server) -> int:
        """Remember what a server holds at the offset where it stands."""
        offset, state = stable_fingerprint(server.client())
        assert self.taping.catch_up() == offset
        self.moments.append((self.taping.replid, offset, state))
        return offset

    def turn_to(self, server: Server) -> None:
        """Put another server behind the address; return when it is recorded."""
        before = self.taping.replid
        self.switch.turn_to(server.port)
        self.taping.server = server
        wait_until(lambda: self.taping.agent.recorder.replid != before)
        self.taping.wait_until_online()

    def orphaned(self) -> list[dict[str, Any]]:
        """Return what the audit says was lost."""
        outcome = kvtape(
            "audit", "--orphaned", "--repo", self.folder / "repo", "--json"
        )
        assert (outcome.status, outcome.err) == (0, "")
        return [json.loads(line) for line in outcome.out.splitlines()]

    def info(self) -> dict[str, Any]:
        """Return what info says."""
        document: dict[str, Any] = kvtape(
            "info", "--repo", self.folder / "repo", "--json"
        ).document()
        return document

    def check_moments(self, name: str) -> None:
        """Restore every moment that was marked, and compare all of it."""
        for replid, offset, state in self.moments:
            job = open_job(str(self.folder / "repo"), None, ToOffset(offset, replid))
            folder = self.folder / f"{replid}-{offset}"
            layout = layout_for(job.plan.snapshot.manifest)
            assert restore_data_dir(job, folder, layout).offset == offset
            with Server(name, config_file=folder / "redis.conf") as copy:
                assert compare(state, fingerprint(copy.client())) == []


@contextmanager
def scene(server: Server, folder: Path) -> Iterator[Scene]:
    """Record a server by way of a switch; all is stored when this is left."""
    with (
        Switch(server.port) as switch,
        scene_at(switch, server, folder) as tape,
    ):
        yield tape


@contextmanager
def scene_at(
    switch: Switch,
    server: Server,
    folder: Path,
    **changes: Any,  # noqa: ANN401
) -> Iterator[Scene]:
    """Record a server that is behind a switch."""
    with taping_by(options_for(switch.port, folder, **changes), server) as taping:
        yield Scene(folder, switch, taping)


def follow(replica: Server, port: int) -> None:
    """Make a server a replica of what is at a port; on return it has all of it."""
    with PlainClient(replica.client()) as plain:
        plain.ask("REPLICAOF", "127.0.0.1", port)
        wait_until(lambda: plain.info("replication")["master_link_status"] == "up")


def promote(server: Server) -> None:
    with PlainClient(server.client()) as plain:
        plain.ask("REPLICAOF", "NO", "ONE")


def syncs(server: Server) -> tuple[int, int]:
    """Return how many full and partial resyncs a server has answered."""
    with PlainClient(server.client()) as plain:
        stats = plain.info("stats")
    return int(stats["sync_full"]), int(stats["sync_partial_ok"])


def listed(commands: list[Words]) -> list[list[str]]:
    return [[str(word) for word in words] for words in commands]


SHARED: list[Words] = [("SET", "shared", 1), ("SELECT", 3), ("RPUSH", "list", 1, 2)]
LOST: list[Words] = [("SET", "lost", "x" * 100), ("INCR", "shared"), ("DEL", "list")]
NEW: list[Words] = [("SET", "new", 1), ("APPEND", "shared", "new")]


def test_a_replica_that_lagged_forks_where_it_stands_and_both_branches_stay(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    old, heir = quiet(start_server, server_name), quiet(start_server, server_name)
    with Switch(old.port) as between, scene(old, tmp_path) as tape:
        follow(heir, between.port)
        fork = tape.write(old, *SHARED)
        wait_until(lambda: offset_of(heir) == fork)
        between.turn_to(None)
        tape.write(old, ("SELECT", 3), *LOST)
        first, end = tape.taping.replid, tape.mark(old)
        old.kill()
        promote(heir)
        tape.turn_to(heir)
        tape.write(heir, *NEW)
        second = tape.taping.replid
        tape.mark(heir)
        assert syncs(heir) == (0, 1)
    document = tape.histories()[second]
    assert (document["reason"], document["parent"]) == ("failover", first)
    assert document["parent_offset"] == fork
    assert documents_of(tape.source, "gaps/*/*.json") == []
    rows = tape.orphaned()
    assert [row["command"] for row in rows] == listed(LOST)
    assert {(row["replid"], row["db"]) for row in rows} == {(first, 3)}
    assert rows[-1]["end_offset"] == end
    assert tape.info()["orphaned"] == [
        {
            "replid": first,
            "start_offset": fork,
            "end_offset": end,
            "continued_as": second,
        }
    ]
    text = kvtape("audit", "--orphaned", "--repo", tape.folder / "repo").out
    assert f"forked at {fork}" in text
    assert "3 writes" in text
    assert max(map(len, text.splitlines())) <= 80
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-8.1"], indirect=True)
def test_a_replica_that_has_everything_loses_nothing(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    old, heir = quiet(start_server, server_name), quiet(start_server, server_name)
    with scene(old, tmp_path) as tape:
        follow(heir, old.port)
        fork = tape.write(old, *SHARED)
        wait_until(lambda: offset_of(heir) == fork)
        first = tape.taping.replid
        old.kill()
        promote(heir)
        tape.turn_to(heir)
        tape.write(heir, *NEW)
        second = tape.taping.replid
        tape.mark(heir)
        assert syncs(heir) == (0, 1)
    assert tape.histories()[second]["parent"] == first
    assert tape.histories()[second]["parent_offset"] == fork
    assert documents_of(tape.source, "gaps/*/*.json") == []
    assert tape.orphaned() == []
    text = kvtape("audit", "--orphaned", "--repo", tape.folder / "repo").out
    assert text == "no failover lost anything that is recorded\n"
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
def test_a_recorder_that_lags_behind_the_heir_names_the_fork_that_the_heir_names(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    """Its own last byte is earlier; what is between it records as the heir's."""
    old, heir = quiet(start_server, server_name), quiet(start_server, server_name)
    with scene(old, tmp_path) as tape:
        follow(heir, old.port)
        reached = tape.write(old, *SHARED)
        first = tape.taping.replid
        tape.switch.turn_to(None)
        with PlainClient(old.client()) as plain:
            plain.exchange([("SET", "missed", 1), ("SET", "missed", 2)])
        fork = offset_of(old)
        wait_until(lambda: offset_of(heir) == fork)
        old.kill()
        promote(heir)
        tape.turn_to(heir)
        tape.write(heir, *NEW)
        second = tape.taping.replid
        tape.mark(heir)
        assert syncs(heir) == (0, 1)
    assert reached < fork
    assert tape.histories()[second]["parent_offset"] == fork
    assert tape.orphaned() == []
    ranges = tape.info()["restorable"]
    assert (ranges[0]["replid"], ranges[0]["end_offset"]) == (first, reached)
    assert (ranges[1]["replid"], ranges[1]["start_offset"]) == (second, reached)
    job = open_job(str(tape.folder / "repo"), None, ToOffset(fork))
    assert (job.plan.replid, job.plan.offset) == (first, fork)
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-9.1"], indirect=True)
def test_without_info_there_is_a_gap_and_nobody_knows_what_was_lost(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    old, heir = quiet(start_server, server_name), quiet(start_server, server_name)
    for server in (old, heir):
        with PlainClient(server.client()) as plain:
            rules = ("reset", "on", ">secret", "+psync", "+replconf", "+ping")
            plain.ask("ACL", "SETUSER", "recorder", *rules)
    url = ServerUrl("127.0.0.1", 0, username="recorder", password="secret")
    with (
        Switch(old.port) as between,
        Switch(old.port) as switch,
        scene_at(switch, old, tmp_path, url=replace(url, port=switch.port)) as tape,
    ):
        follow(heir, between.port)
        fork = tape.write(old, *SHARED)
        wait_until(lambda: offset_of(heir) == fork)
        between.turn_to(None)
        tape.write(old, *LOST)
        first, end = tape.taping.replid, tape.mark(old)
        old.kill()
        promote(heir)
        tape.turn_to(heir)
        tape.write(heir, *NEW)
        second = tape.taping.replid
        tape.mark(heir)
        assert syncs(heir) == (1, 0)
    document = tape.histories()[second]
    assert (document["reason"], document["parent"]) == ("full-resync", None)
    [gap] = documents_of(tape.source, "gaps/*/*.json")
    assert (gap["replid"], gap["start_offset"]) == (first, end)
    assert "lacks +info" in str(gap["reason"])
    [row] = tape.orphaned()
    assert (row["replid"], row["orphaned"]) == (first, "unknown")
    assert row["continued_as"] == second
    assert (
        "orphaned: unknown"
        in kvtape("audit", "--orphaned", "--repo", tape.folder / "repo").out
    )
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-8.0"], indirect=True)
def test_where_the_heirs_backlog_does_not_reach_back_the_gap_begins_at_the_fork(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    old = quiet(start_server, server_name)
    heir = quiet(start_server, server_name, repl_backlog_size="16kb")
    with Switch(old.port) as between, scene(old, tmp_path) as tape:
        follow(heir, between.port)
        fork = tape.write(old, *SHARED)
        wait_until(lambda: offset_of(heir) == fork)
        between.turn_to(None)
        tape.write(old, ("SELECT", 3), *LOST)
        first = tape.taping.replid
        tape.mark(old)
        old.kill()
        tape.switch.turn_to(None)
        promote(heir)
        with PlainClient(heir.client()) as plain:
            plain.exchange([("SET", f"key{n}", "x" * 1000) for n in range(200)])
        tape.turn_to(heir)
        tape.write(heir, *NEW)
        second = tape.taping.replid
        tape.mark(heir)
    document = tape.histories()[second]
    assert (document["reason"], document["parent"]) == ("full-resync", first)
    assert document["parent_offset"] == fork
    [gap] = documents_of(tape.source, "gaps/*/*.json")
    assert (gap["replid"], gap["start_offset"]) == (first, fork)
    assert "failed over: the server goes on from" in str(gap["reason"])
    assert "bytes after that" in str(gap["reason"])
    assert [row["command"] for row in tape.orphaned()] == listed(LOST)
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-6.2", "redis-8.0"], indirect=True)
def test_two_failovers_and_one_back_are_one_story(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    first, second, third = (quiet(start_server, server_name) for _ in range(3))
    replids = []
    with Switch(first.port) as between, scene(first, tmp_path) as tape:
        follow(second, between.port)
        follow(third, second.port)
        fork = tape.write(first, *SHARED)
        wait_until(lambda: offset_of(third) == fork)
        between.turn_to(None)
        tape.write(first, ("SELECT", 3), *LOST)
        tape.mark(first)
        replids.append(tape.taping.replid)
        # To the second, which lagged.
        promote(second)
        tape.turn_to(second)
        later = tape.write(second, *NEW)
        tape.mark(second)
        replids.append(tape.taping.replid)
        wait_until(lambda: offset_of(third) == later)
        # To the third, which did not; and back to the first, made its replica.
        promote(third)
        tape.turn_to(third)
        tape.write(third, ("SET", "third", 1))
        tape.mark(third)
        replids.append(tape.taping.replid)
        follow(first, third.port)
        end = offset_of(third)
        wait_until(lambda: offset_of(first) == end)
        promote(first)
        tape.turn_to(first)
        tape.write(first, ("SET", "back", 1))
        tape.mark(first)
        replids.append(tape.taping.replid)
    histories = tape.histories()
    assert len(set(replids)) == 4
    parents = [histories[replid]["parent"] for replid in replids]
    assert parents == [None, *replids[:-1]]
    forks = [histories[replid]["parent_offset"] for replid in replids]
    assert forks == [None, fork, later, end]
    assert documents_of(tape.source, "gaps/*/*.json") == []
    assert [row["command"] for row in tape.orphaned()] == listed(LOST)
    tape.check_moments(server_name)


def test_a_primary_that_restarts_with_its_rdb_file_goes_on_from_7_0_on(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with scene(server, tmp_path) as tape:
        saved = tape.write(server, *SHARED)
        with PlainClient(server.client()) as plain:
            plain.ask("SAVE")
        tape.write(server, ("SELECT", 3), *LOST)
        first, end = tape.taping.replid, tape.mark(server)
        tape.switch.turn_to(None)
        server.kill()
        server.start()
        tape.turn_to(server)
        tape.write(server, *NEW)
        second = tape.taping.replid
        tape.mark(server)
        continued = syncs(server) == (0, 1)
    assert continued == (server_name != "redis-6.2")
    document = tape.histories()[second]
    gaps = documents_of(tape.source, "gaps/*/*.json")
    if continued:
        assert (document["reason"], document["parent"]) == ("failover", first)
        assert document["parent_offset"] == saved
        assert gaps == []
        assert [row["command"] for row in tape.orphaned()] == listed(LOST)
    else:
        assert (document["reason"], document["parent"]) == ("full-resync", None)
        assert [(gap["replid"], gap["start_offset"]) for gap in gaps] == [(first, end)]
        # At once; a second later its uptime would tell when.
        assert "restarted or replaced (its run_id changed)" in str(gaps[0]["reason"])
        assert [row["orphaned"] for row in tape.orphaned()] == ["unknown"]
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-8.0"], indirect=True)
def test_two_agents_that_stood_elsewhere_tell_one_story(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    """One was ahead of the heir, the other behind: both name the fork that it names."""
    old, heir = quiet(start_server, server_name), quiet(start_server, server_name)
    with ExitStack() as scenes:
        between = scenes.enter_context(Switch(old.port))
        ahead = scenes.enter_context(scene(old, tmp_path))
        # Until it is stored, the second one's address is another server's.
        manifest = "snapshots/*/*/manifest.json"
        wait_until(lambda: documents_of(ahead.source, manifest) != [])
        switch = scenes.enter_context(Switch(old.port))
        behind = scenes.enter_context(
            scene_at(switch, old, tmp_path, spool=tmp_path / "second")
        )
        follow(heir, between.port)
        reached = behind.write(old, *SHARED)
        behind.switch.turn_to(None)
        fork = ahead.write(old, ("SET", "missed", 1), ("SET", "missed", 2))
        wait_until(lambda: offset_of(heir) == fork)
        between.turn_to(None)
        ahead.write(old, ("SELECT", 3), *LOST)
        first = ahead.taping.replid
        ahead.mark(old)
        old.kill()
        promote(heir)
        for tape in (behind, ahead):
            tape.turn_to(heir)
        assert syncs(heir) == (0, 2)
        behind.write(heir, *NEW)
        ahead.mark(heir)
        second = ahead.taping.replid
    assert reached < fork
    document = ahead.histories()[second]
    assert (document["parent"], document["parent_offset"]) == (first, fork)
    assert documents_of(ahead.source, "gaps/*/*.json") == []
    assert [row["command"] for row in ahead.orphaned()] == listed(LOST)
    ahead.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
def test_an_old_primary_that_comes_back_is_recorded_on_from_where_it_was_left(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    """The failover is undone: its heir is given up, and the old history goes on."""
    old, heir = quiet(start_server, server_name), quiet(start_server, server_name)
    with Switch(old.port) as between, scene(old, tmp_path) as tape:
        follow(heir, between.port)
        fork = tape.write(old, *SHARED)
        wait_until(lambda: offset_of(heir) == fork)
        between.turn_to(None)
        tape.write(old, *NEW)
        first = tape.taping.replid
        tape.mark(old)
        promote(heir)
        tape.turn_to(heir)
        tape.write(heir, ("SELECT", 3), *LOST)
        tape.mark(heir)
        before = syncs(old)
        tape.turn_to(old)
        tape.write(old, ("SET", "back", 1))
        assert tape.taping.replid == first
        tape.mark(old)
        assert syncs(old) == (before[0], before[1] + 1)
    assert documents_of(tape.source, "gaps/*/*.json") == []
    assert [row["command"] for row in tape.orphaned()] == listed(LOST)
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-8.1"], indirect=True)
def test_a_second_heir_of_the_same_history_forks_from_it_too(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    """The first heir dies before the second ever followed it."""
    old, *heirs = (quiet(start_server, server_name) for _ in range(3))
    with Switch(old.port) as between, scene(old, tmp_path) as tape:
        for heir in heirs:
            follow(heir, between.port)
        fork = tape.write(old, *SHARED)
        for heir in heirs:
            wait_until(lambda heir=heir: offset_of(heir) == fork)  # type: ignore[misc]
        between.turn_to(None)
        tape.write(old, ("SELECT", 3), LOST[0])
        first = tape.taping.replid
        promote(heirs[0])
        tape.turn_to(heirs[0])
        tape.write(heirs[0], ("SELECT", 3), *LOST[1:])
        tape.mark(heirs[0])
        promote(heirs[1])
        tape.turn_to(heirs[1])
        tape.write(heirs[1], *NEW)
        third = tape.taping.replid
        tape.mark(heirs[1])
        assert syncs(heirs[1]) == (0, 1)
    document = tape.histories()[third]
    assert (document["reason"], document["parent"]) == ("failover", first)
    assert document["parent_offset"] == fork
    assert documents_of(tape.source, "gaps/*/*.json") == []
    rows = [row["command"] for row in tape.orphaned()]
    assert sorted(rows) == sorted(listed(LOST))
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
def test_a_server_that_is_promoted_between_info_and_psync_names_the_fork_all_the_same(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    old, heir = quiet(start_server, server_name), quiet(start_server, server_name)
    with scene(old, tmp_path) as tape:
        follow(heir, old.port)
        reached = tape.write(old, *SHARED)
        first = tape.taping.replid
        tape.switch.turn_to(None)
        with PlainClient(old.client()) as plain:
            plain.exchange([("SET", "missed", 1), ("SET", "missed", 2)])
        fork = offset_of(old)
        wait_until(lambda: offset_of(heir) == fork)
        asked: list[bytes] = []

        def promote_when_asked(data: bytes) -> None:
            if b"PSYNC" in data and not asked:
                asked.append(data)
                promote(heir)

        tape.switch.before = promote_when_asked
        tape.turn_to(heir)
        tape.write(heir, *NEW)
        second = tape.taping.replid
        tape.mark(heir)
    assert reached < fork
    document = tape.histories()[second]
    assert (document["parent"], document["parent_offset"]) == (first, fork)
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-8.1"], indirect=True)
def test_a_replica_that_lags_behind_what_is_recorded_is_waited_for(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    old, replica = quiet(start_server, server_name), quiet(start_server, server_name)
    with Switch(old.port) as between, scene(old, tmp_path) as tape:
        follow(replica, between.port)
        wait_until(lambda: offset_of(replica) == offset_of(old))
        between.turn_to(None)
        tape.write(old, *SHARED)
        tape.mark(old)
        tape.switch.turn_to(replica.port)
        wait_until(lambda: "has caught up" in (tape.taping.agent.trouble or ""))
        between.turn_to(old.port)
        tape.taping.server = replica
        wait_until(lambda: tape.taping.agent.trouble is None)
        tape.write(old, *NEW)
        tape.mark(replica)
        assert syncs(replica) == (0, 1)
    assert documents_of(tape.source, "gaps/*/*.json") == []
    tape.check_moments(server_name)


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
def test_a_replica_that_followed_the_heir_late_makes_nothing_orphaned_that_it_has(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    """It knows the old history up to where it stood itself, not up to the fork."""
    old, heir, late = (quiet(start_server, server_name) for _ in range(3))
    with (
        Switch(old.port) as between,
        Switch(old.port) as behind,
        scene(old, tmp_path) as tape,
    ):
        follow(heir, between.port)
        follow(late, behind.port)
        wait_until(lambda: offset_of(late) == offset_of(heir) == offset_of(old))
        behind.turn_to(None)
        fork = tape.write(old, *SHARED)
        wait_until(lambda: offset_of(heir) == fork)
        between.turn_to(None)
        tape.write(old, ("SELECT", 3), *LOST)
        tape.mark(old)
        promote(heir)
        behind.turn_to(heir.port)
        with PlainClient(heir.client()) as plain:
            plain.exchange(NEW)
        wait_until(lambda: offset_of(late) == offset_of(heir))
        assert syncs(heir) == (0, 1)
        tape.turn_to(late)
        tape.mark(late)
    assert [row["command"] for row in tape.orphaned()] == listed(LOST)
    [orphaned] = tape.info()["orphaned"]
    assert orphaned["start_offset"] == fork
    tape.check_moments(server_name)
