"""A stretch of the stream, cut into parcels: what is sent as one transaction.

A parcel begins and ends where a command does, outside of any recorded MULTI. Most of
its bytes are those of the stream: only commands that may need a change are looked at,
and the others are not even told apart. A command is named by where it begins.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
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
from kvtape.replication.resp import pack, packed_ends
from kvtape.replication.tracker import NO_DB
from kvtape.tape.commands import Batch, CommandParser, Receipts, Words
from kvtape.tape.outline import Outline, outline, read_head
from kvtape.tape.translate import no_commands

# What is sent as one transaction, about so many commands, unless one of the stream is
# longer. A server takes small transactions faster than large ones: it keeps what waits
# for an EXEC in memory, which is that of its caches as long as it is little.
MANY_COMMANDS = 256
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

    start: int
    reason: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """Commands for the target, of the stream bytes [start, end) of a history.

    They were received by time (ms), and recorded of them were there. data has count
    commands: the bytes as they are, but for some commands, which edits has with where
    they begin and end, and how many commands each became. The database begin must be
    selected before, or NO_DB where that does not matter, and end_db is then; highest_db
    is the highest that is needed.
    """

    replid: str
    start: int
    end: int
    time: int
    data: bytes
    count: int
    edits: Sequence[tuple[int, int, int]]
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
    """Commands that end with a time: where they begin and end, and their times (ms)."""

    starts: list[int]
    ends: list[int]
    times: list[int]


class Sheet:
    """A batch of the stream, cut into commands.

    VerificationError if it is none of commands.
    """

    def __init__(self, batch: Batch, selection: Selection) -> None:
        self.batch = batch
        self.receipts = Receipts(batch.facts)
        self._selection = selection
        self._parser = CommandParser()
        self._parsed: dict[int, Words] = {}

    def parse(self) -> None:
        """Parse now what will be needed, as another thread may while one waits.

        VerificationError if it is none of commands.
        """
        _ = self._turns, self._left_out
        others = self._others
        if len(others) * _MANY > len(self.outline):
            words = self.batch.parsed()
            starts = [self.start, *packed_ends(words, self.start)]
            self._parsed = dict(zip(starts, words, strict=False))

    @property
    def start(self) -> int:
        """Where its first command begins."""
        return self.batch.start

    @property
    def end(self) -> int:
        """Where its last command ends."""
        return self.batch.end

    @cached_property
    def outline(self) -> Outline:
        """Where its commands are, with the heads of those that may need a change."""
        return outline(self.batch, self._selection.least_words)

    def words_of(self, start: int) -> Words:
        """Return a command."""
        found = self._parsed.get(start)
        if found is None:
            (found,) = self._parser.parse(self._bytes_of(start))
        return found

    def _bytes_of(self, start: int) -> bytes:
        return self.bytes_of(start, self.outline.end_of(start))

    def name_of(self, start: int) -> bytes:
        """Return the name of a command, in upper case."""
        suspects = self.outline.starts
        at = bisect_left(suspects, start)
        if at < len(suspects) and suspects[at] == start:
            return self._names[self.outline.heads[at]]
        return self.words_of(start)[0].upper()

    @cached_property
    def _names(self) -> dict[bytes, bytes]:
        """The names of the commands that may need a change, by their heads."""
        return {head: read_head(head)[0] for head in set(self.outline.heads)}

    @cached_property
    def timed(self) -> Timed:
        """The commands in which nothing is changed but the time that they end with."""
        heads = ENDS_WITH_TIME & self._names.keys()
        if not heads or not self.has_all:
            return Timed([], [], [])
        are_timed = list(map(heads.__contains__, self.outline.heads))
        starts = list(compress(self.outline.starts, are_timed))
        ends = list(compress(self._ends, are_timed))
        data, first = self.batch.data, self.start
        if len(starts) < len(self.outline):
            places = zip(starts, ends, strict=True)
            data = b"".join([data[at - first : end - first] for at, end in places])
        found = last_times(self._parser.parse(data))
        times = [time for time in found if time is not None]
        if len(times) < len(found):
            have_time = [time is not None for time in found]
            starts = list(compress(starts, have_time))
            ends = list(compress(ends, have_time))
        return Timed(starts, ends, times)

    @cached_property
    def _ends(self) -> list[int]:
        return self.outline.ends()

    @cached_property
    def _others(self) -> list[int]:
        """The commands that may need another change."""
        suspects = self.outline.starts
        if len(self.timed.starts) == len(suspects):
            return []
        timed = set(self.timed.starts)
        return [start for start in suspects if start not in timed]

    @cached_property
    def _left_out(self) -> dict[int, int]:
        """Where the commands end that are never sent, by where they begin."""
        heads = {head for head, name in self._names.items() if name in LEFT_OUT}
        are_left_out = list(map(heads.__contains__, self.outline.heads))
        starts = compress(self.outline.starts, are_left_out)
        return dict(zip(starts, compress(self._ends, are_left_out), strict=True))

    @cached_property
    def _turns(self) -> dict[bytes, list[int]]:
        """Return the commands that change where the others are."""
        found: dict[bytes, list[int]] = {b"MULTI": [], b"EXEC": [], b"SELECT": []}
        turns = {head: name for head, name in self._names.items() if name in found}
        if turns:
            heads = self.outline.heads
            are_turns = list(map(turns.__contains__, heads))
            starts = compress(self.outline.starts, are_turns)
            for start, head in zip(starts, compress(heads, are_turns), strict=True):
                found[turns[head]].append(start)
        return found

    @cached_property
    def _dbs(self) -> list[int]:
        return [self.batch.db, *map(self._selected, self._turns[b"SELECT"])]

    def _selected(self, start: int) -> int:
        try:
            _, db = self.words_of(start)
            return int(db)
        except ValueError:
            raise no_commands(start) from None

    def time_of(self, start: int) -> int:
        """Return when a command, or the transaction it begins, was received whole."""
        return self.receipts.of(self._whole(self.outline.end_of(start)))

    def _whole(self, end: int) -> int:
        """Return where to cut, at the end of a command or behind, outside of MULTI."""
        opens, closes = self._turns[b"MULTI"], self._turns[b"EXEC"]
        transaction = bisect_left(opens, end) - 1
        if transaction < 0:
            return end
        if transaction >= len(closes):
            raise VerificationError(
                "the stream ends within a transaction that begins at "
                f"{opens[transaction]}"
            )
        return max(end, self.outline.end_of(closes[transaction]))

    def take(self, start: int, until: int | None) -> int:
        """Return where a parcel ends that begins with a command.

        It holds what was received by a time (ms), but for what is too much for one; and
        at least one command or transaction.
        """
        found = self.outline
        end = found.behind(start, MANY_COMMANDS)
        if end - start > MOST_BYTES:
            end = found.end_by(start + MOST_BYTES)
        if until is not None:
            end = min(end, found.end_by(self.receipts.end_by(until)))
        return self._whole(end if end > start else found.end_of(start))

    def parcel(
        self, start: int, end: int, moment: Moment, without: Collection[int] = ()
    ) -> Parcel:
        """Return what to send of the commands from one that begins to one that ends."""
        editing = _Editing(self, start, end, self._db_at(start))
        if without or self._db_at(start) == NO_DB:
            looked_at = sorted({*_between(self.outline.starts, start, end), *without})
        else:
            looked_at = _between(self._others, start, end)
            if left := editing.move(moment):
                looked_at = sorted([*looked_at, *left])
        for each in looked_at:
            if (behind := self._left_out.get(each)) is not None:
                editing.replace(each, behind)
            else:
                editing.edit(each, moment, is_left_out=each in without)
        return editing.parcel()

    def source(self, parcel: Parcel, number: int) -> int:
        """Return the command that one in the data of a parcel comes of."""
        at, left = parcel.start, number
        for start, end, count in parcel.edits:
            before = self.outline.count(at, start)
            if left < before:
                break
            left -= before
            if left < count:
                return start
            at, left = end, left - count
        return self.outline.nth(at, left)

    def _db_at(self, start: int) -> int:
        """Return the database selected before a command."""
        return self._dbs[bisect_left(self._turns[b"SELECT"], start)]

    @property
    def has_all(self) -> bool:
        """Whether all is replayed, as it is."""
        return self._selection.has_all

    def edited(self, start: int, moment: Moment) -> Edited | None:
        """Return what is sent instead of a command; UntoldError if nobody can tell."""
        words = self.words_of(start)
        time = self.receipts.of(self.outline.end_of(start))
        db = self._db_at(start)
        try:
            return self._selection.edit(words, db, time, moment(time), start)
        except (ValueError, IndexError):
            raise no_commands(start) from None

    def target_db(self, db: int) -> int:
        """Return the database to select for one; NO_DB if nothing of it is sent."""
        if self._selection.dbs and db not in self._selection.dbs:
            return NO_DB
        return db if db == NO_DB else self._selection.db_for(db)

    def bytes_of(self, start: int, end: int) -> bytes:
        """Return stream bytes by their offsets."""
        return self.batch.data[start - self.batch.start : end - self.batch.start]


def _between(starts: list[int], start: int, end: int) -> list[int]:
    """Return those of some commands, which rise, that begin within [start, end)."""
    return starts[bisect_left(starts, start) : bisect_left(starts, end)]


class _Editing:
    """Puts a parcel together: bytes of the stream, and what stands in their place."""

    def __init__(self, sheet: Sheet, start: int, end: int, db: int) -> None:
        self._sheet = sheet
        self._start, self._end = start, end
        self._recorded = sheet.outline.count(start, end)
        self._data: bytes | bytearray = sheet.bytes_of(start, end)
        self._out: list[bytes | bytearray] = []
        self._edits: list[tuple[int, int, int]] = []
        self._count = self._recorded
        self._untold: list[Untold] = []
        # Up to where it is put together.
        self._at = start
        self._begin = self._db = self._highest = sheet.target_db(db)
        self._is_known = db != NO_DB
        self._has_swap = False

    def move(self, moment: Moment) -> list[int]:
        """Move the times that commands end with; return which of them need more."""
        timed, receipts = self._sheet.timed, self._sheet.receipts
        low, high = (bisect_left(timed.starts, n) for n in (self._start, self._end))
        left: list[int] = []
        if low < high:
            self._data = bytearray(self._data)
        while low < high:
            time, until = receipts.run(timed.ends[low])
            stop = bisect_right(timed.ends, until, low, high)
            moved = moved_times(timed.times[low:stop], moment(time) - time)
            if moved is None:
                left += timed.starts[low:stop]
            else:
                self._overwrite(timed.ends[low:stop], moved)
            low = stop
        return left

    def _overwrite(self, ends: Iterable[int], times: Iterable[bytes]) -> None:
        begin = self._start + DIGITS + _NEWLINE
        for end, digits in zip(ends, times, strict=True):
            _PUT(self._data, end - begin, digits)

    def edit(self, start: int, moment: Moment, *, is_left_out: bool) -> None:
        """Put in place what a command becomes; they come in order."""
        sheet = self._sheet
        name = sheet.name_of(start)
        if not self._is_known:
            self._copy(start)
            if name != b"SELECT":
                must_be_known(NO_DB, start)
        edited: Edited | None = ()
        try:
            edited = sheet.edited(start, moment)
        except UntoldError as error:
            self._untold.append(Untold(start, str(error)))
        if is_left_out:
            edited = ()
        self._has_swap = self._has_swap or name == b"SWAPDB"
        if name == b"SELECT":
            self._is_known = True
            if edited is None:
                self._select(int(sheet.words_of(start)[1]))
        if edited is not None:
            self.replace(start, sheet.outline.end_of(start), edited)

    def _select(self, db: int) -> None:
        self._db = db
        self._highest = max(self._highest, db)

    def replace(
        self, start: int, end: int, edited: Iterable[Sequence[bytes | int]] = ()
    ) -> None:
        """Put other commands in the place of one; they come in order."""
        self._copy(start)
        count = 0
        for words in edited:
            if words[0] == b"SELECT":
                self._select(int(words[1]))
            self._out.append(pack(*words))
            count += 1
        self._at = end
        self._count += count - 1
        self._edits.append((start, end, count))

    def _copy(self, end: int) -> None:
        """Pass on what is left before end as it is."""
        if self._at == end:
            return
        if not self._is_known:
            must_be_known(NO_DB, self._at)
        self._out.append(self._data[self._at - self._start : end - self._start])
        self._at = end

    def parcel(self) -> Parcel:
        self._copy(self._end)
        sheet = self._sheet
        return Parcel(
            sheet.batch.replid,
            self._start,
            self._end,
            sheet.receipts.of(self._end),
            b"".join(self._out),
            self._count,
            self._edits,
            self._begin,
            self._db,
            self._highest,
            self._has_swap,
            tuple(self._untold),
            self._recorded,
        )
