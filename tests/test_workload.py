"""The workload is repeatable, does all that it says, and leaves settings alone."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from typing import Final

import pytest

from operations import OPTIONAL_COMMANDS, Operations
from plain_client import PlainClient, as_list
from repertoire import EXTRAS, TABLES
from servers import Server, StartServer
from workload import SUBCOMMANDS, Workload

PATIENCE: Final = 20.0


def work_on(server: Server, seed: int) -> Workload:
    return Workload("127.0.0.1", server.port, seed, server.name, field_ttls="short")


def row(seed: int, commands: frozenset[str]) -> list[object]:
    operations = Operations(seed, commands, now=lambda: 1.7e9)
    return [operations.next() for _ in range(3000)]


@pytest.mark.parametrize("commands", [frozenset[str](), frozenset(OPTIONAL_COMMANDS)])
def test_the_same_seed_gives_the_same_operations(commands: frozenset[str]) -> None:
    assert row(1, commands) == row(1, commands)
    assert row(1, commands) != row(2, commands)


def listed(lines: str) -> set[str]:
    parts = [
        part.split() for line in lines.strip().splitlines() for part in line.split(";")
    ]
    return {" ".join(part[: 2 if part[0] in SUBCOMMANDS else 1]) for part in parts}


def test_every_command_of_the_repertoire_succeeds_before_long(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    with PlainClient(server.client()) as plain:
        present = plain.knows(*OPTIONAL_COMMANDS)
    wanted = {"MULTI", "EXEC", "DISCARD", "SELECT", "FLUSHDB"}
    for lines in TABLES.values():
        wanted |= listed(lines)
    for (command, *_), lines in EXTRAS.items():
        if command in present:
            wanted |= listed(lines)
    if server_name == "redis-8.0":
        wanted.remove("HINCRBYFLOAT")
    with work_on(server, 6) as work:
        deadline = time.monotonic() + PATIENCE
        while not wanted <= work.done.keys():
            assert time.monotonic() < deadline, wanted - work.done.keys()
            work.step(500)
        assert work.errors.total() < work.done.total() / 4


def test_a_workload_refuses_a_server_of_another_release(
    start_server: StartServer,
) -> None:
    server = start_server("redis-7.0")
    with pytest.raises(
        RuntimeError, match=r"this server is redis-7\.0\.\d+, not redis-7"
    ):
        Workload("127.0.0.1", server.port, 1, "redis-7.2")


def test_evictions_leave_the_servers_settings_as_they_were(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, maxmemory_policy="volatile-ttl")
    with work_on(server, 8) as work, PlainClient(server.client()) as plain:
        work.step(300)
        work.evictions()
        assert int(plain.info("stats")["evicted_keys"]) >= 20
        assert plain.ask("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"0"]
        [_, policy] = as_list(plain.ask("CONFIG", "GET", "maxmemory-policy"))
        assert policy == b"volatile-ttl"


def imports(path: Path) -> set[str]:
    """Return the names of the modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(name)):
                found.add(name)
            case ast.Import(names=aliases):
                found |= {alias.name for alias in aliases}
            case _:
                pass
    return found


@pytest.mark.parametrize("name", ["oracle", "workload"])
def test_the_oracle_shares_no_code_with_what_it_judges(name: str) -> None:
    folder = Path(__file__).parent
    waiting, seen = {name}, set[str]()
    while waiting:
        current = waiting.pop()
        seen.add(current)
        path = folder / f"{current}.py"
        waiting |= (imports(path) if path.exists() else set()) - seen
    assert {"plain_client", "redis"} <= seen
    assert not [it for it in seen if it.partition(".")[0] == "kvtape"]
