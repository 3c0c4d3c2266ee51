"""How an RDB lays out values, and how to walk over one unread.

A value is passed on as it stands, so all that is ever asked of it here is where it
ends. A walk is a generator: when bytes run out it leaves the position at the first byte
that it has not dealt with, yields, and goes on from there with other data. It never
returns to the start of the value, which would make a large value cost the square of its
size; and what lies before the position is free to go.

Decided against: a table-driven interpreter of the layouts (slower, and no shorter), and
a second, simpler set of functions for complete values (two grammars drift apart). The
layouts follow rdb.c:rdbLoadObject of Redis 7.4 and Valkey 9.1, and are checked against
servers. Types 26 to 28 are of Redis 8.6 and later, which the tests have no server of;
files of a Redis 8.6 with type 26 were read once, as were 22 and 23 of 7.4-rc1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Final, TypeAlias, TypeVar

from kvtape.tape.rdb.input import Input
from kvtape.tape.rdb.strings import (
    STEPS,
    UnknownError,
    length_end,
    long_string_end,
    read_int64,
    read_length,
    string_end,
)

Read = TypeVar("Read")

Walk = Generator[None, None, int | None]
Next: TypeAlias = Generator[None, None, Read]

# Given data and the position of a thing, the position just past it.
EndOf = Callable[[bytes, int], int]

# Moves the position past one value.
Walker = Callable[[Input], Walk]


def walk(source: Input, walker: Walker) -> Walk:
    """Move the source past the value of that walker, yielding whenever data run out.

    Returns the earliest time in ms at which a field of a hash expires, if any.
    """
    field_expire_ms = yield from walker(source)
    while source.position > len(source.data):
        yield
    return field_expire_ms


def next_of(
    source: Input, read: Callable[[bytes, int], tuple[Read, int]]
) -> Next[Read]:
    """Pass a thing that is read whole, such as a length, and return it."""
    while True:
        try:
            found, source.position = read(source.data, source.position)
        except IndexError:
            yield
        else:
            return found


def next_length(source: Input) -> Next[int]:
    """Pass a length, and return it."""
    return next_of(source, read_length)


def next_int64(source: Input) -> Next[int]:
    """Pass an integer of 8 bytes, and return it."""
    return next_of(source, read_int64)


def pass_strings(source: Input, count: int, tail: int = 0) -> Walk:
    """Pass count strings, each followed by tail bytes: the loop that must be fast."""
    data, position = source.data, source.position
    for _ in range(count):
        while True:
            try:
                step = STEPS[data[position]]
                end = position + step if step else long_string_end(data, position)
                position = end + tail
                break
            except IndexError:
                source.position = position
                yield
                data, position = source.data, source.position
    source.position = position
    return None


def _records(source: Input, count: int, shape: tuple[EndOf, ...]) -> Walk:
    """Pass count records, each of which consists of the things of shape."""
    data, position = source.data, source.position
    for _ in range(count):
        for end_of in shape:
            while True:
                try:
                    position = end_of(data, position)
                    break
                except IndexError:
                    source.position = position
                    yield
                    data, position = source.data, source.position
    source.position = position
    return None


def string(source: Input) -> Walk:
    """Pass a value that is one string: also every ziplist, listpack and intset."""
    return (yield from pass_strings(source, 1))


def _table(source: Input, strings: int = 1, tail: int = 0) -> Walk:
    count = yield from next_length(source)
    return (yield from pass_strings(source, count * strings, tail))


def _list(source: Input, shape: tuple[EndOf, ...]) -> Walk:
    count = yield from next_length(source)
    return (yield from _records(source, count, shape))


def _fixed(size: int) -> EndOf:
    return lambda _, position: position + size


def _text_score_end(data: bytes, position: int) -> int:
    size = data[position]
    return position + 1 + (size if size < 253 else 0)  # Above: nan, inf, -inf.


STREAM_ID = 16
ACTIVE_SINCE = 3  # The stream version that added a consumer's active time.


def _stream(source: Input, version: int) -> Walk:
    yield from _list(source, (string_end, string_end))
    yield from _records(source, 3 if version == 1 else 8, (length_end,))
    for _ in range((yield from next_length(source))):
        yield from _group(source, version)
    if version >= 4:
        yield from _producers(source)
    return None


def _group(source: Input, version: int) -> Walk:
    yield from string(source)
    yield from _records(source, 2 if version == 1 else 3, (length_end,))
    yield from _list(source, (_fixed(STREAM_ID + 8), length_end))
    for _ in range((yield from next_length(source))):
        yield from string(source)
        source.position += 16 if version >= ACTIVE_SINCE else 8
        yield from _ids(source)
    if version >= 5:
        yield from _ids(source)  # of entries that nobody has to acknowledge now
    return None


def _ids(source: Input) -> Walk:
    count = yield from next_length(source)
    source.position += STREAM_ID * count
    return None


def _producers(source: Input) -> Walk:
    yield from _records(source, 2, (length_end,))
    for _ in range((yield from next_length(source))):
        yield from string(source)
        yield from _list(source, (string_end, length_end, length_end))
    return (yield from _records(source, 2, (length_end,)))


MODULE_ITEMS: Final[Mapping[int, EndOf]] = {
    1: length_end,
    2: length_end,
    3: _fixed(4),
    4: _fixed(8),
    5: string_end,
}


def module(source: Input) -> Walk:
    """Pass a module's id and its items: a value, or the payload of MODULE_AUX."""
    yield from next_length(source)
    return (yield from _module_items(source))


