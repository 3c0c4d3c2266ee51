"""What a server says of itself is understood, and what it does not say is unknown."""

from __future__ import annotations

import pytest
import trio

from kvtape.server.client import open_client
from kvtape.server.info import (
    ServerInfo,
    ask,
    ask_hello,
    ask_info,
    ask_setting,
)
from kvtape.server.url import ServerUrl
from kvtape.tape.documents import Server as Identity
from plain_client import PlainClient
from recording import IDENTITIES
from servers import Server, StartServer

REPLID, OLD = "a" * 40, "b" * 40


def asked(
    server: Server, password: str | None = None, user: str | None = None
) -> ServerInfo:
    async def main() -> ServerInfo:
        url = ServerUrl("127.0.0.1", server.port, user, password)
        async with open_client(url) as client:
            return await ask(client)

    return trio.run(main)


def test_a_server_is_known_by_what_it_says(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, databases="20")
    with PlainClient(server.client()) as plain:
        plain.exchange([("SET", "a", 1), ("SELECT", 9), ("MSET", "b", 1, "c", 1)])
        plain.exchange([("LPUSH", "b", 1), ("LPUSH", "b", 1), ("NOSUCH",)])
        run_id = plain.info("server")["run_id"]
    info = asked(server)
    who = IDENTITIES[server_name]
    assert info.server.family == who.family
    assert who.version is not None
    assert info.server.version is not None
    assert info.server.version.split(".")[:2] == who.version.split(".")[:2]
    assert info.server.run_id == run_id
    assert info.server.role == "primary"
    assert info.server.databases == 20
    assert info.keys == 3
    assert info.errors == {"WRONGTYPE": 2, "ERR": 1}
    assert not info.is_clustered
    assert not info.needs_replicas


def test_a_replica_and_a_cluster_node_are_told(
    server_name: str, start_server: StartServer
) -> None:
    replica = start_server(server_name, replicaof="127.0.0.1 1")
    assert asked(replica).server.role == "replica"
    node = start_server(server_name, cluster_enabled="yes", min_replicas_to_write="1")
    info = asked(node)
    assert info.is_clustered
    assert info.needs_replicas


def test_who_may_not_ask_knows_nothing_and_still_goes_on(
    start_server: StartServer,
) -> None:
    server = start_server("redis-7.0")
    with PlainClient(server.client()) as plain:
        plain.ask("ACL", "SETUSER", "me", "on", ">secret", "-@all", "+psync")
    info = asked(server, "secret", "me")
    assert info == ServerInfo({})
    assert info.server == Identity()
    assert (info.keys, info.errors, info.is_clustered) == (0, {}, False)
    assert not info.can_continue(REPLID, 0)


def test_asking_info_alone_leaves_no_error_behind(start_server: StartServer) -> None:
    # Where CONFIG is taken away, asking for a setting is an error that is counted.
    server = start_server("redis-7.0", rename_command="CONFIG ''")

    async def main() -> None:
        async with open_client(ServerUrl("127.0.0.1", server.port)) as client:
            assert await ask_setting(client, "databases") is None
            before = await ask_info(client)
            assert before.errors == {"ERR": 1}
            assert (await ask_info(client)).errors == before.errors
            assert (await ask(client)).server.databases is None

    trio.run(main)


BACKLOG = {
    "master_replid": REPLID,
    "master_replid2": OLD,
    "second_repl_offset": "501",
    "repl_backlog_active": "1",
    "repl_backlog_first_byte_offset": "301",
    "repl_backlog_histlen": "700",
}


@pytest.mark.parametrize(
    ("replid", "offset", "can"),
    [
        (REPLID, 300, True),
        (REPLID, 1000, True),
        (REPLID, 299, False),
        (REPLID, 1001, False),
        (OLD, 300, True),
        (OLD, 500, True),
        (OLD, 501, False),
        ("c" * 40, 500, False),
    ],
)
def test_what_a_primary_would_continue_is_foreseen(
    replid: str, offset: int, *, can: bool
) -> None:
    assert ServerInfo(BACKLOG).can_continue(replid, offset) == can


@pytest.mark.parametrize("missing", BACKLOG)
def test_where_anything_is_unknown_nothing_is_promised(missing: str) -> None:
    fields = {name: value for name, value in BACKLOG.items() if name != missing}
    if missing not in ("master_replid2", "second_repl_offset"):
        assert not ServerInfo(fields).can_continue(REPLID, 500)
    elif missing == "master_replid2":
        assert not ServerInfo(fields).can_continue(OLD, 500)


def test_numbers_are_numbers() -> None:
    info = ServerInfo({"a": "12", "b": "-1", "c": "x", "d": ""})
    assert [info.number(name) for name in "abcde"] == [12, -1, None, None, None]


def test_valkey_is_not_taken_for_the_redis_it_is_compatible_with() -> None:
    fields = {"redis_version": "7.2.4", "valkey_version": "9.0.1"}
    assert ServerInfo(fields).server == Identity("valkey", "9.0.1")


def test_everybody_may_ask_what_a_server_is(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with PlainClient(server.client()) as plain:
        plain.ask("ACL", "SETUSER", "me", "on", ">secret", "-@all", "+psync")
        version = asked(server).server.version

    async def main() -> ServerInfo:
        url = ServerUrl("127.0.0.1", server.port, "me", "secret")
        async with open_client(url) as client:
            return await ask_hello(client)

    info = trio.run(main)
    family = IDENTITIES[server_name].family
    assert info.server == Identity(family, version, role="primary")
    assert info.fields["cluster_enabled"] == "0"
    server.client().replicaof("127.0.0.1", "1")
    assert trio.run(main).server.role == "replica"


@pytest.mark.parametrize(
    ("offset", "size", "left"),
    [(99, 1000, None), (100, 1000, 500), (600, 1000, 1000), (100, 500, 0)],
)
def test_how_much_may_be_written_before_an_offset_is_lost(
    offset: int, size: int, left: int | None
) -> None:
    fields = {
        "repl_backlog_first_byte_offset": "101",
        "repl_backlog_histlen": "500",
        "repl_backlog_size": str(size),
    }
    assert ServerInfo(fields).headroom(offset) == left
    for missing in fields:
        others = {name: value for name, value in fields.items() if name != missing}
        assert ServerInfo(others).headroom(offset) is None


def test_replicas_are_known_by_their_ports() -> None:
    shown = {
        "slave0": "ip=10.0.0.1,port=6379,state=online,offset=1,lag=0",
        "slave1": "ip=10.0.0.2,port=70000,state=online,offset=0,lag=1,type=replica",
        "slave_read_only": "1",
        "slave_priority": "port=7",
    }
    assert ServerInfo(shown).replica_ports == [6379, 70000]
    assert ServerInfo({}).replica_ports == []


def test_the_fork_is_the_last_byte_that_both_histories_share() -> None:
    fields = {
        "master_replid": REPLID,
        "master_replid2": OLD,
        "second_repl_offset": "101",
    }
    assert ServerInfo(fields).fork == (OLD, 100)
    assert ServerInfo(fields).replid == REPLID
    # Two ways to say that there is none.
    for second in ("-1", "0", "x"):
        assert ServerInfo({**fields, "second_repl_offset": second}).fork is None
    assert ServerInfo({}).fork is None
    assert ServerInfo({}).replid is None
