"""Many transactions are on their way at once, and none overtakes another."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio

from kvtape.cli.runner import run
from kvtape.errors import ServerError
from kvtape.replay.line import Line, open_line
from kvtape.replay.memory import KEY, Position, decode
from kvtape.replay.refusal import TargetError
from kvtape.replay.selection import Selection
from kvtape.replay.sheet import MANY_COMMANDS, Parcel, Sheet
from kvtape.server.client import open_client
from kvtape.server.url import ServerUrl
from kvtape.storage.commands import commands_of, read_batches
from kvtape.tape.span import choose_span
from meanwhile import meanwhile
from plain_client import PlainClient
from recording import Tape, tape_of
from replays import options, play, replay_until
from replicas import wait_until
from servers import Server, StartServer

# Some more than are on their way at once.
COUNT = 80 * MANY_COMMANDS
FRAME = 3000

Commands = Sequence[tuple[str | int, ...]]


def log_of(numbers: Sequence[int]) -> bytes:
    return b"".join(b"%05d." % number for number in numbers)


def taped(folder: Path, server_name: str, bad: dict[int, tuple[str, ...]]) -> Tape:
    """Return a recording in which each command counts, and its place among them."""
    commands: list[tuple[str | int, ...]] = [
        bad.get(number, ("APPEND", "log", f"{number:05d}.")) for number in range(COUNT)
    ]
    tape = tape_of(folder, server_name, commands[:FRAME])
    for start in range(FRAME, COUNT, FRAME):
        tape.commands(*commands[start : start + FRAME])
    return tape


def numbers_up_to(tape: Tape, offset: int) -> list[int]:
    """Return which of the numbers are logged up to an offset, by the recording."""
    slices = choose_span(tape.folder.catalogue()).slices
    return [
        int(command.words[2][:-1])
        for command in commands_of(tape.folder, slices)
        if command.name == b"APPEND" and command.end <= offset
    ]


def url_of(server: Server) -> ServerUrl:
    return ServerUrl("127.0.0.1", server.port)


def limited(server: Server, name: str) -> ServerUrl:
    """Return the server for a user that is not allowed a command."""
    with PlainClient(server.client()) as plain:
        plain.ask("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all")
    forbid(server, name)
    return ServerUrl("127.0.0.1", server.port, "limited", "pw")


def forbid(server: Server, name: str) -> None:
    """Take a command from that user, who goes on."""
    with PlainClient(server.client()) as plain:
        plain.ask("ACL", "SETUSER", "limited", f"-{name}")


UNKNOWN = dict.fromkeys(range(778, COUNT, 1999), ("MODULE.DO", "log"))
WRONG = dict.fromkeys(range(555, COUNT, 2221), ("LPUSH", "log", "1"))


@pytest.mark.parametrize("is_limited", [False, True])
def test_nothing_overtakes_what_is_refused(
    is_limited: bool, server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = taped(tmp_path, server_name, {**WRONG, **UNKNOWN})
    target = start_server(server_name)
    url = limited(target, "eval") if is_limited else url_of(target)
    result = play(tape.repository, target, url=url, stops_on_error=False)
    assert result.errors == {
        "ERR unknown command": len(UNKNOWN),
        "WRONGTYPE": len(WRONG),
    }
    left = [n for n in range(COUNT) if n not in UNKNOWN and n not in WRONG]
    assert target.client().get("log") == log_of(left)
    assert target.client().keys() == [b"log"]


def test_interrupted_with_many_on_their_way_it_goes_on_there(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = taped(tmp_path, server_name, {**WRONG, **UNKNOWN})
    target = start_server(server_name)
    chosen = options(tape.repository, target, stops_on_error=False)
    choices = random.Random(server_name)
    for _ in range(60):
        rest = choices.uniform(0.005, 0.08)
        if run(lambda rest=rest: replay_until(chosen, rest)):  # type: ignore[misc]
            break
    else:
        run(lambda: replay_until(chosen, 60.0))
    left = [n for n in range(COUNT) if n not in UNKNOWN and n not in WRONG]
    assert target.client().get("log") == log_of(left)


@pytest.mark.parametrize("bad", [("MODULE.DO", "log"), ("LPUSH", "log", "1")])
def test_where_it_ends_at_an_error_the_target_is_as_far_as_is_said(
    bad: tuple[str, ...], server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    number = COUNT // 2
    tape = taped(tmp_path, server_name, {number: bad})
    target = start_server(server_name)
    with pytest.raises(TargetError, match=f"answered to {bad[0]}") as raised:
        play(tape.repository, target)
    remembered = target.client().get(KEY)
    assert isinstance(remembered, bytes)
    reached = decode(remembered).offset
    assert f"up to offset {reached} was replayed" in str(raised.value)
    log = target.client().get("log")
    assert log == log_of(numbers_up_to(tape, reached))
    if bad[0] == "MODULE.DO":
        assert len(log) < number * 6
    result = play(tape.repository, target, stops_on_error=False)
    assert result.start_offset == reached
    left = [n for n in range(COUNT) if n != number]
    assert target.client().get("log") == log_of(left)


def parcels(folder: Path, server_name: str, commands: Commands) -> list[Parcel]:
    """Return a parcel for each command."""
    tape = tape_of(folder, server_name, commands)
    slices = choose_span(tape.folder.catalogue()).slices
    (batch,) = read_batches(tape.folder, slices[-1], 0)
    sheet = Sheet(batch, Selection())
    found, at = [], sheet.start
    while at < sheet.end:
        found.append(sheet.parcel(at, sheet.outline.end_of(at), lambda time: time))
        at = found[-1].end
    return [parcel for parcel in found if b"SELECT" not in parcel.data]


def with_memory(parcel: Parcel) -> tuple[Parcel, bytes]:
    return parcel, Position("id", parcel.replid, parcel.end, parcel.time).encode()


async def on_line(url: ServerUrl, use: Callable[[Line], Awaitable[None]]) -> None:
    async with open_client(url) as client:
        await client.call("SELECT", 0)
        line = await open_line(client)
        assert line.is_guarded
        await use(line)


def test_the_guard_holds_whatever_is_refused(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    commands = [("INCR", "n"), ("NO.SUCH", "n"), *(("INCR", "n") for _ in range(5))]
    first, refused, *others = map(with_memory, parcels(tmp_path, server_name, commands))
    target = start_server(server_name)

    async def use(line: Line) -> None:
        await line.send([first])
        assert (await line.answer()).was_done
        await line.send([refused, *others])
        assert not (await line.answer()).was_done
        await line.drop()
        assert target.client().mget("n", KEY) == [b"1", first[1]]
        await line.send(others)
        answers = [await line.answer() for _ in others]
        assert all(answer.was_done for answer in answers)

    run(lambda: on_line(url_of(target), use))
    assert target.client().mget("n", KEY) == [b"6", others[-1][1]]
    assert target.client().ttl(KEY) == -1


def test_a_memory_that_another_changes_ends_it(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    commands = [("INCR", "n") for _ in range(3)]
    first, second, _ = map(with_memory, parcels(tmp_path, server_name, commands))
    target = start_server(server_name)

    async def use(line: Line) -> None:
        await line.send([first])
        # So that it is carried out before the other changes what it wrote.
        await trio.to_thread.run_sync(
            wait_until, lambda: target.client().exists("n") == 1
        )
        target.client().set(KEY, "another")
        await line.send([second])
        assert (await line.answer()).was_done
        assert not (await line.answer()).was_done
        with pytest.raises(TargetError, match="another client changed"):
            await line.drop()

    run(lambda: on_line(url_of(target), use))
    assert target.client().get("n") == b"1"


def test_what_was_carried_out_without_a_guard_is_told(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    """As where another removes the memory in the moment between."""
    refused, second = map(
        with_memory,
        parcels(tmp_path, server_name, [("NO.SUCH", "n"), ("INCR", "n")]),
    )
    target = start_server(server_name)

    async def use(line: Line) -> None:
        await line.send([refused, second])
        assert not (await line.answer()).was_done
        with pytest.raises(TargetError, match="behind one that it refused"):
            await line.drop()

    run(lambda: on_line(url_of(target), use))


def send_without_guards(
    server: Server, sent: list[Parcel], use: Callable[[Line], Awaitable[None]]
) -> None:
    """Send over a line whose guards are forbidden meanwhile, and use it then."""
    url = limited(server, "flushall")

    async def send(line: Line) -> None:
        forbid(server, "eval")
        await line.send(list(map(with_memory, sent)))
        await use(line)

    run(lambda: on_line(url, send))


@pytest.mark.parametrize("refused", [0, 1])
def test_where_a_guard_is_refused_and_one_overtakes_another_it_ends_for_good(
    refused: int, server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    """As where a server is busy until just then; here it is no longer allowed."""
    commands = [("INCR", "n") for _ in range(3)]
    commands[refused] = ("NO.SUCH", "n")
    target = start_server(server_name)

    async def use(line: Line) -> None:
        for number in range(refused):
            assert (await line.answer()).was_done, number
        if refused == 0:
            assert not (await line.answer()).was_done
        goes_on = line.drop if refused == 0 else line.answer
        with pytest.raises(TargetError, match="behind one that it refused"):
            await goes_on()

    send_without_guards(target, parcels(tmp_path, server_name, commands), use)
    assert target.client().keys() == [b"n"]


def test_where_a_guard_is_refused_it_ends(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    increments = parcels(tmp_path, server_name, [("INCR", "n") for _ in range(3)])
    target = start_server(server_name)

    async def use(line: Line) -> None:
        assert (await line.answer()).was_done
        with pytest.raises(TargetError, match=r"not let kvtape guard .*NOPERM"):
            await line.answer()

    send_without_guards(target, increments, use)
    assert target.client().mget("n", KEY) == [b"3", with_memory(increments[-1])[1]]


ROUNDS = 8

# Longer than the server below lets a script run before it answers others with BUSY.
BUSY = """
local begin = redis.call('TIME')
repeat
    local now = redis.call('TIME')
