"""What is queued gets to the repository in order, for as long as it takes.

The clock is a mock that stands still until it is told to jump.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from kvtape.errors import IdentityError, RepositoryError
from kvtape.record.spooling.position import stored_catalogue
from kvtape.record.uploading.stored import Stored
from kvtape.record.uploading.uploader import Uploader
from kvtape.replication.tracker import Summary
from kvtape.signal import Signal
from kvtape.storage.repository import SourceFolder
from kvtape.storage.spool import Spool
from kvtape.storage.store import LocalStore
from kvtape.tape.documents import History, Manifest, Server, encode
from kvtape.tape.names import HistoryName, SegmentName, SnapshotName, parse
from kvtape.tape.segment import Header, Mark, Writer
from tapes import command

REPLID = "a" * 40
TIME = 1_700_000_000_000
SET = command("SET", "key", "value")
HISTORY = HistoryName(REPLID)
SNAPSHOT = SnapshotName(REPLID, 1000, TIME)


Names = list[str]


class TroubledStore:
    """A folder whose put() does first what trouble does, and lasts if it does."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder)
        self.url = self.store.url
        self.trouble: Callable[[str], None] = lambda _: None
        self.puts: Names = []
        self.listed: Names = []
        self.opened: Names = []
        self.reading: Exception | None = None

    def list(self, prefix: str = "", depth: int | None = None) -> dict[str, int]:
        """List the folder."""
        self.listed.append(prefix)
        return self.store.list(prefix, depth)

    def read(self, path: str) -> bytes:
        """Read from the folder."""
        return self.store.read(path)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Read some of it from the folder."""
        return self.store.read_range(path, start, end)

    def open(self, path: str) -> BinaryIO:
        """Open in the folder, if nothing is in the way."""
        self.opened.append(path)
        if self.reading is not None:
            raise self.reading
        return self.store.open(path)

    def put(self, path: str, source: Path | bytes) -> None:
        """Put into the folder, if nothing is in the way."""
        self.puts.append(path.removeprefix("source/"))
        self.trouble(path)
        self.store.put(path, source)

    def delete(self, path: str) -> None:
        """Delete from the folder."""
        self.store.delete(path)


@pytest.fixture
def store(tmp_path: Path) -> TroubledStore:
    """Return an empty store."""
    return TroubledStore(tmp_path / "repo")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Return an open spool with a history, its snapshot and a segment."""
    spool = Spool(tmp_path / "spool")
    with closing(spool):
        spool.open("repository", "source")
        spool.queue_document(HISTORY.path, encode(History(REPLID, "first", TIME)))
        with spool.begin_snapshot() as file:
            file.write(b"snapshot")
        spool.queue_snapshot(SNAPSHOT, b"{}")
        queue_segment(spool, 1000)
        yield spool


def queue_segment(spool: Spool, start: int) -> SegmentName:
    segment = spool.begin_segment(Header(REPLID, start, 0, TIME))
    end = start + len(SET)
    marks = [Mark(end, TIME + start)]
    spool.append(segment.writer.frame(SET, marks, end, 0, Summary()))
    return spool.seal()


def new_uploader(spool: Spool, store: TroubledStore) -> Uploader:
    return Uploader(spool, SourceFolder(store, "source"), Signal(), Stored())


def stored(store: TroubledStore) -> set[str]:
    return set(SourceFolder(store, "source").list())


async def test_everything_is_stored_in_order_and_leaves_the_spool(
    spool: Spool, store: TroubledStore
) -> None:
    queued = list(spool.queued())
    assert len(queued) == 4
    uploader = new_uploader(spool, store)
    await uploader.upload_all()
    assert store.puts == queued
    assert stored(store) == set(queued)
    assert spool.queued() == {}
    assert uploader.stored.end(REPLID) == 1000 + len(SET)
    assert uploader.waiting == {}
    assert uploader.error is None


async def test_of_a_history_what_another_agent_wrote_first_stays(
    spool: Spool, store: TroubledStore
) -> None:
    first = encode(History(REPLID, "first", TIME - 5))
    SourceFolder(store, "source").put(HISTORY.path, first)
    await new_uploader(spool, store).upload_all()
    assert SourceFolder(store, "source").read(HISTORY.path) == first
    assert spool.queued() == {}


