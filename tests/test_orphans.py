"""What failovers lost is every recorded byte that the story does not come by, once."""

from __future__ import annotations

from hypothesis import given

from kvtape.tape.orphans import orphans, unknown
from stored import A, B, C, D, Stored, time_at
from test_plan import FAR, REPLIDS, Model, models


def byte_of(model: Model, replid: str, byte: int) -> tuple[str, int]:
    """Return what a byte of a history is: the history that it was first written in."""
    return model.holder(replid, byte + 1), byte


def root_of(model: Model, replid: str) -> str:
    while replid in model.parents:
        replid = model.parents[replid][0]
    return replid


@given(models())
def test_the_story_and_what_was_lost_are_everything_recorded(model: Model) -> None:
    catalogue = model.stored().catalogue()
    recorded = {
        byte_of(model, owner, byte)
        for owner, start, end in model.segments
        for byte in range(start, end)
    }
    lost = [
        byte_of(model, orphan.replid, byte)
        for orphan in orphans(catalogue)
        for slice_ in orphan.slices
        for byte in range(slice_.start, slice_.end)
    ]
    assert len(lost) == len(set(lost))
    # Of every family there is one branch that came by all the rest.
    for root in {root_of(model, replid) for replid in REPLIDS}:
        family = [r for r in REPLIDS if root_of(model, r) == root]
        stories = [
            {byte_of(model, leaf, byte) for byte in range(FAR + 10)} for leaf in family
        ]
        rest = {byte for byte in recorded - set(lost) if byte[0] in family}
        gone = {byte for byte in lost if byte[0] in family}
        assert any(rest <= story and not gone & story for story in stories)


def forked(*, until: int = 120) -> Stored:
    """Return a history that ends behind the fork of the next."""
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0)
    stored.segment(A, 0, until)
    stored.history(B, parent=A, fork=100, created=time_at(100), reason="failover")
    return stored


def lost(stored: Stored) -> list[tuple[str, int, int, int, str]]:
    return [
        (orphan.replid, orphan.fork, orphan.start, orphan.end, orphan.successor)
        for orphan in orphans(stored.catalogue())
    ]


def test_what_is_behind_a_fork_is_lost_also_before_the_first_byte_of_the_heir() -> None:
    stored = forked()
    assert lost(stored) == [(A, 100, 100, 120, B)]
    stored.segment(B, 100, 150, first=time_at(130), last=time_at(180))
    assert lost(stored) == [(A, 100, 100, 120, B)]
    assert lost(forked(until=100)) == []


def test_a_branch_from_an_orphaned_end_is_orphaned_as_a_whole() -> None:
    stored = forked()
    stored.segment(B, 100, 150, first=time_at(130), last=time_at(180))
    stored.history(C, parent=A, fork=110, created=time_at(110), reason="failover")
    stored.segment(C, 105, 140, first=time_at(125), last=time_at(160))
    assert lost(stored) == [(A, 100, 100, 120, B), (C, 100, 110, 140, B)]
    # Unless it is the one that goes on.
    stored.segment(C, 140, 150, first=time_at(200), last=time_at(210))
    assert lost(stored) == [(B, 100, 100, 150, A), (A, 110, 110, 120, C)]


def test_after_two_failovers_each_lost_its_own() -> None:
    stored = forked()
    stored.segment(B, 100, 150, first=time_at(130), last=time_at(180))
    stored.history(C, parent=B, fork=140, created=time_at(170), reason="failover")
    stored.segment(C, 140, 160, first=time_at(190), last=time_at(200))
    assert lost(stored) == [(A, 100, 100, 120, B), (B, 140, 140, 150, C)]
    # The last one was promoted so long ago that it has not even the first fork.
    stored.history(D, parent=C, fork=90, created=time_at(210), reason="failover")
    stored.segment(D, 90, 95, first=time_at(220), last=time_at(230))
    assert {row[0]: row[1:] for row in lost(stored)} == {
        A: (90, 90, 120, D),
        B: (90, 100, 150, D),
        C: (90, 140, 160, D),
    }


def test_a_full_resync_at_a_promoted_server_says_what_was_lost() -> None:
    stored = forked()
    stored.history(B, parent=A, fork=100, created=time_at(300), reason="full-resync")
    assert lost(stored) == []  # its snapshot never became whole
    stored.snapshot(B, 130, time=time_at(300))
    assert lost(stored) == [(A, 100, 100, 120, B)]
    assert unknown(stored.catalogue()) == []


def test_a_full_resync_without_a_parent_lost_nobody_knows_what() -> None:
    stored = Stored()
    stored.history(A)
    stored.snapshot(A, 0)
    stored.segment(A, 0, 120)
    stored.history(B, created=time_at(300), reason="full-resync")
    stored.snapshot(B, 130, time=time_at(300))
    [found] = unknown(stored.catalogue())
    assert (found.replid, found.successor, found.time) == (None, B, time_at(300))
    stored.gap(A, 120, None, "restarted")
    [found] = unknown(stored.catalogue())
    assert found.replid is None  # another resync's
    assert lost(stored) == []


def test_a_fork_of_which_nothing_is_stored_lost_nothing() -> None:
    stored = Stored()
    stored.history(B, parent=A, fork=100, reason="failover")
    assert lost(stored) == []
    stored.history(C, created=time_at(300), reason="full-resync")
    assert unknown(stored.catalogue()) == []
