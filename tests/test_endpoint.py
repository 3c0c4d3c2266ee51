"""Whoever comes to the announced port learns that there is nothing to promote.

And nothing else, whatever is sent there.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import hiredis
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from kvtape.errors import ProtocolError, UsageError
from kvtape.record.linking import endpoint as endpoint_module
from kvtape.record.linking.endpoint import (
    IDLE_TIMEOUT,
    MOST_CONNECTIONS,
    Endpoint,
    Posture,
    Standing,
    open_endpoint,
)
from kvtape.replication.primary import first_command
from servers import PORTS
from tapes import command

STANDING = Standing("10.0.0.1", 6379, is_up=True, offset=1234)
RUN_ID = "f" * 40


def posture(standing: Standing = STANDING) -> Posture:
    return Posture(lambda: standing, RUN_ID)


def reply_to(posture: Posture, *words: str) -> object:
    """Return the one reply to a command."""
    reader = hiredis.Reader()
    reader.feed(posture.answer([word.encode() for word in words]))
    reply = reader.gets()
    assert reader.gets() is False
    return reply


def facts_of(posture: Posture) -> dict[str, str]:
    reply = reply_to(posture, "INFO")
    assert isinstance(reply, bytes)
    lines = reply.decode().splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


# What is answered.


def test_it_is_a_replica_that_is_not_to_be_promoted_nor_listed() -> None:
    facts = facts_of(posture())
    assert facts["role"] == "slave"
    assert facts["slave_priority"] == "0"
    assert facts["replica_announced"] == "0"
    assert facts["run_id"] == RUN_ID
    assert (facts["master_host"], facts["master_port"]) == ("10.0.0.1", "6379")
    assert facts["master_link_status"] == "up"
    assert facts["slave_repl_offset"] == "1234"
    down = posture(Standing("10.0.0.1", 6379, is_up=False, offset=0))
    assert facts_of(down)["master_link_status"] == "down"
    role = reply_to(posture(), "ROLE")
    assert role == [b"slave", b"10.0.0.1", 6379, b"connected", 1234]


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("PING", b"PONG"),
        ("ping", b"PONG"),
        ("AUTH user whatever", b"OK"),
        ("SELECT 0", b"OK"),
        ("REPLCONF listening-port 6379", b"OK"),
        ("CLIENT SETNAME sentinel-cmd", b"OK"),
        ("CLIENT KILL TYPE normal", b"OK"),
        ("CONFIG REWRITE", b"OK"),
        ("PUBLISH __sentinel__:hello x", 0),
        ("SUBSCRIBE __sentinel__:hello", [b"subscribe", b"__sentinel__:hello", 1]),
        ("HELLO", [b"server", b"kvtape", b"proto", b"2", b"role", b"replica"]),
    ],
)
def test_what_sentinel_and_clients_say_first_is_answered(
    said: str, reply: object
) -> None:
    assert reply_to(posture(), *said.split()) == reply


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (f"PSYNC {'a' * 40} 1", "no server to fail over to"),
        (f"PSYNC {'a' * 40} 1 FAILOVER", "no server to fail over to"),
        ("SYNC", "no server to fail over to"),
        ("HELLO 3", "NOPROTO"),
        ("SET key value", "no such command"),
        ("MULTI", "no such command"),
        ("CONFIG SET save x", "no such command"),
        ("CONFIG", "no such command"),
        ("SUBSCRIBE", "no such command"),
        ("SLAVEOF NO ONE", "follows whom it was started for"),
        ("SLAVEOF 10.0.0.2", "follows whom it was started for"),
        ("SLAVEOF 10.0.0.2 99999", "follows whom it was started for"),
        ("SLAVEOF 10.0.0.2\r\nrole:master 1", "follows whom it was started for"),
    ],
)
def test_everything_else_is_an_error(said: str, error: str) -> None:
    words = said.split(" ")
    reply = reply_to(posture(), *words)
    assert isinstance(reply, hiredis.ReplyError)
    assert error in str(reply)


def test_whom_to_follow_is_told_back_to_who_said_it_and_to_nobody_else() -> None:
    told, other = posture(), posture()
    assert reply_to(told, "SLAVEOF", "10.0.0.2", "6380") == b"OK"
    facts = facts_of(told)
    assert (facts["master_host"], facts["master_port"]) == ("10.0.0.2", "6380")
    assert facts_of(other)["master_host"] == "10.0.0.1"


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_any_command_has_a_reply_that_is_whole(words: list[bytes]) -> None:
    reader = hiredis.Reader()
    reader.feed(posture().answer(words))
    assert reader.gets() is not False


@given(st.binary(max_size=200))
def test_garbage_is_no_command_or_ends_the_connection(data: bytes) -> None:
    try:
        found = first_command(data)
    except ProtocolError:
        return
    assert found is None or found[1] <= len(data)


# Connections.


@asynccontextmanager
async def running() -> AsyncIterator[Endpoint]:
    endpoint = await open_endpoint("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endpoint.run, lambda: STANDING)
        yield endpoint
        nursery.cancel_scope.cancel()
    endpoint.close()


async def connected(endpoint: Endpoint) -> trio.SocketStream:
    port = endpoint.listeners[0].socket.getsockname()[1]
    return await trio.open_tcp_stream("127.0.0.1", port)


async def hung_up(stream: trio.SocketStream) -> None:
    """Return when the other end has hung up; what was not read makes it a reset."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


