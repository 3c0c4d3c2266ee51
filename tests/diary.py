"""A diary: a seeded writer to a real server that notes what each write has to stream.

What is done is drawn from deeds.py, by itself, in transactions and in scripts. What a
server deletes by itself is in the stream only, but it says so in its notifications; so
`merge` puts the two together: the rows of a stream must be the diary's, in order, and
between them nothing but what the server said that it deleted. Nothing of kvtape is
imported here.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, Self, TypeAlias

from deeds import (
    DATABASES,
    DEEDS,
    IN_TRANSACTIONS,
    Between,
    Deed,
    Dice,
    Place,
    Replies,
    Said,
    Touch,
    now,
)
from meanwhile import meanwhile
from plain_client import Argument, PlainClient, as_list
from replicas import wait_until
from servers import Server

Maker: TypeAlias = Literal["client", "expiry", "eviction"]

# What keeps the stream flowing is there, and in no diary.
NOISE_DB: Final = 15
_NOISE_INTERVAL = 0.003

# Receipts are stamped by another program, in whole ms.
_SLACK: Final = 2

# By so much (ms) what a recording says of when something was written may be wrong.
_ON_THE_WAY: Final = 1000


class Row(NamedTuple):
    """A command as a stream has it, with the offsets, and when it was received (ms)."""

    start: int
    end: int
    time: int
    after: int
    db: int
    transaction: int | None
    words: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A command that the server has to stream.

    group numbers those that stand between the same MULTI and EXEC. It was sent and
    answered at these times (ms).
    """

    words: tuple[bytes | Between, ...]
    db: int
    touches: tuple[Touch, ...]
    sent: int
    answered: int
    group: int | None = None

    def is_said_by(self, row: Row) -> bool:
        """Whether a row has its words and its database."""
        return (
            row.db == self.db
            and len(row.words) == len(self.words)
            and all(map(_is_same, self.words, row.words))
        )


