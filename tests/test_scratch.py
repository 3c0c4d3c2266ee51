"""A scratch server is up while it is needed, says why if it is not, and is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtape.errors import ServerError
from kvtape.server.client import open_client
from kvtape.server.contents import read_contents
from kvtape.server.scratch import embedded_program, find_program, scratch_server
from servers import binary

pytestmark = pytest.mark.slow


def embedded() -> Path:
    program = embedded_program()
    assert program is not None, "the development dependencies have the embedded server"
    return program


async def test_it_is_up_inside_and_gone_after(tmp_path: Path) -> None:
    async with scratch_server(embedded(), tmp_path) as url, open_client(url) as client:
        assert await client.call("PING") == b"PONG"
    with pytest.raises(ServerError, match="cannot connect"):
        async with open_client(url):
            pass


async def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"did not start.*appendfsyncc"):
        async with scratch_server(embedded(), tmp_path, ["--appendfsyncc", "no"]):
            pass


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ServerError, match="no program no-such-server"):
        find_program("no-such-server")


def test_the_embedded_server_is_the_first_choice() -> None:
    assert find_program() == embedded()


@pytest.mark.parametrize("server_name", ["redis-7.0"], indirect=True)
def test_a_named_program_is_taken(server_name: str) -> None:
    program = binary(server_name)
    assert program is not None
    assert find_program(str(program)) == program


async def test_contents_are_every_key_with_its_type_value_and_expiry(
    tmp_path: Path,
) -> None:
    async with scratch_server(embedded(), tmp_path) as url, open_client(url) as client:
        await client.call("SET", "string", b"\x00\xff", "PXAT", 4102444800000)
        await client.call("RPUSH", "list", "b", "a")
        await client.call("SADD", "set", "b", "a")
        await client.call("HSET", "hash", "field", "value")
        await client.call("SELECT", 3)
        await client.call("ZADD", "zset", "1.5", "member")
        await client.call("XADD", "stream", "1-1", "field", "value")
        contents = await read_contents(client)
    assert {key: (each.type, each.value) for key, each in contents.items()} == {
        (0, b"string"): (b"string", b"\x00\xff"),
        (0, b"list"): (b"list", [b"b", b"a"]),
        (0, b"set"): (b"set", [b"a", b"b"]),
        (0, b"hash"): (b"hash", {b"field": b"value"}),
        (3, b"zset"): (b"zset", [b"member", b"1.5"]),
        (3, b"stream"): (b"stream", [[b"1-1", [b"field", b"value"]]]),
    }
    assert contents[0, b"string"].expires == 4102444800000
    assert contents[0, b"list"].expires == -1
