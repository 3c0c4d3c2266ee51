"""However its bytes are split, an RDB is the same events; garbage is an error."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace

import anycrc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtape.tape.rdb import (
    NEED_DATA,
    Aux,
    End,
    Event,
    Header,
    Key,
    Library,
    ModuleAux,
    RdbError,
    RdbReader,
    ResizeDb,
    SelectDb,
    SlotImport,
    SlotInfo,
    UnknownRdbError,
    read_header,
    type_name,
)
from kvtape.tape.rdb.values import walkers
from rdb_files import drain, outcome

CRC = anycrc.Model("CRC64-REDIS")

REDIS = b"REDIS0014"
VALKEY = b"VALKEY080"


def length(number: int) -> bytes:
    """Write a length as servers do."""
    if number < 1 << 6:
        return bytes([number])
    if number < 1 << 14:
        return struct.pack(">H", number | 0x4000)
    if number < 1 << 32:
        return b"\x80" + struct.pack(">I", number)
    return b"\x81" + struct.pack(">Q", number)


def text(plain: bytes) -> bytes:
    return length(len(plain)) + plain


def lzf(packed: bytes, size: int) -> bytes:
    return b"\xc3" + length(len(packed)) + length(size) + packed


def int64(number: int) -> bytes:
    return struct.pack("<q", number)


def rdb(*parts: bytes, start: bytes = REDIS) -> bytes:
    body = b"".join([start, *parts, b"\xff"])
    return body + struct.pack("<Q", CRC.calc(body))


Outcome = tuple[list[Event], str | None]


def read(pieces: Iterable[bytes], *, values: bool = True) -> Outcome:
    """Return the events, and the error if one comes."""
    events, _, error = outcome(pieces, values=values)
    return events, error


def parts_of(data: bytes, *, start: bytes = REDIS) -> list[Event]:
    """Read an RDB with only these parts, and return their events."""
    events, error = read([rdb(data, start=start)])
    assert error is None
    assert isinstance(events[0], Header)
    assert isinstance(events[-1], End)
    return events[1:-1]


def singles(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# Written strings, and what they say.
STRINGS = {
    "empty": (b"\x00", b""),
    "6 bits": (b"\x3f" + b"a" * 63, b"a" * 63),
    "14 bits": (b"\x40\x40" + b"b" * 64, b"b" * 64),
    "14 bits, high": (b"\x41\x00" + b"c" * 256, b"c" * 256),
    "32 bits": (b"\x80\x00\x00\x01\x02" + b"d" * 258, b"d" * 258),
    "64 bits": (b"\x81" + bytes(7) + b"\x03eee", b"eee"),
    "int8": (b"\xc0\xfe", b"-2"),
    "int16": (b"\xc1\x00\x80", b"-32768"),
    "int32": (b"\xc2\xff\xff\xff\x7f", b"2147483647"),
    "lzf": (lzf(b"\x01ab\x20\x01", 5), b"ababa"),
    "lzf, long copy": (lzf(b"\x00z\xe0\x10\x00", 26), b"z" * 26),
}

STREAM_NODES = length(2) + (text(bytes(16)) + text(b"listpack")) * 2
IDS = length(2) + bytes(range(32))


def stream(version: int) -> bytes:
    """Make up a stream's value as that layout has it."""
    totals = 3 if version == 1 else 8
    pending = length(2) + (bytes(24) + length(300)) * 2
    seen = bytes(8 if version < 3 else 16)
    consumers = length(2) + (text(b"consumer") + seen + IDS) * 2
    group = text(b"group") + length(70000) * (2 if version == 1 else 3)
    group += pending + consumers + (IDS if version >= 5 else b"")
    value = STREAM_NODES + length(5) * totals + length(2) + group * 2
    if version >= 4:
        requests = length(2) + (text(b"iid") + length(1) + length(99)) * 2
        value += length(1) * 2 + length(2) + (text(b"pid") + requests) * 2
        value += length(77) * 2
    return value


MODULE_ITEMS = (
    b"\x01" + length(1 << 40) + b"\x02\x05" + b"\x03" + bytes(4) + b"\x04" + bytes(8)
) + (b"\x05" + text(b"a string") + b"\x00")
MODULE = length((1 << 60) + 3) + MODULE_ITEMS

