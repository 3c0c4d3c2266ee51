"""One diary for each server, recorded by the real agent, and what kvtape tells of it.

It is made once for all tests, since it takes seconds. Of what kvtape's verbs print as
JSON, it hides how bytes and times are written.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from deeds import Place, now
from diary import Diary, Entry, Row, Written, merge, noise
from kvtape.storage.repository import open_repository
from kvtape.storage.segments import read_header
from recording import recording
from servers import Server
from verbs import Outcome, kvtape

# What a line of JSON says.
Document: TypeAlias = dict[str, Any]

_EARLY: Final = 150
_STEPS: Final = 1300


@dataclass(frozen=True, slots=True)
class Chronicle:
    """What was written to a server, and where the recording of it is.

    It was recorded between these times (ms). middle is one in between.
    """

    name: str
    repository: Path
    rows: Sequence[Row]
    entries: Sequence[Entry]
    written: Sequence[Written]
    start: int
    middle: int
    end: int


_made: dict[str, Chronicle] = {}


def chronicle(name: str, folder: Path) -> Chronicle:
    """Return the chronicle of a server of this name, which is made only once."""
    if name not in _made:
        _made[name] = _make(name, folder)
    return _made[name]


def _make(name: str, folder: Path) -> Chronicle:
    with Server(name) as server, Diary(server, 1) as diary:
        diary.step(_EARLY)
        start = now()
        with recording(server, folder) as tape, noise(server):
            before = diary.begin()
            diary.step(_STEPS // 2)
            middle = now()
            diary.step(_STEPS // 2)
            diary.end()
            tape.catch_up()
        end = now()
        rows = audit(folder / "repo")
        written = merge(diary, rows, before)
        entries = diary.entries[before:]
        return Chronicle(
            name, folder / "repo", rows, entries, written, start, middle, end
        )


# What kvtape tells.


def audit(repository: Path, *arguments: object) -> list[Row]:
    """Return the rows of an audit."""
    outcome = kvtape("audit", "--repo", repository, "--json", *arguments)
    assert outcome.status == 0
    # A range may end after all that is recorded, which is said.
    assert outcome.err == "" or (
        "--to-time" in arguments
        and outcome.err.startswith("note: the last byte that is recorded")
        and outcome.err.count("\n") == 1
    )
    return [row_of(document) for document in documents(outcome)]


def history(repository: Path, place: Place, *arguments: object) -> list[Document]:
    """Return the lines of a key's story."""
    db, key = place
    shown = key.decode("utf-8", "surrogateescape")
    outcome = kvtape(
        *("history", "--repo", repository, "--json", "--db", db, *arguments),
        *("--", shown),
    )
    assert outcome.status == 0, outcome.err
    return documents(outcome)


def documents(outcome: Outcome) -> list[Document]:
    """Return the JSON documents of lines."""
    return [json.loads(line) for line in outcome.out.splitlines()]


def row_of(document: Document) -> Row:
    """Return the row that a document is of."""
    return Row(
        document["start_offset"],
        document["end_offset"],
        as_ms(document["time"]),
        as_ms(document["written_after"]),
        document["db"],
        document["transaction"],
        tuple(map(as_bytes, document["command"])),
    )


def as_bytes(word: str | dict[str, str]) -> bytes:
    """Return the bytes that a document means."""
    return word.encode() if isinstance(word, str) else base64.b64decode(word["base64"])


def as_ms(time: str) -> int:
    """Return a time in ms since the epoch."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)


# What history has to tell of an expiry.


def least_ahead(repository: Path) -> int:
    """Return by how much (ms) the server's clock was ahead, at the least ever told."""
    folder = open_repository(str(repository)).source()
    segments = folder.catalogue().segments.values()
    clocks = [read_header(folder, name).clock for names in segments for name in names]
    return min(-1000 if clock is None else clock.low for clock in clocks)


def must_be_told(document: Document, ahead: int) -> bool:
    """Whether it is certain of a deletion that the key had expired.

    Where a TTL is streamed as it was given, it is not known to the ms when it ended.
    """
    if document["expires"] is None:
        return False
    return as_ms(document["written_after"]) + ahead > as_ms(document["expires"])
