"""What is called stored can be restored, in whatever order it was uploaded."""

from __future__ import annotations

import random

import pytest

import stored as folders
from kvtape.record.uploading.stored import Stored, stored_before
from kvtape.tape import catalogue, documents
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.documents import History
from kvtape.tape.names import HistoryName, SegmentName, SnapshotName, parse
from stored import A, B, C


def upload(stored: Stored, folder: folders.Stored, path: str) -> None:
    """Do what the uploader does when a path is stored."""
    match parse(path):
        case SegmentName() as segment:
            stored.add_segment(segment)
        case SnapshotName() as snapshot if path == snapshot.manifest:
            stored.add_snapshot(snapshot)
        case HistoryName():
            content = folder.contents[path]
            stored.add_history(documents.decode(History, content, path))
        case _:
            pass


def all_uploaded(folder: folders.Stored) -> Stored:
    stored = Stored()
    for path in folder.listing:
        upload(stored, folder, path)
    return stored


def restorable(built: Catalogue, replid: str) -> int | None:
    """Return the last offset that a restore could reach."""
    if replid not in built.histories:
        return None
    stretches = built.stretches(built.lineage(replid))
    return stretches[-1].end if stretches else None


def part_of(folder: folders.Stored, paths: list[str]) -> Catalogue:
    listing = {path: folder.listing[path] for path in paths}
    asked = catalogue.documents_of(listing)
    contents = {path: folder.contents[path] for path in asked}
    return catalogue.build(listing, contents)


def story() -> folders.Stored:
    """Return two failovers, the second back behind the first, and a full resync."""
    folder = folders.Stored()
    folder.history(A)
    folder.snapshot(A, 100)
    for start in range(100, 500, 100):
        folder.segment(A, start, start + 100)
    folder.history(B, A, 450, reason="failover")
    folder.segment(B, 450, 600)
    folder.segment(B, 600, 700)
    folder.history(C, B, 650, reason="failover")
    folder.segment(C, 650, 800)
    folder.snapshot(C, 900)
    folder.segment(C, 900, 1000)
    return folder


def test_nothing_is_stored_before_the_snapshot_is() -> None:
    folder = folders.Stored()
    folder.history(A)
    folder.segment(A, 100, 200)
    stored = all_uploaded(folder)
    assert stored.end(A) is None
    assert stored.end(B) is None
    assert stored.end(None) is None
    stored.add_snapshot(folder.snapshot(A, 100))
    assert stored.end(A) == 200


def test_it_ends_before_a_hole_and_goes_on_when_that_is_filled() -> None:
    folder = folders.Stored()
    folder.history(A)
    folder.snapshot(A, 100)
    folder.segment(A, 100, 200)
    folder.segment(A, 300, 400)
    folder.segment(A, 400, 500)
    stored = all_uploaded(folder)
    assert stored.end(A) == 200
    stored.add_segment(folder.segment(A, 200, 300))
    assert stored.end(A) == 500


def test_after_a_failover_what_both_histories_share_counts() -> None:
    folder = folders.Stored()
    folder.history(A)
    folder.snapshot(A, 100)
    folder.history(B, A, 300, reason="failover")
    stored = all_uploaded(folder)
    assert stored.end(B) == 100
    stored.add_segment(folder.segment(B, 300, 400))
    assert stored.end(B) == 100
    # The parent may have been recorded beyond the fork.
    stored.add_segment(folder.segment(A, 100, 350))
    assert stored.end(A) == 350
    assert stored.end(B) == 400


def test_a_history_that_is_its_own_ancestor_ends() -> None:
    folder = folders.Stored()
    folder.history(A, B, 100)
    folder.history(B, A, 100)
    stored = all_uploaded(folder)
    assert stored.end(A) is None
    stored.add_snapshot(folder.snapshot(A, 100))
    assert stored.end(A) == 100


def test_of_a_server_that_went_back_nothing_is_certain_before_its_new_snapshot() -> (
    None
):
    folder = folders.Stored()
    folder.history(A)
    folder.snapshot(A, 50)
    folder.segment(A, 50, 100)
    folder.history(B, A, 100)
    folder.segment(B, 100, 300)
    stored = all_uploaded(folder)
    # A gap is not going back.
    stored.go_back(B, 400)
    assert stored.end(B) == 300
    stored.go_back(B, 200)
    assert stored.end(B) is None
    assert stored.end(A) == 100
    # What was received before is uploaded first.
    stored.add_segment(folder.segment(B, 150, 350))
    stored.add_snapshot(folder.snapshot(B, 200, folders.time_at(1000)))
    assert stored.end(B) == 200
    times = folders.time_at(1001), folders.time_at(1002)
    stored.add_segment(folder.segment(B, 200, 220, *times))
    assert stored.end(B) == 220
    assert stored_before(folder.catalogue(), ()).end(B) == 220


@pytest.mark.parametrize("seed", range(30))
def test_in_any_order_it_is_never_ahead_and_in_the_end_it_is_all(seed: int) -> None:
    folder = story()
    paths, stored = list(folder.listing), Stored()
    random.Random(seed).shuffle(paths)
    # Only that a manifest is uploaded behind its RDB file is for certain.
    paths.sort(key=lambda path: not path.endswith("rdb.zst"))
    for number, path in enumerate(paths, 1):
        upload(stored, folder, path)
        built = part_of(folder, paths[:number])
        for replid in (A, B, C):
            end = stored.end(replid)
            assert end is None or end <= (restorable(built, replid) or -1)
    assert [stored.end(replid) for replid in (A, B, C)] == [500, 700, 1000]


def test_after_a_restart_what_was_stored_counts_and_what_is_queued_does_not() -> None:
    folder = story()
    paths = list(folder.listing)
    for number in range(len(paths) + 1):
        queued = paths[number:]
        stored = stored_before(folder.catalogue(), queued)
        built = part_of(folder, paths[:number])
        assert stored.end(C) in (None, restorable(built, C))
        for path in queued:
            upload(stored, folder, path)
        assert stored.end(C) == 1000
    assert stored_before(folder.catalogue(), ()).end(C) == 1000


def test_a_history_that_forked_just_before_a_restart_counts_from_its_fork_on() -> None:
    """Its document is stored, and not one byte of it; it is not uploaded again."""
    folder = folders.Stored()
    folder.history(A)
    folder.snapshot(A, 100)
    folder.segment(A, 100, 500)
    folder.history(B, A, 450, reason="failover")
    stored = stored_before(folder.catalogue(), ())
    stored.add_segment(SegmentName(B, 450, 600, 1, 2))
    assert stored.end(B) == 600


def test_what_another_agent_stored_counts_once_it_is_found() -> None:
    """But nothing does of a history whose server went back, before its snapshot."""
    stored, found = Stored(), stored_before(story().catalogue(), ())
    stored.merge(found)
    assert (stored.end(A), stored.end(B), stored.end(C)) == (
        found.end(A),
        found.end(B),
        found.end(C),
    )
    stored.go_back(C, 850)
    stored.merge(found)
    assert stored.end(C) is None
