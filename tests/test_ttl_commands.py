"""What gives an expiry gives another one, and existence is what it was."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.errors import PointError, VerificationError
from kvtape.replication.tracker import NO_DB
from kvtape.tape import ttl_commands
from kvtape.tape.field_ttl import FAR, FieldTtls
from kvtape.tape.segment import crc64
from kvtape.tape.translate import (
    Destination,
    Skips,
    Tally,
    Translator,
    read_commands,
)
from kvtape.tape.ttls import MOST, MOST_OF_REDIS_FIELDS, Ttls
from tapes import command
from test_translate import TIME, Words, pieces_of, words

SHIFT = 1_000_000
POINT = TIME + 60_000

MOVED = Ttls(SHIFT, POINT, MOST_OF_REDIS_FIELDS)
DROPPED = Ttls(None, POINT, MOST_OF_REDIS_FIELDS)

# A time before the point, one behind it, and both as they are moved.
PAST, LATER = POINT - 1000, POINT + 50_000
OLD, NEW = PAST + SHIFT, LATER + SHIFT


def changed(
    *sent: Words,
    ttls: Ttls | None,
    to: Destination = "link",
    fields: FieldTtls | None = None,
) -> list[str]:
    """Translate commands that were received at TIME, in one frame."""
    stream = b"".join(command(*each) for each in sent)
    translator = Translator(to, fields, ttls=ttls)
    data = b"".join(map(translator.translate, pieces_of([stream], [TIME])))
    assert translator.tally.is_verbatim == (data == stream)
    assert translator.tally.commands == len(sent)
    return [b" ".join(found).decode() for found, _, _ in read_commands(data, 0)]


# What is sent; what it is once moved; and once dropped.
RULES: list[tuple[str, str, Sequence[str]]] = [
    (f"SET k v PXAT {LATER}", f"SET k v PXAT {NEW}", ["SET k v"]),
    (f"SET k v PXAT {PAST}", f"SET k v PXAT {OLD}", [f"SET k v PXAT {PAST}"]),
    (f"set k v nx pxat {LATER} GET", f"set k v nx PXAT {NEW} GET", ["set k v nx GET"]),
    (f"SET k v EXAT {LATER // 1000}", f"SET k v PXAT {NEW}", ["SET k v"]),
    ("SET k v KEEPTTL", "SET k v KEEPTTL", ["SET k v KEEPTTL"]),
    ("SET k v PX 110000", f"SET k v PXAT {NEW}", ["SET k v"]),
    ("SETEX k 110 v", f"SET k v PXAT {NEW}", ["SET k v"]),
    ("PSETEX k 59000 v", f"SET k v PXAT {OLD}", [f"SET k v PXAT {PAST}"]),
    (f"PEXPIREAT k {LATER}", f"PEXPIREAT k {NEW}", ["PERSIST k"]),
    (f"pexpireat k {LATER} XX", f"PEXPIREAT k {NEW} XX", ["PERSIST k"]),
    (f"PEXPIREAT k {PAST} GT", f"PEXPIREAT k {OLD} GT", [f"PEXPIREAT k {PAST}"]),
    (f"EXPIREAT k {LATER // 1000}", f"PEXPIREAT k {NEW}", ["PERSIST k"]),
    (f"expireat k {PAST // 1000}", f"PEXPIREAT k {OLD}", [f"PEXPIREAT k {PAST}"]),
    ("EXPIRE k 110", f"PEXPIREAT k {NEW}", ["PERSIST k"]),
    ("PEXPIRE k 59000 NX", f"PEXPIREAT k {OLD} NX", [f"PEXPIREAT k {PAST}"]),
    (f"GETEX k PXAT {LATER}", f"GETEX k PXAT {NEW}", ["PERSIST k"]),
    (f"GETEX k EXAT {PAST // 1000}", f"GETEX k PXAT {OLD}", [f"GETEX k PXAT {PAST}"]),
    ("GETEX k EX 110", f"GETEX k PXAT {NEW}", ["PERSIST k"]),
    ("GETEX k PERSIST", "GETEX k PERSIST", ["GETEX k PERSIST"]),
    (
        f"MSETEX 1 PXAT 1 PXAT {LATER}",
        f"MSETEX 1 PXAT 1 PXAT {NEW}",
        ["MSETEX 1 PXAT 1"],
    ),
    ("MSETEX 1 EX 1 NX EX 110", f"MSETEX 1 EX 1 NX PXAT {NEW}", ["MSETEX 1 EX 1 NX"]),
    ("MSETEX 1 k v KEEPTTL", "MSETEX 1 k v KEEPTTL", ["MSETEX 1 k v KEEPTTL"]),
    (
        f"HSETEX k FXX PXAT {LATER} FIELDS 1 PXAT 5",
        f"HSETEX k FXX PXAT {NEW} FIELDS 1 PXAT 5",
        ["HSETEX k FXX FIELDS 1 PXAT 5"],
    ),
    (
        "HSETEX k KEEPTTL FIELDS 1 f v",
        "HSETEX k KEEPTTL FIELDS 1 f v",
        ["HSETEX k KEEPTTL FIELDS 1 f v"],
    ),
    (
        f"HGETEX k PXAT {LATER} FIELDS 2 f g",
        f"HGETEX k PXAT {NEW} FIELDS 2 f g",
        [f"HPEXPIREAT k {FAR} FIELDS 2 f g", "HPERSIST k FIELDS 2 f g"],
    ),
    (
        f"HGETEX k PXAT {PAST} FIELDS 1 f",
        f"HGETEX k PXAT {OLD} FIELDS 1 f",
        [f"HGETEX k PXAT {PAST} FIELDS 1 f"],
    ),
    (
        f"HPEXPIREAT k {LATER} FIELDS 2 f g",
        f"HPEXPIREAT k {NEW} FIELDS 2 f g",
        [f"HPEXPIREAT k {FAR} FIELDS 2 f g", "HPERSIST k FIELDS 2 f g"],
    ),
    (
        f"HEXPIREAT k {PAST // 1000} FIELDS 2 f g",
        f"HPEXPIREAT k {OLD} FIELDS 2 f g",
        [f"HPEXPIREAT k {PAST} FIELDS 2 f g"],
    ),
    # Of a single field a condition held.
    (
        f"HPEXPIREAT k {LATER} NX FIELDS 1 f",
        f"HPEXPIREAT k {NEW} NX FIELDS 1 f",
        [f"HPEXPIREAT k {FAR} FIELDS 1 f", "HPERSIST k FIELDS 1 f"],
    ),
    (
        f"HPEXPIREAT k {PAST} XX FIELDS 1 f",
        f"HPEXPIREAT k {OLD} XX FIELDS 1 f",
        [f"HPEXPIREAT k {PAST} FIELDS 1 f"],
    ),
    # Of several it may have held for some.
    (
        f"HPEXPIREAT k {LATER} nx FIELDS 2 f g",
        f"HPEXPIREAT k {NEW} NX FIELDS 2 f g",
        [],
    ),
    (
        f"HPEXPIREAT k {LATER} LT FIELDS 2 f g",
        f"HPEXPIREAT k {NEW} LT FIELDS 2 f g",
        [],
    ),
    (
        f"HPEXPIREAT k {LATER} XX FIELDS 2 f g",
        f"HPEXPIREAT k {NEW} XX FIELDS 2 f g",
        ["HPERSIST k FIELDS 2 f g"],
    ),
    (
        f"HPEXPIREAT k {LATER} GT FIELDS 2 f g",
        f"HPEXPIREAT k {NEW} GT FIELDS 2 f g",
        ["HPERSIST k FIELDS 2 f g"],
    ),
    (
        f"HPEXPIREAT k {PAST} GT FIELDS 2 f g",
        f"HPEXPIREAT k {OLD} GT FIELDS 2 f g",
        [f"HPEXPIREAT k {PAST} GT FIELDS 2 f g"],
    ),
    (
        "HPEXPIRE k 110000 FIELDS 1 f",
        f"HPEXPIREAT k {NEW} FIELDS 1 f",
        [f"HPEXPIREAT k {FAR} FIELDS 1 f", "HPERSIST k FIELDS 1 f"],
    ),
    (
        f"RESTORE k {LATER} x ABSTTL",
        f"RESTORE k {NEW} x ABSTTL",
        ["RESTORE k 0 x ABSTTL"],
    ),
    (
        f"RESTORE k {PAST} x ABSTTL",
        f"RESTORE k {OLD} x ABSTTL",
        [f"RESTORE k {PAST} x ABSTTL"],
    ),
    ("RESTORE k 110000 x", f"RESTORE k {NEW} x ABSTTL", ["RESTORE k 0 x ABSTTL"]),
    (
        "restore-asking k 0 x replace",
        "restore-asking k 0 x replace",
        ["restore-asking k 0 x replace"],
    ),
]


@pytest.mark.parametrize(("sent", "once_moved", "once_dropped"), RULES)
@pytest.mark.parametrize("to", ["file", "link"])
def test_an_expiry_is_moved_or_dropped(
    sent: str, once_moved: str, once_dropped: Sequence[str], to: Destination
) -> None:
    around = ("INCR", "n")
    assert changed(around, words(sent), around, ttls=MOVED, to=to) == [
        *("INCR n", once_moved, "INCR n")
    ]
    assert changed(around, words(sent), around, ttls=DROPPED, to=to) == [
        *("INCR n", *once_dropped, "INCR n")
    ]


@pytest.mark.parametrize(
    "sent",
    [
        *("SET k v", "PERSIST k", "HPERSIST k FIELDS 1 f", "RENAME k l", "COPY k l"),
        *("DEL k", "UNLINK k", "HDEL k f", "FLUSHALL", "XADD k 1-1 PXAT 1"),
    ],
)
def test_what_gives_no_expiry_is_passed_on(sent: str) -> None:
    for ttls in (MOVED, DROPPED):
        assert changed(words(sent), ttls=ttls) == [sent]


def test_what_would_be_passed_on_is_not_even_parsed() -> None:
    [piece] = pieces_of([command("SET", "k", "v") + command("XGROUP", "CREATE", "k")])
    translator = Translator("file", ttls=MOVED)
    assert translator.translate(piece) == piece.data
    assert translator.tally.is_verbatim


def test_a_payload_has_its_fields_expiries_changed() -> None:
    def hash_until(time: int) -> bytes:
        value = b"\x18" + time.to_bytes(8, "little") + b"\x01\x01\x01f\x01v"
        content = value + (12).to_bytes(2, "little")
        checksum: int = crc64.calc(content)
        return content + checksum.to_bytes(8, "little")

    def restored(ttls: Ttls) -> bytes:
        stream = command("RESTORE", "k", 0, hash_until(LATER))
        [piece] = pieces_of([stream], [TIME])
        return Translator("link", ttls=ttls).translate(piece)

    assert restored(MOVED) == command("RESTORE", "k", 0, hash_until(NEW))
    plain = b"\x04\x01\x01f\x01v" + (12).to_bytes(2, "little")
    plain += crc64.calc(plain).to_bytes(8, "little")
    assert restored(DROPPED) == command("RESTORE", "k", 0, plain)


# What cannot be exact.

LENIENT = [Ttls(SHIFT, POINT, is_lenient=True), Ttls(None, POINT, is_lenient=True)]


@pytest.mark.parametrize(
    "sent",
    [
        "EVALSHA abc 1 k",
        "fcall f 1 k",
        "MODULE.SET k 1",
        "INCREX k EX 10",
    ],
)
def test_what_nobody_knows_is_accepted_by_force(sent: str) -> None:
    name = sent.split()[0]
    for ttls in (MOVED, DROPPED):
        with pytest.raises(PointError, match=rf"has b'{name}' at offset 1000.*--force"):
            changed(words(sent), ttls=ttls)
    for ttls in LENIENT:
        assert changed(words(sent), ttls=ttls) == [sent]
    assert changed(words(sent), ttls=None) == [sent]


@pytest.mark.parametrize("condition", ["NX", "xx"])
def test_a_condition_on_what_is_dropped_is_accepted_by_force(condition: str) -> None:
    sent = f"HPEXPIREAT k {PAST} {condition} FIELDS 2 f g"
    with pytest.raises(PointError, match=r"b'k' has fields given an expiry on a cond"):
        changed(words(sent), ttls=DROPPED)
    assert changed(words(sent), ttls=LENIENT[1]) == [
        f"HPEXPIREAT k {PAST} {condition.upper()} FIELDS 2 f g"
    ]


@pytest.mark.parametrize(
    ("sent", "most"),
    [
        ("PEXPIREAT k {}", MOST),
        ("SET k v PXAT {}", MOST),
        ("RESTORE k {} x ABSTTL", MOST),
        ("HPEXPIREAT k {} FIELDS 1 f", MOST_OF_REDIS_FIELDS),
    ],
)
def test_a_time_beyond_all_is_refused_or_as_late_as_can_be(
    sent: str, most: int
) -> None:
    late = sent.format(most - 1)
    with pytest.raises(PointError, match=r"b'k' has an expiry that would be later"):
        changed(words(late), ttls=MOVED)
    lenient = Ttls(SHIFT, POINT, MOST_OF_REDIS_FIELDS, is_lenient=True)
    assert changed(words(late), ttls=lenient) == [sent.format(most)]


def test_a_payload_that_cannot_be_read_is_passed_on_by_force() -> None:
    payload = b"\xf3\x00" + bytes(10)
    sent = ("RESTORE", "k", LATER, payload, "ABSTTL")
    with pytest.raises(PointError, match="b'k' is restored from a payload"):
        changed(sent, ttls=MOVED)
    [piece] = pieces_of([command(*sent)], [TIME])
    data = Translator("link", ttls=LENIENT[0]).translate(piece)
    assert data == command("RESTORE", "k", NEW, payload, "ABSTTL")


@pytest.mark.parametrize(
    "nonsense", ["PEXPIREAT k never", "RESTORE k", "MSETEX x", "HPEXPIREAT k 1 FIELD"]
)
def test_what_no_server_sends_is_an_error(nonsense: str) -> None:
    with pytest.raises(VerificationError, match="from offset 1000 on"):
        changed(words(nonsense), ttls=MOVED)


# With fields that the destination hides once they have lapsed.

NOW = POINT + SHIFT


def test_what_has_not_lapsed_once_moved_needs_no_rewriting() -> None:
    later = POINT + 3_600_000
    fields = FieldTtls(NOW, NO_DB)
    assert changed(
        ("HPEXPIREAT", "k", later, "FIELDS", 1, "f"),
        ("HINCRBY", "k", "f", 1),
        ttls=MOVED,
        fields=fields,
    ) == [f"HPEXPIREAT k {later + SHIFT} FIELDS 1 f", "HINCRBY k f 1"]


def test_what_had_lapsed_at_the_point_is_brought_back_for_what_needs_it() -> None:
    sent = [("HPEXPIREAT", "k", PAST, "FIELDS", 1, "f"), ("HINCRBY", "k", "f", 1)]
    for ttls, time in ((MOVED, OLD), (DROPPED, PAST)):
        fields = FieldTtls(NOW, NO_DB)
        assert changed(*sent, ttls=ttls, fields=fields) == [
            f"HPEXPIREAT k {time} FIELDS 1 f",
            f"HPEXPIREAT k {FAR} XX FIELDS 1 f",
            "HINCRBY k f 1",
            f"HPEXPIREAT k {time} XX FIELDS 1 f",
        ]


def test_a_field_whose_expiry_is_dropped_is_followed_no_more() -> None:
    fields = FieldTtls(NOW, NO_DB)
    found = changed(
        ("HPEXPIREAT", "k", PAST, "FIELDS", 1, "f"),
        ("HPEXPIREAT", "k", LATER, "FIELDS", 1, "f"),
        ("HINCRBY", "k", "f", 1),
        ttls=DROPPED,
        fields=fields,
    )
    assert found[0] == f"HPEXPIREAT k {PAST} FIELDS 1 f"
    assert found[-2:] == ["HPERSIST k FIELDS 1 f", "HINCRBY k f 1"]


def test_whether_a_field_was_there_is_asked_of_the_time_as_it_is_moved() -> None:
    # The one had lapsed when both were persisted, the other had not.
    sent = [
        ("HPEXPIREAT", "k", TIME + 10_000, "FIELDS", 2, "f", "g"),
        ("HPERSIST", "k", "FIELDS", 2, "f", "g"),
    ]
    changed(*sent, ttls=MOVED, fields=FieldTtls(NOW, NO_DB))
    sent[0] = ("HPEXPIREAT", "k", TIME - 10_000, "FIELDS", 2, "f", "g")
    with pytest.raises(PointError, match="ends the expiry of several hash fields"):
        changed(*sent, ttls=MOVED, fields=FieldTtls(NOW, NO_DB))


def test_every_command_that_may_give_an_expiry_is_known() -> None:
    relative = {b"SETEX", b"PSETEX", b"EXPIRE", b"PEXPIRE", b"HEXPIRE", b"HPEXPIRE"}
    assert not any(map(ttl_commands.is_opaque, ttl_commands.NAMES | relative))
    assert not ttl_commands.is_opaque(b"XGROUP")


# Any cut.

SENT = [words(sent) for sent, _, _ in RULES] + [["INCR", "n"], ["SET", "k", "v"]]
groups = st.one_of(
    st.sampled_from(SENT).map(lambda each: [each]),
    st.lists(st.sampled_from(SENT), max_size=4).map(
        lambda inner: [["MULTI"], *inner, ["SELECT", "3"], ["EXEC"]]
    ),
)


@given(st.lists(groups, min_size=1, max_size=6), st.data())
def test_any_cut_into_frames_gives_the_same(
    grouped: list[list[Words]], data: st.DataObject
) -> None:
    commands = [command(*each) for group in grouped for each in group]
    stream = b"".join(commands)
    starts = [1000 + len(b"".join(commands[:n])) for n in range(len(commands))]
    skips = Skips(data.draw(st.sets(st.sampled_from(starts))))
    ttls = data.draw(st.sampled_from([MOVED, DROPPED, None]))
    cuts = data.draw(st.lists(st.integers(1, max(1, len(stream) - 1)), max_size=9))
    places = sorted({0, *cuts, len(stream)})
    frames = [stream[start:end] for start, end in pairwise(places)]

    def run(frames: Sequence[bytes]) -> tuple[bytes, Tally]:
        translator = Translator("link", ttls=ttls, skips=skips)
        pieces = pieces_of(frames, [TIME] * len(frames))
        return b"".join(map(translator.translate, pieces)), translator.tally

    whole, tally = run([stream])
    assert run(frames) == (whole, tally)
    if ttls is None:
        # What is left are the others, and the relative expiries among them.
        is_within, left = False, 0
        for sent, start in zip(commands, starts, strict=True):
            is_skipped = is_within or start in skips
            is_within = is_skipped and (is_within or b"MULTI" in sent)
            is_within = is_within and b"EXEC" not in sent
            left += not is_skipped or (is_within and b"SELECT" in sent)
        assert len(list(read_commands(whole, 0))) == left
