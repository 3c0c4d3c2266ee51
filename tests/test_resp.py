"""The length of a command is known without packing it, and is what hiredis writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.replication.resp import pack, packed_ends, packed_length, packed_lengths

# Where a length gets another digit, and where the tables of lengths end.
SIZES = [0, 1, 9, 10, 99, 100, 999, 1000, 1023, 1024, 9999, 10000, 16383, 16384, 100000]

commands = st.lists(st.binary(), min_size=1)


def by_hand(words: list[bytes]) -> bytes:
    packed = b"*%d\r\n" % len(words)
    for word in words:
        packed += b"$%d\r\n%s\r\n" % (len(word), word)
    return packed


@given(commands)
def test_a_command_is_an_array_of_bulk_strings(words: list[bytes]) -> None:
    assert pack(*words) == by_hand(words)


def test_text_and_numbers_are_packed_as_their_utf8() -> None:
    assert pack("SET", "ключ", -1) == by_hand([b"SET", "ключ".encode(), b"-1"])


@given(st.lists(commands))
def test_lengths_are_those_of_the_packed_bytes(many: list[list[bytes]]) -> None:
    assert packed_lengths(many) == len(b"".join(by_hand(words) for words in many))


@pytest.mark.parametrize("size", SIZES)
def test_the_length_of_a_word_of_any_size_is_right(size: int) -> None:
    words = [b"SET", b"key", bytes(size)]
    assert packed_length(words) == len(by_hand(words))
    assert packed_lengths([words, [b"PING"]]) == len(by_hand(words)) + 14


@pytest.mark.parametrize("count", [1, 9, 10, 99, 100, 1023, 1024, 10000])
def test_the_length_of_a_command_of_many_words_is_right(count: int) -> None:
    words = [b"x"] * count
    assert packed_length(words) == len(by_hand(words))


def test_no_commands_have_no_length() -> None:
    assert packed_lengths([]) == 0
    assert packed_ends([], 7) == []


@given(st.lists(commands), st.integers(0, 2**62))
def test_each_ends_where_those_up_to_it_do(many: list[list[bytes]], start: int) -> None:
    assert packed_ends(many, start) == [
        start + packed_lengths(many[:count]) for count in range(1, len(many) + 1)
    ]


@pytest.mark.parametrize("size", SIZES)
def test_each_ends_where_it_does_whatever_the_size_of_a_word(size: int) -> None:
    for large in ([b"SET", bytes(size)], [b"x"] * (size + 1)):
        one = len(by_hand(large))
        assert packed_ends([large, [b"PING"], large], 5) == [
            5 + one,
            5 + one + 14,
            5 + one + 14 + one,
        ]
