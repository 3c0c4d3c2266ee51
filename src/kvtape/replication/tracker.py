"""Following the stream: where commands end, what database is selected, what was said.

The stream is stored as it came, and nothing here can stop that. The tracker only tells
what recording needs to know about it:

- *boundary*: the last offset that is the end of a command and outside MULTI. A segment
  may start there, a restore may stop there, and it is what a replica acknowledges.
- *db*: the database selected at that boundary. A segment says it in its header.
- the names of the commands, with the most words each was seen with. A restore copies
  what needs no translation without parsing it, and knows by these which part that is.
- whether the primary asked for an acknowledgement.

Whole commands are read by hiredis, 32 KiB at a time, and measured. A command that is
longer than that is walked over word by word without being kept, so that a value of
512 MiB costs no memory.

If the bytes are no commands at all, the tracker is *lost*: it says why, and from there
on calls every offset a boundary and every name unknown, so that the recording goes on
and what reads it later knows that it has to look for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import hiredis

from kvtape.replication.resp import PIECE, packed_length, packed_lengths

# An unfinished command up to this length is kept and parsed again with what follows;
# a longer one is walked over. It bounds both the memory and the repeated work.
_KEPT = 2 * PIECE

# A command of more words than this does not fit in _KEPT, as a word takes at least six
# bytes. hiredis makes room for all words at once, so it is not asked twice.
_MANY = _KEPT // len("$0\r\n\r\n")

# The longest line that can stand before a word: $ or *, a 64-bit number, CRLF.
_LONGEST_LINE = 1 + 20 + 2

# Names are short. What is longer is no command, and not worth a place in an index.
_LONGEST_NAME = 64

# The most words that a summary counts; it has one byte for them.
MANY_WORDS = 255

# The number of a database is an int of C, and no server is configured with so many.
_DB_DIGITS = 9

NO_DB = -1

# What a primary says when it has nothing to say. A recording that holds only these
# has nothing new in it.
_IDLE = frozenset({b"PING", b"REPLCONF"})
_TURNS = frozenset({b"SELECT", b"MULTI", b"EXEC", b"REPLCONF"})

_name = itemgetter(0)


class _NotCommandsError(Exception):
    """The bytes cannot be what a primary sends."""


@dataclass(slots=True)
class Summary:
    """What a stretch of the stream holds, as far as that is known without storing it.

    names maps each command's name, in upper case, to the most words that a command of
    that name had (at most MANY_WORDS); highest_db is the highest database that was
    selected, or NO_DB; commands is how many commands end in it; lost is True if the
    stretch could not be followed.
    """

    names: dict[bytes, int] = field(default_factory=dict)
    highest_db: int = NO_DB
    commands: int = 0
    lost: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing in it but what keeps the link alive."""
        return not self.lost and self.names.keys() <= _IDLE

    def merge(self, later: Summary) -> None:
        """Add what is known of a later stretch."""
        for name, words in later.names.items():
            self.names[name] = max(words, self.names.get(name, 0))
        self.highest_db = max(self.highest_db, later.highest_db)
        self.commands += later.commands
        self.lost = self.lost or later.lost


class Tracker:
    """Follows one stream from a boundary on. Feed it every byte, in order.

    db is the database selected at offset, or NO_DB where the next write is certain to
    be preceded by a SELECT, as it is after a full resync from a primary.
    """

    def __init__(self, offset: int, db: int = NO_DB) -> None:
        self.offset = offset
        self.boundary = offset
        self.db = db
        self.lost_because: str | None = None
        self._summary = Summary()
        self._getack = False
        self._current_db = db
        self._in_multi = False
        self._kept = b""
        self._walk: _Walk | None = None
        self._canonical: dict[bytes, bytes] = {}

    @property
    def in_multi(self) -> bool:
        """Whether whole commands were seen that no boundary has passed yet."""
        return self._in_multi

    def feed(self, data: bytes) -> None:
        """Follow the next bytes of the stream."""
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            if self.lost_because is None:
                try:
                    self._follow(piece)
                except _NotCommandsError as error:
                    end = self.offset + len(piece)
                    self._lose(f"{error} (between {self.boundary} and {end})")
            self.offset += len(piece)
        if self.lost_because is not None:
            self.boundary = self.offset

    def take_summary(self) -> Summary:
        """Return what was seen since the last call, and start anew."""
        taken = self._summary
        self._summary = Summary(lost=self.lost_because is not None)
        return taken

    def take_getack(self) -> bool:
        """Return whether the primary asked for an ACK since the last call."""
        taken, self._getack = self._getack, False
        return taken

    def _lose(self, why: str) -> None:
        self.lost_because = why
        self._summary.lost = True
        self._in_multi = False
        self._kept = b""
        self._walk = None

    def _follow(self, piece: bytes) -> None:
        """Follow a piece that starts at self.offset."""
        position = 0
        if self._walk is not None:
            position = self._walk.advance(piece)
            if not self._walk.is_done:
                return
            if self._note(self._walk.name, self._walk.words) in _TURNS:
                # What it says was not kept, and no primary says so much with it.
                raise _NotCommandsError(f"a {self._walk.name!r} that never ends")
            self._summary.commands += 1
            self._walk = None
            self._reach(self.offset + position)
        start = self.offset + position - len(self._kept)
        rest = self._kept + piece[position:]
        self._kept = rest[self._follow_commands(rest, start) :]
        if _is_long(self._kept):
            self._walk = _Walk()
            self._walk.advance(self._kept)
            self._kept = b""

    def _follow_commands(self, data: bytes, start: int) -> int:
        """Follow the whole commands in data; return where the last of them ends."""
        commands = _parse(data)
        if not commands:
            return 0
        try:
            pairs = set(zip(map(_name, commands), map(len, commands), strict=True))
            end = packed_lengths(commands)
        except (TypeError, LookupError):
            raise _NotCommandsError("a reply, or a command without words") from None
        # A simple string or a newline in the stream shows here at the latest: the
        # lengths are right only for what a primary writes.
        if data[end - 2 : end] != b"\r\n" or data[end : end + 1] not in (b"", b"*"):
            raise _NotCommandsError("what follows a command is not a command")
        # A dictionary's keys would do, were it not for a server's freedom of case.
        names = {self._note(name, words) for name, words in pairs}
        self._summary.commands += len(commands)
        if names.isdisjoint(_TURNS):
            self._reach(start + end)
        else:
            self._follow_turns(commands, start)
        return end

    def _follow_turns(self, commands: list[list[bytes]], start: int) -> None:
        """Follow commands one by one, because some of them change where we are."""
        offset = start
        for command in commands:
            offset += packed_length(command)
            match self._canonical[command[0]]:
                case b"SELECT":
                    self._current_db = _db(command)
                    highest = max(self._summary.highest_db, self._current_db)
                    self._summary.highest_db = highest
                case b"MULTI":
                    self._in_multi = True
                case b"EXEC":
                    self._in_multi = False
                case b"REPLCONF" if b"GETACK" in map(bytes.upper, command):
                    self._getack = True
            self._reach(offset)

    def _reach(self, offset: int) -> None:
        if not self._in_multi:
            self.boundary = offset
            self.db = self._current_db

    def _note(self, name: bytes, words: int) -> bytes:
        canonical = self._canonical.get(name)
        if canonical is None:
            if not 0 < len(name) <= _LONGEST_NAME:
                raise _NotCommandsError(f"no command has the name {name[:16]!r}")
            canonical = self._canonical[name] = name.upper()
        names = self._summary.names
        names[canonical] = max(min(words, MANY_WORDS), names.get(canonical, 0))
        return canonical


