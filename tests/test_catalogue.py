"""A listing and its documents say what can be restored, also where some are damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.tape import documents
from kvtape.tape.catalogue import (
    Part,
    Range,
    Slice,
    Stretch,
    clip,
    documents_of,
)
from kvtape.tape.documents import History
from kvtape.tape.names import (
    FilterName,
    GapName,
    HistoryName,
    SegmentName,
    SnapshotName,
)
from stored import BEGAN, A, B, C, D, Stored, manifest, time_at


def segments(*spans: tuple[int, int]) -> list[SegmentName]:
    return [SegmentName(A, start, end, 0, 0) for start, end in spans]


def spans(stored: Stored, replid: str = A) -> list[tuple[int, int]]:
    return [(r.start, r.end) for r in stored.catalogue().ranges(replid)]


# Building.


def test_an_empty_folder_holds_nothing() -> None:
    catalogue = Stored().catalogue()
    assert catalogue.all_ranges() == []
    assert catalogue.newest_history() is None
    assert (catalogue.stored_bytes, catalogue.problems) == (0, [])


def test_a_recording_is_in_the_catalogue() -> None:
    stored = Stored({"source.json": 50, "marks/later": 3})
    stored.history(A)
    snapshot = stored.snapshot(A, 100)
    later = stored.segment(A, 150, 200)
    earlier = stored.segment(A, 100, 150)
    stored.gap(A, 200, 300, "why")
    catalogue = stored.catalogue()
    assert catalogue.histories == {A: History(A, "first", BEGAN)}
    assert catalogue.segments == {A: [earlier, later]}
    assert [s.name for s in catalogue.snapshots] == [snapshot]
    assert [gap.reason for gap in catalogue.gaps] == ["why"]
    assert catalogue.stored_bytes == sum(stored.listing.values())
    assert catalogue.problems == []


def test_key_filters_are_in_no_one_s_way() -> None:
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 1000)
    segment = stored.segment(A, 1000, 2000)
    before = stored.catalogue()
    stored.listing[FilterName(segment).path] = 100
    after = stored.catalogue()
    assert after.stored_bytes == before.stored_bytes + 100
    before.stored_bytes += 100
    assert after == before


def test_only_documents_that_are_needed_are_asked_for() -> None:
    stored = Stored({"source.json": 50, "marks/a.json": 3})
    stored.history(A)
    name = stored.snapshot(A, 100)
    stored.segment(A, 100, 150)
    stored.gap(A, 200, None, "why")
    needed = [HistoryName(A).path, name.manifest, GapName(A, 200, None).path]
    assert sorted(documents_of(stored.listing)) == sorted(needed)


def test_histories_are_in_the_order_they_began() -> None:
    stored = Stored()
    stored.history(C, created=3)
    stored.history(A, created=2)
    stored.history(B, created=1)
    assert list(stored.catalogue().histories) == [B, A, C]


def test_a_snapshot_without_its_manifest_is_not_there() -> None:
    stored = Stored()
    stored.history(A)
    name = stored.snapshot(A, 100)
    del stored.listing[name.manifest]
    assert stored.catalogue().snapshots == []


@pytest.mark.parametrize("length", [None, 0, 999, 1001])
def test_a_snapshot_of_another_length_is_not_there(length: int | None) -> None:
    stored = Stored()
    stored.history(A)
    name = stored.snapshot(A, 100)
    del stored.listing[name.rdb]
    if length is not None:
        stored.listing[name.rdb] = length
    catalogue = stored.catalogue()
    assert catalogue.snapshots == []
    assert catalogue.problems == [f"{name.rdb} is missing or not 1000 bytes"]


def test_a_damaged_document_is_a_problem_and_hides_nothing_else() -> None:
    stored = Stored()
    stored.history(A)
    stored.history(B)
    stored.snapshot(A, 100)
    damaged = stored.snapshot(A, 120)
    stored.segment(A, 100, 150)
    stored.gap(A, 150, 200, "why")
    for path in (HistoryName(B).path, damaged.manifest, GapName(A, 150, 200).path):
        stored.document(path, b'{"replid": ')
    catalogue = stored.catalogue()
    assert [(r.start, r.end) for r in catalogue.all_ranges()] == [(100, 150)]
    assert sorted(
        problem.split(" is damaged: ")[0] for problem in catalogue.problems
    ) == [
        GapName(A, 150, 200).path,
        HistoryName(B).path,
        damaged.manifest,
    ]


def test_a_document_in_the_place_of_another_is_a_problem() -> None:
    stored = Stored()
    name = stored.snapshot(A, 100)
    stored.history(A)
    stored.history(B)
    stored.gap(A, 150, 200, "why")
    paths = [HistoryName(A).path, name.manifest, GapName(A, 150, 200).path]
    wrong = SnapshotName(A, 101, name.time)
    stored.document(paths[0], stored.contents[HistoryName(B).path])
    stored.document(paths[1], documents.encode(manifest(wrong)))
    other = stored.contents[paths[2]].replace(b"200", b"201")
    stored.document(paths[2], other)
    catalogue = stored.catalogue()
    assert sorted(catalogue.problems) == sorted(
        f"{path} is damaged: it is about something else" for path in paths
    )
    assert (catalogue.snapshots, catalogue.gaps) == ([], [])


def test_a_history_without_its_document_is_still_restorable() -> None:
    stored = Stored()
    stored.segment(A, 100, 150)
    stored.snapshot(A, 100)
    stored.segment(B, 7, 9)
    catalogue = stored.catalogue()
    assert [(r.start, r.end) for r in catalogue.ranges(A)] == [(100, 150)]
    assert catalogue.histories[A].created == time_at(100)
    assert catalogue.problems == [f"{HistoryName(r).path} is missing" for r in (A, B)]


def test_a_history_with_a_damaged_document_is_still_restorable() -> None:
    stored = Stored()
    stored.segment(A, 100, 150)
    stored.snapshot(A, 100)
    stored.document(HistoryName(A).path, b"{}")
    catalogue = stored.catalogue()
    assert [(r.start, r.end) for r in catalogue.ranges(A)] == [(100, 150)]
    assert len(catalogue.problems) == 1


# Lineages.


def family() -> Stored:
    stored = Stored()
    stored.history(A, created=1)
    stored.history(B, parent=A, fork=100, created=2, reason="failover")
    stored.history(C, parent=B, fork=200, created=3, reason="failover")
    return stored


def test_a_lineage_is_cut_at_the_forks() -> None:
    catalogue = family().catalogue()
    assert catalogue.lineage(A) == (Part(A, None, None),)
    assert catalogue.lineage(B) == (Part(A, None, 100), Part(B, 100, None))
    assert catalogue.lineage(C) == (
        Part(A, None, 100),
        Part(B, 100, 200),
        Part(C, 200, None),
    )


def test_every_offset_of_a_lineage_is_told_by_one_part() -> None:
    for replid in (A, B, C):
        lineage = family().catalogue().lineage(replid)
        for offset in range(300):
            assert sum(part.holds(offset) for part in lineage) == 1
    lineage = family().catalogue().lineage(C)
    told = {
        offset: p.replid
        for offset in (100, 101, 200, 201)
        for p in lineage
        if p.holds(offset)
    }
    assert told == {100: A, 101: B, 200: B, 201: C}


def test_a_child_that_forked_before_its_parent_did_shares_less() -> None:
    stored = family()
    stored.history(D, parent=C, fork=90, created=4)
    lineage = stored.catalogue().lineage(D)
    assert [(part.replid, part.end) for part in lineage] == [
        (A, 90),
        (B, 90),
        (C, 90),
        (D, None),
    ]
    for offset in range(300):
        assert [p.replid for p in lineage if p.holds(offset)] == [
            A if offset <= 90 else D
        ]


def test_a_history_whose_parent_is_missing_is_taken_as_the_first() -> None:
    stored = Stored()
    stored.history(B, parent=A, fork=100)
    assert stored.catalogue().lineage(B) == (Part(B, None, None),)
    stored.snapshot(B, 100)
    stored.segment(B, 100, 110)
    assert spans(stored, B) == [(100, 110)]


def test_a_parent_shares_nothing_if_it_is_not_known_where_the_fork_was() -> None:
    stored = Stored()
    stored.history(A)
    stored.history(B, parent=A)
    assert stored.catalogue().lineage(B) == (Part(B, None, None),)


def test_histories_that_name_each_other_as_parents_have_an_end() -> None:
    stored = Stored()
    stored.history(A, parent=C, fork=300)
    stored.history(B, parent=A, fork=100)
    stored.history(C, parent=B, fork=200)
    stored.history(D, parent=D, fork=5)
    stored.snapshot(A, 50)
    catalogue = stored.catalogue()
    assert [part.replid for part in catalogue.lineage(A)] == [B, C, A]
    assert [part.replid for part in catalogue.lineage(B)] == [C, A, B]
    assert catalogue.lineage(D) == (Part(D, None, None),)
    assert catalogue.all_ranges() == []
    assert catalogue.newest_history() is None


# What can be restored.


def test_a_range_goes_from_a_snapshot_to_a_hole() -> None:
    stored = Stored()
    stored.history(A)
    stored.segment(A, 50, 100)
    stored.segment(A, 100, 150)
    stored.segment(A, 160, 200)
    stored.snapshot(A, 100)
    catalogue = stored.catalogue()
    assert catalogue.ranges(A) == [Range(A, 100, 150, time_at(100), time_at(150))]


def test_ranges_that_overlap_are_one() -> None:
    stored = Stored()
    stored.history(A)
    for start, end in [(0, 10), (5, 12), (5, 20), (20, 30), (18, 25), (40, 50)]:
        stored.segment(A, start, end)
    for offset in (0, 7, 20, 30, 33, 40, 45):
        stored.snapshot(A, offset)
    assert spans(stored) == [(0, 30), (33, 33), (40, 50)]


def test_a_snapshot_alone_is_a_range_of_one_offset() -> None:
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 7, time=5)
    assert stored.catalogue().ranges(A) == [Range(A, 7, 7, 5, 5)]


def test_of_two_snapshots_at_an_offset_the_range_begins_with_the_earlier() -> None:
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 7, time=9)
    stored.snapshot(A, 7, time=5)
    assert stored.catalogue().ranges(A) == [Range(A, 7, 7, 5, 5)]


def test_a_range_begins_at_the_fork_if_the_parent_reaches_it() -> None:
    stored = Stored()
    stored.history(A)
    stored.history(B, parent=A, fork=100, created=time_at(100))
    stored.snapshot(A, 0)
    stored.segment(A, 0, 120)
    stored.segment(B, 100, 150)
    catalogue = stored.catalogue()
    assert catalogue.all_ranges() == [
        Range(A, 0, 120, time_at(0), time_at(120)),
        Range(B, 100, 150, time_at(100), time_at(150)),
    ]


def test_a_range_does_not_begin_at_a_fork_that_the_parent_does_not_reach() -> None:
    stored = Stored()
    stored.history(A)
    stored.history(B, parent=A, fork=100)
    stored.snapshot(A, 0)
    stored.segment(A, 0, 99)
    stored.segment(B, 100, 150)
    stored.snapshot(B, 120)
    assert spans(stored, B) == [(120, 150)]


def test_a_fork_without_a_byte_can_be_restored() -> None:
    stored = Stored()
    stored.history(A)
    stored.history(B, parent=A, fork=100, created=time_at(100))
    stored.snapshot(A, 0)
    stored.segment(A, 0, 130)
    expected = Range(B, 100, 100, time_at(100), time_at(100))
    assert stored.catalogue().ranges(B) == [expected]


def test_bytes_that_a_child_has_from_before_the_fork_are_the_same_bytes() -> None:
    """One agent followed the old primary to 100, another lost its link at 90."""
    stored = Stored()
    stored.history(A)
    stored.history(B, parent=A, fork=100, created=time_at(90))
    stored.snapshot(A, 0)
    first = stored.segment(A, 0, 90)
    second = stored.segment(B, 90, 150)
    catalogue = stored.catalogue()
    (stretch,) = catalogue.stretches(catalogue.lineage(B))
    assert stretch.slices == (Slice(first, 0, 90), Slice(second, 90, 150))
    assert catalogue.all_ranges() == [
        Range(A, 0, 90, time_at(0), time_at(90)),
        Range(B, 90, 150, time_at(90), time_at(150)),
    ]


def test_a_full_resync_with_a_parent_is_restorable_from_its_snapshot_on() -> None:
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0)
    stored.segment(A, 0, 120)
    stored.history(B, parent=A, fork=100, created=time_at(300), reason="full-resync")
    stored.segment(B, 150, 160, first=time_at(310), last=time_at(320))
    # Its snapshot is not complete: the parent is the one to go on with.
    assert spans(stored, B) == []
    assert stored.catalogue().newest_history() == A
    stored.snapshot(B, 150, time=time_at(300))
    assert stored.catalogue().ranges(B) == [
        Range(B, 150, 160, time_at(300), time_at(320))
    ]
    assert stored.catalogue().newest_history() == B


def test_a_history_that_begins_at_a_hole_of_its_parent_is_not_reached_from_there() -> (
    None
):
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0)
    stored.segment(A, 0, 80)
    stored.history(B, parent=A, fork=100, created=time_at(90))
    stored.segment(B, 90, 150)
    assert spans(stored, B) == []
    stored.snapshot(A, 95)
    assert spans(stored, B) == [(95, 150)]


def test_of_segments_that_overlap_the_one_that_reaches_furthest_is_taken() -> None:
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 2, time=8)
    first = stored.segment(A, 0, 10)
    stored.segment(A, 5, 12)
    stored.segment(A, 6, 9)
    third = stored.segment(A, 8, 30)
    catalogue = stored.catalogue()
    slices = (Slice(first, 2, 10), Slice(third, 10, 30))
    assert catalogue.stretches(catalogue.lineage(A)) == [Stretch(2, 8, slices)]


def test_a_range_ends_with_the_latest_receipt_of_any_of_its_segments() -> None:
    """Two agents' clocks may differ; a time within a range must be answered."""
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0, time=50)
    stored.segment(A, 0, 10, first=60, last=99)
    stored.segment(A, 10, 20, first=70, last=80)
    assert stored.catalogue().ranges(A) == [Range(A, 0, 20, 50, 99)]


