"""RDB files of real servers with one of each that they write, and how they are read."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import redis

from kvtape.tape.rdb import NEED_DATA, Event, Key, RdbError, RdbReader
from servers import Server

Outcome = tuple[list[Event], RdbReader, str | None]

MAGIC_AND_VERSION = {
    "redis-6.2": (b"REDIS", 9),
    "redis-7.0": (b"REDIS", 10),
    "redis-8.0": (b"REDIS", 12),
    "valkey-8.0": (b"REDIS", 11),
    "valkey-8.1": (b"REDIS", 11),
    "valkey-9.1": (b"VALKEY", 80),
}

# Every type that a release writes for its own data types in each of their encodings.
TYPES_OF_6_2 = {0, 2, 4, 5, 11, 12, 13, 14, 15}
TYPES_OF_7_0 = {0, 2, 4, 5, 11, 16, 17, 18, 19}
TYPES_OF_7_2 = TYPES_OF_7_0 - {19} | {20, 21}
TYPES = {
    "redis-6.2": TYPES_OF_6_2,
    "redis-7.0": TYPES_OF_7_0,
    "redis-8.0": TYPES_OF_7_2 | {24, 25},
    "valkey-8.0": TYPES_OF_7_2,
    "valkey-8.1": TYPES_OF_7_2,
    "valkey-9.1": TYPES_OF_7_2 | {22},
}
HAVE_FIELD_EXPIRIES = {"redis-8.0", "valkey-9.1"}

# In the year 2100, so that nothing expires during a test.
LATER_MS = 4_102_444_800_000

NOISE = random.Random(7).randbytes(100_000)


def commands(text: str) -> Iterator[list[str]]:
    return (line.split() for line in text.strip().splitlines())


SMALL = f"""
    SET text hello
    SET 12345 1
    SET -7 -200
    SET int32 70000
    SET int64 12345678901
    SET expires v PXAT {LATER_MS}
    PFADD sparse a b c
    RPUSH list a b 1 70000
    SADD integers 1 2 70000
    SADD words a b c
    ZADD scores 1 a 2.5 b inf c -inf d
    HSET hash field value n 7
    XADD stream 1-1 field value
    XADD stream 2-1 field value other 7
    XADD stream 3-1 another value
    XGROUP CREATE stream group 0
    XGROUP CREATE stream idle $
    XGROUP CREATECONSUMER stream group lazy
    XREADGROUP GROUP group busy COUNT 2 STREAMS stream >
    XDEL stream 2-1
    XGROUP CREATE empty group 0 MKSTREAM
    SELECT 1
    SET one 1
    SELECT 15
    SET fifteen 15
    SELECT 0
"""

FIELDS = f"""
    HSET fields a 1 b 2 c 3
    HPEXPIREAT fields {LATER_MS + 9000} FIELDS 1 a
    HPEXPIREAT fields {LATER_MS + 5000} FIELDS 1 b
    HSET persistent a 1 b 2
    HPEXPIREAT persistent {LATER_MS} FIELDS 1 a
    HPERSIST persistent FIELDS 1 a
    HPEXPIREAT table {LATER_MS + 3007} FIELDS 2 f1 f2
    HPEXPIREAT table {LATER_MS + 3000} FIELDS 1 f3
    HPEXPIREAT table {LATER_MS} FIELDS 1 f4
    HPERSIST table FIELDS 1 f4
"""

LIBRARY = "#!lua name=lib\nredis.register_function('f', function() return 1 end)"
LONG_LIBRARY = LIBRARY.replace("lib", "long").replace("'f'", "'g'") + " -- and on" * 200


def ask(client: redis.Redis, *command: Any) -> Any:  # noqa: ANN401
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def fill_small(client: redis.Redis, name: str) -> None:
    """Write one of each, few enough for a file of some kilobytes."""
    for command in commands(SMALL):
        if not (name == "redis-6.2" and "PXAT" in command):
            ask(client, *command)
    ask(client, "SET", b"\x00\xff binary", b"")
    ask(client, "SET", "repeated " * 9, "repeated " * 20)
    if name == "redis-6.2":
        ask(client, "SET", "expires", "v")
        ask(client, "PEXPIREAT", "expires", LATER_MS)
    else:
        ask(client, "FUNCTION", "LOAD", LIBRARY)


# Large encodings from a few elements on, so that a file of a few kilobytes has all.
SHRUNK = """
    CONFIG SET hash-max-ziplist-entries 3
    CONFIG SET zset-max-ziplist-entries 4
    CONFIG SET set-max-intset-entries 3
    CONFIG SET list-max-ziplist-size 2
    CONFIG SET stream-node-max-entries 2