# Value types of each family with values of theirs, and the earliest field expiry.
PLAIN_VALUES: list[tuple[int, bytes]] = [
    (0, text(b"value")),
    (1, length(2) + text(b"a") + b"\xc0\x07"),
    (2, length(0)),
    (2, length(3) + text(b"a" * 100) + b"\xc1\x07\x00" + lzf(b"\x00z\x20\x00", 4)),
    (
        3,
        length(4)
        + text(b"m")
        + b"\x031.5"
        + b"".join(b"\x00" + s for s in (b"\xfd", b"\xfe", b"\xff")),
    ),
    (4, length(2) + text(b"field") + text(b"value") + b"\xc0\x01\xc0\x02"),
    (5, length(2) + (text(b"member") + bytes(8)) * 2),
    (7, MODULE),
    *[(number, text(b"compact")) for number in (9, 10, 11, 12, 13, 16, 17, 20)],
    (14, length(2) + text(b"ziplist") * 2),
    (15, stream(1)),
    (18, length(2) + length(1) + text(b"p" * 300) + length(2) + text(b"listpack")),
    (19, stream(2)),
    (21, stream(3)),
]
FIELD_VALUES: list[tuple[bytes, int, bytes, int | None]] = [
    (REDIS, 22, length(2) + (length(1 << 41) + text(b"f") + text(b"v")) * 2, 1 << 41),
    (REDIS, 22, length(1) + length(0) + text(b"f") + text(b"v"), None),
    (REDIS, 23, text(b"listpack"), None),
    (
        REDIS,
        24,
        int64(1 << 41)
        + length(2)
        + (b"\x00" + text(b"f") + text(b"v"))
        + (length(900) + text(b"f") + text(b"v")),
        1 << 41,
    ),
    (REDIS, 25, int64(1 << 41) + text(b"listpack"), 1 << 41),
    (REDIS, 25, int64(0) + text(b"listpack"), None),
    (REDIS, 26, stream(4), None),
    (REDIS, 27, stream(5), None),
    (
        REDIS,
        28,
        length(2) + length(0) + b"\x05\x00" + text(b"s") + b"\x06\x03" + text(b"s"),
        None,
    ),
    (
        REDIS,
        28,
        length(2)
        + length(1)
        + length(99)
        + b"\x05\x01"
        + bytes(8)
        + b"\x06\x02"
        + bytes(8),
        None,
    ),
    (
        VALKEY,
        22,
        length(3)
        + text(b"f")
        + text(b"v")
        + int64(-1)
        + text(b"f")
        + text(b"v")
        + int64(1 << 41)
        + text(b"f")
        + text(b"v")
        + int64(1 << 40),
        1 << 40,
    ),
    (VALKEY, 22, length(1) + text(b"f") + text(b"v") + int64(-1), None),
]
VALUES = [
    *[
        (start, code, value, None)
        for start in (REDIS, VALKEY)
        for code, value in PLAIN_VALUES
    ],
    *FIELD_VALUES,
]


def key(code: int, value: bytes, name: bytes = b"key") -> bytes:
    return bytes([code]) + text(name) + value


# The start of an RDB, a part, and its events.
Case = tuple[bytes, bytes, list[Event]]

# Parts that are events of their own, in any version.
PARTS: list[tuple[bytes, list[Event]]] = [
    (b"\xfa" + text(b"redis-ver") + text(b"7.0.15"), [Aux(b"redis-ver", b"7.0.15")]),
    (b"\xfa" + text(b"redis-bits") + b"\xc0\x40", [Aux(b"redis-bits", b"64")]),
    (b"\xf5" + text(b"#!lua name=l"), [Library(b"#!lua name=l")]),
    (b"\xf7" + MODULE, [ModuleAux(MODULE, len(MODULE))]),
    (b"\xfe\x09" + key(0, b"\x00"), [SelectDb(9), Key(9, b"key", 0, b"\x00", 1)]),
    (b"\xfb\x41\x00\x02", [ResizeDb(256, 2)]),
    (b"\xf4\x7f\xff\x05\x01", [SlotInfo(16383, 5, 1)]),
    (
        b"\xfc" + int64(1 << 41) + key(0, b"\x00"),
        [Key(0, b"key", 0, b"\x00", 1, expire_ms=1 << 41)],
    ),
    (
        b"\xfd" + struct.pack("<i", -7) + key(0, b"\x00"),
        [Key(0, b"key", 0, b"\x00", 1, expire_ms=-7000)],
    ),
    (
        b"\xf8\x80\x00\x01\x00\x00" + key(0, b"\x00"),
        [Key(0, b"key", 0, b"\x00", 1, idle=65536)],
    ),
    (
        b"\xf9\xc8" + key(0, b"\x00") * 2,
        [Key(0, b"key", 0, b"\x00", 1, frequency=200), Key(0, b"key", 0, b"\x00", 1)],
    ),
]
METADATA = length(2) + (b"clas" + MODULE_ITEMS) * 2
OWN_PARTS: list[Case] = [
    (
        REDIS,
        b"\xf3" + METADATA + key(0, b"\x00"),
        [Key(0, b"key", 0, b"\x00", 1, metadata=METADATA)],
    ),
    (
        VALKEY,
        b"\xf3" + text(b"job") + length(2) + b"\x00\x05" + b"\x06\x7f\xff",
        [SlotImport(b"job", ((0, 5), (6, 16383)))],
    ),
]


