"""A snapshot is received whole, undamaged and durable, or it leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from faulty_disk import FaultyDisk
from kvtape.errors import ProtocolError
from kvtape.record.spooling import snapshot
from kvtape.record.spooling.snapshot import SnapshotFile, SnapshotReceiver
from kvtape.replication.replica import FullResync
from kvtape.replication.tracker import NO_DB
from kvtape.storage.spool import Spool
from kvtape.tape.documents import Manifest, Server
from recording import rdb
from spools import opened
from tapes import decompressed

REPLID = "a" * 40
OFFSET = 5000
TIME = 1_700_000_000_000
ANNOUNCED = FullResync(REPLID, OFFSET)
SERVER = Server(family="valkey", version="9.1.2")

SMALL = rdb((0, "key", "value", None), db=3, used_memory=12345)


def large(length: int) -> bytes:
    """Return an RDB file with a long value, and without a checksum."""
    value = b"\x80" + length.to_bytes(4, "big") + random.Random(1).randbytes(length)
    return rdb()[:9] + b"\xfe\x00\x00\x03key" + value + b"\xff" + bytes(8)


def received_file(spool: Spool) -> Path:
    return spool.folder / "recording" / "rdb.zst"


async def receive(spool: Spool, content: bytes, piece: int) -> Manifest:
    """Receive a snapshot in pieces of a length."""
    receiver = SnapshotReceiver(spool, ANNOUNCED, TIME)
    manifests = []

    async def run() -> None:
        manifests.append(await receiver.run(lambda: TIME + 7, SERVER))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for start in range(0, len(content), piece):
                await receiver.receive(content[start : start + piece])
            assert receiver.received == len(content)
            receiver.end()
    except BaseException:
        receiver.drop()
        raise
    [manifest] = manifests
    return manifest


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 1000])
async def test_what_is_received_is_stored_and_described(
    spool: Spool, piece: int
) -> None:
    manifest = await receive(spool, SMALL, piece)
    stored = received_file(spool).read_bytes()
    assert decompressed(stored) == SMALL
    assert manifest == Manifest(
        replid=REPLID,
        offset=OFFSET,
        time=TIME,
        completed=TIME + 7,
        bytes=len(SMALL),
        stored_bytes=len(stored),
        sha256=hashlib.sha256(SMALL).hexdigest(),
        rdb_magic="REDIS",
        rdb_version=9,
        db=3,
        used_memory=12345,
        server=SERVER,
    )
    assert spool.queued() == {}


@pytest.mark.parametrize(("db", "known"), [(None, NO_DB), (-1, NO_DB), (0, 0), (9, 9)])
async def test_the_database_behind_it_is_the_one_it_names(
    spool: Spool, db: int | None, known: int
) -> None:
    receiver = SnapshotReceiver(spool, ANNOUNCED, TIME)
    await receiver.receive(rdb(db=db))
    receiver.end()
    assert receiver.db == known


async def test_one_of_many_pieces_is_stored_as_it_is(spool: Spool) -> None:
    content = large(20_000_000)
    manifest = await receive(spool, content, 512 * 1024)
    assert manifest.sha256 == hashlib.sha256(content).hexdigest()
    assert decompressed(received_file(spool).read_bytes()) == content


@pytest.mark.parametrize("piece", [1, 8, 1000])
async def test_one_without_a_checksum_is_taken_as_it_comes(
    spool: Spool, piece: int
) -> None:
    content = SMALL[:-8] + bytes(8)
    assert (await receive(spool, content, piece)).bytes == len(content)


async def test_one_with_any_byte_damaged_is_refused_and_leaves_nothing(
    spool: Spool,
) -> None:
    for position in range(len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[position] ^= 1 << position % 8
        with pytest.RaisesGroup(ProtocolError):
            await receive(spool, bytes(damaged), 1000)
        assert not received_file(spool).exists()
    assert spool.queued() == {}


@pytest.mark.parametrize("content", [b"", b"RED", b"-ERR no", b"REDISxxxx" + bytes(99)])
async def test_what_is_no_rdb_is_refused_and_leaves_nothing(
    spool: Spool, content: bytes
) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(ProtocolError, match="snapshot is no RDB file")
    ):
        await receive(spool, content, 1000)
    assert not received_file(spool).exists()


async def test_one_that_is_dropped_in_the_middle_leaves_nothing(spool: Spool) -> None:
    receiver = SnapshotReceiver(spool, ANNOUNCED, TIME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run, lambda: TIME, SERVER)
        await receiver.receive(large(3_000_000))
        while not received_file(spool).exists():
            await wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()
    receiver.drop()
    receiver.drop()
    assert os.listdir(spool.folder / "recording") == []  # noqa: PTH208


async def test_one_that_was_never_begun_can_be_dropped(spool: Spool) -> None:
    SnapshotReceiver(spool, ANNOUNCED, TIME).drop()


async def test_the_receiver_waits_for_a_slow_disk_and_keeps_little_in_memory(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, write = threading.Event(), SnapshotFile.write

    def slow_write(file: SnapshotFile, data: bytes) -> None:
        may_write.wait()
        write(file, data)

    monkeypatch.setattr(SnapshotFile, "write", slow_write)
    content, piece = large(40_000_000), 512 * 1024
    receiver = SnapshotReceiver(spool, ANNOUNCED, TIME)

    async def receive_all() -> None:
        for start in range(0, len(content), piece):
            await receiver.receive(content[start : start + piece])
        receiver.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run, lambda: TIME, SERVER)
        nursery.start_soon(receive_all)
        await wait_all_tasks_blocked(0.05)
        assert 1_000_000 < receiver.received < 12_000_000
        may_write.set()
    assert receiver.received == len(content)


async def test_a_large_one_is_synced_as_it_comes(
    disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_SYNC_EVERY", 1_000_000)
    with closing(opened(disk.folder / "spool")) as spool:
        await receive(spool, large(10_000_000), 512 * 1024)
    syncs = [name for name, _ in disk.operations if name == "fdatasync"]
    assert 5 < len(syncs) <= 10


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for a while"])
async def test_any_operation_that_fails_is_the_only_error_and_leaves_nothing(
    disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch, *, lasting: bool
) -> None:
    monkeypatch.setattr(snapshot, "_SYNC_EVERY", 500_000)
    # More pieces than wait for the disk.
    content = large(16_000_000)
    with closing(opened(disk.folder / "spool")) as spool:
        disk.operations.clear()
        await receive(spool, content, 512 * 1024)
        received_file(spool).unlink()
        steps = len(disk.operations) - 1
        assert steps > 20
        for step in (*range(1, 10), *range(steps - 6, steps + 1)):
            disk.fail(step, errno.ENOSPC, lasting=lasting)
            with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="No space left")):
                await receive_with_a_disk_that_heals(disk, spool, content)
            assert not received_file(spool).exists()


async def receive_with_a_disk_that_heals(
    disk: FaultyDisk, spool: Spool, content: bytes
) -> None:
    receiver = SnapshotReceiver(spool, ANNOUNCED, TIME)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.run, lambda: TIME, SERVER)
            for start in range(0, len(content), 512 * 1024):
                await receiver.receive(content[start : start + 512 * 1024])
            receiver.end()
    finally:
        disk.heal()
        receiver.drop()
