"""The tracker knows what a slow and simple parser knows, however the bytes were cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtape.replication import tracker as module
from kvtape.replication.resp import PIECE
from kvtape.replication.tracker import MANY_WORDS, NO_DB, Summary, Tracker

# Where streams start here, so that a mix-up of offsets and positions shows.
START = 1_000_000

Command = Sequence[bytes]


def pack(command: Command) -> bytes:
    packed = [b"*%d\r\n" % len(command)]
    packed += [b"$%d\r\n%b\r\n" % (len(word), word) for word in command]
    return b"".join(packed)


def join(commands: Iterable[Command]) -> bytes:
    return b"".join(map(pack, commands))


PING = [b"PING"]
GETACK = [b"REPLCONF", b"GETACK", b"*"]
SELECT = [b"SELECT", b"3"]


# The model.


@dataclass
class Known:
    """What is known of a stream after some of it."""

    boundary: int
    db: int
    in_multi: bool = False
    getack: bool = False
    summary: Summary = field(default_factory=Summary)


def parse(stream: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yield each command of a stream with the position where it ends."""
    position = 0

    def line() -> int:
        nonlocal position
        end = stream.index(b"\r\n", position)
        number = int(stream[position + 1 : end])
        position = end + 2
        return number

    while position < len(stream):
        command = []
        for _ in range(line()):
            length = line()
            command.append(stream[position : position + length])
            position += length + 2
        yield position, command


class Model:
    """Knows a whole stream from the start, and so what is to be known at any place."""

    def __init__(self, stream: bytes, start: int = START, db: int = NO_DB) -> None:
        self._commands = [(start + end, words) for end, words in parse(stream)]
        self._start = start
        self._db = db

    def at(self, offset: int) -> Known:
        """Return what is to be known when the stream was fed up to offset."""
        known = Known(self._start, self._db)
        db = self._db
        for end, command in self._commands:
            if end > offset:
                break
            name = command[0].upper()
            summary = known.summary
            words = min(len(command), 255)
            summary.names[name] = max(words, summary.names.get(name, 0))
            summary.commands += 1
            if name == b"SELECT":
                db = int(command[1])
                summary.highest_db = max(summary.highest_db, db)
            if name == b"REPLCONF" and command[1].upper() == b"GETACK":
                known.getack = True
            known.in_multi = name == b"MULTI" or (known.in_multi and name != b"EXEC")
            if not known.in_multi:
                known.boundary, known.db = end, db
        return known


def check(stream: bytes, pieces: Iterable[bytes]) -> None:
    """Feed the pieces, and compare with the model after each."""
    model = Model(stream)
    tracker = Tracker(START)
    seen, getack = Summary(), False
    for piece in pieces:
        tracker.feed(piece)
        seen.merge(tracker.take_summary())
        getack = tracker.take_getack() or getack
        known = Known(tracker.boundary, tracker.db, tracker.in_multi, getack, seen)
        assert known == model.at(tracker.offset)
    assert tracker.lost_because is None
    assert tracker.offset == START + len(stream)


