"""What was synced to the spool is there after any crash, and what is there is whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from faulty_disk import FaultyDisk, KilledError
from kvtape.errors import IdentityError, RepositoryError
from kvtape.replication.tracker import Summary
from kvtape.storage.spool import Spool
from kvtape.tape.names import GapName, HistoryName, SegmentName, SnapshotName
from kvtape.tape.segment import NEED_DATA, Ending, Header, Mark, Parser
from spools import opened
from tapes import command, stream_of

REPLID = "0123456789" * 4
START = 1000
TIME = 1_700_000_000_000
HEADER = Header(REPLID, START, 0, TIME)

# One frame each: short ones, so that every byte of a file can be tried, and one whose
# bytes do not compress.
PIECES = [
    command("SET", "key", "value"),
    command("INCR", "counter") * 3,
    command("SET", "random", random.Random(1).randbytes(90)),
    command("PING"),
]
STREAM = b"".join(PIECES)
ENDS = [START + sum(map(len, PIECES[: n + 1])) for n in range(len(PIECES))]


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync nothing, where a test does so a thousand times and does not ask for it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def append(spool: Spool, data: bytes, *, is_whole: bool = True) -> None:
    segment = spool.segment
    assert segment is not None
    writer = segment.writer
    end = writer.end + len(data)
    boundary = end if is_whole else writer.boundary
    marks = [Mark(end, TIME + end)]
    spool.append(writer.frame(data, marks, boundary, 0, Summary({b"SET": 3})))


def record(spool: Spool, pieces: list[bytes]) -> None:
    """Record pieces behind what is there, a frame each, and sync them."""
    if spool.segment is None:
        spool.begin_segment(HEADER)
    for piece in pieces:
        append(spool, piece)
    spool.sync()


def recovered(spool: Spool) -> bytes:
    return b"".join(frame.stream() for frame in spool.recover())


def queue_of(spool: Spool) -> Path:
    return spool.folder / "queue"


def stream_file(folder: Path) -> Path:
    return folder / "recording" / "stream.seg"


# Whose it is.


def test_a_second_agent_is_refused_until_the_first_has_stopped(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for _ in range(2):
        with pytest.raises(RepositoryError, match="another kvtape records with the sp"):
            opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_another_sources_or_repositorys_spool_is_refused_and_left_alone(
    tmp_path: Path,
) -> None:
    spool = opened(tmp_path)
    record(spool, PIECES)
    spool.close()
    for repository, source in (("repository", "other"), ("other", "source")):
        with pytest.raises(
            IdentityError, match=r"'source' .*give this .* another --sp"
        ):
            Spool(tmp_path).open(repository, source)
    spool = opened(tmp_path)
    assert recovered(spool) == STREAM
    spool.close()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1"])
def test_a_damaged_document_of_the_spool_is_named(
    tmp_path: Path, content: bytes
) -> None:
    opened(tmp_path).close()
    document = (tmp_path / "spool.json").read_bytes()
    (tmp_path / "spool.json").write_bytes(content)
    with pytest.raises(RepositoryError, match=f"{tmp_path}/spool.json is damaged"):
        opened(tmp_path)
    (tmp_path / "spool.json").write_bytes(document)
    (tmp_path / "full-resyncs.json").write_bytes(content)
    spool = opened(tmp_path)
    with pytest.raises(RepositoryError, match=r"/full-resyncs.json is damaged"):
        spool.full_resyncs()
    spool.close()


def test_when_full_resyncs_were_begun_is_remembered(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert spool.full_resyncs() == []
    spool.note_full_resyncs([1, 2])
    spool.close()
    spool = opened(tmp_path)
    assert spool.full_resyncs() == [1, 2]
    spool.close()


# A segment, from its first frame to the queue.


def test_a_sealed_segment_is_queued_and_any_zstd_reader_reads_it(spool: Spool) -> None:
    record(spool, PIECES)
    name = spool.seal()
    first, last = TIME + ENDS[0], TIME + ENDS[-1]
    assert name == SegmentName(REPLID, START, ENDS[-1], first, last)
    assert stream_of(queue_of(spool), REPLID) == (START, STREAM)
    content = spool.queued_file(name.path).read_bytes()
    assert spool.queued() == {name.path: len(content)}
    parser = Parser()
    parser.receive_data(content)
    parts = list(iter(parser.next_part, NEED_DATA))
    parser.receive_end()
    assert parts[0] == HEADER
    assert parts[-1] == Ending(ENDS[-1], 0, first, last, len(PIECES))
    assert spool.segment is None
    assert list(spool.recover()) == []


def test_the_size_of_a_segment_is_that_of_its_file(spool: Spool) -> None:
    segment = spool.begin_segment(HEADER)
    for piece in PIECES:
        append(spool, piece)
        assert segment.size == stream_file(spool.folder).stat().st_size


def test_a_segment_that_is_there_is_never_begun_over(spool: Spool) -> None:
    record(spool, PIECES)
    spool.forget()
    with pytest.raises(FileExistsError):
        spool.begin_segment(HEADER)
    assert recovered(spool) == STREAM


def test_an_unfinished_command_can_be_cut_off(spool: Spool) -> None:
    record(spool, PIECES[:2])
    append(spool, PIECES[2][:50], is_whole=False)
    append(spool, PIECES[2][50:60], is_whole=False)
    spool.sync()
    spool.cut_to_boundary()
    assert recovered(spool) == PIECES[0] + PIECES[1]
    record(spool, PIECES[2:])
    spool.seal()
    assert stream_of(queue_of(spool), REPLID) == (START, STREAM)


def test_of_a_segment_that_is_only_an_unfinished_command_nothing_is_left(
    spool: Spool,
) -> None:
    spool.begin_segment(HEADER)
    append(spool, PIECES[0][:5], is_whole=False)
    spool.cut_to_boundary()
    assert recovered(spool) == b""
    assert spool.segment is None
    assert not stream_file(spool.folder).exists()


# Starting up is crash recovery.


def whole_file(tmp_path: Path) -> bytes:
    spool = opened(tmp_path / "whole")
    record(spool, PIECES)
    spool.close()
    return stream_file(tmp_path / "whole").read_bytes()


def frame_ends(content: bytes) -> list[int]:
    """Return where the header and each of the frames end in the file."""
    parser = Parser()
    parser.receive_data(content)
    ends = []
    while parser.next_part() is not NEED_DATA:
        ends.append(parser.position)
    return ends


def zeros(length: int) -> bytes:
    return bytes(length)


def garbage(length: int) -> bytes:
    return random.Random(length).randbytes(length)


@pytest.mark.parametrize("tail", [None, zeros, garbage], ids=["cut", "zero", "garbage"])
@pytest.mark.usefixtures("unsynced")
def test_of_a_file_torn_anywhere_the_whole_frames_are_found_and_continued(
    tmp_path: Path, tail: Callable[[int], bytes] | None
) -> None:
    content = whole_file(tmp_path)
    ends = frame_ends(content)
    assert len(ends) == 1 + len(PIECES)
    spool = opened(tmp_path / "spool")
    file = stream_file(spool.folder)
    for length in range(len(content) + 1):
        # As after a power cut: the file is as long as it was, its end was not written.
        torn = content[:length]
        file.write_bytes(torn if tail is None else torn + tail(len(content) - length))
        whole = max(0, sum(end <= length for end in ends) - 1)
        assert recovered(spool) == b"".join(PIECES[:whole])
        if whole:
            assert file.read_bytes() == content[: ends[whole]]
        else:
            assert not file.exists()
        record(spool, PIECES[whole:] or [PIECES[-1]])
        name = spool.seal()
        stored = spool.queued_file(name.path).read_bytes()
        assert stored.startswith(content)
        assert stream_of(queue_of(spool), REPLID)[1].startswith(STREAM)
        spool.dequeue(name.path)
    spool.close()


@pytest.mark.usefixtures("unsynced")
def test_of_a_file_with_any_byte_damaged_the_frames_before_it_are_found(
    tmp_path: Path,
) -> None:
    content = whole_file(tmp_path)
    ends = frame_ends(content)
    for position in range(len(content)):
        spool = opened(tmp_path / "spool")
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        stream_file(spool.folder).write_bytes(damaged)
        whole = max(0, sum(end <= position for end in ends) - 1)
        assert recovered(spool) == b"".join(PIECES[:whole])
        spool.close()


def test_a_page_in_the_middle_of_the_last_frame_that_was_never_written_is_found(
    tmp_path: Path,
) -> None:
    content = bytearray(whole_file(tmp_path))
    start, end = frame_ends(bytes(content))[-3:-1]
    content[end - 80 : end - 40] = bytes(40)
    spool = opened(tmp_path / "spool")
    stream_file(spool.folder).write_bytes(content)
    assert start < end - 80
    assert recovered(spool) == PIECES[0] + PIECES[1]
    spool.close()


def test_a_segment_that_was_finished_and_not_queued_goes_on(tmp_path: Path) -> None:
    spool = opened(tmp_path / "one")
    record(spool, PIECES[:2])
    name = spool.seal()
    (tmp_path / "two" / "recording").mkdir(parents=True)
    shutil.copy(spool.queued_file(name.path), stream_file(tmp_path / "two"))
    spool.close()
    spool = opened(tmp_path / "two")
    assert recovered(spool) == PIECES[0] + PIECES[1]
    record(spool, PIECES[2:])
    spool.seal()
    assert stream_of(queue_of(spool), REPLID) == (START, STREAM)
    spool.close()


def test_what_a_crash_left_half_received_is_deleted_at_the_start(
    tmp_path: Path,
) -> None:
    spool = opened(tmp_path)
    record(spool, PIECES)
    with spool.begin_snapshot() as file:
        file.write(b"half")
    (tmp_path / "recording" / ".document.json.partial").write_bytes(b"{")
    empty, full = (queue_of(spool) / "stream" / name for name in ("empty", "full"))
    for folder in (empty, full):
        folder.mkdir(parents=True)
    (full / "object").write_bytes(b"1")
    spool.close()
    spool = opened(tmp_path)
    assert os.listdir(tmp_path / "recording") == ["stream.seg"]  # noqa: PTH208
    assert not empty.exists()
    assert spool.queued() == {"stream/full/object": 1}
    assert recovered(spool) == STREAM
    spool.close()


# The queue.


def test_the_queue_is_in_the_order_to_upload_it(spool: Spool) -> None:
    snapshot = SnapshotName(REPLID, START, TIME)
    gap = GapName(REPLID, START, None)
    spool.queue_document(gap.path, b"{}")
    spool.begin_snapshot().close()
    spool.queue_snapshot(snapshot, b"{}")
    record(spool, PIECES[:2])
    first = spool.seal()
    spool.begin_segment(Header(REPLID, first.end, 0, first.last))
    append(spool, PIECES[2])
    second = spool.seal()
    spool.queue_document(HistoryName(REPLID).path, b"{}")
    expected = [
        HistoryName(REPLID).path,
        snapshot.rdb,
        snapshot.manifest,
        first.path,
        second.path,
        gap.path,
    ]
    assert list(spool.queued()) == expected
    for path in expected:
        assert spool.queued_file(path).is_file()
        spool.dequeue(path)
        spool.dequeue(path)
    assert spool.queued() == {}


def test_a_snapshot_that_is_dropped_leaves_nothing(spool: Spool) -> None:
    with spool.begin_snapshot() as file:
        file.write(b"half")
    spool.drop_snapshot()
    spool.drop_snapshot()
    assert os.listdir(spool.folder / "recording") == []  # noqa: PTH208


# A crash, a power cut or an error at any operation.

SNAPSHOT = SnapshotName(REPLID, START, TIME)


class Recording:
    """Everything that is done to a spool, once. durable is what it may rely on."""

    def __init__(self, folder: Path) -> None:
        self.durable = 0
        self.has_snapshot = False
        self.spool = Spool(folder)

    def run(self) -> None:
        """Open the spool, go on where the stream ends, and record all of it."""
        spool = self.spool
        spool.open("repository", "source")
        self._record(go_on(spool))
        spool.close()

    def again(self) -> None:
        """Go on in the same process after an error."""
        self._record(go_on(self.spool))
        self.spool.close()

    def _record(self, done: int) -> None:
        spool = self.spool
        if not self.has_snapshot:
            with spool.begin_snapshot() as file:
                file.write(b"snapshot")
                file.flush()
                os.fsync(file.fileno())
            spool.queue_snapshot(SNAPSHOT, b"{}")
            self.has_snapshot = True
        for number in range(done, len(PIECES)):
            if spool.segment is None:
                start = START + sum(map(len, PIECES[:number]))
                spool.begin_segment(Header(REPLID, start, 0, TIME))
            append(spool, PIECES[number])
            if number != 2:
                spool.sync()
                self.durable = max(self.durable, number + 1)
            if number == 1:
                spool.seal()


def go_on(spool: Spool) -> int:
    """Recover a spool; return of how many pieces it holds the beginning, in order."""
    open_part = recovered(spool)
    data = b""
    if any(path.startswith("stream/") for path in spool.queued()):
        start, data = stream_of(queue_of(spool), REPLID)
        assert start == START
    if spool.segment is not None:
        assert spool.segment.writer.header.start == START + len(data)
    data += open_part
    assert STREAM.startswith(data)
    return [0, *ENDS].index(START + len(data) if data else 0)


def steps_of_a_recording(disk: FaultyDisk) -> int:
    Recording(disk.folder / "whole").run()
    return len(disk.operations)


def check(spool: Spool, recording: Recording) -> None:
    """Check what a spool holds after a crash, and that the recording can go on."""
    spool.open("repository", "source")
    assert go_on(spool) >= recording.durable
    queued = spool.queued()
    assert (SNAPSHOT.manifest in queued) == (SNAPSHOT.rdb in queued)
    assert queued.get(SNAPSHOT.rdb, 8) == len(b"snapshot")
    assert recording.has_snapshot <= (SNAPSHOT.manifest in queued)
    spool.close()
    again = Recording(spool.folder)
    again.has_snapshot = SNAPSHOT.manifest in queued
    again.run()
    again.spool.open("repository", "source")
    assert go_on(again.spool) == len(PIECES)
    again.spool.close()


@pytest.mark.slow
def test_a_process_killed_at_any_operation_has_lost_nothing_that_was_synced(
    disk: FaultyDisk, tmp_path: Path
) -> None:
    steps = steps_of_a_recording(disk)
    assert steps > 40
    for step in range(1, steps + 1):
        recording = Recording(disk.folder / str(step))
        disk.kill(step)
        with pytest.raises(KilledError):
            recording.run()
        disk.heal()
        recording.spool.close()
        left = disk.survivors(recording.spool.folder, tmp_path / f"left-{step}")
        check(Spool(recording.spool.folder), recording)
        check(Spool(left), recording)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "lasting"),
    [(errno.EIO, False), (errno.ENOSPC, True)],
    ids=["broken once", "full for a while"],
)
def test_after_any_operation_that_fails_the_recording_goes_on_with_nothing_lost(
    disk: FaultyDisk, tmp_path: Path, error: int, *, lasting: bool
) -> None:
    steps = steps_of_a_recording(disk)
    for step in range(1, steps + 1):
        recording = Recording(disk.folder / str(step))
        disk.fail(step, error, lasting=lasting)
        with pytest.raises(OSError, match=os.strerror(error)):
            recording.run()
        with suppress(OSError):
            go_on(recording.spool)
        disk.heal()
        left = disk.survivors(recording.spool.folder, tmp_path / f"left-{step}")
        check(Spool(left), recording)
        if recording.spool._lock is None:
            # It failed while it was opened, as a whole.
            recording.run()
        else:
            recording.again()
        left = disk.survivors(recording.spool.folder, tmp_path / f"end-{step}")
        check(Spool(left), recording)
        assert recording.durable == len(PIECES)


def test_what_a_failed_sync_has_lost_is_not_taken_for_durable_later(
    disk: FaultyDisk, tmp_path: Path
) -> None:
    spool = opened(disk.folder / "spool")
    record(spool, PIECES[:1])
    append(spool, PIECES[1])
    disk.fail(1, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        spool.sync()
    # Read back from memory it looks whole, and it is not on the disk.
    assert recovered(spool) == PIECES[0]
    record(spool, PIECES[1:])
    spool.close()
    left = opened(disk.survivors(spool.folder, tmp_path / "left"))
    assert recovered(left) == STREAM
    left.close()
