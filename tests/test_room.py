"""The spool knows how full it is, and the recording what that means for it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvtape.errors import RepositoryError
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.room import Gauge, Room, has_enough_free
from kvtape.replication.tracker import Summary
from kvtape.storage.spool import Spool, SpoolFullError
from kvtape.tape.names import HistoryName, SnapshotName
from kvtape.tape.segment import Header, Mark
from small_disk import small_disk

REPLID = "a" * 40
TIME = 1_700_000_000_000
GIB = 2**30


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", limit=100_000)
    spool.open("repository", "source")
    yield spool
    spool.close()


def walked(spool: Spool) -> int:
    """Return what is in the two folders, by looking at each file."""
    return sum(
        Path(folder, name).stat().st_size
        for part in ("recording", "queue")
        for folder, _, names in os.walk(spool.folder / part)
        for name in names
    )


def append(spool: Spool, data: bytes) -> None:
    segment = spool.segment or spool.begin_segment(Header(REPLID, 0, 0, TIME))
    writer = segment.writer
    end = writer.end + len(data)
    marks = [Mark(end, TIME + end)]
    spool.append(writer.frame(data, marks, end, 0, Summary({b"SET": 3})))


def write_snapshot(spool: Spool, data: bytes) -> None:
    with spool.begin_snapshot() as file:
        file.write(data)
        spool.grow_snapshot(file.tell())


def test_what_is_used_is_what_a_walk_finds_after_every_call(spool: Spool) -> None:
    steps = random.Random(3)
    for number in range(300):
        match steps.randrange(8):
            case 0 | 1 | 2:
                append(spool, steps.randbytes(steps.randrange(1, 5000)))
            case 3 if spool.segment is not None:
                spool.seal()
            case 4:
                write_snapshot(spool, steps.randbytes(3000))
                if steps.random() < 0.5:
                    name = SnapshotName(REPLID, number, TIME)
                    spool.queue_snapshot(name, b"manifest")
                else:
                    spool.drop_snapshot()
            case 5:
                spool.queue_document(HistoryName(REPLID).path, b"x" * number)
            case 6:
                for path in list(spool.queued())[:2]:
                    spool.dequeue(path)
                    spool.dequeue(path)
            case _:
                list(spool.recover())
        assert spool.used == walked(spool)


def test_what_a_crash_left_is_counted_at_the_start(spool: Spool) -> None:
    append(spool, b"x" * 1000)
    spool.sync()
    spool.queue_document(HistoryName(REPLID).path, b"history")
    write_snapshot(spool, b"half of it")
    used = spool.used
    spool.close()
    with (spool.folder / "recording" / "stream.seg").open("ab") as file:
        file.write(b"torn")
    again = Spool(spool.folder)
    again.open("repository", "source")
    assert again.used == walked(again) == used + len(b"torn") - len(b"half of it")
    list(again.recover())
    assert again.used == walked(again) == used - len(b"half of it")
    again.close()


def test_what_is_uploaded_while_something_is_recorded_is_counted_once(
    spool: Spool,
) -> None:
    has_ended = threading.Event()

    def upload() -> None:
        while not has_ended.is_set() or spool.queued():
            for path in spool.queued():
                spool.dequeue(path)

    uploader = threading.Thread(target=upload)
    uploader.start()
    for number in range(200):
        # The folder of a queue may be looked at just when a file goes.
        with suppress(FileNotFoundError):
            spool.queue_document(HistoryName(f"{number:040d}").path, b"x" * number)
        append(spool, b"y" * 100)
    has_ended.set()
    uploader.join()
    assert spool.used == walked(spool)


def test_at_the_limit_nothing_more_may_be_received(spool: Spool) -> None:
    spool.require_room()
    append(spool, random.Random(1).randbytes(100_000))
    with pytest.raises(SpoolFullError, match=r"is full: .*100000 \(--spool-limit\)"):
        spool.require_room()


# What is said of it.


def test_each_level_is_said_once_with_how_long_it_lasts() -> None:
    gauge = Gauge(limit=100 * GIB)
    said = [gauge.look(percent * GIB, float(percent)) for percent in range(101)]
    assert [percent for percent in range(101) if said[percent]] == [70, 90]
    assert said[70] == (
        "the spool is 70 % full: 70.0 GiB of 100.0 GiB (--spool-limit); at the present "
        "rate it is full in 30 s"
    )


def test_a_level_that_is_left_is_said_once_and_not_at_every_segment() -> None:
    gauge = Gauge(limit=100)
    levels = [72, 69, 71, 68, 70, 91, 86, 92, 84, 89, 66, 64, 69, 10]
    said = [gauge.look(level, time) for time, level in enumerate(levels)]
    assert [level for level, text in zip(levels, said, strict=True) if text] == [
        *(72, 91, 84, 64)
    ]
    assert said[8] == "the spool is below 90 % again: 84 B"


def test_a_spool_that_was_filled_long_ago_is_said_not_to_grow() -> None:
    gauge = Gauge(limit=100)
    assert "it does not grow now" in str(gauge.look(75, 0.0))


def test_beyond_the_limit_it_is_said_what_that_means() -> None:
    said = str(Gauge(limit=100).look(110, 0.0))
    assert "110 % full" in said
    assert "nothing more is received" in said


def test_what_falls_through_both_levels_is_said_once() -> None:
    gauge = Gauge(limit=100)
    gauge.look(95, 0.0)
    assert gauge.look(5, 1.0) == "the spool is below 90 % again: 5 B"
    assert gauge.look(4, 2.0) is None


# Whether a snapshot fits.


def room(spool: Spool) -> Room:
    return Room(spool, ReceiptClock())


def test_a_snapshot_that_fits_or_of_which_nothing_is_known_is_taken(
    spool: Spool,
) -> None:
    assert room(spool).shortage(99_999) is None
    assert room(spool).shortage(None) is None


def test_a_snapshot_that_cannot_fit_is_refused_with_the_numbers(spool: Spool) -> None:
    shortage = room(spool).shortage(2**30)
    assert shortage is not None
    assert shortage.is_lasting
    assert "a snapshot needs up to 1.0 GiB" in shortage.sentence
    assert "room for 97.7 KiB" in shortage.sentence
    assert "raise --spool-limit" in shortage.sentence


def test_a_snapshot_that_fits_once_all_is_uploaded_is_waited_for(spool: Spool) -> None:
    append(spool, random.Random(1).randbytes(60_000))
    shortage = room(spool).shortage(50_000)
    assert shortage is not None
    assert not shortage.is_lasting


def test_the_room_of_a_snapshot_that_did_not_fit_is_not_tried_again(
    spool: Spool,
) -> None:
    tried = room(spool)
    append(spool, random.Random(1).randbytes(50_000))
    tried.note_too_little()
    shortage = tried.shortage(None)
    assert shortage is not None
    assert "as the last one showed" in shortage.sentence
    spool.seal()
    for path in spool.queued():
        spool.dequeue(path)
    assert tried.shortage(None) is None


def test_a_disk_that_is_full_is_not_written_to_until_some_of_it_is_free(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        spool = Spool(disk / "spool")
        assert not spool.folder.exists()
        spool.open("repository", "source")
        assert has_enough_free(spool)
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        total, _ = spool.disk()
        # Where nothing can be mounted, it is the real disk, which is never full.
        assert has_enough_free(spool) is (total > 2 * 1024 * 1024)
        filler.unlink()
        assert has_enough_free(spool)
        spool.close()


def test_a_full_spool_is_the_repositorys_fault() -> None:
    assert issubclass(SpoolFullError, RepositoryError)
    assert SpoolFullError.exit_status == 7
