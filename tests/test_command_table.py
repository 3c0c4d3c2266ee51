"""Which words of a command are keys, and what happens to them, by the table alone.

test_command_table_servers.py has the same against what servers say and do.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_calls import ALL
from kvtape.errors import ProtocolError
from kvtape.tape.command_list import COMMANDS
from kvtape.tape.command_table import (
    Command,
    Effect,
    KeyUse,
    Kind,
    find,
    named,
    names,
)

# What garbage is made of: all that has a meaning to some command, and what has none.
MEANINGFUL = sorted({word for name in names() for word in name.encode().split()}) + (
    b"STORE STOREDIST STREAMS KEYS GROUP COUNT BY GET AUTH AUTH2 DB 0 1 2 3".split()
)
GARBAGE = st.lists(
    st.sampled_from(MEANINGFUL)
    | st.binary(max_size=20)
    | st.integers().map(b"%d".__mod__)
)


def words(line: str) -> list[bytes]:
    return [b"" if word == "''" else word.encode() for word in line.split()]


def found(line: Sequence[bytes]) -> Command:
    command = find(line)
    assert command is not None, line
    return command


def told(line: str) -> str:
    """Return what the table says of a call, such as "a reads, b creates in 2"."""
    uses = found(words(line)).keys(words(line))
    return ", ".join(
        f"{words(line)[at].decode()} {effect.value}"
        + ("" if db is None else f" in {db}")
        for at, effect, db in uses
    )


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("SET a x", "a creates"),
        ("GETDEL a", "a deletes"),
        ("GETEX a PERSIST", "a changes"),
        ("DEL a b c", "a deletes, b deletes, c deletes"),
        ("MSET a x b y", "a creates, b creates"),
        ("MSETEX 2 a 1 b 2 EX 9", "a creates, b creates"),
        ("BLPOP a b 0", "a changes, b changes"),
        ("RENAME a b", "a deletes, b creates"),
        ("SMOVE a b x", "a changes, b creates"),
        ("BITOP AND a b c", "a creates, b reads, c reads"),
        ("PFMERGE a", "a creates"),
        ("PFMERGE a b", "a creates, b reads"),
        ("ZUNIONSTORE a 2 b c WEIGHTS 1 2", "a creates, b reads, c reads"),
        ("ZMPOP 1 a MIN COUNT 2", "a changes"),
        ("BLMPOP 0 2 a b LEFT", "a changes, b changes"),
        ("XGROUP CREATE a g 0 MKSTREAM", "a creates"),
        ("XGROUP DESTROY a g", "a changes"),
        ("EVAL script 2 a b c", "a creates, b creates"),
        ("EVAL script 0 a b", ""),
        ("COPY a b", "a reads, b creates"),
        ("COPY a b REPLACE", "a reads, b creates"),
        ("COPY a b REPLACE db 3", "a reads, b creates in 3"),
        ("COPY DB DB DB 7", "DB reads, DB creates in 7"),
        ("MOVE a 2", "a deletes, a creates in 2"),
        ("SORT a", "a reads"),
        ("SORT a STORE b", "a reads, b creates"),
        ("SORT a STORE b LIMIT 0 1 store c", "a reads, c creates"),
        ("SORT STORE BY STORE GET store STORE STORE", "STORE reads, STORE creates"),
        ("SORT a GET STORE", "a reads"),
        ("GEORADIUS a 1 2 3 km", "a reads"),
        ("GEORADIUS a 1 2 3 km STORE b STOREDIST c", "a reads, c creates"),
        ("GEORADIUS a 1 2 3 km STOREDIST STORE ASC", "a reads, STORE creates"),
        ("GEORADIUSBYMEMBER a STORE 3 km COUNT 1 STORE b", "a reads, b creates"),
        ("XREADGROUP GROUP g c STREAMS a b > >", "a changes, b changes"),
        ("XREADGROUP COUNT 1 GROUP g STREAMS streams STREAMS >", "STREAMS changes"),
        ("MIGRATE host 1 a 0 9", "a changes"),
        ("MIGRATE host 1 '' 0 9 AUTH KEYS KEYS a KEYS", "a changes, KEYS changes"),
        ("MIGRATE host 1 '' 0 9 AUTH2 KEYS KEYS COPY", " changes"),
    ],
)
def test_keys_are_found_with_what_is_done_to_them(line: str, keys: str) -> None:
    assert told(line) == keys


def test_the_keys_of_a_call_are_those_that_are_marked_there() -> None:
    # The servers' tests rest on these calls, and on their marks.
    for call in ALL:
        uses = found(call.words).keys(call.words)
        assert {use.at for use in uses} == call.types.keys(), call


def test_each_command_with_keys_is_among_the_calls() -> None:
    with_keys = {
        line.split(" | ")[0] for line in COMMANDS.splitlines() if "s | " in line
    }
    assert {found(call.words).name for call in ALL} == with_keys


def test_the_only_key_is_what_keys_would_say() -> None:
    for call in ALL:
        command = found(call.words)
        only = [
            KeyUse(at, effect)
            for at, effect in [(command.only_key_at, command.only_effect)]
            if at is not None and effect is not None
        ]
        assert not only or [*command.keys(call.words)] == only, call


def test_most_commands_have_one_key_that_needs_no_looking_for() -> None:
    only = {name for name in names() if found(words(name)).only_key_at == 1}
    assert only > {"SET", "HSET", "ZADD", "LPOP", "EXPIRE", "GETDEL", "XADD"}
    assert not only & {"DEL", "MSET", "COPY", "SORT", "EVAL", "PING", "MOVE"}
    assert found(words("XGROUP DESTROY a g")).only_key_at == 2


def test_case_does_not_matter_and_the_rest_of_the_words_neither() -> None:
    for name in names():
        for line in (
            name,
            name.lower(),
            name.title(),
            f"{name} x",
            f"{name.lower()} x",
        ):
            assert found(words(line)).name == name


@pytest.mark.parametrize(
    "line",
    [
        "",
        "GET a",
        "JSON.SET a $ 1",
        "XGROUP",
        "XGROUP HELP",
        "SET\n a",
        "XGROUP\x00CREATE",
        "CREATE",
        "FUNCTION",
        "FUNCTION LIST",
        "SCRIPT KILL",
        "SETT",
    ],
)
def test_what_is_unknown_is_not_guessed_at(line: str) -> None:
    assert find(line.encode().split(b" ")) is None
    assert find([]) is None


def test_the_names_are_sorted_and_each_is_there_once() -> None:
    assert list(names()) == sorted(set(names()))
    assert len(names()) > 150


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        *((line, Kind.KEYS) for line in ("SET a x", "PFCOUNT a", "SORT a", "MOVE a 1")),
        *((line, Kind.DATABASES) for line in ("FLUSHALL", "SWAPDB 0 1")),
        *((line, Kind.NOTHING) for line in ("PING", "REPLCONF GETACK *", "EXEC")),
        ("EVALSHA sha 1 a", Kind.SCRIPTS),
        ("FCALL f 1 a", Kind.SCRIPTS),
        ("SCRIPT LOAD x", Kind.NOTHING),
        ("FUNCTION LOAD x", Kind.FUNCTIONS),
        ("cluster flushslot 1", Kind.DATABASES),
    ],
)
def test_a_command_says_what_it_writes_to(line: str, kind: Kind) -> None:
    assert found(words(line)).kind is kind


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("SET a", "SET came with 2 words only"),
        ("VADD", "VADD came with 1 words only"),
        ("XGROUP CREATE a", "XGROUP CREATE came with 3 words only"),
        ("EVAL script x a", "b'x' where a number should be"),
        ("EVAL script -1 a", "b'-1' where a number should be"),
        ("EVAL script ² a", "where a number should be"),
        (f"EVAL script {'9' * 5000} a", "where a number should be"),
        ("EVAL script 2 a", "fewer keys than the b'2' it should"),
        ("MSETEX 2 a x b", "fewer keys than the b'2' it should"),
        ("ZUNIONSTORE a 999999999999999999 b", "fewer keys"),
        ("COPY a b DB", "nothing behind b'DB'"),
        ("COPY a b DB x", "b'x' where a number should be"),
        ("MOVE a -1", "b'-1' where a number should be"),
        ("SORT a STORE", "nothing behind b'STORE'"),
        ("XREADGROUP GROUP g c BLOCK 1 a >", "no STREAMS"),
        ("XREADGROUP GROUP g c NOACK COUNT 1 STREAMS", "no such number of words"),
        ("XREADGROUP GROUP g c COUNT 1 STREAMS a", "no such number of words"),
        ("MIGRATE host 1 '' 0 9 KEYS", "no such number of words behind KEYS"),
    ],
)
def test_words_that_no_server_carries_out_are_an_error(line: str, what: str) -> None:
    with pytest.raises(ProtocolError, match=what.replace("(", r"\(")):
        told(line)


@given(st.sampled_from(names()), GARBAGE)
def test_garbage_has_keys_among_its_words_or_is_a_protocol_error(
    name: str, garbage: list[bytes]
) -> None:
    line = words(name) + garbage
    command = found(line)
    try:
        uses = command.keys(line)
    except ProtocolError:
        return
    assert all(0 < use.at < len(line) for use in uses)
    assert all(use.db is None or use.db >= 0 for use in uses)
    assert all(isinstance(use.effect, Effect) for use in uses)
    if command.only_key_at is not None:
        assert [use.at for use in uses] == [command.only_key_at]


@given(GARBAGE)
def test_garbage_is_found_or_not(garbage: list[bytes]) -> None:
    command = find(garbage)
    assert command is None or command.name in names()


def test_all_commands_of_a_first_word_are_found_by_it() -> None:
    for name in names():
        first = name.partition(" ")[0]
        for asked in (first.encode(), first.lower().encode()):
            expected = [each for each in names() if each.split(" ")[0] == first]
            assert sorted(entry.name for entry in named(asked)) == expected
    assert named(b"nosuch") == ()
