"""The seeded dice that turn the repertoire's lines into operations.

Nothing here talks to a server: the same seed and the same list of commands that the
server has give the same operations, except for the clock that absolute expiries need.
That is why no argument comes from a reply; the two that must (a DUMP to RESTORE, a
FUNCTION DUMP) are left open as a `Payload`, and ids of streams are either made up here
(family "log") or picked by a script on the server (family "stream").

Keys are few and families overlap on purpose, so that operations meet each other's
leavings and some fail.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from plain_client import Argument
from repertoire import BLOCKED, EXTRAS, SCRIPTS, TABLES

FieldTtls: TypeAlias = Literal["none", "long", "short"]


@dataclass(frozen=True, slots=True)
class Payload:
    """Stands for the reply to `source`, which is asked just before."""

    source: tuple[Argument, ...]


Command: TypeAlias = tuple[Argument | Payload, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """Commands of one connection, sent once `blocked` waits on another one."""

    commands: tuple[Command, ...]
    blocked: Command | None = None


TRANSACTION_WEIGHT: Final = 8
BLOCKED_WEIGHT: Final = 0.5
FLUSH_WEIGHT: Final = 0.15
COLLISION: Final = 0.06
# See repertoire.py: what a damaged HyperLogLog is told is not streamed as a whole.
SEALED: Final = "hll"
SELECT: Final = 0.15

NASTY: Final = (
    b"",
    b"\0",
    b"\r\n",
    b"\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
    b"*1\r\n$4\r\nEXEC\r\n",
    b"$-1\r\n",
    b"+OK\r\n",
    b"\xff\xfe\0\x80",
    bytes(range(256)),
    "schlüssel".encode(),
)

# 300 names in each database.
NAMES_PER_FAMILY: Final = {
    "string": 70,
    "counter": 20,
    "bits": 15,
    "hll": 10,
    "list": 40,
    "set": 35,
    "zset": 35,
    "geo": 10,
    "hash": 30,
    "fields": 25,
    "stream": 5,
    "log": 5,
}


def names(family: str, count: int) -> list[bytes]:
    """Return the family's keys; a third of them are not fit for a text protocol."""
    plain = [f"{family}:{number}".encode() for number in range(count)]
    return [
        name + NASTY[number % len(NASTY)] if number % 3 == 0 else name
        for number, name in enumerate(plain)
    ]


