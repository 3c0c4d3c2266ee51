"""Listpacks: the entries of one, and one of entries.

A listpack is its size in bytes (4, little endian), the number of its entries (2; 65535
for unknown), the entries, and 255. An entry is what it is, encoded, and the size of
that, for who comes from behind (listpack.c of Redis 7.4; Valkey has the same). An
entry is passed on as it stands, so none but integers are ever understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_HEADER: Final = 6
_END: Final = 0xFF
_MANY: Final = 0xFFFF

# By the first byte: the size of the integer behind it.
_INTEGERS: Final = {0xF1: 2, 0xF2: 3, 0xF3: 4, 0xF4: 8}
_LONG_STRING: Final = 0xF0

# From how many bytes on the size behind an entry takes one byte more
# (listpack.c:lpEncodeBacklen).
_BACK_STEPS: Final = (128, 16383, 2097151, 268435455)
# These would fit into one byte less. Valkey 9.1 writes them so, and all others with a
# leading zero (seen of 16383 on all six servers).
_BACK_EDGES: Final = _BACK_STEPS[1:]


def read_entries(data: bytes) -> list[bytes]:
    """Return the entries of a listpack as they stand; ValueError if it is none."""
    entries = []
    at = _HEADER
    try:
        while data[at] != _END:
            size = _size(data, at)
            more = sum(size >= step for step in _BACK_STEPS)
            if size in _BACK_EDGES and data[at + size]:
                more -= 1
            end = at + size + 1 + more
            entries.append(data[at:end])
            at = end
    except IndexError:
        raise ValueError("a listpack without an end") from None
    if at + 1 != len(data):
        raise ValueError("a listpack that ends too early")
    return entries


def _size(data: bytes, at: int) -> int:
    """Return how many bytes the entry there is, without its size behind it."""
    first = data[at]
    if first < 0x80:
        return 1
    if first < 0xC0:
        return 1 + (first & 0x3F)
    if first < 0xE0:
        return 2
    if first < 0xF0:
        return 2 + ((first & 0x0F) << 8 | data[at + 1])
    if first == _LONG_STRING:
        return 5 + int.from_bytes(data[at + 1 : at + 5], "little")
    if first in _INTEGERS:
        return 1 + _INTEGERS[first]
    raise ValueError(f"a listpack with an entry of kind {first}")


def integer_of(entry: bytes) -> int:
    """Return the integer that an entry is; ValueError if it is a string."""
    first = entry[0]
    if first < 0x80:
        return first
    if 0xC0 <= first < 0xE0:
        number = (first & 0x1F) << 8 | entry[1]
        return number - 0x2000 if number >= 0x1000 else number
    if first in _INTEGERS:
        return int.from_bytes(entry[1 : 1 + _INTEGERS[first]], "little", signed=True)
    raise ValueError("a string where an integer should be")


def entry_of(number: int) -> bytes:
    """Return the entry that a server makes of an integer of at most 64 bits."""
    if 0 <= number < 0x80:
        encoded = bytes([number])
    elif -0x1000 <= number < 0x1000:
        encoded = (0xC000 | number & 0x1FFF).to_bytes(2, "big")
    else:
        first, size = next(
            (first, size)
            for first, size in _INTEGERS.items()
            if -(1 << 8 * size - 1) <= number < 1 << 8 * size - 1
        )
        encoded = bytes([first]) + number.to_bytes(size, "little", signed=True)
    return encoded + bytes([len(encoded)])


def listpack_of(entries: Sequence[bytes]) -> bytes:
    """Return the listpack of these entries."""
    body = b"".join(entries)
    size = _HEADER + len(body) + 1
    count = min(len(entries), _MANY)
    head = size.to_bytes(4, "little") + count.to_bytes(2, "little")
    return head + body + bytes([_END])
