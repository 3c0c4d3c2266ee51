"""Commands out of stream bytes: many at once, and no more of each than is asked for.

A server's history has millions of commands of which an audit wants a few. So a batch of
bytes is parsed as a whole, which hiredis does in a third of a microsecond a command;
what is wanted is chosen among the parsed words, and only for that are offset, time,
database and transaction worked out.
"""

from __future__ import annotations

import gc
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import hiredis

from kvtape.replication.resp import (
    PIECE,
    pack,
    packed_ends,
    packed_length,
    packed_lengths,
)
from kvtape.replication.tracker import Summary
from kvtape.tape.facts import Facts, receipt_of
from kvtape.tape.translate import no_commands, read_commands

Words: TypeAlias = list[bytes]

_TURNS = frozenset({b"EXEC", b"MULTI", b"SELECT"})

# To measure all commands takes as long as to measure what lies between every
# sixteenth.
_MANY = 16

_FAR = 2**63

name_of = itemgetter(0)


class RecordedCommand(NamedTuple):
    """One command as the server sent it to its replicas.

    It is the stream bytes [start, end) of the history replid. It was received at time,
    and written after `after` (ms). db is the database selected then, or NO_DB where
    that is not known. transaction is where the MULTI begins that it belongs to, itself
    and its EXEC included, or None. Restoring to start gives the moment before it; to a
    start within a transaction, the moment before that.
    """

    replid: str
    start: int
    end: int
    time: int
    after: int
    db: int
    transaction: int | None
    words: tuple[bytes, ...]

    @property
    def name(self) -> bytes:
        """Its name, in upper case."""
        return self.words[0].upper()


