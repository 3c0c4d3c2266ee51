"""Whatever happens to a link, what is recorded is the stream: a prefix, then all of it.

The primary is kvtape's own, over streams in memory.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from faulty_disk import FaultyDisk
from kvtape.errors import ProtocolError, ServerError, cause_of
from kvtape.record.acknowledge import Ack
from kvtape.record.histories.commits import Commits
from kvtape.record.linking.session import Session
from kvtape.record.spooling import recorder as recorder_module
from kvtape.record.spooling import stretch as stretch_module
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.position import Position, recover
from kvtape.record.spooling.recorder import MOST_PENDING, Limits, Recorder
from kvtape.record.uploading.stored import Stored
from kvtape.record.uploading.uploader import Uploader
from kvtape.replication.primary import Psync
from kvtape.replication.refusal import RefusedError
from kvtape.replication.replica import LinkError, Replica
from kvtape.replication.tracker import Tracker
from kvtape.signal import Signal
from kvtape.storage.repository import SourceFolder
from kvtape.storage.spool import Spool
from kvtape.storage.store import LocalStore
from kvtape.tape.segment import MAX_FRAME
from primaries import Teller
from recording import rdb
from tapes import command, decompressed, documents_of, stream_of

OLD, NEW = "a" * 40, "b" * 40
START = 5000

# A stream with all that a recorder minds: transactions, databases, long values, PINGs,
# and demands for an ACK.
RNG = random.Random(1)
STREAM = b"".join(
    [
        command("SELECT", 0),
        command("SET", "key", "value"),
        command("PING"),
        command("MULTI"),
        command("INCR", "counter"),
        command("SELECT", 3),
        command("SET", "key", RNG.randbytes(70)),
        command("EXEC"),
        command("SET", "large", RNG.randbytes(700)),
        command("REPLCONF", "GETACK", "*"),
        command("DEL", "key"),
        command("MULTI"),
        *[command("INCR", "counter")] * 20,
        command("EXEC"),
        command("SET", "key", "last"),
    ]
)
FIRST = Position(OLD, START, START, 0, 0)
RDB = rdb((0, "key", "value", None), db=3)


class Recording:
    """What stays from one link to the next."""

    def __init__(
        self, folder: Path, ack: Ack = "hidden", segment_size: int = 300
    ) -> None:
        self.spool = Spool(folder)
        self.spool.open("repository", "source")
        self.queued = Signal()
        limits = Limits(flush_interval=0.001, segment_size=segment_size)
        self.recorder = Recorder(self.spool, limits, self.queued)
        if (position := recover(self.spool)) is not None:
            self.recorder.follow(position)
        self.commits = Commits(self.spool, [])
        repository = SourceFolder(LocalStore(folder.with_name("repo")), "source")
        self.uploader = Uploader(self.spool, repository, self.queued, Stored())
        self.session: Session | None = None
        self.must_fork = False
        self.ack = ack

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write what is received, and all of it in the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.recorder.run)
            yield
            self.recorder.finish()

    def new_session(self, stream: trio.abc.Stream) -> Session:
        """Begin a link where recording stands."""
        replid, offset = self.recorder.position or (None, 0)
        self.session = Session(
            stream,
            Replica(replid, offset),
            self.recorder,
            self.spool,
            ReceiptClock(),
            self.commits,
            self.queued,
            self.ack,
            self.uploader,
            must_fork=self.must_fork,
        )
        return self.session

    async def link(self, teller: Teller, cut: int | None = None) -> BaseException:
        """Record over one link until it breaks; return why it did."""
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery, ours:
            nursery.start_soon(teller.serve, theirs, cut)
            try:
                await self.new_session(ours).run()
            except (ServerError, OSError, ExceptionGroup) as error:
                return cause_of(error)
        pytest.fail("a session ended without an error")

    @asynccontextmanager
    async def standing_link(self, teller: Teller) -> AsyncIterator[Session]:
        """Have a link that stands until the end of the block."""
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery, ours:
            session = self.new_session(ours)

            async def serve() -> None:
                await teller.serve(theirs, stays=True)

            nursery.start_soon(serve)
            nursery.start_soon(session.run)
            yield session
            nursery.cancel_scope.cancel()

    @property
    def queue(self) -> Path:
        """The folder that has the names of the repository."""
        return self.spool.folder / "queue"


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    """Return a new recording."""
    recording = Recording(tmp_path / "spool")
    with closing(recording.spool):
        yield recording


@pytest.fixture
def short_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every frame so short that a long value or transaction takes several."""
    for module in (recorder_module, stretch_module):
        monkeypatch.setattr(module, "MAX_FRAME", 100)


