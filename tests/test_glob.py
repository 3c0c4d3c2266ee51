"""A pattern means what it means to the servers, and what is none is refused."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvtape.errors import UsageError
from kvtape.replication.resp import pack
from kvtape.tape.glob import Glob, exactly, parse_glob
from plain_client import PlainClient, as_bytes, as_list
from servers import StartServer

# What patterns are made of, and bytes on both sides of what ASCII is.
ALPHABET = b"ab-^]\\[*?\n\r\x00\x80\xff"

patterns = st.lists(st.sampled_from(ALPHABET), max_size=8).map(bytes)
keys = st.lists(st.sampled_from(ALPHABET), max_size=8).map(bytes)

# A star, a question mark, a set, or what is meant literally.
pieces = st.sampled_from([b"*", b"?", b"[ab]", b"[^ab]", b"[a-b]"]) | st.sampled_from(
    [b"a", b"b", b"\\*", b"\r\n", b"\xff", b"$1"]
)


def valid(pattern: bytes) -> Glob | None:
    try:
        return parse_glob(pattern)
    except UsageError:
        return None


def test_every_pattern_means_what_it_means_to_a_server(
    server_name: str, start_server: StartServer
) -> None:
    chance = random.Random(server_name)
    # Not the empty one, which on all servers matches * and does not match **.
    some = [bytes(chance.choices(ALPHABET, k=chance.randint(1, 6))) for _ in range(900)]
    asked = [
        bytes(chance.choices(ALPHABET, k=chance.randint(1, 9))) for _ in range(900)
    ]
    asked += [b"[a-]b]", b"[\\a-b]", b"[a-\\b]", b"[b-a]", b"[^]", b"[]", b"[]a]"]
    with PlainClient(start_server(server_name).client()) as plain:
        plain.exchange([("SET", key, 1) for key in some])
        count = 0
        for pattern in asked:
            glob = valid(pattern)
            if glob is not None:
                count += 1
                found = {as_bytes(key) for key in as_list(plain.ask("KEYS", pattern))}
                assert {key for key in some if glob.matches(key)} == found, pattern
    assert count > 300


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (b"", [b""], [b"a"]),
        (b"a", [b"a"], [b"", b"aa", b"A", b"a\n"]),
        (b"*", [b"", b"a", b"\n"], []),
        (b"a*", [b"a", b"ab"], [b"ba"]),
        (b"*a*", [b"a", b"bab"], [b"b"]),
        (b"a**b", [b"ab", b"a\nb"], [b"aba"]),
        (b"*ab*ba*", [b"abba"], [b"aba"]),
        (b"a?c", [b"abc", b"a\nc", b"a\xffc"], [b"ac"]),
        (b"\\*", [b"*"], [b"a", b"\\*"]),
        (b"h[ae]llo", [b"hallo", b"hello"], [b"hillo", b"hllo"]),
        (b"h[^e]llo", [b"hallo", b"h\nllo"], [b"hello"]),
        (b"[a-c]", [b"a", b"b", b"c"], [b"d", b"-"]),
        (b"[c-a]", [b"a", b"b", b"c"], [b"d"]),
        (b"[\\]]", [b"]"], [b"\\"]),
        (b"[\\a-c]", [b"a", b"-", b"c"], [b"b"]),
        (b"[-a]", [b"a", b"-"], [b"b"]),
        (b"[^]", [b"a", b"^"], [b""]),
        (b"[]", [], [b"", b"a", b"]"]),
    ],
)
def test_what_a_pattern_means(
    pattern: bytes, matching: list[bytes], others: list[bytes]
) -> None:
    glob = parse_glob(pattern)
    assert all(map(glob.matches, matching))
    assert not any(map(glob.matches, others))


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (b"a\\", "it ends with a backslash"),
        (b"[", "a bracket is not closed"),
        (b"[^", "a bracket is not closed"),
        (b"[a", "a bracket is not closed"),
        (b"[a-", "a bracket is not closed"),
        (b"[\\", "a bracket is not closed"),
        (b"[\\]", "a bracket is not closed"),
        # To a server this is a range up to the bracket.
        (b"[a-]", "a bracket is not closed"),
        # To a server whose chars have a sign this is what is not between them.
        (b"[a-\xff]", "a range of other bytes than ASCII"),
    ],
)
def test_what_is_no_pattern_is_refused_with_the_reason(
    pattern: bytes, why: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(why)) as caught:
        parse_glob(b"key\xff:" + pattern)
    assert "no pattern of keys" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(patterns)
def test_garbage_is_a_pattern_or_refused(pattern: bytes) -> None:
    glob = valid(pattern)
    assert glob is None or glob.pattern == pattern


@example([b"*"], b"", b"x")
@example([b"\r\n"], b"\r\n", b"")
@given(st.lists(pieces, max_size=6), keys, st.binary())
def test_a_stream_with_a_match_in_it_has_the_needle(
    parts: list[bytes], key: bytes, value: bytes
) -> None:
    glob = parse_glob(b"".join(parts))
    # Often enough one that matches.
    for candidate in (key, b"".join(part[-1:] for part in parts), *parts):
        if glob.matches(candidate):
            assert glob.needle in pack("SET", candidate, value)
            assert glob.needle in pack("DEL", "other", candidate)
            assert glob.part in candidate


@pytest.mark.parametrize(
    ("pattern", "needle"),
    [
        (b"*", b""),
        (b"?*[ab]", b""),
        (b"user:*", b"\r\nuser:"),
        (b"*:name", b":name\r\n"),
        (b"*:a:*", b":a:"),
        (b"ab?longer*", b"longer"),
        (b"key", b"$3\r\nkey\r\n"),
        (b"\\*", b"$1\r\n*\r\n"),
        (b"", b"$0\r\n\r\n"),
    ],
)
def test_what_is_looked_for_is_the_longest_part(pattern: bytes, needle: bytes) -> None:
    glob = parse_glob(pattern)
    assert glob.needle == needle


@given(st.binary(), st.binary())
def test_exactly_one_key_is_meant_whatever_is_in_it(key: bytes, other: bytes) -> None:
    glob = exactly(key)
    assert glob.matches(key)
    assert glob.matches(other) == (key == other)
    assert glob.needle in pack("SET", key, other)


@pytest.mark.parametrize(
    "pattern", [b"*a" * 30 + b"b", b"*a*a*a*ab", b"*a?" * 20 + b"b"]
)
def test_no_pattern_makes_a_long_key_take_long(pattern: bytes) -> None:
    # One that came back to each star would take longer than there is time.
    assert not parse_glob(pattern).matches(b"a" * 20_000)
