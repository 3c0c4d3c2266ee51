"""RESP, as far as replication needs it: pack a command, know its length on the wire.

An offset counts bytes, and hiredis never tells how many bytes it consumed. But a
primary writes a command in exactly one way, so the length of a parsed command follows
from the lengths of its words; measuring it costs a third of parsing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, islice
from operator import add

import hiredis

# hiredis moves the rest of its buffer to the front after each command past the first
# KiB, so what it is fed at once decides its speed: measured on 2 million SETs of 144
# bytes, 8.3 million a second in pieces of 32 KiB and 1.5 million in pieces of 1 MiB.
PIECE = 32 * 1024

_TABLE_SIZE = 16 * 1024
_WORD_LENGTH = [len(f"${n}\r\n") + n + 2 for n in range(_TABLE_SIZE)]
_HEADER_LENGTH = [len(f"*{n}\r\n") for n in range(1024)]


def pack(*words: bytes | str | int) -> bytes:
    """Return a command as it goes on the wire."""
    # The stub of hiredis 3 says that a command is a tuple of exactly one word.
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
    return packed


def packed_length(command: Sequence[bytes]) -> int:
    """Return the number of bytes that a server needs to send this command."""
    return packed_lengths((command,))


def packed_lengths(commands: Sequence[Sequence[bytes]]) -> int:
    """Return the number of bytes that a server needs to send all these commands."""
    try:
        # Nothing here runs per word in Python: it is 0.1 of the 0.3 microseconds that
        # following a small command costs.
        return sum(
            map(_WORD_LENGTH.__getitem__, map(len, chain.from_iterable(commands)))
        ) + sum(map(_HEADER_LENGTH.__getitem__, map(len, commands)))
    except IndexError:
        return sum(map(_long_length, commands))


def packed_ends(commands: Sequence[Sequence[bytes]], start: int) -> list[int]:
    """Return where each of some commands ends that a server sends from start on."""
    try:
        counts = list(map(len, commands))
        headers = accumulate(map(_HEADER_LENGTH.__getitem__, counts), initial=start)
        words = map(_WORD_LENGTH.__getitem__, map(len, chain.from_iterable(commands)))
        # Up to each word, and of that what is up to the last of each command.
        ends = list(accumulate(words, initial=0))
        lasts = map(ends.__getitem__, accumulate(counts))
        return list(map(add, islice(headers, 1, None), lasts))
    except IndexError:
        lengths = map(_long_length, commands)
    return list(accumulate(lengths, initial=start))[1:]


def _long_length(command: Sequence[bytes]) -> int:
    words = sum(len(f"${len(word)}\r\n") + len(word) + 2 for word in command)
    return len(f"*{len(command)}\r\n") + words