def _is_same(word: bytes | Between, found: bytes) -> bool:
    if isinstance(word, bytes):
        return word == found
    return found.isdigit() and word.low <= int(found) <= word.high


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: by whom, where it is in the stream, and what it touched.

    row is None for what was written before anything was recorded.
    """

    maker: Maker
    row: Row | None
    touches: tuple[Touch, ...]
    entry: Entry | None = None


class Diary:
    """Writes to a server, and notes it in entries.

    expired and evicted have what the server itself says that it deleted, once
    `read_obituaries` was called. For one thread; leaving the context closes it.
    """

    def __init__(self, server: Server, seed: int) -> None:
        self.entries: list[Entry] = []
        self.expired: Counter[Place] = Counter()
        self.evicted: Counter[Place] = Counter()
        self.misnamed: Counter[Place] = Counter()
        self.early: Counter[Place] = Counter()
        self.dice = Dice(random.Random(seed), server.name)
        self.plain = PlainClient(server.client())
        self._server = server
        self._groups = 0
        self.plain.ask("CONFIG", "SET", "notify-keyspace-events", "Exe")
        self._obituaries = server.client().pubsub()  # type: ignore[no-untyped-call]
        self._obituaries.psubscribe("__keyevent@*__:*")
        self._obituaries.get_message(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.plain.close()
        self._obituaries.close()

    def begin(self) -> int:
        """Note that a recording has begun since the last deed; return their number."""
        self.read_obituaries()
        self.early = self.expired.copy()
        return len(self.entries)

    def end(self) -> None:
        """Wait until all that expires has."""
        wait_until(
            lambda: all(
                ",expires=0," in value for value in self.plain.info("keyspace").values()
            )
        )
        self.read_obituaries()

    def read_obituaries(self) -> None:
        """Learn what the server said that it deleted by itself."""
        while message := self._obituaries.get_message(timeout=0.2):
            channel, _, event = message["channel"].decode().partition("__:")
            place = int(channel.removeprefix("__keyevent@")), message["data"]
            (self.expired if event == "expired" else self.evicted)[place] += 1

    # Doing things.

    def step(self, count: int) -> None:
        """Do so many things."""
        rng = self.dice.rng
        for _ in range(count):
            db, kind = rng.choice(DATABASES), rng.random()
            if kind < 0.12:
                makers = rng.choices(IN_TRANSACTIONS, k=rng.randint(1, 4))
                self.transaction([make(self.dice, db) for make in makers], db)
            elif kind < 0.2:
                self._script(db)
            elif kind < 0.205:
                self._flush(db)
            else:
                [make] = rng.choices(list(DEEDS), list(DEEDS.values()))
                self.do(make(self.dice, db), db)

    def do(self, deed: Deed, db: int = 0) -> None:
        """Do one thing and note it."""
        sent = now()
        _, *replies = self.plain.exchange([("SELECT", db), *deed.commands])
        self._note(deed, replies, db, sent, now())

    def say(self, *words: Argument, touches: Sequence[Touch], db: int = 0) -> None:
        """Send a command that is streamed as it is."""
        self.do(Deed([words], lambda *_: [Said(words, touches)]), db)

    def transaction(self, deeds: Sequence[Deed], db: int = 0) -> None:
        """Do things between MULTI and EXEC."""
        commands = [command for deed in deeds for command in deed.commands]
        sent, first = now(), len(self.entries)
        _, *replies = self.plain.exchange(
            [("SELECT", db), ("MULTI",), *commands, ("EXEC",)]
        )
        answered, rest = now(), as_list(replies[-1])
        for deed in deeds:
            self._note(deed, rest[: len(deed.commands)], db, sent, answered)
            rest = rest[len(deed.commands) :]
        self._bracket(first)

    def script(self, deed: Deed, db: int = 0) -> None:
        """Do what is done by a script."""
        first = len(self.entries)
        self.do(deed, db)
        self._bracket(first)

    def _bracket(self, first: int) -> None:
        """Put the entries from there on between a MULTI and an EXEC."""
        made = self.entries[first:]
        self._groups += 1
        if len(made) > 1 or self.dice.is_old:
            self.entries[first:] = [replace(one, group=self._groups) for one in made]

    def _note(
        self, deed: Deed, replies: Replies, db: int, sent: int, answered: int
    ) -> None:
        for reply in replies:
            assert not isinstance(reply, Exception), (deed.commands, reply)
        for said in deed.told(replies, sent, answered):
            words, touches = tuple(map(_plain, said.words)), tuple(said.touches)
            self.entries.append(Entry(words, db, touches, sent, answered))
            if said.is_announced:
                self.misnamed[touches[0].place] += 1

    def _script(self, db: int) -> None:
        """Have a script delete a key, in capitals or not, and perhaps do more."""
        dice = self.dice
        name = dice.rng.choice(["del", "DEL", "unlink", "UNLINK"])
        one, other, value = dice.key("sh"), dice.key("s"), dice.value()
        lines = f"local n = redis.call('{name}', KEYS[1])"
        deleted = Said((name, one), [Touch((db, one), "deletes")])
        more: list[Said] = []
        if dice.rng.random() < 0.5:
            lines += " redis.call('set', KEYS[2], ARGV[1])"
            touch = Touch((db, other), "writes", has_ttl=False)
            more = [Said(("set", other, value), [touch])]
        command = ("EVAL", f"{lines} return n", 2, one, other, value)

        def told(replies: Replies, _sent: int, _answered: int) -> Sequence[Said]:
            return [deleted, *more] if replies[0] else more

        self.script(Deed([command], told), db)

    def _flush(self, db: int) -> None:
        """Flush a database, or swap two. Whom that touches is found out by stories."""
        other = self.dice.other(db)
        words = self.dice.rng.choice([("SWAPDB", db, other)] * 4 + [("FLUSHDB",)])
        self.say(*words, touches=(), db=db)


def _plain(word: Argument | Between) -> bytes | Between:
    return word if isinstance(word, bytes | Between) else str(word).encode()


@contextmanager
def noise(server: Server) -> Iterator[None]:
    """Write elsewhere all the time, so that the stream never stands still."""

    def write(is_over: threading.Event) -> None:
        with PlainClient(server.client()) as plain:
            plain.ask("SELECT", NOISE_DB)
            while not is_over.wait(_NOISE_INTERVAL):
                plain.ask("INCR", "noise")

    with meanwhile(write):
        yield


def merge(diary: Diary, rows: Sequence[Row], since: int = 0) -> list[Written]:
    """Return what was written, in order; AssertionError if rows say something else.

    The first `since` entries were written before what rows are of.
    """
    written = [Written("client", None, e.touches, e) for e in diary.entries[:since]]
    entries = iter(diary.entries[since:])
    entry = next(entries, None)
    groups: dict[int, int | None] = {}
    has_deaths: set[int | None] = set()
    died: Counter[Place] = Counter()
    for row in rows:
        if row.db == NOISE_DB:
            continue
        if entry is not None and entry.is_said_by(row):
            _must_be_in_time(entry, row)
            if row.transaction is not None:
                known = groups.setdefault(row.transaction, entry.group)
                assert known == entry.group, row
            else:
                assert entry.group is None, row
            written.append(Written("client", row, entry.touches, entry))
            entry = next(entries, None)
            continue
        place = _dead(row, entry)
        died[place] += 1
        has_deaths.add(row.transaction)
        is_expiry = died[place] <= diary.expired[place]
        maker: Maker = "expiry" if is_expiry else "eviction"
        written.append(Written(maker, row, (Touch(place, "deletes"),)))
    assert entry is None, f"it is not in the stream: {entry}"
    announced = diary.expired + diary.evicted - diary.misnamed
    # Of what was announced first it is not known whether it is before the snapshot.
    assert announced - diary.early <= died <= announced
    numbers = [group for group in groups.values() if group is not None]
    assert len(numbers) == len(set(numbers)), "a transaction was torn"
    alone = {at for at, group in groups.items() if group is None}
    assert alone <= has_deaths, "there are brackets that nobody put there"
    return written


def _must_be_in_time(entry: Entry, row: Row) -> None:
    assert row.time >= entry.sent - _SLACK, (entry, row)
    assert row.after <= entry.answered + _ON_THE_WAY, (entry, row)


def _dead(row: Row, entry: Entry | None) -> Place:
    """Return what a server deleted by itself; AssertionError if the row is no such."""
    name, *keys = row.words
    assert name in (b"DEL", b"UNLINK"), f"{row} instead of {entry}"
    assert len(keys) == 1, f"{row} instead of {entry}"
    return row.db, keys[0]