until (now[1] - begin[1]) * 1000000 + now[2] - begin[2] > 50000
"""


# How it ends where a transaction slipped by just as the target woke up.
ANEW = "replay anew"


def replay_while_busy(
    repository: Path, target: Server, gaps: random.Random
) -> list[str]:
    """Replay until it is done or has to begin anew; return how it ended before."""
    client = target.client()

    def be_busy(is_over: threading.Event) -> None:
        while not is_over.wait(gaps.uniform(0, 0.2)):
            client.eval(BUSY, 0)

    told: list[str] = []
    with meanwhile(be_busy):
        while not told or not told[-1].endswith(ANEW):
            try:
                play(repository, target, rounds=ROUNDS)
                break
            except ServerError as error:
                told.append(str(error))
    return told


def test_a_target_that_is_busy_now_and_then_misses_nothing(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = taped(tmp_path, server_name, {})
    target = start_server(server_name)
    target.client().config_set("lua-time-limit", 1)
    gaps = random.Random(server_name)
    all_told: list[str] = []
    while told := replay_while_busy(tape.repository, target, gaps):
        all_told += told
        if not told[-1].endswith(ANEW):
            break
        target.client().flushall()
    assert target.client().get("log") == log_of(range(COUNT)) * ROUNDS
    assert not [one for one in all_told if not re.search("BUSY|busy|INFO", one)]
    assert all_told


@pytest.mark.parametrize("missing", ["multi", "exec"])
def test_a_target_without_transactions_is_refused(
    missing: str, server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    tape = tape_of(tmp_path, server_name, [("INCR", "n")])
    target = start_server(server_name)
    with pytest.raises(TargetError, match=r"allow \+multi and \+exec"):
        play(tape.repository, target, url=limited(target, missing))
    assert target.client().keys() == []
