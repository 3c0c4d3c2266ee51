"""The document of a gap says why, in words that help who has to do something."""

from __future__ import annotations

import pytest
from msgspec import structs

from kvtape.record.histories.commits import Commits
from kvtape.record.spooling.position import Position
from kvtape.server.info import ServerInfo
from kvtape.storage.spool import Spool
from kvtape.tape.documents import Gap, Manifest, Server
from kvtape.tape.names import HistoryName, SnapshotName
from stored import A, B, C, manifest, time_at
from tapes import documents_of

END = 500
BEFORE = Position(A, END, END, 0, time_at(END))
HEIR = {"master_replid": B, "master_replid2": A, "second_repl_offset": "401"}


def snapshot(offset: int, replid: str = B, run_id: str | None = None) -> Manifest:
    document = manifest(SnapshotName(replid, offset, time_at(9000)))
    return structs.replace(document, server=Server(run_id=run_id))


def gap_of(
    spool: Spool, document: Manifest, run_ids: dict[str, str | None] | None, **info: str
) -> Gap | None:
    """Return the gap that is written down before a snapshot."""
    commits = Commits(spool, [HistoryName(A).path], run_ids)
    commits.attach(ServerInfo(info), "host:6379", time_at(9000))
    spool.begin_snapshot().close()
    commits.snapshot(document, BEFORE)
    return commits.gaps[0] if commits.gaps else None


@pytest.mark.parametrize(
    ("info", "run_id", "reason"),
    [
        ({}, None, "why is unknown, since its user lacks +info"),
        ({"master_replid": B}, None, "it freed its backlog, or failed over more than"),
        ({"master_replid": B}, "one", "it freed its backlog, or failed over more than"),
        (
            {"master_replid": B},
            "two",
            "replaced (its run_id changed): the server knows",
        ),
        (
            {"uptime_in_seconds": "9"},
            "two",
            "restarted about 2026-05-01T03:01:20.000Z: the server knows another",
        ),
        ({"uptime_in_seconds": "900"}, "two", "its run_id changed"),
        (
            HEIR,
            None,
            f"goes on from 400 as {B}; the backlog did not reach back to that",
        ),
        (
            {**HEIR, "repl_backlog_first_byte_offset": "450"},
            None,
            "the backlog begins at 450, 49 bytes after that",
        ),
    ],
)
def test_another_history_has_a_reason(
    spool: Spool, info: dict[str, str], run_id: str | None, reason: str
) -> None:
    gap = gap_of(spool, snapshot(700, run_id=run_id), {A: "one"}, **info)
    assert gap is not None
    assert reason in gap.reason
    assert B in gap.reason
    assert gap.start_offset == (400 if info.get("second_repl_offset") else END)


def test_a_backlog_that_is_too_short_is_told_by_how_much(spool: Spool) -> None:
    gap = gap_of(spool, snapshot(700, A), None, repl_backlog_first_byte_offset="601")
    assert gap is not None
    assert gap.reason == (
        "the backlog begins at 601, 100 bytes after the last recorded byte"
    )
    assert (gap.start_offset, gap.end_offset) == (END, 700)


def test_a_server_that_went_back_leaves_no_gap(spool: Spool) -> None:
    assert gap_of(spool, snapshot(300, A), None) is None


def test_a_history_has_the_parent_and_the_fork_that_the_server_told(
    spool: Spool,
) -> None:
    gap_of(spool, snapshot(700), None, **HEIR)
    [history] = documents_of(spool.folder / "queue", "histories/*.json")
    assert (history["parent"], history["parent_offset"]) == (A, 400)
    assert (history["reason"], history["address"]) == ("full-resync", "host:6379")


@pytest.mark.parametrize(("told", "offset"), [("401", 500), ("901", 900), ("-1", 500)])
def test_a_fork_is_never_before_what_was_continued(
    spool: Spool, told: str, offset: int
) -> None:
    commits = Commits(spool, [])
    info = ServerInfo({**HEIR, "second_repl_offset": told})
    commits.attach(info, "host:6379", 0)
    for replid in (B, C):
        commits.fork(A, Position(replid, END, END, 0, 0))
    for document, expected in zip(
        documents_of(spool.folder / "queue", "histories/*.json"),
        (offset, END),
        strict=True,
    ):
        # What it told is of the history that it then went on with.
        assert document["parent_offset"] == expected