def test_the_newest_history_is_where_something_was_stored_last() -> None:
    stored = Stored()
    for replid, created in ((A, 3), (B, 2), (C, 1)):
        stored.history(replid, created=created)
    stored.snapshot(A, 0, time=10)
    stored.snapshot(B, 0, time=5)
    stored.segment(B, 0, 9, first=6, last=20)
    assert stored.catalogue().newest_history() == B
    stored.segment(A, 0, 9, first=11, last=20)
    assert stored.catalogue().newest_history() == A


def test_a_history_without_a_complete_snapshot_is_not_the_newest() -> None:
    """Its bytes were uploaded before its snapshot, which then never came."""
    stored = Stored()
    stored.history(A)
    stored.history(B)
    stored.snapshot(A, 0)
    stored.segment(B, 100, 200)
    catalogue = stored.catalogue()
    assert catalogue.newest_history() == A
    assert catalogue.end(B) == 200


def test_a_history_ends_where_the_last_of_it_is_stored() -> None:
    stored = Stored()
    for replid in (A, B):
        stored.history(replid)
    stored.snapshot(A, 50)
    assert stored.catalogue().end(A) == 50
    stored.segment(A, 10, 70)
    stored.segment(A, 20, 40)
    assert stored.catalogue().end(A) == 70
    assert stored.catalogue().end(B) is None


