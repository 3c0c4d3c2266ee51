"""A filter never says no wrongly, whatever becomes of its bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Collection

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtape.tape import key_filter
from kvtape.tape.facts import crc64
from kvtape.tape.key_filter import (
    HEADER_SIZE,
    Directory,
    FilterError,
    KeySet,
    hash_of,
    parse_directory,
)
from kvtape.tape.names import SegmentName

SEGMENT = SegmentName("a" * 40, 1000, 2000, 5, 6)

KEYS = [b"user:%d" % number for number in range(3000)]


def filter_of(
    keys: Collection[bytes], *, touches_all: bool = False, is_vague: bool = False
) -> bytes:
    gathered = KeySet()
    gathered.add(keys)
    gathered.touches_all, gathered.is_vague = touches_all, is_vague
    return gathered.filter(SEGMENT)


def may_name(content: bytes, key: bytes) -> bool:
    """Ask as a reader does, who has no more than the header and one block."""
    directory = parse_directory(content[:HEADER_SIZE], SEGMENT)
    if not directory.blocks:
        return directory.is_vague
    number, start, end = directory.place(hash_of(key))
    return directory.may_name(hash_of(key), number, content[start:end])


@given(st.sets(st.binary(max_size=20), max_size=50))
def test_no_key_is_denied(keys: set[bytes]) -> None:
    content = filter_of(keys)
    assert all(may_name(content, key) for key in keys)


@pytest.mark.parametrize("count", [0, 1, 2, 335, 336, 337, 672, 673, 3000])
def test_no_key_is_denied_however_many_blocks_there_are(count: int) -> None:
    content = filter_of(KEYS[:count])
    directory = parse_directory(content, SEGMENT)
    length = directory.blocks * (directory.block_bytes + 8)
    assert len(content) == HEADER_SIZE + length
    assert directory.keys == count
    assert all(may_name(content, key) for key in KEYS[:count])


def test_one_of_hundreds_of_absent_keys_seems_to_be_there() -> None:
    content = filter_of(KEYS)
    absent = [b"other:%d" % number for number in range(20_000)]
    share = sum(may_name(content, key) for key in absent) / len(absent)
    assert share < 0.006


def test_a_key_costs_about_twelve_bits() -> None:
    assert len(filter_of(KEYS)) * 8 / len(KEYS) < 13


def test_a_query_needs_half_a_kilobyte() -> None:
    directory = parse_directory(filter_of(KEYS), SEGMENT)
    _, start, end = directory.place(hash_of(b"key"))
    assert HEADER_SIZE + end - start <= 600


def test_a_filter_depends_on_neither_order_nor_repetition() -> None:
    shuffled = [*KEYS, *KEYS[:500]]
    random.Random(1).shuffle(shuffled)
    gathered = KeySet()
    for key in shuffled:
        gathered.add([key])
    assert gathered.filter(SEGMENT) == filter_of(KEYS)


def test_many_keys_make_the_filter_that_few_at_a_time_make(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = filter_of(KEYS)
    monkeypatch.setattr(key_filter, "_RUN", 100)
    gathered = KeySet()
    for start in range(0, len(KEYS), 70):
        gathered.add(KEYS[max(0, start - 50) : start + 70])
    assert gathered.filter(SEGMENT) == whole


def test_too_many_keys_make_it_vague(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_filter, "_RUN", 10)
    monkeypatch.setattr(key_filter, "_MOST_KEYS", 100)
    gathered = KeySet()
    for key in KEYS[:200]:
        gathered.add([key])
    assert gathered.is_vague
    assert may_name(gathered.filter(SEGMENT), b"whatever")


@pytest.mark.parametrize("touches_all", [False, True])
@pytest.mark.parametrize("is_vague", [False, True])
def test_what_is_said_of_the_segment_is_read_back(
    touches_all: bool, is_vague: bool
) -> None:
    content = filter_of(KEYS, touches_all=touches_all, is_vague=is_vague)
    directory = parse_directory(content, SEGMENT)
    assert (directory.touches_all, directory.is_vague) == (touches_all, is_vague)
    assert may_name(content, b"other") is is_vague


def test_the_bytes_are_those_of_the_specification() -> None:
    # Changing any of them is a new version: filters that are stored must stay readable.
    content = filter_of([b"key", b"other"], touches_all=True)
    assert content.hex() == (
        "6b76746170652d6b010001000300080001000000020000006161616161616161616161616161"
        "6161616161616161616161616161616161616161616161616161e803000000000000d0070000"
        "000000003aab8f7d5bd166eba96874b785020b60b49c1f"
    )


def test_a_filter_is_read_by_what_the_specification_says() -> None:
    # Nothing here is kvtape's; this is what docs/format.md tells others to do.
    content = filter_of(KEYS)
    block_bytes, probes, blocks = struct.unpack_from("<HHI", content, 12)

    def is_there(key: bytes) -> bool:
        state = h = xxhash.xxh64_intdigest(key)
        start = 88 + (h * blocks // 2**64) * (block_bytes + 8)
        for _ in range(probes):
            state = (state * 47026247687942121848144207491837418733 + 1) % 2**128
            bit = (state >> 32) % 2**64 % (8 * block_bytes)
            if not content[start + bit // 8] & 1 << bit % 8:
                return False
        return True

    absent = [b"other:%d" % number for number in range(1000)]
    assert all(map(is_there, KEYS))
    assert [is_there(key) for key in absent] == [may_name(content, k) for k in absent]


# Damage.


def outcome(content: bytes, key: bytes) -> bool | None:
    """Return the answer; None if the filter is found to be damaged."""
    try:
        return may_name(content, key)
    except FilterError:
        return None


@pytest.mark.parametrize("count", [0, 5, 700])
def test_a_filter_that_is_cut_short_says_no_wrongly_to_nobody(count: int) -> None:
    content = filter_of(KEYS[:count])
    for length in range(len(content)):
        for key in KEYS[: min(count, 3)]:
            assert outcome(content[:length], key) is not False
        if length < HEADER_SIZE:
            assert outcome(content[:length], b"other") is None


@pytest.mark.parametrize("count", [0, 5, 700])
def test_every_byte_that_is_changed_is_found(count: int) -> None:
    content = filter_of(KEYS[:count])
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        for key in KEYS[: min(count, 3)]:
            assert outcome(bytes(changed), key) is not False
        if at < HEADER_SIZE:
            assert outcome(bytes(changed), b"other") is None


@given(st.binary(max_size=200))
def test_garbage_is_no_filter(garbage: bytes) -> None:
    with pytest.raises(FilterError):
        parse_directory(garbage, SEGMENT)


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
@settings(max_examples=50)
def test_garbage_is_no_block(garbage: bytes, key_hash: int) -> None:
    directory = parse_directory(filter_of(KEYS), SEGMENT)
    number, _, _ = directory.place(key_hash)
    with pytest.raises(FilterError, match=f"block {number} of the filter is damaged"):
        directory.may_name(key_hash, number, garbage)


def test_a_block_in_the_place_of_another_is_found() -> None:
    content = filter_of(KEYS)
    directory = parse_directory(content, SEGMENT)
    number, start, end = directory.place(hash_of(KEYS[0]))
    other = start - (end - start) if number else end
    with pytest.raises(FilterError):
        directory.may_name(hash_of(KEYS[0]), number, content[other:][: end - start])


def test_a_block_of_another_filter_is_found() -> None:
    # As when the filter is replaced between the two reads.
    content, other = filter_of(KEYS), filter_of(KEYS, touches_all=True)
    directory = parse_directory(content, SEGMENT)
    number, start, end = directory.place(hash_of(KEYS[0]))
    with pytest.raises(FilterError):
        directory.may_name(hash_of(KEYS[0]), number, other[start:end])


@pytest.mark.parametrize(
    "other",
    [
        SegmentName("b" * 40, 1000, 2000, 5, 6),
        SegmentName("a" * 40, 1001, 2000, 5, 6),
        SegmentName("a" * 40, 1000, 2001, 5, 6),
    ],
    ids=["replid", "start", "end"],
)
def test_the_filter_of_another_segment_is_refused(other: SegmentName) -> None:
    with pytest.raises(FilterError, match="another segment"):
        parse_directory(filter_of(KEYS), other)


def _sealed(content: bytes) -> bytes:
    checksum: int = crc64.calc(content)
    return content + checksum.to_bytes(8, "little")


def test_a_newer_filter_is_said_to_be_one() -> None:
    head = filter_of(KEYS)[: HEADER_SIZE - 8]
    newer = _sealed(head[:8] + b"\x02\x00" + head[10:])
    with pytest.raises(FilterError, match="format version 2") as caught:
        parse_directory(newer, SEGMENT)
    assert caught.value.is_newer


def test_blocks_of_no_length_are_refused() -> None:
    head = filter_of(KEYS)[: HEADER_SIZE - 8]
    with pytest.raises(FilterError, match="makes no sense"):
        parse_directory(_sealed(head[:12] + bytes(2) + head[14:]), SEGMENT)


def test_libraries_that_hash_otherwise_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = filter_of(KEYS)
    monkeypatch.setattr(key_filter, "_hashes_alike", lambda: False)
    with pytest.raises(FilterError, match="hashes otherwise") as caught:
        parse_directory(content, SEGMENT)
    assert caught.value.is_newer
    with pytest.raises(FilterError, match="hashes otherwise"):
        filter_of(KEYS)


@given(st.integers(1, 10**7), st.integers(0, 2**64 - 1))
def test_every_hash_has_its_block(blocks: int, key_hash: int) -> None:
    directory = Directory(False, False, 1, blocks, 504, 8, 0)
    number, start, end = directory.place(key_hash)
    assert 0 <= number < blocks
    assert (start, end) == (
        HEADER_SIZE + 512 * number,
        HEADER_SIZE + 512 * number + 512,
    )
    # The shares that the writer fills the blocks from are the same.
    low, high = -(-number * 2**64 // blocks), -(-(number + 1) * 2**64 // blocks)
    assert low <= key_hash < high
