"""The connection to the target: transactions go out, and answers come in, in turn.

A parcel is sent as MULTI, its commands, the target's memory of how far this comes, and
EXEC. Many are on their way at once, or a target far away, or a busy reader here, would
have the server wait. But none must be carried out behind one that was not, as where the
server refused to take a command of it. So before each that follows one whose answer is
not known stands a guard: the memory is watched (WATCH), and a script touches it unless
it is what the transaction before wrote; then the server does not carry out this one
either, nor any behind it, and they can be sent again. The script touches it by an
expiry, which it takes away at once: no limit of memory forbids that.

Short commands take a server a tenth longer in a transaction than by themselves, most of
it to say of each that it is queued. So where the server allows that, a transaction with
a guard is quiet: CLIENT REPLY OFF stands before MULTI, and CLIENT REPLY ON both behind
it and behind EXEC, each with a PING. If it is carried out, both are, and the answers to
its commands stand in between, in no array; else only the second is. Valkey from 9.0 on
allows no CLIENT REPLY in a transaction, just since the array is missing.

Why a transaction with a guard was not carried out is not asked: it is sent again alone,
without one. A server may have no scripts, or a user may not be allowed any: then each
is sent alone.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NoReturn

import hiredis
import trio

from kvtape.errors import ServerError
from kvtape.replay.memory import DB, KEY
from kvtape.replay.refusal import StateError, TargetError, must_take
from kvtape.replay.sheet import Parcel
from kvtape.replication.resp import pack
from kvtape.replication.tracker import NO_DB
from kvtape.server.client import REPLY_TIMEOUT, Client, ReplyError

_log = logging.getLogger(__name__)

_MULTI = pack("MULTI")
_EXEC = pack("EXEC")
_WATCH = pack("WATCH", KEY)
_SELECT_MEMORY = pack("SELECT", DB)
_QUIET = pack("CLIENT", "REPLY", "OFF")
_LOUD = pack("CLIENT", "REPLY", "ON")

# In the year 2286.
_FAR = 10**13 - 1

_GUARD = (
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then "
    f"redis.call('PEXPIREAT', KEYS[1], {_FAR}) redis.call('PERSIST', KEYS[1]) end"
)

# What is answered to WATCH and to the guard.
_GUARDED: list[object] = [b"OK", None]

# What a PING says, before the mark of a transaction.
_DONE = b"kvtape: done "
_OVER = b"kvtape: over "
_IS_DONE = re.compile(re.escape(_DONE) + rb"(\d+)")

# For so long (s) a server may be silent until it is asked whether it is there.
_ASK_AGAIN = 0.5


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that a command, by its number in its parcel, was answered with."""

    number: int
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a parcel: whether it was carried out, and what failed of it."""

    was_done: bool
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class _Owed:
    """A transaction whose answer is owed.

    head and tail are how many commands stand before and after those of its parcel. The
    mark is of one with a guard.
    """

    parcel: Parcel
    memory: bytes
    head: int
    tail: int
    mark: int | None

    @property
    def count(self) -> int:
        """How many replies the commands within it owe."""
        return self.head + self.parcel.count + self.tail


class Line:
    """One connection. send() transactions, and ask for the answer() to each, in turn.

    Between transactions the database of the memory is selected.
    """

    def __init__(self, client: Client, *, is_guarded: bool, is_quiet: bool) -> None:
        self.is_guarded = is_guarded
        self._is_quiet = is_quiet
        self._client = client
        self._known_db = DB
        # What the last that was sent writes, and the last of which it is known wrote.
        self._memory = b""
        self._written: bytes | None = None
        self._marks = count()
        self._owed: deque[_Owed] = deque()
        # Replies that came while it was waited for another.
        self._heard: list[object] = []

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
            mark = next(self._marks) if self._owed else None
            head, tail = _around(parcel, memory)
            own = (*head, parcel.data, *tail)
            if mark is None:
                pieces += (_MULTI, *own, _EXEC)
            else:
                pieces += (_WATCH, pack("EVAL", _GUARD, 1, KEY, self._memory))
                pieces += self._marked(mark, own)
            self._owed.append(_Owed(parcel, memory, len(head), len(tail), mark))
            self._memory = memory
        await self._client.send_packed(b"".join(pieces))

    def _marked(self, mark: int, own: Sequence[bytes]) -> list[bytes]:
        done, over = pack("PING", _done(mark)), pack("PING", _over(mark))
        if self._is_quiet:
            return [_QUIET, _MULTI, _LOUD, done, *own, _EXEC, _LOUD, over]
        return [_MULTI, done, *own, _EXEC]

    async def answer(self) -> Answer:
        """Return what became of the parcel that was sent first of those that wait.

        If it was not carried out, drop() what was sent behind it. Only of one that
        nothing was sent with the failures tell why. ServerError if the server is gone,
        or takes nothing.
        """
        owed = self._owed.popleft()
        if owed.mark is None:
            answer = await self._answer_alone(owed)
        else:
            answer = await self._answer_guarded(owed, owed.mark)
        if answer.was_done:
            self._written = owed.memory
        return answer

    async def _answer_alone(self, owed: _Owed) -> Answer:
        _, *queued, result = await self._client.replies(1 + owed.count + 1)
        if isinstance(result, list):
            return Answer(True, _failures(owed, result))
        if self._owed:
            # What was sent behind it is dropped first, whatever it was that refused it.
            return Answer(False)
        failures = _failures(owed, queued)
        must_take(result)
        if not failures:
            raise TargetError(f"the target refused a transaction: {result}")
        return Answer(False, failures)

    async def _answer_guarded(self, owed: _Owed, mark: int) -> Answer:
        answer = self._answer_quiet if self._is_quiet else self._answer_queued
        replies = await answer(owed, mark)
        if replies is None:
            return Answer(False)
        return Answer(True, _failures(owed, replies))

    async def _answer_queued(self, owed: _Owed, mark: int) -> list[object] | None:
        """Return the replies to the commands of a transaction that was carried out."""
        replies = await self._client.replies(len(_GUARDED) + 1 + 1 + owed.count + 1)
        result = replies[-1]
        if replies[: len(_GUARDED)] != _GUARDED:
            await self._end_out_of_turn(mark, replies)
        return result[1:] if isinstance(result, list) else None

    async def _answer_quiet(self, owed: _Owed, mark: int) -> list[object] | None:
        """Return the same of a quiet one, or None if it was not carried out."""
        done, over = [b"OK", _done(mark)], [b"OK", _over(mark)]
        opening = await self._hear(len(_GUARDED) + len(over))
        if opening == _GUARDED + over:
            return None
        if opening != _GUARDED + done:
            await self._end_out_of_turn(mark, opening)
        own = await self._hear(owed.count + len(over))
        if own[owed.count :] != over:
            await self._end_out_of_turn(mark, opening + own)
        return own[: owed.count]

    async def _hear(self, count: int) -> list[object]:
        """Return so many replies, or fewer if the server has no more to say.

        One that was told to be quiet, and then refused to be told anything, as it was
        busy, says nothing until it is asked again.
        """
        replies, self._heard = self._heard[:count], self._heard[count:]
        # Most have come with others, and a scope takes longer than they do.
        if not self._client.add_received(replies, count):
            with trio.move_on_after(_ASK_AGAIN):
                await self._client.add_replies(replies, count)
        if len(replies) < count:
            replies += await self._rest()
            self._heard = replies[count:]
        return replies[:count]

    async def _end_out_of_turn(self, mark: int, replies: list[object]) -> NoReturn:
        """Raise TargetError for replies that are none to a transaction with a guard.

        So answers a server that refuses all it is told for a while, guards among it.
        """
        marks = [mark, *self._waiting_marks()]
        replies = [*replies, *self._heard, *await self._rest()]
        done = _marks_done(replies)
        if marks[: len(done)] != done:
            await self._forget()
        errors = list(filter(_is_error, replies))
        for error in errors:
            must_take(error)
        if errors:
            raise TargetError(
                f"the target does not let kvtape guard a transaction: {errors[0]}"
            )
        raise StateError(
            "the target did not take what it was sent, as where a script or a function "
            "keeps it busy",
            is_passing=True,
        )

    def _waiting_marks(self) -> list[int]:
        return [owed.mark for owed in self._owed if owed.mark is not None]

    async def drop(self) -> None:
        """Take the answers to all that wait, none of which was carried out.

        They were sent behind one that was not. TargetError if the guard did not hold,
        or if it was another client that had the server not carry it out.
        """
        replies = [*self._heard, *await self._rest()]
        self._owed.clear()
        self._heard = []
        if _marks_done(replies):
            await self._forget()
        remembered = await self._client.call("GET", KEY)
        if self._written not in (None, remembered):
            raise TargetError(
                "another client changed what the target remembers of this replay "
                f"(the key {KEY.decode()})"
            )

    async def _rest(self) -> list[object]:
        """Return all that the server still has to say of what it was sent.

        ServerError if it refuses to be asked, or is silent, for too long.
        """
        replies: list[object] = []
        asked: list[bytes] = []
        until = trio.current_time() + REPLY_TIMEOUT
        while trio.current_time() < until:
            asked.append(_over(next(self._marks)))
            await self._client.send_packed(_LOUD + pack("PING", asked[-1]))
            with trio.move_on_after(_ASK_AGAIN):
                while asked[-1] not in replies:
                    await self._client.add_replies(replies, len(replies) + 1)
            if asked[-1] in replies:
                answered = [reply in asked for reply in replies]
                return replies[: answered.index(True) - 1]
        for reply in replies:
            must_take(reply)
        raise ServerError(
            f"{self._client.url.address} did not answer PING for {REPLY_TIMEOUT:.0f} s"
        )

    async def _forget(self) -> NoReturn:
        """Have the target forget where it is, as it is elsewhere; raise TargetError."""
        with trio.move_on_after(REPLY_TIMEOUT):
            while True:
                try:
                    await self._client.call("DEL", KEY)
                    break
                except ReplyError as error:
                    # It may be busy again.
                    _log.warning("%s", error)
                    await trio.sleep(_ASK_AGAIN)
        raise TargetError(
            "the target carried out a transaction behind one that it refused, as it "
            "was busy, or its memory of this replay was taken away: replay anew"
        )


async def open_line(client: Client) -> Line:
    """Return the line over a connection, guarded if the target allows it.

    TargetError if it allows no transactions.
    """
    try:
        await client.call("MULTI")
        await client.call("EXEC")
    except ReplyError as error:
        must_take(error)
        raise TargetError(
            f"{error}; a replay sends transactions: allow +multi and +exec to the user"
        ) from None
    try:
        await client.call("PING", _done(0))
        await client.call("WATCH", KEY)
        # It finds another memory than this and does what a guard does then, to know
        # that it may.
        await client.call("EVAL", _GUARD, 1, KEY, b"")
        await client.call("UNWATCH")
    except ReplyError as error:
        must_take(error)
        _log.info("one transaction at a time, which is slower: %s", error)
        return Line(client, is_guarded=False, is_quiet=False)
    return Line(client, is_guarded=True, is_quiet=await _can_be_quiet(client))


async def _can_be_quiet(client: Client) -> bool:
    """Return whether a server allows what is asked of it for a quiet transaction."""
    await client.call("MULTI")
    try:
        await client.call("CLIENT", "REPLY", "ON")
    except ReplyError:
        return False
    finally:
        await client.call("DISCARD")
    return True


def _done(mark: int) -> bytes:
    return _DONE + b"%d" % mark


def _over(mark: int) -> bytes:
    return _OVER + b"%d" % mark


def _marks_done(replies: Iterable[object]) -> list[int]:
    """Return the marks of the transactions that replies say were carried out.

    Those that are not quiet, if only as the server refused it, have it in an array.
    """
    found: list[int] = []
    for reply in replies:
        if isinstance(reply, list):
            found += _marks_done(reply)
        elif isinstance(reply, bytes) and (match := _IS_DONE.fullmatch(reply)):
            found.append(int(match[1]))
    return found


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


def _failures(owed: _Owed, replies: Sequence[object]) -> tuple[Failure, ...]:
    """Return what went wrong by the replies to what is within a transaction."""
    if hiredis.ReplyError not in set(map(type, replies)):
        return ()
    found = []
    head, last = owed.head, owed.head + owed.parcel.count
    for at, reply in enumerate(replies):
        if isinstance(reply, hiredis.ReplyError):
            must_take(reply)
            if not head <= at < last:
                raise TargetError(
                    f"the target does not let kvtape remember how far it is: {reply}"
                )
            found.append(Failure(at - head, str(reply)))
    return tuple(found)