class Dice:
    """Draws the arguments; all of its state follows from the seed and the clock."""

    def __init__(
        self,
        seed: int,
        databases: tuple[int, ...],
        field_ttls: FieldTtls,
        max_value: int,
        now: Callable[[], float],
    ) -> None:
        self.rng = random.Random(seed)
        self.databases = databases
        self.family = "string"
        self.same: bytes | None = None
        self._field_ttls = field_ttls
        self._max_value = max_value
        self._now = now
        self._keys = {name: names(name, n) for name, n in NAMES_PER_FAMILY.items()}
        self._keys["string"][0] = b""
        self._counter = 0
        self._ids: dict[bytes, deque[str]] = defaultdict(lambda: deque(maxlen=12))

    def key(self) -> bytes:
        """Draw a key of the family, now and then of another on purpose."""
        family = self.family
        if family != SEALED and self.rng.random() < COLLISION:
            family = self.rng.choice([name for name in self._keys if name != SEALED])
        key = self.rng.choice(self._keys[family])
        if self.same is None:
            self.same = key
        return key

    def begin(self, family: str) -> None:
        """Start a line: its keys are of this family; "any" draws a (large) one.

        "unsealed" draws one too, but never the family whose values must stay whole.
        """
        self.same = None
        self.family = family
        if family in {"any", "unsealed"}:
            drawn = dict(NAMES_PER_FAMILY)
            if family == "unsealed":
                del drawn[SEALED]
            [self.family] = self.rng.choices(list(drawn), list(drawn.values()))

    def first(self) -> bytes:
        """Return the first key of the line again."""
        return self.key() if self.same is None else self.same

    def value(self) -> bytes:
        """Draw a value: nasty, a number, text or noise; short ones are common."""
        kind = self.rng.random()
        if kind < 0.15:
            return self.rng.choice(NASTY)
        if kind < 0.4:
            return str(self.rng.randint(-(10**6), 10**6)).encode()
        size = int(self._max_value ** self.rng.random())
        if kind < 0.7:
            return (b"text %d " % self.rng.randrange(100) * size)[:size]
        return self.rng.randbytes(size)

    def member(self) -> bytes:
        """Draw one of few members, so that commands meet them again."""
        number = self.rng.randrange(44)
        return NASTY[number % 10] if number < 4 else b"member%d" % number

    def bulk(self) -> list[Argument]:
        """Draw enough members to outgrow every compact encoding."""
        start = self.rng.randrange(1000)
        return [b"bulk%d" % number for number in range(start, start + 600)]

    def scored_bulk(self) -> list[Argument]:
        """Draw members of a sorted set; the first one's score comes before."""
        members = self.bulk()[:200]
        return [item for member in members for item in (member, self.score())][:-1]

    def score(self) -> str:
        """Draw a score; ties, infinities and inexact ones included."""
        draw = self.rng.random()
        if draw < 0.05:
            return self.rng.choice(["inf", "-inf", "-0", "1e300", "5e-324"])
        if draw < 0.6:
            return str(self.rng.randint(-10, 10))
        return repr(self.rng.uniform(-1e3, 1e3))

    def new_id(self) -> str:
        """Make up a stream id above all before it."""
        self._counter += self.rng.randint(1, 3)
        entry_id = f"{self._counter}-{self.rng.randint(0, 2)}"
        self._ids[self.first()].append(entry_id)
        return entry_id

    def known_id(self) -> str:
        """Draw an id that the line's first key was given once."""
        known = self._ids[self.first()]
        return self.rng.choice(known) if known else "1-1"

    def soon(self) -> int:
        """Draw an expiry in ms that passes during the run, rather early than late."""
        return int(50 * 30 ** self.rng.random())

    def hours(self) -> int:
        """Draw an expiry in seconds that does not."""
        return self.rng.randint(3600, 48 * 3600)

    def lapse(self) -> int:
        """Draw a field's expiry in ms."""
        if self._field_ttls == "short" and self.rng.random() < 0.6:
            return self.soon()
        return self.hours() * 1000

    def at_ms(self, milliseconds: int) -> int:
        """Return the absolute time of a relative one."""
        return int(self._now() * 1000) + milliseconds

    def library(self) -> str:
        """Draw the code of a function library in one of its releases."""
        release = {"name": self.library_name(), "release": self.rng.randrange(50)}
        return SCRIPTS["library"] % release

    def library_name(self) -> str:
        """Draw the name of a function library."""
        return f"library{self.rng.randrange(3)}"