def snapshots_of(folder: Path) -> list[dict[str, Any]]:
    """Return the manifests, each of which is true of its RDB file."""
    manifests = documents_of(folder, "snapshots/*/*/manifest.json")
    files = sorted(folder.glob("snapshots/*/*/rdb.zst"))
    assert len(files) == len(manifests)
    for file, manifest in zip(files, manifests, strict=True):
        assert file.stat().st_size == manifest["stored_bytes"]
        assert decompressed(file.read_bytes()) == RDB
    return manifests


def total_of(teller: Teller) -> int:
    """Return about how many bytes a primary says over a whole first link."""
    return 4 * len(b"+OK\r\n") + 150 + len(teller.rdb) + len(teller.stream)


# Links that break.


@pytest.mark.slow
@pytest.mark.usefixtures("short_frames")
@pytest.mark.parametrize("has_mark", [False, True], ids=["by length", "by mark"])
async def test_a_link_cut_after_any_byte_is_continued_to_the_exact_stream(
    tmp_path: Path, *, has_mark: bool
) -> None:
    rng = random.Random(1)
    cuts = range(0, total_of(Teller(NEW, START, STREAM, RDB)), 11)
    for cut in cuts:
        teller = Teller(NEW, START, STREAM, RDB, has_mark=has_mark)
        recording = Recording(tmp_path / str(cut))
        with closing(recording.spool):
            async with recording.running():
                await recording.link(teller, cut)
                if recording.recorder.position is None:
                    assert recording.spool.queued() == {}
                else:
                    assert prefix_recorded(recording) <= recording.recorder.received
                await recording.link(teller, rng.randrange(50, 500))
                await recording.link(teller)
                assert recording.recorder.position == (NEW, teller.end)
            assert stream_of(recording.queue, NEW) == (START, STREAM)
            [manifest] = snapshots_of(recording.queue)
            assert (manifest["replid"], manifest["offset"]) == (NEW, START)
            [history] = documents_of(recording.queue, "histories/*.json")
            assert history["reason"] == "first"
        # No more snapshots than were begun, and of each link what the last one lacked.
        known = [psync for psync in teller.psyncs if psync.replid == NEW]
        assert known == sorted(known, key=lambda psync: psync.offset)


def prefix_recorded(recording: Recording) -> int:
    """Return the offset up to which the beginning of the stream is sealed."""
    if not list(recording.queue.glob("stream/*/*/*.seg")):
        return START
    start, data = stream_of(recording.queue, NEW)
    assert start == START
    assert STREAM.startswith(data)
    return start + len(data)


@pytest.mark.slow
@pytest.mark.usefixtures("short_frames")
async def test_a_full_resync_cut_anywhere_leaves_the_old_history_to_be_resumed(
    tmp_path: Path,
) -> None:
    old = Teller(OLD, START, STREAM[:900], RDB)
    new = Teller(NEW, 100, STREAM, RDB, has_mark=True)
    for cut in range(0, total_of(new), 29):
        recording = Recording(tmp_path / str(cut))
        with closing(recording.spool):
            async with recording.running():
                await recording.link(old)
                await recording.recorder.settle()
                before = recording.recorder.position
                queued = recording.spool.queued()
                await recording.link(new, cut)
                if recording.recorder.replid == OLD:
                    assert recording.recorder.position == before
                    assert recording.spool.queued() == queued
                    assert not (recording.spool.folder / "recording/rdb.zst").exists()
                    # The old one is back, and goes on.
                    longer = Teller(OLD, START, STREAM, RDB)
                    await recording.link(longer)
                    assert before is not None
                    assert longer.psyncs == [Psync(*before)]
                    assert recording.recorder.received == longer.end
                await recording.link(new)
                assert recording.recorder.position == (NEW, new.end)
            start, data = stream_of(recording.queue, OLD)
            assert start == START
            assert STREAM.startswith(data)
            assert stream_of(recording.queue, NEW) == (100, STREAM)
            assert len(snapshots_of(recording.queue)) == 2
            [gap] = documents_of(recording.queue, "gaps/*/*.json")
            assert gap["replid"] == OLD
            assert gap["start_offset"] == START + len(data)
            assert gap["end_offset"] is None
            assert NEW in str(gap["reason"])
            reasons = [
                history["reason"]
                for history in documents_of(recording.queue, "histories/*.json")
            ]
            assert reasons == ["first", "full-resync"]


