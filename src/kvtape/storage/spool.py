"""The spool: what is recorded and not yet in the repository, on the local disk.

The folder is the queue. It holds

    lock                    taken by the agent that records
    spool.json              which repository and source it belongs to
    full-resyncs.json       when full resyncs were begun, to limit them across restarts
    recording/stream.seg    the segment that is being written
    recording/rdb.zst       the snapshot that is being received
    recording/document.json what is about to be queued
    queue/…                 what waits to be uploaded, under its name in the repository

A segment in recording/ is a segment file that lacks its ending, so that starting up is
crash recovery and nothing else: scan the frames, cut what follows the last whole one,
go on. A snapshot in recording/ is worth nothing after a crash, since the rest of it
will never come, and is deleted; so is one in queue/ that has no manifest yet. What is
in queue/ is whole: it got there by rename, synced before and after.

All calls block. One thread at a time records; meanwhile another may take from the
queue. A full disk raises OSError from any call; what was synced before stays good, and
recover() finds it. What was not is dropped then: after a failed fsync, Linux takes for
written what is not.

used is what all of that takes, kept up to date by every call that writes or deletes;
limit is what it may take. The limit is the recording's to respect (require_room()): a
batch that is received is written even beyond it, rather than lost, and so is a command
that is longer than it, when nothing else is here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from kvtape.errors import IdentityError, RepositoryError
from kvtape.storage.store import LocalStore, make_folder, replace_file, sync_folder
from kvtape.storage.usage import Usage
from kvtape.tape.names import HistoryName, SegmentName, SnapshotName, parse
from kvtape.tape.segment import (
    NEED_DATA,
    Frame,
    Header,
    Parser,
    SegmentError,
    Writer,
)

# A day of 1 Mbit/s; and little enough for the disk of a small machine.
DEFAULT_LIMIT = 10 * 1024**3

_PIECE = 1024 * 1024

_Kind = TypeVar("_Kind")


class SpoolFullError(RepositoryError):
    """The spool has reached its limit: nothing more may be received for now."""


class SpoolIdentity(msgspec.Struct, frozen=True):
    """spool.json: the id of the repository, and the source, that it was begun for."""

    repository: str
    source: str


@dataclass(slots=True)
class OpenSegment:
    """The segment that is being written: a file and what is in it."""

    writer: Writer
    file: FileIO

    @property
    def size(self) -> int:
        """Its length in bytes so far."""
        return self.file.tell()


class Spool:
    """One agent's spool folder, between open() and close()."""

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder.absolute()
        self.limit = limit
        self.segment: OpenSegment | None = None
        self._recording = self.folder / "recording"
        self._stream = self._recording / "stream.seg"
        self._rdb = self._recording / "rdb.zst"
        self._document = self._recording / "document.json"
        self._queue = LocalStore(self.folder / "queue")
        self._lock: int | None = None
        self._synced: int | None = None  # length of the segment; None is unknown
        self._usage = Usage()

    @property
    def segment_file(self) -> Path:
        """Where the open segment is. To look needs no lock; its end may be torn."""
        return self._stream

    @property
    def used(self) -> int:
        """How many bytes are in recording/ and queue/."""
        return self._usage.total

    def require_room(self) -> None:
        """Raise SpoolFullError if the limit is reached.

        Not by the only command that is here, though: given back, it would come again.
        """
        if (used := self.used) >= self.limit and not self._is_one_command():
            raise SpoolFullError(
                f"the spool {self.folder} is full: it holds {used} bytes that are not "
                f"stored yet, and may hold {self.limit} (--spool-limit)"
            )

    def _is_one_command(self) -> bool:
        segment = self.segment
        return (
            segment is not None
            and segment.writer.boundary <= segment.writer.header.start
            and self._usage.is_all(self._stream)
        )

    def disk(self) -> tuple[int, int]:
        """Return the size of the disk, and what is free on it."""
        disk = shutil.disk_usage(self.folder)
        return disk.total, disk.free

    def open(self, repository: str, source: str) -> None:
        """Take the lock, and make sure that what is here belongs to the source."""
        try:
            self._take_lock()
            self._claim(SpoolIdentity(repository, source))
            self._clean()
            self._count()
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        make_folder(self._recording)
        make_folder(self._queue.folder)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise RepositoryError(
                f"another kvtape records with the spool {self.folder}: stop it first, "
                "or give this one another --spool"
            ) from None

    def close(self) -> None:
        """Release the lock. The segment stays for the next start to recover."""
        if self.segment is not None:
            self.segment.file.close()
            self.segment = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def identity(self) -> SpoolIdentity | None:
        """Return what it was begun for, if it was; it need not be open."""
        path = self.folder / "spool.json"
        return _decode(path, SpoolIdentity) if path.exists() else None

    def _claim(self, identity: SpoolIdentity) -> None:
        path = self.folder / "spool.json"
        if not path.exists():
            replace_file(path, msgspec.json.encode(identity))
        found = _decode(path, SpoolIdentity)
        if found != identity:
            raise IdentityError(
                f"the spool {self.folder} holds what was recorded of {found.source!r} "
                f"for the repository {found.repository}: give this recording another "
                "--spool"
            )

    def _clean(self) -> None:
        for leftover in self._recording.iterdir():
            if leftover != self._stream:
                leftover.unlink()
        queued = self._queue.list()
        for path in queued:
            match parse(path):
                # It is uploaded before its manifest, so none was queued.
                case SnapshotName() as name if name.manifest not in queued:
                    self.dequeue(path)
                case _:
                    pass
        for folder, _, _ in os.walk(self._queue.folder, topdown=False):
            # Folders of days gone by; removing them while recording would be a race.
            if folder != str(self._queue.folder) and not os.listdir(folder):  # noqa: PTH208
                Path(folder).rmdir()

    def _count(self) -> None:
        self._usage = Usage()
        if self._stream.exists():
            self._usage.note(self._stream, self._stream.stat().st_size)
        for path, length in self._queue.list().items():
            self._usage.note(self.queued_file(path), length)

    # The segment that is being written.

    def recover(self) -> Iterator[Frame]:
        """Open the segment that a crash, a stop or an error left; yield its frames.

        What follows the last whole frame is cut off first. The segment is open when
        the caller has taken all frames; a file without a single one is deleted.
        """
        self.forget()
        if not self._stream.exists():
            return
        good = self._good_length()
        self._truncate(good if self._synced is None else min(good, self._synced))
        parser = Parser()
        with self._stream.open("rb") as file:
            while piece := file.read(_PIECE):
                parser.receive_data(piece)
                while (part := parser.next_part()) is not NEED_DATA:
                    if isinstance(part, Frame):
                        yield part
        if parser.writer is None or parser.writer.frames == 0:
            self._stream.unlink()
            self._usage.drop(self._stream)
            sync_folder(self._recording)
            return
        unbuffered = self._stream.open("r+b", buffering=0)
        unbuffered.seek(parser.position)
        self.segment = OpenSegment(parser.writer, unbuffered)

    def _good_length(self) -> int:
        """Return where the whole frames end; a torn write was never synced."""
        parser = Parser()
        good = 0
        with self._stream.open("rb") as file:
            while piece := file.read(_PIECE):
                parser.receive_data(piece)
                try:
                    while (part := parser.next_part()) is not NEED_DATA:
                        if isinstance(part, Frame):
                            # After a power cut, the facts may be there and the bytes
                            # they speak of may not: pages are not written in order.
                            part.stream()
                        if isinstance(part, Header | Frame):
                            good = parser.position
                except SegmentError:
                    break
        return good

    def _truncate(self, length: int) -> None:
        with self._stream.open("r+b") as file:
            file.truncate(length)
            self._usage.note(self._stream, length)
            os.fsync(file.fileno())
        self._synced = length

    def begin_segment(self, header: Header) -> OpenSegment:
        """Begin a segment, where none is. Its bytes are not synced until sync()."""
        writer = Writer(header)
        # Unbuffered, so that an error is of the call that made it, and closing after
        # one does not write again. Never over a segment that is there: recover() it.
        file = self._stream.open("x+b", buffering=0)
        self.segment = segment = OpenSegment(writer, file)
        self._synced = 0
        # Or a power cut would leave bytes that were synced, and no name for them.
        sync_folder(self._recording)
        self.append(writer.header_bytes())
        return segment

    def append(self, data: bytes) -> None:
        """Append frames of the segment's writer to the file."""
        segment, view = self._open_segment(), memoryview(data)
        while view:
            view = view[segment.file.write(view) :]
            self._usage.note(self._stream, segment.size)

    def sync(self) -> None:
        """Make everything that was appended durable."""
        segment = self._open_segment()
        os.fsync(segment.file.fileno())
        self._synced = segment.size

    def seal(self) -> SegmentName:
        """Finish the segment, which must be at a boundary, and queue it."""
        segment = self._open_segment()
        writer = segment.writer
        self.append(writer.ending())
        self.sync()
        segment.file.close()
        first = writer.last if writer.first is None else writer.first
        header = writer.header
        name = SegmentName(header.replid, header.start, writer.end, first, writer.last)
        self._enqueue(self._stream, name.path)
        self.segment = None
        return name

    def cut_to_boundary(self) -> None:
        """Drop the frames after the segment's last boundary: an unfinished command."""
        boundary = self._open_segment().writer.boundary
        self.forget()
        parser = Parser()
        parser.receive_data(self._stream.read_bytes())
        length = 0
        while (part := parser.next_part()) is not NEED_DATA:
            whole = isinstance(part, Frame) and part.facts.end <= boundary
            if isinstance(part, Header) or whole:
                length = parser.position
        self._truncate(length)

    def forget(self) -> None:
        """Close the segment's file, after an error; recover() opens it again."""
        if self.segment is not None:
            self.segment.file.close()
            self.segment = None

    def _open_segment(self) -> OpenSegment:
        if self.segment is None:
            raise RuntimeError("no segment is open")
        return self.segment

    # The queue.

    def begin_snapshot(self) -> BinaryIO:
        """Open the file for a snapshot's compressed RDB.

        Say by grow_snapshot() how long it has become.
        """
        self._usage.drop(self._rdb)
        return self._rdb.open("wb")

    def grow_snapshot(self, length: int) -> None:
        """Count the snapshot's file, which is so long now."""
        self._usage.note(self._rdb, length)

    def queue_snapshot(self, name: SnapshotName, manifest: bytes) -> None:
        """Queue the RDB file, which must be closed and synced, and its manifest."""
        # What needs room on the disk first, so that the one rarely comes without the
        # other.
        self._write_document(manifest)
        self._enqueue(self._rdb, name.rdb)
        self._enqueue(self._document, name.manifest)

    def drop_snapshot(self) -> None:
        """Delete the RDB file of a snapshot that did not become whole."""
        self._rdb.unlink(missing_ok=True)
        self._usage.drop(self._rdb)

    def queue_document(self, path: str, content: bytes) -> None:
        """Queue a document."""
        self._write_document(content)
        self._enqueue(self._document, path)

    def _write_document(self, content: bytes) -> None:
        replace_file(self._document, content)
        self._usage.note(self._document, len(content))

    def _enqueue(self, file: Path, path: str) -> None:
        target = self._queue.folder / path
        make_folder(target.parent)
        # First, since whoever uploads may see the file, and delete it, at once.
        self._usage.move(file, target)
        try:
            file.rename(target)
        except OSError:
            self._usage.move(target, file)
            raise
        sync_folder(target.parent)
        sync_folder(self._recording)

    def queued(self) -> dict[str, int]:
        """Return what waits to be uploaded, in the order to upload it, with lengths."""
        listing = self._queue.list()
        return {path: listing[path] for path in sorted(listing, key=_upload_order)}

    def queued_file(self, path: str) -> Path:
        """Return where a queued object is."""
        return self._queue.folder / path

    def dequeue(self, path: str) -> None:
        """Delete what is in the repository now."""
        file = self.queued_file(path)
        file.unlink(missing_ok=True)
        self._usage.drop(file)

    # The limit on full resyncs.

    def full_resyncs(self) -> list[int]:
        """Return when full resyncs were begun with this spool, in ms."""
        path = self.folder / "full-resyncs.json"
        if not path.exists():
            return []
        return _decode(path, list[int])

    def note_full_resyncs(self, times: list[int]) -> None:
        """Remember when full resyncs were begun."""
        replace_file(self.folder / "full-resyncs.json", msgspec.json.encode(times))


def _decode(path: Path, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RepositoryError(
            f"{path} is damaged ({error}): move the spool away, or delete this file if "
            "nothing in the spool is still to be uploaded"
        ) from None


def _upload_order(path: str) -> tuple[int, int, str]:
    """Order the queue: as it was recorded, a manifest behind its RDB file.

    What a history is comes first, and the gaps that snapshots end come last.
    """
    match parse(path):
        case HistoryName():
            return 0, 0, path
        case SegmentName() as segment:
            return 1, segment.first, path
        case SnapshotName() as snapshot:
            return 1, snapshot.time, "" if path == snapshot.rdb else path
        case _:
            return 2, 0, path
