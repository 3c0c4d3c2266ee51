"""The writes that failovers lost are listed: for people at 80 columns, and as JSON."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

from kvtape.tape.point import format_time
from recording import REPLID, THEN, Tape
from tapes import command
from verbs import Outcome, environment, kvtape

HEIR = "f" * 40


def audit(repository: Path, *arguments: str) -> Outcome:
    return kvtape("audit", "--orphaned", "--repo", repository, *arguments)


def forked(folder: Path, *lost: tuple[str | bytes | int, ...]) -> Tape:
    """Return a tape whose heir did not have these commands."""
    tape = Tape(folder).snapshot()
    tape.commands(("SELECT", 2), ("SET", "shared", 1))
    end, time = tape.end, tape.time
    tape.commands(*lost)
    tape.end, tape.time = end, time
    tape.fork(HEIR)
    tape.time += 1_000_000
    tape.commands(("SET", "new", 1))
    return tape


def test_each_lost_write_is_a_line_of_json(tmp_path: Path) -> None:
    lost = [
        ("PING",),
        ("SET", "key", b"\0\xff"),
        ("MULTI",),
        ("SELECT", 5),
        ("INCR", "n"),
        ("EXEC",),
        ("PUBLISH", "channel", "message"),
        ("REPLCONF", "GETACK", "*"),
    ]
    tape = forked(tmp_path, *lost)
    outcome = audit(tmp_path, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    first, second = (json.loads(line) for line in outcome.out.splitlines())
    fork = tape.end - len(command("SET", "new", 1))
    start = fork + len(command("PING"))
    encoded = base64.b64encode(b"\0\xff").decode()
    assert first == {
        "replid": REPLID,
        "start_offset": start,
        "end_offset": start + len(command(*lost[1])),
        "time": format_time(THEN + 4000),
        "db": 2,
        "command": ["SET", "key", {"base64": encoded}],
    }
    assert (second["command"], second["db"]) == (["INCR", "n"], 5)


def test_people_see_where_the_histories_part_and_what_was_lost(tmp_path: Path) -> None:
    forked(
        tmp_path,
        ("SET", "a key", 'with "quotes"\n'),
        ("RPUSH", "list", "x" * 1000, *range(100)),
        ("SET", "a\\b", b"\xc3"),
    )
    outcome = audit(tmp_path)
    lines = outcome.out.splitlines()
    assert (outcome.status, outcome.err) == (0, "")
    assert max(map(len, lines)) <= 80
    assert lines[:2] == [f"history {REPLID}", f"  goes on as {HEIR}"]
    assert lines[2].startswith("  forked at 1055, 20")
    assert lines[3].endswith(' db2 SET "a key" "with \\"quotes\\"\\x0a"')
    assert lines[4].endswith("…")
    assert lines[5].endswith(' db2 SET "a\\\\b" "\\xc3"')
    assert lines[6].endswith(", 3 writes")


def test_a_fork_within_a_command_loses_the_whole_command(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SELECT", 2), ("SET", "shared", 1))
    end, time = tape.end, tape.time
    tape.commands(("SET", "lost", 1))
    tape.end, tape.time = end + 5, time
    tape.fork(HEIR)
    tape.end, tape.time = end, time + 1_000_000
    tape.commands(("SET", "kept", 1))
    [row] = map(json.loads, audit(tmp_path, "--json").out.splitlines())
    assert (row["start_offset"], row["command"]) == (end, ["SET", "lost", "1"])
    assert row["db"] == 2


def test_after_a_full_resync_it_is_said_that_nobody_knows(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SET", "shared", 1))
    tape.gap(None, "the server knows another history")
    second = Tape(
        tmp_path, replid=HEIR, time=tape.time + 60_000, reason="full-resync"
    ).snapshot()
    [line] = audit(tmp_path, "--json").out.splitlines()
    assert json.loads(line) == {
        "replid": REPLID,
        "orphaned": "unknown",
        "continued_as": HEIR,
        "time": format_time(second.time),
    }
    text = audit(tmp_path).out
    assert text.startswith(f"history {REPLID}\n  goes on as {HEIR}\n")
    assert text.endswith("orphaned: unknown\n")
    assert "orphaned    unknown" in kvtape("info", "--repo", tmp_path).out


def test_where_nothing_was_lost_that_is_said(tmp_path: Path) -> None:
    Tape(tmp_path).snapshot().commands(("SET", "key", 1))
    assert audit(tmp_path).out == "no failover lost anything that is recorded\n"
    assert audit(tmp_path, "--json").out == ""


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    forked(tmp_path, ("SET", "lost", 1))
    for path in tmp_path.rglob(f"stream/{REPLID}/*/*.seg"):
        content = bytearray(path.read_bytes())
        content[-40] ^= 1
        path.write_bytes(content)
    outcome = audit(tmp_path)
    assert outcome.status == 4
    assert "is damaged" in outcome.err


def test_without_the_option_it_says_what_there_is(tmp_path: Path) -> None:
    Tape(tmp_path).snapshot()
    outcome = kvtape("audit", "--repo", tmp_path)
    assert outcome.status == 2
    assert "--orphaned" in outcome.err


def test_a_gap_is_red_on_a_terminal_only(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SET", "key", 1))
    tape.gap(None, "restarted")
    ours, theirs = os.openpty()
    with open(ours, "rb") as terminal:  # noqa: PTH123
        arguments = ["kvtape", "info", "--repo", str(tmp_path)]
        subprocess.run(
            [sys.executable, "-m", *arguments],
            stdout=theirs,
            check=True,
            env={**environment(), "TERM": "xterm"},
        )
        shown = terminal.read1(100_000).decode()
        os.close(theirs)
    plain = kvtape("info", "--repo", tmp_path).out
    assert "\x1b" not in plain
    for line in (f"  gap         {tape.end} to a full resync", "restarted"):
        assert line in plain
        assert f"{line}\x1b[0m" in shown
    assert format_time(tape.time) in plain
