"""Recorded writes are listed and counted: for people at 80 columns, JSON and CSV."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvtape.tape.point import format_time
from recording import REPLID, THEN, Tape
from tapes import command
from verbs import PATIENCE, Outcome, environment, kvtape, program

HEIR = "f" * 40


def audit(repository: Path, *arguments: object) -> Outcome:
    return kvtape("audit", "--repo", repository, *arguments)


def orphaned(repository: Path, *arguments: str) -> Outcome:
    return audit(repository, "--orphaned", *arguments)


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
    outcome = orphaned(tmp_path, "--json")
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
        "written_after": format_time(THEN + 3000),
        "db": 2,
        "transaction": None,
        "command": ["SET", "key", {"base64": encoded}],
    }
    assert (second["command"], second["db"]) == (["INCR", "n"], 5)
    assert second["transaction"] == first["end_offset"]


def test_people_see_where_the_histories_part_and_what_was_lost(tmp_path: Path) -> None:
    forked(
        tmp_path,
        ("SET", "a key", 'with "quotes"\n'),
        ("RPUSH", "list", "x" * 1000, *range(100)),
        ("SET", "a\\b", b"\xc3"),
    )
    outcome = orphaned(tmp_path)
    lines = outcome.out.splitlines()
    assert (outcome.status, outcome.err) == (0, "")
    assert max(map(len, lines)) <= 80
    assert lines[:2] == [f"history {REPLID}", f"  goes on as {HEIR}"]
    assert lines[2].startswith("  forked at 1055, 20")
    assert lines[3].endswith(' db2  SET "a key" "with \\"quotes\\"\\x0a"')
    assert lines[4].endswith("…")
    assert lines[5].endswith(' db2  SET "a\\\\b" "\\xc3"')
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
    [row] = map(json.loads, orphaned(tmp_path, "--json").out.splitlines())
    assert (row["start_offset"], row["command"]) == (end, ["SET", "lost", "1"])
    assert row["db"] == 2


def test_after_a_full_resync_it_is_said_that_nobody_knows(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SET", "shared", 1))
    tape.gap(None, "the server knows another history")
    second = Tape(
        tmp_path, replid=HEIR, time=tape.time + 60_000, reason="full-resync"
    ).snapshot()
    [line] = orphaned(tmp_path, "--json").out.splitlines()
    assert json.loads(line) == {
        "replid": REPLID,
        "orphaned": "unknown",
        "continued_as": HEIR,
        "time": format_time(second.time),
    }
    text = orphaned(tmp_path).out
    assert text.startswith(f"history {REPLID}\n  goes on as {HEIR}\n")
    assert text.endswith("orphaned: unknown\n")
    assert "orphaned    unknown" in kvtape("info", "--repo", tmp_path).out


def test_where_the_recording_ends_within_the_range_that_is_said(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SET", "key", 1), ("SET", "key", 2))
    first, last = THEN + 1000, tape.time
    within = ("--from-time", format_time(first), "--to-time", format_time(last))
    assert audit(tmp_path, *within).err == ""
    early, late = format_time(first - 5000), format_time(last + 5000)
    said = audit(tmp_path, "--from-time", early, "--to-time", late).err
    assert f"first byte that is recorded was received at {format_time(first)}" in said
    assert f"last byte that is recorded was received at {format_time(last)}" in said
    said = kvtape("history", "key", "--repo", tmp_path, "--to-time", late).err
    assert f"last byte that is recorded was received at {format_time(last)}" in said


def test_where_nothing_was_lost_that_is_said(tmp_path: Path) -> None:
    Tape(tmp_path).snapshot().commands(("SET", "key", 1))
    assert orphaned(tmp_path).out == "no failover lost anything that is recorded\n"
    assert orphaned(tmp_path, "--json").out == ""


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    forked(tmp_path, ("SET", "lost", 1))
    for path in tmp_path.rglob(f"stream/{REPLID}/*/*.seg"):
        content = bytearray(path.read_bytes())
        content[-40] ^= 1
        path.write_bytes(content)
    outcome = orphaned(tmp_path)
    assert outcome.status == 4
    assert "is damaged" in outcome.err


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


# All that is recorded.


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    assert (outcome.status, outcome.err) == (0, "")
    return [json.loads(line) for line in outcome.out.splitlines()]


def shown(outcome: Outcome) -> list[str]:
    return [" ".join(row["command"]) for row in rows(outcome)]


def shop(folder: Path) -> Tape:
    """Return a tape of a few writes, over two segments."""
    tape = Tape(folder).snapshot()
    tape.commands(
        ("SELECT", 0),
        ("SET", "user:1", "a"),
        ("SET", "user:2", "b"),
        ("PUBLISH", "user:1", "hello"),
        ("MULTI",),
        ("DEL", "user:1", "user:2"),
        ("EXEC",),
    )
    tape.commands(("SELECT", 3), ("MOD.SET", "user:1", "c"), ("INCR", "n"), ("PING",))
    return tape


ALL = [
    "SET user:1 a",
    "SET user:2 b",
    "DEL user:1 user:2",
    "MOD.SET user:1 c",
    "INCR n",
]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("--key user:*", [0, 1, 2, 3]),
        ("--key user:2 --key n", [1, 2, 4]),
        ("--command del", [2]),
        ("--command DEL --command MOD.SET", [2, 3]),
        ("--db 3", [3, 4]),
        ("--db 0 --db 3 --key n", [4]),
        ("--limit 2", [0, 1]),
        ("--last 2", [3, 4]),
        ("--last 1 --key user:1", [3]),
        ("--last 100", [0, 1, 2, 3, 4]),
        (f"--to-time {format_time(THEN + 7000)}", [0, 1, 2]),
        (f"--from-time {format_time(THEN + 2000)} --limit 1", [1]),
        (f"--from-time {format_time(THEN + 7000)}", [3, 4]),
        ("--from-offset 1000 --to-latest --limit 1", [0]),
        ("--processes 2", [0, 1, 2, 3, 4]),
    ],
)
def test_what_was_asked_for_is_listed(
    tmp_path: Path, arguments: str, numbers: list[int]
) -> None:
    shop(tmp_path)
    found = shown(audit(tmp_path, "--json", *arguments.split()))
    assert found == [ALL[number] for number in numbers]


def test_messages_and_what_is_not_known_are_marked(tmp_path: Path) -> None:
    shop(tmp_path)
    found = rows(audit(tmp_path, "--json", "--publish"))
    assert [row["command"][0] for row in found] == [
        *("SET", "SET", "PUBLISH", "DEL", "MOD.SET", "INCR")
    ]
    assert [row["command"][0] for row in found if "known" in row] == ["MOD.SET"]
    # A channel is no key.
    assert len(rows(audit(tmp_path, "--json", "--publish", "--key", "user:1"))) == 3
    assert "db3  (unknown) MOD.SET" in audit(tmp_path).out
    assert " db0 │DEL user:1" in audit(tmp_path).out


def test_offsets_are_those_to_restore_to(tmp_path: Path) -> None:
    tape = shop(tmp_path)
    found = rows(audit(tmp_path, "--json"))
    assert {row["transaction"] is None for row in found} == {True, False}
    for row in found:
        start, end = row["start_offset"], row["end_offset"]
        assert tape.end > end > start
        one = audit(tmp_path, "--json", "--from-offset", start, "--to-offset", end)
        if row["transaction"] is None:
            assert rows(one) == [row]
        else:
            assert row["transaction"] < start


def test_csv_has_a_header_and_a_row_each(tmp_path: Path) -> None:
    shop(tmp_path)
    outcome = audit(tmp_path, "--csv")
    header, *found = csv.reader(outcome.out.splitlines())
    assert outcome.status == 0
    assert header[:3] == ["replid", "start_offset", "end_offset"]
    assert [" ".join(row[-2:]) for row in found] == ALL
    assert [row[-3] for row in found] == ["yes", "yes", "yes", "no", "yes"]
    assert audit(tmp_path, "--csv", "--last", "1").out.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("command", {"SET": 2, "DEL": 1, "MOD.SET": 1, "INCR": 1}),
        ("key", {"user:1": 2, "user:2": 2, "n": 1, None: 1}),
        ("prefix", {"user": 3, "n": 1, None: 1}),
        ("prefix --depth 2", {"user:1": 2, "user:2": 2, "n": 1, None: 1}),
        ("prefix --limit 1", {"user": 3}),
        ("minute", {format_time(THEN - THEN % 60_000): 5}),
    ],
)
def test_counts_are_those_of_what_is_listed(
    tmp_path: Path, arguments: str, expected: dict[str | None, int]
) -> None:
    shop(tmp_path)
    by = arguments.split()[0]
    found = rows(audit(tmp_path, "--json", "--count-by", *arguments.split()))
    assert {row[by]: row["commands"] for row in found} == expected
    if "--limit" not in arguments:
        total = sum(
            row["end_offset"] - row["start_offset"]
            for row in rows(audit(tmp_path, "--json"))
        )
        assert sum(row["bytes"] for row in found) == total
    text = audit(tmp_path, "--count-by", *arguments.split())
    assert max(map(len, text.out.splitlines())) <= 80
    table = audit(tmp_path, "--csv", "--count-by", *arguments.split())
    assert table.out.startswith(f"{by},commands,bytes\n")
    assert len(table.out.splitlines()) == len(expected) + 1


def damaged(folder: Path) -> Tape:
    """Return a tape of three SETs of which the second cannot be read."""
    tape = Tape(folder).snapshot()
    name = tape.segment(
        [(THEN, command("SELECT", 0) + command("SET", "a", 1))],
        [(THEN, command("SET", "b", 2))],
        [(THEN, command("SET", "c", 3))],
    )
    path = Path(tape.folder.url, name.path)
    content = bytearray(path.read_bytes())
    content[content.index(command("SET", "b", 2)[4:])] ^= 1
    path.write_bytes(content)
    return tape


def test_what_is_damaged_ends_it_unless_it_is_to_be_left_out(tmp_path: Path) -> None:
    damaged(tmp_path)
    for arguments in ((), ("--json",), ("--last", 3), ("--count-by", "key")):
        outcome = audit(tmp_path, *arguments)
        assert outcome.status == 4
        assert "--skip-damaged" in outcome.err
        assert ".seg is damaged" in outcome.err


def test_what_is_left_out_is_said_everywhere(tmp_path: Path) -> None:
    damaged(tmp_path)
    for arguments in ((), ("--last", 3)):
        outcome = audit(tmp_path, "--skip-damaged", "--json", *arguments)
        assert outcome.status == 4
        found = [json.loads(line) for line in outcome.out.splitlines()]
        assert [row["command"][1] for row in found if "command" in row] == ["a", "c"]
        [missing] = [row for row in found if "damaged" in row]
        length = len(command("SET", "b", 2))
        assert missing["end_offset"] - missing["start_offset"] == length
        assert "are left out" in outcome.err
        assert "1 damaged range was left out" in outcome.err
    outcome = audit(tmp_path, "--skip-damaged", "--count-by", "key")
    assert (outcome.status, len(outcome.out.splitlines())) == (4, 3)


def test_where_an_end_cannot_be_found_the_segment_is_left_out(tmp_path: Path) -> None:
    tape = shop(tmp_path)
    for path in Path(tape.folder.url).rglob(f"*/{1000:020}-*.seg"):
        content = bytearray(path.read_bytes())
        content[200] ^= 1  # in the facts
        path.write_bytes(content)
    within = ("--from-time", format_time(THEN + 2000))
    for verb in (("audit",), ("audit", "--last", 9), ("history", "n", "--db", 3)):
        plain = kvtape(*verb, "--repo", tmp_path, *within)
        assert (plain.status, "--skip-damaged" in plain.err) == (4, True)
        outcome = kvtape(*verb, "--repo", tmp_path, *within, "--skip-damaged")
        assert outcome.status == 4
        assert outcome.out.splitlines()[-1].endswith("INCR n")
        assert outcome.err.count("are left out") == 1


def test_a_stream_that_is_none_of_commands_is_left_out_like_damage(
    tmp_path: Path,
) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SELECT", 0), ("SET", "a", 1))
    tape.segment([(tape.time, b"nonsense\r\n")])
    tape.commands(("SELECT", 0), ("SET", "b", 1))
    outcome = audit(tmp_path)
    assert outcome.status == 4
    assert "--skip-damaged" in outcome.err
    outcome = audit(tmp_path, "--skip-damaged", "--json")
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert [row["command"][1] for row in found if "command" in row] == ["a", "b"]
    assert outcome.status == 4


def test_a_hole_is_said_before_anything_else(tmp_path: Path) -> None:
    tape = shop(tmp_path)
    tape.gap(tape.end + 500, "the disk was full")
    tape.commands(("SELECT", 0), ("SET", "last", 1))
    outcome = audit(tmp_path, "--json")
    first = json.loads(outcome.out.splitlines()[0])
    assert outcome.status == 0
    assert first["gap"] == "the disk was full"
    assert first["end_offset"] - first["start_offset"] == 500
    assert "note: nothing is recorded of" in outcome.err


PLANTED = "planted-value"


def test_no_value_is_shown_where_none_is_wanted(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(
        ("SELECT", 0),
        ("SET", "key", PLANTED, "EX", PLANTED),
        ("HSET", "key", PLANTED, PLANTED),
        ("MOD.SET", PLANTED, PLANTED),
        ("EVAL", PLANTED, 1, "key", PLANTED),
        ("SET", PLANTED[:0]),
        ("DEL",),
        ("PUBLISH", "channel", PLANTED),
        ("XGROUP", PLANTED, PLANTED),
        ("FUNCTION", "LOAD", PLANTED),
    )
    for values in ("none", "sha256"):
        for form in ((), ("--json",), ("--csv",), ("--last", 20)):
            outcome = audit(tmp_path, "--publish", "--values", values, *form)
            assert (outcome.status, outcome.err) == (0, "")
            assert PLANTED not in outcome.out
            assert "key" in outcome.out
    digest = hashlib.sha256(PLANTED.encode()).hexdigest()
    assert digest in audit(tmp_path, "--json", "--values", "sha256").out
    assert digest not in audit(tmp_path, "--json", "--values", "none").out


def test_nothing_is_written_to_a_terminal_but_text(tmp_path: Path) -> None:
    evil = "\x1b]0;gone\x07\x9b2J\x7f\r\n"
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SELECT", 0), ("SET", evil, evil), (f"MOD.{evil}", evil))
    for form in ((), ("--json",), ("--csv",), ("--count-by", "key"), ("--last", 9)):
        outcome = audit(tmp_path, *form)
        assert outcome.status == 0
        text = outcome.out.replace("\n", "")
        assert text
        assert all(character.isprintable() for character in text), text


def test_lines_are_at_most_80_columns_whatever_is_in_them(tmp_path: Path) -> None:
    tape = Tape(tmp_path, start=10**12).snapshot()
    tape.commands(("SELECT", 15), ("SET", "k" * 500, "v"), *[("DEL", *"abc" * 30)] * 3)
    for form in ((), ("--count-by", "key"), ("--count-by", "command")):
        lines = audit(tmp_path, *form).out.splitlines()
        assert max(map(len, lines)) <= 80


def test_whoever_has_seen_enough_ends_it_in_silence(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SELECT", 0), *[("SET", "key", "x" * 1000)] * 2000)
    for processes in (1, 2):
        arguments = ("--json", "--processes", processes)
        with program("audit", "--repo", tmp_path, *arguments) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["command"][0] == "SET"
            process.stdout.close()
            assert process.wait(PATIENCE) == 0
            assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("--key [a", 2, "'[a' is no pattern of keys: a bracket is not closed"),
        ("--command DELL", 2, "did you mean DEL"),
        ("--command GET", 2, "no server streams a command 'GET'"),
        ("--command ping", 2, "PING is left out: it writes nothing"),
        ("--depth 2", 2, "--depth goes with --count-by prefix"),
        ("--count-by key --depth 1", 2, "--depth goes with --count-by prefix"),
        ("--db -1", 2, "--db"),
        ("--json --csv", 2, "give only one of --json and --csv"),
        ("--last 1 --limit 1", 2, "give only one of --last and --limit"),
        ("--last 1 --count-by key", 2, "--last goes with a list"),
        ("--last 0", 2, "--last"),
        ("--count-by value", 2, "'value' is not one of"),
        ("--values some", 2, "'some' is not one of"),
        ("--from-offset 1000 --from-time now", 2, "give only one of --from-offset"),
        ("--to-offset 1 --to-latest", 2, "give only one of --to-offset"),
        ("--from-offset x", 2, "'x' is no offset"),
        ("--from-offset 1100 --to-offset 1050", 2, "before it begins at 1100"),
        ("--from-time now --to-time now-1h", 2, "before it begins at"),
        ("--from-offset 9999", 3, "offset 9999 of the history"),
        ("--to-time 2001-01-01T00:00:00Z", 3, "before the first recorded byte"),
        ("--from-time now", 3, "after the last recorded byte"),
        ("--source nosuch", 2, "no source 'nosuch'"),
        ("--orphaned --last 1", 2, "--orphaned lists all that was lost"),
        ("--orphaned --skip-damaged", 2, "--orphaned lists all that was lost"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_a_sentence(
    tmp_path: Path, arguments: str, status: int, said: str
) -> None:
    shop(tmp_path)
    outcome = audit(tmp_path, *arguments.split())
    assert (outcome.status, outcome.out) == (status, "")
    assert said in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err


def test_where_there_is_no_recording_that_is_said(tmp_path: Path) -> None:
    outcome = audit(tmp_path / "nosuch")
    assert (outcome.status, outcome.out) != (0, "")
    assert outcome.err.count("\n") == 1
    Tape(tmp_path).snapshot()
    outcome = audit(tmp_path)
    assert (outcome.status, outcome.out) == (3, "")
    assert "no stream is recorded yet" in outcome.err


def test_that_nothing_was_found_is_said_with_what_else_to_ask_for(
    tmp_path: Path,
) -> None:
    shop(tmp_path)
    outcome = audit(tmp_path, "--command", "EXPIRE")
    assert (outcome.status, outcome.out) == (0, "")
    assert "EXPIRE as PEXPIREAT" in outcome.err
    assert audit(tmp_path, "--command", "EXPIRE", "--json").err == ""


def test_what_to_list_can_stand_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shop(tmp_path / "repo")
    Path("kvtape.toml").write_text(
        'repo = "repo"\n[audit]\njson = true\nkey = ["user:1", "n"]\ndb = [3]\n'
        'command = "INCR"\n'
    )
    assert shown(kvtape("audit")) == ["INCR n"]
