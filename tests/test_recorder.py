"""What is received is recorded, in bounded memory, and durable before it is said so.

The clock is a mock that stands still until it is told to jump, so that the writing
thread takes no time.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from faulty_disk import FaultyDisk
from kvtape.record.spooling.position import Position, recover, spooled_position
from kvtape.record.spooling.recorder import (
    MOST_PENDING,
    PROOF_OF_LIFE,
    Limits,
    Recorder,
)
from kvtape.record.spooling.stretch import MARK_RESOLUTION
from kvtape.replication.tracker import NO_DB
from kvtape.signal import Signal
from kvtape.storage.repository import SourceFolder
from kvtape.storage.spool import Spool
from kvtape.storage.store import LocalStore
from kvtape.tape.names import SegmentName, parse
from kvtape.tape.segment import (
    MAX_FRAME,
    NEED_DATA,
    ClockDifference,
    Facts,
    Frame,
    Header,
    Parser,
)
from small_disk import small_disk
from spools import opened
from tapes import command, stream_of

REPLID = "a" * 40
OTHER = "b" * 40
START = 5000
TIME = 1_700_000_000_000
FIRST = Position(REPLID, START, START, 0, TIME)

SET = command("SET", "key", "value")
PING = command("PING")
GETACK = command("REPLCONF", "GETACK", "*")
SELECT = command("SELECT", 3)


def new_recorder(
    spool: Spool, limits: Limits | None = None, position: Position | None = FIRST
) -> Recorder:
    recorder = Recorder(spool, limits or Limits(), Signal())
    if position is not None:
        recorder.follow(position)
    return recorder


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[None]:
    """Run a recorder, and finish it in the end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        yield
        recorder.finish()


async def flush(recorder: Recorder, clock: MockClock) -> None:
    """Let time pass until all that was received is durable."""
    while recorder.durable < recorder.received:
        clock.jump(0.25)
        await recorder.written.wait()


def queue_of(spool: Spool) -> Path:
    return spool.folder / "queue"


def segments(spool: Spool) -> list[SegmentName]:
    """Return the names of what is sealed."""
    names = [parse(path) for path in spool.queued()]
    return sorted(name for name in names if isinstance(name, SegmentName))


def frames_of(content: bytes) -> Iterator[Frame]:
    parser = Parser()
    parser.receive_data(content)
    while (part := parser.next_part()) is not NEED_DATA:
        if isinstance(part, Frame):
            yield part


def all_facts(spool: Spool) -> list[Facts]:
    """Return the facts of all frames that are sealed, in order."""
    return [
        frame.facts
        for name in segments(spool)
        for frame in frames_of(spool.queued_file(name.path).read_bytes())
    ]


def operations(disk: FaultyDisk, name: str) -> int:
    return sum(operation == name for operation, _ in disk.operations)


# When it is written and synced.


async def test_what_comes_within_a_flush_interval_is_synced_at_once(
    disk: FaultyDisk, mock_clock: MockClock
) -> None:
    with closing(opened(disk.folder / "spool")) as spool:
        recorder = new_recorder(spool)
        async with running(recorder):
            recorder.receive(SET, TIME)
            await flush(recorder, mock_clock)
            disk.operations.clear()
            for number in range(50):
                recorder.receive(SET, TIME + number)
                await wait_all_tasks_blocked()
            assert disk.operations == []
            assert recorder.received == START + 51 * len(SET)
            assert recorder.durable == START + len(SET)
            await flush(recorder, mock_clock)
            assert disk.operations == [
                (name, str(spool.folder / "recording" / "stream.seg"))
                for name in ("write", "fsync")
            ]
    assert stream_of(disk.folder / "spool" / "queue", REPLID) == (START, 51 * SET)


async def test_much_is_written_at_once_and_synced_when_it_is_time(
    disk: FaultyDisk, mock_clock: MockClock
) -> None:
    large = command("SET", "key", bytes(MAX_FRAME))
    with closing(opened(disk.folder / "spool")) as spool:
        recorder = new_recorder(spool)
        async with running(recorder):
            recorder.receive(large, TIME)
            await flush(recorder, mock_clock)
            disk.operations.clear()
            recorder.receive(large, TIME)
            await recorder.written.wait()
            assert operations(disk, "write") == 2
            assert operations(disk, "fsync") == 0
            await flush(recorder, mock_clock)


