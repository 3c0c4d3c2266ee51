"""Writes that tell where they stand: any state of a server names the write it is after.

It hides how a state is known that nobody has read. Every entry of a ledger is one
transaction that also writes the entry's number; what a server holds is therefore a
function of that number, and can be worked out from the ledger alone. After a failover
or a crash the server may have lost entries: the next one then stands on what it still
has, so that a ledger is a tree, and every branch of it stays checkable.

The other oracle (oracle.py) reads the server between two equal offsets, and covers all
types and their expiries; that needs quiet moments, of which a soak has none.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from plain_client import Argument, Command, PlainClient, Reply, as_bytes, as_list

HEAD: Final = b"ledger:head"
DATABASES: Final = 4

_KEYS: Final = 60  # of each type, in each database
_REMEMBERED: Final = 1000

Value: TypeAlias = "bytes | list[bytes] | set[bytes] | dict[bytes, bytes]"
Place: TypeAlias = tuple[int, bytes]
State: TypeAlias = dict[Place, Value]


@dataclass(frozen=True, slots=True)
class Entry:
    """One transaction: what it stands on, and its commands, each with its database."""

    number: int
    before: int
    writes: tuple[tuple[int, tuple[Argument, ...]], ...]

    def commands(self) -> Iterator[Command]:
        """Yield the transaction as it is sent."""
        yield ("MULTI",)
        for db, words in self.writes:
            yield ("SELECT", db)
            yield words
        yield ("SELECT", 0)
        yield ("SET", HEAD, self.number)
        yield ("EXEC",)


@dataclass(slots=True)
class Ledger:
    """All entries ever begun. Number 0 is the empty server. For one thread at a time.

    An entry that was begun need not have been applied: the next one says what it was
    found to stand on.
    """

    seed: int
    large: int = 40_000
    entries: dict[int, Entry] = field(default_factory=dict)
    _random: random.Random = field(init=False)
    _remembered: dict[int, State] = field(default_factory=lambda: {0: {}})

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def begin(self, before: int) -> Entry:
        """Return a new entry that stands on another one."""
        rng, number = self._random, len(self.entries) + 1
        writes = tuple(
            (rng.randrange(DATABASES), _command(rng, self.large))
            for _ in range(rng.randint(1, 3))
        )
        entry = self.entries[number] = Entry(number, before, writes)
        return entry

    def path(self, number: int, until: int = 0) -> Iterator[Entry]:
        """Yield the entries that a state is made of, the last one first."""
        while number != until and number:
            entry = self.entries[number]
            yield entry
            number = entry.before

    def stands_on(self, number: int, earlier: int) -> bool:
        """Whether a state holds an earlier entry."""
        return earlier == 0 or any(
            entry.number == earlier for entry in self.path(number)
        )

    def state(self, number: int) -> State:
        """Return what a server holds after an entry; the head itself is left out."""
        missing = []
        for entry in self.path(number):
            if entry.number in self._remembered:
                break
            missing.append(entry)
        start = missing[-1].before if missing else number
        state = copy.deepcopy(self._remembered[start])
        for count, entry in enumerate(reversed(missing), 1):
            for db, words in entry.writes:
                _apply(state, db, words)
            if count % _REMEMBERED == 0:
                self._remembered[entry.number] = copy.deepcopy(state)
        return state


def _command(rng: random.Random, large: int) -> tuple[Argument, ...]:
    """Return a random command. A key's first letter is its type."""
    name = rng.randrange(_KEYS)
    item = f"item:{rng.randrange(50)}"
    text = rng.randbytes(rng.choice((4, 20, 100, 1000)))
    choices: Sequence[Callable[[], tuple[Argument, ...]]] = (
        lambda: ("SET", f"s{name}", text),
        lambda: ("SET", f"s{name}", rng.randbytes(rng.randint(1, large))),
        lambda: ("APPEND", f"a{name}", text[:20]),
        lambda: ("INCRBY", f"n{name}", rng.randint(-9, 99)),
        lambda: ("HSET", f"h{name}", item, text[:20], "other", rng.randint(0, 9)),
        lambda: ("HDEL", f"h{name}", item),
        lambda: ("RPUSH", f"l{name}", item, text[:20]),
        lambda: ("LPOP", f"l{name}"),
        lambda: ("SADD", f"t{name}", item, "always"),
        lambda: ("SREM", f"t{name}", item),
        lambda: ("ZADD", f"z{name}", rng.randint(0, 999), item),
        lambda: ("DEL", f"{rng.choice('sanhltz')}{name}"),
    )
    weights = (4, 1, 4, 8, 6, 3, 5, 6, 4, 3, 5, 4)
    return rng.choices(choices, weights)[0]()