def case_of_value(start: bytes, code: int, value: bytes, expiry: int | None) -> Case:
    event = Key(0, b"key", code, value, len(value), field_expire_ms=expiry)
    return start, key(code, value), [event]


def cases_of_string(written: bytes, plain: bytes) -> list[Case]:
    """Use a string as a name and as a value."""
    as_value = Key(0, b"k", 0, written, len(written))
    return [
        (REDIS, b"\x00" + written + b"\x01v", [Key(0, plain, 0, b"\x01v", 2)]),
        (REDIS, b"\x00\x01k" + written, [as_value]),
    ]


# Every part there is, with the start of an RDB that may have it.
ALL: list[Case] = [
    *[(start, part, events) for start in (REDIS, VALKEY) for part, events in PARTS],
    *OWN_PARTS,
    *[case_of_value(*value) for value in VALUES],
    *[case for string in STRINGS.values() for case in cases_of_string(*string)],
]


@pytest.mark.parametrize(("start", "part", "events"), ALL)
def test_a_part_is_the_same_events_in_any_two_pieces_and_byte_by_byte(
    start: bytes, part: bytes, events: list[Event]
) -> None:
    data = rdb(part, start=start)
    assert parts_of(part, start=start) == events
    whole = read([data])
    assert read(singles(data)) == whole
    for cut in range(len(data)):
        assert read([data[:cut], data[cut:]]) == whole


@pytest.mark.parametrize(("start", "part", "events"), ALL)
def test_a_prefix_needs_data_and_gives_a_prefix_of_the_events(
    start: bytes, part: bytes, events: list[Event]
) -> None:
    data = rdb(part, start=start)
    whole, _ = read([data])
    for size in range(len(data)):
        found, error = read([data[:size]])
        assert found == whole[: len(found)]
        assert error == f"RdbError {size} the RDB is cut short: it ends at byte {size}"


@pytest.mark.parametrize(("start", "part", "events"), ALL)
def test_without_values_the_events_are_the_same_but_for_the_values(
    start: bytes, part: bytes, events: list[Event]
) -> None:
    data = rdb(part, start=start)
    expected = [
        replace(event, value=None) if isinstance(event, ModuleAux) else event
        for event in read([data])[0]
    ]
    expected = [
        replace(event, value=None, metadata=None) if isinstance(event, Key) else event
        for event in expected
    ]
    assert read([data], values=False) == (expected, None)
    assert read(singles(data), values=False) == (expected, None)


def test_hints_belong_to_the_next_key_only() -> None:
    hints = b"\xf3" + METADATA + b"\xfc" + int64(5) + b"\xf8\x07"
    first, second = parts_of(hints + key(2, length(0)) + key(2, length(0)))
    assert first == Key(
        0, b"key", 2, b"\x00", 1, expire_ms=5, idle=7, metadata=METADATA
    )
    assert second == Key(0, b"key", 2, b"\x00", 1)


def test_the_offset_is_where_the_next_part_starts() -> None:
    parts = [part for part, _ in PARTS] + [key(*value) for value in PLAIN_VALUES]
    data = rdb(*parts)
    starts = {len(REDIS)}
    for part in parts:
        starts.add(max(starts) + len(part))
    reader = RdbReader()
    reader.receive_data(data)
    offsets = [reader.offset for _ in drain(reader)]
    assert starts <= set(offsets)
    assert offsets == sorted(offsets)
    assert offsets[-1] == reader.offset == len(data)


@given(
    st.lists(st.sampled_from([part for start, part, _ in ALL if start == REDIS])),
    st.data(),
    st.booleans(),
)
def test_the_split_of_the_bytes_never_shows(
    parts: list[bytes], draw: st.DataObject, values: bool
) -> None:
    data = rdb(*parts)
    cuts = sorted(draw.draw(st.sets(st.integers(0, len(data)))))
    bounds = zip([0, *cuts], [*cuts, len(data)], strict=True)
    pieces = [data[start:end] for start, end in bounds]
    assert read(pieces, values=values) == read([data], values=values)


