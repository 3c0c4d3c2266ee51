"""INFO decides where a stream can be joined, and says in numbers where it cannot."""

from __future__ import annotations

import pytest

from kvtape.record.seeding.join import JoinError, present, require_info, require_reach
from kvtape.record.spooling.position import Position
from kvtape.replication.tracker import NO_DB
from kvtape.server.info import ServerInfo

REPLID, OLD = "a" * 40, "b" * 40

FIELDS = {
    "master_replid": REPLID,
    "master_replid2": OLD,
    "master_repl_offset": "1000",
    "second_repl_offset": "501",
    "repl_backlog_active": "1",
    "repl_backlog_first_byte_offset": "301",
    "repl_backlog_histlen": "700",
}


def without(*names: str) -> ServerInfo:
    return ServerInfo({name: FIELDS[name] for name in FIELDS if name not in names})


def test_the_present_is_where_the_primary_stands() -> None:
    start = present(ServerInfo(FIELDS), "host:1", 77)
    assert start == Position(REPLID, 1000, 1000, NO_DB, 77)


@pytest.mark.parametrize(
    ("replid", "offset"), [(REPLID, 300), (REPLID, 1000), (OLD, 300), (OLD, 500)]
)
def test_what_the_backlog_reaches_can_be_joined(replid: str, offset: int) -> None:
    require_reach(ServerInfo(FIELDS), replid, offset, "host:1")


@pytest.mark.parametrize(
    ("replid", "offset", "words"),
    [
        (REPLID, 290, "from offset 300 to 1000, .* from 290 on: 10 bytes are missing"),
        (OLD, 299, "299 on: 1 bytes are missing.*more than 701 "),
        (REPLID, 1005, "5 bytes beyond"),
        (OLD, 501, f"does not know {OLD}:501.*at {REPLID}:1000"),
        ("c" * 40, 500, "does not know"),
    ],
)
def test_what_it_does_not_reach_is_refused_with_the_numbers(
    replid: str, offset: int, words: str
) -> None:
    with pytest.raises(JoinError, match=f"host:1.*{words}|{words}.*host:1"):
        require_reach(ServerInfo(FIELDS), replid, offset, "host:1")


def test_a_server_without_a_backlog_is_told_from_one_whose_is_short() -> None:
    for fields in (
        ServerInfo({**FIELDS, "repl_backlog_active": "0"}),
        without("repl_backlog_first_byte_offset"),
    ):
        with pytest.raises(JoinError, match=r"has no backlog.*attach a replica"):
            present(fields, "host:1", 0)


def test_a_server_that_does_not_answer_info_is_told_so() -> None:
    with pytest.raises(JoinError, match=r"\+info"):
        require_info(ServerInfo({}), "host:1")
    with pytest.raises(JoinError, match="its offset"):
        present(without("master_repl_offset"), "host:1", 0)
