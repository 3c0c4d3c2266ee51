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

from kvtape.errors import VerificationError
from kvtape.replay.moving import moved_in_place
from kvtape.replay.selection import (
    LEFT_OUT,
    Edited,
    Selection,
    UntoldError,
    must_be_known,
)
from kvtape.replication.resp import pack, packed_ends
from kvtape.replication.tracker import NO_DB
from kvtape.tape.commands import Batch, Receipts, Words, name_of
from kvtape.tape.translate import no_commands

# What is sent as one transaction, unless one of the stream is longer. A server takes
# small transactions faster than large ones: it keeps what waits for an EXEC in memory,
# which is that of its caches as long as it is little.
MOST_COMMANDS = 256
MOST_BYTES = 256 * 1024

_NEWLINE = len("\r\n")

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


class Sheet:
    """A batch of the stream, parsed. Numbers count its commands.

    VerificationError if it is none of commands.
    """

    def __init__(self, batch: Batch, selection: Selection) -> None:
        self.batch = batch
        self.receipts = Receipts(batch.facts)
        self._selection = selection

    def parse(self) -> None:
        """Parse now what will be needed, as another thread may while one waits.

        VerificationError if it is none of commands.
        """
        _ = self._turns, self.ends

    @cached_property
    def commands(self) -> list[Words]:
        """The commands, parsed."""
        return self.batch.parsed()

    @cached_property
    def ends(self) -> list[int]:
        """The offsets that the commands end at."""
        return packed_ends(self.commands, self.batch.start)

    @cached_property
    def _suspects(self) -> list[int]:
        """The numbers of the commands that may need a change."""
        commands, least_words = self.commands, self._selection.least_words
        if not self.batch.is_lost and all(
            (least := least_words(name)) is None or words < least
            for facts in self.batch.facts
            for name, words in facts.summary.names.items()
        ):
            return []
        looks = {
            name: least
            for name in set(map(name_of, commands))
            if (least := least_words(name)) is not None
        }
        # Most commands of most streams get by without a step of Python's.
        named = map(looks.__contains__, map(name_of, commands))
        return [
            number
            for number in compress(count(), named)
            if len(commands[number]) >= looks[commands[number][0]]
        ]

    @cached_property
    def _turns(self) -> dict[bytes, list[int]]:
        """Return the numbers of the commands that change where the others are."""
        found: dict[bytes, list[int]] = {b"MULTI": [], b"EXEC": [], b"SELECT": []}
        for number in self._suspects:
            name = self.commands[number][0].upper()
            if name in found:
                found[name].append(number)
        return found

    @cached_property
    def _dbs(self) -> list[int]:
        return [self.batch.db, *map(self._selected, self._turns[b"SELECT"])]

    def __len__(self) -> int:
        return len(self.commands)

    def _selected(self, number: int) -> int:
        try:
            _, db = self.commands[number]
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
        looked_at = self._looked_at(first, last, without)
        if looked_at:
            editing.edit(looked_at, moment, without)
        return editing.parcel()

    def _looked_at(
        self, first: int, last: int, without: Collection[int]
    ) -> Sequence[int]:
        low = bisect_left(self._suspects, first)
        found = self._suspects[low : bisect_left(self._suspects, last)]
        return sorted({*found, *without}) if without else found

    def _db_at(self, number: int) -> int:
        """Return the database selected before a command."""
        return self._dbs[bisect_left(self._turns[b"SELECT"], number)]

    @property
    def has_all(self) -> bool:
        """Whether all is replayed, as it is."""
        return self._selection.has_all

    def edited(self, number: int, moment: Moment) -> Edited | None:
        """Return what is sent instead of a command; UntoldError if nobody can tell."""
        begin, words = self.start_of(number), self.commands[number]
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

    def edit(
        self, numbers: Iterable[int], moment: Moment, without: Collection[int]
    ) -> None:
        """Put in place what the commands of these numbers, which rise, become."""
        sheet, commands, ends = self._sheet, self._sheet.commands, self._sheet.ends
        is_simple = sheet.has_all and not without
        self._data = data = bytearray(self._data)
        behind_time = self._start + _NEWLINE
        until = shift = 0
        for number in numbers:
            words = commands[number]
            if words[0] in LEFT_OUT:
                self._replace(number, ())
                continue
            if is_simple and self._is_known:
                # What most of a busy stream's expiries are; all else takes ten times
                # as long.
                end = ends[number]
                if end > until:
                    time, until = sheet.receipts.run(end)
                    shift = moment(time) - time
                digits = moved_in_place(words, shift)
                if digits is not None:
                    end -= behind_time
                    data[end - len(digits) : end] = digits
                    continue
            self._edit(number, moment, is_left_out=number in without)

    def _edit(self, number: int, moment: Moment, *, is_left_out: bool) -> None:
        words = self._sheet.commands[number]
        name = words[0].upper()
        if name in LEFT_OUT:
            self._replace(number, ())
            return
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
                self._select(int(words[1]))
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