@pytest.mark.slow
@pytest.mark.usefixtures("short_frames")
async def test_after_a_failover_the_histories_part_at_a_boundary_wherever_it_was_cut(
    tmp_path: Path,
) -> None:
    handshake = total_of(Teller(OLD, START, b"", RDB)) - 150
    for cut in range(handshake, handshake + len(STREAM), 13):
        old = Teller(OLD, START, STREAM, RDB)
        recording = Recording(tmp_path / str(cut))
        with closing(recording.spool):
            async with recording.running():
                await recording.link(old, cut)
                if recording.recorder.position is None:
                    await recording.link(Teller(OLD, START, STREAM[:7], RDB))
                received = recording.recorder.received
                # The promoted one shares all that we have, and goes on differently.
                shared = STREAM[: received - START]
                rest = STREAM[received - START :] + command("SET", "after", "failover")
                new = Teller(NEW, START, shared + rest, RDB, older=(OLD, received))
                error = await recording.link(new)
                if "within a command" in str(error):
                    assert recording.recorder.replid == OLD
                    await recording.link(new)
                assert recording.recorder.position == (NEW, new.end)
            fork, data = stream_of(recording.queue, NEW)
            if fork > START:
                assert stream_of(recording.queue, OLD) == (
                    START,
                    STREAM[: fork - START],
                )
            assert data == new.stream[fork - START :]
            assert received - 800 < fork <= received
            [_, history] = documents_of(recording.queue, "histories/*.json")
            assert history["reason"] == "failover"
            assert (history["parent"], history["parent_offset"]) == (OLD, fork)
            assert len(snapshots_of(recording.queue)) == 1
            assert documents_of(recording.queue, "gaps/*/*.json") == []


async def test_a_backlog_that_does_not_reach_back_leaves_a_gap_with_both_ends(
    recording: Recording,
) -> None:
    later = Teller(OLD, START + 500, STREAM[500:], RDB, snapshot_at=0)
    async with recording.running():
        await recording.link(Teller(OLD, START, STREAM[:300], RDB))
        end = recording.recorder.end
        await recording.link(later)
    assert end is not None
    [gap] = documents_of(recording.queue, "gaps/*/*.json")
    start = gap["start_offset"]
    assert isinstance(start, int)
    assert START < start <= START + 300
    assert gap["end_offset"] == START + 500
    assert "backlog" in str(gap["reason"])
    assert len(documents_of(recording.queue, "histories/*.json")) == 1
    assert len(snapshots_of(recording.queue)) == 2


async def test_a_snapshot_that_arrives_damaged_is_refused_and_the_old_history_resumed(
    recording: Recording,
) -> None:
    damaged = bytearray(RDB)
    damaged[20] ^= 1
    async with recording.running():
        await recording.link(Teller(OLD, START, STREAM[:900], RDB))
        await recording.recorder.settle()
        before, queued = recording.recorder.end, recording.spool.queued()
        # With a stream behind it, some of which is received before it is found out.
        bad = Teller(NEW, 100, STREAM * 50, bytes(damaged))
        error = await recording.link(bad)
        assert isinstance(error, ProtocolError | LinkError)
        assert recording.recorder.end == before
        assert recording.spool.queued() == queued
        assert not (recording.spool.folder / "recording" / "rdb.zst").exists()
        await recording.link(Teller(OLD, START, STREAM, RDB))
        assert recording.recorder.position == (OLD, START + len(STREAM))
    assert stream_of(recording.queue, OLD) == (START, STREAM)
    assert not list(recording.queue.glob("*/" + NEW + "*"))


