"""What a value is, whatever encoding it is in, to compare it with another.

A server keeps equal sets in a listpack, an intset or a table, whose order differs from
process to process, so the bytes of an RDB or of DUMP say that two values are equal, but
never that they differ. Here each kind of value has one form: members and fields are in
order, numbers are digits, and deleted entries of streams are gone.

Not state, and left out: when consumers were seen. A lean form also leaves out what
Redis 6.2 does not know of streams, to compare one of its with a later server's.

A field of a hash whose time has passed is left out too: whoever compares says when. A
value of which nothing is known here (a module's, a newer release's) is compared as it
stands, and is_known tells so. Nothing that is written anywhere is made from this form.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from kvtape.tape.rdb.input import ShortError
from kvtape.tape.rdb.packs import intset, listpack, ziplist
from kvtape.tape.rdb.strings import (
    UnreadableError,
    read_int64,
    read_length,
    read_string,
    take,
)
from kvtape.tape.rdb.values import ACTIVE_SINCE, STREAM_ID

# When a field expires that does not.
_NEVER = -1

_DOUBLE = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class Canonical:
    """A value's digest; is_known unless it is that of the bytes as they stand."""

    digest: bytes
    is_known: bool = True


def canonical(
    type_: int, value: bytes, *, at: int, is_lean: bool = False
) -> Canonical | None:
    """Return what stands for a value at a time (ms); None if nothing of it is left.

    type_ and value are as in an RDB or in DUMP. Valkey and Redis may be compared: 22 is
    taken for Valkey's, and the release candidate of Redis that had one, too, is not
    known.
    """
    try:
        parts = _parts(_Bytes(value), type_, at, is_lean=is_lean)
    except (ShortError, LookupError, UnreadableError, ValueError):
        parts = None
    if parts is None:
        whole = hashlib.blake2b(b"%d " % type_ + value, digest_size=_SIZE)
        return Canonical(whole.digest(), is_known=False)
    if not parts:
        return None
    digest = hashlib.blake2b(digest_size=_SIZE)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return Canonical(digest.digest())


_SIZE = 20


def _parts(source: _Bytes, type_: int, at: int, *, is_lean: bool) -> list[bytes] | None:
    """Return the kind of a value and what it consists of; None if it is not known."""
    if type_ in _STREAMS:
        return [b"stream", *_stream(source, _STREAMS[type_], is_lean=is_lean)]
    if type_ in _HASHES:
        fields = sorted(
            (name, text, expiry)
            for name, text, expiry in _HASHES[type_](source)
            if not _NEVER < expiry <= at
        )
        flat = chain.from_iterable((n, t, b"%d" % when) for n, t, when in fields)
        return [b"hash", *flat] if fields else []
    if type_ not in _OTHERS:
        return None
    kind, read = _OTHERS[type_]
    found = read(source)
    return [kind, *(found if kind in (b"string", b"list") else sorted(found))]


