"""The connection to the target: parcels go out, each as one transaction, in turn.

A parcel is sent as MULTI, its commands, the target's memory of how far this comes, and
EXEC. The EXEC is sent only when the one before is known to have gone well; most of the
rest is sent meanwhile, so that the server has something to read while the answer
travels and is looked at, and the last of it comes together with the EXEC. So
there is never more than one transaction of which it is not known whether it was carried
out, and none is carried out behind one that failed.
"""

from __future__ import annotations

from dataclasses import dataclass

import hiredis

from kvtape.errors import ServerError
from kvtape.replay.memory import DB, KEY
from kvtape.replay.sheet import Parcel
from kvtape.replication.resp import pack
from kvtape.replication.tracker import NO_DB
from kvtape.server.client import Client, ReplyError

_MULTI = pack("MULTI")
_EXEC = pack("EXEC")

# How much of a parcel is held back until the answer to the one before is known.
_HELD = 64 * 1024

# What a server answers for its own state, whatever the command: nothing goes on then.
_STATES = {
    "OOM": "it is out of memory: raise its maxmemory",
    "READONLY": "it has become a read-only replica",
    "MISCONF": "it refuses writes because it cannot save",
    "LOADING": "it is loading",
    "MASTERDOWN": "it is a replica whose primary is gone",
    "NOREPLICAS": "it lacks the replicas that min-replicas-to-write asks for",
    "CLUSTERDOWN": "it is a cluster node, and its cluster is down",
    "MOVED": "it is a cluster node",
    "CROSSSLOT": "it is a cluster node",
    "NOAUTH": "it asks for a password",
    "BUSY": "it runs a script that does not end",
}

# The states that pass by themselves.
_PASSING = {"LOADING", "MASTERDOWN", "NOREPLICAS", "BUSY", "MISCONF"}


class TargetError(ServerError):
    """The target cannot be replayed into, or not now: is_passing says that it may."""

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that a command, by its number in its sheet, was answered with."""

    number: int
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a parcel: whether it was carried out, and what failed of it."""

    was_done: bool
    failures: tuple[Failure, ...] = ()


class Line:
    """One connection. prepare() a parcel, commit() it, and ask for the answer()."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._db = NO_DB
        self._known_db = DB
        self._held = b""
        self._prepared: tuple[Parcel, int, int] | None = None
        self._committed: tuple[Parcel, int, int] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a parcel was committed of which the answer was not asked for."""
        return self._committed is not None

    async def must_have(self, db: int) -> None:
        """Raise ServerError unless the target has a database; nothing may wait.

        What follows a SELECT that fails would be carried out in another database.
        """
        if db <= self._known_db:
            return
        try:
            await self._client.call("SELECT", db)
        except ReplyError:
            raise TargetError(
                f"the target has no database {db}, which the stream writes to: set "
                "databases there and restart it, or say --map-db or --db"
            ) from None
        self._db, self._known_db = db, db

    def has(self, db: int) -> bool:
        """Whether the target is known to have a database."""
        return db <= self._known_db

    async def prepare(self, parcel: Parcel, memory: bytes) -> None:
        """Send a parcel, but for the word that has it carried out."""
        head, tail = [], []
        if parcel.has_swap:
            # Or the memory would be swapped into another database, and stay there.
            head += self._select(DB)
            head.append(pack("DEL", KEY))
        if parcel.begin_db != NO_DB:
            head += self._select(parcel.begin_db)
        if parcel.end_db != NO_DB:
            self._db = parcel.end_db
        tail += self._select(DB)
        tail.append(pack("SET", KEY, memory))
        self._prepared = (parcel, len(head), len(tail))
        data = b"".join([_MULTI, *head, parcel.data, *tail])
        self._held = data[max(0, len(data) - _HELD) :]
        if len(data) > _HELD:
            await self._client.send_packed(memoryview(data)[:-_HELD])

    def _select(self, db: int) -> list[bytes]:
        if self._db == db:
            return []
        self._db = db
        return [pack("SELECT", db)]

    async def commit(self) -> None:
        """Have the parcel that was prepared carried out."""
        self._committed, self._prepared = self._prepared, None
        await self._client.send_packed(self._held + _EXEC)

    async def discard(self) -> None:
        """Take back the parcel that was prepared."""
        if self._prepared is None:
            return
        await self._client.send_packed(self._held + pack("DISCARD"))
        parcel, head, tail = self._prepared
        await self._client.replies(head + len(parcel.numbers) + tail + 2)
        # Nothing of it was carried out, and so no SELECT.
        self._prepared, self._db = None, NO_DB

    async def answer(self) -> Answer:
        """Return what became of the parcel that was committed.

        ServerError if the server is gone, or takes nothing.
        """
        assert self._committed is not None
        parcel, head, tail = self._committed
        owed = head + len(parcel.numbers) + tail
        *queued, result = await self._client.replies(owed + 2)
        self._committed = None
        if isinstance(result, list):
            return Answer(True, _failures(parcel, head, result))
        self._db = NO_DB
        failures = _failures(parcel, head, queued[1:])
        _must_take(result)
        if not failures:
            raise TargetError(f"the target refused a transaction: {result}")
        return Answer(False, failures)


def _failures(parcel: Parcel, head: int, replies: list[object]) -> tuple[Failure, ...]:
    """Return what went wrong by the replies to a parcel's commands."""
    if hiredis.ReplyError not in set(map(type, replies)):
        return ()
    found = []
    last = head + len(parcel.numbers)
    for at, reply in enumerate(replies):
        if isinstance(reply, hiredis.ReplyError):
            _must_take(reply)
            if not head <= at < last:
                raise TargetError(
                    f"the target does not let kvtape remember how far it is: {reply}"
                )
            found.append(Failure(parcel.numbers[at - head], str(reply)))
    return tuple(found)


def _must_take(reply: object) -> None:
    """Raise TargetError if a reply says that the target takes nothing at all."""
    kind = str(reply).partition(" ")[0]
    if isinstance(reply, hiredis.ReplyError) and kind in _STATES:
        raise TargetError(
            f"the target takes nothing more: {_STATES[kind]} ({reply})",
            is_passing=kind in _PASSING,
        )