async def test_a_damaged_first_snapshot_leaves_nothing_to_go_on_from(
    recording: Recording,
) -> None:
    async with recording.running():
        error = await recording.link(Teller(NEW, 0, STREAM, RDB[:-1] + b"x"))
        assert isinstance(error, ProtocolError | LinkError)
        assert recording.recorder.position is None
    assert recording.spool.queued() == {}


async def test_what_is_no_rdb_file_is_the_servers_fault(recording: Recording) -> None:
    async with recording.running():
        error = await recording.link(Teller(NEW, 0, STREAM, b"nothing of the kind"))
        assert isinstance(error, ProtocolError)
        assert "no RDB file" in str(error)
        assert recording.recorder.position is None


async def test_a_refusal_is_raised_as_it_is(recording: Recording) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recording.recorder.run)
        await theirs.send_all(b"-NOAUTH Authentication required.\r\n")
        with pytest.RaisesGroup(pytest.RaisesExc(RefusedError, match="a password")):
            await recording.new_session(ours).run()
        recording.recorder.finish()


# ACKs.


def offsets(teller: Teller) -> list[int]:
    return [offset for _, offset in teller.acks]


@pytest.mark.parametrize("ack", ["hidden", "received"])
async def test_a_heartbeat_comes_every_second_also_when_nothing_else_does(
    tmp_path: Path, mock_clock: MockClock, ack: Ack
) -> None:
    recording = Recording(tmp_path / "spool", ack)
    recording.recorder.follow(FIRST)
    teller = Teller(OLD, START, b"", RDB)
    with closing(recording.spool):
        async with recording.standing_link(teller):
            await teller.has_told_all.wait()
            for _ in range(20):
                count = len(teller.acks)
                mock_clock.jump(1)
                while len(teller.acks) == count:
                    await wait_all_tasks_blocked()
    assert 20 <= len(teller.acks) <= 21
    assert set(offsets(teller)) == {0 if ack == "hidden" else START}


@pytest.mark.parametrize("ack", ["hidden", "received"])
async def test_at_offset_0_there_are_heartbeats_too(
    tmp_path: Path, mock_clock: MockClock, ack: Ack
) -> None:
    recording = Recording(tmp_path / "spool", ack)
    teller = Teller(NEW, 0, b"", RDB, has_mark=True)
    with closing(recording.spool):
        async with recording.running(), recording.standing_link(teller):
            await teller.has_told_all.wait()
            count = len(teller.acks)
            for seconds in range(1, 15):
                mock_clock.jump(1)
                while len(teller.acks) < count + seconds:
                    await wait_all_tasks_blocked()
    assert set(offsets(teller)) == {0}


