"""The oracle: what a server holds, read with plain commands, and how two such differ.

It hides how each type is read and what "the same state" means. A `Fingerprint` is the
whole state in a canonical form: no DUMP and no DEBUG DIGEST, whose bytes depend on
encodings, but values, expiries, fields' expiries, streams with their groups and pending
entries, and functions. It is an independent witness: nothing of kvtape is imported.

Not state, and not read: encodings, idle times, consumers' seen times, LRU and LFU,
scripts that were loaded. (When a pending entry was delivered is read: it is streamed
exactly, seen on all six releases.)

Time: a server hides a key from its expiry on, by its own clock, and so does a copy that
is read a second later. A reading therefore carries the window of the server's clock in
which it was made, and what a side lacks because its expiry lies before the end of its
window is not a difference. It is listed as explained, so that a test can also bound
how much went unseen.

Reading can write: a primary deletes an expired key that is touched, and streams that.
`stable_fingerprint` reads again until the offset stood still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import redis

from plain_client import (
    Command,
    PlainClient,
    Reply,
    as_bytes,
    as_int,
    as_list,
    as_pairs,
)

BATCH: Final = 200
# What servers answer about the expiry of a key or field that is not there.
GONE: Final = -2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that a consumer has not acknowledged; `delivered` is when, in ms."""

    consumer: bytes
    deliveries: int
    delivered: int


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group, with its pending entries by id."""

    last_delivered: bytes
    entries_read: int | None
    pending: dict[bytes, Pending]
    consumers: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream; what releases before 7.0 do not tell is None."""

    entries: tuple[tuple[bytes, tuple[bytes, ...]], ...]
    last_id: bytes
    max_deleted_id: bytes | None
    entries_added: int | None
    groups: dict[bytes, Group]


@dataclass(frozen=True, slots=True)
class Hash:
    """Fields with their values, and the expiry in ms of those that have one."""

    values: dict[bytes, bytes]
    expiries: dict[bytes, int]


Value: TypeAlias = (
    bytes | tuple[bytes, ...] | frozenset[bytes] | dict[bytes, float] | Hash | Stream
)


@dataclass(frozen=True, slots=True)
class Key:
    """What a key holds and, in ms, when it expires."""

    kind: str
    value: Value
    expiry: int | None


@dataclass(frozen=True, slots=True)
class Release:
    """Which server this is: "redis" or "valkey", and its version."""

    family: str
    version: tuple[int, ...]

    @property
    def before_7(self) -> bool:
        """Whether it is Redis 6: relative expiries in the stream, no PEXPIRETIME."""
        return self.family == "redis" and self.version < (7,)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The state of all databases, as read between `start` and `end`.

    Both are milliseconds of the server's own clock. Functions map a library's name to
    its engine and code.
    """

    release: Release
    is_primary: bool
    start: int
    end: int
    keys: dict[tuple[int, bytes], Key]
    functions: dict[bytes, tuple[bytes, bytes]]


def fingerprint(client: redis.Redis) -> Fingerprint:
    """Read the state of all databases; nobody may write to the server meanwhile."""
    with PlainClient(client) as plain:
        start = server_time(plain)
        release = read_release(plain)
        is_primary = plain.info("replication")["role"] == "master"
        fields_expire = bool(plain.knows("HPEXPIRETIME"))
        databases = [int(name.removeprefix("db")) for name in plain.info("keyspace")]
        keys = {
            (database, name): key
            for database in databases
            for name, key in read_database(plain, database, release, fields_expire)
        }
        functions = {} if release.before_7 else read_functions(plain)
        end = server_time(plain)
        return Fingerprint(release, is_primary, start, end, keys, functions)


def stable_fingerprint(
    client: redis.Redis, *, patience: float = 20.0
) -> tuple[int, Fingerprint]:
    """Read the state at one offset of the replication stream, and return both.

    The offset moves while expired keys are deleted, by this reading too, and with every
    PING to replicas, so several tries are normal; after `patience` seconds TimeoutError
    is raised. The server needs a replica (or a recorder): without one nothing counts.
    """
    deadline = time.monotonic() + patience
    with PlainClient(client) as plain:
        while True:
            before = replication_offset(plain)
            state = fingerprint(client)
            if replication_offset(plain) == before:
                return before, state
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the offset did not stand still for {patience:.0f} s"
                )


def wait_for_offset(
    client: redis.Redis, offset: int, *, patience: float = 20.0
) -> None:
    """Wait until a replica has applied the stream up to this offset."""
    deadline = time.monotonic() + patience
    with PlainClient(client) as plain:
        while (reached := replication_offset(plain)) < offset:
            if time.monotonic() > deadline:
                raise TimeoutError(f"it stands at offset {reached}, not at {offset}")
            time.sleep(0.01)


def replication_offset(plain: PlainClient) -> int:
    """Return the offset up to which the server has written or applied the stream."""
    return int(plain.info("replication")["master_repl_offset"])


def server_time(plain: PlainClient) -> int:
    """Return the server's clock in ms."""
    return milliseconds(plain.ask("TIME"))


