"""A scratch server is up while it is needed, says why if it is not, and is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from kvtape.errors import ServerError
from kvtape.progress import Advance, NoWatch
from kvtape.server.client import open_client
from kvtape.server.contents import read_contents
from kvtape.server.info import ask_info
from kvtape.server.scratch import (
    embedded_program,
    find_program,
    identify,
    private_server,
    scratch_server,
)
from kvtape.tape.documents import Server as Identity
from recording import IDENTITIES, rdb
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


async def test_one_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    with pytest.raises(ServerError, match=r"cannot run .*text: Permission denied"):
        async with private_server(text, tmp_path):
            pass


async def test_a_server_that_must_stop_in_order_does(tmp_path: Path) -> None:
    async with scratch_server(embedded(), tmp_path) as url, open_client(url) as client:
        await client.call("CONFIG", "SET", "save", "3600 1")
        await client.call("SET", "key", "value")
    assert (tmp_path / "dump.rdb").exists()


async def test_a_private_one_is_reached_by_its_socket_only(
    server_name: str, tmp_path: Path
) -> None:
    program = binary(server_name)
    assert program is not None
    async with (
        private_server(program, tmp_path) as url,
        open_client(url) as client,
    ):
        assert (await ask_info(client)).number("tcp_port") == 0
        assert url.address == str(tmp_path / "s")
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
        pid = (await ask_info(client)).number("process_id")
    assert pid is not None
    assert not await trio.Path(f"/proc/{pid}").exists()


class Stages(NoWatch):
    """Notes what each stage is long, and how far it came."""

    def __init__(self) -> None:
        self.noted: dict[str, list[int]] = {}

    def stage(self, name: str, length: int) -> Advance:
        """Note a stage."""
        noted = self.noted[name] = [length]
        return noted.append


# 6.2 answers only after each 2 MiB that it has loaded.
@pytest.mark.parametrize(
    "server_name",
    ["redis-7.0", "redis-8.0", "valkey-8.0", "valkey-8.1", "valkey-9.1"],
    indirect=True,
)
async def test_it_is_shown_how_much_of_a_long_load_is_done(
    server_name: str, tmp_path: Path
) -> None:
    program = binary(server_name)
    assert program is not None
    content = rdb(*((0, f"key:{number}", "value", None) for number in range(2000)))
    (tmp_path / "dump.rdb").write_bytes(content)
    slowly = ("--key-load-delay", "200")
    often = ("--loading-process-events-interval-bytes", "1024")
    stages = Stages()
    async with private_server(program, tmp_path, [*slowly, *often], stages):
        pass
    length, *steps = stages.noted["loading"]
    assert length == sum(steps) == len(content)
    assert len(steps) > 2


async def test_a_folder_that_is_too_deep_for_a_socket_is_told(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(ServerError, match="too long for a socket: set TMPDIR"):
        async with private_server(embedded(), deep):
            pass


def test_a_program_says_which_server_it_is(server_name: str) -> None:
    program = binary(server_name)
    assert program is not None
    assert identify(program) == IDENTITIES[server_name]


def test_a_program_that_is_no_server_is_none(tmp_path: Path) -> None:
    assert identify(Path("/bin/true")) == Identity()
    text = tmp_path / "text"
    text.write_text("no program")
    with pytest.raises(ServerError, match=r"cannot run .*text: Permission denied"):
        identify(text)


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