@dataclass(frozen=True, slots=True)
class Batch:
    """Stream bytes of the history replid, from one boundary to another.

    db is the database selected at start, or NO_DB; facts are those of the frames that
    the bytes are of, in order.
    """

    replid: str
    start: int
    db: int
    facts: tuple[Facts, ...]
    data: bytes

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.start + len(self.data)

    def parsed(self) -> list[Words]:
        """Return all commands; VerificationError where the bytes are no commands."""
        if not self.is_lost:
            try:
                commands = CommandParser().parse(self.data)
                if self._has_all(commands):
                    return commands
            except (hiredis.ProtocolError, TypeError, MemoryError):
                pass  # what is wrong, and where, is found by going step by step
        return list(self._one_by_one())

    def _one_by_one(self) -> Iterator[Words]:
        """Yield all commands, each compared with its bytes."""
        for words, start, end in read_commands(self.data, self.start):
            own = self.data[start - self.start : end - self.start]
            if not _is_command(words) or pack(*words) != own:
                raise no_commands(start)
            yield words

    def _has_all(self, commands: Sequence[Words]) -> bool:
        """Whether commands are what the bytes are."""
        if self.commands is not None:
            # They were followed, and measured, when they were recorded.
            return len(commands) == self.commands
        return packed_lengths(commands) == len(self.data)

    @property
    def commands(self) -> int | None:
        """How many commands it has, where that is known without parsing them."""
        is_whole = (self.facts[0].start, self.facts[-1].end) == (self.start, self.end)
        if self.is_lost or not is_whole:
            return None
        return sum(facts.summary.commands for facts in self.facts)

    @property
    def most_words(self) -> dict[bytes, int]:
        """The most words that commands of each name have, as Summary.names."""
        seen = Summary()
        for facts in self.facts:
            seen.merge(facts.summary)
        return seen.names

    @property
    def is_lost(self) -> bool:
        """Whether the recorder could not follow the commands."""
        return any(facts.summary.lost for facts in self.facts)

    def sizes(
        self, commands: Sequence[Words], wanted: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Return how long the commands of these numbers are, and when they came."""
        receipts = Receipts(self.facts)
        return [
            (end - start, receipts.of(end))
            for _, (start, end) in _places(commands, wanted, self.start)
        ]

    def located(
        self, commands: Sequence[Words], wanted: Sequence[int]
    ) -> Iterator[RecordedCommand]:
        """Yield the commands of these numbers, which must rise, with all about them."""
        if not wanted:
            return
        settings = _settings(commands, self.db)
        begins = [setting.number for setting in settings]
        chosen = [settings[bisect_right(begins, number) - 1] for number in wanted]
        multis = {setting.multi for setting in chosen if setting.multi is not None}
        numbers = sorted(multis.union(wanted)) if multis else wanted
        places = dict(_places(commands, numbers, self.start))
        receipts = Receipts(self.facts)
        for number, (_, db, multi) in zip(wanted, chosen, strict=True):
            start, end = places[number]
            yield RecordedCommand(
                self.replid,
                start,
                end,
                receipts.of(end),
                receipts.before(start),
                db,
                None if multi is None else places[multi][0],
                tuple(commands[number]),
            )


class CommandParser:
    """Parses bytes of which it is known that they are whole commands."""

    def __init__(self) -> None:
        # To make one takes longer than to parse a command with it.
        self._reader = hiredis.Reader()

    def parse(self, data: bytes) -> list[Words]:
        """Return all commands."""
        commands: list[Words] = []
        # Looking for cycles among the lists, which have none, took half of the time.
        collects = gc.isenabled()
        gc.disable()
        try:
            for position in range(0, len(data), PIECE):
                self._reader.feed(data[position : position + PIECE])
                commands += iter(self._reader.gets, False)
        finally:
            if collects:
                gc.enable()
        return commands


def _is_command(parsed: object) -> bool:
    """Whether it is what hiredis makes of a command, and no map, set or nested list.

    A SELECT must name a database.
    """
    if not isinstance(parsed, list) or not all(isinstance(w, bytes) for w in parsed):
        return False
    name, *words = parsed
    return name.upper() != b"SELECT" or (len(words) == 1 and words[0].isdigit())


class _Setting(NamedTuple):
    """What is so of the commands from a number on: the database, and their MULTI's."""

    number: int
    db: int
    multi: int | None


def _settings(commands: Sequence[Words], db: int) -> list[_Setting]:
    settings = [_Setting(0, db, None)]
    for number in _turns(commands):
        _, db, multi = settings[-1]
        match commands[number][0].upper():
            case b"SELECT":
                db = int(commands[number][1])
                settings.append(_Setting(number, db, multi))
            case b"MULTI":
                settings.append(_Setting(number, db, number))
            case _:
                settings.append(_Setting(number + 1, db, None))
    return settings


def _turns(commands: Sequence[Words]) -> list[int]:
    """Return the numbers of the commands that change where the others are."""
    names = {name for name in set(map(name_of, commands)) if name.upper() in _TURNS}
    if not names:
        return []
    return numbers_of(commands, names)


def numbers_of(commands: Sequence[Words], names: Container[bytes]) -> list[int]:
    """Return the numbers of the commands of some names, as they are written."""
    # Nothing here runs in Python for each command.
    is_one = map(names.__contains__, map(name_of, commands))
    return list(compress(range(len(commands)), is_one))


def _places(
    commands: Sequence[Words], numbers: Sequence[int], start: int
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the start and the end of the commands of these numbers."""
    if len(numbers) * _MANY > len(commands):
        ends = packed_ends(commands, start)
        for number in numbers:
            yield number, (ends[number - 1] if number else start, ends[number])
        return
    before = 0
    for number in numbers:
        start += packed_lengths(commands[before:number])
        end = start + packed_length(commands[number])
        yield number, (start, end)
        start, before = end, number + 1


class Receipts:
    """When the bytes of some frames were received."""

    def __init__(self, frames: Sequence[Facts]) -> None:
        receipts = [receipt for facts in frames for receipt in facts.receipts]
        # Behind the last mark, which is where a frame ends unless it has none.
        receipts.append(receipt_of(frames, frames[-1].end))
        self._offsets = [receipt.offset for receipt in receipts[:-1]]
        # Of what stands behind the last mark, the time is in _times alone.
        self._untils = [*self._offsets, _FAR]
        self._times = [receipt.time for receipt in receipts]
        self._afters = [receipt.after for receipt in receipts]

    def of(self, end: int) -> int:
        """Return when the byte before an offset was received."""
        return self._times[bisect_left(self._offsets, end)]

    def run(self, end: int) -> tuple[int, int]:
        """Return the same, and up to which offset it is the answer."""
        at = bisect_left(self._offsets, end)
        return self._times[at], self._untils[at]

    def end_by(self, time: int) -> int:
        """Return the end of what had been received by a time; 0 if nothing was."""
        count = bisect_right(self._times, time)
        return self._untils[count - 1] if count else 0

    def before(self, start: int) -> int:
        """Return what the byte behind an offset was written after."""
        return self._afters[bisect_right(self._offsets, start)]