def milliseconds(reply: Reply) -> int:
    """Return a reply to TIME in ms."""
    seconds, microseconds = (int(as_bytes(part)) for part in as_list(reply))
    return seconds * 1000 + microseconds // 1000


def read_release(plain: PlainClient) -> Release:
    """Ask the server what it is."""
    info = plain.info("server")
    family = "valkey" if "valkey_version" in info else "redis"
    version = info[f"{family}_version"].split(".")
    return Release(family, tuple(int(part) for part in version))


def read_functions(plain: PlainClient) -> dict[bytes, tuple[bytes, bytes]]:
    """Return the libraries by name, with engine and code."""
    libraries: dict[bytes, tuple[bytes, bytes]] = {}
    for reply in as_list(plain.ask("FUNCTION", "LIST", "WITHCODE")):
        facts = named(reply)
        name = as_bytes(facts[b"library_name"])
        libraries[name] = (
            as_bytes(facts[b"engine"]),
            as_bytes(facts[b"library_code"]),
        )
    return libraries


def named(reply: Reply) -> dict[bytes, Reply]:
    """Return a flat array of names and values as a dictionary."""
    return {as_bytes(name): value for name, value in as_pairs(reply)}


def read_database(
    plain: PlainClient, database: int, release: Release, fields_expire: bool
) -> Iterator[tuple[bytes, Key]]:
    """Yield the keys of a database that are visible, each once."""
    plain.ask("SELECT", database)
    names = sorted(set(scan(plain)))
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        expiries = read_expiries(plain, batch, release)
        values = dict(read_values(plain, batch))
        hashes = {name: it for name, (_, it) in values.items() if isinstance(it, Hash)}
        if fields_expire:
            read_field_expiries(plain, hashes)
        for name, (kind, value) in values.items():
            # A hash whose fields have all lapsed is still listed for a while.
            if expiries[name] != GONE and value != Hash({}, {}):
                yield name, Key(kind, value, expiries[name])


def scan(plain: PlainClient) -> Iterator[bytes]:
    """Yield the names in the selected database, some of them repeatedly."""
    cursor = b""
    while cursor != b"0":
        reply = as_list(plain.ask("SCAN", cursor or 0, "COUNT", 1000))
        cursor = as_bytes(reply[0])
        yield from (as_bytes(name) for name in as_list(reply[1]))


def read_expiries(
    plain: PlainClient, names: Sequence[bytes], release: Release
) -> dict[bytes, int | None]:
    """Return the absolute expiry of each key in ms, None or GONE."""
    if release.before_7:
        # The clock is read beside each remaining time, so the sum is exact to 1 ms.
        commands = [part for name in names for part in (("PTTL", name), ("TIME",))]
        pairs = as_pairs(plain.exchange(commands))
        left = [as_int(reply) for reply, _ in pairs]
        clock = [milliseconds(reply) for _, reply in pairs]
        moments = [
            ttl if ttl < 0 else now + ttl for ttl, now in zip(left, clock, strict=True)
        ]
    else:
        replies = plain.exchange([("PEXPIRETIME", name) for name in names])
        moments = [as_int(reply) for reply in replies]
    return {
        name: None if moment == -1 else moment
        for name, moment in zip(names, moments, strict=True)
    }


