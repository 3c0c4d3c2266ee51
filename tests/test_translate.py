"""What is passed on is what was recorded, but for the little that has to change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import PointError, VerificationError
from kvtape.replication.tracker import NO_DB, Summary, Tracker
from kvtape.tape.field_ttl import FieldTtls
from kvtape.tape.segment import NEED_DATA, Facts, Frame, Header, Mark, Parser, Writer
from kvtape.tape.translate import (
    Destination,
    Piece,
    Tally,
    Translator,
    read_commands,
)
from tapes import command

START = 1000
TIME = 1_700_000_000_000

Words = Sequence[str | bytes | int]


def words(text: str) -> list[str]:
    return text.split()


def facts_of(
    frames: Iterable[bytes], times: Iterable[int] | None = None, *, lost: bool = False
) -> list[tuple[bytes, Facts]]:
    """Return frames with the facts that a recording of them has.

    A frame was received at one time: a second after the one before, or as given.
    """
    frames = list(frames)
    tracker = Tracker(START)
    writer = Writer(Header("r" * 40, START, NO_DB, TIME))
    content = writer.header_bytes()
    times = times or (TIME + 1000 * n for n in range(1, len(frames) + 1))
    for data, time in zip(frames, times, strict=True):
        tracker.feed(data)
        summary = Summary(lost=True) if lost else tracker.take_summary()
        end = writer.end + len(data)
        boundary = end if lost else tracker.boundary
        content += writer.frame(data, [Mark(end, time)], boundary, tracker.db, summary)
    parser = Parser()
    parser.receive_data(content)
    found = []
    while (part := parser.next_part()) is not NEED_DATA:
        if isinstance(part, Frame):
            found.append((part.stream(), part.facts))
    return found


def pieces_of(
    frames: Iterable[bytes], times: Iterable[int] | None = None, *, lost: bool = False
) -> list[Piece]:
    return [
        Piece(facts.start, facts.end, data, facts)
        for data, facts in facts_of(frames, times, lost=lost)
    ]


def run(pieces: Iterable[Piece], destination: Destination) -> tuple[bytes, Tally]:
    translator = Translator(destination)
    data = b"".join(translator.translate(piece) for piece in pieces)
    return data, translator.tally


def translated(*commands: Words, to: Destination = "file") -> list[list[bytes]]:
    """Translate commands that were received at TIME, in one frame."""
    stream = b"".join(command(*each) for each in commands)
    data, _ = run(pieces_of([stream], [TIME]), to)
    return [found for found, _, _ in read_commands(data, 0)]


def encoded(text: str) -> list[bytes]:
    return text.encode().split()


IN_100_S = TIME + 100_000

# What a server may send, and what is passed on. It was received at TIME.
RULES = [
    ("SET k v EX 100", f"SET k v PXAT {IN_100_S}"),
    ("SET k v PX 100000", f"SET k v PXAT {IN_100_S}"),
    ("set k v px 100000", f"set k v PXAT {IN_100_S}"),
    ("SET k v NX PX 100000 GET", f"SET k v NX PXAT {IN_100_S} GET"),
    ("SETEX k 100 v", f"SET k v PXAT {IN_100_S}"),
    ("sEtEx k 100 v", f"SET k v PXAT {IN_100_S}"),
    ("PSETEX k 100000 v", f"SET k v PXAT {IN_100_S}"),
    ("psetex k 100000 v", f"SET k v PXAT {IN_100_S}"),
    ("EXPIRE k 100", f"PEXPIREAT k {IN_100_S}"),
    ("expire k 100 nx", f"PEXPIREAT k {IN_100_S} nx"),
    ("PEXPIRE k 100000", f"PEXPIREAT k {IN_100_S}"),
    ("pexpire k 100000 GT", f"PEXPIREAT k {IN_100_S} GT"),
    ("EXPIRE k -1", f"PEXPIREAT k {TIME - 1000}"),
    ("GETEX k EX 100", f"GETEX k PXAT {IN_100_S}"),
    ("GETEX k px 100000", f"GETEX k PXAT {IN_100_S}"),
    ("HEXPIRE k 100 FIELDS 1 f", f"HPEXPIREAT k {IN_100_S} FIELDS 1 f"),
    ("hpexpire k 100000 NX FIELDS 1 f", f"HPEXPIREAT k {IN_100_S} NX FIELDS 1 f"),
    ("HGETEX k EX 100 FIELDS 1 EX", f"HGETEX k PXAT {IN_100_S} FIELDS 1 EX"),
    ("HSETEX k PX 100000 FIELDS 1 f v", f"HSETEX k PXAT {IN_100_S} FIELDS 1 f v"),
    ("RESTORE k 100000 load", f"RESTORE k {IN_100_S} load ABSTTL"),
    ("restore k 100000 load REPLACE", f"restore k {IN_100_S} load REPLACE ABSTTL"),
    ("RESTORE-ASKING k 100000 x", f"RESTORE-ASKING k {IN_100_S} x ABSTTL"),
]  # fmt: skip

# What looks like one of these, and means what it says.
FINE = [
    "SET k v",
    "SET k PX",
    "SET EX PX",
    "SET k v KEEPTTL",
    f"SET k v PXAT {TIME}",
    "SET k v EXAT 1700000000",
    "GETEX k PERSIST",
    f"GETEX k PXAT {TIME}",
    f"PEXPIREAT k {TIME}",
    "EXPIREAT k 1700000000",
    "RESTORE k 0 load",
    f"RESTORE k {TIME} load ABSTTL",
    f"restore k {TIME} load replace absttl",
    "HGETEX k PERSIST FIELDS 2 EX 100",
    "HSETEX k KEEPTTL FIELDS 1 PX 100",
    "PERSIST k",
    "SCRIPT LOAD return",
    "EVALSHA 0123 0",
    "FLUSHALL",
]


@pytest.mark.parametrize(("sent", "passed_on"), RULES)
@pytest.mark.parametrize("to", ["file", "link"])
def test_what_counts_from_now_counts_from_when_it_was_received(
    sent: str, passed_on: str, to: Destination
) -> None:
    around = ("INCR", "n")
    assert translated(around, words(sent), around, to=to) == [
        [b"INCR", b"n"],
        encoded(passed_on),
        [b"INCR", b"n"],
    ]


@pytest.mark.parametrize("sent", FINE)
@pytest.mark.parametrize("to", ["file", "link"])
def test_what_is_absolute_is_passed_on_as_it_came(sent: str, to: Destination) -> None:
    # An expiry beside it makes the translator look at each command.
    stream = command(*words(sent)) + command("EXPIRE", "other", 1)
    data, tally = run(pieces_of([stream], [TIME]), to)
    assert data == command(*words(sent)) + command("PEXPIREAT", "other", TIME + 1000)
    assert tally.rewritten == 1


@pytest.mark.parametrize(
    ("sent", "left_out_of"),
    [
        (("PING",), {"file"}),
        (("ping",), {"file"}),
        (("REPLCONF", "GETACK", "*"), {"file"}),
        (("replconf", "getack", "*"), {"file"}),
        (("PUBLISH", "channel", "message"), {"file", "link"}),
        (("spublish", "channel", "message"), {"file", "link"}),
        (("CLUSTER", "SYNCSLOTS", "FINISH"), {"file", "link"}),
        (("cluster", "setslot", "1"), {"file", "link"}),
        (("SCRIPT", "FLUSH"), set()),
        (("FUNCTION", "LOAD", "code"), set()),
    ],
)
@pytest.mark.parametrize("to", ["file", "link"])
def test_what_is_no_data_is_left_out(
    sent: Words, left_out_of: set[Destination], to: Destination
) -> None:
    write = command("SET", "key", "value")
    for around in (b"", write):
        stream = around + command(*sent) + around
        data, tally = run(pieces_of([stream]), to)
        is_left_out = to in left_out_of
        assert data == (around + around if is_left_out else stream)
        assert tally.left_out == is_left_out
        assert tally.is_verbatim == (not is_left_out)


def test_the_time_is_that_of_the_receipt_which_completed_the_command() -> None:
    expire = command("EXPIRE", "key", 10)
    # The first is cut in two, the second came in one with the end of the first.
    frames = [expire[:7], expire[7:] + expire, expire]
    data, _ = run(pieces_of(frames, [TIME, TIME + 1000, TIME + 2000]), "file")
    wanted = [TIME + 1000, TIME + 1000, TIME + 2000]
    assert data == b"".join(
        command("PEXPIREAT", "key", time + 10_000) for time in wanted
    )


def test_within_a_frame_the_marks_tell_the_time() -> None:
    expire = command("EXPIRE", "key", 10)
    writer = Writer(Header("r" * 40, START, NO_DB, TIME))
    marks = [Mark(START + (n + 1) * len(expire), TIME + n) for n in range(3)]
    tracker = Tracker(START)
    tracker.feed(expire * 3)
    content = writer.header_bytes() + writer.frame(
        expire * 3, marks, tracker.boundary, tracker.db, tracker.take_summary()
    )
    parser = Parser()
    parser.receive_data(content)
    parser.next_part()
    frame = parser.next_part()
    assert isinstance(frame, Frame)
    data, _ = run([Piece(START, writer.end, expire * 3, frame.facts)], "file")
    assert data == b"".join(
        command("PEXPIREAT", "key", TIME + n + 10_000) for n in range(3)
    )


def test_slots_that_are_trimmed_are_refused_by_name_and_offset() -> None:
    write = command("SET", "key", "value")
    for name in ("TRIMSLOTS", "trimslots"):
        stream = write + command(name, "RANGES", 1, 0, 10)
        with pytest.raises(
            PointError, match=f"TRIMSLOTS.*last .* {START + len(write)},"
        ):
            run(pieces_of([stream]), "link")


# What passes verbatim.


PLAIN = b"".join(
    command(*each)
    for each in (
        ("SELECT", 3),
        ("SET", "key", "value"),
        ("MULTI",),
        ("SADD", "set", "a", "b"),
        ("PEXPIREAT", "set", TIME),
        ("EXEC",),
    )
)


@pytest.mark.parametrize("to", ["file", "link"])
def test_what_needs_no_change_is_not_even_parsed(to: Destination) -> None:
    [piece] = pieces_of([PLAIN])
    # Nobody could parse this; it has the facts of what can be.
    unreadable = Piece(piece.start, piece.end, b"\0" * len(PLAIN), piece.facts)
    data, tally = run([unreadable], to)
    assert data == unreadable.data
    assert tally.is_verbatim
    assert tally.commands == 6
    assert tally.highest_db == 3


@pytest.mark.parametrize(
    "more", [("SET", "k", "v", "KEEPTTL"), ("RESTORE", "k", 0, "x")]
)
def test_what_might_need_a_change_is_looked_at_and_then_passed_on(more: Words) -> None:
    [piece] = pieces_of([PLAIN + command(*more)])
    unreadable = Piece(piece.start, piece.end, b"\0" * len(piece.data), piece.facts)
    with pytest.raises(VerificationError):
        run([unreadable], "file")
    data, tally = run([piece], "file")
    assert data == piece.data
    assert tally.is_verbatim
    assert tally.commands == 7


def test_the_tally_counts_what_went_through() -> None:
    frames = [
        PLAIN,
        command("PING") + command("SELECT", 9) + command("EXPIRE", "set", 1),
        command("PUBLISH", "a", "b"),
    ]
    data, tally = run(pieces_of(frames), "file")
    assert tally.commands == 10
    assert (tally.left_out, tally.rewritten) == (2, 1)
    assert tally.bytes_in == sum(map(len, frames))
    assert tally.bytes_out == len(data)
    assert tally.highest_db == 9
    assert not tally.is_verbatim


# Groups of frames.


@pytest.mark.parametrize("to", ["file", "link"])
def test_a_command_longer_than_a_frame_is_put_together(to: Destination) -> None:
    large = command("SET", "key", b"x" * 5000, "PX", 1000)
    frames = [large[n : n + 999] for n in range(0, len(large), 999)]
    pieces = pieces_of(frames)
    translator = Translator(to)
    *waited, last = [translator.translate(piece) for piece in pieces]
    assert not any(waited)
    time = pieces[-1].facts.time + 1000
    assert last == command("SET", "key", b"x" * 5000, "PXAT", time)
    assert translator.tally.commands == 1


def test_a_transaction_longer_than_a_frame_is_translated_as_a_whole() -> None:
    many = [command("SET", f"key:{n}", "v" * 50) for n in range(100)]
    stream = command("MULTI") + b"".join(many) + command("EXEC")
    for extra in (b"", command("PING")):
        whole = stream + extra
        frames = [whole[n : n + 512] for n in range(0, len(whole), 512)]
        data, tally = run(pieces_of(frames), "file")
        assert data == stream
        assert tally.commands == 102 + bool(extra)


@pytest.mark.parametrize("to", ["file", "link"])
def test_a_frame_that_is_used_in_part_is_looked_at_command_by_command(
    to: Destination,
) -> None:
    commands = [
        command("PING"),
        command("INCR", "a"),
        command("SET", "k", "v", "EX", 10),
        command("INCR", "b"),
    ]
    [(data, facts)] = facts_of([b"".join(commands)], [TIME])
    ends = [START + len(b"".join(commands[:n])) for n in range(5)]
    for start, end in ((0, 2), (1, 2), (1, 4), (3, 4), (0, 1)):
        begin, stop = ends[start], ends[end]
        piece = Piece(begin, stop, data[begin - START : stop - START], facts)
        found, tally = run([piece], to)
        whole, _ = run(pieces_of([piece.data], [TIME]), to)
        assert found == whole
        assert tally.commands == end - start


# Garbage.


GARBAGE = [
    b"GET inline\r\n",
    b"+OK\r\n",
    b"\n",
    b"*1\r\n:5\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"$3\r\nabc\r\n",
    b"*2\r\n$3\r\nSET\r\n",
    b"*1\r\n$4\r\nPI",
    b"*1\r\n$9999999999999999999999\r\n",
    b"*1\r\n*1\r\n$4\r\nPING\r\n",
    b"\0\0\0\0",
    b"*1\r\n$4\r\nPINGxx",
    b"*01\r\n$4\r\nPING\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_an_error_that_names_the_last_good_offset(garbage: bytes) -> None:
    good = command("SET", "key", "value") * 3
    end = START + len(good)
    [piece] = pieces_of([good + garbage], lost=True)
    with pytest.raises(VerificationError, match=f"from offset {end} on.*before it"):
        run([Piece(piece.start, piece.end, piece.data, piece.facts)], "file")


@pytest.mark.parametrize(
    "nonsense",
    [
        "SET k v PX soon",
        "SETEX k",
        "PSETEX k x v",
        "EXPIRE k",
        "PEXPIRE k never",
        "GETEX k EX later",
        "HEXPIRE k",
        "RESTORE k",
        "RESTORE k x load",
    ],
)
def test_a_command_that_no_server_sends_is_an_error_that_names_its_offset(
    nonsense: str,
) -> None:
    good = command("SET", "key", "value")
    [piece] = pieces_of([good + command(*words(nonsense))])
    with pytest.raises(VerificationError, match=f"from offset {START + len(good)} on"):
        run([piece], "link")


@given(st.binary(max_size=60), st.integers(0, 40))
def test_any_bytes_are_commands_or_a_verification_error(
    garbage: bytes, position: int
) -> None:
    good = command("SET", "key", "value") * 2
    data = good[:position] + garbage + good[position:]
    try:
        found = list(read_commands(data, START))
    except VerificationError as error:
        offsets = [int(word) for word in str(error).split() if word.isdigit()]
        assert START <= offsets[0] <= START + len(data)
    else:
        assert [START, *(end for _, _, end in found)][-1] == START + len(data)
        assert all(one[2] == other[1] for one, other in pairwise(found))


def test_commands_are_read_with_their_offsets() -> None:
    stream = command("SELECT", 1) + command("SET", "k", b"\0\r\n" * 30_000)
    assert [
        (len(found), start, end) for found, start, end in read_commands(stream, 7)
    ] == [(2, 7, 30), (3, 30, 7 + len(stream))]
    assert list(read_commands(b"", 7)) == []


# Where the destination hides hash fields whose time has passed.


@pytest.mark.parametrize("is_one_frame", [True, False])
def test_commands_that_need_a_lapsed_field_are_rewritten(*, is_one_frame: bool) -> None:
    commands = [
        ("SELECT", 0),
        ("HSETEX", "hash", "PXAT", TIME, "FIELDS", 1, "field", 1),
        ("HSETEX", "hash", "FXX", "KEEPTTL", "FIELDS", 1, "field", 2),
        ("HINCRBY", "hash", "field", 1),
        ("SET", "hash", "gone"),
        ("HINCRBY", "hash", "field", 1),
    ]
    frames = [command(*each) for each in commands]
    translator = Translator("link", FieldTtls(TIME + 1000, NO_DB))
    pieces = pieces_of([b"".join(frames)] if is_one_frame else frames)
    data = b"".join(translator.translate(piece) for piece in pieces)
    found = [b" ".join(words) for words, _, _ in read_commands(data, 0)]
    # A condition that the field is there would fail now.
    assert found[2] == b"HSETEX hash KEEPTTL FIELDS 1 field 2"
    # The field has to be there to be incremented, but not where SET has replaced it.
    assert found[3].startswith(b"HPEXPIREAT hash ")
    assert found[4] == b"HINCRBY hash field 1"
    assert found[-2:] == [b"SET hash gone", b"HINCRBY hash field 1"]
    assert translator.tally.rewritten == 2
    assert translator.tally.commands == len(commands)


# Any cut.


command_words = st.sampled_from(
    [
        *(words(sent) for sent, _ in RULES),
        *(words(sent) for sent in FINE),
        ["PING"],
        ["REPLCONF", "GETACK", "*"],
        ["PUBLISH", "a", "b"],
        ["SELECT", "5"],
        ["SET", "k", "v" * 300],
        ["INCR", "n"],
    ]
)
groups = st.one_of(
    command_words.map(lambda each: [each]),
    st.lists(command_words, max_size=4).map(
        lambda inner: [["MULTI"], *inner, ["EXEC"]]
    ),
)


@given(st.lists(groups, min_size=1, max_size=8), st.data())
def test_any_cut_into_frames_gives_the_same(
    grouped: list[list[Words]], data: st.DataObject
) -> None:
    stream = b"".join(command(*each) for group in grouped for each in group)
    cuts = data.draw(st.lists(st.integers(1, max(1, len(stream) - 1)), max_size=12))
    to: Destination = data.draw(st.sampled_from(("file", "link")))
    places = sorted({0, *cuts, len(stream)})
    frames = [stream[start:end] for start, end in pairwise(places)]
    whole, tally = run(pieces_of([stream], [TIME]), to)
    cut, cut_tally = run(pieces_of(frames, [TIME] * len(frames)), to)
    assert cut == whole
    assert cut_tally == tally
