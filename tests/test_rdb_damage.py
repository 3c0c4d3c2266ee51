"""A damaged RDB file of a real server is never taken for a sound one."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable

import pytest

from kvtape.tape.rdb import End
from rdb_files import fill_compact, in_pieces, outcome, read, saved
from servers import StartServer

# Bytes that mean the most: opcodes, the first bytes of long lengths, LZF.
TELLING = bytes([*range(242, 256), 0x80, 0x81, 0xC3, 0x7F, 0, 7, 15])


def flip_a_bit(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def flip_bits(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randrange(2, 20)):
        flip_a_bit(data, dice)


def write_a_telling_byte(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(len(data))] = dice.choice(TELLING)


def write_a_huge_length(data: bytearray, dice: random.Random) -> None:
    place = dice.randrange(len(data) - 9)
    data[place : place + 9] = b"\x81" + dice.randbytes(8)


def write_garbage(data: bytearray, dice: random.Random) -> None:
    place, size = dice.randrange(len(data)), dice.randrange(1, 40)
    data[place : place + size] = dice.randbytes(size)


def lose_bytes(data: bytearray, dice: random.Random) -> None:
    place = dice.randrange(len(data))
    del data[place : place + dice.randrange(1, 40)]


def repeat_bytes(data: bytearray, dice: random.Random) -> None:
    place = dice.randrange(len(data))
    data[place:place] = data[place : place + dice.randrange(1, 40)]


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_a_bit,
    flip_bits,
    write_a_telling_byte,
    write_a_huge_length,
    write_garbage,
    lose_bytes,
    repeat_bytes,
)


def damaged(data: bytes, seed: int, count: int) -> Iterable[bytes]:
    """Yield copies with each kind of damage in turn."""
    dice = random.Random(seed)
    for i in range(count):
        copy = bytearray(data)
        DAMAGES[i % len(DAMAGES)](copy, dice)
        if copy != data:
            yield bytes(copy)


@pytest.mark.slow
def test_what_is_damaged_ends_in_an_error(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name)
    fill_compact(server.client(), server_name)
    data = saved(server)
    sound = read([data])
    for copy in damaged(data, seed=1, count=2000):
        events, reader, error = outcome([copy])
        if error is not None:
            continue
        # What damage can look like is an end that says it has no checksum: the file's
        # own, or one that bytes of its middle make up, with the rest left over.
        assert events == sound or events[-1] == End(0)
        assert reader.unused_data or events[:-1] == sound[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("values", [True, False])
def test_without_a_checksum_damage_is_events_or_an_error_however_it_is_split(
    values: bool, server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, rdbchecksum="no")
    fill_compact(server.client(), server_name)
    data = saved(server)
    for copy in damaged(data, seed=2, count=500):
        events, reader, error = outcome([copy], values=values)
        again, other, same = outcome(in_pieces(copy, 5), values=values)
        assert (again, same) == (events, error)
        assert other.unused_data == reader.unused_data


@pytest.mark.slow
def test_a_damaged_length_takes_no_memory(
    server_name: str, start_server: StartServer
) -> None:
    server = start_server(server_name, rdbchecksum="no")
    fill_compact(server.client(), server_name)
    data = saved(server)
    copies = list(damaged(data, seed=3, count=300))
    tracemalloc.start()
    try:
        for copy in copies:
            outcome([copy])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Some MB, most of it readers that wait for the garbage collector, which may be told
    # to come seldom. The lengths say up to 2**64.
    assert peak < 8 * 1024 * 1024