async def test_commands_are_answered_one_after_another_however_they_come() -> None:
    async with running() as endpoint, await connected(endpoint) as stream:
        said = command("PING") + command("SELECT", 0) + command("PING")
        for number in range(len(said)):
            await stream.send_all(said[number : number + 1])
        await stream.send_all(said)
        heard = b""
        while len(heard) < 2 * len(b"+PONG\r\n+OK\r\n+PONG\r\n"):
            heard += bytes(await stream.receive_some())
    assert heard == b"+PONG\r\n+OK\r\n+PONG\r\n" * 2


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"*1000000000\r\n",
        b"*2\r\n$1000000000\r\n",
        b"*2\r\n$3\r\nGET\r\n$30000\r\n" + b"x" * 20_000,
        b"*-1\r\n",
        b"*1\r\n*1\r\n",
    ],
)
async def test_who_says_what_is_no_command_is_hung_up_on_and_others_go_on(
    said: bytes,
) -> None:
    async with (
        running() as endpoint,
        await connected(endpoint) as good,
        await connected(endpoint) as bad,
    ):
        await bad.send_all(said)
        await hung_up(bad)
        await good.send_all(command("PING"))
        assert await good.receive_some() == b"+PONG\r\n"


async def test_who_hangs_up_in_the_middle_is_forgotten() -> None:
    async with running() as endpoint:
        for said in (b"", b"*1\r\n$4\r\nPI", command("INFO") * 100):
            async with await connected(endpoint) as stream:
                await stream.send_all(said)
                stream.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + b"\0" * 7
                )
        async with await connected(endpoint) as stream:
            await stream.send_all(command("PING"))
            assert await stream.receive_some() == b"+PONG\r\n"


async def test_who_says_nothing_or_reads_nothing_is_hung_up_on(
    mock_clock: MockClock,
) -> None:
    async def say_all(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(command("INFO") * 1000)

    async with (
        running() as endpoint,
        await connected(endpoint) as silent,
        await connected(endpoint) as deaf,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(say_all, deaf)
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(IDLE_TIMEOUT)
        await hung_up(silent)
        await hung_up(deaf)


async def test_there_are_no_more_connections_than_it_takes() -> None:
    async with running() as endpoint, trio.open_nursery():
        streams = [await connected(endpoint) for _ in range(MOST_CONNECTIONS)]
        for stream in streams:
            await stream.send_all(command("PING"))
            assert await stream.receive_some() == b"+PONG\r\n"
        async with await connected(endpoint) as one_more:
            assert await one_more.receive_some() == b""
        await streams[0].aclose()
        await wait_all_tasks_blocked(0.01)
        async with await connected(endpoint) as instead:
            await instead.send_all(command("PING"))
            assert await instead.receive_some() == b"+PONG\r\n"
        for stream in streams:
            await stream.aclose()


# Listening.


async def test_a_port_that_is_taken_is_a_mistake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}"):
            await open_endpoint("127.0.0.1", port)
        # From TEST-NET-3, which is nobody's.
        with pytest.raises(UsageError, match=f"cannot listen on port {port}"):
            await open_endpoint("203.0.113.9", port)


async def test_a_host_that_nobody_knows_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="is no host"):
        await open_endpoint("host.invalid", PORTS[0])


async def test_at_the_address_of_another_machine_it_listens_everywhere_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, endpoint_module.__name__):
        endpoint = await open_endpoint("203.0.113.9", 0)
    assert endpoint.announced.host == "203.0.113.9"
    assert "no address of this machine" in caplog.text
    endpoint.close()


async def test_a_name_is_announced_by_its_address() -> None:
    endpoint = await open_endpoint("localhost", 0)
    assert endpoint.announced.host in ("127.0.0.1", "::1")
    assert len(endpoint.run_id) == 40
    endpoint.close()