def key_metadata(source: Input) -> Walk:
    """Pass the payload of KEY_META of Redis: by class, a 4-byte name and items."""
    for _ in range((yield from next_length(source))):
        source.position += 4
        yield from _module_items(source)
    return None


def _module_items(source: Input) -> Walk:
    while kind := (yield from next_length(source)):
        end_of = MODULE_ITEMS.get(kind)
        if end_of is None:
            raise UnknownError(source.position - 1, f"unknown item {kind} of a module")
        yield from _records(source, 1, (end_of,))
    return None


ARRAY_ITEMS: Final[Mapping[int, EndOf]] = {
    0: string_end,
    1: _fixed(8),
    2: _fixed(8),
    3: string_end,
}


def _array(source: Input) -> Walk:
    count = yield from next_length(source)
    if (yield from next_length(source)):  # There is a place for the next insertion.
        yield from next_length(source)
    for _ in range(count):
        yield from next_length(source)
        kind = yield from next_length(source)
        end_of = ARRAY_ITEMS.get(kind)
        if end_of is None:
            raise UnknownError(source.position - 1, f"unknown item {kind} of an array")
        yield from _records(source, 1, (end_of,))
    return None


def _hash_after_minimum(source: Input) -> Walk:
    field_expire_ms = yield from next_int64(source)
    yield from _list(source, (length_end, string_end, string_end))
    return field_expire_ms


def _listpack_after_minimum(source: Input) -> Walk:
    field_expire_ms = yield from next_int64(source)
    yield from string(source)
    # rdb.c:rdbSaveObject (7.4) writes 0 when it knows of no expiry any more.
    return field_expire_ms or None


def _hash_of_valkey(source: Input) -> Walk:
    lowest: int | None = None

    def expiry_end(data: bytes, position: int) -> int:
        nonlocal lowest
        expiry, end = read_int64(data, position)
        if expiry >= 0 and (lowest is None or expiry < lowest):  # -1: never.
            lowest = expiry
        return end

    yield from _list(source, (string_end, string_end, expiry_end))
    return lowest


def _hash_of_candidate(source: Input) -> Walk:
    lowest: int | None = None

    def expiry_end(data: bytes, position: int) -> int:
        nonlocal lowest
        expiry, end = read_length(data, position)
        if expiry and (lowest is None or expiry < lowest):  # 0: never.
            lowest = expiry
        return end

    yield from _list(source, (expiry_end, string_end, string_end))
    return lowest


# Up to 21 a number means the same in every version and in both families. 6 is left out:
# values of the first modules cannot be passed over without the module itself.
_SHARED: Final[Mapping[int, Walker]] = {
    **dict.fromkeys((0, 9, 10, 11, 12, 13, 16, 17, 20), string),
    1: _table,
    2: _table,
    3: partial(_list, shape=(string_end, _text_score_end)),
    4: partial(_table, strings=2),
    5: partial(_table, tail=8),
    7: module,
    14: _table,
    15: partial(_stream, version=1),
    18: partial(_list, shape=(length_end, string_end)),
    19: partial(_stream, version=2),
    21: partial(_stream, version=3),
}

# From 22 on the families number on their own: type by type, the first RDB version.
# 22 and 23 of Redis are of the release candidates of 7.4; in 23 the times are within
# the listpack, unread. Redis gave numbers from 29 on new meanings in one and the same
# version, so they are not known here.
_OWN: Final[Mapping[bytes, Mapping[int, tuple[int, Walker]]]] = {
    b"REDIS": {
        22: (12, _hash_of_candidate),
        23: (12, string),
        24: (12, _hash_after_minimum),
        25: (12, _listpack_after_minimum),
        26: (13, partial(_stream, version=4)),
        27: (14, partial(_stream, version=5)),
        28: (14, _array),
    },
    b"VALKEY": {22: (80, _hash_of_valkey)},
}


def walkers(magic: bytes, version: int) -> dict[int, Walker]:
    """Return, for each value type of such an RDB, what walks over its values."""
    own = _OWN[magic].items()
    return {**_SHARED, **{t: walker for t, (since, walker) in own if version >= since}}


# What TYPE says of a value type; both families agree where they share a number.
_NAMES: Final[Mapping[int, str]] = {
    0: "string",
    **dict.fromkeys((1, 10, 14, 18), "list"),
    **dict.fromkeys((2, 11, 20), "set"),
    **dict.fromkeys((3, 5, 12, 17), "zset"),
    **dict.fromkeys((4, 9, 13, 16, 22, 23, 24, 25), "hash"),
    **dict.fromkeys((15, 19, 21, 26, 27), "stream"),
    7: "module value",
    28: "array",
}


def type_name(number: int) -> str:
    """Return what people call a value type that walkers() has."""
    return _NAMES[number]
