"""Where a primary's stream can be joined without a snapshot of its own: INFO decides.

PSYNC has no "partial or nothing": what it cannot continue it answers with a full
resync, which forks. So everything is decided by INFO before PSYNC is sent. INFO is
answered between commands, so the offset it shows is a boundary.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kvtape.errors import ServerError
from kvtape.record.spooling.position import Position
from kvtape.record.spooling.room import Room
from kvtape.replication.replica import FullResync
from kvtape.replication.tracker import NO_DB
from kvtape.server.info import ServerInfo
from kvtape.tape.documents import Server


class JoinError(ServerError):
    """The stream cannot be joined, or no snapshot be had that leads up to it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The snapshot that is wanted: of replid, at offset or later.

    server is the recorded one, which must not take it, and room where it must fit.
    """

    replid: str
    offset: int
    server: Server
    room: Room


@dataclass(frozen=True, slots=True)
class Delivery:
    """A snapshot on its way: what it is, and who made it.

    next returns a piece of the RDB file after the other, and then nothing. time (ms) is
    when its state was, if it tells.
    """

    announced: FullResync
    server: Server
    next: Callable[[], Awaitable[bytes]]
    time: int | None = None


def require_info(info: ServerInfo, address: str) -> None:
    """Raise JoinError for a server that does not say where it stands."""
    if "master_replid" not in info.fields:
        raise JoinError(
            f"{address} does not answer INFO, without which its stream cannot be "
            "joined: allow it by ACL SETUSER <user> +info"
        )


def present(info: ServerInfo, address: str, now: int) -> Position:
    """Return where the primary's stream stands at this moment.

    Which database is selected there is known when the stream says SELECT.
    """
    replid, offset = info.fields["master_replid"], info.number("master_repl_offset")
    if offset is None:
        raise JoinError(f"{address} does not tell its offset (INFO replication)")
    require_reach(info, replid, offset, address)
    return Position(replid, offset, offset, NO_DB, now)


def require_reach(info: ServerInfo, replid: str, offset: int, address: str) -> None:
    """Raise JoinError unless PSYNC from offset would be a partial resync."""
    if info.can_continue(replid, offset):
        return
    first = info.number("repl_backlog_first_byte_offset")
    length = info.number("repl_backlog_histlen")
    if info.fields.get("repl_backlog_active") != "1" or first is None or length is None:
        raise JoinError(
            f"{address} has no backlog: it never had a replica, or its last one has "
            "been gone for longer than repl-backlog-ttl; attach a replica to it, or "
            "let it make the snapshot itself (without --snapshot-from and "
            "--snapshot-file)"
        )
    start, end = first - 1, first - 1 + length
    if not _knows(info, replid, offset):
        raise JoinError(
            f"{address} does not know {replid}:{offset}, where the snapshot was taken: "
            f"it is at {info.fields['master_replid']}:{end}; take the snapshot from it "
            "or from one of its replicas"
        )
    if offset > end:
        raise JoinError(
            f"the snapshot is at offset {offset}, {offset - end} bytes beyond what "
            f"{address} has written (its backlog goes from {start} to {end}): is it of "
            "this server?"
        )
    raise JoinError(
        f"the backlog of {address} goes from offset {start} to {end}, and the snapshot "
        f"needs the stream from {offset} on: {start - offset} bytes are missing; take "
        f"a newer snapshot, and set repl-backlog-size to more than {end - offset} "
        f"(CONFIG SET repl-backlog-size {2 * (end - offset)}) before that"
    )


def _knows(info: ServerInfo, replid: str, offset: int) -> bool:
    if info.fields["master_replid"] == replid:
        return True
    second = info.number("second_repl_offset")
    is_second = info.fields.get("master_replid2") == replid and second is not None
    return is_second and offset + 1 <= (second or 0)
