"""Taking a snapshot from an RDB file that says which stream offset it was made at.

A server that replicates writes its replication ID and offset into its dump.rdb, and
also the database selected there. The file is read once: walked over, its checksum
verified, and passed on. What is too new for the walk is judged by the checksum alone,
since it may be sound and merely newer than this program.

The time of the state is the file's ctime field: that of the child that wrote it, on the
server's clock, in whole seconds. The state was there when that second was over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from kvtape.errors import UsageError, VerificationError
from kvtape.record.seeding.join import Delivery, Wanted, require_reach
from kvtape.record.spooling.position import Position
from kvtape.replication.replica import FullResync
from kvtape.replication.tracker import NO_DB
from kvtape.server.info import ServerInfo
from kvtape.tape.documents import Server
from kvtape.tape.rdb import NEED_DATA, RdbError, RdbReader, UnknownRdbError, read_header

_PIECE = 1024 * 1024
_HEAD = 16 * 1024
_REPLID_LENGTH = 40


@dataclass(frozen=True, slots=True)
class _Head:
    """What the auxiliary fields say; created is in ms."""

    announced: FullResync
    db: int
    created: int | None
    server: Server


class FileOrigin:
    """The snapshot in a file, which is good for one start."""

    costs_a_fork = False
    is_for_the_start = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def start(self, info: ServerInfo, address: str, now: int) -> Position:
        """Return where the file ends, for the stream to be joined there. Blocks."""
        head = self._read_head()
        replid, offset = head.announced.replid, head.announced.offset
        require_reach(info, replid, offset, address)
        time = now if head.created is None else min(head.created, now)
        # What follows it is as old as the file, by another clock than ours.
        return Position(replid, offset, offset, head.db, time, late_since=0)

    def leads_to(self, replid: str, since: int) -> bool:
        """Whether the stream of a history since an offset goes on from it. Blocks."""
        announced = self._read_head().announced
        return announced.replid == replid and announced.offset >= since

    @asynccontextmanager
    async def open(self, _: Wanted) -> AsyncIterator[Delivery]:
        """Read it whole; VerificationError comes at the end if it is damaged."""
        reading = await trio.to_thread.run_sync(_Reading, self._path)
        with reading.file:
            # Of this very file, also if another takes its name meanwhile.
            head = await trio.to_thread.run_sync(reading.head)
            yield Delivery(head.announced, head.server, reading.next, head.created)

    def _read_head(self) -> _Head:
        reading = _Reading(self._path)
        with reading.file:
            return reading.head()


class _Reading:
    """An RDB file that is read, and verified on the way."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        self._reader: RdbReader | None = RdbReader(values=False)
        try:
            self.file: BinaryIO = path.open("rb")
        except OSError as error:
            raise self._unreadable(error) from None

    def head(self) -> _Head:
        """Return what it says of itself, and go back to its beginning. Blocks."""
        try:
            _, aux = read_header(self._read(_HEAD))
        except RdbError as error:
            raise UsageError(f"{self._name} is no RDB file: {error}") from None
        self.file.seek(0)
        replid = aux.get(b"repl-id", b"").decode("ascii", "replace")
        offset = _number(aux.get(b"repl-offset"))
        if len(replid) != _REPLID_LENGTH or not replid.isalnum() or offset is None:
            raise UsageError(
                f"{self._name} does not say which offset it was made at (repl-id and "
                "repl-offset): take it from a server that replicates, by BGSAVE on a "
                "replica"
            )
        db, seconds = _number(aux.get(b"repl-stream-db")), _number(aux.get(b"ctime"))
        return _Head(
            FullResync(replid, offset),
            NO_DB if db is None else db,
            None if seconds is None else (seconds + 1) * 1000,
            _server(aux),
        )

    async def next(self) -> bytes:
        """Return the next piece; nothing when all of it was sound."""
        return await trio.to_thread.run_sync(self._next)

    def _next(self) -> bytes:
        piece = self._read(_PIECE)
        try:
            self._walk_over(piece)
        except UnknownRdbError:
            self._reader = None
        except RdbError as error:
            raise VerificationError(f"{self._name} is damaged: {error}") from None
        return piece

    def _walk_over(self, piece: bytes) -> None:
        reader = self._reader
        if reader is None:
            return
        if not piece:
            reader.close()
        reader.receive_data(piece)
        while reader.next_event() is not NEED_DATA:
            pass
        if reader.unused_data:
            raise RdbError("it goes on after the end of the RDB", reader.offset)

    def _read(self, count: int) -> bytes:
        # An OSError is taken for one of the spool.
        try:
            return self.file.read(count)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> UsageError:
        return UsageError(
            f"cannot read the snapshot file {self._name}: {error.strerror}; without "
            "--snapshot-file the server makes a snapshot itself"
        )


def _server(aux: dict[bytes, bytes]) -> Server:
    for family in ("valkey", "redis"):
        version = aux.get(f"{family}-ver".encode())
        if version is not None:
            text = version.decode("ascii", "replace")
            return Server("valkey" if family == "valkey" else "redis", text)
    return Server()


def _number(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