def test_data_may_be_received_before_the_events_are_taken() -> None:
    data = rdb(*[part for part, _ in PARTS])
    reader = RdbReader()
    events: list[Event] = []
    for piece in singles(data):
        reader.receive_data(piece)
        event = reader.next_event()
        if event is not NEED_DATA:
            events.append(event)
            reader.receive_data(b"")
    events += drain(reader)
    assert events == read([data])[0]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_is_received(
    kind: type[bytes | bytearray | memoryview],
) -> None:
    data = rdb(PARTS[0][0])
    reader = RdbReader()
    reader.receive_data(kind(data))
    assert list(drain(reader)) == read([data])[0]


OTHERS = set(range(30)) - {6, 8, 29}
KNOWN = {
    b"REDIS0009": OTHERS - set(range(22, 30)) | set(range(244, 256)) - {246},
    b"REDIS0012": OTHERS - {26, 27, 28} | set(range(244, 256)) - {246},
    b"REDIS0013": OTHERS - {27, 28} | set(range(243, 256)) - {246},
    b"REDIS0014": OTHERS | set(range(243, 256)) - {246},
    b"VALKEY080": OTHERS - set(range(23, 30)) | set(range(243, 256)) - {246},
}


@pytest.mark.parametrize(("start", "known"), KNOWN.items())
def test_exactly_what_a_family_has_in_a_version_is_known(
    start: bytes, known: set[int]
) -> None:
    for code in range(256):
        _, error = read([start + PARTS[0][0] + bytes([code])])
        what = "opcode" if code > 127 else "value type"
        unknown = f"UnknownRdbError 27 unknown {what} {code} at byte 27 of the RDB"
        assert error is not None
        assert error.startswith(unknown) == (code not in known)


def test_an_error_names_the_family_and_the_version() -> None:
    with pytest.raises(UnknownRdbError, match=r"type 24 at byte 9 .*VALKEY version 80"):
        read_header_events(VALKEY + b"\x18")
    with pytest.raises(UnknownRdbError, match=r"opcode 242 at byte 9 .*version 81"):
        read_header_events(b"VALKEY081\xf2")


def read_header_events(data: bytes) -> list[Event]:
    reader = RdbReader()
    reader.receive_data(data)
    return list(drain(reader))


BROKEN = {
    "a length is no length": (b"\xfe\xc0", 10),
    "an encoding does not exist": (b"\x00\xc4", 10),
    "an unused kind of length": (b"\x00\x82", 10),
    "too many ranges of slots": (b"\xf3\x00\x80\x00\x00\x40\x01", 11),
    "lzf that points before its start": (b"\x00" + lzf(b"\x20\x00", 3), 10),
    "lzf that ends in a copy": (b"\x00" + lzf(b"\x00a\x20", 3), 10),
    "lzf that ends in a long copy": (b"\x00" + lzf(b"\x00a\xe0", 10), 10),
    "lzf that ends in plain bytes": (b"\x00" + lzf(b"\x05abc", 6), 10),
    "lzf of another size": (b"\x00" + lzf(b"\x00a", 2), 10),
    "a name longer than any": (b"\x00" + length((512 << 20) + 1), 10),
    "a name longer than any file": (b"\xfa\x01k" + length((1 << 64) - 1), 12),
    "lzf longer than any name": (b"\x00\xc3" + length((512 << 20) + 1) + b"\x01", 10),
    "lzf of a name longer than any": (b"\x00" + lzf(b"\x00a", (512 << 20) + 1), 10),
    "an element is no string": (b"\x02\x01k\x02\x01a\xc5", 15),
    "an item of a module": (b"\x07\x01k\x00\x01\x01\x09", 15),
}


