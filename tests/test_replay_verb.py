"""kvtape replay, as it is called: options, output, exit statuses, signals."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

import verbs
from kvtape.replay.line import Answer
from kvtape.replay.memory import KEY, Position
from kvtape.replay.options import ReplayOptions
from kvtape.replay.player import Player
from kvtape.replay.progress import Progress
from kvtape.replay.selection import Selection
from kvtape.replay.sheet import Parcel, Sheet
from kvtape.server.url import ServerUrl
from kvtape.storage.commands import read_batches
from kvtape.tape.catalogue import Slice
from recording import THEN, Tape, tape_of
from replicas import wait_until
from servers import StartServer
from tapes import command
from verbs import kvtape

INTO = ("--into", "redis://127.0.0.1:1")

pytestmark = pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--speed", "fast"), "is no speed"),
        (("--speed", "0"), "is no speed"),
        (("--speed", "inf"), "is no speed"),
        (("--delay", "1h"), "--delay goes with --follow"),
        (("--delay", "1h", "--follow", "--speed", "1"), "only one of --delay"),
        (("--follow", "--to-latest"), "has no end"),
        (("--follow", "--loop", "2"), "has no end"),
        (("--announce", "a:1"), "--announce goes with"),
        (("--announce", "1", "--with-snapshot"), "needs both"),
        (("--rename-prefix", "a"), "names no two"),
        (("--map-db", "a=b"), "names no two databases"),
        (("--map-db", "5"), "names no two databases"),
        (("--map-db", "0=1", "--map-db", "0=2"), "can be mapped once"),
        (("--command", "GET"), "no server streams"),
        (("--key", "[a"), "is no pattern"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], words: str, tmp_path: Path, server_name: str
) -> None:
    tape_of(tmp_path / "repo", server_name)
    outcome = kvtape("replay", "--repo", tmp_path / "repo", *INTO, *arguments)
    assert outcome.status == 2
    assert words in outcome.err


def test_it_says_what_it_did(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("SET", "k", 1), ("LPUSH", "k", 1)])
    target = start_server(server_name)
    line = ["replay", "--repo", tape.repository, "--speed", "max", "--into"]
    line += [f"redis://127.0.0.1:{target.port}", "--on-error", "continue"]
    outcome = kvtape(*line)
    assert outcome.status == 0
    assert f"replayed up to offset {tape.end}" in outcome.out
    assert "answered  1 x WRONGTYPE" in outcome.out
    assert "the target answered to LPUSH k at offset" in outcome.err
    outcome = kvtape(*line, "--force", "--json")
    document = outcome.document()
    assert document.keys() == {
        *("replid", "start_offset", "offset", "time", "commands", "stream_bytes"),
        *("errors", "left_out"),
    }
    assert (document["start_offset"], document["offset"]) == (1000, tape.end)
    assert (document["commands"], document["errors"]) == (3, {"WRONGTYPE": 1})


def test_each_failure_has_its_status(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("SET", "k", 1), ("LPUSH", "k", 1)])
    target = start_server(server_name, requirepass="secret")
    line = ("replay", "--repo", tape.repository, "--speed", "max", "--into")
    right = f"redis://:secret@127.0.0.1:{target.port}"
    wrong = f"redis://:wrong@127.0.0.1:{target.port}"
    gone = "redis://127.0.0.1:1"
    statuses = [
        kvtape(*line, right, "--from-offset", 5).status,
        kvtape(*line, wrong).status,
        kvtape(*line, gone).status,
        kvtape(*line, right).status,
        # It stopped behind the error, and goes on there.
        kvtape(*line, right).status,
        kvtape(*line, right).status,
    ]
    assert statuses == [3, 8, 8, 8, 0, 9]
    assert "secret" not in kvtape(*line, right).err


@pytest.mark.slow
def test_interrupted_it_says_where_and_goes_on_there(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    commands = [("INCR", "n") for _ in range(3)]
    tape = tape_of(tmp_path / "repo", server_name, commands)
    target = start_server(server_name)
    client = target.client()
    line = ("replay", "--repo", tape.repository, "--into")
    url = f"redis://127.0.0.1:{target.port}"
    with verbs.program(*line, url, "--speed", "0.01") as program:
        wait_until(lambda: client.exists(KEY) == 1)
        program.send_signal(signal.SIGINT)
        outcome = verbs.ended(program)
    assert outcome.status == 130
    assert "the same command goes on behind it" in outcome.err
    assert kvtape(*line, url, "--speed", "max").status == 0
    assert client.get("n") == b"3"


@pytest.mark.slow
def test_a_target_that_goes_away_ends_it(
    tmp_path: Path, server_name: str, start_server: StartServer
) -> None:
    tape = tape_of(tmp_path / "repo", server_name, [("INCR", "n") for _ in range(3)])
    target = start_server(server_name)
    client = target.client()
    url = f"redis://127.0.0.1:{target.port}"
    line = ("replay", "--repo", tape.repository, "--into", url, "--speed", "0.5")
    with verbs.program(*line) as program:
        wait_until(lambda: client.exists(KEY) == 1)
        target.kill()
        outcome = verbs.ended(program)
    assert outcome.status == 8
    assert "the same command goes on behind what the target has" in outcome.err


# The pace, with a clock of the test's own.


class NotingLine:
    """Takes parcels, and notes when; it stands where a Line does."""

    def __init__(self) -> None:
        self.carried_out: list[tuple[float, bytes]] = []
        self.is_guarded = True
        self.waiting = 0

    def has(self, _db: int) -> bool:
        """Whether there is such a database."""
        return True

    async def send(self, transactions: Sequence[tuple[Parcel, bytes]]) -> None:
        """Take parcels, and carry them out."""
        for parcel, memory in transactions:
            assert json.loads(memory)["offset"] == parcel.end
            self.carried_out.append((trio.current_time(), parcel.data))
        self.waiting += len(transactions)

    async def answer(self) -> Answer:
        """Say that all went well."""
        self.waiting -= 1
        return Answer(was_done=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"speed": 1.0}, [0.0, 5.0, 3600.0]),
        ({"speed": 10.0}, [0.0, 0.5, 360.0]),
        ({"speed": None}, [0.0]),
        ({"delay": 60.0}, [60.0, 65.0, 3660.0]),
    ],
)
async def test_commands_come_when_they_are_due(
    changes: dict[str, float | None],
    expected: list[float],
    tmp_path: Path,
    server_name: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert autojump_clock.autojump_threshold == 0
    tape = Tape(tmp_path, db=0)
    times = [THEN, THEN + 5000, THEN + 3_600_000]
    name = tape.segment([(time, command("INCR", "n")) for time in times])
    slice_ = Slice(name, name.start, name.end)
    line = NotingLine()
    begun = trio.current_time()
    player = Player(
        line,  # type: ignore[arg-type]
        Position("id", tape.replid, name.start, THEN),
        ReplayOptions("", ServerUrl("", 1), **{"follow": True, **changes}),  # type: ignore[arg-type]
        Progress(),
        lambda: THEN + (trio.current_time() - begun) * 1000,
    )
    for batch in read_batches(tape.folder, slice_):
        await player.play(Sheet(batch, Selection()))
    await player.finish()
    took = [round(at - begun, 3) for at, _ in line.carried_out]
    assert took == expected
    assert b"".join(data for _, data in line.carried_out) == 3 * command("INCR", "n")
    assert player.position.offset == name.end
