"""Recordings to restore from: made by hand in no time, or of a real server in seconds.

It hides the agent (a `Taping` runs one in a thread, so that a test can write to the
server with an ordinary client meanwhile) and how a repository is laid out (a `Tape`
writes one from commands and times, also with times long gone, or what no server says).
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import trio
import zstandard

from kvtape.record.agent import Agent
from kvtape.record.options import RecordOptions
from kvtape.record.spooling.recorder import Limits
from kvtape.replication.tracker import NO_DB, Tracker
from kvtape.restore.job import Job, open_job
from kvtape.server.url import ServerUrl
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.tape.documents import (
    FORMAT_VERSION,
    Gap,
    History,
    Manifest,
    Reason,
    Repository,
    Source,
    encode,
)
from kvtape.tape.documents import Server as Identity
from kvtape.tape.names import (
    REPOSITORY_DOCUMENT,
    SOURCE_DOCUMENT,
    GapName,
    HistoryName,
    SegmentName,
    SnapshotName,
)
from kvtape.tape.point import Point, ToLatest
from kvtape.tape.rdb import read_header
from kvtape.tape.segment import Header, Mark, Writer, crc64
from oracle import Fingerprint, stable_fingerprint
from plain_client import PlainClient
from replicas import wait_until
from servers import Server
from tapes import command
from workload import Workload

REPLID: Final = "0123456789" * 4
SOURCE: Final = "source"

# Long gone, so that whatever expires has.
THEN: Final = 1_700_000_000_000

# What the servers say of themselves, where a restore looks at it.
IDENTITIES: Final = {
    "redis-6.2": Identity("redis", "6.2.14"),
    "redis-7.0": Identity("redis", "7.0.15"),
    "redis-8.0": Identity("redis", "8.0.2"),
    "valkey-8.0": Identity("valkey", "8.0.1"),
    "valkey-8.1": Identity("valkey", "8.1.1"),
    "valkey-9.1": Identity("valkey", "9.1.2"),
}

# What came at once: its time (ms) and the bytes.
Receipt: TypeAlias = tuple[int, bytes]


def rdb(
    *keys: tuple[int, str, str, int | None],
    magic: bytes = b"REDIS",
    version: int = 9,
    db: int | None = None,
    used_memory: int | None = None,
) -> bytes:
    """Return an RDB file of short strings: (database, key, value, expiry in ms)."""
    body = magic + f"{version:0{9 - len(magic)}}".encode()
    for name, fact in (("repl-stream-db", db), ("used-mem", used_memory)):
        if fact is not None:
            body += b"\xfa" + _string(name) + _string(str(fact))
    for database, key, value, expiry in keys:
        body += b"\xfe" + bytes([database])
        if expiry is not None:
            body += b"\xfc" + struct.pack("<Q", expiry)
        body += b"\x00" + _string(key) + _string(value)
    body += b"\xff"
    checksum: int = crc64.calc(body)
    return body + checksum.to_bytes(8, "little")


def _string(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


class Tape:
    """A source folder that is written by hand.

    Without more it begins with an empty snapshot at offset 1000, taken `THEN`. end is
    where it ends, and offsets what `mark` noted.
    """

    def __init__(
        self,
        repository: Path,
        *,
        source: str = SOURCE,
        replid: str = REPLID,
        start: int = 1000,
        time: int = THEN,
        db: int = NO_DB,
        server: Identity | None = None,
        reason: Reason = "first",
    ) -> None:
        self.repository = repository
        self.replid = replid
        self.server = server or Identity()
        self.end = start
        self.time = time
        self._db = db
        document = Source(source, "127.0.0.1:6379", time, self.server)
        _write(repository / source / SOURCE_DOCUMENT, encode(document))
        whole = Repository(FORMAT_VERSION, "id", time)
        _write(repository / REPOSITORY_DOCUMENT, encode(whole))
        self.folder: SourceFolder = open_repository(str(repository)).source(source)
        history = History(replid, reason, time)
        self._put(HistoryName(replid).path, encode(history))

    def _put(self, path: str, content: bytes) -> None:
        _write(Path(self.folder.url, path), content)

    def snapshot(self, content: bytes | None = None) -> Self:
        """Store a snapshot where the tape ends."""
        if content is None:
            content = rdb(db=None if self._db == NO_DB else self._db)
        header, aux = read_header(content)
        name = SnapshotName(self.replid, self.end, self.time)
        stored = zstandard.ZstdCompressor(write_checksum=True).compress(content)
        manifest = Manifest(
            replid=self.replid,
            offset=self.end,
            time=self.time,
            completed=self.time,
            bytes=len(content),
            stored_bytes=len(stored),
            sha256=hashlib.sha256(content).hexdigest(),
            rdb_magic=header.magic.decode(),
            rdb_version=header.version,
            db=_number(aux.get(b"repl-stream-db")),
            used_memory=_number(aux.get(b"used-mem")),
            server=self.server,
        )
        self._put(name.rdb, stored)
        self._put(name.manifest, encode(manifest))
        return self

    def segment(
        self, *frames: Sequence[Receipt], late_since: int | None = None
    ) -> SegmentName:
        """Store a segment of these frames; each is what was received, and when.

        late_since makes all of them late.
        """
        tracker = Tracker(self.end, self._db)
        writer = Writer(Header(self.replid, self.end, self._db, self.time))
        content = writer.header_bytes()
        start = self.end
        for receipts in frames:
            content += self._frame(writer, tracker, receipts, late_since)
        content += writer.ending()
        first = self.time if writer.first is None else writer.first
        name = SegmentName(self.replid, start, self.end, first, self.time)
        self._put(name.path, content)
        self._db = writer.db
        return name

    def _frame(
        self,
        writer: Writer,
        tracker: Tracker,
        receipts: Sequence[Receipt],
        late_since: int | None,
    ) -> bytes:
        marks = []
        for self.time, data in receipts:
            tracker.feed(data)
            self.end += len(data)
            marks.append(Mark(self.end, self.time))
        data = b"".join(data for _, data in receipts)
        summary = tracker.take_summary()
        boundary, db = tracker.boundary, tracker.db
        return writer.frame(data, marks, boundary, db, summary, late_since)

    def commands(self, *commands: Sequence[str | bytes | int]) -> SegmentName:
        """Store a segment of whole commands, a second apart."""
        frame = [
            (self.time + 1000 * n, command(*words))
            for n, words in enumerate(commands, 1)
        ]
        return self.segment(frame)

    def fork(self, replid: str) -> None:
        """Go on under another replid, as after a failover."""
        parent, self.replid = self.replid, replid
        history = History(replid, "failover", self.time, parent, self.end)
        self._put(HistoryName(replid).path, encode(history))

    def gap(self, end: int | None, reason: str) -> None:
        """Note that the tape goes on at another offset, or not at all."""
        gap = Gap(self.replid, self.end, end, self.time, self.time + 60_000, reason)
        name = GapName(gap.replid, gap.start_offset, gap.end_offset)
        self._put(name.path, encode(gap))
        if end is not None:
            self.end = end
            self.time += 60_000

    def job(self, point: Point | None = None) -> Job:
        """Find out what restoring a point takes."""
        point = ToLatest() if point is None else point
        return open_job(str(self.repository), self.folder.name, point)


def _write(path: Path, content: bytes) -> None:
    # Nothing is synced, which here would be most of the time it takes.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _number(text: bytes | None) -> int | None:
    return None if text is None else int(text)


def tape_of(
    repository: Path,
    name: str,
    commands: Iterable[Sequence[str | bytes | int]] = (("SET", "key", "value"),),
    content: bytes | None = None,
) -> Tape:
    """Return a tape that a server of this name could have been recorded on."""
    tape = Tape(repository, server=IDENTITIES[name]).snapshot(content)
    tape.commands(("SELECT", 0), *commands)
    return tape


@dataclass(slots=True)
class Taping:
    """An agent that records a server, in a thread of its own."""

    server: Server
    repository: Path
    agent: Agent
    _thread: threading.Thread = field(init=False)
    _token: trio.lowlevel.TrioToken | None = None
    _error: BaseException | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        async def main() -> None:
            self._token = trio.lowlevel.current_trio_token()
            await self.agent.run()

        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 it is raised by stop()
            self._error = error

    @property
    def replid(self) -> str:
        """The history that is recorded."""
        replid = self.agent.recorder.replid
        assert replid is not None
        return replid

    def wait_until_online(self) -> None:
        """Return once the snapshot is there and the stream flows."""
        agent = self.agent
        wait_until(
            lambda: (
                self._error is not None
                or (agent.session is not None and agent.session.is_online)
            )
        )

    def catch_up(self) -> int:
        """Return the server's offset, once all up to it is in the spool."""
        with PlainClient(self.server.client()) as plain:
            offset = int(plain.info("replication")["master_repl_offset"])
        wait_until(lambda: self.agent.recorder.durable >= offset)
        return offset

    def stop(self) -> None:
        """Stop; on return all is stored. Raises what the agent raised."""
        if self._token is not None and self._thread.is_alive():
            self._token.run_sync_soon(self.agent.stop)
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


