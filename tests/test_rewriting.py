"""An RDB comes out as it went in but for its expiries, in whatever pieces it comes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import PointError
from kvtape.tape.rdb import End, RdbError
from kvtape.tape.rdb.listpack import entry_of, integer_of, listpack_of, read_entries
from kvtape.tape.rdb.rewriting import RdbRewriter, rewrite_payload
from kvtape.tape.rdb.strings import length_of, read_length
from kvtape.tape.segment import crc64
from kvtape.tape.ttls import MOST, MOST_OF_REDIS_FIELDS, InexactError, Ttls
from rdb_files import in_pieces, read

POINT = 1_700_000_000_000
SHIFT = 86_400_000

MOVED = Ttls(SHIFT, POINT, MOST_OF_REDIS_FIELDS)
DROPPED = Ttls(None, POINT, MOST_OF_REDIS_FIELDS)


def string(text: bytes) -> bytes:
    return length_of(len(text)) + text


def int64(number: int) -> bytes:
    return number.to_bytes(8, "little", signed=True)


def rdb(*parts: bytes, magic: bytes = b"REDIS0012", is_checked: bool = True) -> bytes:
    body = magic + b"\xfe\x00" + b"".join(parts) + b"\xff"
    checksum: int = crc64.calc(body) if is_checked else 0
    return body + checksum.to_bytes(8, "little")


def rewritten(pieces: Iterable[bytes], ttls: Ttls) -> tuple[bytes, int]:
    rewriter = RdbRewriter(ttls)
    out = b"".join(map(rewriter.rewrite, pieces))
    rewriter.close()
    return out, rewriter.changes


# What stands in an RDB: a key with an expiry, and hashes whose fields have some. Each
# as it is with a time, and without.


def expiring(time: int | None) -> bytes:
    expiry = b"" if time is None else b"\xfc" + int64(time)
    return expiry + b"\xf8\x05\x00" + string(b"key") + string(b"value")


def in_seconds(time: int | None) -> bytes:
    expiry = b"" if time is None else b"\xfd" + (time // 1000).to_bytes(4, "little")
    return expiry + b"\x00" + string(b"old") + string(b"value")


FIELDS = [b"a", b"field" * 30, b"c"]


def table(times: Sequence[int | None]) -> bytes:
    """Return a hash of type 24, or 4 if no field has a time."""
    least = min((time for time in times if time is not None), default=None)
    body = b"\x04" if least is None else b"\x18"
    body += string(b"table") + (b"" if least is None else int64(least))
    body += length_of(len(times))
    for name, time in zip(FIELDS, times, strict=False):
        if least is not None:
            body += length_of(0 if time is None else time - least + 1)
        body += string(name) + string(b"value")
    return body


def entry(text: bytes) -> bytes:
    size = len(text)
    head = bytes([0x80 | size]) if size < 64 else (0xE000 | size).to_bytes(2, "big")
    encoded = head + text
    size = len(encoded)
    # Seven bits a byte, the last one first (listpack.c:lpEncodeBacklen).
    behind = bytes([size]) if size < 128 else bytes([size >> 7, size & 127 | 128])
    return encoded + behind


def compact_value(times: Sequence[int | None]) -> bytes:
    least = min((time for time in times if time is not None), default=None)
    entries = []
    for name, time in zip(FIELDS, times, strict=False):
        entries += [entry(name), entry_of(7)]
        if least is not None:
            entries.append(entry_of(time or 0))
    packed = string(listpack_of(entries))
    return packed if least is None else int64(least) + packed


def compact(times: Sequence[int | None]) -> bytes:
    """Return a hash of type 25, or 16 if no field has a time."""
    kind = b"\x10" if set(times) == {None} else b"\x19"
    return kind + string(b"compact") + compact_value(times)


def of_valkey(times: Sequence[int | None]) -> bytes:
    body = b"\x16" + string(b"valkey") + length_of(len(times))
    for name, time in zip(FIELDS, times, strict=False):
        body += string(name) + string(b"v") + int64(-1 if time is None else time)
    return body


Hash = Callable[[Sequence[int | None]], bytes]

MAGIC: dict[Hash, bytes] = {
    table: b"REDIS0012",
    compact: b"REDIS0012",
    of_valkey: b"VALKEY080",
}
HASHES: list[Hash] = [table, compact, of_valkey]

LATER = POINT + 5000
PAST = POINT - 5000

TIMES: list[list[int | None]] = [
    [LATER, None, LATER + 70_000],
    [LATER, LATER + 200_000_000, LATER + 7],
    [PAST, LATER, None],
    [PAST, PAST + 1, POINT],
    [None, 1, 200],
]


def moved(times: Sequence[int | None]) -> list[int | None]:
    return [None if time is None else time + SHIFT for time in times]


def dropped(times: Sequence[int | None]) -> list[int | None]:
    """Return what is left: expiries that had passed at the point."""
    return [None if time is None or time > POINT else time for time in times]


def test_the_expiry_of_a_key_is_moved() -> None:
    before = expiring(None) + in_seconds(None)
    for time in (LATER, PAST, 1):
        data = rdb(before, expiring(time), expiring(None), in_seconds(PAST))
        as_ms = b"\xfc" + int64(PAST + SHIFT) + in_seconds(None)
        wanted = rdb(before, expiring(time + SHIFT), expiring(None), as_ms)
        assert rewritten([data], MOVED) == (wanted, 2)


def test_the_expiry_of_a_key_is_dropped_unless_it_had_passed() -> None:
    for time in (LATER, PAST, POINT, POINT + 1):
        data = rdb(expiring(time), in_seconds(LATER), in_seconds(PAST))
        [left] = dropped([time])
        wanted = rdb(expiring(left), in_seconds(None), in_seconds(PAST))
        assert rewritten([data], DROPPED) == (wanted, 2 if left is None else 1)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("make", HASHES)
def test_the_expiries_of_fields_are_moved(
    make: Hash, times: Sequence[int | None]
) -> None:
    data = rdb(expiring(None), make(times), expiring(None), magic=MAGIC[make])
    wanted = rdb(expiring(None), make(moved(times)), expiring(None), magic=MAGIC[make])
    assert rewritten([data], MOVED)[0] == wanted


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("make", HASHES)
def test_the_expiries_of_fields_are_dropped_unless_they_had_passed(
    make: Hash, times: Sequence[int | None]
) -> None:
    data = rdb(make(times), expiring(None), magic=MAGIC[make])
    wanted = rdb(make(dropped(times)), expiring(None), magic=MAGIC[make])
    out, changes = rewritten([data], DROPPED)
    assert out == wanted
    assert bool(changes) == (times != dropped(times))


def test_a_compact_hash_without_expiries_is_left_as_it_is() -> None:
    # A server writes 0 as the earliest once the last has been persisted.
    packed = listpack_of([entry(b"a"), entry(b"1"), entry_of(0)])
    data = rdb(b"\x19" + string(b"hash") + int64(0) + string(packed))
    for ttls in (MOVED, DROPPED):
        assert rewritten([data], ttls) == (data, 0)


def test_a_compressed_hash_is_unpacked() -> None:
    plain = compact_value([LATER, None])[8:]
    content = plain[2:]
    assert plain[:1] >= b"\x40"
    literals = b"".join(
        bytes([len(content[n : n + 32]) - 1]) + content[n : n + 32]
        for n in range(0, len(content), 32)
    )
    packed = b"\xc3" + length_of(len(literals)) + length_of(len(content)) + literals
    data = rdb(b"\x19" + string(b"compact") + int64(LATER) + packed)
    wanted = rdb(compact([LATER + SHIFT, None]))
    assert rewritten([data], MOVED)[0] == wanted


ALL_OF_REDIS = rdb(
    b"\xfa" + string(b"redis-ver") + string(b"8.0.2"),
    b"\xf5" + string(b"library"),
    expiring(LATER),
    table([LATER, None, PAST]),
    in_seconds(LATER),
    compact([LATER, LATER + 1, LATER + 2]),
    table([LATER, LATER, LATER]),
    compact([PAST, LATER, None]),
    b"\xfe\x03" + expiring(PAST),
)
ALL_OF_VALKEY = rdb(expiring(LATER), of_valkey([LATER, None, PAST]), magic=b"VALKEY080")


@pytest.mark.parametrize("ttls", [MOVED, DROPPED])
@pytest.mark.parametrize("data", [ALL_OF_REDIS, ALL_OF_VALKEY])
def test_any_two_pieces_and_single_bytes_come_out_the_same(
    data: bytes, ttls: Ttls
) -> None:
    whole, changes = rewritten([data], ttls)
    assert isinstance(read([whole])[-1], End)
    assert rewritten(in_pieces(data, 1), ttls) == (whole, changes)
    for cut in range(1, len(data)):
        assert rewritten([data[:cut], data[cut:]], ttls) == (whole, changes)


@pytest.mark.parametrize("data", [ALL_OF_REDIS, ALL_OF_VALKEY])
def test_a_prefix_comes_out_as_a_prefix_and_is_not_the_whole(data: bytes) -> None:
    for ttls in (MOVED, DROPPED):
        whole, _ = rewritten([data], ttls)
        for end in range(len(data)):
            rewriter = RdbRewriter(ttls)
            assert whole.startswith(rewriter.rewrite(data[:end]))
            with pytest.raises(RdbError, match="cut short"):
                rewriter.close()


times_of_fields = st.lists(
    st.none() | st.integers(POINT - 10**9, POINT + 10**9), min_size=1, max_size=3
)


@given(
    st.lists(st.tuples(st.sampled_from(HASHES[:2]), times_of_fields), max_size=4),
    st.integers(-(10**9), 10**9),
    st.integers(1, 60),
)
def test_what_is_moved_can_be_moved_back(
    hashes: list[tuple[Hash, list[int | None]]], shift: int, size: int
) -> None:
    data = rdb(*(make(times) for make, times in hashes))
    there = Ttls(shift, POINT)
    back = Ttls(-shift, POINT)
    out, _ = rewritten(in_pieces(data, size), there)
    assert rewritten([out], back)[0] == data


def test_no_checksum_stays_none_and_what_follows_is_passed_on() -> None:
    for is_checked in (True, False):
        data = rdb(expiring(LATER), is_checked=is_checked)
        wanted = rdb(expiring(LATER + SHIFT), is_checked=is_checked) + b"more"
        assert rewritten([data + b"mo", b"re"], MOVED)[0] == wanted
    old = b"REDIS0004" + expiring(LATER) + b"\xff"
    wanted = b"REDIS0004" + expiring(LATER + SHIFT) + b"\xff"
    assert rewritten([old], MOVED)[0] == wanted


def test_damage_is_an_error() -> None:
    data = rdb(expiring(LATER))
    with pytest.raises(RdbError, match="checksum"):
        rewritten([data[:-1] + b"?"], MOVED)
    broken = rdb(b"\x19" + string(b"hash") + int64(1) + string(b"no listpack at all"))
    with pytest.raises(RdbError, match="a listpack"):
        rewritten([broken], MOVED)


def test_what_is_newer_than_this_is_refused() -> None:
    with pytest.raises(PointError, match="newer than this kvtape: unknown value type"):
        rewritten([rdb(b"\x66" + string(b"key"))], DROPPED)


# What cannot be done exactly names its key, and force comes as near as it can.


def test_a_time_beyond_all_is_refused_or_as_late_as_can_be() -> None:
    late = MOST - 5
    lenient = Ttls(SHIFT, POINT, is_lenient=True)
    data = rdb(expiring(late))
    with pytest.raises(
        PointError, match=r"cannot be exact: b'key' has an expiry.*forc"
    ):
        rewritten([data], MOVED)
    assert rewritten([data], lenient)[0] == rdb(expiring(MOST))
    late = MOST_OF_REDIS_FIELDS - 5
    lenient = Ttls(SHIFT, POINT, MOST_OF_REDIS_FIELDS, is_lenient=True)
    for make in (table, compact):
        data = rdb(make([LATER, late]))
        with pytest.raises(PointError, match="has an expiry that would be later"):
            rewritten([data], MOVED)
        wanted = rdb(make([LATER + SHIFT, MOST_OF_REDIS_FIELDS]))
        assert rewritten([data], lenient)[0] == wanted


def test_a_time_before_1970_is_its_first_ms() -> None:
    back = Ttls(-SHIFT, POINT)
    assert rewritten([rdb(expiring(5))], back)[0] == rdb(expiring(1))


@pytest.mark.parametrize("kind", [22, 23])
def test_a_release_candidate_is_left_alone_only_by_force(kind: int) -> None:
    value = b"\x01\x00" + string(b"f") + string(b"v") if kind == 22 else string(b"x")
    candidate = bytes([kind]) + string(b"candidate") + value
    data = rdb(candidate, expiring(LATER))
    with pytest.raises(PointError, match="b'candidate' has field expiries in the form"):
        rewritten([data], MOVED)
    lenient = Ttls(SHIFT, POINT, is_lenient=True)
    wanted = rdb(candidate, expiring(LATER + SHIFT))
    assert rewritten([data], lenient) == (wanted, 1)


# Payloads.


def payload(value: bytes, version: int, *, is_checked: bool = True) -> bytes:
    content = value + version.to_bytes(2, "little")
    checksum: int = crc64.calc(content) if is_checked else 0
    return content + checksum.to_bytes(8, "little")


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("make", HASHES)
def test_a_payload_is_changed_as_a_value_is(
    make: Hash, times: Sequence[int | None], *, is_checked: bool
) -> None:
    version = 80 if make is of_valkey else 12

    def restored(times: Sequence[int | None]) -> bytes:
        content = make(times)
        # The key's name is not part of it.
        value = content[:1] + content[2 + content[1] :]
        return payload(value, version, is_checked=is_checked)

    assert rewrite_payload(restored(times), MOVED) == restored(moved(times))
    assert rewrite_payload(restored(times), DROPPED) == restored(dropped(times))


@pytest.mark.parametrize(
    "content", [b"", b"load", payload(b"\x00\x01x", 9), payload(b"\x16\x00", 11)]
)
def test_a_payload_of_another_type_is_passed_on(content: bytes) -> None:
    if content[:1] == b"\x16":
        with pytest.raises(InexactError, match="release candidate"):
            rewrite_payload(content, MOVED)
    else:
        assert rewrite_payload(content, MOVED) is content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (payload(b"\x18" + int64(LATER) + b"\x02", 12), "cut short"),
        (payload(b"\x18" + int64(LATER) + b"\xc9", 12), "does not start a length"),
        (payload(b"\x19" + int64(LATER) + string(b"??????????"), 12), "a listpack"),
        (payload(b"\xf3\x01", 13), "begins with metadata"),
    ],
)
def test_a_payload_that_cannot_be_read_is_told(content: bytes, why: str) -> None:
    with pytest.raises(InexactError, match=why):
        rewrite_payload(content, MOVED)


# Listpacks.


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_is_an_entry_and_back(number: int) -> None:
    packed = listpack_of([entry_of(number), entry(b"text")])
    first, _ = read_entries(packed)
    assert integer_of(first) == number


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, "0001"),
        (127, "7f01"),
        (128, "c08002"),
        (-1, "dfff02"),
        (4095, "cfff02"),
        (-4096, "d00002"),
        (4096, "f1001003"),
        (-32768, "f1008003"),
        (32768, "f200800004"),
        (8388608, "f30000800005"),
        (2**31, "f4000000800000000009"),
    ],
)
def test_an_integer_is_encoded_as_servers_do(number: int, encoded: str) -> None:
    assert entry_of(number).hex() == encoded
    assert integer_of(bytes.fromhex(encoded)) == number


def test_entries_of_any_size_stay_as_they_are() -> None:
    entries = [entry(b"x" * size) for size in (0, 5, 63, 64, 125, 126, 4000)]
    for size in (4096, 16_377, 16_378, 2_097_145, 2_097_146):
        encoded = b"\xf0" + size.to_bytes(4, "little") + b"x" * size
        length = len(encoded)
        steps = 1 + sum(length >= step for step in (128, 16383, 2097151, 268435455))
        behind = [length >> 7 * n & 127 | (128 if n < steps - 1 else 0)
                  for n in range(steps)]  # fmt: skip
        entries.append(encoded + bytes(reversed(behind)))
    assert read_entries(listpack_of(entries)) == entries
    many = listpack_of([entry_of(1)] * 70_000)
    assert many[4:6] == b"\xff\xff"
    assert len(read_entries(many)) == 70_000


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        listpack_of([])[:-1],
        listpack_of([]) + b"\xff",
        listpack_of([b"\xf5\x01"]),
        listpack_of([b"\xe1"]),
    ],
)
def test_what_is_no_listpack_is_an_error(broken: bytes) -> None:
    with pytest.raises(ValueError, match="a listpack"):
        read_entries(broken)


def test_a_string_is_no_integer() -> None:
    with pytest.raises(ValueError, match="a string"):
        integer_of(entry(b"7"))


@given(st.integers(0, 2**64 - 1))
def test_a_length_is_read_as_it_is_written(number: int) -> None:
    written = length_of(number)
    assert read_length(written, 0) == (number, len(written))


# A whole file is never held.


def test_large_values_pass_in_little_memory() -> None:
    size = 60_000_000
    piece = bytes(100_000)
    rewriter = RdbRewriter(MOVED)
    tracemalloc.start()
    length = len(rewriter.rewrite(b"REDIS0012\xfc" + int64(LATER) + b"\x00\x01k\x80"))
    length += len(rewriter.rewrite(size.to_bytes(4, "big")))
    for _ in range(size // len(piece)):
        length += len(rewriter.rewrite(piece))
    # A large hash has expiries all along.
    count = 400_000
    head = b"\x18\x01h" + int64(LATER) + b"\x80" + count.to_bytes(4, "big")
    length += len(rewriter.rewrite(head))
    for _ in range(count // 1000):
        length += len(rewriter.rewrite(b"\x01\x01f\x01v" * 1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rewriter.rewrite(b"\xff" + bytes(8))
    rewriter.close()
    assert length >= size + 5 * count
    assert peak < 2_000_000
