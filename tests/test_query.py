"""What is found is what was asked for, in its place, at its time, in its database."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import KEYS, REPLID, START, Stream, recorded
from kvtape.errors import VerificationError
from kvtape.replication.resp import pack, packed_length
from kvtape.replication.tracker import NO_DB, Summary
from kvtape.tape import command_table
from kvtape.tape.command_table import Kind
from kvtape.tape.commands import Batch, RecordedCommand
from kvtape.tape.facts import Facts, Mark, Receipt, receipt_of
from kvtape.tape.glob import exactly, parse_glob
from kvtape.tape.query import KeyQuery, Query, is_known, keys_of
from tapes import command

# One, several, and one of which no part is meant literally.
globs = st.lists(
    st.sampled_from([b"a*", b"*", b"user:?", b"[ab]", b"*:1", b"nosuch"]).map(
        parse_glob
    )
    | st.sampled_from(KEYS).map(exactly),
    max_size=3,
).map(tuple)

queries = st.builds(
    Query,
    globs,
    st.frozensets(
        st.sampled_from([b"SET", b"DEL", b"PUBLISH", b"MOD.SET", b"SELECT", b"XGROUP"]),
        max_size=2,
    ),
    st.frozensets(st.sampled_from([0, 12, 3]), max_size=2),
    st.booleans(),
)

key_queries = st.frozensets(st.sampled_from(KEYS), min_size=1).map(KeyQuery)


def is_asked_for(query: Query, found: RecordedCommand) -> bool:
    """Say the same as the docstring of Query, in its order."""
    entry = command_table.find(found.words)
    if query.globs:
        named = (
            found.words[1:]
            if entry is None
            else [found.words[use.at] for use in entry.keys(found.words)]
        )
        if not any(glob.matches(key) for key in named for glob in query.globs):
            return False
    if query.names and found.name not in query.names:
        return False
    if query.dbs and found.db not in query.dbs:
        return False
    if entry is None or entry.kind is not Kind.NOTHING:
        return True
    is_message = found.name in (b"PUBLISH", b"SPUBLISH")
    return is_message and (query.messages or found.name in query.names)


def touches_any(found: RecordedCommand) -> bool:
    return found.name in (b"FLUSHALL", b"FLUSHDB", b"SWAPDB", b"EVAL", b"CLUSTER")


@st.composite
def batches(draw: st.DrawFn) -> tuple[Stream, Batch]:
    """Return a stream and a part of it."""
    stream = draw(recorded())
    start, end = draw(
        st.lists(
            st.sampled_from(stream.boundaries()), min_size=2, max_size=2, unique=True
        ).map(sorted)
    )
    return stream, stream.batch(start, end)


def within(stream: Stream, batch: Batch) -> list[RecordedCommand]:
    return [c for c in stream.all() if batch.start <= c.start and c.end <= batch.end]


@given(batches())
def test_every_command_is_in_its_place(some: tuple[Stream, Batch]) -> None:
    stream, batch = some
    commands = batch.parsed()
    expected = within(stream, batch)
    assert list(batch.located(commands, range(len(commands)))) == expected


@given(batches(), st.data())
def test_any_choice_of_commands_is_in_its_place(
    some: tuple[Stream, Batch], data: st.DataObject
) -> None:
    stream, batch = some
    expected = within(stream, batch)
    numbers = sorted(data.draw(st.sets(st.integers(0, len(expected) - 1))))
    found = list(batch.located(batch.parsed(), numbers))
    assert found == [expected[number] for number in numbers]


def test_one_of_many_is_in_its_place() -> None:
    words = [[b"SET", b"key", bytes(n % 300)] for n in range(1000)]
    data = b"".join(pack(*each) for each in words)
    batch = Batch(REPLID, START, 0, (_facts(data),), data)
    for number in (0, 1, 16, 500, 999):
        [found] = batch.located(words, [number])
        start = START + len(b"".join(pack(*each) for each in words[:number]))
        assert (found.start, found.end) == (start, start + packed_length(words[number]))


@given(batches(), queries)
def test_what_is_found_is_what_is_asked_for(
    some: tuple[Stream, Batch], query: Query
) -> None:
    stream, batch = some
    expected = [c for c in within(stream, batch) if is_asked_for(query, c)]
    assert list(query.find(batch)) == expected
    assert [c for c in within(stream, batch) if query.asks_for(c)] == expected


@given(batches(), queries)
def test_nothing_is_found_in_frames_that_are_not_wanted(
    some: tuple[Stream, Batch], query: Query
) -> None:
    _, batch = some
    assert query.wants(batch.facts, batch.db) or not list(query.find(batch))


@given(batches(), key_queries)
def test_whatever_may_concern_a_key_is_found(
    some: tuple[Stream, Batch], query: KeyQuery
) -> None:
    stream, batch = some
    expected = [
        c for c in within(stream, batch) if touches_any(c) or query.names & {*c.words}
    ]
    assert list(query.find(batch)) == expected
    if not query.wants(batch.facts, batch.db):
        assert all(is_known(c.words) and not keys_of(c.words) for c in expected)


@given(batches(), queries, key_queries)
def test_what_the_recorder_could_not_follow_is_looked_into(
    some: tuple[Stream, Batch], query: Query, key_query: KeyQuery
) -> None:
    _, batch = some
    lost = tuple(
        replace(facts, summary=Summary(lost=True), boundary=facts.end, db=NO_DB)
        for facts in batch.facts
    )
    unfollowed = replace(batch, facts=lost)
    assert query.wants(lost, batch.db)
    assert key_query.wants(lost, batch.db)
    assert list(query.find(unfollowed)) == list(query.find(batch))
    assert list(key_query.find(unfollowed)) == list(key_query.find(batch))


def test_many_names_are_looked_for_at_once() -> None:
    names = frozenset(b"key%d" % n for n in range(100))
    words = (b"SET", b"key77", b"")
    data = pack(*words) + pack("SET", "other", "")
    batch = Batch(REPLID, START, 0, (_facts(data),), data)
    assert [c.words for c in KeyQuery(names).find(batch)] == [words]


def test_messages_are_found_only_where_they_are_asked_for() -> None:
    data = command("PUBLISH", "a", "b") + command("spublish", "a", "b")
    batch = Batch(REPLID, START, 0, (_facts(data),), data)

    def count(query: Query) -> int:
        found = len(list(query.find(batch)))
        assert not found or query.wants(batch.facts, 0)
        return found

    assert count(Query()) == 0
    assert count(Query(messages=True)) == 2
    assert count(Query(names=frozenset({b"PUBLISH"}))) == 1
    assert count(Query(names=frozenset({b"SET"}), messages=True)) == 0


# Words that no server would carry out, or that a later one may.
words_of_any_number = st.lists(
    st.sampled_from([name.encode() for name in command_table.names()])
    | st.sampled_from([b"set", b"1", b"0", b"-1", b"STORE", b"DB", b"a", b"\xff"])
    | st.binary(max_size=3),
    min_size=1,
    max_size=6,
).map(
    # Names of two words are of two words.
    lambda words: [part for word in words for part in word.split(b" ")]
)


@given(st.lists(words_of_any_number, min_size=1, max_size=4), queries, key_queries)
def test_a_command_that_has_not_the_words_it_should_is_one_that_is_not_known(
    commands: list[list[bytes]], query: Query, key_query: KeyQuery
) -> None:
    data = b"".join(pack(*words) for words in commands)
    batch = Batch(REPLID, START, 0, (_facts(data, lost=True),), data)
    for one in (query, replace(query, globs=(parse_glob(b"a*"),)), key_query):
        try:
            list(one.find(batch))
        except VerificationError as error:
            assert "cannot be read as commands" in str(error)  # noqa: PT017
    for words in commands:
        assert (keys_of(words) is None) == (not is_known(words))


def test_of_a_command_that_is_too_short_any_word_may_be_a_key() -> None:
    data = (
        command("DEL") + command("LINSERT", "a") + command("ZUNIONSTORE", "z", 9, "a")
    )
    batch = Batch(REPLID, START, 0, (_facts(data, lost=True),), data)
    for globs_asked in ([b"a"], [b"a", b"b"]):
        query = Query(tuple(map(parse_glob, globs_asked)))
        names = [c.name for c in query.find(batch)]
        assert names == [b"LINSERT", b"ZUNIONSTORE"]
    assert not is_known([b"DEL"])
    assert keys_of([b"LINSERT", b"a"]) is None


# What is no command.

GARBAGE = [
    b"*0\r\n",
    b"*-1\r\n",
    b"$3\r\nfoo\r\n",
    b"+OK\r\n",
    b":1\r\n",
    b"*1\r\n:1\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n*1\r\n$1\r\na\r\n",
    b"~1\r\n$1\r\na\r\n",
    b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    b"*1\r\n+OK\r\n",
    b"_\r\n",
    b"#t\r\n",
    b"nonsense\r\n",
    b"\n",
    b"*2\r\n$6\r\nSELECT\r\n$1\r\nx\r\n",
    b"*1\r\n$6\r\nSELECT\r\n",
    b"*99999999999\r\n",
    b"\xff",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_command_is_named_by_its_offset(garbage: bytes) -> None:
    good = command("SET", "key", "value")
    data = good + garbage + good
    batch = Batch(REPLID, START, 0, (_facts(data, lost=True),), data)
    for query in (Query(), Query((parse_glob(b"k*"),)), KeyQuery(frozenset({b"key"}))):
        with pytest.raises(VerificationError, match=f"offset {START + len(good)} on"):
            list(query.find(batch))


@given(st.lists(st.sampled_from([*GARBAGE, command("SET", "a", 1), b"*1\r\n"])))
def test_garbage_is_commands_or_an_error(parts: list[bytes]) -> None:
    data = b"".join(parts)
    batch = Batch(REPLID, START, 0, (_facts(data, lost=True),), data)
    try:
        found = list(Query().find(batch))
    except VerificationError:
        return
    assert b"".join(pack(*each.words) for each in found) == data


@given(st.data())
def test_what_is_cut_short_is_an_error_wherever_it_is_cut(data: st.DataObject) -> None:
    whole = command("SET", "a", 1) + command("SET", "b", b"x" * 100)
    at = data.draw(st.integers(1, len(whole) - 1))
    batch = Batch(REPLID, START, 0, (_facts(whole[:at], lost=True),), whole[:at])
    if at == len(command("SET", "a", 1)):
        assert len(batch.parsed()) == 1
    else:
        with pytest.raises(VerificationError, match="cannot be read as commands"):
            batch.parsed()


@pytest.mark.parametrize("garbage", [b"*1\r\n:1\r\n", b"nonsense\r\n", b"*1\r\n"])
def test_what_is_no_command_is_named_though_the_facts_know_nothing_of_it(
    garbage: bytes,
) -> None:
    good = command("SET", "key", "value")
    data = good + garbage
    batch = Batch(REPLID, START, 0, (_facts(data, commands=7),), data)
    with pytest.raises(VerificationError, match=f"offset {START + len(good)} on"):
        batch.parsed()


def test_parsing_leaves_the_garbage_collector_as_it_was() -> None:
    data = command("PING")
    batch = Batch(REPLID, START, 0, (_facts(data, commands=1),), data)
    gc.disable()
    try:
        batch.parsed()
        assert not gc.isenabled()
    finally:
        gc.enable()
    batch.parsed()
    assert gc.isenabled()


def test_a_count_that_is_wrong_is_found_out() -> None:
    data = command("SET", "a", 1) * 2
    batch = Batch(REPLID, START, 0, (_facts(data, commands=3),), data)
    # The bytes are commands all the same.
    assert len(batch.parsed()) == 2


# Receipts.


@given(recorded())
def test_the_receipt_of_each_byte_is_the_one_that_brought_it(stream: Stream) -> None:
    for number, byte in enumerate(stream.bytes, 1):
        found = receipt_of(stream.frames, START + number)
        assert (found.time, found.after) == (byte.time, byte.after)


def test_before_the_first_byte_it_is_the_last_receipt_before() -> None:
    facts = _facts(b"x" * 10)
    assert receipt_of([facts], START) == Receipt(START, 1000, 1000)


def test_without_a_mark_a_byte_is_as_old_as_its_frame() -> None:
    facts = replace(_facts(command("PING")), marks=())
    assert facts.time == 1000
    assert receipt_of([facts], facts.end) == Receipt(START, 1000, 1000)
    batch = Batch(REPLID, START, 0, (facts,), command("PING"))
    [found] = batch.located(batch.parsed(), [0])
    assert (found.time, found.after) == (1000, 1000)


def _facts(data: bytes, *, lost: bool = False, commands: int = 0) -> Facts:
    end = START + len(data)
    marks = (Mark(end, 2000),)
    names = {} if lost else {b"SET": 3, b"PUBLISH": 3, b"SPUBLISH": 3}
    summary = Summary(names, NO_DB, commands, lost)
    return Facts(START, end, 0, end, 0, 1000, marks, summary, 0, 0)


def test_of_several_commands_those_with_one_key_and_others_are_found_in_order() -> None:
    data = b"".join(
        command(*words)
        for words in (("SET", "a", 1), ("DEL", "b", "a"), ("PING",), ("SET", "b", 1))
    )
    batch = Batch(REPLID, START, 0, (_facts(data, lost=True),), data)
    found = Query((parse_glob(b"a"),)).find(batch)
    assert [each.name for each in found] == [b"SET", b"DEL"]
    # Where all are of one key, no others are looked at.
    data = command("SET", "a", 1) + command("INCR", "b")
    batch = Batch(REPLID, START, 0, (_facts(data, lost=True),), data)
    assert [c.name for c in Query((parse_glob(b"b"),)).find(batch)] == [b"INCR"]