def _parse(data: bytes) -> list[list[bytes]]:
    """Return the whole commands in data, or whatever else begins with a *."""
    if data[:1] not in (b"", b"*"):
        raise _NotCommandsError(f"no command begins with {data[:16]!r}")
    reader = hiredis.Reader()
    reader.feed(data)
    try:
        return list(iter(reader.gets, False))
    except (hiredis.ProtocolError, TypeError, MemoryError) as error:
        # A map may have a key that Python's cannot have, and an array may announce
        # more elements than there is memory for.
        raise _NotCommandsError(str(error) or "too many words") from None


def _is_long(unfinished: bytes) -> bool:
    """Whether to walk over a command rather than to keep it and parse it again."""
    words, ending, _ = unfinished[1:_LONGEST_LINE].partition(b"\r\n")
    return len(unfinished) > _KEPT or (bool(ending) and int(words) > _MANY)


def _db(command: Sequence[bytes]) -> int:
    match command:
        case [_, number] if number.isdigit() and len(number) <= _DB_DIGITS:
            return int(number)
    raise _NotCommandsError(f"a SELECT of {b' '.join(command[1:])[:16]!r}")


class _Walk:
    """Walks over one long command, of which it keeps nothing but the name."""

    def __init__(self) -> None:
        self.name = b""
        self.words = 0
        self.is_done = False
        self._to_come: int | None = None  # words not yet begun; None before the header
        self._left = 0  # bytes of the current word still to come, CRLF included
        self._line = b""  # a header that was cut

    def advance(self, data: bytes) -> int:
        """Walk on; return the position where the command ends, or len(data)."""
        position = 0
        while position < len(data) and not self.is_done:
            if self._left:
                step = min(self._left, len(data) - position)
                if self.words == self._to_come_at_first:
                    self.name += data[position : position + step]
                self._left -= step
                position += step
                self.is_done = not self._left and not self._to_come
            else:
                position = self._read_line(data, position)
        if self.is_done:
            self.name = self.name.removesuffix(b"\r\n")
        return position

    @property
    def _to_come_at_first(self) -> int:
        """What words is while the first word is walked over."""
        return (self._to_come or 0) + 1

    def _read_line(self, data: bytes, position: int) -> int:
        end = data.find(b"\n", position, position + _LONGEST_LINE)
        stop = len(data) if end < 0 else end + 1
        self._line += data[position:stop]
        if len(self._line) > _LONGEST_LINE:
            raise _NotCommandsError(f"no end of line after {self._line[:16]!r}")
        if end >= 0:
            line, self._line = self._line, b""
            self._begin(line)
        return stop

    def _begin(self, line: bytes) -> None:
        kind, digits = line[:1], line[1:-2]
        # hiredis takes no padded numbers either: cuts must not decide what is lost.
        if not digits.isdigit() or line != b"%s%d\r\n" % (kind, int(digits)):
            raise _NotCommandsError(f"no length in {line!r}")
        if self._to_come is None and kind == b"*":
            self._to_come = self.words = int(digits)
        elif self._to_come and kind == b"$":
            if self._to_come == self.words and int(digits) > _LONGEST_NAME:
                raise _NotCommandsError(f"no command has a name of {int(digits)} bytes")
            self._to_come -= 1
            self._left = int(digits) + 2
        else:
            raise _NotCommandsError(f"no word of a command begins with {line!r}")
