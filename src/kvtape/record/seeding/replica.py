"""Taking a snapshot from a replica, for a stream that its primary sends.

The replica is asked for the RDB file alone (REPLCONF rdb-only 1): it forks, sends the
file, hangs up, and never counts us as one of its own. Its replication ID and offsets
are its primary's, so the file fits into the primary's stream at the offset that it
announces.

Whatever is wrong with the replica is a JoinError or LinkError: it may be better soon.
That it is the primary itself is not: to ask it would be the fork that is to be spared.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import trio

from kvtape.errors import ProtocolError, UsageError
from kvtape.record.seeding.join import (
    Delivery,
    JoinError,
    Wanted,
    present,
    require_info,
)
from kvtape.record.spooling.position import Position
from kvtape.replication.replica import (
    NEED_DATA,
    Event,
    FullResync,
    LinkError,
    Replica,
    SnapshotData,
    SnapshotEnd,
)
from kvtape.server.client import Stream, connect, open_client
from kvtape.server.info import ServerInfo, ask
from kvtape.server.url import ServerUrl
from kvtape.tape.documents import Server

_log = logging.getLogger(__name__)

_RECEIVE = 512 * 1024

# As on a link: a replica sends newlines while it makes the RDB file.
_SILENCE = 60.0


class ReplicaOrigin:
    """Snapshots of a replica, as many as are needed."""

    costs_a_fork = True
    is_for_the_start = False

    def __init__(self, url: ServerUrl) -> None:
        self.name = url.address
        self._url = url

    def start(self, info: ServerInfo, address: str, now: int) -> Position:
        """Return where to join the primary's stream: now, before the snapshot is made.

        By the time a large snapshot is here, the primary's backlog has moved on.
        """
        return present(info, address, now)

    @asynccontextmanager
    async def open(self, wanted: Wanted) -> AsyncIterator[Delivery]:
        """Have a snapshot made, once the replica is fit for it."""
        url = self._url
        async with open_client(url) as client:
            info = await ask(client)
        self._require_fit(info, wanted)
        memory = info.data_memory
        if shortage := await trio.to_thread.run_sync(wanted.room.shortage, memory):
            raise JoinError(shortage.sentence)
        async with await connect(url) as stream:
            replica = Replica.for_snapshot(url.username, url.password)
            transfer = _Transfer(stream, replica, url.address)
            announced = await transfer.announced()
            _warn_of_another_release(info.server, wanted.server)
            # The run is of who is recorded, and this is not it.
            server = msgspec.structs.replace(info.server, run_id=None)
            yield Delivery(announced, server, transfer.next)

    def _require_fit(self, info: ServerInfo, wanted: Wanted) -> None:
        address = self.name
        require_info(info, address)
        run_id = wanted.server.run_id
        if run_id is not None and info.server.run_id == run_id:
            raise UsageError(
                f"{address} is the recorded server itself, which would have to fork "
                "for the snapshot: name one of its replicas by --snapshot-from"
            )
        if info.fields.get("master_link_status", "up") != "up":
            raise JoinError(f"{address} has lost its own primary")
        replid, offset = info.fields["master_replid"], info.number("master_repl_offset")
        if replid != wanted.replid:
            raise JoinError(
                f"{address} replicates {replid}, and {wanted.replid} is recorded: it "
                "is no replica of the recorded server, or not yet in sync with it"
            )
        if offset is None or offset < wanted.offset:
            behind = wanted.offset - (offset or 0)
            raise JoinError(
                f"{address} is {behind} bytes behind where the stream was joined, at "
                f"{wanted.offset}"
            )


def _warn_of_another_release(replica: Server, primary: Server) -> None:
    """Say where a restore will need another server than the recorded one."""
    theirs, ours = _release(replica), _release(primary)
    if theirs is not None and ours is not None and theirs != ours:
        _log.warning(
            "the snapshot is written by %s, and the recorded server is %s: what is "
            "restored from it needs %s or newer",
            theirs,
            ours,
            theirs,
        )


def _release(server: Server) -> str | None:
    # RDB files are the same within a release.
    if server.family is None or server.version is None:
        return None
    return f"{server.family.capitalize()} {'.'.join(server.version.split('.')[:2])}"


@dataclass(frozen=True, slots=True)
class _Transfer:
    """The link that the snapshot comes over."""

    stream: Stream
    replica: Replica
    address: str

    async def announced(self) -> FullResync:
        """Return what the replica announces, when it does."""
        event = await self._event()
        if not isinstance(event, FullResync):
            raise ProtocolError(f"{self.address} announced no snapshot")
        return event

    async def next(self) -> bytes:
        """Return the next piece of the RDB file; nothing when it was whole."""
        while True:
            match await self._event():
                case SnapshotData(data):
                    return data
                case SnapshotEnd():
                    return b""
                case _:
                    pass

    async def _event(self) -> Event:
        while (event := self.replica.next_event()) is NEED_DATA:
            data = await self._receive()
            if not data:
                raise self.replica.receive_end()
            self.replica.receive_data(data)
        return event

    async def _receive(self) -> bytes:
        try:
            with trio.fail_after(_SILENCE):
                await self.stream.send_all(self.replica.data_to_send())
                return bytes(await self.stream.receive_some(_RECEIVE))
        except trio.BrokenResourceError as error:
            reason = error.__cause__ or error
            raise LinkError(f"the link to {self.address} broke: {reason}") from error
        except trio.TooSlowError:
            raise LinkError(f"{self.address} was silent for {_SILENCE:.0f} s") from None
