"""A stretch of the stream, cut into parcels: what is sent as one transaction.

A parcel begins and ends where a command does, outside of any recorded MULTI. Most of
its bytes are those of the stream: only commands that may need a change are looked at.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, count

from kvtape.errors import VerificationError
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

# What is sent at once, unless a transaction is longer.
MOST_COMMANDS = 2000
MOST_BYTES = 512 * 1024

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
        self._selection = selection
        self._receipts = Receipts(batch.facts)

    def parse(self) -> None:
        """Parse now what will be needed, as another thread may while one waits.

        VerificationError if it is none of commands.
        """
        if not self.is_plain:
            _ = self._turns, self._ends

    @cached_property
    def commands(self) -> list[Words]:
        """The commands, parsed."""
        return self.batch.parsed()

    @cached_property
    def _ends(self) -> list[int]:
        return packed_ends(self.commands, self.batch.start)

    @cached_property
    def is_plain(self) -> bool:
        """Whether every byte can be sent as it is, which its facts alone may tell."""
        facts, selection = self.batch.facts, self._selection
        is_whole = (facts[0].start, facts[-1].end) == (self.batch.start, self.batch.end)
        return (
            is_whole
            and self.batch.db != NO_DB
            and not self.batch.is_lost
            and all(
                (least := selection.least_words(name)) is None or words < least
                for each in facts
                for name, words in each.summary.names.items()
            )
        )

    @cached_property
    def _suspects(self) -> list[int]:
        """The numbers of the commands that may need a change."""
        looks = {
            name: least
            for name in {words[0] for words in self.commands}
            if (least := self._selection.least_words(name)) is not None
        }
        # Most commands of most streams get by without a step of Python's.
        named = map(looks.__contains__, map(name_of, self.commands))
        commands = self.commands
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

    @cached_property
    def _length(self) -> int:
        if not self.is_plain:
            return len(self.commands)
        return sum(each.summary.commands for each in self.batch.facts)

    def __len__(self) -> int:
        return self._length

    def _selected(self, number: int) -> int:
        try:
            _, db = self.commands[number]
            return int(db)
        except ValueError:
            raise no_commands(self.start_of(number)) from None

    def start_of(self, number: int) -> int:
        """Return the offset that a command begins at."""
        return self._ends[number - 1] if number else self.batch.start

    @property
    def received(self) -> int:
        """When the last of it was received."""
        return self._receipts.of(self.batch.end)

    def time_of(self, number: int) -> int:
        """Return when a command, or the transaction it begins, was received whole."""
        return self._receipts.of(self._ends[self._whole(number + 1) - 1])

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
        if until is None and self.is_plain:
            return len(self)
        least = first + 1
        last = min(first + MOST_COMMANDS, len(self))
        last = min(last, bisect_right(self._ends, self.start_of(first) + MOST_BYTES))
        if until is not None:
            last = min(last, bisect_right(self._ends, self._receipts.end_by(until)))
        return self._whole(max(least, last))

    def parcel(
        self, first: int, last: int, moment: Moment, without: Iterable[int] = ()
    ) -> Parcel:
        """Return what to send of the commands from first to before last."""
        if self.is_plain and not without and (first, last) == (0, len(self)):
            return self._whole_parcel()
        editing = _Editing(self, first, self._db_at(first))
        for number in self._looked_at(first, last, without):
            editing.edit(number, moment, is_left_out=number in without)
        return editing.parcel(last)

    def _whole_parcel(self) -> Parcel:
        batch, db = self.batch, self.target_db(self.batch.db)
        return Parcel(
            batch.replid,
            batch.start,
            batch.end,
            self._receipts.of(batch.end),
            batch.data,
            range(len(self)),
            db,
            db,
            db,
            has_swap=False,
            untold=(),
            recorded=len(self),
        )

    def _looked_at(self, first: int, last: int, without: Iterable[int]) -> list[int]:
        low = bisect_left(self._suspects, first)
        found = self._suspects[low : bisect_left(self._suspects, last)]
        return sorted({*found, *without}) if without else found

    def _db_at(self, number: int) -> int:
        """Return the database selected before a command."""
        return self._dbs[bisect_left(self._turns[b"SELECT"], number)]

    def edited(self, number: int, moment: Moment) -> Edited | None:
        """Return what is sent instead of a command; UntoldError if nobody can tell."""
        begin, words = self.start_of(number), self.commands[number]
        if words[0].upper() in LEFT_OUT:
            return ()
        time = self._receipts.of(self._ends[number])
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
        return self._receipts.of(self._ends[last - 1])

    def bytes_of(self, start: int, end: int) -> bytes:
        """Return stream bytes by their offsets."""
        return self.batch.data[start - self.batch.start : end - self.batch.start]

    def db_is_known(self, number: int) -> None:
        """Raise PointError unless it is known which database a command is in."""
        must_be_known(self._db_at(number), self.start_of(number))

    def words_of(self, number: int) -> Words:
        """Return the words of a command."""
        return self.commands[number]


class _Editing:
    """Puts a parcel together, command by command."""

    def __init__(self, sheet: Sheet, first: int, db: int) -> None:
        self._sheet = sheet
        self._first = first
        self._out: list[bytes] = []
        self._numbers: list[int] = []
        self._untold: list[Untold] = []
        self._done = first
        self._begin = self._db = self._highest = sheet.target_db(db)
        self._is_known = db != NO_DB
        self._has_swap = False

    def edit(self, number: int, moment: Moment, *, is_left_out: bool) -> None:
        name = self._sheet.words_of(number)[0].upper()
        if not self._is_known and name == b"SELECT":
            self._copy(number)
        elif not self._is_known and name not in LEFT_OUT:
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

    def _copy(self, stop: int) -> None:
        """Pass on the commands before stop as they are."""
        if self._done == stop:
            return
        sheet = self._sheet
        if not self._is_known:
            sheet.db_is_known(self._done)
        start, end = sheet.start_of(self._done), sheet.start_of(stop)
        self._out.append(sheet.bytes_of(start, end))
        self._numbers += range(self._done, stop)

    def parcel(self, last: int) -> Parcel:
        self._copy(last)
        sheet = self._sheet
        return Parcel(
            sheet.batch.replid,
            sheet.start_of(self._first),
            sheet.start_of(last),
            sheet.received_by(last),
            b"".join(self._out),
            self._numbers,
            self._begin,
            self._db,
            self._highest,
            self._has_swap,
            tuple(self._untold),
            last - self._first,
        )
