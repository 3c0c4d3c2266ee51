"""Comparing keys as they were with those that a live server has now.

A live server goes on serving, so it is asked for the keys that were, by name and a few
at a time, and for nothing else: no KEYS, and no SCAN of keys that nobody asked about.
Each is read by DUMP, which is one command whatever its type is, and which both sides
bring into one form (kvtape.tape.rdb.canonical).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kvtape.errors import ServerError
from kvtape.server.client import Client, ReplyError, Word
from kvtape.tape.rdb import Key
from kvtape.tape.rdb.canonical import Canonical, canonical
from kvtape.tape.rdb.payload import read_payload

# So many keys are asked for at once, or fewer if they are large: a server answers what
# it was sent in one go, while others wait.
_MOST_KEYS = 50
_MOST_BYTES = 1024 * 1024

# What a key that was at the moment is at the target now: not there; there with another
# value, or with the same and another expiry; there and the same. One whose time has
# passed since would be gone as soon as it came.
Kind = Literal["missing", "changed", "expiry", "same", "expired"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key as it was, the name that it is to have, and its number among the wanted."""

    number: int
    key: Key
    name: bytes

    @property
    def place(self) -> tuple[int, bytes]:
        """The database and the name at the target."""
        return self.key.db, self.name


@dataclass(frozen=True, slots=True)
class _Held:
    """What the target has: DUMP's payload, and between which times (ms) it expires.

    Before Redis 7.0 a server tells only how long a key has left, so it is known no
    better than between the time before and after it was asked. None is never.
    """

    payload: bytes | None
    expires: tuple[int, int] | None


def batches(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Yield wanted keys in groups of one database, few enough to be asked for."""
    group: list[Wanted] = []
    size = 0
    for each in wanted:
        is_full = len(group) == _MOST_KEYS or size + each.key.value_size > _MOST_BYTES
        if group and (is_full or group[0].key.db != each.key.db):
            yield group
            group, size = [], 0
        group.append(each)
        size += each.key.value_size
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class Comparer:
    """Compares wanted keys with a target; is_lean if one side is Redis 6.2."""

    client: Client
    has_expiretime: bool
    is_lean: bool

    async def kinds(self, group: Sequence[Wanted]) -> list[Kind]:
        """Return what the keys of a group are at the target."""
        now, held = await self._held(group)
        return [
            _kind(each.key, it, now, is_lean=self.is_lean)
            for each, it in zip(group, held, strict=True)
        ]

    async def _held(self, group: Sequence[Wanted]) -> tuple[int, list[_Held]]:
        """Return the target's time (ms), and what it has of each key."""
        expiry = self._expiry_by_time if self.has_expiretime else self._expiry_by_rest
        commands: list[list[Word]] = [["SELECT", group[0].key.db], ["TIME"]]
        for each in group:
            commands.append(["DUMP", each.name])
            if self.has_expiretime:
                commands.append(["PEXPIRETIME", each.name])
            else:
                commands += [["TIME"], ["PTTL", each.name], ["TIME"]]
        replies = await _replies(self.client, commands)
        now = _milliseconds(replies[1])
        step = 2 if self.has_expiretime else 4
        answers = [replies[at : at + step] for at in range(2, len(replies), step)]
        return now, [_Held(_payload(it[0]), expiry(it[1:])) for it in answers]

    def _expiry_by_time(self, replies: Sequence[object]) -> tuple[int, int] | None:
        when = _number(replies[0])
        return None if when < 0 else (when, when)

    def _expiry_by_rest(self, replies: Sequence[object]) -> tuple[int, int] | None:
        rest = _number(replies[1])
        if rest < 0:
            return None
        return _milliseconds(replies[0]) + rest, _milliseconds(replies[2]) + rest


async def _replies(client: Client, commands: Sequence[Sequence[Word]]) -> list[object]:
    """Return all replies; the first error is raised when all are read."""
    await client.send(*commands)
    replies: list[object] = []
    errors: list[ReplyError] = []
    for words in commands:
        try:
            replies.append(await client.reply(words))
        except ReplyError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return replies


def _kind(key: Key, held: _Held, now: int, *, is_lean: bool) -> Kind:
    assert key.value is not None
    was = canonical(key.type, key.value, at=now, is_lean=is_lean)
    if was is None or (key.expire_ms is not None and key.expire_ms <= now):
        return "expired"
    there = _canonical_of(held.payload, now, is_lean=is_lean)
    if there is None:
        return "missing"
    if was != there:
        return "changed"
    return "same" if _expires_so(held.expires, key.expire_ms) else "expiry"


def _canonical_of(
    payload: bytes | None, now: int, *, is_lean: bool
) -> Canonical | None:
    if payload is None:
        return None
    dumped = read_payload(payload)
    return canonical(dumped.type, dumped.value, at=now, is_lean=is_lean)


def _expires_so(held: tuple[int, int] | None, expire_ms: int | None) -> bool:
    if held is None or expire_ms is None:
        return held is None and expire_ms is None
    return held[0] <= expire_ms <= held[1]


def _payload(reply: object) -> bytes | None:
    return reply if isinstance(reply, bytes) else None


def _number(reply: object) -> int:
    if not isinstance(reply, int):
        raise ServerError(f"the target told an expiry as {reply!r}")
    return reply


def _milliseconds(reply: object) -> int:
    match reply:
        case [bytes(seconds), bytes(micros)]:
            return int(seconds) * 1000 + int(micros) // 1000
        case _:
            raise ServerError(f"the target told the time as {reply!r}")
