"""kvtape history tells a key's story, and says what it lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvtape.audit import history
from kvtape.tape.point import format_time
from recording import REPLID, THEN, Tape, rdb
from tapes import command
from verbs import Outcome, kvtape

PLANTED = "planted-value"


def told(repository: Path, *arguments: object) -> list[dict[str, Any]]:
    outcome = kvtape("history", "--repo", repository, "--json", *arguments)
    assert (outcome.status, outcome.err) == (0, "")
    return [json.loads(line) for line in outcome.out.splitlines()]


def words(rows: list[dict[str, Any]]) -> list[str]:
    return [" ".join(row["command"]) for row in rows if "command" in row]


def test_a_story_begins_with_the_snapshot_and_goes_through_other_names(
    tmp_path: Path,
) -> None:
    tape = Tape(tmp_path).snapshot(rdb((0, "old", "1", THEN + 10_000)))
    tape.commands(
        ("SELECT", 0),
        ("APPEND", "old", "x"),
        ("COPY", "old", "between"),
        ("SET", "old", "after"),
        ("RENAME", "between", "key"),
        ("SET", "unrelated", "1"),
        ("DEL", "key", "unrelated"),
    )
    rows = told(tmp_path, "key")
    assert words(rows) == [
        "APPEND old x",
        "COPY old between",
        "RENAME between key",
        "DEL key unrelated",
    ]
    snapshots = [row for row in rows if "snapshot" in row]
    assert [(row["key"], row["snapshot"]) for row in snapshots] == [
        ("key", None),
        (
            "old",
            {"type": "string", "bytes": 2, "expires": format_time(THEN + 10_000)},
        ),
    ]
    assert rows[-1]["cause"] == "command"
    assert rows[-1]["expires"] == format_time(THEN + 10_000)
    assert (rows[-2]["from"], rows[-2]["from_db"]) == ("between", 0)


def test_a_story_that_is_too_long_to_keep_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape = Tape(tmp_path).snapshot()
    tape.commands(("SELECT", 0), *[("SET", "a", n) for n in range(5)])
    tape.commands(("RENAME", "a", "key"), ("FLUSHALL",))
    kept = told(tmp_path, "key")
    monkeypatch.setattr(history, "_KEPT", 2)
    assert told(tmp_path, "key") == kept
    assert len(words(kept)) == 7


def with_hole(folder: Path) -> Tape:
    tape = Tape(folder).snapshot()
    tape.commands(("SELECT", 0), ("SET", "key", 1))
    tape.gap(tape.end + 500, "the disk was full")
    tape.commands(("SELECT", 0), ("SET", "key", 2))
    return tape


def test_a_hole_is_part_of_the_story_wherever_it_begins(tmp_path: Path) -> None:
    tape = with_hole(tmp_path)
    within = format_time(tape.time - 30_000)
    for arguments, shown in (
        ((), ["SET key 1", "hole", "SET key 2"]),
        (("--from-time", within), ["hole", "SET key 2"]),
        (("--to-time", within), ["SET key 1", "hole"]),
    ):
        outcome = kvtape("history", "key", "--repo", tmp_path, "--json", *arguments)
        assert outcome.status == 0
        rows = [json.loads(line) for line in outcome.out.splitlines()]
        found = ["hole" if "gap" in row else words([row]) for row in rows]
        found = [one if one == "hole" else "".join(one) for one in found]
        assert [one for one in found if one] == shown
        assert "nothing is recorded of" in outcome.err
        assert "the disk was full" in outcome.err


def test_what_is_damaged_is_left_out_if_asked_for_and_said(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot()
    name = tape.segment(
        [(THEN, command("SELECT", 0))],
        [(THEN, command("SET", "key", 1))],
        [(THEN, command("SET", "key", 2))],
    )
    damage(Path(tape.folder.url, name.path), command("SET", "key", 1)[4:])
    outcome = kvtape("history", "key", "--repo", tmp_path)
    assert outcome.status == 4
    assert "--skip-damaged" in outcome.err
    outcome = kvtape("history", "key", "--repo", tmp_path, "--skip-damaged", "--json")
    assert outcome.status == 4
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert words(rows) == ["SET key 2"]
    [damaged] = [row for row in rows if "damaged" in row]
    assert damaged["end_offset"] - damaged["start_offset"] == len(
        command("SET", "key", 1)
    )
    assert "1 damaged range was left out" in outcome.err


def damage(path: Path, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(content)] ^= 1
    path.write_bytes(data)


def test_what_a_snapshot_tells_is_not_known_behind_what_is_damaged(
    tmp_path: Path,
) -> None:
    tape = Tape(tmp_path).snapshot(rdb((0, "key", "1", THEN + 100)))
    name = tape.segment(
        [(THEN, command("SELECT", 0) + command("PERSIST", "key"))],
        [(THEN + 5_000, command("SET", "other", 1))],
        [(THEN + 9_000, command("DEL", "key"))],
    )
    assert told(tmp_path, "key")[-1]["cause"] == "unknown"
    damage(Path(tape.folder.url, name.path), command("PERSIST", "key")[4:])
    outcome = kvtape("history", "key", "--repo", tmp_path, "--skip-damaged", "--json")
    begun, damaged, deleted = (json.loads(line) for line in outcome.out.splitlines())
    assert begun["snapshot"]["expires"] == format_time(THEN + 100)
    assert "damaged" in damaged
    assert (deleted["command"], deleted["cause"]) == (["DEL", "key"], "unknown")
    assert outcome.status == 4


def test_a_damaged_snapshot_is_left_out_if_asked_for_and_said(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot(rdb((0, "key", PLANTED, None)))
    tape.commands(("SELECT", 0), ("APPEND", "key", 1))
    [snapshot] = tmp_path.rglob("rdb.zst")
    damage(snapshot, PLANTED.encode())
    outcome = kvtape("history", "key", "--repo", tmp_path)
    assert (outcome.status, outcome.out) == (4, "")
    assert outcome.err.endswith("; --skip-damaged goes on without it\n")
    outcome = kvtape("history", "key", "--repo", tmp_path, "--skip-damaged", "--json")
    assert outcome.status == 4
    damaged, row = (json.loads(line) for line in outcome.out.splitlines())
    assert "rdb.zst is damaged" in damaged["damaged"]
    assert row["command"] == ["APPEND", "key", "1"]
    assert "rdb.zst is damaged" in outcome.err


@pytest.mark.parametrize("document", ["manifest.json", f"{REPLID}.json"])
def test_a_damaged_document_is_left_out_if_asked_for_and_said(
    tmp_path: Path, document: str
) -> None:
    tape = Tape(tmp_path).snapshot(rdb((0, "key", PLANTED, None)))
    tape.commands(("SELECT", 0), ("APPEND", "key", 1))
    [path] = tmp_path.rglob(document)
    path.write_bytes(path.read_bytes()[:-9])
    for verb in (("history", "key"), ("audit",)):
        outcome = kvtape(*verb, "--repo", tmp_path)
        assert (outcome.status, outcome.out) == (4, "")
        assert outcome.err.endswith("; --skip-damaged goes on without it\n")
        outcome = kvtape(*verb, "--repo", tmp_path, "--skip-damaged", "--json")
        assert outcome.status == 4
        damaged, *_, row = (json.loads(line) for line in outcome.out.splitlines())
        assert document in damaged["damaged"]
        assert row["command"] == ["APPEND", "key", "1"]
        assert document in outcome.err
        assert "1 damaged document was left out" in outcome.err


def test_a_snapshot_that_is_newer_than_this_kvtape_is_told(tmp_path: Path) -> None:
    known = rdb((0, "key", "1", THEN + 5000), version=99)
    tape = Tape(tmp_path).snapshot(known.replace(b"\0\3key", b"\x7f\3key"))
    tape.commands(("SELECT", 0), ("DEL", "key"))
    outcome = kvtape("history", "key", "--repo", tmp_path, "--json")
    assert outcome.status == 0
    unread, row = (json.loads(line) for line in outcome.out.splitlines())
    assert (unread["replid"], unread["offset"]) == (REPLID, 1000)
    assert "127" in unread["unread"]
    assert (row["command"], row["cause"]) == (["DEL", "key"], "unknown")
    assert row["expires"] is None
    outcome = kvtape("history", "key", "--repo", tmp_path)
    assert outcome.status == 0
    assert "is newer than this kvtape" in outcome.err
    assert "use a newer kvtape" in outcome.err


def test_of_a_key_in_another_database_it_says_in_which(tmp_path: Path) -> None:
    Tape(tmp_path).snapshot().commands(("SELECT", 3), ("SET", "key", 1))
    outcome = kvtape("history", "key", "--repo", tmp_path)
    assert (outcome.status, "in database 3 there is (--db)" in outcome.err) == (0, True)
    assert words(told(tmp_path, "key", "--db", 3)) == ["SET key 1"]


def in_text(repository: Path, *arguments: object) -> Outcome:
    return kvtape("history", "--repo", repository, *arguments)


def test_people_read_it_at_80_columns(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot(rdb((0, "k", "1", THEN + 10_000)))
    tape.commands(
        ("SELECT", 0),
        ("APPEND", "k", "x" * 500),
        ("RENAME", "k", "key" * 30),
        ("DEL", "key" * 30),
    )
    outcome = in_text(tmp_path, "key" * 30)
    lines = outcome.out.splitlines()
    assert (outcome.status, outcome.err) == (0, "")
    assert max(map(len, lines)) <= 80
    assert "deleted: cause unknown" in outcome.out
    assert "string of" in outcome.out
    # The end of a TTL is never cut off.
    assert f"              expires {format_time(THEN + 10_000)}" in lines


def test_no_value_is_shown_where_none_is_wanted(tmp_path: Path) -> None:
    tape = Tape(tmp_path).snapshot(rdb((0, "key", PLANTED, None)))
    tape.commands(
        ("SELECT", 0),
        ("APPEND", "key", PLANTED),
        ("MOD.SET", "key", PLANTED),
        ("SET", "key", PLANTED, "PX", PLANTED),
        ("RENAME", "key"),
    )
    for values in ("none", "sha256"):
        for arguments in ((), ("--json",)):
            outcome = in_text(tmp_path, "key", "--values", values, *arguments)
            assert PLANTED not in outcome.out + outcome.err
            assert outcome.status == 0


def test_nothing_is_written_to_a_terminal_but_text(tmp_path: Path) -> None:
    evil = "\x1b[31m\x07\n\x9b2J"
    tape = Tape(tmp_path).snapshot(rdb((0, "a\x1b", "1", None)))
    tape.commands(("SELECT", 0), ("SET", "a\x1b", evil), ("RENAME", "a\x1b", evil))
    for arguments in ((), ("--json",)):
        outcome = in_text(tmp_path, evil, *arguments)
        assert outcome.status == 0
        assert len(outcome.out.splitlines()) == 5 - ("--json" in arguments)
        assert all(c.isprintable() for c in outcome.out.replace("\n", ""))


def test_the_key_and_its_database_can_stand_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Tape(tmp_path / "repo").snapshot().commands(("SELECT", 3), ("SET", "key", 1))
    Path("kvtape.toml").write_text(
        'repo = "repo"\n[history]\nkey = "key"\ndb = 3\nvalues = "none"\n'
    )
    outcome = kvtape("history")
    assert outcome.out.splitlines()[-1].endswith(" db3  SET key <1 bytes>")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("key --db -1", 2, "--db"),
        ("key --from-offset 1 --from-time now", 2, "only one of"),
        ("key --to-offset 1 --to-latest", 2, "only one of"),
        ("key --from-offset 5000", 3, "is not recorded"),
        ("key --from-time now", 3, "begins after the last"),
        ("key --source nosuch", 2, "no source 'nosuch'"),
        ("key --values some", 2, "'some' is not one of"),
        ("", 2, "KEY"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    tmp_path: Path, arguments: str, status: int, said: str
) -> None:
    Tape(tmp_path).snapshot().commands(("SELECT", 0), ("SET", "key", 1))
    outcome = kvtape("history", "--repo", tmp_path, *arguments.split())
    assert outcome.status == status
    assert said in outcome.err
    assert REPLID not in outcome.out