def _apply(state: State, db: int, words: Sequence[Argument]) -> None:
    """Do to a state what a command does to a server."""
    verb, *arguments = (
        word if isinstance(word, bytes) else str(word).encode() for word in words
    )
    key, *rest = arguments
    place = (db, key)
    if verb == b"DEL":
        state.pop(place, None)
        return
    value = _EFFECTS[verb](state.get(place), rest)
    if value:
        state[place] = value
    else:
        # What holds nothing is not there; no string of ours is empty.
        state.pop(place, None)


def _string(value: Value | None) -> bytes:
    return value if isinstance(value, bytes) else b""


def _list(value: Value | None) -> list[bytes]:
    return value if isinstance(value, list) else []


def _set(value: Value | None) -> set[bytes]:
    return value if isinstance(value, set) else set()


def _dict(value: Value | None) -> dict[bytes, bytes]:
    return value if isinstance(value, dict) else {}


# What a command makes of a value and its arguments; a sorted set is a dict of scores.
_EFFECTS: Final[Mapping[bytes, Callable[[Value | None, list[bytes]], Value]]] = {
    b"SET": lambda value, new: new[0],
    b"APPEND": lambda value, more: _string(value) + more[0],
    b"INCRBY": lambda value, by: b"%d" % (int(_string(value) or b"0") + int(by[0])),
    b"HSET": lambda value, pairs: (
        _dict(value) | dict(zip(pairs[::2], pairs[1::2], strict=True))
    ),
    b"HDEL": lambda value, names: {
        name: it for name, it in _dict(value).items() if name not in names
    },
    b"RPUSH": lambda value, more: [*_list(value), *more],
    b"LPOP": lambda value, _: _list(value)[1:],
    b"SADD": lambda value, more: _set(value) | set(more),
    b"SREM": lambda value, gone: _set(value) - set(gone),
    b"ZADD": lambda value, scored: _dict(value) | {scored[1]: scored[0]},
}

_READ: Final[Mapping[bytes, tuple[Argument, ...]]] = {
    b"string": ("GET",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"hash": ("HGETALL",),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
}


def read_head(plain: PlainClient) -> int:
    """Return the last entry that a server has; its databases stand at 0 afterwards."""
    plain.ask("SELECT", 0)
    head = plain.ask("GET", HEAD)
    return 0 if head is None else int(as_bytes(head))


def read_state(plain: PlainClient) -> tuple[int, State]:
    """Return what a server holds: the last entry, and everything else."""
    state: State = {}
    for db in range(DATABASES):
        plain.ask("SELECT", db)
        keys = [as_bytes(key) for key in as_list(plain.ask("KEYS", "*"))]
        keys = [key for key in keys if key != HEAD]
        types = plain.exchange([("TYPE", key) for key in keys])
        reads: list[Command] = []
        for key, kind in zip(keys, types, strict=True):
            verb, *arguments = _READ[as_bytes(kind)]
            reads.append((verb, key, *arguments))
        for key, kind, reply in zip(keys, types, plain.exchange(reads), strict=True):
            state[db, key] = _value(as_bytes(kind), reply)
    return read_head(plain), state


def _value(kind: bytes, reply: Reply) -> Value:
    if kind == b"string":
        return as_bytes(reply)
    items = [as_bytes(item) for item in as_list(reply)]
    if kind == b"list":
        return items
    if kind == b"set":
        return set(items)
    return dict(zip(items[::2], items[1::2], strict=True))


def differences(expected: State, actual: State, most: int = 5) -> list[str]:
    """Return in words what is not the same; an empty list if nothing."""
    wrong = sorted(
        place
        for place in expected.keys() | actual.keys()
        if expected.get(place) != actual.get(place)
    )
    shown = [
        f"db {db} {key.decode()}: {_brief(actual.get((db, key)))} instead of "
        f"{_brief(expected.get((db, key)))}"
        for db, key in wrong[:most]
    ]
    return [*shown, f"and {len(wrong) - most} more"] if len(wrong) > most else shown


def _brief(value: Value | None) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) < 60 else f"{text[:50]}… ({len(value or ())})"
