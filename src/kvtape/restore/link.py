"""Restoring over a replication link: posing as the primary.

Any server that is told REPLICAOF us receives the snapshot and the stream by its own
replication code, and stays at the chosen offset. Keys whose time has passed are kept
while it does, as on any replica, so that what the stream does to them is what it did.

If neither the snapshot nor the stream is changed on the way, the target ends under the
recorded replication ID and offset: real replicas of the recorded server can follow it
from there. Otherwise it is given a new ID, since its data or its bytes are others than
those recorded, and an offset such that it still ends at the chosen one; only where the
stream grew by more than the offset that it began at does it end a little higher.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import trio

from kvtape.errors import ProtocolError, ServerError, cause_of
from kvtape.replication.primary import Ack, Primary, Psync
from kvtape.replication.replica import NEED_DATA
from kvtape.restore.job import Job
from kvtape.server.info import ServerInfo
from kvtape.signal import Signal
from kvtape.storage.reader import read_stream
from kvtape.tape.translate import Tally

_log = logging.getLogger(__name__)

_RECEIVE = 64 * 1024

# How many pieces are read ahead of the socket.
_READ_AHEAD = 4

# A replica gives its primary up after repl-timeout (60 s by default) of silence. A
# newline keeps the link up and, unlike a PING, leaves the offset where it is.
_KEEP_ALIVE = 5.0


@dataclass(frozen=True, slots=True)
class Tape:
    """What is served: a verified job and what its translation came to.

    A target begins at the offset start, and ends at end.
    """

    job: Job
    tally: Tally
    replid: str
    start: int

    @property
    def end(self) -> int:
        """The offset that a target ends at."""
        return self.start + self.tally.bytes_out


def tape_of(job: Job, tally: Tally) -> Tape:
    """Return what to serve for a job that was surveyed."""
    if tally.is_verbatim:
        return Tape(job, tally, job.plan.replid, job.plan.snapshot.name.offset)
    return Tape(
        job, tally, secrets.token_hex(20), max(0, job.plan.offset - tally.bytes_out)
    )


@dataclass(slots=True, eq=False)
class Target:
    """One server that takes the tape; one that comes again is another.

    acked is the offset that it said it has, before what it told of itself when it came.
    """

    host: str
    listening_port: int | None = None
    version: str | None = None
    before: ServerInfo | None = None
    acked: int = -1
    is_complete: bool = False


# Looks at a target before it is answered; returns why it must not be.
Vet = Callable[[Target], Awaitable[ServerError | None]]


class Server:
    """Serves one tape to whoever asks and passes vet.

    targets are those that take it now, changed fires when one of them comes further,
    and error is why the last one failed or was refused.
    """

    def __init__(self, tape: Tape, vet: Vet) -> None:
        self.tape = tape
        self.targets: list[Target] = []
        self.changed = Signal()
        self.error: ServerError | None = None
        self.attempts = 0  # how often the tape was begun
        self._vet = vet

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Serve for ever."""
        await trio.serve_listeners(self._serve_one, listeners)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        try:
            target = Target(stream.socket.getpeername()[0])
        except OSError:
            return  # it is gone already
        try:
            await self._answer(stream, target)
        except (ServerError, ExceptionGroup, trio.BrokenResourceError) as error:
            cause = cause_of(error)
            if isinstance(cause, ServerError):
                self._fail(target, cause)
            elif not isinstance(cause, trio.BrokenResourceError):
                raise
        finally:
            if target in self.targets:
                self.targets.remove(target)
            self.changed.fire()

    def _fail(self, target: Target, error: ServerError) -> None:
        # A refused target tries again every second; once is enough to be told.
        if str(error) != str(self.error):
            _log.warning("%s: %s", target.host, error)
        # Anybody may connect; who speaks like no replica is not the one waited for.
        if target.listening_port is not None or not isinstance(error, ProtocolError):
            self.error = error

    async def _answer(self, stream: trio.SocketStream, target: Target) -> None:
        """Answer a target until it hangs up."""
        primary = Primary()
        async with trio.open_nursery() as nursery:
            while data := bytes(await stream.receive_some(_RECEIVE)):
                primary.receive_data(data)
                while (event := primary.next_event()) is not NEED_DATA:
                    target.listening_port = primary.listening_port
                    target.version = primary.version
                    match event:
                        case Psync() if target not in self.targets:
                            await self._begin(stream, primary, target, nursery)
                        case Psync():
                            raise ServerError("the target asked for PSYNC twice")
                        case Ack(offset):
                            target.acked = offset
                            target.is_complete = offset >= self.tape.end
                            self.changed.fire()
                if answer := primary.data_to_send():
                    await stream.send_all(answer)
            nursery.cancel_scope.cancel()

    async def _begin(
        self,
        stream: trio.SocketStream,
        primary: Primary,
        target: Target,
        nursery: trio.Nursery,
    ) -> None:
        error = await self._vet(target)
        if error is not None:
            primary.refuse(f"ERR {error}")
            await stream.send_all(primary.data_to_send())
            raise error
        self.attempts += 1
        self.targets.append(target)
        self.changed.fire()
        length = self.tape.tally.snapshot_bytes
        primary.full_resync(self.tape.replid, self.tape.start, length=length)
        await stream.send_all(primary.data_to_send())
        nursery.start_soon(self._play, stream)

    async def _play(self, stream: trio.SocketStream) -> None:
        """Send the snapshot and the stream, then keep the link up."""
        job, tally = self.tape.job, self.tape.tally
        length = tally.snapshot_bytes + tally.bytes_out
        advance = job.watch.stage("serving", length)
        send, receive = trio.open_memory_channel[bytes](_READ_AHEAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, _pieces(job), send)
            async for piece in receive:
                await stream.send_all(piece)
                advance(len(piece))
        while True:
            await trio.sleep(_KEEP_ALIVE)
            await stream.send_all(b"\n")


async def _read(pieces: Iterator[bytes], send: trio.MemorySendChannel[bytes]) -> None:
    async with send:
        while (piece := await trio.to_thread.run_sync(next, pieces, None)) is not None:
            await send.send(piece)


def _pieces(job: Job) -> Iterator[bytes]:
    yield from filter(None, job.snapshot())
    translator = job.translator("link")
    for piece in read_stream(job.folder, job.plan.slices):
        if data := translator.translate(piece):
            yield data


async def listen(host: str | None, port: int) -> list[trio.SocketListener]:
    """Listen for targets; None is every address, port 0 any free one."""
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServerError(f"cannot listen on port {port}: {reason}") from error
