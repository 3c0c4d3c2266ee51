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
from contextlib import suppress

import trio
import zstandard

from kvtape.errors import ProtocolError
from kvtape.replication.replica import FullResync
from kvtape.replication.tracker import NO_DB
from kvtape.storage.spool import Spool
from kvtape.tape.documents import Manifest, Server
from kvtape.tape.names import SnapshotName
from kvtape.tape.rdb import Header, RdbError, read_header
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
        # Before, since the file is deleted if it does not become whole.
        self._spool.require_room()
        self._file.write(stored)
        self._spool.grow_snapshot(self._file.tell())
        self._unsynced += len(stored)
        if self._unsynced >= _SYNC_EVERY:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def finish(self) -> tuple[int, str]:
        """Complete and sync the file; return its length and the sha256 of the RDB.

        ProtocolError if it arrived damaged.
        """
        self._store(self._compressor.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        stored_bytes = self._file.tell()
        self._file.close()
        # A server that was told not to compute checksums writes 0.
        if int.from_bytes(self._tail, "little") not in (0, self._crc):
            raise ProtocolError("the snapshot arrived damaged: its checksum is wrong")
        return stored_bytes, self._sha256.hexdigest()

    def close(self) -> None:
        """Close the file, however it stands."""
        # Closing writes what was buffered, which fails again where writing failed.
        with suppress(OSError):
            self._file.close()


class SnapshotReceiver:
    """Takes a snapshot's pieces as they come, and has a thread write them.

    One task calls receive() and end(), and another run(), which waits for them.
    """

    def __init__(self, spool: Spool, announced: FullResync, time: int) -> None:
        self.name = SnapshotName(announced.replid, announced.offset, time)
        self.received = 0
        self.db = NO_DB  # selected in the stream behind the snapshot; known after end()
        self._spool = spool
        self._file: SnapshotFile | None = None
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._send, self._receive = trio.open_memory_channel[bytes](_MOST_QUEUED)
        self._head = b""
        self._header = Header(b"", 0)
        self._aux: dict[bytes, bytes] = {}

    async def receive(self, data: bytes) -> None:
        """Take the next bytes; waits while the disk is far behind."""
        self.received += len(data)
        if len(self._head) < _HEADER_LENGTH:
            self._head += data[: _HEADER_LENGTH - len(self._head)]
        self._pieces.append(data)
        self._gathered += len(data)
        if self._gathered >= _PIECE:
            piece = b"".join(self._pieces)
            self._pieces, self._gathered = [], 0
            await self._send.send(piece)

    def end(self) -> None:
        """Say that all was received. ProtocolError if that is no RDB file."""
        try:
            self._header, self._aux = read_header(self._head)
        except RdbError as error:
            raise ProtocolError(f"the snapshot is no RDB file: {error}") from None
        db = _number(self._aux.get(b"repl-stream-db"))
        self.db = NO_DB if db is None else db
        self._send.close()

    async def run(self, clock: Callable[[], int], server: Server) -> Manifest:
        """Write what is received; return the manifest when all of it is synced.

        The RDB file is then in the spool, and not yet in its queue.
        """
        file = self._file = await trio.to_thread.run_sync(SnapshotFile, self._spool)
        async for piece in self._receive:
            await trio.to_thread.run_sync(file.write, piece)
        await trio.to_thread.run_sync(file.write, b"".join(self._pieces))
        stored_bytes, sha256 = await trio.to_thread.run_sync(file.finish)
        return Manifest(
            replid=self.name.replid,
            offset=self.name.offset,
            time=self.name.time,
            completed=clock(),
            bytes=file.length,
            stored_bytes=stored_bytes,
            sha256=sha256,
            rdb_magic=self._header.magic.decode(),
            rdb_version=self._header.version,
            db=_number(self._aux.get(b"repl-stream-db")),
            used_memory=_number(self._aux.get(b"used-mem")),
            server=server,
        )

    def drop(self) -> None:
        """Delete what there is, when nothing more of it will be used."""
        if self._file is not None:
            self._file.close()
        self._spool.drop_snapshot()


def _number(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
