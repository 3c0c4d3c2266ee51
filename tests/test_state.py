"""A state is exactly what there was, also what has expired since; nothing is left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from kvtape.errors import ServerError, VerificationError
from kvtape.progress import Advance, NoWatch
from kvtape.restore.job import Job
from kvtape.restore.loader import Loader
from kvtape.restore.state import FOLDER, State, load_state
from kvtape.tape.rdb import Key
from kvtape.tape.rdb.canonical import canonical
from leavings import left_in
from recording import IDENTITIES, THEN, rdb, tape_of
from servers import binary

pytestmark = pytest.mark.slow

LONG_GONE = THEN + 5000


def loader_of(name: str) -> Loader:
    program = binary(name)
    assert program is not None
    return Loader(program, IDENTITIES[name], "of the tests")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return the folder that a moment is loaded in; its path is short, for a socket."""
    with tempfile.TemporaryDirectory(prefix="kvtape-") as name:
        folder = Path(name) / f"{FOLDER}of-a-test"
        folder.mkdir()
        yield folder


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def load(job: Job, name: str, folder: Path) -> State:
    return await load_state(job, loader_of(name), folder)


def keys(state: State) -> dict[bytes, Key]:
    return {key.key: key for key in state.keys("reading", NoWatch())}


async def test_what_has_expired_since_is_there_with_its_expiry(
    server_name: str, tmp_path: Path, folder: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            ("SET", "stream", "x", "PXAT", LONG_GONE + 1),
            ("INCR", "snapshot"),
            ("SET", "stays", 1),
        ],
        rdb((0, "snapshot", "10", LONG_GONE), (3, "other", "1", LONG_GONE)),
    )
    state = await load(tape.job(), server_name, folder)
    found = keys(state)
    assert {name: key.expire_ms for name, key in found.items()} == {
        b"snapshot": LONG_GONE,
        b"stream": LONG_GONE + 1,
        b"stays": None,
        b"other": LONG_GONE,
    }
    assert found[b"other"].db == 3
    value = found[b"snapshot"].value
    assert value is not None
    assert canonical(0, value, at=0) == canonical(0, b"\x0211", at=0)
    assert files_in(folder) == [state.file]
    assert left_in(folder.parent) == [str(folder)]


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-9.1"], indirect=True)
@pytest.mark.parametrize("count", [3, 600])
async def test_so_are_fields_whose_time_has_passed(
    server_name: str, count: int, tmp_path: Path, folder: Path
) -> None:
    tape = tape_of(
        tmp_path / "repo",
        server_name,
        [
            *(("HSET", "hash", f"field:{n}", n) for n in range(count)),
            ("HPEXPIREAT", "hash", LONG_GONE, "FIELDS", 1, "field:1"),
        ],
    )
    state = await load(tape.job(), server_name, folder)
    key = keys(state)[b"hash"]
    assert key.value is not None
    before, after = (
        canonical(key.type, key.value, at=at) for at in (LONG_GONE - 1, LONG_GONE)
    )
    assert before != after


async def test_what_a_server_does_not_know_is_an_error_and_leaves_nothing(
    server_name: str, tmp_path: Path, folder: Path
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("JSON.SET", "key", "$", "1")])
    why = r"did not start|answered errors"
    with pytest.raises((ServerError, VerificationError), match=why):
        await load(tape.job(), server_name, folder)
    assert files_in(folder) == []


async def test_a_command_that_fails_is_an_error_and_leaves_nothing(
    server_name: str, tmp_path: Path, folder: Path
) -> None:
    commands = [("SET", "key", "value"), ("RPUSH", "key", "element")]
    tape = tape_of(tmp_path / "repo", server_name, commands)
    with pytest.raises(VerificationError, match=r"answered errors .*1 x WRONGTYPE"):
        await load(tape.job(), server_name, folder)
    assert files_in(folder) == []
    assert left_in(folder.parent) == [str(folder)]
    state = await load_state(tape.job(), loader_of(server_name), folder, force=True)
    assert list(keys(state)) == [b"key"]


async def test_all_that_takes_long_is_shown(tmp_path: Path, folder: Path) -> None:
    slow = tmp_path / "slow-redis-server"
    slowly = "--key-load-delay 200 --loading-process-events-interval-bytes 1024"
    program = loader_of("redis-7.0").program
    slow.write_text(f'#!/bin/sh\nexec {program} "$@" {slowly}\n')
    slow.chmod(0o755)
    shown: dict[str, int] = {}

    class Showing(NoWatch):
        def stage(self, name: str, length: int) -> Advance:
            """Note a stage."""
            shown[name] = length
            return lambda _: None

    keys = ((0, f"key:{number}", "value", None) for number in range(2000))
    tape = tape_of(tmp_path / "repo", "redis-7.0", [("SET", "key", 1)], rdb(*keys))
    job = replace(tape.job(), watch=Showing())
    loader = replace(loader_of("redis-7.0"), program=slow)
    await load_state(job, loader, folder)
    assert list(shown) == ["restoring", "loading"]
    assert shown["loading"] >= shown["restoring"] > 0


async def test_who_does_not_want_it_any_more_does_not_wait(
    tmp_path: Path, folder: Path
) -> None:
    tape = tape_of(tmp_path / "repo", "redis-7.0")
    for _ in range(10):
        tape.commands(("SET", "key", bytes(200_000)))
    scope = trio.CancelScope()

    class Cancelling(NoWatch):
        def stage(self, name: str, length: int) -> Advance:
            """Begin a stage that cancels the work."""
            return lambda _: trio.from_thread.run_sync(scope.cancel)

    with scope:
        job = replace(tape.job(), watch=Cancelling())
        await load(job, "redis-7.0", folder)
    assert scope.cancelled_caught
    assert files_in(folder) == []