async def test_what_is_queued_later_is_stored_when_it_is_said(
    spool: Spool, store: TroubledStore
) -> None:
    uploader = new_uploader(spool, store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploader.run)
        while spool.queued():
            await wait_all_tasks_blocked(0.001)
        for start in (2000, 3000):
            name = queue_segment(spool, start)
            uploader._queued.fire()
            while name.path not in stored(store):
                await wait_all_tasks_blocked(0.001)
        uploader.finish()
    assert spool.queued() == {}


def test_what_is_uploaded_while_it_is_looked_for_is_found(
    spool: Spool, store: TroubledStore
) -> None:
    class Overtaken(TroubledStore):
        def list(self, prefix: str = "", depth: int | None = None) -> dict[str, int]:
            listing = super().list(prefix, depth)
            for path in spool.queued():
                self.put(f"source/{path}", spool.queued_file(path))
                spool.dequeue(path)
            return listing

    sizes = (8, 8, "", "REDIS", 9, None, None)
    manifest = Manifest(REPLID, 1000, TIME, TIME, *sizes, Server())
    spool.queued_file(SNAPSHOT.manifest).write_bytes(encode(manifest))
    folder = SourceFolder(Overtaken(store.store.folder), "source")
    found = stored_catalogue(folder, spool)
    assert spool.queued() == {}
    assert list(found.histories) == list(found.segments) == [REPLID]
    assert [snapshot.name for snapshot in found.snapshots] == [SNAPSHOT]


async def test_what_is_queued_while_it_uploads_is_not_missed(
    spool: Spool, store: TroubledStore
) -> None:
    uploader = new_uploader(spool, store)
    names: list[SegmentName] = []

    def queue_more(_: str) -> None:
        if len(names) < 3:
            names.append(queue_segment(spool, 2000 + len(names) * 1000))
            trio.from_thread.run_sync(uploader._queued.fire)

    store.trouble = queue_more
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploader.run)
        while len(stored(store)) < 7:
            await wait_all_tasks_blocked(0.001)
        uploader.finish()
    assert {name.path for name in names} < stored(store)


async def test_an_upload_that_fails_is_tried_again_after_longer_and_longer(
    spool: Spool, store: TroubledStore, mock_clock: MockClock
) -> None:
    def fail(path: str) -> None:
        raise RepositoryError(f"cannot write {path}: it is gone", is_passing=True)

    store.trouble = fail
    uploader = new_uploader(spool, store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploader.run)
        for number in range(8):
            while len(store.puts) <= number:
                await wait_all_tasks_blocked(0.001)
            await wait_all_tasks_blocked(0.001)
            assert "it is gone" in str(uploader.error)
            longest = min(30, 0.5 * 2**number)
            mock_clock.jump(longest / 2 - 0.01)
            await wait_all_tasks_blocked(0.005)
            assert len(store.puts) == number + 1
            mock_clock.jump(longest / 2 + 0.02)
        assert stored(store) == set()
        assert len(spool.queued()) == 4
        assert uploader.waiting == spool.queued()
        store.trouble = lambda _: None
        mock_clock.jump(30)
        while spool.queued():
            await wait_all_tasks_blocked(0.001)
        uploader.finish()
    assert uploader.error is None
    assert set(store.puts) == stored(store)


async def test_another_recordings_bytes_under_one_of_our_names_end_it(
    spool: Spool, store: TroubledStore
) -> None:
    store.put(f"source/{SNAPSHOT.rdb}", b"other")
    with pytest.raises(IdentityError, match="holds something else"):
        await new_uploader(spool, store).run()
    assert SNAPSHOT.rdb in spool.queued()


async def test_what_stood_in_the_place_of_ours_may_go_again(
    spool: Spool, store: TroubledStore, mock_clock: MockClock
) -> None:
    def fail(path: str) -> None:
        # Of the first object, a history: what another agent wrote counts.
        raise IdentityError("it is there already, and not when it is read")

    store.trouble = fail
    uploader = new_uploader(spool, store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploader.run)
        while uploader.error is None:
            await wait_all_tasks_blocked(0.001)
        assert "cannot compare" in str(uploader.error)
        store.trouble = lambda _: None
        mock_clock.jump(1)
        while spool.queued():
            await wait_all_tasks_blocked(0.001)
        uploader.finish()


