"""The filter of a segment knows every key that the segment's commands name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.replication.tracker import Tracker
from kvtape.tape import named_keys
from kvtape.tape.key_filter import Directory, hash_of, parse_directory
from kvtape.tape.named_keys import SegmentKeys
from kvtape.tape.names import SegmentName
from kvtape.tape.segment import NEED_DATA, Frame, Header, Mark, Parser, Writer
from tapes import command

REPLID = "a" * 40

Words = Sequence[str | bytes | int]


def frames_of(data: bytes, cuts: Sequence[int] = ()) -> list[Frame]:
    """Return the frames of a segment that holds data, cut there."""
    writer, tracker, parser = Writer(Header(REPLID, 0, 0, 1)), Tracker(0, 0), Parser()
    parser.receive_data(writer.header_bytes())
    ends = sorted({cut for cut in cuts if 0 < cut < len(data)} | {len(data)})
    for start, end in zip([0, *ends], ends, strict=False):
        piece = data[start:end]
        tracker.feed(piece)
        summary = tracker.take_summary()
        marks = [Mark(end, 2)]
        parser.receive_data(
            writer.frame(piece, marks, tracker.boundary, tracker.db, summary)
        )
    frames = []
    while (part := parser.next_part()) is not NEED_DATA:
        if isinstance(part, Frame):
            frames.append(part)
    return frames


class Asked:
    """The filter of a segment with these bytes, to be asked."""

    def __init__(self, data: bytes, cuts: Sequence[int] = ()) -> None:
        segment = SegmentName(REPLID, 0, max(1, len(data)), 1, 2)
        keys = SegmentKeys()
        for frame in frames_of(data, cuts) if data else ():
            keys.feed(frame.facts, frame.stream())
        self.content = keys.filter(segment)
        self.directory: Directory = parse_directory(self.content, segment)

    def names(self, key: bytes) -> bool:
        """Whether the segment may name the key."""
        if not self.directory.blocks:
            return self.directory.is_vague
        number, start, end = self.directory.place(hash_of(key))
        return self.directory.may_name(hash_of(key), number, self.content[start:end])


def asked(*commands: Words, cuts: Sequence[int] = ()) -> Asked:
    return Asked(b"".join(command(*words) for words in commands), cuts)


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (("SET", "a", 1), ["a"]),
        (("set", "a", 1), ["a"]),
        (("sEt", "a", 1), ["a"]),
        (("DEL", "a", "b", "c"), ["a", "b", "c"]),
        (("RENAME", "a", "b"), ["a", "b"]),
        (("COPY", "a", "b", "DB", 3), ["a", "b"]),
        (("MOVE", "a", 3), ["a"]),
        (("SUNIONSTORE", "a", "b", "c"), ["a", "b", "c"]),
        (("SORT", "a", "STORE", "b"), ["a", "b"]),
        (("LMPOP", 2, "a", "b", "LEFT"), ["a", "b"]),
        (("XGROUP", "CREATE", "a", "group", "$"), ["a"]),
        (("SET", "", 1), [""]),
        (("SET", "a" * 100_000, 1), ["a" * 100_000]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_every_key_of_a_command_is_known(words: Words, keys: list[str]) -> None:
    filter_ = asked(("SELECT", 0), words, ("INCR", "other"))
    assert all(filter_.names(key.encode()) for key in [*keys, "other"])
    assert not filter_.directory.is_vague
    assert filter_.directory.keys == len(keys) + 1


def test_what_is_no_key_is_not_known() -> None:
    filter_ = asked(("SET", "key", "value"), ("HSET", "hash", "field", "value"))
    assert filter_.directory.keys == 2
    words = [b"SET", b"value", b"HSET", b"field", b"VALUE"]
    assert sum(map(filter_.names, words)) < len(words)


def test_commands_without_keys_make_an_empty_filter() -> None:
    words = (("SELECT", 0), ("PING",), ("REPLCONF", "GETACK", "*"), ("PUBLISH", "c", 1))
    directory = asked(*words, ("FUNCTION", "FLUSH")).directory
    assert (directory.keys, directory.is_vague, directory.touches_all) == (0, 0, 0)


@pytest.mark.parametrize(
    "words", [("FLUSHALL",), ("flushdb", "ASYNC"), ("SWAPDB", 0, 1)]
)
def test_what_touches_keys_without_a_name_is_told(words: Words) -> None:
    directory = asked(("SET", "a", 1), words, ("SET", "b", 1)).directory
    assert directory.touches_all
    assert not directory.is_vague
    assert directory.keys == 2


@pytest.mark.parametrize(
    "words",
    [
        ("MODULE.WRITE", "a"),
        ("EVAL", "return redis.call('SET', 'a', 1)", 0),
        ("XGROUP", "NEW", "a"),
        ("SET",),
        ("LMPOP", "many", "a", "LEFT"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_may_do_anything_may_name_every_key(words: Words) -> None:
    filter_ = asked(("SET", "b", 1), words, ("SET", "c", 1))
    assert filter_.directory.is_vague
    assert filter_.names(b"whatever")


@pytest.mark.parametrize("data", [b"+OK\r\n", b"garbage", b"*1\r\n+OK\r\n", b"\n" * 50])
def test_bytes_that_are_no_commands_may_name_every_key(data: bytes) -> None:
    good = command("SET", "a", 1)
    assert Asked(good + data, cuts=[len(good)]).directory.is_vague
    assert Asked(data + good, cuts=[len(data)]).directory.is_vague


def test_a_command_that_does_not_end_may_name_every_key() -> None:
    assert Asked(
        command("SET", "a", 1) + command("SET", "b", 1)[:-3]
    ).directory.is_vague


def test_facts_that_count_otherwise_are_not_believed() -> None:
    segment = SegmentName(REPLID, 0, 1000, 1, 2)
    for data in (command("SET", "a", 1) * 2, b"", b"-ERR\r\n", b"*1\r\n:5\r\n"):
        keys = SegmentKeys()
        (frame,) = frames_of(command("SET", "a", 1))
        keys.feed(frame.facts, data)
        assert parse_directory(keys.filter(segment), segment).is_vague


def test_a_command_that_is_too_long_may_name_every_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = ("SET", "long", "x" * 100_000)
    assert not asked(long).directory.is_vague
    monkeypatch.setattr(named_keys, "_LONGEST", 50_000)
    assert asked(("SET", "a", 1), long, ("SET", "b", 1)).directory.is_vague
    assert not asked(*[("SET", "b", "x" * 20_000)] * 10).directory.is_vague


ordinary = st.one_of(
    st.tuples(
        st.sampled_from(["SET", "set", "APPEND"]), st.binary(max_size=3), st.just(1)
    ),
    st.tuples(st.just("DEL"), st.binary(max_size=3), st.binary(max_size=3)),
    st.tuples(st.just("RENAME"), st.binary(max_size=3), st.binary(max_size=3)),
    st.tuples(st.sampled_from(["PING", "MULTI", "EXEC"])),
)


@given(st.lists(ordinary, min_size=1, max_size=20), st.lists(st.integers(1, 500)))
def test_however_the_stream_is_cut_the_filter_is_the_same(
    commands: list[tuple[str | bytes | int, ...]], cuts: list[int]
) -> None:
    whole, cut = asked(*commands), asked(*commands, cuts=cuts)
    assert cut.content == whole.content
    named = {
        key
        for words in commands
        for key in words[1 : 2 if words[0] not in ("DEL", "RENAME") else 3]
    }
    assert whole.directory.keys == len(named)
    assert all(whole.names(key) for key in named if isinstance(key, bytes))
