"""What is read between two points is every byte of the story, and what is missing."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvtape.errors import PointError, UsageError
from kvtape.tape.catalogue import Catalogue, Slice
from kvtape.tape.documents import Gap, encode
from kvtape.tape.names import GapName
from kvtape.tape.orphans import orphans, stories
from kvtape.tape.point import Point, ToLatest, ToOffset, ToTime, format_time
from kvtape.tape.span import Hole, Span, choose_span, runs
from stored import A, B, C, D, Stored, time_at
from test_plan import FAR, REPLIDS, Model, models

offsets = st.integers(0, FAR)
times = st.integers(-1, FAR + 3).map(time_at)


def bytes_in(span: Span) -> list[int]:
    return [byte for s in span.slices for byte in range(s.start, s.end)]


def owned(slices: tuple[Slice, ...]) -> set[tuple[str, int]]:
    return {(s.segment.replid, byte) for s in slices for byte in range(s.start, s.end)}


def refused(catalogue: Catalogue, *points: Point | None) -> str:
    with pytest.raises((PointError, UsageError)) as caught:
        choose_span(catalogue, *points)
    return str(caught.value)


@given(models(), st.sampled_from(REPLIDS), offsets, offsets)
def test_between_offsets_it_is_every_byte_of_the_history(
    model: Model, replid: str, first: int, last: int
) -> None:
    assume(model.segments)
    catalogue = model.stored().catalogue()
    stored = model.bytes(replid)
    ends = {end for byte in stored for end in (byte, byte + 1)}
    points = ToOffset(first, replid), ToOffset(last, replid)
    if first > last:
        assert "before it begins" in refused(catalogue, *points)
    elif not {first, last} <= ends:
        assert "is recorded" in refused(catalogue, *points) or "is not recorded" in (
            refused(catalogue, *points)
        )
    else:
        span = choose_span(catalogue, *points)
        within = sorted(byte for byte in stored if first <= byte < last)
        assert bytes_in(span) == within
        missing = {*range(first, last)} - stored
        told = [byte for hole in span.holes for byte in range(hole.start, hole.end)]
        assert sorted(told) == sorted(missing)


@given(models())
def test_all_of_it_is_everything_but_what_was_orphaned(model: Model) -> None:
    assume(model.segments)
    catalogue = model.stored().catalogue()
    span = choose_span(catalogue)
    assert span == choose_span(catalogue, None, ToLatest())
    told = bytes_in(span)
    expected = [
        byte
        for story in stories(catalogue)
        for slice_ in catalogue.bytes_of(story, 0, 2**63)
        for byte in range(slice_.start, slice_.end)
    ]
    assert sorted(told) == sorted(expected)
    lost = [orphan.slices for orphan in orphans(catalogue)]
    for slices in lost:
        assert not owned(slices) & owned(span.slices)
    assert len(span.holes) == max(0, len(runs(catalogue, span.slices)) - 1)
    for one, other in pairwise(span.slices):
        family = catalogue.lineage(other.segment.replid)
        if one.segment.replid in {part.replid for part in family}:
            assert one.end <= other.start


@given(models(), times, times)
def test_between_times_it_is_what_was_received_then(
    model: Model, after: int, until: int
) -> None:
    assume(model.segments)
    catalogue = model.stored().catalogue()
    points = ToTime(after), ToTime(until)
    whole = choose_span(catalogue)
    assume(whole.slices)
    within = tuple(
        slice_
        for slice_ in whole.slices
        if slice_.segment.last > after and slice_.segment.first <= until
    )
    if after > until or not within:
        assert refused(catalogue, *points)
        return
    span = choose_span(catalogue, *points)
    assert (span.slices, span.after, span.until) == (within, after, until)
    assert {*span.holes} <= {*whole.holes}
    for hole in whole.holes:
        overlaps = hole.end_time > after and hole.start_time <= until
        assert hole in span.holes or not overlaps
    # Between two runs there is always one.
    for one, other in pairwise(runs(catalogue, within)):
        assert any(
            (hole.start, hole.end) == (one[-1].end, other[0].start)
            for hole in span.holes
        ) or _is_left_out(whole, one[-1], other[0])


def _is_left_out(whole: Span, one: Slice, other: Slice) -> bool:
    """Whether something of the story lies between two slices, out of the times."""
    return whole.slices.index(other) - whole.slices.index(one) > 1


def recording() -> Stored:
    """Return a history with a hole, and one that forked from it behind it."""
    stored = Stored()
    stored.history(A)
    stored.segment(A, 0, 100)
    stored.segment(A, 150, 200)
    stored.gap(A, 100, 150, "the disk was full")
    stored.history(B, parent=A, fork=180, created=time_at(200), reason="failover")
    stored.segment(B, 180, 300, first=time_at(210), last=time_at(310))
    return stored


def test_a_hole_comes_with_its_ends_its_times_and_its_reason() -> None:
    span = choose_span(recording().catalogue())
    assert span.holes == (
        Hole(A, 100, A, 150, time_at(100), time_at(151), "the disk was full"),
    )
    assert bytes_in(span) == [*range(100), *range(150, 300)]
    assert [s.segment.replid for s in span.slices] == [A, A, B]


def test_a_hole_without_a_reason_has_none() -> None:
    stored = recording()
    stored.segment(B, 400, 500)
    _, hole = choose_span(stored.catalogue()).holes
    assert (hole.start, hole.end, hole.reason) == (300, 400, None)


def test_the_reason_is_that_of_the_hole_and_not_of_another() -> None:
    stored = recording()
    stored.gap(A, 10, 20, "long ago, and filled")
    stored.segment(B, 400, 500)
    stored.gap(B, 300, 400, "the second")
    reasons = [hole.reason for hole in choose_span(stored.catalogue()).holes]
    assert reasons == ["the disk was full", "the second"]


def test_the_reason_of_another_time_is_not_given() -> None:
    stored = recording()
    gap = Gap(B, 300, None, time_at(1), time_at(2), "before the server went back")
    stored.document(GapName(B, 300, None).path, encode(gap))
    stored.segment(B, 400, 500)
    assert choose_span(stored.catalogue()).holes[-1].reason is None


def test_full_resyncs_follow_in_the_order_of_time() -> None:
    stored = Stored()
    stored.history(B, created=time_at(500), reason="full-resync")
    stored.segment(B, 0, 50, first=time_at(500), last=time_at(550))
    stored.history(A)
    stored.segment(A, 100, 200)
    stored.gap(A, 200, None, "another server")
    stored.history(C, created=time_at(900), reason="full-resync")
    stored.history(D, created=time_at(700), reason="full-resync")
    stored.segment(D, 50, 60, first=time_at(700), last=time_at(710))
    span = choose_span(stored.catalogue())
    assert [slice_.segment.replid for slice_ in span.slices] == [A, B, D]
    first, second = span.holes
    assert (first.replid, first.start, first.end_replid, first.end) == (A, 200, B, 0)
    # Its offset goes on where the other ends, by chance.
    assert (second.replid, second.start, second.end_replid, second.end) == (
        B,
        50,
        D,
        50,
    )
    assert second.reason is None


def test_what_a_failover_lost_is_left_out_unless_it_is_named() -> None:
    catalogue = recording().catalogue()
    [orphan] = orphans(catalogue)
    assert (orphan.start, orphan.end) == (180, 200)
    span = choose_span(catalogue)
    assert (A, 190) not in owned(span.slices)
    span = choose_span(catalogue, None, ToOffset(200, A[:4]))
    assert (A, 190) in owned(span.slices)
    assert (B, 190) not in owned(span.slices)


def test_the_segments_of_two_agents_are_read_once() -> None:
    stored = Stored()
    stored.history(A)
    for start, end in ((0, 60), (20, 100), (60, 120), (100, 110), (120, 130)):
        stored.segment(A, start, end)
    span = choose_span(stored.catalogue())
    assert bytes_in(span) == [*range(130)]
    assert span.holes == ()


def test_a_bare_offset_is_one_of_the_newest_history_and_its_ancestors() -> None:
    stored = recording()
    stored.snapshot(A, 0)
    for catalogue in (recording().catalogue(), stored.catalogue()):
        span = choose_span(catalogue, ToOffset(170), ToOffset(190))
        expected = {
            *((A, n) for n in range(170, 180)),
            *((B, n) for n in range(180, 190)),
        }
        assert owned(span.slices) == expected


def test_an_offset_and_a_time_bound_it_together() -> None:
    catalogue = recording().catalogue()
    span = choose_span(catalogue, ToOffset(160), ToTime(time_at(205)))
    assert owned(span.slices) == {(A, n) for n in range(160, 180)}
    assert span.until == time_at(205)
    span = choose_span(catalogue, ToTime(time_at(205)), ToOffset(200, B))
    assert owned(span.slices) == {(B, n) for n in range(180, 200)}


def test_nothing_is_between_two_equal_offsets() -> None:
    span = choose_span(recording().catalogue(), ToOffset(50), ToOffset(50))
    assert span.slices == ()


def test_a_hole_is_told_of_where_only_one_side_of_it_was_asked_for() -> None:
    catalogue = recording().catalogue()
    [hole] = choose_span(catalogue).holes
    for after, until in ((110, 160), (50, 120)):
        span = choose_span(catalogue, ToTime(time_at(after)), ToTime(time_at(until)))
        assert span.holes == (hole,)
    assert choose_span(catalogue, ToTime(time_at(155))).holes == ()
    assert choose_span(catalogue, None, ToTime(time_at(95))).holes == ()


@pytest.mark.parametrize(
    ("start", "end", "said", "status"),
    [
        (ToTime(2), ToTime(1), "the range ends at 1970-01-01T00:00:00.001Z, before", 2),
        (ToOffset(60), ToOffset(50), "the range ends at 50, before it begins at 60", 2),
        (
            ToOffset(120),
            None,
            f"offset 120 of the history {B} is not recorded; the ",
            3,
        ),
        (ToOffset(120), None, "the nearest that are: 100 and 150", 3),
        (ToOffset(301), None, "the nearest that is: 300", 3),
        (None, ToOffset(120, A), f"offset 120 of the history {A} is not", 3),
        (ToOffset(5, "cccc"), None, "no history begins with cccc", 3),
        (ToOffset(250, B), ToOffset(260, A), f"{A} does not come from {B}, so", 3),
        (ToOffset(190, A), ToOffset(260, B), "parted from it at 180", 3),
        (None, ToTime(time_at(0)), "ends before the first recorded byte, which was", 3),
        (None, ToTime(time_at(0)), format_time(time_at(1)), 3),
        (
            ToTime(time_at(310)),
            None,
            "begins after the last recorded byte, which was",
            3,
        ),
        (ToTime(time_at(310)), None, format_time(time_at(310)), 3),
        (
            ToTime(time_at(110)),
            ToTime(time_at(120)),
            f"received at {format_time(time_at(100))} and {format_time(time_at(151))}",
            3,
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_nearest_that_can(
    start: Point | None, end: Point | None, said: str, status: int
) -> None:
    with pytest.raises((PointError, UsageError), match=re.escape(said)) as caught:
        choose_span(recording().catalogue(), start, end)
    assert caught.value.exit_status == status


def test_where_nothing_was_written_there_is_nothing_to_read() -> None:
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0)
    for points in ((), (ToOffset(0),), (ToTime(time_at(0)),)):
        assert "no stream is recorded yet" in refused(stored.catalogue(), *points)


def test_a_history_of_which_nothing_is_recorded_is_said_to_be_so() -> None:
    stored = recording()
    stored.history(C, created=time_at(900), reason="full-resync")
    said = refused(stored.catalogue(), ToOffset(5, C))
    assert said.startswith(f"nothing is recorded of the history {C}")