async def test_what_needs_a_hand_is_said_once_and_asked_about_rarely(
    spool: Spool,
    store: TroubledStore,
    mock_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(path: str) -> None:
        raise RepositoryError("the bucket does not exist: create it")

    store.trouble = fail
    uploader = new_uploader(spool, store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploader.run)
        for number in range(4):
            while len(store.puts) <= number:
                await wait_all_tasks_blocked(0.001)
            await wait_all_tasks_blocked(0.001)
            mock_clock.jump(59.9)
            await wait_all_tasks_blocked(0.005)
            assert len(store.puts) == number + 1
            mock_clock.jump(0.2)
        assert caplog.text.count("create it; recording goes on into the spool") == 1
        store.trouble = lambda _: None
        while spool.queued():
            mock_clock.jump(60)
            await wait_all_tasks_blocked(0.005)
        uploader.finish()
    assert uploader.failures >= 4
    assert uploader.uploads == 4


# Two agents.


def segment_of(
    replid: str, start: int, *frames: bytes, first: int = TIME
) -> tuple[SegmentName, bytes]:
    """Return a segment of these frames, received at once."""
    writer = Writer(Header(replid, start, 0, first))
    content, end = writer.header_bytes(), start
    for frame in frames:
        end += len(frame)
        content += writer.frame(frame, [Mark(end, first)], end, 0, Summary())
    content += writer.ending()
    return SegmentName(replid, start, end, first, first), content


OTHER = command("SET", "key", "other")
GET = command("SET", "k", "v" * 100)


async def test_segments_that_overlap_and_hold_the_same_are_fine_however_cut(
    spool: Spool, store: TroubledStore
) -> None:
    folder = SourceFolder(store, "source")
    for start, frames in {
        1000 - len(GET): (GET, SET),
        1000 - 2 * len(GET): (GET, GET, SET + GET),
        1000 + len(SET): (OTHER,),
    }.items():
        name, content = segment_of(REPLID, start, *frames, first=TIME + 5000)
        folder.put(name.path, content)
    uploader = new_uploader(spool, store)
    uploader.finish()
    await uploader.run()
    assert spool.queued() == {}
    assert store.opened


async def test_other_bytes_in_the_same_place_end_it_and_both_are_kept(
    spool: Spool, store: TroubledStore
) -> None:
    folder = SourceFolder(store, "source")
    name, content = segment_of(REPLID, 1000 - len(GET), GET, OTHER)
    folder.put(name.path, content)
    queued = set(spool.queued())
    with pytest.raises(IdentityError) as caught:
        await new_uploader(spool, store).run()
    at = 1000 + next(
        n for n, (a, b) in enumerate(zip(SET, OTHER, strict=False)) if a != b
    )
    assert f"hold different bytes at offset {at} of {REPLID}: two servers" in str(
        caught.value
    )
    assert name.path in str(caught.value)
    assert stored(store) == queued | {name.path}


async def test_what_is_stored_alone_is_never_read_back(
    spool: Spool, store: TroubledStore
) -> None:
    for start in range(2000, 5000, 500):
        queue_segment(spool, start)
    uploader = new_uploader(spool, store)
    uploader.finish()
    await uploader.run()
    assert store.opened == []
    assert len(store.listed) == 1


async def test_one_name_may_hold_other_frames_of_the_same_stream(
    spool: Spool, store: TroubledStore
) -> None:
    name = next(n for n in map(parse, spool.queued()) if isinstance(n, SegmentName))
    _, content = segment_of(REPLID, name.start, SET[:10], SET[10:], first=name.first)
    SourceFolder(store, "source").put(name.path, content)
    uploader = new_uploader(spool, store)
    uploader.finish()
    await uploader.run()
    assert spool.queued() == {}
    assert SourceFolder(store, "source").read(name.path) == content


@pytest.mark.parametrize("whole", [True, False], ids=["other bytes", "damaged"])
async def test_one_name_with_something_else_in_it_ends_it_and_ours_stays(
    spool: Spool, store: TroubledStore, *, whole: bool
) -> None:
    name = next(n for n in map(parse, spool.queued()) if isinstance(n, SegmentName))
    _, content = segment_of(REPLID, name.start, OTHER, first=name.first)
    content = content if whole else content[:-40]
    SourceFolder(store, "source").put(name.path, content)
    with pytest.raises(IdentityError, match="ours is kept in") as caught:
        await new_uploader(spool, store).run()
    assert str(spool.queued_file(name.path)) in str(caught.value)
    assert name.path in spool.queued()
    assert SourceFolder(store, "source").read(name.path) == content


async def test_a_damaged_segment_of_another_is_said_and_is_no_other_story(
    spool: Spool, store: TroubledStore, caplog: pytest.LogCaptureFixture
) -> None:
    name, content = segment_of(REPLID, 1000 - len(GET), GET, SET)
    SourceFolder(store, "source").put(name.path, content[:90])
    uploader = new_uploader(spool, store)
    uploader.finish()
    await uploader.run()
    assert f"{name.path} is damaged" in caplog.text


async def test_a_comparison_that_fails_is_made_later(
    spool: Spool, store: TroubledStore, mock_clock: MockClock
) -> None:
    name, content = segment_of(REPLID, 1000, OTHER, first=TIME + 60_000)
    SourceFolder(store, "source").put(name.path, content)
    store.reading = RepositoryError("it is gone", is_passing=True)
    uploader = new_uploader(spool, store)
    with pytest.RaisesGroup(IdentityError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(uploader.run)
            while uploader.error is None:
                await wait_all_tasks_blocked(0.001)
            assert spool.queued() == {}
            store.reading = None
            mock_clock.jump(30)


class DiedError(BaseException):
    """The program ended here."""


@pytest.mark.parametrize("is_stored", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(4))
async def test_a_death_at_any_call_leaves_no_snapshot_in_part_and_loses_nothing(
    spool: Spool, store: TroubledStore, call: int, *, is_stored: bool
) -> None:
    queued = spool.queued()

    def die(path: str) -> None:
        if len(store.puts) == call + 1:
            if is_stored:
                store.store.put(path, spool.queued_file(path.removeprefix("source/")))
            raise DiedError

    store.trouble = die
    with pytest.raises(DiedError):
        await new_uploader(spool, store).upload_all()
    assert len(stored(store)) == call + is_stored
    assert stored(store) | set(spool.queued()) == set(queued)
    if SNAPSHOT.manifest in stored(store):
        assert SNAPSHOT.rdb in stored(store)
    store.trouble = lambda _: None
    await new_uploader(spool, store).upload_all()
    assert SourceFolder(store, "source").list() == queued
    assert spool.queued() == {}


async def test_what_the_spool_cannot_delete_is_an_error_that_passes(
    spool: Spool,
    store: TroubledStore,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Spool, path: str) -> None:
        raise OSError(5, f"Input/output error at {path}")

    uploader = new_uploader(spool, store)
    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as broken:
            broken.setattr(Spool, "dequeue", fail)
            nursery.start_soon(uploader.run)
            while uploader.error is None:
                await wait_all_tasks_blocked(0.001)
        assert "cannot delete" in str(uploader.error)
        assert stored(store) == {HISTORY.path}
        mock_clock.jump(30)
        while spool.queued():
            await wait_all_tasks_blocked(0.001)
        uploader.finish()


async def test_finishing_tries_again_at_once_and_then_waits_again(
    spool: Spool, store: TroubledStore, mock_clock: MockClock
) -> None:
    def fail(path: str) -> None:
        raise RepositoryError(f"cannot write {path}", is_passing=True)

    store.trouble = fail
    uploader = new_uploader(spool, store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploader.run)
        for number in range(1, 7):
            while len(store.puts) < number:
                mock_clock.jump(30)
                await wait_all_tasks_blocked(0.005)
        uploader.finish()
        while len(store.puts) < 7:
            await wait_all_tasks_blocked(0.001)
        await wait_all_tasks_blocked(0.01)
        assert len(store.puts) == 7
        store.trouble = lambda _: None
        mock_clock.jump(1)
    assert spool.queued() == {}


async def test_finishing_with_nothing_queued_returns_at_once(
    spool: Spool, store: TroubledStore
) -> None:
    uploader = new_uploader(spool, store)
    await uploader.upload_all()
    uploader.finish()
    with trio.fail_after(20):
        await uploader.run()


async def test_a_store_that_does_not_answer_does_not_keep_it_from_being_cancelled(
    spool: Spool, store: TroubledStore
) -> None:
    may_go_on = threading.Event()

    def hang(_: str) -> None:
        may_go_on.wait()

    store.trouble = hang
    uploader = new_uploader(spool, store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploader.run)
        while not store.puts:
            await wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()
    may_go_on.set()
    await new_uploader(spool, store).upload_all()
    assert len(stored(store)) == 4