def read_values(
    plain: PlainClient, names: Sequence[bytes]
) -> Iterator[tuple[bytes, tuple[str, Value]]]:
    """Yield name, type and value of the keys that are still there."""
    types = plain.exchange([("TYPE", name) for name in names])
    kinds = {
        name: as_bytes(kind).decode() for name, kind in zip(names, types, strict=True)
    }
    unknown = set(kinds.values()) - READERS.keys() - {"none"}
    if unknown:
        raise NotImplementedError(f"the oracle cannot read {sorted(unknown)}")
    present = [name for name in names if kinds[name] != "none"]
    replies = plain.exchange([READERS[kinds[name]][0](name) for name in present])
    for name, reply in zip(present, replies, strict=True):
        if isinstance(reply, Exception) and "no such key" not in str(reply):
            raise reply
        # What has gone since its type was read is an error, nothing, or empty.
        if not isinstance(reply, Exception) and reply is not None and reply != []:
            yield name, (kinds[name], READERS[kinds[name]][1](reply))


def read_field_expiries(plain: PlainClient, hashes: dict[bytes, Hash]) -> None:
    """Add the fields' expiries; drop fields that have lapsed since they were read."""
    replies = plain.exchange(
        ("HPEXPIRETIME", name, "FIELDS", len(it.values), *it.values)
        for name, it in hashes.items()
    )
    for it, reply in zip(hashes.values(), replies, strict=True):
        moments = [as_int(moment) for moment in as_list(reply)]
        for name, moment in zip(list(it.values), moments, strict=True):
            if moment == GONE:
                del it.values[name]
            elif moment >= 0:
                it.expiries[name] = moment


def parse_hash(reply: Reply) -> Hash:
    """Return a reply to HGETALL; the fields' expiries are read later."""
    pairs = as_pairs(reply)
    return Hash({as_bytes(name): as_bytes(value) for name, value in pairs}, {})


def parse_stream(reply: Reply) -> Stream:
    """Return a reply to XINFO STREAM FULL."""
    facts = named(reply)
    entries = tuple(
        (as_bytes(entry_id), tuple(as_bytes(part) for part in as_list(parts)))
        for entry_id, parts in map(as_list, as_list(facts[b"entries"]))
    )
    groups = [named(group) for group in as_list(facts[b"groups"])]
    return Stream(
        entries,
        as_bytes(facts[b"last-generated-id"]),
        optional(as_bytes, facts.get(b"max-deleted-entry-id")),
        optional(as_int, facts.get(b"entries-added")),
        {as_bytes(group[b"name"]): parse_group(group) for group in groups},
    )


def parse_group(facts: dict[bytes, Reply]) -> Group:
    """Return one group of XINFO STREAM FULL."""
    pending = {
        as_bytes(entry_id): Pending(as_bytes(name), as_int(count), as_int(delivered))
        for entry_id, name, delivered, count in map(as_list, as_list(facts[b"pending"]))
    }
    consumers = [named(consumer) for consumer in as_list(facts[b"consumers"])]
    return Group(
        as_bytes(facts[b"last-delivered-id"]),
        optional(as_int, facts.get(b"entries-read")),
        pending,
        frozenset(as_bytes(consumer[b"name"]) for consumer in consumers),
    )


def optional(parse: Callable[[Reply], T], reply: Reply) -> T | None:
    """Return None for None, anything else parsed."""
    return None if reply is None else parse(reply)


READERS: Final[
    dict[str, tuple[Callable[[bytes], Command], Callable[[Reply], Value]]]
] = {
    "string": (lambda name: ("GET", name), as_bytes),
    "list": (
        lambda name: ("LRANGE", name, 0, -1),
        lambda reply: tuple(map(as_bytes, as_list(reply))),
    ),
    "set": (
        lambda name: ("SMEMBERS", name),
        lambda reply: frozenset(map(as_bytes, as_list(reply))),
    ),
    "zset": (
        lambda name: ("ZRANGE", name, 0, -1, "WITHSCORES"),
        lambda reply: {
            as_bytes(member): float(as_bytes(score))
            for member, score in as_pairs(reply)
        },
    ),
    "hash": (lambda name: ("HGETALL", name), parse_hash),
    "stream": (
        lambda name: ("XINFO", "STREAM", name, "FULL", "COUNT", 0),
        parse_stream,
    ),
}