async def test_after_a_mark_the_first_acks_come_fast_until_the_stream_does(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    recording = Recording(tmp_path / "spool")
    teller = Teller(NEW, START, b"", RDB, has_mark=True)
    with closing(recording.spool):
        async with recording.running(), recording.standing_link(teller):
            await teller.has_told_all.wait()
            begun = trio.current_time()
            for _ in range(60):
                mock_clock.jump(0.1)
                await wait_all_tasks_blocked(0.001)
            times = [round(time - begun, 1) for time, _ in teller.acks]
    early = [time for time in times if time <= 2.0]
    late = [time for time in times if time > 2.0]
    assert len(early) >= 9
    assert 3 <= len(late) <= 5


async def test_nothing_is_acknowledged_while_its_snapshot_is_not_durable(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_commit, commit = threading.Event(), Commits.snapshot

    def slow_commit(commits: Commits, *args: Any) -> None:  # noqa: ANN401
        may_commit.wait()
        commit(commits, *args)

    monkeypatch.setattr(Commits, "snapshot", slow_commit)
    recording = Recording(tmp_path / "spool", "received")
    teller = Teller(NEW, START, STREAM, RDB, has_mark=True)
    with closing(recording.spool):
        async with recording.running(), recording.standing_link(teller):
            await teller.has_told_all.wait()
            for seconds in range(5):
                count = len(teller.acks)
                mock_clock.jump(1)
                while len(teller.acks) == count:
                    await wait_all_tasks_blocked()
                assert recording.recorder.durable == START, seconds
            assert set(offsets(teller)) == {0}
            may_commit.set()
            while offsets(teller)[-1] != teller.end:
                mock_clock.jump(0.1)
                await wait_all_tasks_blocked(0.001)


async def test_getack_is_answered_without_waiting_for_the_next_second(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    recording = Recording(tmp_path / "spool", "received")
    recording.recorder.follow(FIRST)
    teller = Teller(OLD, START, STREAM + command("REPLCONF", "GETACK", "*"), RDB)
    with closing(recording.spool):
        async with recording.running(), recording.standing_link(teller):
            await teller.has_told_all.wait()
            while not offsets(teller) or offsets(teller)[-1] < teller.end:
                await wait_all_tasks_blocked()
    assert mock_clock.current_time() == 0


class GatedStream(trio.abc.SendStream):
    """Lets through what is sent while its gate is open."""

    def __init__(self, stream: trio.abc.SendStream) -> None:
        self.gate = trio.Event()
        self.gate.set()
        self.is_waiting = False
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send when the gate is open."""
        self.is_waiting = not self.gate.is_set()
        await self.gate.wait()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for the gate."""
        await self.gate.wait()

    async def aclose(self) -> None:
        """Close the stream behind the gate."""
        await self._stream.aclose()


async def test_a_getack_that_comes_while_a_heartbeat_is_sent_is_answered_at_once(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    recording = Recording(tmp_path / "spool", "received")
    recording.recorder.follow(FIRST)
    ours, theirs = memory_stream_pair()
    gated = GatedStream(ours.send_stream)
    session = recording.new_session(trio.StapledStream(gated, ours.receive_stream))
    acks: list[bytes] = []
    with closing(recording.spool):
        async with recording.running(), trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await theirs.send_all(b"+OK\r\n" * 4 + b"+CONTINUE\r\n")
            await wait_all_tasks_blocked()
            gated.gate = trio.Event()
            mock_clock.jump(1)
            while not gated.is_waiting:
                await wait_all_tasks_blocked()
            due = recording.recorder.ack_due.next()
            await theirs.send_all(STREAM)
            await due.wait()
            gated.gate.set()
            while b"%d" % (START + len(STREAM)) not in b"".join(acks):
                acks.append(bytes(await theirs.receive_some()))
            nursery.cancel_scope.cancel()
    assert mock_clock.current_time() == 1


# What is in the repository.


def durables(teller: Teller) -> list[int | None]:
    return [durable for _, durable in teller.durables]


@asynccontextmanager
async def storing(recording: Recording) -> AsyncIterator[None]:
    """Write and upload what is received."""
    async with recording.running(), trio.open_nursery() as nursery:
        nursery.start_soon(recording.uploader.run)
        yield
        nursery.cancel_scope.cancel()


GETACK = command("REPLCONF", "GETACK", "*")


async def test_what_is_stored_is_acknowledged_at_every_heartbeat_and_nothing_before(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    recording = Recording(tmp_path / "spool", "stored", segment_size=MAX_FRAME)
    teller = Teller(NEW, START, command("SET", "key", "value"), RDB, has_mark=True)
    with closing(recording.spool):
        async with recording.running(), recording.standing_link(teller):
            await teller.has_told_all.wait()
            while recording.recorder.durable < teller.end:
                mock_clock.jump(0.1)
                await wait_all_tasks_blocked(0.001)
            for _ in range(5):
                count = len(teller.acks)
                mock_clock.jump(1)
                while len(teller.acks) == count:
                    await wait_all_tasks_blocked()
            # Synced as it is, nothing is uploaded yet.
            assert set(durables(teller)) == {0}
            await recording.uploader.upload_all()
            for _ in range(2):
                mock_clock.jump(1)
                await wait_all_tasks_blocked(0.001)
            # The snapshot is there, and the open segment is not.
            assert durables(teller)[-1] == START
    assert set(offsets(teller)) == {0}


async def test_getack_has_all_that_came_before_it_uploaded_and_acknowledged_at_once(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    recording = Recording(tmp_path / "spool", "stored", segment_size=MAX_FRAME)
    teller = Teller(NEW, START, STREAM + GETACK, RDB)
    with closing(recording.spool):
        async with storing(recording), recording.standing_link(teller):
            await teller.has_told_all.wait()
            while not durables(teller) or durables(teller)[-1] != teller.end:
                await wait_all_tasks_blocked(0.001)
    assert mock_clock.current_time() == 0
    assert set(offsets(teller)) == {0}


@pytest.mark.usefixtures("mock_clock")
async def test_all_who_ask_while_it_uploads_are_answered_by_one_upload_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_store, put, paths = threading.Event(), LocalStore.put, list[str]()

    def slow_put(store: LocalStore, path: str, source: Path | bytes) -> None:
        if path.endswith(".seg"):
            paths.append(path)
            may_store.wait()
        put(store, path, source)

    monkeypatch.setattr(LocalStore, "put", slow_put)
    recording = Recording(tmp_path / "spool", "stored", segment_size=MAX_FRAME)
    ours, theirs = memory_stream_pair()
    session = recording.new_session(ours)
    said = b""
    with closing(recording.spool):
        async with storing(recording), trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await theirs.send_all(
                b"+OK\r\n" * 4 + b"+FULLRESYNC %b 0\r\n" % NEW.encode()
            )
            await theirs.send_all(b"$%d\r\n%b" % (len(RDB), RDB))
            await theirs.send_all(GETACK)
            while not paths:
                await wait_all_tasks_blocked(0.001)
            for _ in range(10):
                await theirs.send_all(GETACK)
                await wait_all_tasks_blocked(0.001)
            may_store.set()
            while b"FACK\r\n$3\r\n407\r\n" not in said:
                said += bytes(await theirs.receive_some())
            nursery.cancel_scope.cancel()
    assert 11 * len(GETACK) == 407
    assert len(paths) == 2


@pytest.mark.usefixtures("short_frames")
async def test_acks_are_at_boundaries_and_of_what_is_durable(tmp_path: Path) -> None:
    boundaries, tracker = {0}, Tracker(START)
    for number in range(len(STREAM)):
        tracker.feed(STREAM[number : number + 1])
        boundaries.add(tracker.boundary)
    for cut in range(60, 60 + len(STREAM), 37):
        recording = Recording(tmp_path / str(cut), "received")
        recording.recorder.follow(FIRST)
        teller = Teller(OLD, START, STREAM, RDB)
        with closing(recording.spool):
            async with recording.running():
                await recording.link(teller, cut)
                await recording.recorder.settle()
                acknowledged = max(offsets(teller), default=0)
                assert acknowledged <= recording.recorder.durable
                await recording.link(teller)
        assert set(offsets(teller)) <= boundaries


# Waiting.


async def test_a_primary_that_is_silent_for_a_minute_is_given_up(
    recording: Recording, mock_clock: MockClock
) -> None:
    recording.recorder.follow(FIRST)
    teller = Teller(OLD, START, b"", RDB)
    with pytest.RaisesGroup(
        pytest.RaisesGroup(pytest.RaisesExc(LinkError, match="was silent for 60 s"))
    ):
        async with recording.standing_link(teller):
            await teller.has_told_all.wait()
            await wait_all_tasks_blocked()
            mock_clock.jump(59.9)
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(0.2)
            await trio.sleep_forever()
    assert mock_clock.current_time() == pytest.approx(60.1)


async def test_newlines_while_the_snapshot_is_made_keep_the_link(
    recording: Recording, mock_clock: MockClock
) -> None:
    ours, theirs = memory_stream_pair()
    async with recording.running(), trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.RaisesGroup(
                pytest.RaisesExc(LinkError, match="was silent for 60 s")
            ):
                await recording.new_session(ours).run()

        nursery.start_soon(run)
        await theirs.send_all(b"+OK\r\n" * 4)
        for line in (b"", b"+FULLRESYNC %s 5\r\n" % NEW.encode()):
            await theirs.send_all(line)
            for _ in range(10):
                mock_clock.jump(50)
                await theirs.send_all(b"\n")
                await wait_all_tasks_blocked(0.005)
        mock_clock.jump(61)
    assert recording.recorder.position is None


async def test_when_the_disk_is_far_behind_it_stops_reading_and_keeps_the_link(
    recording: Recording, mock_clock: MockClock
) -> None:
    # Nobody runs the recorder.
    recording.recorder.follow(FIRST)
    value = command("SET", "key", bytes(100_000))
    teller = Teller(OLD, START, value * 400, RDB)
    async with recording.standing_link(teller):
        await wait_all_tasks_blocked()
        for _ in range(20):
            count = len(teller.acks)
            mock_clock.jump(1)
            while len(teller.acks) == count:
                await wait_all_tasks_blocked()
    received = recording.recorder.received - START
    assert MOST_PENDING <= received < MOST_PENDING + 600_000


# When the disk fails.


@pytest.mark.slow
@pytest.mark.usefixtures("short_frames")
@pytest.mark.parametrize(
    ("error", "lasting"),
    [(errno.EIO, False), (errno.ENOSPC, True)],
    ids=["broken once", "full for a while"],
)
async def test_after_any_operation_that_fails_all_of_three_histories_is_recorded(
    disk: FaultyDisk, error: int, *, lasting: bool
) -> None:
    whole = Recording(disk.folder / "whole")
    disk.operations.clear()
    await record_three_histories(disk, whole)
    steps = len(disk.operations)
    assert steps > 100
    # What fails and goes on failing is met by the same operation again.
    for step in range(1, steps + 1, 3 if lasting else 1):
        recording = Recording(disk.folder / str(step))
        disk.fail(step, error, lasting=lasting)
        await record_three_histories(disk, recording)
        disk.heal()
        check_three_histories(recording.spool.folder)


THIRD = "c" * 40
TELLERS = (
    Teller(OLD, START, STREAM[:700], RDB),
    Teller(NEW, START, STREAM, RDB, older=(OLD, START + 700)),
    Teller(THIRD, 100, STREAM, RDB, has_mark=True),
)


async def record_three_histories(disk: FaultyDisk, recording: Recording) -> None:
    """Record a server, its successor, and another, as an agent does on a bad disk."""
    recorder, is_done = recording.recorder, False
    while not is_done:
        try:
            async with recording.running():
                replids = [teller.replid for teller in TELLERS]
                current = replids.index(recorder.replid) if recorder.replid else 0
                for teller in TELLERS[current:]:
                    while recorder.position != (teller.replid, teller.end):
                        error = await recording.link(teller)
                        if isinstance(error, OSError):
                            raise error
            is_done = True
        except* OSError:
            disk.heal()
            recorder.restart(recover(recording.spool))
    recording.spool.close()


def check_three_histories(folder: Path) -> None:
    with closing(Recording(folder).spool) as spool:
        # Nothing is left to recover.
        assert spool.segment is None
    queue = folder / "queue"
    start, data = stream_of(queue, OLD)
    fork, rest = stream_of(queue, NEW)
    assert (start, data + rest) == (START, STREAM)
    assert fork == start + len(data)
    assert START + 200 < fork <= START + 700
    assert stream_of(queue, THIRD) == (100, STREAM)
    first, successor, other = documents_of(queue, "histories/*.json")
    assert first["reason"] == "first"
    assert successor["reason"] == "failover"
    assert (successor["parent"], successor["parent_offset"]) == (OLD, fork)
    assert other["reason"] == "full-resync"
    [gap] = documents_of(queue, "gaps/*/*.json")
    assert (gap["replid"], gap["start_offset"]) == (NEW, START + len(STREAM))
    snapshots = [
        (manifest["replid"], manifest["offset"]) for manifest in snapshots_of(queue)
    ]
    assert set(snapshots) == {(OLD, START), (THIRD, 100)}
