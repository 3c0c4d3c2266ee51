"""The stored stream as commands, each with its place, its time and its database."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvtape.errors import VerificationError
from kvtape.replication.tracker import NO_DB
from kvtape.storage.reader import find_boundary, read_stream
from kvtape.storage.repository import SourceFolder
from kvtape.tape.catalogue import Slice
from kvtape.tape.plan import Plan
from kvtape.tape.translate import Piece, read_commands

# What a primary sends that changes no key.
_NO_WRITES = frozenset(
    {
        b"EXEC",
        b"MULTI",
        b"PING",
        b"PUBLISH",
        b"REPLCONF",
        b"SELECT",
        b"SPUBLISH",
    }
)


@dataclass(frozen=True, slots=True)
class RecordedCommand:
    """One command as the server sent it to its replicas.

    It is the stream bytes [start, end) of the history replid, received at time (ms).
    db is the database selected then, or NO_DB before the first SELECT. Restoring to
    start gives the moment before it, unless it is within a transaction.
    """

    replid: str
    start: int
    end: int
    time: int
    db: int
    words: tuple[bytes, ...]

    @property
    def name(self) -> bytes:
        """Its name, in upper case."""
        return self.words[0].upper()

    @property
    def is_write(self) -> bool:
        """Whether it may change a key. What is in a transaction is a command, too."""
        return self.name not in _NO_WRITES


def recorded_commands(folder: SourceFolder, plan: Plan) -> Iterator[RecordedCommand]:
    """Yield the commands of a plan's stream, in order; the plan must be resolved.

    Blocks. Memory is that of the longest transaction, or of a frame (1 MiB).
    """
    db = plan.snapshot.manifest.db
    return _commands(folder, plan.slices, NO_DB if db is None else db)


def commands_behind(
    folder: SourceFolder, slices: Sequence[Slice]
) -> Iterator[RecordedCommand]:
    """Yield the commands that are not whole before slices begin, in order.

    The slices need no snapshot; they end at boundaries, and may have holes between.
    """
    run: list[Slice] = []
    for slice_ in slices:
        if run and run[-1].end != slice_.start:
            yield from _commands_of_run(folder, run)
            run = []
        run.append(slice_)
    if run:
        yield from _commands_of_run(folder, run)


def _commands_of_run(
    folder: SourceFolder, run: Sequence[Slice]
) -> Iterator[RecordedCommand]:
    start = run[0].start
    begin = find_boundary(folder, run[0].segment, start)
    whole = [replace(run[0], start=begin.offset), *run[1:]]
    for command in _commands(folder, whole, begin.db):
        if command.end > start:
            yield command


def _commands(
    folder: SourceFolder, slices: Iterable[Slice], selected: int
) -> Iterator[RecordedCommand]:
    for slice_ in slices:
        replid = slice_.segment.replid
        for pieces in _groups(read_stream(folder, [slice_])):
            marks = [mark for piece in pieces for mark in piece.facts.marks]
            offsets = [mark.offset for mark in marks]
            data = b"".join(piece.data for piece in pieces)
            for words, start, end in read_commands(data, pieces[0].start):
                if words[0].upper() == b"SELECT":
                    selected = int(words[1])
                time = marks[bisect_left(offsets, end)].time
                yield RecordedCommand(replid, start, end, time, selected, tuple(words))


def _groups(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Yield runs of pieces from boundary to boundary."""
    group: list[Piece] = []
    for piece in pieces:
        group.append(piece)
        if piece.ends_at_boundary:
            yield group
            group = []
    if group:
        raise VerificationError(
            f"the stream ends within a command that begins after {group[0].start}"
        )
