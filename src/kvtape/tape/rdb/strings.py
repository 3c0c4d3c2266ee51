"""Lengths, integers and strings: what every part of an RDB is made of.

The functions take (data, position) and do not check first whether the bytes are there:
too few are an IndexError, as rdb_input describes, or an end beyond the data. Strings
are decoded only where they are names (keys, auxiliary fields, libraries), which are
integers or LZF now and then, as any string of the format may be.
"""

from __future__ import annotations

from typing import Final

from kvtape.tape.rdb.input import ShortError


class UnreadableError(Exception):
    """The bytes at a position of the data cannot be what the format wants there."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


class UnknownError(UnreadableError):
    """As UnreadableError, but the reason may be a release newer than this module."""


# A string starts with its length (6, 14, 32 or 64 bits) or with what it is instead of
# plain bytes: an integer, little endian, or LZF.
LENGTH_14 = 0x40
LENGTH_32 = 0x80
LENGTH_64 = 0x81
INTEGERS: Final = {0xC0: 1, 0xC1: 2, 0xC2: 4}
LZF = 0xC3

# Names are held while they are read, so a damaged length must not make that the rest of
# the file. No client can write a longer one, unless proto-max-bulk-len is raised.
MAX_NAME = 512 << 20

# The whole size of a string, where its first byte tells it, else 0: nearly every
# string is passed over with one look into this table.
STEPS: Final = tuple(
    first + 1 if first < LENGTH_14 else 1 + INTEGERS.get(first, -1)
    for first in range(256)
)


def read_length(data: bytes, position: int) -> tuple[int, int]:
    """Return the length at position, and where it ends."""
    first = data[position]
    if first < LENGTH_14:
        return first, position + 1
    if first < LENGTH_32:
        return (first - LENGTH_14) << 8 | data[position + 1], position + 2
    if first > LENGTH_64:
        raise UnreadableError(position, f"0x{first:02x} does not start a length")
    end = position + (5 if first == LENGTH_32 else 9)
    return int.from_bytes(take(data, position + 1, end), "big"), end


def length_of(number: int) -> bytes:
    """Return a length as servers write it."""
    if number < LENGTH_14:
        return bytes([number])
    if number < 1 << 14:
        return (LENGTH_14 << 8 | number).to_bytes(2, "big")
    if number < 1 << 32:
        return bytes([LENGTH_32]) + number.to_bytes(4, "big")
    return bytes([LENGTH_64]) + number.to_bytes(8, "big")


def read_int64(data: bytes, position: int) -> tuple[int, int]:
    """Return the little-endian signed 8-byte integer at position, and its end."""
    end = position + 8
    return int.from_bytes(take(data, position, end), "little", signed=True), end


def read_string(data: bytes, position: int) -> tuple[bytes, int]:
    """Return the string at position, decoded, and where it ends."""
    first = data[position]
    if first < LENGTH_14:
        start = position + 1
        end = start + first
    elif first in INTEGERS:
        end = position + 1 + INTEGERS[first]
        digits = take(data, position + 1, end)
        return b"%d" % int.from_bytes(digits, "little", signed=True), end
    elif first == LZF:
        packed, start = read_length(data, position + 1)
        size, start = read_length(data, start)
        end = start + packed
        _require_name(position, max(packed, size))
        plain = _unpack_lzf(take(data, start, end), size)
        if plain is None:
            raise UnreadableError(position, "a compressed string does not unpack")
        return plain, end
    else:
        size, start = read_length(data, position)
        end = start + size
    if end > len(data):
        _require_name(position, end - start)
        raise ShortError(end)
    return data[start:end], end


def _require_name(position: int, size: int) -> None:
    if size > MAX_NAME:
        raise UnreadableError(position, f"a name of {size} bytes")


def string_end(data: bytes, position: int) -> int:
    """Return where the string at position ends, which may be beyond the data."""
    step = STEPS[data[position]]
    return position + step if step else long_string_end(data, position)


def length_end(data: bytes, position: int) -> int:
    """Return where the length at position ends."""
    return read_length(data, position)[1]


def long_string_end(data: bytes, position: int) -> int:
    """As string_end, where STEPS does not know the size."""
    first = data[position]
    if first < LENGTH_32:  # Without a call, since most of the others are of this kind.
        return position + 2 + ((first - LENGTH_14) << 8 | data[position + 1])
    if first == LZF:
        size, position = read_length(data, position + 1)
        _, position = read_length(data, position)
    else:
        size, position = read_length(data, position)
    return position + size


def take(data: bytes, start: int, end: int) -> bytes:
    """Return the bytes from start to end, which must all be there."""
    if end > len(data):
        raise ShortError(end)
    return data[start:end]


def _unpack_lzf(packed: bytes, plain_size: int) -> bytes | None:
    """Return what was compressed, or None if that is not LZF of so many bytes."""
    plain = bytearray()
    position = 0
    try:
        # Damaged or made up, it could become 88 times as long as it is here.
        while position < len(packed) and len(plain) <= plain_size:
            control = packed[position]
            position += 1
            if control < 32:  # So many bytes as they are, and one more.
                plain += packed[position : position + control + 1]
                position += control + 1
                continue
            size = control >> 5
            if size == 7:
                size += packed[position]
                position += 1
            distance = ((control & 31) << 8) + packed[position] + 1
            position += 1
            start = len(plain) - distance
            if start < 0:
                return None
            # A copy may overlap its own output, which then repeats.
            copied = plain[start : start + size + 2]
            plain += (copied * (1 + (size + 2) // len(copied)))[: size + 2]
    except IndexError:
        return None
    is_whole = position == len(packed) and len(plain) == plain_size
    return bytes(plain) if is_whole else None
