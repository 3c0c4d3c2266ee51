"""The connection to the target: transactions go out, and answers come in, in turn.

A parcel is sent as MULTI, its commands, the target's memory of how far this comes, and
EXEC. Many are on their way at once, or a target far away, or a busy reader here, would
have the server wait. But none must be carried out behind one that was not, as where the
server refused to take a command of it. So before each that follows one whose answer is
not known stands a guard: the memory is watched (WATCH), and a script touches it unless
it is what the transaction before wrote; then the server does not carry out this one
either, nor any behind it, and they can be sent again.

The script touches it by an expiry, which it takes away at once: no limit of memory
forbids that. A server may have no scripts, or a user may not be allowed any: then one
transaction goes out at a time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import hiredis

from kvtape.errors import ServerError
from kvtape.replay.memory import DB, KEY
from kvtape.replay.sheet import Parcel
from kvtape.replication.resp import pack
from kvtape.replication.tracker import NO_DB
from kvtape.server.client import Client, ReplyError

_log = logging.getLogger(__name__)

_MULTI = pack("MULTI")
_EXEC = pack("EXEC")
_WATCH = pack("WATCH", KEY)
_SELECT_MEMORY = pack("SELECT", DB)

# In the year 2286.
_FAR = 10**13 - 1

_GUARD = (
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then "
    f"redis.call('PEXPIREAT', KEYS[1], {_FAR}) redis.call('PERSIST', KEYS[1]) end"
)

# Of the replies to a guard.
_GUARDS = 2

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


@dataclass(frozen=True, slots=True)
class _Owed:
    """Which replies a transaction owes: to its guard, and before and after its own."""

    parcel: Parcel
    guard: int
    head: int
    tail: int

    @property
    def count(self) -> int:
        """How many replies there are in all, with those to MULTI and EXEC."""
        own = self.head + len(self.parcel.numbers) + self.tail
        return self.guard + 1 + own + 1


class Line:
    """One connection. send() transactions, and ask for the answer() to each, in turn.

    Between transactions the database of the memory is selected.
    """

    def __init__(self, client: Client, *, is_guarded: bool) -> None:
        self.is_guarded = is_guarded
        self._client = client
        self._known_db = DB
        self._memory = b""
        self._owed: deque[_Owed] = deque()

    @property
    def waiting(self) -> int:
        """How many transactions were sent whose answer was not asked for."""
        return len(self._owed)

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
        await self._client.call("SELECT", DB)
        self._known_db = db

    def has(self, db: int) -> bool:
        """Whether the target is known to have a database."""
        return db <= self._known_db

    async def send(self, transactions: Sequence[tuple[Parcel, bytes]]) -> None:
        """Send parcels, each with the memory that is written with it.

        Without guards it must be one, and none may wait.
        """
        pieces: list[bytes] = []
        for parcel, memory in transactions:
            if self._owed:
                pieces += (_WATCH, pack("EVAL", _GUARD, 1, KEY, self._memory))
            guard = _GUARDS if self._owed else 0
            head, tail = _around(parcel, memory)
            pieces += (_MULTI, *head, parcel.data, *tail, _EXEC)
            self._owed.append(_Owed(parcel, guard, len(head), len(tail)))
            self._memory = memory
        await self._client.send_packed(b"".join(pieces))

    async def answer(self) -> Answer:
        """Return what became of the parcel that was sent first of those that wait.

        ServerError if the server is gone, or takes nothing.
        """
        owed = self._owed.popleft()
        replies = await self._client.replies(owed.count)
        result = replies.pop()
        if isinstance(result, list):
            return Answer(True, _failures(owed.parcel, owed.head, result))
        own = replies[owed.guard + 1 :]
        guard_failures = [r for r in replies[: owed.guard] if _is_error(r)]
        failures = _failures(owed.parcel, owed.head, own)
        for reply in (result, *guard_failures):
            _must_take(reply)
        if guard_failures:
            raise TargetError(
                f"the target does not let kvtape guard a transaction: "
                f"{guard_failures[0]}"
            )
        if result is None:
            raise TargetError(
                "another client changed what the target remembers of this replay "
                f"(the key {KEY.decode()})"
            )
        if not failures:
            raise TargetError(f"the target refused a transaction: {result}")
        return Answer(False, failures)

    async def drop(self) -> None:
        """Take the answers to all that wait, none of which was carried out.

        They were sent behind one that was not; TargetError if the guard did not hold.
        """
        while self._owed:
            owed = self._owed.popleft()
            *_, result = await self._client.replies(owed.count)
            if isinstance(result, list):
                raise TargetError(
                    "the target carried out a transaction behind one that it refused, "
                    "as its memory of this replay was taken away meanwhile: replay anew"
                )


async def open_line(client: Client) -> Line:
    """Return the line over a connection, guarded if the target allows it.

    TargetError if it allows no transactions.
    """
    try:
        await client.call("MULTI")
        await client.call("EXEC")
    except ReplyError as error:
        raise TargetError(
            f"{error}; a replay sends transactions: allow +multi and +exec to the user"
        ) from None
    try:
        await client.call("WATCH", KEY)
        # It finds another memory than this and does what a guard does then, to know
        # that it may.
        await client.call("EVAL", _GUARD, 1, KEY, b"")
        await client.call("UNWATCH")
    except ReplyError as error:
        _log.info("one transaction at a time, which is slower: %s", error)
        return Line(client, is_guarded=False)
    return Line(client, is_guarded=True)


def _around(parcel: Parcel, memory: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return what stands before and behind a parcel within its transaction."""
    head, tail = [], []
    if parcel.has_swap:
        # Or the memory would be swapped into another database, and stay there.
        head.append(pack("DEL", KEY))
    if parcel.begin_db not in (NO_DB, DB):
        head.append(pack("SELECT", parcel.begin_db))
    if parcel.end_db not in (NO_DB, DB):
        tail.append(_SELECT_MEMORY)
    tail.append(pack("SET", KEY, memory))
    return head, tail


def _is_error(reply: object) -> bool:
    return isinstance(reply, hiredis.ReplyError)


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
