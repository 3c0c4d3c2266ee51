"""What a test wrote to real servers is what the audit lists: all of it, in order."""

from __future__ import annotations

import csv
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from chronicle import audit, chronicle, documents
from diary import NOISE_DB, Row, Written
from kvtape.tape.point import format_time
from plain_client import PlainClient
from servers import Server
from tapes import command
from verbs import kvtape

_BY_COMMAND: Final = ("--count-by", "command")


def test_it_lists_what_was_written_in_order(server_name: str, tmp_path: Path) -> None:
    # Whoever makes a chronicle has compared the rows with the diary.
    made = chronicle(server_name, tmp_path)
    assert len(made.written) > len(made.entries) > 1000
    assert {one.maker for one in made.written} == {"client", "expiry"}
    for row, after in pairwise(made.rows):
        assert row.end == row.start + len(command(*row.words))
        assert after.start >= row.end
    assert made.start <= made.rows[0].time <= made.rows[-1].time <= made.end


def test_what_is_asked_for_is_what_is_found(server_name: str, tmp_path: Path) -> None:
    made = chronicle(server_name, tmp_path)
    rows = list(made.rows)

    def found(*arguments: object) -> list[Row]:
        return audit(made.repository, *arguments)

    # Nothing but keys has such a name.
    assert found("--key", "tmp:1") == [row for row in rows if b"tmp:1" in row.words]
    assert found("--command", "del", "--command", "Unlink") == [
        row for row in rows if row.words[0].upper() in (b"DEL", b"UNLINK")
    ]
    assert found("--db", 1, "--db", 5) == [row for row in rows if row.db in (1, 5)]
    assert found("--last", 77) == rows[-77:]
    assert found("--db", 2, "--last", 5) == [row for row in rows if row.db == 2][-5:]
    assert found("--db", 2, "--limit", 5) == [row for row in rows if row.db == 2][:5]
    one, other = rows[len(rows) // 3], rows[len(rows) // 2]
    low, high = one.transaction or one.start, other.end
    offsets = ("--from-offset", low, "--to-offset", high)
    if other.transaction is None:
        assert found(*offsets) == [row for row in rows if low <= row.start < high]
    times = (
        "--from-time",
        format_time(made.middle),
        "--to-time",
        format_time(made.end),
    )
    assert found(*times) == [row for row in rows if row.time > made.middle]


def test_csv_and_counts_say_the_same(server_name: str, tmp_path: Path) -> None:
    made = chronicle(server_name, tmp_path)
    text = kvtape("audit", "--repo", made.repository, "--csv").out
    read = list(csv.DictReader(text.splitlines()))
    assert [int(row["start_offset"]) for row in read] == [
        row.start for row in made.rows
    ]
    assert [row["command"].encode() for row in read] == [
        row.words[0] for row in made.rows
    ]
    outcome = kvtape("audit", "--repo", made.repository, "--json", *_BY_COMMAND)
    assert {
        each["command"].encode(): each["commands"] for each in documents(outcome)
    } == Counter(row.words[0].upper() for row in made.rows)


def fresh(written: list[Written]) -> list[Row]:
    """Return SETs of values that no key had before."""
    rows = [one.row for one in written if one.row is not None]
    return [
        row
        for row in rows
        if row.words[0] == b"SET" and len(row.words) == 3 and len(row.words[2]) > 30
    ]


@pytest.mark.slow
def test_restoring_to_where_a_row_begins_is_the_moment_before_it(
    server_name: str, tmp_path: Path
) -> None:
    made = chronicle(server_name, tmp_path)
    chosen = fresh(list(made.written))[5::30]
    assert len(chosen) == 2
    for number, row in enumerate(chosen):
        before, after = (
            restored(made.name, made.repository, tmp_path / f"{number}{at}", at, row)
            for at in (row.start, row.end)
        )
        assert before != row.words[2]
        if row.transaction is None:
            assert after == row.words[2]


def restored(
    name: str, repository: Path, folder: Path, offset: int, row: Row
) -> object:
    """Return what the key of a row is, once it is restored to an offset."""
    outcome = kvtape(
        *("restore", "--repo", repository, "--to-offset", offset),
        *("--data-dir", folder, "--json"),
    )
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["offset"] <= offset
    with (
        Server(name, config_file=folder / "redis.conf") as server,
        PlainClient(server.client()) as plain,
    ):
        plain.ask("SELECT", row.db)
        return plain.ask("GET", row.words[1])


def test_the_noise_is_in_the_audit_too(server_name: str, tmp_path: Path) -> None:
    made = chronicle(server_name, tmp_path)
    noise = [row.words for row in made.rows if row.db == NOISE_DB]
    assert set(noise) == {(b"INCR", b"noise")}
    assert len(noise) > 100