WORDS: Final[dict[str, Callable[[Dice], list[Argument | Payload]]]] = {
    "k": lambda dice: [dice.key()],
    "same": lambda dice: [dice.first()],
    "v": lambda dice: [dice.value()],
    "m": lambda dice: [dice.member()],
    "f": lambda dice: [b"field%d" % dice.rng.randrange(20)],
    "c": lambda dice: [b"count%d" % dice.rng.randrange(5)],
    "n": lambda dice: [dice.rng.randint(0, 99)],
    "float": lambda dice: [repr(round(dice.rng.uniform(-9, 9), 3))],
    "bulk": lambda dice: [*dice.bulk()],
    "bulk_m": lambda dice: [*dice.scored_bulk()],
    "score": lambda dice: [dice.score()],
    "longitude": lambda dice: [repr(dice.rng.uniform(-30, 30))],
    "latitude": lambda dice: [repr(dice.rng.uniform(-30, 30))],
    "newid": lambda dice: [dice.new_id()],
    "id": lambda dice: [dice.known_id()],
    "group": lambda dice: [f"group{dice.rng.randrange(2)}"],
    "consumer": lambda dice: [f"consumer{dice.rng.randrange(4)}"],
    "channel": lambda dice: [f"channel{dice.rng.randrange(3)}"],
    "db": lambda dice: [dice.rng.choice(dice.databases)],
    "soon": lambda dice: [dice.soon()],
    "soon_at_ms": lambda dice: [dice.at_ms(dice.soon())],
    "hours": lambda dice: [dice.hours()],
    "hours_ms": lambda dice: [dice.hours() * 1000],
    "later": lambda dice: [dice.at_ms(dice.hours() * 1000) // 1000],
    "later_ms": lambda dice: [dice.at_ms(dice.hours() * 1000)],
    "past_ms": lambda dice: [dice.at_ms(-dice.hours() * 1000)],
    "lapse": lambda dice: [dice.lapse()],
    "lapse_at": lambda dice: [dice.at_ms(dice.lapse())],
    "dump": lambda dice: [Payload(("DUMP", dice.key()))],
    "functions": lambda dice: [Payload(("FUNCTION", "DUMP"))],
    "library": lambda dice: [dice.library()],
    "name": lambda dice: [dice.library_name()],
    "function": lambda dice: [f"call{dice.library_name()}"],
}


def word(text: str, dice: Dice) -> list[Argument | Payload]:
    """Return what one word of a table stands for."""
    if text in WORDS:
        return WORDS[text](dice)
    if text in SCRIPTS:
        return [SCRIPTS[text]]
    if text.startswith("sha_"):
        code = SCRIPTS[text.removeprefix("sha_")].encode()
        return [hashlib.sha1(code, usedforsecurity=False).hexdigest()]
    return [text]


def fill(line: str, dice: Dice) -> list[Command]:
    """Return the commands of a line with every word drawn."""
    return [
        tuple(argument for text in part.split() for argument in word(text, dice))
        for part in line.split(";")
    ]


class Operations:
    """An endless, repeatable row of operations for a server with these commands.

    `commands` are those of `OPTIONAL_COMMANDS` that the server has. The databases are
    selected as part of the operations; `max_value` bounds the size of a value.
    """

    def __init__(
        self,
        seed: int,
        commands: frozenset[str],
        *,
        databases: tuple[int, ...] = (0, 1, 3, 9, 15),
        field_ttls: FieldTtls = "long",
        float_in_hashes: bool = True,
        max_value: int = 4096,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._dice = Dice(seed, databases, field_ttls, max_value, now)
        self._database: int | None = None
        self._lines: list[tuple[str, str]] = []
        self._weights: list[float] = []
        for (family, weight), lines in TABLES.items():
            if float_in_hashes or "HINCRBYFLOAT" not in lines:
                self._add(family, weight, lines)
        for (command, family, weight), lines in EXTRAS.items():
            unwanted = family == "fields" and field_ttls == "none"
            if command in commands and not unwanted:
                self._add(family, weight, lines)

    def _add(self, family: str, weight: float, lines: str) -> None:
        rows = [line.strip() for line in lines.strip().splitlines()]
        self._lines += [(family, row) for row in rows]
        self._weights += [weight / len(rows)] * len(rows)

    def next(self) -> Operation:
        """Make up the next operation."""
        total = sum(self._weights)
        kinds = [total, TRANSACTION_WEIGHT, BLOCKED_WEIGHT, FLUSH_WEIGHT]
        makers = [self._single, self._transaction, self._blocked, self._flush]
        [make] = self._dice.rng.choices(makers, kinds)
        select = self._select()
        operation = make()
        return Operation((*select, *operation.commands), operation.blocked)

    def _select(self) -> list[Command]:
        if self._database is not None and self._dice.rng.random() > SELECT:
            return []
        self._database = self._dice.rng.choice(self._dice.databases)
        return [("SELECT", self._database)]

    def _draw_line(self) -> list[Command]:
        [(family, line)] = self._dice.rng.choices(self._lines, self._weights)
        self._dice.begin(family)
        return fill(line, self._dice)

    def _single(self) -> Operation:
        return Operation(tuple(self._draw_line()))

    def _transaction(self) -> Operation:
        """Several commands at once, across databases, now and then given up."""
        rng = self._dice.rng
        body: list[Command] = []
        for _ in range(rng.randint(1, 6)):
            if rng.random() < 0.25:
                body.append(("SELECT", rng.choice(self._dice.databases)))
            body += self._draw_line()
        end = "DISCARD" if rng.random() < 0.05 else "EXEC"
        # Which database an EXEC leaves selected is for the next SELECT to settle.
        self._database = None
        return Operation((("MULTI",), *body, (end,)))

    def _blocked(self) -> Operation:
        family, waiting, serving = self._dice.rng.choice(BLOCKED)
        self._dice.begin(family)
        [blocked] = fill(waiting, self._dice)
        # Waits in the database that is selected on the other connection: 0.
        self._database = None
        return Operation((("SELECT", 0), *fill(serving, self._dice)), blocked)

    def _flush(self) -> Operation:
        self._database = None
        mode = self._dice.rng.choice(["ASYNC", "SYNC"])
        highest = max(self._dice.databases)
        return Operation((("SELECT", highest), ("FLUSHDB", mode)))


OPTIONAL_COMMANDS: Final = tuple({command: None for command, *_ in EXTRAS})