async def test_what_is_durable_would_survive_a_power_cut_at_any_moment(
    disk: FaultyDisk, tmp_path: Path, mock_clock: MockClock
) -> None:
    rng = random.Random(1)
    stream = b"".join(
        command("SET", f"key{n}", rng.randbytes(rng.randrange(200))) for n in range(60)
    )
    limits = Limits(segment_size=1500, upload_interval=2)
    with closing(opened(disk.folder / "spool")) as spool:
        recorder = new_recorder(spool, limits)
        async with running(recorder):
            for number, (start, end) in enumerate(pairwise(range(0, len(stream), 197))):
                recorder.receive(stream[start:end], TIME + number)
                mock_clock.jump(rng.choice([0, 0.1, 0.2, 1]))
                await wait_all_tasks_blocked(0.001)
                durable = recorder.durable
                assert durable <= recorder.received
                left = disk.survivors(spool.folder, tmp_path / f"left-{number}")
                assert held_by(left) >= durable
        assert recorder.durable > START + len(stream) - 500


def held_by(folder: Path) -> int:
    """Return the offset up to which a spool holds the stream, after a crash."""
    with closing(opened(folder)) as spool:
        position = recover(spool)
        ends = [name.end for name in segments(spool)]
        return max(ends, default=START) if position is None else position.offset