@pytest.mark.parametrize(("part", "offset"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_part_is_an_error_at_its_offset(part: bytes, offset: int) -> None:
    data = VALKEY + part
    events, error = read([data])
    assert events == [Header(b"VALKEY", 80)]
    assert error is not None
    assert f"Error {offset} " in error
    assert f" at byte {offset} of the RDB (VALKEY version 80)" in error
    assert read(singles(data)) == (events, error)


def test_an_item_of_an_array_may_be_unknown() -> None:
    with pytest.raises(UnknownRdbError, match="item 4 of an array at byte 15"):
        read_header_events(REDIS + b"\x1c\x01k\x01\x00\x00\x04\x00\x04")


def test_an_error_stays() -> None:
    reader = RdbReader()
    reader.receive_data(REDIS + b"\x02\x01k\x02\xc5")
    with pytest.raises(RdbError) as first:
        list(drain(reader))
    reader.receive_data(b"\x01a\x01b")
    for call in (reader.next_event, reader.close):
        with pytest.raises(RdbError) as again:
            call()
        assert again.value is first.value


@pytest.mark.parametrize(
    "start", [b"REDIS00x9", b"VALKEY0x0", b"RESTORED!", b"*3\r\n$3\r\nS"]
)
def test_what_does_not_start_as_an_rdb_is_none(start: bytes) -> None:
    with pytest.raises(RdbError, match="not how an RDB starts, at byte 0"):
        read_header_events(start)


def test_a_wrong_checksum_is_an_error() -> None:
    data = bytearray(rdb(key(0, text(b"value"))))
    data[-12] ^= 1
    events, error = read([bytes(data)])
    assert len(events) == 2
    assert error is not None
    assert error.startswith(f"RdbError {len(data) - 8} checksum ")
    assert read(singles(bytes(data))) == (events, error)


def test_no_checksum_is_right_when_the_server_computed_none() -> None:
    assert read([REDIS + b"\xff" + bytes(8)]) == ([Header(b"REDIS", 14), End(0)], None)


def test_old_versions_have_no_checksum() -> None:
    assert read([b"REDIS0004\xff"]) == ([Header(b"REDIS", 4), End(0)], None)


def test_what_follows_the_rdb_is_left_as_it_is() -> None:
    data, rest = rdb(), b"*1\r\n$4\r\nPING\r\n"
    reader = RdbReader()
    reader.receive_data(data + rest[:3])
    assert reader.unused_data == b""
    assert [type(event) for event in drain(reader)] == [Header, End]
    assert reader.unused_data == rest[:3]
    reader.receive_data(rest[3:])
    assert reader.next_event() is NEED_DATA
    assert reader.unused_data == rest
    assert reader.offset == len(data)
    reader.close()


def test_the_header_and_its_fields_are_read_from_any_prefix() -> None:
    fields = b"\xfa" + text(b"repl-id") + text(b"a" * 40)
    fields += b"\xfa" + text(b"repl-offset") + b"\xc0\x7b"
    data = VALKEY + fields + b"\xf2"
    header = Header(b"VALKEY", 80)
    both = {b"repl-id": b"a" * 40, b"repl-offset": b"123"}
    assert read_header(data) == (header, both)
    seen = []
    for size in range(9, len(data)):
        found, fields_found = read_header(data[:size])
        assert found == header
        if len(fields_found) not in seen:
            seen.append(len(fields_found))
        assert fields_found.items() <= both.items()
    assert seen == [0, 1, 2]
    later = b"\xfe\x00\xfa" + text(b"slot-info") + text(b"1,2,3")
    assert read_header(rdb(fields, later)) == (Header(b"REDIS", 14), both)


@pytest.mark.parametrize("data", [b"", b"REDIS001", b"not an RDB"])
def test_too_little_has_no_header(data: bytes) -> None:
    with pytest.raises(RdbError):
        read_header(data)


def unpacked_by_the_book(tokens: list[bytes | tuple[int, int]]) -> bytes:
    """Apply plain bytes and copies (size, distance) one byte at a time."""
    plain = bytearray()
    for token in tokens:
        if isinstance(token, bytes):
            plain += token
        else:
            size, distance = token
            for _ in range(size):
                plain.append(plain[-distance])
    return bytes(plain)


def packed(token: bytes | tuple[int, int]) -> bytes:
    if isinstance(token, bytes):
        return bytes([len(token) - 1]) + token
    size, distance = token[0] - 2, token[1] - 1
    high, low = divmod(distance, 256)
    if size < 7:
        return bytes([size << 5 | high, low])
    return bytes([7 << 5 | high, size - 7, low])


PLAIN = st.binary(min_size=1, max_size=32)
COPY = st.tuples(st.integers(3, 264), st.integers(1, 8192))


@given(st.lists(PLAIN | COPY, max_size=60))
def test_compressed_names_are_unpacked(tokens: list[bytes | tuple[int, int]]) -> None:
    valid: list[bytes | tuple[int, int]] = []
    size = 0
    for token in tokens:
        if isinstance(token, bytes) or token[1] <= size:
            valid.append(token)
            size += len(token) if isinstance(token, bytes) else token[0]
    name = lzf(b"".join(map(packed, valid)), size)
    [event] = parts_of(b"\x00" + name + b"\x00")
    assert event == Key(0, unpacked_by_the_book(valid), 0, b"\x00", 1)


# Bytes that mean something here, so that garbage gets beyond its first byte.
GARBAGE = st.lists(
    st.binary(max_size=20)
    | st.sampled_from(range(30)).map(lambda code: bytes([code]))
    | st.sampled_from(range(240, 256)).map(lambda code: bytes([code]))
    | st.sampled_from([part for _, part, _ in ALL]),
    max_size=12,
).map(b"".join)


@settings(max_examples=400)
@given(st.sampled_from([*KNOWN, b"VALKEY081", b""]), GARBAGE, st.booleans())
def test_garbage_is_an_event_or_the_error_in_one_piece_and_byte_by_byte(
    start: bytes, garbage: bytes, values: bool
) -> None:
    data = start + garbage
    assert read([data], values=values) == read(singles(data), values=values)


@settings(max_examples=400)
@given(st.sampled_from(ALL), st.data())
def test_a_damaged_rdb_is_never_complete(part: Case, draw: st.DataObject) -> None:
    data = bytearray(rdb(part[1], start=part[0]))
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] ^= draw.draw(st.integers(1, 255))
    events, error = read([bytes(data)])
    # The one damage that cannot be seen: an end that says it has no checksum.
    assert error is not None or End(0) in events
    assert read(singles(bytes(data))) == (events, error)


def test_lzf_is_unpacked_no_further_than_it_says() -> None:
    bomb = b"\x00z" + b"\xe0\xff\x00" * 100_000
    reader = RdbReader()
    reader.receive_data(REDIS + b"\x00" + lzf(bomb, 5))
    tracemalloc.start()
    try:
        with pytest.raises(RdbError, match="does not unpack at byte 10 "):
            list(drain(reader))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(bomb)  # It would come to 26 MB.


LARGE = 32 * 1024 * 1024
LINE = text(b"a" * 63)


def lines() -> Iterable[bytes]:
    """Yield LARGE bytes, which are also so many strings, in pieces of 64 KiB."""
    piece = LINE * 1024
    return (piece for _ in range(LARGE // len(piece)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\x00\x01k" + length(LARGE), b""),
        (b"\x04\x01k\x01\x01f" + length(LARGE), b""),
        (b"\x02\x01k" + length(LARGE // len(LINE)), b""),
        (b"\x07\x01k\x00\x05" + length(LARGE), b"\x00"),
    ],
    ids=["one string", "a field's value", "small strings", "a module's string"],
)
def test_keys_alone_are_read_in_little_memory(before: bytes, after: bytes) -> None:
    reader = RdbReader(values=False)
    reader.receive_data(REDIS + before)
    events = list(drain(reader))
    tracemalloc.start()
    try:
        for piece in lines():
            reader.receive_data(piece)
            events += drain(reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024
    reader.receive_data(after + b"\xff" + bytes(8))
    events += drain(reader)
    reader.close()
    # All but the type and the name, which is of one byte.
    size = LARGE + len(before + after) - 3
    assert events[1:] == [Key(0, b"k", before[0], None, size), End(0)]


@pytest.mark.slow
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize(
    "part",
    [
        b"\x04\x01k" + length(50_000) + (text(b"field") + text(b"value")) * 50_000,
        b"\x16\x01k" + length(30_000) + (b"\x01f\x01v" + int64(-1)) * 30_000,
        b"\x00\x01k" + text(bytes(600_000)),
        b"\x00" + text(bytes(600_000)) + b"\x01v",
    ],
)
def test_small_pieces_of_large_things_cost_no_more_than_their_number(
    part: bytes, values: bool
) -> None:
    data = rdb(part, start=VALKEY)
    pieces = [data[i : i + 16] for i in range(0, len(data), 16)]
    started = time.process_time()
    events, error = read(pieces, values=values)
    # About 0.3 s; starting over with each piece takes many minutes.
    assert time.process_time() - started < 20
    assert error is None
    assert events == read([data], values=values)[0]


def test_every_type_of_value_that_is_read_has_a_name() -> None:
    for magic, version in ((b"REDIS", 99), (b"VALKEY", 99)):
        for number in walkers(magic, version):
            assert type_name(number).islower()
    assert (type_name(0), type_name(19), type_name(22)) == ("string", "stream", "hash")