def test_a_recording_goes_on_where_what_is_stored_ends() -> None:
    stored = Stored()
    stored.history(A)
    assert stored.catalogue().tip(A) is None
    snapshot = stored.snapshot(A, 50)
    assert stored.catalogue().tip(A) == snapshot
    last = stored.segment(A, 50, 70)
    stored.segment(A, 60, 65)
    assert stored.catalogue().tip(A) == last
    # The backlog did not reach back.
    later = stored.snapshot(A, 90)
    assert stored.catalogue().tip(A) == later


def test_after_a_server_went_back_a_recording_goes_on_behind_the_new_snapshot() -> None:
    """It was restored from an image of its disk; its replid is in that, too."""
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0)
    stored.segment(A, 0, 100)
    back = stored.snapshot(A, 40, time=time_at(200))
    assert stored.catalogue().tip(A) == back
    again = stored.segment(A, 40, 60, first=time_at(201), last=time_at(220))
    assert stored.catalogue().tip(A) == again
    beyond = stored.segment(A, 60, 130, first=time_at(221), last=time_at(290))
    assert stored.catalogue().tip(A) == beyond


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10))),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_clipped_slices_are_the_bytes_that_both_have(
    pairs: list[tuple[int, int]], start: int, end: int
) -> None:
    slices = [
        Slice(segment, segment.start, segment.end)
        for segment in segments(*((begin, begin + length) for begin, length in pairs))
    ]
    clipped = clip(slices, start, end)
    wanted = [set(range(s.start, s.end)) & set(range(start, end)) for s in slices]
    assert [set(range(s.start, s.end)) for s in clipped] == [w for w in wanted if w]
