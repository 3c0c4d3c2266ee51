"""A restore can be as if a command had never run, and says what that may change."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import kvtape as api
from kvtape.errors import PointError, UsageError, VerificationError
from kvtape.restore.changes import Changes
from kvtape.restore.job import Job
from kvtape.restore.undo import SHOWN, touched_later
from kvtape.storage.reader import read_stream
from kvtape.tape.aftermath import Aftermath
from kvtape.tape.command_pattern import parse_pattern
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.point import ToLatest, ToOffset
from kvtape.tape.translate import Skips, read_commands
from oracle import fingerprint
from plain_client import PlainClient
from recording import IDENTITIES, REPLID, Tape, rdb, taping
from replicas import wait_until
from servers import Server, StartServer
from tapes import command
from test_serve import follow, serving
from test_ttl import WAYS, Restore
from verbs import kvtape

# Naming commands.


def words(text: str) -> list[bytes]:
    return text.encode().split()


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("FLUSHALL", ["FLUSHALL", "flushall ASYNC"], ["FLUSHDB", "SET FLUSHALL 1"]),
        ("del user:*", ["DEL user:1", "del user:1 b"], ["DEL b user:1", "GET user:1"]),
        ("SET k v", ["SET k v", "SET k v PX 1"], ["SET k", "SET k V", "SET K v"]),
        ("set [ab]? *", ["SET a1 x"], ["SET c1 x", "SET a1"]),
        ("function flush", ["FUNCTION FLUSH", "function Flush"], ["FUNCTION LOAD x"]),
        ("XGROUP DESTROY s*", ["xgroup destroy s g"], ["XGROUP CREATE s g 0"]),
        ("XGROUP", ["XGROUP CREATE s g 0"], []),
        (r"DEL \*", ["DEL *"], ["DEL a"]),
    ],
)  # fmt: skip
def test_a_pattern_means_a_name_and_the_first_words(
    pattern: str, matching: Sequence[str], others: Sequence[str]
) -> None:
    parsed = parse_pattern(pattern)
    assert all(parsed.matches(words(text)) for text in matching)
    assert not any(parsed.matches(words(text)) for text in others)


def test_quotes_keep_a_space_in_a_word() -> None:
    assert parse_pattern("DEL 'a b'").matches([b"DEL", b"a b"])
    assert not parse_pattern("DEL a b").matches([b"DEL", b"a b"])


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "an empty pattern"),
        ("DEL 'a", "a quote is not closed"),
        ("DEL [a", "a bracket is not closed"),
        ("SELECT 3", "SELECT cannot be skipped"),
        ("exec", "EXEC cannot be skipped.*with its MULTI"),
    ],
)
def test_what_is_no_pattern_is_told(pattern: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_pattern(pattern)


# What may mean something else afterwards.


def recorded(text: str, db: int = 0) -> RecordedCommand:
    return RecordedCommand(REPLID, 0, 1, 0, 0, db, None, tuple(words(text)))


@pytest.mark.parametrize(
    ("undone", "touched", "untouched"),
    [
        ("DEL a", ["INCR a", "SET a 1", "COPY a b"], ["INCR b"]),
        ("DEL a", ["FLUSHALL", "SWAPDB 0 1"], []),
        ("DEL a", ["MODULE.SET a"], ["MODULE.SET b", "PING", "PUBLISH a a"]),
        ("DEL a", ["EVAL x 1 a"], ["EVAL x 1 b", "FUNCTION FLUSH"]),
        ("COPY a b", ["INCR b"], ["INCR a"]),
        ("MSET a 1 b 2", ["INCR a", "INCR b"], ["INCR c"]),
        ("MOVE a 3", ["INCR a"], []),
        ("FLUSHALL", ["INCR b", "EVAL x 0", "FLUSHDB", "MODULE.X"], ["SELECT 3"]),
        ("FLUSHDB", ["INCR b", "MODULE.X", "FLUSHALL"], ["FUNCTION FLUSH"]),
        ("SWAPDB 0 1", ["INCR b"], []),
        ("MODULE.X", ["INCR b"], ["PING"]),
        ("EVAL x 1 a", ["INCR b", "FUNCTION LOAD x"], ["PING"]),
        ("FUNCTION FLUSH", ["FUNCTION LOAD x", "FCALL f 1 a"], ["INCR a", "FLUSHALL"]),
    ],
)  # fmt: skip
def test_what_touches_the_same_keys_may_mean_something_else(
    undone: str, touched: Sequence[str], untouched: Sequence[str]
) -> None:
    for text in (*touched, *untouched):
        aftermath = Aftermath()
        aftermath.undo(recorded(undone))
        assert aftermath.touches(recorded(text)) == (text in touched), text


def test_another_database_is_another_key() -> None:
    aftermath = Aftermath()
    aftermath.undo(recorded("FLUSHDB", 1))
    aftermath.undo(recorded("DEL a", 2))
    aftermath.undo(recorded("MOVE b 3", 2))
    touched = [(db, key) for db in range(5) for key in "abc"
               if aftermath.touches(recorded(f"INCR {key}", db))]  # fmt: skip
    assert touched == [
        *((1, "a"), (1, "b"), (1, "c")),
        *((2, "a"), (2, "b")),
        (3, "b"),
    ]


def test_what_comes_of_such_a_key_is_followed() -> None:
    aftermath = Aftermath()
    aftermath.undo(recorded("SADD a 1"))
    assert not aftermath.touches(recorded("SADD d 1"))
    assert aftermath.touches(recorded("SUNIONSTORE d a c"))
    assert not aftermath.touches(recorded("SADD c 1"))
    assert aftermath.touches(recorded("RENAME d e"))
    assert aftermath.touches(recorded("SADD e 1"))
    assert aftermath.touches(recorded("MSET f 1 a 2"))
    assert not aftermath.touches(recorded("INCR f"))


def test_databases_that_are_swapped_take_their_keys_along() -> None:
    aftermath = Aftermath()
    aftermath.undo(recorded("DEL a", 1))
    aftermath.undo(recorded("FLUSHDB", 3))
    assert aftermath.touches(recorded("SWAPDB 1 2"))
    assert aftermath.touches(recorded("INCR a", 2))
    assert not aftermath.touches(recorded("INCR b", 2))
    assert aftermath.touches(recorded("SWAPDB 3 4"))
    assert aftermath.touches(recorded("INCR z", 4))


def test_skips_know_where_they_are() -> None:
    skips = Skips([7, 3])
    assert 3 in skips
    assert 5 not in skips
    assert not skips.are_within(0, 3)
    assert skips.are_within(3, 4)
    assert not skips.are_within(4, 7)
    assert skips.are_within(7, 9)
    assert not skips.are_within(8, 9)


# Finding them in a recording.

COMMANDS: list[tuple[str | int, ...]] = [
    ("SELECT", 0),
    ("SET", "user:1", "a"),
    ("SET", "n", 5),
    ("MULTI",),
    ("SET", "user:2", "b"),
    ("SELECT", 3),
    ("SET", "three", 1),
    ("EXEC",),
    ("INCR", "three"),
    ("SELECT", 0),
    ("FLUSHALL",),
    ("INCR", "n"),
    ("SET", "new", 1),
]


def offset_of(number: int) -> int:
    """Return where a command begins."""
    return 1000 + sum(len(command(*each)) for each in COMMANDS[:number])


@pytest.fixture
def tape(tmp_path: Path) -> Tape:
    tape = Tape(tmp_path / "repo", server=IDENTITIES["redis-7.0"]).snapshot()
    tape.commands(*COMMANDS[:9])
    tape.commands(*COMMANDS[9:])
    return tape


def job_of(tape: Tape, *skipped: int | str | ToOffset, to: int | None = None) -> Job:
    offsets = [
        it if isinstance(it, ToOffset) else ToOffset(it)
        for it in skipped
        if not isinstance(it, str)
    ]
    patterns = [parse_pattern(it) for it in skipped if isinstance(it, str)]
    point = ToLatest() if to is None else ToOffset(to)
    changes = Changes("keep", tuple(offsets), tuple(patterns))
    return api.open_job(str(tape.repository), tape.folder.name, point, None, changes)


def names(commands: Sequence[RecordedCommand]) -> list[str]:
    return [b" ".join(it.words).decode() for it in commands]


def test_what_is_left_out_is_found_by_offset_and_by_pattern(tape: Tape) -> None:
    flush = offset_of(10)
    for skipped in (
        [flush],
        ["flushall"],
        [flush, "FLUSHALL"],
        [ToOffset(flush, REPLID)],
    ):
        undo = job_of(tape, *skipped).undo
        assert undo.starts == (flush,)
        assert (undo.commands, names(undo.first)) == (1, ["FLUSHALL"])
    undo = job_of(tape, "SET user:*", offset_of(12)).undo
    assert undo.starts == (offset_of(1), offset_of(4), offset_of(12))
    assert names(undo.first) == ["SET user:1 a", "SET user:2 b", "SET new 1"]
    assert job_of(tape).undo.commands == 0


def test_with_a_multi_its_transaction_is_left_out_but_for_the_database(
    tape: Tape,
) -> None:
    for skipped in ([offset_of(3)], ["MULTI"], [offset_of(3), "SET three *"]):
        job = job_of(tape, *skipped)
        assert job.undo.starts == (offset_of(3),)
        assert names(job.undo.first) == ["SET user:2 b", "SET three 1"]
        assert job.undo.commands == 2
        left = left_of(job)
        assert left[2:5] == ["SET n 5", "SELECT 3", "INCR three"]
        assert len(left) == len(COMMANDS) - 4


def left_of(job: Job) -> list[str]:
    translator = job.translator("file")
    pieces = read_stream(job.folder, job.plan.slices)
    data = b"".join(map(translator.translate, pieces))
    assert translator.tally.skipped == job.undo.commands
    assert not translator.tally.is_verbatim
    return [b" ".join(found).decode() for found, _, _ in read_commands(data, 0)]


def test_of_a_transaction_one_command_can_be_left_out(tape: Tape) -> None:
    left = left_of(job_of(tape, offset_of(4)))
    assert left[3:7] == ["MULTI", "SELECT 3", "SET three 1", "EXEC"]
    assert len(left) == len(COMMANDS) - 1


@pytest.mark.parametrize(
    ("offset", "why"),
    [
        (offset_of(2) + 1, f"begin at {offset_of(2)} and {offset_of(3)} "),
        (offset_of(4) + 5, f"begin at {offset_of(4)} and {offset_of(5)} "),
        (offset_of(12) + 3, rf"begin at {offset_of(12)} \(kvtape audit"),
        (offset_of(13), "is not before the point"),
        (offset_of(13) + 9, "is not before the point"),
        (999, "is before the snapshot at 1000.*no older one"),
        (offset_of(0), "is SELECT, without which"),
        (offset_of(7), f"is EXEC, .*its transaction begins at {offset_of(3)}"),
    ],
)
def test_an_offset_that_cannot_be_left_out_is_told_with_the_nearest(
    tape: Tape, offset: int, why: str
) -> None:
    with pytest.raises(PointError, match=why):
        job_of(tape, offset)


def test_what_is_behind_the_point_need_not_be_left_out(tape: Tape) -> None:
    with pytest.raises(PointError, match="is not restored anyway"):
        job_of(tape, offset_of(10), to=offset_of(10))


def test_a_pattern_that_matches_nothing_is_a_mistake(tape: Tape) -> None:
    with pytest.raises(
        UsageError, match=r"matches 'FLUSHDB' or 'DEL x\*': kvtape audit"
    ):
        job_of(tape, "FLUSHDB", "FLUSHALL", "DEL x*")
    with pytest.raises(UsageError, match="matches 'FLUSHALL'"):
        job_of(tape, "FLUSHALL", to=offset_of(10))


def test_an_older_snapshot_is_used_for_what_the_newest_has_already(tape: Tape) -> None:
    flush = offset_of(10)
    tape.snapshot(rdb((0, "n", "1", None), (0, "new", "1", None)))
    tape.commands(("INCR", "n"))
    assert job_of(tape).plan.snapshot.name.offset == offset_of(13)
    job = job_of(tape, flush)
    assert job.plan.snapshot.name.offset == 1000
    assert job.plan.stream_bytes == tape.end - 1000
    assert "the restore begins with the one at 1000" in " ".join(job.notes)
    # Which are meant by a pattern is told by those since the newest.
    with pytest.raises(UsageError, match="only --skip-offset reaches"):
        job_of(tape, "FLUSHALL")
    # Not across a hole.
    tape.gap(tape.end + 100, "an outage")
    tape.snapshot()
    tape.commands(("INCR", "n"))
    with pytest.raises(PointError, match="no older one that the stream goes on from"):
        job_of(tape, flush)


def test_across_a_failover_only_what_leads_to_the_point_can_be_left_out(
    tape: Tape,
) -> None:
    fork = tape.end
    old = tape.replid
    tape.fork("f" * 40)
    tape.commands(("SET", "forked", 1), ("FLUSHALL",))
    flush = offset_of(10)
    for skipped in (flush, ToOffset(flush, old[:8]), ToOffset(flush, "ffff")):
        assert job_of(tape, skipped).undo.starts == (flush,)
    assert job_of(tape, ToOffset(fork, "ffff")).undo.starts == (fork,)
    with pytest.raises(PointError, match="no part of what leads to the point"):
        job_of(tape, ToOffset(fork, old[:8]))
    with pytest.raises(PointError, match="no history begins with"):
        job_of(tape, ToOffset(flush, "abcd"))
    both = job_of(tape, "FLUSHALL").undo
    assert len(both.starts) == 2


def touched(job: Job) -> tuple[int, list[str]]:
    found = touched_later(job.folder, job.plan, job.undo)
    return found.commands, names(found.first)


def test_what_came_later_on_the_same_keys_is_found(tape: Tape) -> None:
    assert touched(job_of(tape, "FLUSHALL")) == (2, ["INCR n", "SET new 1"])
    assert touched(job_of(tape, "SET n 5")) == (2, ["FLUSHALL", "INCR n"])
    assert touched(job_of(tape, offset_of(3))) == (2, ["INCR three", "FLUSHALL"])
    assert touched(job_of(tape, "SET new 1")) == (0, [])
    # What is left out itself does nothing.
    assert touched(job_of(tape, "SET n 5", "FLUSHALL")) == (2, ["INCR n", "SET new 1"])
    tape.commands(*(("SET", f"key:{n}", n) for n in range(50)))
    count, first = touched(job_of(tape, "FLUSHALL"))
    assert (count, len(first)) == (52, SHOWN)


# On real servers.


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_what_a_flush_took_is_there_with_what_came_after(
    server_name: str, start_server: StartServer, tmp_path: Path, way: Restore
) -> None:
    repository = tmp_path / "repository"
    with Server(server_name) as source, PlainClient(source.client()) as plain:
        plain.exchange([("SET", "in:snapshot", 1), ("SELECT", 3), ("SET", "three", 1)])
        with taping(source, repository) as recording:
            plain.exchange(
                [
                    ("SELECT", 0),
                    *(("RPUSH", f"old:{n}", n, n) for n in range(50)),
                    ("SET", "user:1", "bad"),
                    ("SET", "user:1", "good"),
                    ("SET", "victim", "value"),
                    ("DEL", "victim"),
                    ("MULTI",),
                    ("SET", "in:transaction", 1),
                    ("DEL", "in:snapshot"),
                    ("EXEC",),
                    ("FLUSHALL",),
                    *(("SET", f"new:{n}", n) for n in range(50)),
                    ("RPUSH", "old:1", "more"),
                ]
            )
            recording.catch_up()
    patterns = map(parse_pattern, ("FLUSHALL", "DEL *", "SET user:1 good"))
    changes = Changes(skip_commands=tuple(patterns))
    job = api.open_job(str(repository), None, ToLatest(), None, changes)
    assert job.undo.commands == 4
    server = way(job, server_name, start_server, tmp_path)
    keys = fingerprint(server.client()).keys
    assert len(keys) == 50 + 50 + 5
    values = {place: key.value for place, key in keys.items()}
    assert values[0, b"old:1"] == (b"1", b"1", b"more")
    assert values[0, b"user:1"] == b"bad"
    assert values[0, b"victim"] == b"value"
    assert values[0, b"in:transaction"] == values[0, b"in:snapshot"] == b"1"
    assert values[3, b"three"] == b"1"
    assert values[0, b"new:7"] == b"7"


def test_errors_that_come_of_it_are_said_to(
    start_server: StartServer, tmp_path: Path
) -> None:
    tape = Tape(tmp_path / "repo", server=IDENTITIES["redis-7.0"]).snapshot()
    tape.commands(("SELECT", 0), ("SET", "k", 1), ("DEL", "k"), ("RPUSH", "k", 1))
    job = job_of(tape, "DEL k")
    with pytest.raises(VerificationError, match=r"1 x WRONGTYPE.*what was skipped"):
        WAYS[1](job, "redis-7.0", start_server, tmp_path)
    target = start_server("redis-7.0")
    with serving(job) as told:
        follow(target, told)
        wait_until(lambda: told.has_served(target))
    [(_, trouble)] = told.complete
    assert "1 x WRONGTYPE): without what was skipped" in str(trouble)
    # A folder is loaded, and the value is what it was before.
    loaded = WAYS[0](job, "redis-7.0", start_server, tmp_path)
    assert loaded.client().get("k") == b"1"


# The command line.


@pytest.fixture
def said(
    tape: Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        outcome = kvtape("restore", "--repo", "repo", *arguments)
        assert outcome.status == 0, outcome.err
        return outcome.out

    return run


def test_a_dry_run_lists_what_came_later(said: Callable[..., str]) -> None:
    flush = str(offset_of(10))
    out = said("--dry-run", "--skip-offset", flush)
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  skipped   1" in lines
    at = lines.index("as if never run: 1 command")
    assert lines[at + 1].split()[0] == flush
    assert lines[at + 1].endswith(" FLUSHALL")
    assert lines[at + 2] == ("later on the same keys, and maybe not the same now: 2")
    assert [line.split()[-2:] for line in lines[at + 3 :]] == [
        *(["INCR", "n"], ["new", "1"])
    ]
    alone = said("--dry-run", "--skip-command", "SET new 1").splitlines()
    assert alone[-1] == "nothing later touched the same keys"


def test_a_long_list_is_cut(said: Callable[..., str], tape: Tape) -> None:
    tape.commands(*(("SET", f"key:{n}", n) for n in range(50)))
    lines = said("--dry-run", "--skip-command", "FLUSHALL").splitlines()
    assert lines[-1].split() == ["…", "and", "32", "more"]


def test_a_script_is_told_the_same(said: Callable[..., str]) -> None:
    document = json.loads(said("--dry-run", "--skip-command", "FLUSHALL", "--json"))
    flush = offset_of(10)
    assert (document["skipped"], document["skipped_offsets"]) == (1, [flush])
    assert document["touched"]["commands"] == 2
    first = document["touched"]["first"]
    assert [it["command"] for it in first] == [["INCR", "n"], ["SET", "new", "1"]]
    assert first[0]["start_offset"] == offset_of(11)
    done = json.loads(said("--data-dir", "a", "--skip-offset", str(flush), "--json"))
    assert (done["skipped"], done["skipped_offsets"]) == (1, [flush])
    assert "touched" not in done
    assert (
        "FLUSHALL" not in Path("a/appendonlydir/appendonly.aof.1.incr.aof").read_text()
    )
    none = json.loads(said("--dry-run", "--json"))
    assert (none["skipped"], none["skipped_offsets"]) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        ("--skip-offset x", 2, "is no offset"),
        ("--skip-offset 1001", 3, "no command begins at offset 1001"),
        ("--skip-command FLUSHDB", 2, "matches 'FLUSHDB'"),
        ("--skip-command EXEC", 2, "cannot be skipped"),
        ("--ttl later", 2, "'later' is not one of"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_restored(
    tape: Tape,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    status: int,
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for where in ("--dry-run", "--data-dir restored"):
        outcome = kvtape(*f"restore --repo repo {where} {arguments}".split())
        assert outcome.status == status
        assert why in " ".join(outcome.err.split())
    assert not Path("restored").exists()
