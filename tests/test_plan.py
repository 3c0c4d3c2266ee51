"""A plan is what a simple enumeration of every byte would find, or there is none.

The model below knows nothing of slices and ranges: it walks over bytes one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import PointError, UsageError
from kvtape.tape.catalogue import Catalogue, Slice
from kvtape.tape.plan import Plan, choose
from kvtape.tape.point import Point, ToLatest, ToOffset, ToTime, format_time
from stored import BEGAN, A, B, C, D, Stored, time_at

# Histories of the model are at most this long.
FAR = 24

REPLIDS = (A, B, C, D)


@dataclass
class Model:
    """What is stored of each history: its parent and fork, its bytes, its snapshots."""

    parents: dict[str, tuple[str, int]]
    segments: list[tuple[str, int, int]]
    snapshots: list[tuple[str, int]]

    def stored(self) -> Stored:
        """Return the same as names and documents; each byte takes 10 ms."""
        stored = Stored()
        for number, replid in enumerate(REPLIDS):
            parent, fork = self.parents.get(replid, (None, None))
            created = time_at(self.begin(replid)) + number
            stored.history(replid, parent=parent, fork=fork, created=created)
        for segment in self.segments:
            stored.segment(*segment)
        for snapshot in self.snapshots:
            stored.snapshot(*snapshot)
        return stored

    def bounds(self, replid: str) -> dict[str, int]:
        """Return up to where each history tells the story of replid."""
        bounds = {replid: FAR + 10}
        limit = FAR + 10
        while replid in self.parents:
            replid, fork = self.parents[replid]
            limit = min(limit, fork)
            bounds[replid] = limit
        return bounds

    def bytes(self, replid: str) -> set[int]:
        """Return the offset of every stored byte of a lineage."""
        bounds = self.bounds(replid)
        return {
            offset
            for owner, start, end in self.segments
            for offset in range(start, min(end, bounds.get(owner, 0)))
        }

    def usable(self, replid: str) -> set[int]:
        """Return the offsets of the snapshots of a lineage."""
        bounds = self.bounds(replid)
        return {
            offset
            for owner, offset in self.snapshots
            if owner in bounds
            and self.parents.get(owner, ("", 0))[1] <= offset <= bounds[owner]
        }

    def restorable(self, replid: str) -> dict[int, int]:
        """Return every offset that can be restored, and the newest snapshot for it."""
        stored, usable = self.bytes(replid), self.usable(replid)
        found = {}
        for offset in range(FAR + 5):
            at = offset
            while at not in usable and at - 1 in stored:
                at -= 1
            if at in usable:
                found[offset] = at
        return found

    def begin(self, replid: str) -> int:
        """Return where a history's own bytes begin, at its fork at the latest."""
        if replid not in self.parents:
            return 0
        starts = [start for owner, start, _ in self.segments if owner == replid]
        return min([self.parents[replid][1], *starts])

    def own(self, replid: str) -> list[int]:
        """Return what info lists of a history: nothing from before its own bytes."""
        begin = self.begin(replid)
        return [offset for offset in self.restorable(replid) if offset >= begin]

    def holder(self, replid: str, offset: int) -> str:
        """Return the history that says what the state at an offset was."""
        while replid in self.parents and offset <= self.parents[replid][1]:
            replid = self.parents[replid][0]
        return replid


@st.composite
def models(draw: st.DrawFn) -> Model:
    offsets = st.integers(0, FAR)
    parents = {}
    for number, replid in enumerate(REPLIDS[1:], start=1):
        if draw(st.booleans()):
            parent = draw(st.sampled_from(REPLIDS[:number]))
            parents[replid] = (parent, draw(offsets))
    owners = st.sampled_from(REPLIDS)
    spans = st.tuples(owners, offsets, st.integers(1, 8)).map(
        lambda drawn: (drawn[0], drawn[1], min(FAR, drawn[1] + drawn[2]))
    )
    segments = draw(st.lists(spans.filter(lambda s: s[1] < s[2]), max_size=14))
    snapshots = draw(st.lists(st.tuples(owners, offsets), min_size=1, max_size=5))
    return Model(parents, segments, snapshots)


def refusal(catalogue: Catalogue, point: Point) -> str:
    """Return what is said when a point cannot be restored."""
    with pytest.raises(PointError) as caught:
        choose(catalogue, point)
    assert caught.value.exit_status == 3
    return str(caught.value)