class _Bytes:
    """A value, read from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def string(self) -> bytes:
        text, self._at = read_string(self._data, self._at)
        return text

    def length(self) -> int:
        number, self._at = read_length(self._data, self._at)
        return number

    def int64(self) -> int:
        number, self._at = read_int64(self._data, self._at)
        return number

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        return take(self._data, start, self._at)

    def strings(self) -> Iterator[bytes]:
        return (self.string() for _ in range(self.length()))


# Strings, lists and sets.


def _string(source: _Bytes) -> Iterable[bytes]:
    return [source.string()]


def _ziplists(source: _Bytes) -> Iterable[bytes]:
    return chain.from_iterable(map(ziplist, source.strings()))


_PLAIN_NODE = 1


def _nodes(source: _Bytes) -> Iterator[bytes]:
    for _ in range(source.length()):
        container, node = source.length(), source.string()
        if container == _PLAIN_NODE:
            yield node
        else:
            yield from listpack(node)


# Sorted sets: the members, each with its score behind it.


def _scored(pairs: Iterable[tuple[bytes, float]]) -> Iterator[bytes]:
    for member, score in pairs:
        # A listpack keeps -0 as 0; to add 0 makes that of it, too.
        yield len(member).to_bytes(8, "little") + member + _DOUBLE.pack(score + 0.0)


def _members(source: _Bytes) -> Iterator[bytes]:
    count = source.length()
    return _scored(
        (source.string(), _DOUBLE.unpack(source.take(_DOUBLE.size))[0])
        for _ in range(count)
    )


def _packed_members(entries: Iterator[bytes]) -> Iterator[bytes]:
    pairs = zip(entries, entries, strict=True)
    return _scored((member, float(score)) for member, score in pairs)


_OTHERS: dict[int, tuple[bytes, Callable[[_Bytes], Iterable[bytes]]]] = {
    0: (b"string", _string),
    2: (b"set", _Bytes.strings),
    5: (b"zset", _members),
    11: (b"set", lambda source: intset(source.string())),
    12: (b"zset", lambda source: _packed_members(ziplist(source.string()))),
    14: (b"list", _ziplists),
    17: (b"zset", lambda source: _packed_members(listpack(source.string()))),
    18: (b"list", _nodes),
    20: (b"set", lambda source: listpack(source.string())),
}

# Hashes: name, value, expiry in ms.

_Fields = Iterable[tuple[bytes, bytes, int]]


def _table(source: _Bytes) -> _Fields:
    return ((source.string(), source.string(), _NEVER) for _ in range(source.length()))


def _pairs(entries: Iterator[bytes]) -> _Fields:
    return ((name, text, _NEVER) for name, text in zip(entries, entries, strict=True))


def _table_of_valkey(source: _Bytes) -> _Fields:
    return (
        (source.string(), source.string(), source.int64())
        for _ in range(source.length())
    )


def _table_after_minimum(source: _Bytes) -> _Fields:
    earliest = source.int64()
    for _ in range(source.length()):
        behind = source.length()
        expiry = earliest + behind - 1 if behind else _NEVER
        yield source.string(), source.string(), expiry


def _listpack_after_minimum(source: _Bytes) -> _Fields:
    source.int64()
    entries = listpack(source.string())
    triples = zip(entries, entries, entries, strict=True)
    return ((name, text, int(expiry) or _NEVER) for name, text, expiry in triples)


_HASHES: dict[int, Callable[[_Bytes], _Fields]] = {
    4: _table,
    13: lambda source: _pairs(ziplist(source.string())),
    16: lambda source: _pairs(listpack(source.string())),
    22: _table_of_valkey,
    24: _table_after_minimum,
    25: _listpack_after_minimum,
}

# Streams. Types from 26 on have more, and are not known.

_STREAMS = {15: 1, 19: 2, 21: 3}

_FIRST_WITH_COUNTERS = 2

# Flags of an entry.
_DELETED = 1
_SAME_FIELDS = 2


def _stream(source: _Bytes, version: int, *, is_lean: bool) -> Iterator[bytes]:
    entries: list[bytes] = []
    for _ in range(source.length()):
        entries += _entries(source.string(), source.string())
    yield b"%d" % len(entries)
    yield from entries
    source.length()  # how many entries
    yield b"%d-%d" % (source.length(), source.length())  # the last ID
    if version >= _FIRST_WITH_COUNTERS:
        source.length(), source.length()  # the first ID
        deleted, added = (source.length(), source.length()), source.length()
        if not is_lean:
            yield b"%d-%d %d" % (*deleted, added)
    groups = [_group(source, version, is_lean=is_lean) for _ in range(source.length())]
    yield from chain.from_iterable(sorted(groups))


def _entries(node_id: bytes, node: bytes) -> Iterator[bytes]:
    """Yield the entries of a node, each its ID, fields and values.

    As stream.c has it: the node begins with a master entry, of which later ones may
    have the fields, and IDs count from the node's own.
    """
    ms, seq = int.from_bytes(node_id[:8], "big"), int.from_bytes(node_id[8:], "big")
    words = list(listpack(node))[::-1]  # the next one is the last
    count, deleted, width = (int(words.pop()) for _ in range(3))
    names = [words.pop() for _ in range(width)]
    words.pop()  # the end of the master entry
    for _ in range(count + deleted):
        flags, ms_behind, seq_behind = (int(words.pop()) for _ in range(3))
        if flags & _SAME_FIELDS:
            flat = list(chain.from_iterable((name, words.pop()) for name in names))
        else:
            flat = [words.pop() for _ in range(2 * int(words.pop()))]
        words.pop()  # how long the entry is
        if not flags & _DELETED:
            sized = (len(word).to_bytes(8, "little") + word for word in flat)
            entry_id = b"%d-%d " % (ms + ms_behind, seq + seq_behind)
            yield entry_id + b"".join(sized)


def _group(source: _Bytes, version: int, *, is_lean: bool) -> list[bytes]:
    name = source.string()
    position = b"%d-%d" % (source.length(), source.length())
    read = b"%d" % source.length() if version >= _FIRST_WITH_COUNTERS else b""
    pending: dict[bytes, bytes] = {}
    for _ in range(source.length()):
        entry_id, delivered = source.take(STREAM_ID), source.int64()
        pending[entry_id] = b"%d %d" % (delivered, source.length())
    consumers = sorted(
        _consumer(source, version, pending) for _ in range(source.length())
    )
    parts = [name, position, b"" if is_lean else read, b"%d" % len(consumers)]
    return parts + list(chain.from_iterable(consumers))


def _consumer(source: _Bytes, version: int, pending: dict[bytes, bytes]) -> list[bytes]:
    name = source.string()
    source.int64()
    if version >= ACTIVE_SINCE:
        source.int64()
    ids = sorted(source.take(STREAM_ID) for _ in range(source.length()))
    entries = [entry_id + pending[entry_id] for entry_id in ids]
    return [name, b"%d" % len(entries), *entries]
