"""The filter of a segment: which keys its commands may name, in some bits a key.

docs/format.md is the specification, with the byte tables; the names here are the same.
A filter is

    header  block*

where each block is a Bloom filter of the keys whose hashes fall into its share of all
hashes. All blocks of a filter are equally long, so that the header and one block, half
a kilobyte each, tell of a key whether the segment may name it. A directory of blocks
that differ in length would be longer than the block.

It never says no wrongly. Header and blocks have checksums, a block's is also over the
header's and its own place, and the header says which segment it is of: bytes that are
damaged, or those of another filter, are a FilterError. So is a library that hashes
otherwise than what wrote the blocks that are stored.

The same stream makes the same filter, byte for byte, whoever writes it.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import index as identity

import xxhash
from rbloom import Bloom

from kvtape.errors import VerificationError
from kvtape.tape.facts import crc64
from kvtape.tape.names import SegmentName

FORMAT_VERSION = 1

_MAGIC = b"kvtape-k"
_HEADER = struct.Struct("<8sHHHHII40sQQ")
_VERSION = struct.Struct("<H")
_CRC = struct.Struct("<Q")
_PLACE = struct.Struct("<QI")

HEADER_SIZE = _HEADER.size + _CRC.size

_TOUCHES_ALL, _VAGUE = 1, 2

# 12 bits a key and 8 probes: 0.3 % of the keys that are not there seem to be. Of 160
# segments (10 GiB) half a one is then read for nothing; with the 10 bits of 1 % it is
# one and a half, which for a rare key is more than what is read for good reason.
_BITS_PER_KEY = 12
_PROBES = 8

# The bits of a block where there are several. Shorter blocks are filled less evenly,
# which costs more bits for the same rate; longer ones are more to read.
_BLOCK = 504

# A filter of more keys than this would take 12 MiB, and to make it 150 MiB of memory.
# One MSET of a gigabyte has so many; ordinary segments have a twentieth.
_MOST_KEYS = 8 * 1024 * 1024

# Hashes are sorted so many at a time: the set of them is what takes memory.
_RUN = 16 * 1024

_HASHES = 1 << 64

hash_of = xxhash.xxh64_intdigest


class FilterError(VerificationError):
    """The bytes are no filter, or not that of the segment. The path is not known.

    is_newer tells that they may be good to a newer kvtape.
    """

    def __init__(self, message: str, *, is_newer: bool = False) -> None:
        super().__init__(message)
        self.is_newer = is_newer


@dataclass(frozen=True, slots=True)
class Directory:
    """What the header of a filter says.

    touches_all: the segment has commands that change keys without naming them, such as
    FLUSHALL. is_vague: nothing is known of the keys that it names; there are no blocks.
    """

    touches_all: bool
    is_vague: bool
    keys: int
    blocks: int
    block_bytes: int
    probes: int
    crc: int

    def place(self, key_hash: int) -> tuple[int, int, int]:
        """Return the number of the block for a key, and the range that it has.

        Not if there are no blocks.
        """
        number = key_hash * self.blocks // _HASHES
        length = self.block_bytes + _CRC.size
        start = HEADER_SIZE + number * length
        return number, start, start + length

    def may_name(self, key_hash: int, number: int, block: bytes) -> bool:
        """Whether the segment may name the key, by the block for it."""
        bits, crc = block[: self.block_bytes], block[self.block_bytes :]
        if len(crc) != _CRC.size or _CRC.unpack(crc)[0] != self.checksum(number, bits):
            raise FilterError(f"block {number} of the filter is damaged")
        return key_hash in _bloom(self.probes, bits)

    def checksum(self, number: int, bits: bytes) -> int:
        """Return the checksum of the block of this number, if these are its bits."""
        crc: int = crc64.calc(_PLACE.pack(self.crc, number) + bits)
        return crc


def _bloom(probes: int, bits: bytes) -> Bloom:
    return Bloom.load_bytes(probes.to_bytes(8, "little") + bits, identity)


def parse_directory(head: bytes, segment: SegmentName) -> Directory:
    """Read what the filter of a segment begins with; FilterError if it is none."""
    if len(head) < HEADER_SIZE or not head.startswith(_MAGIC):
        raise FilterError("it is no key filter")
    content = head[: _HEADER.size]
    (crc,) = _CRC.unpack_from(head, _HEADER.size)
    if crc != crc64.calc(content):
        raise FilterError("the header of the filter is damaged")
    (version,) = _VERSION.unpack_from(content, len(_MAGIC))
    if version != FORMAT_VERSION:
        raise FilterError(f"it has format version {version}", is_newer=True)
    _must_hash_alike()
    _, _, flags, block_bytes, probes, blocks, keys, replid, start, end = _HEADER.unpack(
        content
    )
    if (blocks > 0) != (block_bytes > 0):
        raise FilterError("the header of the filter makes no sense")
    if (replid, start, end) != (segment.replid.encode(), segment.start, segment.end):
        raise FilterError("it is the filter of another segment than its name says")
    return Directory(
        touches_all=bool(flags & _TOUCHES_ALL),
        is_vague=bool(flags & _VAGUE),
        keys=keys,
        blocks=blocks,
        block_bytes=block_bytes,
        probes=probes,
        crc=crc,
    )


class KeySet:
    """Gathers the keys of a segment, for the filter of it.

    It holds hashes, 8 bytes each, and no keys. touches_all and is_vague are for whoever
    reads the commands to set; too many keys make it vague, too.
    """

    def __init__(self) -> None:
        self.touches_all = False
        self.is_vague = False
        self._fresh: set[int] = set()
        self._runs: list[array[int]] = []  # each in order, and without repetitions

    def add(self, keys: Iterable[bytes]) -> None:
        """Add keys; the same again costs little."""
        self._fresh.update(map(hash_of, keys))
        if len(self._fresh) >= _RUN:
            self._runs.append(array("Q", sorted(self._fresh)))
            self._fresh = set()
            if sum(map(len, self._runs)) > _MOST_KEYS:
                self.is_vague = True
                self._runs = []

    def filter(self, segment: SegmentName) -> bytes:
        """Return the filter of a segment that names these keys and no others."""
        _must_hash_alike()
        hashes = array("Q") if self.is_vague else self._distinct()
        blocks, block_bytes = _layout(len(hashes))
        content = _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION,
            self.touches_all * _TOUCHES_ALL | self.is_vague * _VAGUE,
            block_bytes,
            _PROBES,
            blocks,
            len(hashes),
            segment.replid.encode(),
            segment.start,
            segment.end,
        )
        head = content + _CRC.pack(crc64.calc(content))
        directory = parse_directory(head, segment)
        return head + b"".join(_blocks(directory, hashes))

    def _distinct(self) -> array[int]:
        """Return all hashes in order, each once."""
        runs = [*self._runs, array("Q", sorted(self._fresh))]
        if len(runs) == 1:
            return runs[0]
        merged = array("Q")
        # Of all runs a share at a time, so that no more are objects at once than were.
        for low, high in _shares(len(runs)):
            share: list[int] = []
            for run in runs:
                share += run[bisect_left(run, low) : bisect_left(run, high)]
            share.sort()
            merged.extend(dict.fromkeys(share))
        return merged


def _layout(keys: int) -> tuple[int, int]:
    """Return how many blocks a filter of so many keys has, and the bytes in each."""
    needed = -(-keys * _BITS_PER_KEY // 8)
    if needed <= _BLOCK:
        return int(keys > 0), needed
    return -(-needed // _BLOCK), _BLOCK


def _blocks(directory: Directory, hashes: array[int]) -> Iterator[bytes]:
    """Yield the blocks for hashes, which are in order."""
    for number, (low, high) in enumerate(_shares(directory.blocks)):
        bloom = _bloom(directory.probes, bytes(directory.block_bytes))
        bloom.update(hashes[bisect_left(hashes, low) : bisect_left(hashes, high)])
        bits = bloom.save_bytes()[8:]
        yield bits + _CRC.pack(directory.checksum(number, bits))


def _shares(count: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges that divide all hashes as Directory.place() does."""
    low = 0
    for number in range(1, count + 1):
        high = -(-number * _HASHES // count)
        yield low, high
        low = high


# A block that was made when the format was, and what made it.
_SAMPLE = (b"", b"key", b"user:1000", bytes(range(256)))
_SAMPLE_BITS = bytes.fromhex("204c800104012c080010084852c90828")


@cache
def _hashes_alike() -> bool:
    bloom = _bloom(_PROBES, bytes(len(_SAMPLE_BITS)))
    bloom.update(map(hash_of, _SAMPLE))
    return bloom.save_bytes()[8:] == _SAMPLE_BITS


def _must_hash_alike() -> None:
    # What is stored must be read by the hashes that it was written by: with others it
    # would say no to keys that are there.
    if not _hashes_alike():
        raise FilterError(
            "the installed rbloom or xxhash hashes otherwise than the filters that are "
            "stored: use the releases that kvtape names",
            is_newer=True,
        )
