"""Two servers' stories are put under one source only if somebody says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from kvtape.errors import IdentityError
from kvtape.record.agent import Agent
from kvtape.record.histories.identity import Identity
from kvtape.server.info import ServerInfo
from plain_client import PlainClient
from primaries import Teller
from replicas import wait_until
from servers import Server, StartServer
from tapes import command, documents_of, stream_of
from telling import told, until
from test_agent import RDB, REPLID, START, STREAM, error_of, options_for

OTHER = "b" * 40
HEIR = {
    "master_replid": OTHER,
    "master_replid2": REPLID,
    "second_repl_offset": "101",
}
MORE = STREAM + command("SET", "more", 1)


async def record(folder: Path, teller: Teller, **changes: object) -> int:
    """Record all that a teller has, at an address of its own; return its port."""
    async with told(teller) as port:
        options = options_for(port, folder, until_offset=teller.end, **changes)
        with trio.fail_after(20):
            await Agent(options).run()
    return port


async def test_a_server_that_continues_is_the_same_at_any_address(
    tmp_path: Path,
) -> None:
    await record(tmp_path, Teller(REPLID, START, STREAM, RDB))
    await record(tmp_path, Teller(REPLID, START, MORE, RDB), source=None)
    source = tmp_path / "repo" / "source"
    assert stream_of(source, REPLID) == (START, MORE)
    assert len(documents_of(source, "snapshots/*/*/manifest.json")) == 1


async def test_a_full_resync_of_a_recorded_history_is_no_other_server(
    tmp_path: Path,
) -> None:
    await record(tmp_path, Teller(REPLID, START, STREAM, RDB))
    later = Teller(REPLID, START + len(MORE), STREAM, RDB)
    await record(tmp_path, later)
    [gap] = documents_of(tmp_path / "repo" / "source", "gaps/*/*.json")
    assert gap["end_offset"] == later.start


async def test_a_server_that_went_back_is_recorded_from_where_it_is(
    tmp_path: Path,
) -> None:
    """Restored from an image of its disk, it has its old offset under its replid."""
    await record(tmp_path, Teller(REPLID, START, STREAM, RDB))
    back = Teller(REPLID, START, STREAM[:1023], RDB, snapshot_at=528)
    async with told(back) as port, trio.open_nursery() as nursery:
        agent = Agent(options_for(port, tmp_path))
        nursery.start_soon(agent.run)
        await until(lambda: agent.is_ready and agent.recorder.durable == START + 1023)
        agent.stop()
    again = Teller(REPLID, START, MORE, RDB)
    await record(tmp_path, again, spool=tmp_path / "another")
    assert [psync.offset for psync in again.psyncs] == [START + 1023]
    assert documents_of(tmp_path / "repo" / "source", "gaps/*/*.json") == []


async def test_another_server_at_another_address_is_refused_and_nothing_stored(
    tmp_path: Path,
) -> None:
    first = await record(tmp_path, Teller(REPLID, START, STREAM, RDB))
    source = tmp_path / "repo" / "source"
    before = {path: path.read_bytes() for path in source.rglob("*.*")}
    for name in (None, "source"):
        other = Teller(OTHER, START, MORE, RDB)
        async with told(other) as port:
            error = await error_of(options_for(port, tmp_path, source=name))
        assert isinstance(error, IdentityError)
        assert error.exit_status == 6
        assert f"recorded from 127.0.0.1:{first}, and 127.0.0.1:{port}" in str(error)
        assert "--adopt" in str(error)
        assert "--source NEW" in str(error)
    assert {path: path.read_bytes() for path in source.rglob("*.*")} == before
    assert not (tmp_path / "spool" / "recording" / "rdb.zst").exists()


async def test_what_is_adopted_once_is_known_from_then_on(tmp_path: Path) -> None:
    await record(tmp_path, Teller(REPLID, START, STREAM, RDB))
    adopted = Teller(OTHER, START, MORE, RDB)
    async with told(adopted) as port:
        options = options_for(
            port, tmp_path, adopt=True, source=None, until_offset=adopted.end
        )
        with trio.fail_after(20):
            await Agent(options).run()
        source = tmp_path / "repo" / "source"
        first, second = documents_of(source, "histories/*.json")
        assert (first["replid"], second["replid"]) == (REPLID, OTHER)
        assert second["address"] == f"127.0.0.1:{port}"
        # Restarted, it has yet another history, and needs no word any more.
        adopted.replid, adopted.start = "c" * 40, START + 10_000
        options = options_for(port, tmp_path, until_offset=adopted.end)
        with trio.fail_after(20):
            await Agent(options).run()
    assert len(documents_of(source, "histories/*.json")) == 3
    gaps = documents_of(source, "gaps/*/*.json")
    assert [gap["replid"] for gap in gaps] == [REPLID, OTHER]


@pytest.mark.parametrize(
    ("info", "announced", "is_known"),
    [
        ({}, None, False),
        ({}, REPLID, True),
        ({}, OTHER, False),
        ({"master_replid": REPLID}, None, True),
        ({"master_replid": OTHER}, None, False),
        # Promoted, with a backlog that does not reach back.
        (HEIR, None, True),
        (HEIR, OTHER, True),
        # What it said before is of another history than the one it then announced.
        (HEIR, "c" * 40, False),
    ],
)
def test_a_story_is_known_by_its_history_or_by_the_one_it_forked_from(
    info: dict[str, str], announced: str | None, *, is_known: bool
) -> None:
    def identity(address: str, *, adopt: bool = False) -> Identity:
        return Identity("source", address, {"known:1"}, REPLID.__eq__, adopt)

    said = ServerInfo(info)
    if is_known:
        identity("new:1").check(said, announced)
    else:
        with pytest.raises(IdentityError, match="recorded from known:1, and new:1"):
            identity("new:1").check(said, announced)
    identity("known:1").check(said, announced)
    identity("new:1", adopt=True).check(said, announced)
    linked = identity("new:1")
    linked.confirm()
    linked.check(said, announced)


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-9.1"], indirect=True)
@pytest.mark.parametrize("is_replica_first", [False, True])
def test_a_replica_of_a_recorded_server_and_its_primary_are_no_strangers(
    server_name: str, start_server: StartServer, *, is_replica_first: bool
) -> None:
    """Neither has stored anything yet that the other could be known by."""
    primary, replica = start_server(server_name), start_server(server_name)
    stranger = start_server(server_name)
    with PlainClient(replica.client()) as plain:
        plain.ask("REPLICAOF", "127.0.0.1", primary.port)
        wait_until(lambda: plain.info("replication")["master_link_status"] == "up")
    first, second = primary, replica
    if is_replica_first:
        first, second = replica, primary
    known = {f"127.0.0.1:{first.port}"}
    for server, is_known in ((second, True), (stranger, False)):
        with PlainClient(server.client()) as plain:
            info = ServerInfo(plain.info("replication"))
        address = f"127.0.0.1:{server.port}"
        identity = Identity("source", address, known, lambda _: False)
        if is_known:
            identity.check(info)
            identity.check(info, info.replid)
            with pytest.raises(IdentityError):
                identity.check(info, OTHER)
        else:
            with pytest.raises(IdentityError):
                identity.check(info)


async def test_another_server_that_says_so_is_not_even_asked_for_the_stream(
    start_server: StartServer, tmp_path: Path
) -> None:
    mine, other = start_server("redis-7.0"), start_server("redis-7.0")
    with PlainClient(other.client()) as plain:
        plain.ask("SET", "key", "other")
    options = options_for(mine.port, tmp_path, until_offset=0)
    with trio.fail_after(20):
        await Agent(options).run()
    error = await error_of(options_for(other.port, tmp_path, source=None))
    assert isinstance(error, IdentityError)
    assert stats_of(other) == ("0", "0", "0")


def stats_of(server: Server) -> tuple[str, ...]:
    with PlainClient(server.client()) as plain:
        stats = plain.info("stats")
    names = ("sync_full", "sync_partial_ok", "sync_partial_err")
    return tuple(stats[name] for name in names)
