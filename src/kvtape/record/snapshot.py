"""Receiving a snapshot: compressed on the way, whole or not at all.

An RDB file may be larger than memory, and the disk of this machine slower than the
primary's. So its pieces go through a short queue to a thread, and are synced as they
go: what is left to sync at the end is little, and the stream behind the snapshot does
not wait long for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import trio
import zstandard

from kvtape.errors import ProtocolError
from kvtape.replication.replica import FullResync
from kvtape.replication.tracker import NO_DB
from kvtape.storage.spool import Spool
from kvtape.tape.documents import Manifest, Server
from kvtape.tape.names import SnapshotName
from kvtape.tape.rdb import read_header
from kvtape.tape.segment import crc64

_LEVEL = 1
_PIECE = 1024 * 1024
_MOST_QUEUED = 8
_SYNC_EVERY = 64 * 1024 * 1024

# The AUX fields stand at the beginning of an RDB file and take some hundred bytes.
_HEADER_LENGTH = 16 * 1024

_CRC_LENGTH = 8


class SnapshotFile:
    """An RDB file on its way into the spool. All calls block."""

    def __init__(self, spool: Spool) -> None:
        self.length = 0
        self._spool = spool
        self._file = spool.begin_snapshot()
        self._compressor = zstandard.ZstdCompressor(
            level=_LEVEL, write_checksum=True
        ).compressobj()
        self._sha256 = hashlib.sha256()
        self._crc = 0
        self._tail = b""  # what may be the file's own checksum
        self._unsynced = 0

    def write(self, data: bytes) -> None:
        """Take the next piece of the RDB file."""
        self.length += len(data)
        self._sha256.update(data)
        self._check(data)
        self._store(self._compressor.compress(data))

    def _check(self, data: bytes) -> None:
        data = self._tail + data
        self._tail = data[-_CRC_LENGTH:]
        self._crc = crc64.calc(memoryview(data)[:-_CRC_LENGTH], self._crc)

    def _store(self, stored: bytes) -> None:
        self._file.write(stored)
        self._unsynced += len(stored)
        if self._unsynced >= _SYNC_EVERY:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def finish(
        self, name: SnapshotName, head: bytes, completed: int, server: Server
    ) -> Manifest:
        """Complete and queue the RDB file; return the manifest to queue behind it.

        head is what the RDB file begins with; completed is the time now, in ms.
        """
        self._store(self._compressor.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        stored = self._file.tell()
        self._file.close()
        # A server that was told not to compute checksums writes 0.
        if int.from_bytes(self._tail, "little") not in (0, self._crc):
            self._spool.drop_snapshot()
            raise ProtocolError("the snapshot arrived damaged: its checksum is wrong")
        header, aux = read_header(head)
        self._spool.queue_snapshot(name)
        return Manifest(
            replid=name.replid,
            offset=name.offset,
            time=name.time,
            completed=completed,
            bytes=self.length,
            stored_bytes=stored,
            sha256=self._sha256.hexdigest(),
            rdb_magic=header.magic.decode(),
            rdb_version=header.version,
            db=_number(aux.get(b"repl-stream-db")),
            used_memory=_number(aux.get(b"used-mem")),
            server=server,
        )

    def drop(self) -> None:
        """Delete what there is: the rest will never come."""
        self._file.close()
        self._spool.drop_snapshot()


class SnapshotReceiver:
    """Takes a snapshot's pieces as they come, and writes them in a thread."""

    def __init__(self, spool: Spool, announced: FullResync, time: int) -> None:
        self.name = SnapshotName(announced.replid, announced.offset, time)
        self.received = 0
        self._spool = spool
        self._file: SnapshotFile | None = None
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._send, self._receive = trio.open_memory_channel[bytes](_MOST_QUEUED)
        self._head = b""
        self._is_written = trio.Event()
        self._writing = trio.CancelScope()

    @property
    def db(self) -> int:
        """The database selected in the stream behind the snapshot, or NO_DB."""
        db = _number(read_header(self._head)[1].get(b"repl-stream-db"))
        return NO_DB if db is None else db

    async def run(self) -> None:
        """Write what is received; returns when complete() was called."""
        with self._writing:
            self._file = await trio.to_thread.run_sync(SnapshotFile, self._spool)
            async with self._receive:
                async for piece in self._receive:
                    await trio.to_thread.run_sync(self._file.write, piece)
            self._is_written.set()

    def keep(self) -> None:
        """Have run() go on to the end, though the link's tasks are cancelled.

        All of the snapshot is received: call complete() next, shielded likewise.
        """
        self._writing.shield = True

    async def receive(self, data: bytes) -> None:
        """Take the next bytes; waits while the disk is far behind."""
        self.received += len(data)
        if len(self._head) < _HEADER_LENGTH:
            self._head += data[: _HEADER_LENGTH - len(self._head)]
        self._pieces.append(data)
        self._gathered += len(data)
        if self._gathered >= _PIECE:
            await self._pass_on()

    async def _pass_on(self) -> None:
        piece = b"".join(self._pieces)
        self._pieces, self._gathered = [], 0
        await self._send.send(piece)

    async def complete(self, now: Callable[[], int], server: Server) -> Manifest:
        """Wait until all is durable and queued; return the manifest."""
        await self._pass_on()
        self._send.close()
        await self._is_written.wait()
        if self._file is None:
            raise RuntimeError("complete() before run()")
        file, self._file = self._file, None
        return await trio.to_thread.run_sync(
            file.finish, self.name, self._head, now(), server
        )

    def drop(self) -> None:
        """Forget the snapshot, if it was not completed."""
        if self._file is not None:
            self._file.drop()
            self._file = None


def _number(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
