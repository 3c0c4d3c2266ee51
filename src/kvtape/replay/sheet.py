"""A stretch of the stream, cut into parcels: what is sent as one transaction.

A parcel begins and ends where a command does, outside of any recorded MULTI. Most of
its bytes are those of the stream: only commands that may need a change are looked at.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, count
from struct import Struct
from typing import NamedTuple

from kvtape.errors import VerificationError
from kvtape.replay.moving import DIGITS, ENDS_WITH_TIME, last_times, moved_times
from kvtape.replay.selection import (
    LEFT_OUT,
    Edited,
    Selection,
    UntoldError,
    must_be_known,
)
from kvtape.replication.resp import pack
from kvtape.replication.tracker import NO_DB
from kvtape.tape.commands import (
    Batch,
    CommandParser,
    Outline,
    Receipts,
    Words,
    read_head,
)
from kvtape.tape.translate import no_commands

# What is sent as one transaction, unless one of the stream is longer. A server takes
# small transactions faster than large ones: it keeps what waits for an EXEC in memory,
# which is that of its caches as long as it is little.
MOST_COMMANDS = 256
MOST_BYTES = 256 * 1024

# To parse all commands takes as long as to parse every third by itself.
_MANY = 3

_NEWLINE = len("\r\n")

_PUT = Struct(f"{DIGITS}s").pack_into

# Returns the moment of replay (ms) for a recorded time.
Moment = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Untold:
    """A command that is left out since it cannot be told what it does, and why."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """Commands for the target, of the stream bytes [start, end) of a history.

    They were received by time (ms). numbers has, for each command of data, which one of
    the sheet it comes of. The database begin must be selected before, or NO_DB where
    that does not matter, and end_db is then; highest_db is the highest that is needed.
    """

    replid: str
    start: int
    end: int
    time: int
    data: bytes
    numbers: Sequence[int]
    begin_db: int
    end_db: int
    highest_db: int
    has_swap: bool
    untold: tuple[Untold, ...]
    recorded: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self.data


class Timed(NamedTuple):
    """Commands that end with a time: their numbers and ends, and their times (ms)."""

    numbers: list[int]
    ends: list[int]
    times: list[int]


class Sheet:
    """A batch of the stream, cut into commands. Numbers count them.

    VerificationError if it is none of commands.
    """

    def __init__(self, batch: Batch, selection: Selection) -> None:
        self.batch = batch
        self.receipts = Receipts(batch.facts)
        self._selection = selection
        self._parser = CommandParser()
        self._parsed: list[Words] | None = None

    def parse(self) -> None:
        """Parse now what will be needed, as another thread may while one waits.

        VerificationError if it is none of commands.
        """
        _ = self._turns
        if len(self._others) * _MANY > len(self):
            self._parsed = self.batch.parsed()

    @cached_property
    def _outline(self) -> Outline:
        return self.batch.outline()

    @cached_property
    def heads(self) -> list[bytes]:
        """What the commands begin with."""
        return self._outline.heads

    @cached_property
    def ends(self) -> list[int]:
        """The offsets that the commands end at."""
        return self._outline.ends

    @cached_property
    def _kinds(self) -> set[bytes]:
        """The heads that there are, which are few."""
        return set(self.heads)

    @cached_property
    def left_out(self) -> set[bytes]:
        """The heads of what is never sent."""
        return {head for head in self._kinds if read_head(head)[0] in LEFT_OUT}

    def words_of(self, number: int) -> Words:
        """Return a command."""
        if self._parsed is not None:
            return self._parsed[number]
        (words,) = self._parser.parse(self._bytes_of(number))
        return words

    def _bytes_of(self, number: int) -> bytes:
        return self.bytes_of(self.start_of(number), self.ends[number])

    def name_of(self, number: int) -> bytes:
        """Return the name of a command, in upper case."""
        return read_head(self.heads[number])[0]

    @cached_property
    def _suspects(self) -> list[int]:
        """The numbers of the commands that may need a change."""
        heads, least_words = self.heads, self._selection.least_words
        looks = set()
        for head in self._kinds:
            name, words = read_head(head)
            if (least := least_words(name)) is not None and words >= least:
                looks.add(head)
        # Most commands of most streams get by without a step of Python's.
        return list(compress(count(), map(looks.__contains__, heads))) if looks else []

    def _suspects_with(self, heads: Collection[bytes]) -> list[int]:
        """Those that have one of some heads."""
        if not heads:
            return []
        own = self.heads
        return [number for number in self._suspects if own[number] in heads]

    @cached_property
    def timed(self) -> Timed:
        """The commands in which nothing is changed but the time that they end with."""
        numbers = (
            self._suspects_with(ENDS_WITH_TIME & self._kinds) if self.has_all else []
        )
        data = self.batch.data
        if len(numbers) < len(self):
            data = b"".join(map(self._bytes_of, numbers))
        found = last_times(self._parser.parse(data))
        times = [time for time in found if time is not None]
        if len(times) < len(found):
            are_timed = [time is not None for time in found]
            numbers = list(compress(numbers, are_timed))
        return Timed(numbers, [self.ends[number] for number in numbers], times)

    @cached_property
    def _others(self) -> list[int]:
        """The commands that may need another change."""
        timed = set(self.timed.numbers)
        return [number for number in self._suspects if number not in timed]

    @cached_property
    def _turns(self) -> dict[bytes, list[int]]:
        """Return the numbers of the commands that change where the others are."""
        heads = self.heads
        found: dict[bytes, list[int]] = {b"MULTI": [], b"EXEC": [], b"SELECT": []}
        turns = {head for head in self._kinds if read_head(head)[0] in found}
        for number in self._suspects_with(turns):
            found[read_head(heads[number])[0]].append(number)
        return found

    @cached_property
    def _dbs(self) -> list[int]:
        return [self.batch.db, *map(self._selected, self._turns[b"SELECT"])]

    def __len__(self) -> int:
        return len(self.ends)

    def _selected(self, number: int) -> int:
        try:
            _, db = self.words_of(number)
            return int(db)
        except ValueError:
            raise no_commands(self.start_of(number)) from None

    def start_of(self, number: int) -> int:
        """Return the offset that a command begins at."""
        return self.ends[number - 1] if number else self.batch.start

    def time_of(self, number: int) -> int:
        """Return when a command, or the transaction it begins, was received whole."""
        return self.received_by(self._whole(number + 1))

    def _whole(self, number: int) -> int:
        """Return where to cut, behind number commands or more, outside of MULTI."""
        opens, closes = self._turns[b"MULTI"], self._turns[b"EXEC"]
        transaction = bisect_left(opens, number) - 1
        if transaction < 0:
            return number
        if transaction >= len(closes):
            raise VerificationError(
                f"the stream ends within a transaction that begins at "
                f"{self.start_of(opens[transaction])}"
            )
        return max(number, closes[transaction] + 1)

    def take(self, first: int, until: int | None) -> int:
        """Return where a parcel ends that begins at a command.

        It holds what was received by a time (ms), but for what is too much for one; and
        at least one command or transaction.
        """
        least = first + 1
        last = min(first + MOST_COMMANDS, len(self))
        if self.ends[last - 1] - self.start_of(first) > MOST_BYTES:
            last = bisect_right(self.ends, self.start_of(first) + MOST_BYTES)
        if until is not None:
            last = min(last, bisect_right(self.ends, self.receipts.end_by(until)))
        return self._whole(max(least, last))

    def parcel(
        self, first: int, last: int, moment: Moment, without: Collection[int] = ()
    ) -> Parcel:
        """Return what to send of the commands from first to before last."""
        editing = _Editing(self, first, last, self._db_at(first))
        if without or self._db_at(first) == NO_DB:
            looked_at = sorted({*_between(self._suspects, first, last), *without})
        else:
            looked_at = _between(self._others, first, last)
            if left := editing.move(moment):
                looked_at = sorted([*looked_at, *left])
        for number in looked_at:
            editing.edit(number, moment, is_left_out=number in without)
        return editing.parcel()

    def _db_at(self, number: int) -> int:
        """Return the database selected before a command."""
        return self._dbs[bisect_left(self._turns[b"SELECT"], number)]

    @property
    def has_all(self) -> bool:
        """Whether all is replayed, as it is."""
        return self._selection.has_all

    def edited(self, number: int, moment: Moment) -> Edited | None:
        """Return what is sent instead of a command; UntoldError if nobody can tell."""
        begin, words = self.start_of(number), self.words_of(number)
        time = self.receipts.of(self.ends[number])
        db = self._db_at(number)
        try:
            return self._selection.edit(words, db, time, moment(time), begin)
        except (ValueError, IndexError):
            raise no_commands(begin) from None

    def target_db(self, db: int) -> int:
        """Return the database to select for one; NO_DB if nothing of it is sent."""
        if self._selection.dbs and db not in self._selection.dbs:
            return NO_DB
        return db if db == NO_DB else self._selection.db_for(db)

    def received_by(self, last: int) -> int:
        """Return when the commands before last had been received."""
        return self.receipts.of(self.ends[last - 1])

    def bytes_of(self, start: int, end: int) -> bytes:
        """Return stream bytes by their offsets."""
        return self.batch.data[start - self.batch.start : end - self.batch.start]

    def db_is_known(self, number: int) -> None:
        """Raise PointError unless it is known which database a command is in."""
        must_be_known(self._db_at(number), self.start_of(number))


def _between(numbers: list[int], first: int, last: int) -> list[int]:
    """Return those of numbers, which rise, that are from first to before last."""
    return numbers[bisect_left(numbers, first) : bisect_left(numbers, last)]


class _Editing:
    """Puts a parcel together: bytes of the stream, and what stands in their place."""

    def __init__(self, sheet: Sheet, first: int, last: int, db: int) -> None:
        self._sheet = sheet
        self._first, self._last = first, last
        self._start, self._end = sheet.start_of(first), sheet.start_of(last)
        self._data: bytes | bytearray = sheet.bytes_of(self._start, self._end)
        self._out: list[bytes | bytearray] = []
        self._numbers: list[int] = []
        self._untold: list[Untold] = []
        # Up to where it is put together: an offset, and the number of a command.
        self._at, self._done = self._start, first
        self._begin = self._db = self._highest = sheet.target_db(db)
        self._is_known = db != NO_DB
        self._has_swap = False

    def move(self, moment: Moment) -> list[int]:
        """Move the times that commands end with; return which of them need more."""
        timed, receipts = self._sheet.timed, self._sheet.receipts
        low, high = (bisect_left(timed.numbers, n) for n in (self._first, self._last))
        left: list[int] = []
        if low < high:
            self._data = bytearray(self._data)
        while low < high:
            time, until = receipts.run(timed.ends[low])
            stop = bisect_right(timed.ends, until, low, high)
            moved = moved_times(timed.times[low:stop], moment(time) - time)
            if moved is None:
                left += timed.numbers[low:stop]
            else:
                self._overwrite(timed.ends[low:stop], moved)
            low = stop
        return left

    def _overwrite(self, ends: Iterable[int], times: Iterable[bytes]) -> None:
        begin = self._start + DIGITS + _NEWLINE
        for end, digits in zip(ends, times, strict=True):
            _PUT(self._data, end - begin, digits)

    def edit(self, number: int, moment: Moment, *, is_left_out: bool) -> None:
        """Put in place what a command becomes; their numbers rise."""
        sheet = self._sheet
        if sheet.heads[number] in sheet.left_out:
            self._replace(number, ())
            return
        name = sheet.name_of(number)
        if not self._is_known and name == b"SELECT":
            self._copy(number)
        elif not self._is_known:
            self._sheet.db_is_known(number)
        edited: Edited | None = ()
        try:
            edited = self._sheet.edited(number, moment)
        except UntoldError as error:
            self._untold.append(Untold(number, str(error)))
        if is_left_out:
            edited = ()
        self._has_swap = self._has_swap or name == b"SWAPDB"
        if name == b"SELECT":
            self._is_known = True
            if edited is None:
                self._select(int(self._sheet.words_of(number)[1]))
        if edited is not None:
            self._replace(number, edited)

    def _select(self, db: int) -> None:
        self._db = db
        self._highest = max(self._highest, db)

    def _replace(self, number: int, edited: Iterable[Sequence[bytes | int]]) -> None:
        self._copy(number)
        for words in edited:
            if words[0] == b"SELECT":
                self._select(int(words[1]))
            self._out.append(pack(*words))
            self._numbers.append(number)
        self._done = number + 1
        self._at = self._sheet.ends[number]

    def _copy(self, stop: int) -> None:
        """Pass on what is left before stop as it is."""
        if self._done == stop:
            return
        sheet = self._sheet
        if not self._is_known:
            sheet.db_is_known(self._done)
        end = sheet.start_of(stop)
        self._out.append(self._data[self._at - self._start : end - self._start])
        self._numbers += range(self._done, stop)
        self._at, self._done = end, stop

    def parcel(self) -> Parcel:
        self._copy(self._last)
        sheet = self._sheet
        return Parcel(
            sheet.batch.replid,
            self._start,
            self._end,
            sheet.received_by(self._last),
            b"".join(self._out),
            self._numbers,
            self._begin,
            self._db,
            self._highest,
            self._has_swap,
            tuple(self._untold),
            self._last - self._first,
        )
