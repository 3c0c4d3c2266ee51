"""The one step between the stored stream and what takes it; nothing else changes it.

What a server sends its replicas is almost what another server needs, and the rest is
decided here:

- Expiries that count from now become absolute (kvtape.tape.absolute_ttl). Left as they
  are they would begin anew at every restore.
- What speaks to replicas or subscribers and not to the data is left out: a load must
  not publish, and some servers refuse to start on CLUSTER in an AOF. In an AOF neither
  PING nor REPLCONF has a place; on a link they are harmless, and leaving them keeps the
  offsets what they were.
- Where the destination hides hash fields whose time has passed, what needs them is
  rewritten so that it does what it did (kvtape.tape.field_ttl).
- TRIMSLOTS deletes keys that it does not name; that is refused.
- Where expiries are to be moved or dropped, every command that gives one is changed
  (kvtape.tape.ttl_commands). What then follows hash fields sees the new ones.
- Commands that are to be undone are left out, as if they had never been.

Only what may need a change is parsed. The facts of each frame say which commands it
holds; a run of frames, from boundary to boundary, with nothing of the above in it is
passed on as it is, which costs next to nothing.

SCRIPT LOAD is passed on: a 6.2 with lua-replicate-commands off replicates EVALSHA.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import hiredis

from kvtape.errors import PointError, VerificationError
from kvtape.replication.resp import PIECE, pack, packed_length
from kvtape.replication.tracker import NO_DB
from kvtape.tape import absolute_ttl, ttl_commands
from kvtape.tape.field_ttl import Command, FieldTtls, Rewritten
from kvtape.tape.segment import Facts, Mark
from kvtape.tape.ttls import InexactError, Ttls

Destination = Literal["file", "link"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Stream bytes [start, end) and the facts of the frame that they are of."""

    start: int
    end: int
    data: bytes
    facts: Facts

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its frame."""
        return self.start == self.facts.start and self.end == self.facts.end

    @property
    def ends_at_boundary(self) -> bool:
        """Whether a command, and no transaction, ends with it.

        A piece that is cut short is cut at a boundary.
        """
        return self.end < self.facts.end or self.end == self.facts.boundary


@dataclass(slots=True)
class Tally:
    """What went through a translation.

    The snapshot went through, too: snapshot_bytes are what became of it, and
    snapshot_changes how much of it is not as it was.
    """

    commands: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    left_out: int = 0
    rewritten: int = 0
    skipped: int = 0
    snapshot_bytes: int = 0
    snapshot_changes: int = 0
    highest_db: int = -1
    names: set[bytes] = field(default_factory=set)

    @property
    def is_verbatim(self) -> bool:
        """Whether every byte was passed on as it is."""
        changes = self.left_out, self.rewritten, self.skipped, self.snapshot_changes
        return not any(changes)


class Skips:
    """The offsets at which commands begin that are left out.

    With a MULTI its whole transaction is left out, but for a SELECT in it: what follows
    is in that database.
    """

    def __init__(self, starts: Iterable[int] = ()) -> None:
        self._starts = frozenset(starts)
        self._sorted = sorted(self._starts)

    def __contains__(self, start: int) -> bool:
        return start in self._starts

    def are_within(self, start: int, end: int) -> bool:
        """Whether any of them is in [start, end)."""
        return bisect_left(self._sorted, start) < bisect_left(self._sorted, end)


class Translator:
    """Translates one stream, from a boundary on, for a file (AOF) or a link.

    translate() returns the bytes to pass on, which may lag behind by an unfinished
    command; when the last piece ends at a boundary, nothing is left behind. fields is
    for a destination that hides hash fields whose time has passed while it loads; its
    times are those of the restore, as changed by ttls.
    """

    def __init__(
        self,
        destination: Destination,
        fields: FieldTtls | None = None,
        *,
        ttls: Ttls | None = None,
        skips: Skips | None = None,
    ) -> None:
        self.tally = Tally()
        self._left_out = LEFT_OUT[destination]
        self._changed_names = absolute_ttl.NAMES | self._left_out | {_TRIM}
        if ttls is not None:
            self._changed_names |= ttl_commands.NAMES
        self._fields = fields
        self._ttls = ttls
        self._skips = Skips() if skips is None else skips
        self._skips_transaction = False
        self._pieces: list[Piece] = []

    def translate(self, piece: Piece) -> bytes:
        """Return what to pass on after the next piece."""
        self._pieces.append(piece)
        if not piece.ends_at_boundary:
            return b""
        pieces, self._pieces = self._pieces, []
        data = pieces[0].data if len(pieces) == 1 else b"".join(p.data for p in pieces)
        if all(map(self._is_plain, pieces)):
            self.tally.commands += sum(p.facts.summary.commands for p in pieces)
            # Not known where the stream was joined in its middle and no SELECT came
            # since: what the snapshot says goes on to hold.
            if self._fields is not None and piece.facts.db != NO_DB:
                self._fields.select(piece.facts.db)
        else:
            marks = [mark for piece in pieces for mark in piece.facts.marks]
            data = self._translate(data, pieces[0].start, marks)
        self._count(pieces, len(data))
        return data

    def _count(self, pieces: Sequence[Piece], length: int) -> None:
        tally = self.tally
        tally.bytes_out += length
        for piece in pieces:
            tally.bytes_in += len(piece.data)
            tally.names |= piece.facts.summary.names.keys()
            tally.highest_db = max(tally.highest_db, piece.facts.summary.highest_db)

    def _is_plain(self, piece: Piece) -> bool:
        """Whether there is certainly nothing to change, nor commands to count."""
        summary = piece.facts.summary
        if summary.lost or not piece.is_whole:
            return False
        if self._skips.are_within(piece.start, piece.end):
            return False
        names = summary.names
        if self._ttls and any(map(ttl_commands.is_opaque, names)):
            return False
        if self._fields and any(name in names for name in self._fields.names):
            return False
        suspects = names.keys() & self._changed_names
        return all(names[name] <= _PLAIN_WORDS.get(name, 0) for name in suspects)

    def _translate(self, data: bytes, start: int, marks: Sequence[Mark]) -> bytes:
        offsets = [mark.offset for mark in marks]
        out: list[bytes] = []
        copied = 0
        for command, begin, end in read_commands(data, start):
            self.tally.commands += 1
            time = marks[min(bisect_left(offsets, end), len(marks) - 1)].time
            try:
                changed = self._change(command, begin, time)
            except (ValueError, IndexError):
                raise no_commands(begin) from None
            if changed is not None:
                out += (
                    data[copied : begin - start],
                    *(pack(*each) for each in changed),
                )
                copied = end - start
        return b"".join((*out, data[copied:]))

    def _change(self, command: Command, begin: int, time: int) -> Rewritten | None:
        """Return what to pass on instead of a command; None if it is fine."""
        name = command[0].upper()
        if self._is_skipped(name, begin):
            return ()
        if name in self._left_out:
            self.tally.left_out += 1
            return ()
        if name == _TRIM:
            raise _no_trimming(begin)
        changed: Sequence[Command] = [absolute_ttl.absolute(command, time)]
        if self._ttls is not None:
            changed = _with_ttls(changed[0], self._ttls, begin)
            time += self._ttls.moved_by
        if self._fields is not None:
            changed = _with_fields(changed, self._fields, time)
        if len(changed) == 1 and changed[0] == command:
            return None
        self.tally.rewritten += 1
        return changed

    def _is_skipped(self, name: bytes, begin: int) -> bool:
        """Whether a command is left out because it is undone."""
        if self._skips_transaction:
            self._skips_transaction = name != b"EXEC"
            is_skipped = name != b"SELECT"
        else:
            is_skipped = begin in self._skips
            self._skips_transaction = is_skipped and name == b"MULTI"
        if is_skipped and name not in (b"MULTI", b"EXEC"):
            self.tally.skipped += 1
        return is_skipped


def _in_bytes(words: Sequence[bytes | int]) -> Command:
    return [word if isinstance(word, bytes) else b"%d" % word for word in words]


def _with_ttls(words: Command, ttls: Ttls, begin: int) -> Sequence[Command]:
    """Return what to pass on instead of a command, with its expiries changed."""
    if not ttls.is_lenient and ttl_commands.is_opaque(words[0].upper()):
        raise PointError(
            f"the restore cannot be exact: the stream has {words[0]!r:.60} at offset "
            f"{begin}, and nobody knows what that does to expiries; {_AS_THEY_WERE}"
        )
    try:
        return ttl_commands.change(words, ttls)
    except InexactError as error:
        raise PointError(
            f"the restore cannot be exact: {words[1]!r:.60} {error} (offset {begin}); "
            f"{_AS_THEY_WERE}"
        ) from None


_AS_THEY_WERE = (
    "restore with the expiries as they were (--ttl keep), or accept it by --force"
)


def _with_fields(
    commands: Sequence[Command], fields: FieldTtls, time: int
) -> Sequence[Command]:
    """Return commands with what needs lapsed fields rewritten."""
    found: list[Command] = []
    for words in commands:
        rewritten = fields.rewrite(words, time)
        found += [words] if rewritten is None else map(_in_bytes, rewritten)
    return found


def read_commands(data: bytes, start: int) -> Iterator[tuple[list[bytes], int, int]]:
    """Yield the commands of stream bytes that begin at offset start, with their ends.

    Each comes with its start and end offset. VerificationError if they are no commands,
    or if the last is cut short.
    """
    reader = hiredis.Reader()
    begin = start
    for position in range(0, len(data), PIECE):
        reader.feed(data[position : position + PIECE])
        try:
            while (command := reader.gets()) is not False:
                end = begin + packed_length(command)
                if not command or data[end - start - 2 : end - start] != b"\r\n":
                    raise no_commands(begin)
                yield command, begin, end
                begin = end
        except (hiredis.ProtocolError, TypeError):
            raise no_commands(begin) from None
    if begin != start + len(data):
        raise no_commands(begin)


def no_commands(offset: int) -> VerificationError:
    """Return the error for a stream that is none of commands behind an offset."""
    return VerificationError(
        f"the stream cannot be read as commands from offset {offset} on; restore to an "
        "offset before it"
    )


def _no_trimming(offset: int) -> PointError:
    return PointError(
        "the stream deletes the keys of whole slots (TRIMSLOTS), which only a cluster "
        f"node can repeat; the last that can be restored is {offset}, the offset before"
    )


# With no more words than these a command has no option that gives an expiry.
_PLAIN_WORDS = {b"SET": 3}

_TRIM = b"TRIMSLOTS"

# What a destination never gets to see.
LEFT_OUT: dict[Destination, frozenset[bytes]] = {
    "file": frozenset({b"PING", b"REPLCONF", b"PUBLISH", b"SPUBLISH", b"CLUSTER"}),
    "link": frozenset({b"PUBLISH", b"SPUBLISH", b"CLUSTER"}),
}