def singly(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def by(size: int, data: bytes) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


# Streams.


def cased(name: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([name, name.lower(), name.capitalize()])


sizes = st.sampled_from([0, 1, 9, 10, 99, 100, 999, 1000])
words = st.one_of(
    st.binary(max_size=30),
    sizes.map(bytes),
    st.sampled_from([join([PING]), b"*1\r\n$4\r\n", b"\r\n", b"$-1\r\n", b"+OK\r\n"]),
)
commands: st.SearchStrategy[list[bytes]] = st.one_of(
    st.tuples(cased(b"SELECT"), st.integers(0, 9999).map(b"%d".__mod__)).map(list),
    cased(b"MULTI").map(lambda name: [name]),
    cased(b"EXEC").map(lambda name: [name]),
    cased(b"PING").map(lambda name: [name]),
    st.tuples(cased(b"REPLCONF"), cased(b"GETACK"), st.just(b"*")).map(list),
    st.tuples(cased(b"REPLCONF"), st.just(b"ACK"), st.just(b"7")).map(list),
    st.tuples(cased(b"SET"), words, words).map(list),
    st.lists(words, max_size=12).map(lambda keys: [b"del", b"", *keys]),
)
streams = st.lists(commands, max_size=20)


@given(streams, st.data())
def test_what_it_knows_does_not_depend_on_how_the_stream_was_cut(
    stream: list[list[bytes]], data: st.DataObject
) -> None:
    packed = join(stream)
    check(packed, [packed])
    at = data.draw(st.lists(st.integers(0, len(packed)), max_size=20))
    edges = [0, *sorted(at), len(packed)]
    check(packed, [packed[a:b] for a, b in pairwise(edges)])


@given(st.lists(commands, max_size=6))
@settings(max_examples=30)
def test_it_can_be_fed_byte_by_byte(stream: list[list[bytes]]) -> None:
    packed = join(stream)
    check(packed, singly(packed))


TURNS = [
    *(
        PING,
        SELECT,
        [b"SET", b"k", b""],
        [b"multi"],
        [b"Select", b"15"],
        [b"INCR", b"n"],
    ),
    *(
        [b"EXEC"],
        GETACK,
        [b"MULTI"],
        [b"set", b"k", join([[b"EXEC"]])],
        [b"exec"],
        PING,
    ),
]


def test_a_stream_can_be_cut_in_two_at_every_place() -> None:
    packed = join(TURNS)
    for cut in range(len(packed) + 1):
        check(packed, [packed[:cut], packed[cut:]])


@given(streams, streams, st.data())
def test_from_a_boundary_on_it_comes_to_know_the_same(
    before: list[list[bytes]], after: list[list[bytes]], data: st.DataObject
) -> None:
    packed = join([*before, *after])
    first = Tracker(START)
    first.feed(packed[: data.draw(st.integers(0, len(packed)))])
    again = Tracker(first.boundary, first.db)
    again.feed(packed[first.boundary - START :])
    whole = Tracker(START)
    whole.feed(packed)
    assert (again.offset, again.boundary, again.db, again.in_multi) == (
        *(whole.offset, whole.boundary, whole.db, whole.in_multi),
    )


# Sizes: around those of the pieces that are parsed at once, and of what is kept.

EDGES = [n * PIECE + more for n in (1, 2, 3) for more in (-40, -1, 0, 1)]


@pytest.mark.parametrize("size", [0, 9, 10, 99, 100, 999, 1000, 16383, 16384, *EDGES])
def test_a_value_of_any_size_is_followed(size: int) -> None:
    value = bytes(size)
    packed = join([SELECT, [b"SET", b"key", value], [b"APPEND", value, b""], PING])
    for pieces in (
        [packed],
        by(1460, packed),
        by(PIECE, packed),
        by(2 * PIECE, packed),
        by(2 * PIECE + 1, packed),
    ):
        check(packed, pieces)


def test_a_long_command_can_be_cut_at_every_place_between_its_words() -> None:
    long = [b"Set", b"k" * 70_000, b"v", b"", b"px", b"v" * 1000]
    packed = join([PING, long, SELECT, [b"GET", b"k"]])
    start = packed.index(b"\r\n$1\r\nv") - 5
    middle = packed[start : start + 50]
    for cut in range(len(middle)):
        edges = [0, start, start + cut, start + cut + 1, len(packed)]
        check(packed, [packed[a:b] for a, b in pairwise(edges)])
    rest = packed[start:]
    check(packed, [packed[:start], *singly(rest)])


def test_the_name_of_a_long_command_may_be_cut() -> None:
    packed = join([[b"mset", *[b"word"] * 15_000], PING])
    for start in range(3, 20):
        check(packed, [packed[:start], *by(3 * PIECE, packed[start:])])


def test_a_long_command_within_a_transaction_is_no_boundary() -> None:
    packed = join([[b"MULTI"], [b"SET", b"k", bytes(100_000)], [b"EXEC"], PING])
    check(packed, by(10_000, packed))


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_one_long_command_may_follow_another(size: int) -> None:
    long = [b"SET", b"k", bytes(2 * PIECE + size)]
    packed = join([long, long, PING, long])
    check(packed, by(2 * PIECE + size, packed))


@pytest.mark.parametrize("word", [b"", b"k", b"key:000000000000"])
def test_a_command_of_100_000_words_is_followed(word: bytes) -> None:
    packed = join([SELECT, [b"DEL", *[word] * 100_000], GETACK])
    check(packed, by(2 * PIECE, packed))


def test_many_small_commands_are_followed() -> None:
    stream = [[b"INCR", b"k%d" % n] for n in range(10_000)]
    stream[5_000:5_000] = TURNS
    packed = join(stream)
    check(packed, by(20_011, packed))


def test_a_value_of_64_mib_is_not_kept() -> None:
    piece = bytes(1024 * 1024)
    header = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (64 * len(piece))
    tracker = Tracker(0)
    tracemalloc.start()
    try:
        tracker.feed(header)
        for _ in range(64):
            tracker.feed(piece)
            assert tracker.boundary == 0
        tracker.feed(b"\r\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tracker.boundary == len(header) + 64 * len(piece) + 2
    assert tracker.take_summary().names == {b"SET": 3}
    assert peak < 1024 * 1024


def test_room_for_a_million_words_is_made_only_once() -> None:
    # hiredis makes it as soon as a header announces them, however few have come. This
    # is one of 8 MB, which would be made again with every byte.
    tracker = Tracker(0)
    for byte in singly(b"*1000000\r\n" + b"$1\r\nx\r\n" * 500):
        tracker.feed(byte)
    assert tracker._kept == b""
    assert tracker.boundary == 0
    assert tracker.lost_because is None


# What was said.


def test_it_starts_where_and_with_what_it_is_told() -> None:
    tracker = Tracker(START, 5)
    tracker.feed(b"")
    assert (tracker.offset, tracker.boundary, tracker.db) == (START, START, 5)
    tracker.feed(join([PING]))
    assert (tracker.boundary, tracker.db) == (START + 14, 5)


def test_a_request_for_an_ack_is_told_once() -> None:
    tracker = Tracker(START)
    tracker.feed(join([GETACK]))
    assert tracker.take_getack()
    assert not tracker.take_getack()


@pytest.mark.parametrize("command", [[b"REPLCONF"], [b"REPLCONF", b"ACK", b"1"]])
def test_not_every_replconf_asks_for_an_ack(command: list[bytes]) -> None:
    tracker = Tracker(START)
    tracker.feed(join([command]))
    assert tracker.lost_because is None
    assert not tracker.take_getack()


def test_a_summary_counts_words_no_further_than_one_byte_goes() -> None:
    tracker = Tracker(START)
    tracker.feed(join([[b"DEL", *[b"k"] * 999], [b"del", b"k"]]))
    assert tracker.take_summary().names == {b"DEL": MANY_WORDS}


def test_a_summary_begins_anew_when_it_is_taken() -> None:
    tracker = Tracker(START)
    tracker.feed(join([SELECT, [b"SET", b"k", b"v"]]))
    assert tracker.take_summary() == Summary({b"SELECT": 2, b"SET": 3}, 3, 2)
    assert tracker.take_summary() == Summary()
    tracker.feed(join([[b"SET", b"k", b"v"]]))
    assert tracker.take_summary() == Summary({b"SET": 3}, NO_DB, 1)


def test_merged_summaries_know_what_both_knew() -> None:
    summary = Summary({b"SET": 3, b"DEL": 9}, 4, 10)
    summary.merge(Summary({b"SET": 5, b"DEL": 2, b"PING": 1}, 2, 5, lost=True))
    assert summary == Summary({b"SET": 5, b"DEL": 9, b"PING": 1}, 4, 15, lost=True)


@pytest.mark.parametrize(
    ("stream", "is_idle"),
    [
        ([], True),
        ([PING, GETACK, [b"ping"]], True),
        ([PING, SELECT], False),
        ([[b"SET", b"k", b"v"], PING], False),
    ],
)
def test_only_what_keeps_the_link_alive_is_idle(
    stream: list[list[bytes]], is_idle: bool
) -> None:
    tracker = Tracker(START)
    tracker.feed(join(stream))
    assert tracker.take_summary().is_idle is is_idle


def test_what_could_not_be_followed_is_not_idle() -> None:
    assert not Summary(lost=True).is_idle


# What is no stream of commands.

LONG_HEADER = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n"
LONG_VALUE = b"$70000\r\n%b\r\n" % bytes(70_000)
# A command of which the last word is yet to come.
LONG_START = b"*4" + LONG_HEADER[2:] + LONG_VALUE

NO_STREAMS = {
    "an inline command": b"PING\r\n",
    "a newline": b"\n",
    "an empty line": b"\r\n",
    "a time stamp of an AOF": b"#TS:1700000000\r\n",
    "a status": b"+OK\r\n",
    "an error": b"-NOPERM User tape has no permissions\r\n",
    "a number": b":7\r\n",
    "a zero, which equals False": b":0\r\n",
    "a false": b"#f\r\n",
    "a null": b"$-1\r\n",
    "a null array": b"*-1\r\n",
    "a bulk string": b"$4\r\nPING\r\n",
    "a map": b"%1\r\n+a\r\n+b\r\n",
    "a map in a command": b"*1\r\n%1\r\n:0\r\n+b\r\n",
    "a map with a key that Python cannot have": b"*1\r\n%1\r\n*1\r\n:1\r\n+a\r\n",
    "no words": b"*0\r\n",
    "a null word": b"*2\r\n$3\r\nGET\r\n$-1\r\n",
    "a null name": b"*1\r\n$-1\r\n",
    "a number as a word": b"*2\r\n$3\r\nGET\r\n:1\r\n",
    "a status as a word": b"*2\r\n$3\r\nGET\r\n+key\r\n",
    "an array as a word": b"*2\r\n$3\r\nGET\r\n*1\r\n$3\r\nkey\r\n",
    "an array as a name": b"*1\r\n*1\r\n$4\r\nPING\r\n",
    "arrays without end": b"*1\r\n" * 20,
    "a padded number of words": b"*01\r\n$4\r\nPING\r\n",
    "a padded length": b"*1\r\n$04\r\nPING\r\n",
    "a length that is too short": b"*1\r\n$3\r\nPING\r\n",
    "an empty name": b"*1\r\n$0\r\n\r\n",
    "a name that is none": pack([b"x" * 65]),
    "SELECT alone": pack([b"SELECT"]),
    "SELECT of two": pack([b"SELECT", b"1", b"2"]),
    "SELECT of no number": pack([b"SELECT", b"one"]),
    "SELECT of less than nothing": pack([b"SELECT", b"-1"]),
    "SELECT of a number that only Python reads": pack([b"SELECT", b"1_0"]),
    "SELECT of a number that no database has": pack([b"SELECT", b"9" * 10]),
    "SELECT of a number that takes for ever": pack([b"SELECT", b"9" * 5000]),
    "a long padded length": LONG_HEADER + b"$070000\r\n" + bytes(70_000),
    "a long name": b"*2\r\n$70000\r\n" + bytes(70_000),
    "a long name, announced": b"*20000\r\n$65\r\n" + bytes(65),
    "an empty name of a long command": b"*2\r\n$0\r\n\r\n" + LONG_VALUE,
    "a long SELECT": b"*2\r\n$6\r\nSELECT\r\n" + LONG_VALUE,
    "a number in a long command": LONG_START + b":1\r\n",
    "no word in a long command": LONG_START + b"\r\n",
    "a padded length in a long command": LONG_START + b"$01\r\nx\r\n",
    "half a line's end in a long command": LONG_START + b"$01\nx\r\n",
    "a length without end in a long command": LONG_START + b"$" + b"1" * 40,
    "something behind a long command": LONG_HEADER + LONG_VALUE + b"+OK\r\n",
}


@pytest.mark.parametrize("said", NO_STREAMS.values(), ids=NO_STREAMS.keys())
@pytest.mark.parametrize("before", [b"", join([PING, PING])], ids=["first", "later"])
@pytest.mark.parametrize("size", [1, PIECE, 10 * PIECE])
def test_what_is_no_stream_is_found_out(before: bytes, said: bytes, size: int) -> None:
    stream = before + said + join([PING] * 3)
    tracker = Tracker(START)
    # Of a long value no byte alone is of interest.
    pieces = by(max(size, len(said) // 100), stream)
    for piece in pieces:
        tracker.feed(piece)
    assert tracker.lost_because is not None
    assert len(tracker.lost_because) < 200
    assert tracker.boundary == tracker.offset == START + len(stream)
    assert tracker.take_summary().lost


def test_when_it_is_lost_it_says_why_and_where() -> None:
    tracker = Tracker(START)
    tracker.feed(join([PING]))
    tracker.feed(b"+OK\r\n")
    assert tracker.lost_because == (
        "no command begins with b'+OK\\r\\n' (between 1000014 and 1000019)"
    )


def test_once_lost_every_offset_is_a_boundary_and_no_stretch_is_known() -> None:
    tracker = Tracker(START)
    tracker.feed(join([SELECT, [b"MULTI"]]))
    tracker.feed(b"+OK\r\n")
    assert tracker.take_summary().lost
    assert not tracker.in_multi
    for piece in (b"*1\r\n$4", b"\r\nPING\r\n", bytes(100_000)):
        tracker.feed(piece)
        assert tracker.boundary == tracker.offset
        assert tracker.db == 3
        assert tracker.take_summary() == Summary(lost=True)


def test_what_came_before_what_is_no_stream_counts_as_far_as_it_was_parsed() -> None:
    tracker = Tracker(START)
    tracker.feed(join([SELECT, GETACK]))
    tracker.feed(b"+OK\r\n")
    assert tracker.take_getack()
    assert tracker.take_summary() == Summary(
        {b"SELECT": 2, b"REPLCONF": 3}, 3, 2, lost=True
    )


FRAGMENTS = [
    *(join([PING]), join([SELECT]), join([GETACK]), b"*1\r\n", b"*2\r\n", b"$4\r\n"),
    *(b"PING\r\n", b"$6\r\nSELECT\r\n", b"$1\r\n3\r\n", b"\r\n", b"\n", b"$", b"*"),
    *(b"*-1\r\n", b"$-1\r\n", b"*0\r\n", b":0\r\n", b"#t\r\n", b"_\r\n", b",1.5\r\n"),
    *(b"%1\r\n", b"~1\r\n", b">1\r\n", b"|1\r\n", b"=5\r\ntxt:a\r\n", b"(9\r\n"),
    *(b"-ERR\r\n", b"+OK\r\n", b"*20000\r\n", b"*4294967296\r\n", b"$07\r\n", b"\xff"),
]
garbage = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=10)))


@given(garbage)
def test_garbage_is_followed_or_lost_and_never_more(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    for fed in ([stream], pieces, singly(stream)):
        tracker = Tracker(START)
        for piece in fed:
            before = tracker.boundary
            tracker.feed(piece)
            assert before <= tracker.boundary <= tracker.offset
            if tracker.lost_because is not None:
                assert tracker.boundary == tracker.offset
        assert tracker.offset == START + len(stream)


@given(garbage)
def test_garbage_within_a_long_command_is_walked_over_or_lost(
    pieces: list[bytes],
) -> None:
    for fed in (pieces, singly(b"".join(pieces))):
        tracker = Tracker(START)
        tracker.feed(b"*20000\r\n$3\r\nSET\r\n")
        for piece in fed:
            tracker.feed(piece)
            lost = tracker.lost_because is not None
            assert tracker.boundary == (tracker.offset if lost else START)


def test_what_is_kept_is_what_the_tests_above_take_it_for() -> None:
    assert module._KEPT == 2 * PIECE
    assert module._MANY < 15_000