def check_slices(model: Model, replid: str, plan: Plan) -> None:
    """Check that a plan's slices are the bytes it needs, and bytes it may use."""
    bounds = model.bounds(replid)
    position = plan.snapshot.name.offset
    for slice_ in plan.slices:
        segment = slice_.segment
        assert slice_.start == position
        assert segment.start <= slice_.start < slice_.end <= segment.end
        assert slice_.end <= bounds[segment.replid]
        position = slice_.end
    assert position == plan.offset
    assert plan.stream_bytes == plan.offset - plan.snapshot.name.offset


@given(models())
def test_every_offset_of_every_history_is_planned_as_the_model_says(
    model: Model,
) -> None:
    catalogue = model.stored().catalogue()
    if not catalogue.all_ranges():
        return
    for replid in REPLIDS:
        restorable = model.restorable(replid)
        for offset in range(FAR + 5):
            point = ToOffset(offset, replid)
            if offset not in restorable:
                said = refusal(catalogue, point)
                below = max((o for o in restorable if o < offset), default=None)
                above = min((o for o in restorable if o > offset), default=None)
                for near in (below, above):
                    assert near is None or f"{replid}:{near}" in said
                continue
            plan = choose(catalogue, point)
            assert plan.offset == offset
            assert plan.time is None
            assert plan.replid == model.holder(replid, offset)
            assert plan.snapshot.name.offset == restorable[offset]
            check_slices(model, replid, plan)


@given(models())
def test_what_info_lists_is_what_can_be_planned(model: Model) -> None:
    catalogue = model.stored().catalogue()
    for replid in REPLIDS:
        ranges = catalogue.ranges(replid)
        listed = [offset for r in ranges for offset in range(r.start, r.end + 1)]
        assert listed == model.own(replid)
        for range_ in ranges:
            assert model.bytes(replid) >= set(range(range_.start, range_.end))
            assert range_.start_time <= range_.end_time
    assert [r.replid for r in catalogue.all_ranges()] == sorted(
        (r.replid for r in catalogue.all_ranges()), key=list(catalogue.histories).index
    )


@given(models())
def test_a_bare_offset_is_one_of_the_newest_history_and_its_ancestors(
    model: Model,
) -> None:
    catalogue = model.stored().catalogue()
    newest = catalogue.newest_history()
    if newest is None:
        return
    for offset in range(FAR + 5):
        point = ToOffset(offset)
        fitting = [replid for replid in REPLIDS if offset in model.own(replid)]
        if offset in model.restorable(newest):
            assert choose(catalogue, point) == choose(
                catalogue, ToOffset(offset, newest)
            )
        elif fitting:
            said = refusal(catalogue, point)
            assert all((f"{r}:{offset}" in said) == (r in fitting) for r in REPLIDS)
        else:
            named = refusal(catalogue, ToOffset(offset, newest))
            assert refusal(catalogue, point) == named.replace(f"{newest}:", "")


def last_at(time: int) -> int:
    """Return the last offset that was reached by a time."""
    return (time - BEGAN) // 10


@given(models(), st.integers(-20, 10 * FAR + 100))
def test_every_time_of_a_range_is_planned_and_no_other(model: Model, ms: int) -> None:
    """The reader looks for the offset within the last slice; so does this."""
    catalogue = model.stored().catalogue()
    ranges = catalogue.all_ranges()
    time = BEGAN + ms
    holding = [r for r in ranges if r.start_time <= time <= r.end_time]
    if not ranges:
        return
    if not holding:
        said = refusal(catalogue, ToTime(time))
        near = [r.end_time for r in ranges if r.end_time < time]
        assert not near or format_time(max(near)) in said
        near = [r.start_time for r in ranges if r.start_time > time]
        assert not near or format_time(min(near)) in said
        return
    begun = max(range_.start_time for range_ in holding)
    # Histories are drawn in the order they began: the later one is meant.
    (range_,) = [r for r in holding if r.start_time == begun][-1:]
    plan = choose(catalogue, ToTime(time))
    check_slices(model, range_.replid, plan)
    assert plan.snapshot.name.time <= time
    reached = plan.offset
    if plan.time is not None:
        assert plan.time == time
        assert plan.slices[-1].start < last_at(time) + 1
        reached = min(reached, last_at(time))
    assert reached == max(range_.start, min(range_.end, last_at(time)))