"""


def fill_compact(client: redis.Redis, name: str) -> None:
    """Write one of each in every encoding, for a file of some kilobytes."""
    for command in commands(SHRUNK):
        ask(client, *command)
    if name not in ("redis-6.2", "redis-7.0"):
        ask(client, "CONFIG", "SET", "set-max-listpack-entries", 3)
    fill_small(client, name)
    ask(client, "SADD", "many integers", *range(6))
    ask(client, "SADD", "many words", "a", "b", "c", "d", 7)
    ask(client, "ZADD", "many scores", *(i // 2 for i in range(12)))
    for table in ("table", "other table"):
        ask(client, "HSET", table, *(f"f{i // 2}" for i in range(12)))
    ask(client, "RPUSH", "items", *range(9), "z" * 50)
    if name != "redis-6.2":
        ask(client, "DEBUG", "QUICKLIST-PACKED-THRESHOLD", "100b")
        ask(client, "RPUSH", "plain", "a", "z" * 120, "b")
    if name in HAVE_FIELD_EXPIRIES:
        for command in commands(FIELDS):
            ask(client, *command)
    for i, key in enumerate(("list", "words", "hash", "table", "stream", "scores")):
        ask(client, "PEXPIREAT", key, LATER_MS + i)


def fill(client: redis.Redis, name: str) -> None:
    """Write one of each, small and large."""
    fill_small(client, name)
    ask(client, "SET", "noise", NOISE)
    ask(client, "SET", "zeros", bytes(5_000_000))
    ask(client, "SET", NOISE[:20_000], "a long name")
    ask(client, "PFADD", "dense", *range(20_000))
    ask(client, "RPUSH", "items", *(f"item {i}" * 10 for i in range(900)))
    ask(client, "RPUSH", "plain", "a", NOISE[:20_000], "b", NOISE, "z" * 9000)
    ask(client, "SADD", "many integers", *range(3000))
    ask(client, "SADD", "many words", *(f"word {i}" for i in range(900)), "7")
    pairs = [item for i in range(900) for item in (i * 1.1, f"member {i}")]
    ask(client, "ZADD", "many scores", *pairs)
    pairs = [item for i in range(900) for item in (f"f{i}", i * 1000)]
    ask(client, "HSET", "table", *pairs)
    ask(client, "HSET", "noisy", "field", NOISE, NOISE[:500], "value")
    for i in range(1, 500):
        ask(client, "XADD", "log", f"{i}-0", "field", f"value {i}")
    for group in ("first", "second"):
        ask(client, "XGROUP", "CREATE", "log", group, "0")
        for reader in ("reader", "other"):
            arguments = ("GROUP", group, reader, "COUNT", 150, "STREAMS", "log", ">")
            ask(client, "XREADGROUP", *arguments)
    ask(client, "XTRIM", "log", "MAXLEN", "200")
    if name != "redis-6.2":
        ask(client, "FUNCTION", "LOAD", LONG_LIBRARY)
    if name in HAVE_FIELD_EXPIRIES:
        for command in commands(FIELDS):
            ask(client, *command)


def saved(server: Server) -> bytes:
    ask(server.client(), "SAVE")
    return (server.folder / "dump.rdb").read_bytes()


def read(pieces: Iterable[bytes], *, values: bool = True) -> list[Event]:
    """Return the events of a complete RDB."""
    reader = RdbReader(values=values)
    events: list[Event] = []
    for piece in pieces:
        reader.receive_data(piece)
        events += drain(reader)
    reader.close()
    return events


def outcome(pieces: Iterable[bytes], *, values: bool = True) -> Outcome:
    """Return the events, what read them, and the error if one comes; see RdbError."""
    reader = RdbReader(values=values)
    events: list[Event] = []
    try:
        for piece in pieces:
            reader.receive_data(piece)
            events += drain(reader)
        reader.close()
    except RdbError as error:
        return events, reader, f"{type(error).__name__} {error.offset} {error}"
    return events, reader, None


def drain(reader: RdbReader) -> Iterator[Event]:
    while (event := reader.next_event()) is not NEED_DATA:
        yield event


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def keys_of(events: list[Event]) -> dict[tuple[int, bytes], Key]:
    keys = {(e.db, e.key): e for e in events if isinstance(e, Key)}
    assert len(keys) == sum(isinstance(event, Key) for event in events)
    return keys