async def test_getack_is_answered_as_soon_as_what_came_before_it_is_synced(
    spool: Spool, mock_clock: MockClock
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.receive(SET, TIME)
        await flush(recorder, mock_clock)
        recorder.receive(SET, TIME)
        due = recorder.ack_due.next()
        await wait_all_tasks_blocked(0.01)
        assert not due.is_set()
        now = trio.current_time()
        recorder.receive(GETACK, TIME)
        await due.wait()
        assert recorder.durable == recorder.received
        assert trio.current_time() == now


async def test_a_getack_that_comes_while_the_disk_is_busy_is_answered_too(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_sync, fsync = threading.Event(), os.fsync

    def slow_fsync(file: int) -> None:
        may_sync.wait()
        fsync(file)

    recorder = new_recorder(spool)
    monkeypatch.setattr(os, "fsync", slow_fsync)
    async with running(recorder):
        recorder.receive(SET + GETACK, TIME)
        await wait_all_tasks_blocked(0.01)
        recorder.receive(SET + GETACK, TIME)
        may_sync.set()
        for end in (1, 2):
            await recorder.ack_due.wait()
            assert recorder.durable == START + end * len(SET + GETACK)


# How much is kept in memory.


async def test_a_receiver_is_told_to_wait_when_the_disk_is_far_behind(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, write = threading.Event(), Spool.append

    def slow_append(spool: Spool, data: bytes) -> None:
        may_write.wait()
        write(spool, data)

    monkeypatch.setattr(Spool, "append", slow_append)
    recorder = new_recorder(spool)
    piece = command("SET", "key", bytes(100_000))
    async with running(recorder):
        received = 0
        while not recorder.is_full:
            recorder.receive(piece, TIME)
            await wait_all_tasks_blocked()
            received += len(piece)
        # One part waits for the disk, and one for the other.
        assert received <= 2 * MOST_PENDING + 2 * len(piece)
        may_write.set()
        await recorder.written.wait()
        await recorder.settle()
    assert stream_of(queue_of(spool), REPLID)[1] == piece * (received // len(piece))


async def test_many_short_commands_that_have_to_wait_take_little_memory(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.hold()
        recorder.follow(FIRST)
        for number in range(20_000):
            recorder.receive(SET, TIME + number)
            assert len(recorder._batch.stretches) < 2000
        recorder.release()
    assert stream_of(queue_of(spool), REPLID) == (START, 20_000 * SET)


# Frames and their facts.


def turns_of(seed: int) -> list[tuple[bytes, int | None]]:
    """Return commands, each with the database at its end, or None within MULTI."""
    rng = random.Random(seed)
    db, in_multi = 0, False
    turns: list[tuple[bytes, int | None]] = []
    for _ in range(rng.randrange(5, 60)):
        match rng.randrange(6):
            case 0:
                db = rng.randrange(16)
                made = command("SELECT", db)
            case 1 if not in_multi:
                in_multi = True
                made = command("MULTI")
            case 2 if in_multi:
                in_multi = False
                made = command("EXEC")
            case 3:
                made = command("SET", "large", bytes(rng.randrange(200_000, 800_000)))
            case _:
                made = command("SET", "key", rng.randbytes(rng.randrange(50)))
        turns.append((made, None if in_multi else db))
    if in_multi:
        turns.append((command("EXEC"), db))
    return turns


@pytest.mark.parametrize("seed", range(12))
async def test_frames_are_short_end_at_boundaries_and_tell_the_database_there(
    spool: Spool, mock_clock: MockClock, seed: int
) -> None:
    turns, rng = turns_of(seed), random.Random(seed)
    stream = b"".join(made for made, _ in turns)
    recorder = new_recorder(spool, Limits(segment_size=rng.choice([1, 10**6, 10**9])))
    async with running(recorder):
        position = 0
        while position < len(stream):
            size = rng.choice([1, 30, 5000, 300_000, 2_000_000])
            recorder.receive(stream[position : position + size], TIME + position)
            position += size
            mock_clock.jump(rng.choice([0, 0.2]))
            await wait_all_tasks_blocked()
    assert stream_of(queue_of(spool), REPLID) == (START, stream)
    boundaries, offset = {START: 0}, START
    for made, db in turns:
        offset += len(made)
        if db is not None:
            boundaries[offset] = db
    for facts in all_facts(spool):
        length = facts.end - facts.start
        assert length <= MAX_FRAME
        last = max(end for end in boundaries if end <= facts.end)
        assert (facts.boundary, facts.db) == (last, boundaries[last])
        # A frame that ends elsewhere is a part of something longer.
        assert facts.boundary == facts.end or length == MAX_FRAME
    for name in segments(spool):
        [header] = headers_of(spool, name)
        assert header.start in boundaries
        assert header.db == boundaries[header.start]


def headers_of(spool: Spool, name: SegmentName) -> list[Header]:
    parser = Parser()
    parser.receive_data(spool.queued_file(name.path).read_bytes())
    parts = iter(parser.next_part, NEED_DATA)
    return [part for part in parts if isinstance(part, Header)]


GIANTS = {
    "a value": command("SET", "key", random.Random(1).randbytes(5 * MAX_FRAME)),
    "a transaction": (
        command("MULTI") + 120_000 * command("INCR", "counter") + command("EXEC")
    ),
}


@pytest.mark.parametrize("giant", GIANTS.values(), ids=GIANTS)
async def test_a_command_longer_than_a_frame_is_spread_over_several(
    spool: Spool, mock_clock: MockClock, giant: bytes
) -> None:
    stream = SET + giant + SET
    recorder = new_recorder(spool, Limits(segment_size=1))
    async with running(recorder):
        for start in range(0, len(stream), 400_000):
            recorder.receive(stream[start : start + 400_000], TIME)
            mock_clock.jump(0.2)
            await wait_all_tasks_blocked(0.001)
            assert recorder.durable in (
                START,
                START + len(SET),
                START + len(SET + giant),
                START + len(stream),
            )
    assert stream_of(queue_of(spool), REPLID) == (START, stream)
    facts = all_facts(spool)
    assert all(fact.end - fact.start <= MAX_FRAME for fact in facts)
    ends = [name.end for name in segments(spool)]
    assert ends[-1] == START + len(stream)
    assert set(ends) <= {START + len(SET), START + len(SET + giant), ends[-1]}


@pytest.mark.parametrize("giant", GIANTS.values(), ids=GIANTS)
async def test_a_crash_within_a_giant_command_loses_none_of_it(
    tmp_path: Path, mock_clock: MockClock, giant: bytes
) -> None:
    stream = SET + giant + SELECT + SET
    cut = 2 * MAX_FRAME + MAX_FRAME // 2
    with closing(opened(tmp_path)) as spool, trio.CancelScope() as crash:
        recorder = new_recorder(spool)
        async with running(recorder):
            recorder.receive(stream[:cut], TIME)
            while recorder.durable == START:
                mock_clock.jump(0.2)
                await recorder.written.wait()
            crash.cancel()
            await trio.lowlevel.checkpoint()
    with closing(opened(tmp_path)) as spool:
        position = recover(spool)
        assert position is not None
        assert position.boundary == START + len(SET)
        assert position.offset >= START + 2 * MAX_FRAME
        recorder = new_recorder(spool, position=position)
        assert recorder.position == (REPLID, position.offset)
        assert recorder.durable == position.boundary
        async with running(recorder):
            recorder.receive(stream[position.offset - START :], TIME)
        assert stream_of(queue_of(spool), REPLID) == (START, stream)
        assert recorder.durable == START + len(stream)
        assert all_facts(spool)[-1].db == 3


async def test_bytes_that_are_no_commands_are_recorded_all_the_same(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    garbage = random.Random(1).randbytes(3 * MAX_FRAME)
    async with running(recorder):
        recorder.receive(SET + garbage, TIME)
        assert recorder.lost_because is not None
        recorder.receive(SET[:5], TIME)
    assert stream_of(queue_of(spool), REPLID) == (START, SET + garbage + SET[:5])
    assert all_facts(spool)[-1].summary.lost


async def test_marks_never_claim_that_a_byte_came_earlier_than_it_did(
    spool: Spool, mock_clock: MockClock
) -> None:
    rng, stream, time = random.Random(1), SET * 500, TIME
    receipts: dict[int, int] = {}  # when each byte came
    recorder = new_recorder(spool, Limits(segment_size=3000))
    recorder.catch_up()
    async with running(recorder):
        while (done := len(receipts)) < len(stream):
            piece = stream[done : done + rng.randrange(1, 60)]
            time += rng.choice([0, 0, 1, 3, 9, 10, 11, 500])
            for offset in range(recorder.received, recorder.received + len(piece)):
                receipts[offset] = time
            recorder.receive(piece, time)
            mock_clock.jump(rng.choice([0, 0, 0, 0.2]))
            await wait_all_tasks_blocked()
    before = TIME
    for facts in all_facts(spool):
        assert facts.after == before
        assert facts.marks[-1].offset == facts.end
        for mark in facts.marks:
            lateness = mark.time - receipts[mark.offset - 1]
            assert 0 <= lateness < MARK_RESOLUTION
        for one, other in pairwise(facts.marks):
            assert one.offset < other.offset
            assert one.time <= other.time
        for one, next_but_one in zip(facts.marks, facts.marks[2:], strict=False):
            assert next_but_one.time - one.time > MARK_RESOLUTION
        before = facts.marks[-1].time


# What may be older than it looks.


async def test_what_is_received_is_late_until_it_is_said_that_we_are_abreast(
    spool: Spool, mock_clock: MockClock
) -> None:
    recorder = new_recorder(spool)
    assert recorder.late_since == TIME
    async with running(recorder):
        recorder.receive(SET, TIME + 3_600_000)
        await flush(recorder, mock_clock)
        recorder.receive(SET + SET[:9], TIME + 3_600_500)
        recorder.catch_up()
        await flush_whole(recorder, mock_clock, 2 * len(SET))
        # It began to come while we were behind.
        recorder.receive(SET[9:], TIME + 3_601_000)
        await flush(recorder, mock_clock)
        recorder.receive(SET, TIME + 3_602_000)
        await flush(recorder, mock_clock)
    assert lateness(spool) == [
        (True, TIME),
        (True, TIME),
        (True, TIME),
        (False, TIME + 3_601_000),
    ]


async def test_what_waits_for_the_disk_is_late_if_it_came_after_the_last_good_moment(
    spool: Spool, mock_clock: MockClock
) -> None:
    recorder = new_recorder(spool)
    recorder.catch_up()
    async with running(recorder):
        recorder.receive(SET, TIME + 1000)
        await flush(recorder, mock_clock)
        recorder.receive(SET, TIME + 2000)
        recorder.fall_behind(TIME + 2000)
        # In one frame with what came in time, which was written before.
        recorder.receive(SET, TIME + 9000)
        await flush(recorder, mock_clock)
        recorder.receive(SET, TIME + 9500)
        await flush(recorder, mock_clock)
        recorder.catch_up()
        recorder.receive(SET, TIME + 9600)
        recorder.receive(SET, TIME + 9700)
        recorder.fall_behind(TIME + 9600)
        await flush(recorder, mock_clock)
    assert lateness(spool) == [
        (False, TIME),
        (True, TIME + 1000),
        (True, TIME + 2000),
        (True, TIME + 9500),
    ]


async def test_two_pauses_within_one_command_are_one_lateness(
    spool: Spool, mock_clock: MockClock
) -> None:
    recorder = new_recorder(spool)
    recorder.catch_up()
    async with running(recorder):
        recorder.fall_behind(TIME)
        recorder.receive(SET[:9], TIME + 1000)
        recorder.catch_up()
        recorder.fall_behind(TIME + 1000)
        recorder.receive(SET[9:], TIME + 2000)
        recorder.catch_up()
        await flush(recorder, mock_clock)
        recorder.fall_behind(TIME + 2000)
        recorder.receive(SET, TIME + 3000)
        await flush(recorder, mock_clock)
    assert lateness(spool) == [(True, TIME), (True, TIME + 2000)]


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_what_was_late_when_it_ended_is_late_since_then_after_a_restart(
    tmp_path: Path, mock_clock: MockClock, *, is_sealed: bool
) -> None:
    with closing(opened(tmp_path)) as spool, trio.CancelScope() as crash:
        recorder = new_recorder(spool)
        async with running(recorder):
            recorder.receive(SET, TIME + 5000)
            await flush(recorder, mock_clock)
            if is_sealed:
                await recorder.settle()
                end = recorder.end
                assert end is not None
                assert (end.time, end.late_since) == (TIME + 5000, TIME)
                recorder.follow(end)
                assert recorder.late_since == TIME
            crash.cancel()
            await trio.lowlevel.checkpoint()
    with closing(opened(tmp_path)) as spool:
        position = recover(spool)
        if is_sealed:
            folder = SourceFolder(LocalStore(tmp_path / "repo"), "source")
            position = spooled_position(folder, spool)
        assert position is not None
        assert (position.time, position.late_since) == (TIME + 5000, TIME)
        assert new_recorder(spool, position=position).late_since == TIME


async def test_a_segment_says_how_far_the_primarys_clock_was_ahead_when_it_began(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        for clock in (None, ClockDifference(-3, 4)):
            recorder.receive(SET, TIME)
            recorder.server_clock = clock
            await recorder.settle()
    clocks = [
        header.clock for name in segments(spool) for header in headers_of(spool, name)
    ]
    assert clocks == [None, ClockDifference(-3, 4)]


def lateness(spool: Spool) -> list[tuple[bool, int]]:
    return [(facts.is_late, facts.after) for facts in all_facts(spool)]


async def flush_whole(recorder: Recorder, clock: MockClock, length: int) -> None:
    """Let time pass until so much of the stream is durable."""
    while recorder.durable < START + length:
        clock.jump(0.25)
        await recorder.written.wait()


async def test_of_a_stretch_that_took_for_ever_there_are_as_many_marks_as_fit(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    count = 70_000
    value = command("SET", "key", bytes(count))
    async with running(recorder):
        for number in range(count):
            recorder.receive(value[number : number + 1], TIME + number * 1000)
        recorder.receive(value[count:], TIME + count * 1000)
    [facts] = all_facts(spool)
    assert 30_000 < len(facts.marks) <= 0xFFFF
    assert facts.marks[-1].time == TIME + count * 1000


# When a segment ends.


async def test_a_segment_ends_when_it_is_large_enough(
    spool: Spool, mock_clock: MockClock
) -> None:
    value = random.Random(1).randbytes(2000)
    large = command("SET", "key", value)
    recorder = new_recorder(spool, Limits(segment_size=10_000))
    queued = recorder._queued.next()
    async with running(recorder):
        for _ in range(4):
            recorder.receive(large, TIME)
            await flush(recorder, mock_clock)
        assert segments(spool) == []
        recorder.receive(large, TIME)
        mock_clock.jump(0.2)
        await queued.wait()
        assert segments(spool) == [
            SegmentName(REPLID, START, START + 5 * len(large), TIME, TIME)
        ]
        assert spool.segment is None


async def test_a_segment_ends_when_it_is_old_enough(
    spool: Spool, mock_clock: MockClock
) -> None:
    recorder = new_recorder(spool, Limits(upload_interval=10))
    queued = recorder._queued.next()
    async with running(recorder):
        recorder.receive(SET, TIME)
        await flush(recorder, mock_clock)
        mock_clock.jump(9.5)
        await wait_all_tasks_blocked(0.01)
        assert segments(spool) == []
        mock_clock.jump(0.5)
        await queued.wait()
        assert [name.end for name in segments(spool)] == [START + len(SET)]


async def test_a_segment_of_nothing_but_pings_is_a_proof_of_life_now_and_then(
    spool: Spool, mock_clock: MockClock
) -> None:
    recorder = new_recorder(spool)
    queued = recorder._queued.next()
    async with running(recorder):
        recorder.receive(PING, TIME)
        await flush(recorder, mock_clock)
        for number in range(2, 60):
            mock_clock.jump(10)
            recorder.receive(PING + GETACK, TIME + number)
            await recorder.ack_due.wait()
        assert segments(spool) == []
        mock_clock.jump(PROOF_OF_LIFE - 58 * 10)
        await queued.wait()
        assert [name.end for name in segments(spool)] == [recorder.received]


async def test_one_write_among_pings_is_uploaded_in_time(
    spool: Spool, mock_clock: MockClock
) -> None:
    recorder = new_recorder(spool)
    queued = recorder._queued.next()
    async with running(recorder):
        recorder.receive(PING, TIME)
        await flush(recorder, mock_clock)
        mock_clock.jump(300)
        await wait_all_tasks_blocked(0.01)
        assert segments(spool) == []
        recorder.receive(SET, TIME)
        mock_clock.jump(0.2)
        await queued.wait()
        assert [name.end for name in segments(spool)] == [recorder.received]


async def test_a_segment_that_a_stop_left_open_is_sealed_soon(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    with closing(opened(tmp_path)) as spool, trio.CancelScope() as crash:
        recorder = new_recorder(spool)
        async with running(recorder):
            recorder.receive(SET, TIME)
            await flush(recorder, mock_clock)
            crash.cancel()
            await trio.lowlevel.checkpoint()
    with closing(opened(tmp_path)) as spool:
        recorder = new_recorder(spool, position=recover(spool))
        queued = recorder._queued.next()
        async with running(recorder):
            await queued.wait()
            assert [name.end for name in segments(spool)] == [START + len(SET)]


async def test_nothing_received_is_nothing_written(
    disk: FaultyDisk, mock_clock: MockClock
) -> None:
    with closing(opened(disk.folder / "spool")) as spool:
        disk.operations.clear()
        async with running(new_recorder(spool)):
            mock_clock.jump(10_000)
            await wait_all_tasks_blocked(0.01)
        assert disk.operations == []


# Turning to something else.


async def test_settling_ends_the_segment_and_keeps_what_is_unfinished(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.receive(SET + SET[:10], TIME)
        assert await recorder.settle()
        assert recorder.durable == START + len(SET)
        assert recorder.received == START + len(SET) + 10
        assert [name.end for name in segments(spool)] == [START + len(SET)]
        assert await recorder.settle()
        recorder.receive(SET[10:], TIME)
    assert stream_of(queue_of(spool), REPLID) == (START, SET + SET)


async def test_a_segment_that_is_to_end_soon_takes_what_is_whole_and_goes_on(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        assert await recorder.seal() == START
        recorder.receive(SET + SET[:10], TIME)
        assert await recorder.seal() == START + len(SET)
        assert [name.end for name in segments(spool)] == [START + len(SET)]
        recorder.receive(SET[10:], TIME)
    assert stream_of(queue_of(spool), REPLID) == (START, SET + SET)


@pytest.mark.parametrize("giant", GIANTS.values(), ids=GIANTS)
async def test_a_segment_that_is_to_end_soon_waits_for_the_end_of_a_giant_command(
    spool: Spool, giant: bytes, mock_clock: MockClock
) -> None:
    recorder, ends = new_recorder(spool), list[int]()

    async def seal() -> None:
        ends.append(await recorder.seal())

    async with running(recorder), trio.open_nursery() as nursery:
        recorder.receive(SET + giant[: 2 * MAX_FRAME], TIME)
        nursery.start_soon(seal)
        for _ in range(3):
            mock_clock.jump(1)
            await wait_all_tasks_blocked(0.01)
        assert segments(spool) == []
        recorder.receive(giant[2 * MAX_FRAME :], TIME)
    assert ends == [START + len(SET) + len(giant)]
    assert [name.end for name in segments(spool)] == ends


@pytest.mark.parametrize("giant", GIANTS.values(), ids=GIANTS)
async def test_settling_within_a_giant_command_goes_back_to_before_it(
    spool: Spool, giant: bytes
) -> None:
    stream = SET + giant
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.receive(stream[: 2 * MAX_FRAME], TIME)
        assert not await recorder.settle()
        assert recorder.position == (REPLID, START + len(SET))
        assert recorder.durable == START + len(SET)
        assert [name.end for name in segments(spool)] == [START + len(SET)]
        recorder.receive(giant, TIME)
        assert await recorder.settle()
    assert stream_of(queue_of(spool), REPLID) == (START, stream)


async def test_settling_where_only_a_giant_command_has_begun_leaves_nothing(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.receive(GIANTS["a value"][: 2 * MAX_FRAME], TIME)
        assert not await recorder.settle()
        assert recorder.position == (REPLID, START)
        assert recorder.end == FIRST
    assert segments(spool) == []


async def test_settling_while_held_waits_for_the_release(spool: Spool) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.hold()
        recorder.follow(FIRST)
        recorder.receive(SET, TIME)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.settle)
            await wait_all_tasks_blocked(0.01)
            assert segments(spool) == []
            recorder.release()
        assert [name.end for name in segments(spool)] == [START + len(SET)]


async def test_a_fork_goes_on_under_another_name_from_the_last_boundary(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.receive(SELECT + SET + SET[:7], TIME)
        assert await recorder.settle()
        fork = recorder.fork(OTHER)
        boundary = START + len(SELECT + SET)
        assert fork == Position(OTHER, boundary, boundary, 3, TIME, (), TIME)
        assert recorder.position == (OTHER, boundary + 7)
        recorder.receive(SET[7:], TIME + 1)
    assert stream_of(queue_of(spool), REPLID) == (START, SELECT + SET)
    assert stream_of(queue_of(spool), OTHER) == (boundary, SET)
    [header] = headers_of(spool, segments(spool)[-1])
    assert header == Header(OTHER, boundary, 3, TIME)


async def test_what_is_held_is_written_only_when_its_snapshot_is_durable(
    disk: FaultyDisk, mock_clock: MockClock
) -> None:
    with closing(opened(disk.folder / "spool")) as spool:
        recorder = new_recorder(spool)
        async with running(recorder):
            recorder.receive(SET, TIME)
            await recorder.settle()
            recorder.hold()
            recorder.follow(Position(OTHER, 100, 100, NO_DB, TIME))
            disk.operations.clear()
            recorder.receive(SELECT + GETACK + bytes(0), TIME)
            recorder.receive(command("SET", "key", bytes(2 * MAX_FRAME)), TIME)
            mock_clock.jump(1000)
            await wait_all_tasks_blocked(0.01)
            assert disk.operations == []
            assert recorder.durable == 100
            recorder.release()
            await flush(recorder, mock_clock)
    assert stream_of(disk.folder / "spool" / "queue", OTHER)[0] == 100


async def test_what_is_held_in_vain_is_forgotten_and_the_old_history_goes_on(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.receive(SELECT + SET, TIME)
        await recorder.settle()
        before = recorder.position
        recorder.hold()
        recorder.follow(Position(OTHER, 100, 100, NO_DB, TIME))
        recorder.receive(SET * 3, TIME)
        recorder.give_up()
        recorder.give_up()
        assert recorder.position == before
        recorder.receive(SET, TIME)
    assert stream_of(queue_of(spool), REPLID) == (START, SELECT + SET + SET)
    assert {name.replid for name in segments(spool)} == {REPLID}


async def test_before_the_first_snapshot_is_durable_there_is_nothing_to_go_on_from(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool, position=None)
    async with running(recorder):
        assert recorder.end is None
        recorder.hold()
        recorder.follow(FIRST)
        recorder.receive(SET, TIME)
        recorder.give_up()
        assert recorder.position is None
    assert spool.queued() == {}


async def test_at_the_end_what_is_whole_is_sealed_and_the_rest_left_to_be_asked_again(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.receive(SET + command("MULTI") + SET, TIME)
    assert stream_of(queue_of(spool), REPLID) == (START, SET)
    assert recorder.durable == START + len(SET)


async def test_at_the_end_of_a_giant_transaction_its_beginning_is_dropped(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.receive(SET + GIANTS["a transaction"][: 3 * MAX_FRAME], TIME)
        await recorder.written.wait()
    assert stream_of(queue_of(spool), REPLID) == (START, SET)
    assert recover(spool) is None


async def test_at_the_end_what_is_held_without_its_snapshot_is_not_written(
    spool: Spool,
) -> None:
    recorder = new_recorder(spool)
    async with running(recorder):
        recorder.hold()
        recorder.follow(Position(OTHER, 100, 100, NO_DB, TIME))
        recorder.receive(SET, TIME)
    assert spool.queued() == {}


# When the disk fails.


def stream_to_fail_on() -> bytes:
    rng = random.Random(1)
    short = [
        command("SET", f"key{n}", rng.randbytes(rng.randrange(90))) for n in range(9)
    ]
    return b"".join([*short, command("MULTI"), *short, command("EXEC"), *short])


async def record_to_the_end(
    recorder: Recorder, stream: bytes, clock: MockClock, durable: list[int]
) -> None:
    """Record a stream from where the recorder is, in pieces that cut its commands."""
    async with running(recorder):
        # As long as it takes to link, at least.
        await wait_all_tasks_blocked(0.001)
        while (done := recorder.received - START) < len(stream):
            recorder.receive(stream[done : done + 150], TIME + done)
            clock.jump(0.25)
            if recorder._batch.stretches:
                await recorder.written.wait()
            durable.append(recorder.durable)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "lasting"),
    [(errno.EIO, False), (errno.ENOSPC, True)],
    ids=["broken once", "full for a while"],
)
async def test_after_any_operation_that_fails_it_goes_on_with_nothing_lost(
    disk: FaultyDisk,
    tmp_path: Path,
    mock_clock: MockClock,
    error: int,
    *,
    lasting: bool,
) -> None:
    stream, limits = stream_to_fail_on(), Limits(segment_size=400)
    with closing(opened(disk.folder / "whole")) as spool:
        disk.operations.clear()
        await record_to_the_end(new_recorder(spool, limits), stream, mock_clock, [])
        steps = len(disk.operations)
        assert len(segments(spool)) > 3
    assert steps > 60
    for step in range(1, steps + 1):
        with closing(opened(disk.folder / str(step))) as spool:
            recorder = new_recorder(spool, limits)
            durable = [START]
            disk.fail(step, error, lasting=lasting)
            with pytest.RaisesGroup(
                pytest.RaisesExc(OSError, match=os.strerror(error))
            ):
                await record_to_the_end(recorder, stream, mock_clock, durable)
            disk.heal()
            durable.append(recorder.durable)
            left = disk.survivors(spool.folder, tmp_path / f"left-{step}")
            assert held_by(left) >= max(durable)
            recorder.restart(recover(spool))
            assert recorder.durable >= max(durable)
            await record_to_the_end(recorder, stream, mock_clock, durable)
            assert stream_of(queue_of(spool), REPLID) == (START, stream)
            assert durable == sorted(durable)


async def test_after_an_error_while_held_the_old_history_goes_on(
    disk: FaultyDisk,
) -> None:
    with closing(opened(disk.folder / "spool")) as spool:
        recorder = new_recorder(spool)
        async with running(recorder):
            recorder.receive(SET, TIME)
            await recorder.settle()
        before = recorder.position
        recorder = new_recorder(spool, position=recorder.end)
        recorder.hold()
        recorder.follow(Position(OTHER, 100, 100, NO_DB, TIME))
        recorder.receive(SET, TIME)
        recorder.restart(recover(spool))
        assert recorder.position == before
        assert not recorder.is_full


async def test_on_a_full_disk_it_ends_and_goes_on_when_there_is_room(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    stream = b"".join(
        command("SET", "key", random.Random(n).randbytes(50_000)) for n in range(40)
    )
    with small_disk(tmp_path / "small") as folder:
        (folder / "ballast").write_bytes(bytes(600_000))
        with closing(opened(folder / "spool")) as spool:
            limits = Limits(upload_interval=10**9, segment_size=10**9)
            recorder = new_recorder(spool, limits)
            durable = [START]
            with pytest.RaisesGroup(OSError):
                await record_to_the_end(recorder, stream, mock_clock, durable)
            (folder / "ballast").unlink()
            recorder.restart(recover(spool))
            assert recorder.durable >= max(durable)
            end = recorder.received - START + 300_000
            await record_to_the_end(recorder, stream[:end], mock_clock, durable)
            start, recorded = stream_of(queue_of(spool), REPLID)
            assert start == START
            assert stream.startswith(recorded)
            assert len(recorded) > 300_000
