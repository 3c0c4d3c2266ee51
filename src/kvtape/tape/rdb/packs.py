"""The packed forms in which servers keep small values: listpack, ziplist, intset.

Each is one block of bytes, and is stored in an RDB as one string. What cannot be read
is an IndexError or a ValueError. The layouts follow listpack.c (listpack.py knows where
an entry ends), ziplist.c and intset.c of Redis 6.2 to 8.0 and Valkey 8.0 to 9.1, and
are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvtape.tape.rdb.listpack import integer_of, read_entries

_END = 0xFF

_LONG_STRING = 0xF0


def listpack(data: bytes) -> Iterator[bytes]:
    """Yield the entries of a listpack; integers as their digits."""
    for entry in read_entries(data):
        first = entry[0]
        if 0x80 <= first < 0xC0:
            yield entry[1 : 1 + (first & 0x3F)]
        elif 0xE0 <= first < 0xF0:
            yield entry[2 : 2 + ((first & 0x0F) << 8 | entry[1])]
        elif first == _LONG_STRING:
            yield entry[5 : 5 + int.from_bytes(entry[1:5], "little")]
        else:
            yield b"%d" % integer_of(entry)


def _digits(data: bytes) -> bytes:
    return b"%d" % int.from_bytes(data, "little", signed=True)


# Ziplists: size, tail (4 bytes each) and count (2) come before the entries.
_ZIPLIST_HEADER = 10

# The length of the entry before is one byte, or this one and four.
_LONG_BEFORE = 0xFE

_ZIPLIST_INTEGERS = {0xC0: 2, 0xD0: 4, 0xE0: 8, 0xF0: 3, 0xFE: 1}
_IMMEDIATE = range(0xF1, 0xFE)


def ziplist(data: bytes) -> Iterator[bytes]:
    """Yield the entries of a ziplist; integers as their digits."""
    at = _ZIPLIST_HEADER
    while data[at] != _END:
        at += 5 if data[at] == _LONG_BEFORE else 1
        first = data[at]
        if first < 0x40:
            begin, size = at + 1, first
        elif first < 0x80:
            begin, size = at + 2, (first & 0x3F) << 8 | data[at + 1]
        elif first < 0xC0:
            begin, size = at + 5, int.from_bytes(data[at + 1 : at + 5], "big")
        elif first in _IMMEDIATE:
            begin, size = at + 1, 0
            yield b"%d" % (first - _IMMEDIATE.start)
        elif first in _ZIPLIST_INTEGERS:
            begin, size = at + 1, _ZIPLIST_INTEGERS[first]
            yield _digits(data[begin : begin + size])
        else:
            raise ValueError(f"0x{first:02x} begins no entry of a ziplist")
        at = begin + size
        if first < 0xC0:
            yield data[begin:at]


_INTSET_HEADER = 8


def intset(data: bytes) -> Iterator[bytes]:
    """Yield the members of an intset, as their digits."""
    size = int.from_bytes(data[:4], "little")
    count = int.from_bytes(data[4:_INTSET_HEADER], "little")
    if size not in (2, 4, 8) or len(data) != _INTSET_HEADER + size * count:
        raise ValueError("its length is not that of an intset")
    for at in range(_INTSET_HEADER, len(data), size):
        yield _digits(data[at : at + size])
