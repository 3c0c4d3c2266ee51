"""A path says everything about what it names, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.tape.names import (
    SOURCE_NAME,
    FilterName,
    GapName,
    HistoryName,
    SegmentName,
    SnapshotName,
    parse,
)

DAY = 86_400_000

REPLID = "8f1c0d6b2e7a4935c1d8e0f7a6b5c4d3e2f10912"

replids = st.text("0123456789abcdef", min_size=40, max_size=40)
offsets = st.integers(0, 2**63 - 1)
times = st.integers(0, 10**14 - 1)
spans = st.tuples(offsets, offsets).filter(lambda span: span[0] < span[1])


@given(replids, spans, times, times)
def test_the_path_of_a_segment_names_it(
    replid: str, span: tuple[int, int], first: int, last: int
) -> None:
    name = SegmentName(replid, *span, first, last)
    assert parse(name.path) == name


@given(replids, spans, times, times)
def test_the_path_of_a_filter_names_its_segment(
    replid: str, span: tuple[int, int], first: int, last: int
) -> None:
    name = FilterName(SegmentName(replid, *span, first, last))
    assert parse(name.path) == name
    assert name.replid == replid


@given(replids, offsets, times)
def test_both_paths_of_a_snapshot_name_it(replid: str, offset: int, time: int) -> None:
    name = SnapshotName(replid, offset, time)
    assert parse(name.rdb) == parse(name.manifest) == name


@given(replids, spans, st.booleans())
def test_the_path_of_a_gap_names_it(
    replid: str, span: tuple[int, int], has_end: bool
) -> None:
    name = GapName(replid, span[0], span[1] if has_end else None)
    assert parse(name.path) == name


@given(replids)
def test_the_path_of_a_history_names_it(replid: str) -> None:
    assert parse(HistoryName(replid).path) == HistoryName(replid)


def test_paths_are_those_of_the_specification() -> None:
    segment = SegmentName(REPLID, 1042, 88310, 1777604400123, 1777604410200)
    snapshot = SnapshotName(REPLID, 1042, 1777604399800)
    assert segment.path == (
        f"stream/{REPLID}/20260501/"
        "00000000000000001042-00000000000000088310-1777604400123-1777604410200.seg"
    )
    assert FilterName(segment).path == (
        f"filters/{REPLID}/20260501/"
        "00000000000000001042-00000000000000088310-1777604400123-1777604410200.keys"
    )
    folder = f"snapshots/{REPLID}/00000000000000001042-1777604399800"
    assert [snapshot.rdb, snapshot.manifest] == [
        f"{folder}/rdb.zst",
        f"{folder}/manifest.json",
    ]
    gap = f"gaps/{REPLID}/00000000000000000007"
    assert GapName(REPLID, 7, 9).path == f"{gap}-00000000000000000009.json"
    assert GapName(REPLID, 7, None).path == f"{gap}-resync.json"
    assert HistoryName(REPLID).path == f"histories/{REPLID}.json"


SEGMENT = SegmentName(REPLID, 5, 9, 10 * DAY, 10 * DAY).path
RDB = SnapshotName(REPLID, 5, 10 * DAY).rdb
GAP = GapName(REPLID, 5, 9).path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "source.json",
        "kvtape.json",
        "histories/.json",
        f"histories/{REPLID}.json.partial",
        f"histories/{REPLID}.json\n",
        f"histories/{REPLID[1:]}.json",
        f"histories/../{REPLID[3:]}.json",
        f"marks/{REPLID}.json",
        f"/{SEGMENT}",
        f"{SEGMENT}.partial",
        SEGMENT.replace(REPLID, f"{REPLID}0"),
        SEGMENT.replace("19700111", "19700112"),
        SEGMENT.replace("/0000", "/000"),
        SEGMENT.replace("00009-", "00005-"),
        SEGMENT.replace("00009-", "00004-"),
        SEGMENT.replace("-864000000", "-0864000000", 1),
        SEGMENT.replace("-864000000", "-99999999999999999", 1),
        SEGMENT.replace("9", "٩"),
        RDB.replace("rdb.zst", "rdb"),
        RDB.replace("-864000000", "-0864000000"),
        RDB.replace("-864000000", ""),
        GAP.replace("00000000000000000009", "forever"),
    ],
)
def test_a_foreign_path_names_nothing(path: str) -> None:
    assert parse(path) is None


@given(
    st.sampled_from([SEGMENT, RDB, GAP, HistoryName(REPLID).path]),
    st.integers(0, 150),
    st.integers(0, 5),
    st.text("0123456789abcdef-/.\n", max_size=5),
)
def test_a_path_is_the_only_one_of_what_it_names(
    path: str, start: int, length: int, other: str
) -> None:
    path = path[:start] + other + path[start + length :]
    match parse(path):
        case SnapshotName() as name:
            assert path in (name.rdb, name.manifest)
        case None:
            pass
        case name:
            assert path == name.path


@given(
    offsets,
    times,
    st.lists(
        st.tuples(st.integers(1, 2**40), st.integers(0, 3 * DAY), st.integers(0, DAY)),
        max_size=20,
    ),
)
def test_sorted_paths_of_a_history_are_in_offset_order(
    start: int, time: int, steps: list[tuple[int, int, int]]
) -> None:
    """Also across days: `zstd -dc stream/<replid>/*/*.seg` relies on it."""
    time = min(time, 10**14 - 1 - len(steps) * 4 * DAY)
    segments = []
    for length, pause, duration in steps:
        first = time + pause
        time = first + duration
        segments.append(SegmentName("a" * 40, start, start + length, first, time))
        start += length
    paths = [segment.path for segment in segments]
    assert sorted(paths) == paths
    assert sorted(segments) == segments


@pytest.mark.parametrize("name", ["orders", "orders.eu-1_b", "127.0.0.1-6379", "0"])
def test_a_source_may_have_a_plain_name(name: str) -> None:
    assert SOURCE_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a b", "ä", "kvtape.json", "x" * 101]
)
def test_a_source_may_not_be_called_so(name: str) -> None:
    assert SOURCE_NAME.fullmatch(name) is None