def options_for(port: int, folder: Path, **changes: Any) -> RecordOptions:  # noqa: ANN401
    """Return options to record what is at a port into folder/repo, in small steps."""
    options = RecordOptions(
        ServerUrl("127.0.0.1", port),
        str(folder / "repo"),
        SOURCE,
        folder / "spool",
        limits=Limits(flush_interval=0.01, upload_interval=0.3),
        full_resyncs_per_hour=100,
        key_filters=False,  # a process more, for those who want it
    )
    return replace(options, **changes)


@contextmanager
def taping_by(options: RecordOptions, server: Server) -> Iterator[Taping]:
    """Record a server; it is online when this is entered, and stored when left."""
    tape = Taping(server, Path(options.repository), Agent(options))
    try:
        tape.wait_until_online()
        yield tape
    finally:
        tape.stop()


@contextmanager
def recording(server: Server, folder: Path, **changes: Any) -> Iterator[Taping]:  # noqa: ANN401
    """Record a server by options_for its port."""
    with taping_by(options_for(server.port, folder, **changes), server) as tape:
        yield tape


@contextmanager
def taping(
    server: Server, repository: Path, *, url: ServerUrl | None = None
) -> Iterator[Taping]:
    """Record a server into a repository, and have it acknowledged."""
    with recording(
        server,
        repository.parent,
        url=url or ServerUrl("127.0.0.1", server.port),
        repository=str(repository),
        spool=repository.with_name(f"{repository.name}-spool"),
        ack="received",
    ) as tape:
        yield tape