@given(models())
def test_the_latest_is_the_end_of_the_range_that_ends_last(model: Model) -> None:
    catalogue = model.stored().catalogue()
    ranges = catalogue.all_ranges()
    if not ranges:
        assert "nothing can be restored yet" in refusal(catalogue, ToLatest())
        return
    last = max(range_.end_time for range_ in ranges)
    plan = choose(catalogue, ToLatest())
    assert plan.offset in [r.end for r in ranges if r.end_time == last]
    assert plan in [choose(catalogue, ToOffset(r.end, r.replid)) for r in ranges]


@given(
    st.dictionaries(
        st.sampled_from(REPLIDS),
        st.tuples(
            st.sampled_from([*REPLIDS, "e" * 40, None]),
            st.none() | st.integers(0, 20),
            st.integers(0, 500),
        ),
    ),
    st.lists(
        st.tuples(
            st.sampled_from(REPLIDS),
            st.integers(0, 20),
            st.integers(1, 9),
            st.integers(0, 500),
            st.integers(0, 500),
        ),
        max_size=8,
    ),
    st.lists(
        st.tuples(st.sampled_from(REPLIDS), st.integers(0, 20), st.integers(0, 500)),
        max_size=4,
    ),
)
def test_nonsense_is_planned_or_refused(
    histories: dict[str, tuple[str | None, int | None, int]],
    segments: list[tuple[str, int, int, int, int]],
    snapshots: list[tuple[str, int, int]],
) -> None:
    """Parents in a circle or nowhere, clocks that disagree: no crash, and no end."""
    stored = Stored()
    for replid, (parent, fork, created) in histories.items():
        stored.history(replid, parent=parent, fork=fork, created=created)
    for replid, start, length, first, last in segments:
        stored.segment(replid, start, start + length, first, last)
    for snapshot in snapshots:
        stored.snapshot(*snapshot)
    catalogue = stored.catalogue()
    ranges = catalogue.all_ranges()
    for offset in range(0, 40, 3):
        for prefix in (None, *catalogue.histories):
            try:
                plan = choose(catalogue, ToOffset(offset, prefix))
            except PointError:
                continue
            assert plan.offset == offset
    for range_ in ranges:
        for time in (range_.start_time, range_.end_time):
            plan = choose(catalogue, ToTime(time))
            assert plan.snapshot.name.time <= time
    if ranges:
        choose(catalogue, ToLatest())


# By example.


def recording(*, snapshot: int = 0, until: int = 100, length: int = 10) -> Stored:
    """Return one history in segments of equal length."""
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, snapshot)
    for start in range(0, until, length):
        stored.segment(A, start, start + length)
    return stored


def test_nothing_can_be_restored_before_the_first_snapshot_is_complete() -> None:
    for point in (ToLatest(), ToOffset(0), ToTime(BEGAN)):
        assert "no snapshot is complete" in refusal(Stored().catalogue(), point)


@pytest.mark.parametrize(
    ("offset", "says"),
    [
        (4, "is before the first snapshot; the first that can be restored is 5"),
        (101, "is after the last recorded byte; the last that can be restored is 100"),
    ],
)
def test_an_offset_outside_is_refused_with_the_nearest(offset: int, says: str) -> None:
    catalogue = recording(snapshot=5).catalogue()
    assert says in refusal(catalogue, ToOffset(offset))
    named = says.replace("restored is ", "restored is aaaa:")
    assert named in refusal(catalogue, ToOffset(offset, "aaaa"))


def test_an_offset_in_a_gap_is_refused_with_both_sides_and_the_reason() -> None:
    stored = recording()
    stored.snapshot(A, 150)
    stored.gap(A, 100, 150, "the backlog did not reach back")
    stored.gap(B, 90, 160, "another history's")
    said = refusal(stored.catalogue(), ToOffset(120))
    assert "in a gap (the backlog did not reach back); the nearest" in said
    assert "restored are 100 and 150" in said


def test_an_offset_behind_a_gap_without_end_is_refused_with_the_reason() -> None:
    stored = recording()
    stored.gap(A, 100, None, "the primary was replaced")
    said = refusal(stored.catalogue(), ToOffset(120))
    assert "after the last recorded byte (the primary was replaced); the last" in said


