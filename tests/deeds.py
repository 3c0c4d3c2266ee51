"""What a diary can be about: things done to a server, and what it streams of them.

It hides what servers rewrite (SETEX, SPOP, GETDEL, relative TTLs) and how a reply tells
whether anything was written at all. Nothing of kvtape is imported here. What the table
says was tried on all six releases, by the tests that use it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from operations import NASTY
from plain_client import Argument, Reply, as_bytes

Place: TypeAlias = tuple[int, bytes]

# What happens to a key: it is written; it is deleted; its last element is taken with
# it, which no command says; it gets the value of another key; it is only named.
Effect: TypeAlias = Literal["writes", "deletes", "empties", "comes", "names"]

DATABASES: Final = (0, 1, 2, 5)


class Between(NamedTuple):
    """A number that only the server knows exactly."""

    low: int
    high: int


class Touch(NamedTuple):
    """What a write does to one key.

    has_ttl is None where that stays as it was. A value comes from source.
    """

    place: Place
    effect: Effect
    has_ttl: bool | None = None
    source: Place | None = None


class Said(NamedTuple):
    """The words of a command in the stream, and what it touches.

    is_announced says that the server calls it an expiry of its own.
    """

    words: Sequence[Argument | Between]
    touches: Sequence[Touch]
    is_announced: bool = False


Replies: TypeAlias = Sequence[Reply]


@dataclass(frozen=True, slots=True)
class Deed:
    """Commands, and what follows from their replies and when they were sent (ms)."""

    commands: Sequence[Sequence[Argument]]
    told: Callable[[Replies, int, int], Sequence[Said]]


_KEYS: Final = {"s": 40, "n": 10, "l": 12, "t": 12, "z": 12, "h": 12, "x": 5}
_MEMBERS: Final = 5


@dataclass(frozen=True, slots=True)
class Dice:
    """Draws arguments, for a server of a release."""

    rng: random.Random
    release: str

    @property
    def is_old(self) -> bool:
        """Whether TTLs are streamed as they were given, and all is put in brackets."""
        return self.release == "redis-6.2"

    @property
    def unlink(self) -> str:
        """The command by which the server deletes of its own accord."""
        return "UNLINK" if self.release.startswith("valkey") else "DEL"

    def key(self, families: str) -> bytes:
        """Draw a key; a third have names that are not fit for a text protocol."""
        family = self.rng.choice(families)
        number = self.rng.randrange(_KEYS[family])
        if (family, number) == ("s", 0):
            return b""
        name = f"{family}:{number}".encode()
        return name + NASTY[number % len(NASTY)] if number % 3 == 0 else name

    def value(self) -> bytes:
        """Draw a value."""
        return self.rng.choice(NASTY) + self.rng.randbytes(self.rng.randrange(20))

    def member(self) -> bytes:
        """Draw one of few members."""
        return b"member %d" % self.rng.randrange(_MEMBERS)

    def soon(self) -> int:
        """Draw a TTL that ends while others write (ms)."""
        return self.rng.randint(30, 900)

    def other(self, db: int) -> int:
        """Draw another database."""
        return self.rng.choice([one for one in DATABASES if one != db])


Maker: TypeAlias = Callable[[Dice, int], Deed]


def now() -> int:
    """Return the time (ms)."""
    return time.time_ns() // 1_000_000


# How deeds are made.


def as_sent(*words: Argument, touches: Sequence[Touch]) -> Deed:
    """Return a command that is streamed as it is if its reply is not nil, 0 or no."""
    return Deed(
        [words], lambda replies, *_: [Said(words, touches)] if replies[0] else []
    )


def writes(*words: Argument, at: Place, has_ttl: bool | None = None) -> Deed:
    """Return a command that writes one key, and is streamed as it is."""
    return as_sent(*words, touches=[Touch(at, "writes", has_ttl)])


def takes(*words: Argument, at: Place) -> Deed:
    """Return a command that takes elements, perhaps the last one, as it is."""

    def told(replies: Replies, _sent: int, _answered: int) -> Sequence[Said]:
        if not replies[0]:
            return []
        return [Said(words, [Touch(at, "writes" if replies[1] else "empties")])]

    return Deed([words, ("EXISTS", at[1])], told)


def expires(
    dice: Dice,
    *words: Argument,
    at: Place,
    ms: int,
    old: Sequence[Argument],
    new: Sequence[Argument],
) -> Deed:
    """Return a command that gives a TTL.

    It is streamed as old where TTLs are streamed as they are, and else as new with the
    time behind it.
    """

    def told(replies: Replies, sent: int, answered: int) -> Sequence[Said]:
        if replies[0] in (None, 0):
            return []
        when = Between(sent + ms - 1, answered + ms + 1)
        return [Said(old if dice.is_old else [*new, when], [Touch(at, "writes", True)])]

    return Deed([words], told)


# Strings.


def set_plain(dice: Dice, db: int) -> Deed:
    """SET without a TTL."""
    key = dice.key("s")
    return writes("SET", key, dice.value(), at=(db, key), has_ttl=False)


def set_number(dice: Dice, db: int) -> Deed:
    """INCR, DECRBY, or a number with a TTL."""
    key = dice.key("n")
    if dice.rng.random() < 0.3:
        return set_with_ttl(dice, db, key, b"1")
    choices: list[Sequence[Argument]] = [("INCR", key), ("DECRBY", key, 3)]
    words = dice.rng.choice(choices)
    # The reply may be 0, and it was written.
    return Deed([words], lambda *_: [Said(words, [Touch((db, key), "writes")])])


def set_with_ttl(
    dice: Dice, db: int, key: bytes | None = None, value: bytes | None = None
) -> Deed:
    """SET, SETEX or PSETEX with a TTL that counts from now."""
    key, ms = dice.key("s") if key is None else key, dice.soon()
    value = dice.value() if value is None else value
    name = dice.rng.choice(["PX", "PSETEX", "SETEX"])
    if name == "SETEX":
        ms = 1000
    words: Sequence[Argument] = {
        "PX": ("SET", key, value, "PX", ms),
        "PSETEX": ("PSETEX", key, ms, value),
        "SETEX": ("SETEX", key, 1, value),
    }[name]
    old = ("SET", key, value, "PX", ms)
    new = ("SET", key, value, "PXAT")
    return expires(dice, *words, at=(db, key), ms=ms, old=old, new=new)


def set_until(dice: Dice, db: int) -> Deed:
    """SET with a time at which it expires."""
    key = dice.key("s")
    words = ("SET", key, dice.value(), "PXAT", now() + dice.soon() + 50)
    return writes(*words, at=(db, key), has_ttl=True)


def keep_ttl(dice: Dice, db: int) -> Deed:
    """SET that leaves the TTL."""
    key = dice.key("s")
    return writes("SET", key, dice.value(), "KEEPTTL", at=(db, key))


def append(dice: Dice, db: int) -> Deed:
    """APPEND leaves the TTL."""
    key = dice.key("s")
    return writes("APPEND", key, b"!", at=(db, key))


def set_new(dice: Dice, db: int) -> Deed:
    """SETNX."""
    key = dice.key("s")
    return writes("SETNX", key, dice.value(), at=(db, key), has_ttl=False)


def several(dice: Dice, db: int) -> Deed:
    """MSET."""
    one, other = dice.key("s"), dice.key("s")
    touches = [Touch((db, key), "writes", False) for key in (one, other)]
    return as_sent("MSET", one, dice.value(), other, b"2", touches=touches)


def get_set(dice: Dice, db: int) -> Deed:
    """GETSET is streamed as SET."""
    key, value = dice.key("s"), dice.value()
    said = [Said(("SET", key, value), [Touch((db, key), "writes", False)])]
    return Deed([("GETSET", key, value)], lambda *_: said)


def float_(dice: Dice, db: int) -> Deed:
    """INCRBYFLOAT is streamed as SET, and leaves the TTL."""
    key = dice.key("n")

    def told(replies: Replies, _sent: int, _answered: int) -> Sequence[Said]:
        value = as_bytes(replies[0])
        return [Said(("SET", key, value, "KEEPTTL"), [Touch((db, key), "writes")])]

    return Deed([("INCRBYFLOAT", key, 2)], told)


# TTLs.


def expire(dice: Dice, db: int) -> Deed:
    """[P]EXPIRE."""
    key, ms = dice.key("sslhtz"), dice.soon()
    words: Sequence[Argument] = ("PEXPIRE", key, ms)
    if dice.rng.random() < 0.2:
        words, ms = ("EXPIRE", key, 1), 1000
    new = ("PEXPIREAT", key)
    return expires(dice, *words, at=(db, key), ms=ms, old=words, new=new)


def expire_at(dice: Dice, db: int) -> Deed:
    """PEXPIREAT."""
    key = dice.key("sslhtz")
    words = ("PEXPIREAT", key, now() + dice.soon() + 50)
    return writes(*words, at=(db, key), has_ttl=True)


def expire_in_the_past(dice: Dice, db: int) -> Deed:
    """EXPIRE in the past is streamed as the deletion that it is."""
    key = dice.key("sl")
    calls_it_expiry = dice.release in ("valkey-8.1", "valkey-9.1")
    touches = [Touch((db, key), "deletes")]
    said = [Said((dice.unlink, key), touches, calls_it_expiry)]
    words = ("PEXPIRE", key, -1)
    return Deed([words], lambda replies, *_: said if replies[0] else [])


def persist(dice: Dice, db: int) -> Deed:
    """PERSIST."""
    key = dice.key("sslhtz")
    return writes("PERSIST", key, at=(db, key), has_ttl=False)


def get_and_expire(dice: Dice, db: int) -> Deed:
    """GETEX with a TTL is streamed as PEXPIRE."""
    key, ms = dice.key("s"), dice.soon()
    words = ("GETEX", key, "PX", ms)
    old, new = ("PEXPIRE", key, ms), ("PEXPIREAT", key)
    return expires(dice, *words, at=(db, key), ms=ms, old=old, new=new)


# Deletions.


def delete(dice: Dice, db: int) -> Deed:
    """DEL and UNLINK of one key."""
    key = dice.key("ssslhtzx")
    name = dice.rng.choice(["DEL", "UNLINK", "del"])
    return as_sent(name, key, touches=[Touch((db, key), "deletes")])


def delete_several(dice: Dice, db: int) -> Deed:
    """DEL of several keys, of which some are there."""
    keys = sorted({dice.key("sslhtz") for _ in range(3)})
    words: Sequence[Argument] = ("DEL", *keys)

    def told(replies: Replies, _sent: int, _answered: int) -> Sequence[Said]:
        touches = [
            Touch((db, key), "deletes" if is_there else "names")
            for key, is_there in zip(keys, replies, strict=False)
        ]
        return [Said(words, touches)] if replies[-1] else []

    return Deed([*(("EXISTS", key) for key in keys), words], told)


def get_and_delete(dice: Dice, db: int) -> Deed:
    """GETDEL is streamed as DEL."""
    key = dice.key("s")
    said = [Said(("DEL", key), [Touch((db, key), "deletes")])]
    words = ("GETDEL", key)
    return Deed([words], lambda replies, *_: [] if replies[0] is None else said)


# Names.


def _two(dice: Dice) -> tuple[bytes, bytes]:
    family = dice.rng.choice("sslhtz")
    one, other = dice.key(family), dice.key(family)
    return (one, other) if one != other else (one, other + b" too")


def rename_new(dice: Dice, db: int) -> Deed:
    """RENAME of a value that gets its name only when it is complete."""
    key, value = dice.key("s"), dice.value()
    temporary = b"tmp:%d" % dice.rng.randrange(4)
    return Deed(
        [("SET", temporary, value), ("RENAME", temporary, key)],
        lambda *_: [
            Said(("SET", temporary, value), [Touch((db, temporary), "writes", False)]),
            _renamed(("RENAME", temporary, key), (db, temporary), (db, key)),
        ],
    )


def _renamed(words: Sequence[Argument], source: Place, target: Place) -> Said:
    comes = Touch(target, "comes", source=source)
    return Said(words, [comes, Touch(source, "deletes")])


def rename(dice: Dice, db: int) -> Deed:
    """RENAMENX, since RENAME is refused where there is nothing."""
    one, other = _two(dice)
    words = ("RENAMENX", one, other)
    # Of a key that is not there it is refused, too; so it is made first.
    if one[:1] not in (b"s", b""):
        return copy(dice, db)
    made = Said(("APPEND", one, b"."), [Touch((db, one), "writes")])
    renamed = _renamed(words, (db, one), (db, other))
    return Deed(
        [("APPEND", one, b"."), words],
        lambda replies, *_: [made, renamed] if replies[1] else [made],
    )


def copy(dice: Dice, db: int) -> Deed:
    """COPY, within the database or to another one."""
    one, other = _two(dice)
    there = db
    words: Sequence[Argument] = ("COPY", one, other)
    if dice.rng.random() < 0.4:
        there = dice.other(db)
        other = other if dice.rng.random() < 0.5 else one
        words = ("COPY", one, other, "DB", there)
    if dice.rng.random() < 0.5:
        words = (*words, "REPLACE")
    return as_sent(*words, touches=[Touch((there, other), "comes", source=(db, one))])


def move(dice: Dice, db: int) -> Deed:
    """MOVE."""
    key, there = dice.key("sslhtz"), dice.other(db)
    words = ("MOVE", key, there)
    moved = _renamed(words, (db, key), (there, key))
    return Deed([words], lambda replies, *_: [moved] if replies[0] else [])


# Other types.


def list_(dice: Dice, db: int) -> Deed:
    """Push and pop."""
    key = dice.key("l")
    if dice.rng.random() < 0.5:
        return writes("RPUSH", key, dice.value(), at=(db, key))
    if dice.rng.random() < 0.3:
        there = dice.key("l")
        if there != key:
            return _move_element(("RPOPLPUSH", key, there), (db, key), (db, there))
    return takes(dice.rng.choice(["LPOP", "RPOP"]), key, at=(db, key))


def _move_element(words: Sequence[Argument], source: Place, target: Place) -> Deed:
    def told(replies: Replies, _sent: int, _answered: int) -> Sequence[Said]:
        if replies[0] is None:
            return []
        left: Effect = "writes" if replies[1] else "empties"
        return [Said(words, [Touch(source, left), Touch(target, "writes")])]

    return Deed([words, ("EXISTS", source[1])], told)


def set_(dice: Dice, db: int) -> Deed:
    """Add, remove, and take any."""
    key, member = dice.key("t"), dice.member()
    kind = dice.rng.random()
    if kind < 0.5:
        return writes("SADD", key, member, at=(db, key))
    if kind < 0.7:
        return takes("SREM", key, member, at=(db, key))

    def told(replies: Replies, _sent: int, _answered: int) -> Sequence[Said]:
        if replies[0] is None:
            return []
        taken = ("SREM", key, as_bytes(replies[0]))
        return [Said(taken, [Touch((db, key), "writes" if replies[1] else "empties")])]

    return Deed([("SPOP", key), ("EXISTS", key)], told)


def zset(dice: Dice, db: int) -> Deed:
    """Add, and take the lowest."""
    key = dice.key("z")
    if dice.rng.random() < 0.6:
        score = dice.rng.randrange(10**6)
        return writes("ZADD", key, "CH", score, dice.member(), at=(db, key))
    return takes(dice.rng.choice(["ZPOPMIN", "ZPOPMAX"]), key, at=(db, key))


def hash_(dice: Dice, db: int) -> Deed:
    """Set, count and delete fields."""
    key, field = dice.key("h"), dice.member()
    choices: list[Sequence[Argument]] = [
        *(("HSET", key, field, 1), ("HINCRBY", key, field, 5), ("HDEL", key, field))
    ]
    words = dice.rng.choice(choices)
    if words[0] == "HDEL":
        return takes(*words, at=(db, key))
    # The reply is 0 for a field that was there, which was written all the same.
    return Deed([words], lambda *_: [Said(words, [Touch((db, key), "writes")])])


def stream(dice: Dice, db: int) -> Deed:
    """XADD is streamed with the id that it got."""
    key = dice.key("x")

    def told(replies: Replies, _sent: int, _answered: int) -> Sequence[Said]:
        words = ("XADD", key, as_bytes(replies[0]), "a", "b")
        return [Said(words, [Touch((db, key), "writes")])]

    return Deed([("XADD", key, "*", "a", "b")], told)


def stored(dice: Dice, db: int) -> Deed:
    """SUNIONSTORE, of what is there."""
    one, other = dice.key("t"), dice.key("t")
    words = ("SUNIONSTORE", one, other, one)
    return writes(*words, at=(db, one), has_ttl=False)


DEEDS: Final[dict[Maker, float]] = {
    set_plain: 8,
    set_number: 4,
    set_with_ttl: 12,
    set_until: 3,
    keep_ttl: 3,
    append: 3,
    set_new: 2,
    several: 2,
    get_set: 1,
    float_: 1,
    expire: 6,
    expire_at: 2,
    expire_in_the_past: 1,
    persist: 2,
    get_and_expire: 2,
    delete: 6,
    delete_several: 2,
    get_and_delete: 1,
    rename_new: 4,
    rename: 3,
    copy: 5,
    move: 3,
    list_: 6,
    set_: 6,
    zset: 5,
    hash_: 6,
    stream: 2,
    stored: 1,
}

# What is said of a TTL is the same in a transaction, but that is for others to try.
IN_TRANSACTIONS: Final[Sequence[Maker]] = (
    *(set_plain, set_with_ttl, append, delete, delete, get_and_delete, move, copy),
    *(rename_new, list_, set_, zset, hash_, persist, expire),
)