@dataclass(frozen=True, slots=True)
class Moment:
    """What a server held at an offset."""

    offset: int
    state: Fingerprint


@dataclass(frozen=True, slots=True)
class Recorded:
    """The recording of a server that is gone, and of which all short TTLs have passed.

    `counter` and `pending` are 11 in it, without an expiry, since they were incremented
    and persisted while they had one: counter was set in the stream, pending is in the
    snapshot with its TTL. `later` expires in an hour.
    """

    name: str
    repository: Path
    replid: str
    middle: Moment
    end: Moment

    def job(self, point: Point | None = None) -> Job:
        """Find out what restoring a point takes."""
        point = ToLatest() if point is None else point
        return open_job(str(self.repository), None, point)


# Long enough for a snapshot to be taken meanwhile.
PENDING_MS: Final = 1500

_recorded: dict[str, Recorded] = {}


def recorded(name: str, folder: Path) -> Recorded:
    """Return the recording of a server of this name, which is made only once."""
    if name not in _recorded:
        _recorded[name] = _record(name, folder / "repository")
    return _recorded[name]


def _record(name: str, repository: Path) -> Recorded:
    with Server(name) as server, PlainClient(server.client()) as plain:
        plain.exchange([("SET", "pending", 10, "PX", PENDING_MS), ("SELECT", 9)])
        plain.exchange([("SET", "nine", 1), ("RPUSH", "list", *range(200))])
        with (
            taping(server, repository) as tape,
            Workload("127.0.0.1", server.port, 1, name, field_ttls="long") as work,
        ):
            plain.exchange(
                [
                    ("INCR", "nine"),
                    ("SELECT", 0),
                    ("INCR", "pending"),
                    ("PERSIST", "pending"),
                    ("SET", "counter", 10, "PX", PENDING_MS),
                    ("INCR", "counter"),
                    ("PERSIST", "counter"),
                    ("SET", "witness", 1, "PX", PENDING_MS),
                    ("SET", "later", 1, "EX", 3600),
                ]
            )
            work.step(200)
            middle = Moment(*stable_fingerprint(server.client()))
            work.large_value(3_000_000)
            work.step(200)
            end = Moment(*stable_fingerprint(server.client()))
            wait_until(lambda: plain.ask("EXISTS", "witness") == 0)
            replid = tape.replid
    return Recorded(name, repository, replid, middle, end)