def test_the_reason_of_another_gap_is_not_given() -> None:
    stored = recording()
    stored.gap(A, 40, 50, "before it")
    stored.gap(A, 130, 140, "behind it")
    stored.gap(B, 100, None, "another history's")
    said = refusal(stored.catalogue(), ToOffset(120))
    assert "after the last recorded byte; the last" in said


def test_an_offset_in_the_gap_of_a_full_resync_is_refused_with_the_reason() -> None:
    stored = recording()
    stored.history(B, parent=A, fork=90, created=time_at(500), reason="full-resync")
    stored.snapshot(B, 150, time=time_at(500))
    stored.segment(B, 150, 160, first=time_at(510), last=time_at(520))
    stored.gap(A, 90, None, "failed over")
    said = refusal(stored.catalogue(), ToOffset(120))
    assert "in a gap (failed over); the nearest that can be" in said
    assert "restored are 90 and 150" in said
    said = refusal(stored.catalogue(), ToOffset(170))
    assert "170 is after the last recorded byte; the last" in said


def test_a_history_may_be_named_by_its_beginning() -> None:
    catalogue = recording().catalogue()
    assert choose(catalogue, ToOffset(7, "aaaa")) == choose(catalogue, ToOffset(7, A))


def test_an_unknown_history_is_refused_with_those_there_are() -> None:
    said = refusal(recording().catalogue(), ToOffset(7, "bbbb"))
    assert said == f"no history begins with bbbb; there are: {A}"


def test_a_beginning_of_several_histories_is_a_usage_error() -> None:
    stored = recording()
    other = "a" * 39 + "b"
    stored.history(other)
    with pytest.raises(UsageError, match=r"several histories begin with aaaa: a+, a+b"):
        choose(stored.catalogue(), ToOffset(7, "aaaa"))


def test_a_history_without_a_snapshot_is_refused_for_that() -> None:
    stored = recording()
    stored.history(B)
    stored.segment(B, 0, 10)
    said = refusal(stored.catalogue(), ToOffset(7, B))
    assert f"nothing of the history {B} can be restored: it has no snapshot" in said


def test_an_orphaned_end_has_to_be_named() -> None:
    """What the old primary wrote after the fork is no part of the newest history."""
    stored = recording(until=120)
    stored.history(B, parent=A, fork=100, created=time_at(100), reason="failover")
    stored.segment(B, 100, 110, first=time_at(150), last=time_at(160))
    catalogue = stored.catalogue()
    assert choose(catalogue, ToOffset(110)).replid == B
    assert choose(catalogue, ToOffset(100)).replid == A
    said = refusal(catalogue, ToOffset(115))
    assert f"the newest history, {B}" in said
    assert f"name the one you mean, {A}:115" in said
    plan = choose(catalogue, ToOffset(115, A))
    assert {slice_.segment.replid for slice_ in plan.slices} == {A}


def test_an_older_snapshot_reaches_where_a_newer_one_behind_a_hole_does_not() -> None:
    stored = recording(until=50)
    stored.snapshot(A, 60)
    assert choose(stored.catalogue(), ToOffset(50)).snapshot.name.offset == 0


def test_of_two_snapshots_at_an_offset_the_later_is_taken() -> None:
    stored = recording()
    later = stored.snapshot(A, 0, time=BEGAN + 5)
    assert choose(stored.catalogue(), ToOffset(7)).snapshot.name == later


# A recording received from BEGAN on, a byte each 10 ms, in segments of 100 ms.


@pytest.mark.parametrize(
    ("ms", "offset", "is_within"),
    [
        (0, 0, False),
        (9, 0, False),
        (10, 10, True),
        (55, 10, True),
        (100, 10, False),
        (105, 10, False),
        (110, 20, True),
        (999, 100, True),
        (1000, 100, False),
    ],
)
def test_a_time_is_the_end_of_the_segment_it_falls_into(
    ms: int, offset: int, is_within: bool
) -> None:
    plan = choose(recording().catalogue(), ToTime(BEGAN + ms))
    assert plan.offset == offset
    assert plan.time == (BEGAN + ms if is_within else None)


def test_a_time_outside_is_refused_with_the_nearest() -> None:
    stored = recording(snapshot=20)
    stored.snapshot(A, 200)
    catalogue = stored.catalogue()
    first, end, second = (format_time(time_at(offset)) for offset in (20, 100, 200))
    said = refusal(catalogue, ToTime(time_at(20) - 1))
    assert said.endswith(
        f"before the first snapshot; the nearest that can be restored: {first}"
    )
    said = refusal(catalogue, ToTime(time_at(150)))
    assert said.endswith(
        f"in a gap; the nearest that can be restored: {end} and {second}"
    )
    said = refusal(catalogue, ToTime(time_at(200) + 1))
    assert said.endswith(
        f"after the last recorded byte; the nearest that can be restored: {second}"
    )


def test_a_snapshot_taken_after_the_time_is_not_used() -> None:
    """Its segment was begun before the time, and holds it in the middle."""
    stored = recording(until=100, length=100)
    later = stored.snapshot(A, 50)
    catalogue = stored.catalogue()
    assert choose(catalogue, ToTime(later.time)).snapshot.name == later
    assert choose(catalogue, ToTime(later.time - 1)).snapshot.name.offset == 0


def test_a_time_after_a_fork_is_one_of_the_new_history() -> None:
    stored = recording()
    stored.history(B, parent=A, fork=80, created=time_at(80))
    stored.segment(B, 80, 90)
    catalogue = stored.catalogue()
    assert choose(catalogue, ToTime(time_at(79))).slices[-1].segment.replid == A
    assert choose(catalogue, ToTime(time_at(80))).offset == 80
    assert choose(catalogue, ToTime(time_at(85))).slices[-1].segment.replid == B
    assert choose(catalogue, ToTime(time_at(95))).replid == A


def test_a_time_at_which_two_histories_begin_is_one_of_the_later() -> None:
    stored = Stored()
    stored.history(A)
    stored.history(B, parent=A, fork=0, created=time_at(0))
    stored.snapshot(A, 0)
    stored.segment(A, 0, 10)
    later = stored.segment(B, 0, 10)
    plan = choose(stored.catalogue(), ToTime(time_at(5)))
    assert [slice_.segment for slice_ in plan.slices] == [later]


def test_a_time_stops_at_the_first_segment_that_was_not_begun() -> None:
    """Another agent's clock is behind: its bytes come after, whatever they say."""
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0, time=100)
    stored.segment(A, 0, 10, first=110, last=120)
    stored.segment(A, 10, 20, first=150, last=160)
    stored.segment(A, 20, 30, first=125, last=135)
    plan = choose(stored.catalogue(), ToTime(130))
    assert (plan.offset, plan.time) == (10, None)


def test_a_time_stops_in_the_first_segment_that_goes_on_past_it() -> None:
    """Another agent's segment begins where the first had not arrived by then."""
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0)
    first = stored.segment(A, 0, 30)
    stored.segment(A, 10, 40)
    plan = choose(stored.catalogue(), ToTime(time_at(20)))
    assert (plan.slices, plan.time) == ((Slice(first, 0, 30),), time_at(20))


def test_the_latest_is_that_of_the_newest_history_where_times_are_equal() -> None:
    stored = recording()
    stored.history(B, parent=A, fork=40, created=time_at(40))
    stored.segment(B, 40, 50, last=time_at(100))
    plan = choose(stored.catalogue(), ToLatest())
    assert (plan.replid, plan.offset) == (B, 50)


@pytest.mark.parametrize("offset", [5, 10, 27, 30, 93, 100])
def test_a_plan_that_is_cut_is_the_plan_for_where_it_was_cut(offset: int) -> None:
    catalogue = recording(snapshot=5).catalogue()
    plan = choose(catalogue, ToOffset(100))
    assert plan.cut(offset) == choose(catalogue, ToOffset(offset))
    assert choose(catalogue, ToTime(time_at(95))).cut(93).time is None


def test_a_plan_says_which_bytes_it_needs() -> None:
    stored = Stored()
    stored.history(A)
    stored.history(B, parent=A, fork=20)
    snapshot = stored.snapshot(A, 5)
    first, second = stored.segment(A, 0, 15), stored.segment(A, 15, 25)
    third = stored.segment(B, 20, 40)
    plan = choose(stored.catalogue(), ToOffset(33, B))
    assert plan.snapshot.name == snapshot
    assert (plan.replid, plan.offset, plan.stream_bytes) == (B, 33, 28)
    assert plan.slices == (
        Slice(first, 5, 15),
        Slice(second, 15, 20),
        Slice(third, 20, 33),
    )
