"""The stored stream as commands, each with its place, its time and its database."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from kvtape.errors import VerificationError
from kvtape.replication.tracker import NO_DB
from kvtape.storage.reader import read_stream
from kvtape.storage.repository import SourceFolder
from kvtape.tape.plan import Plan
from kvtape.tape.translate import Piece, read_commands


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


def recorded_commands(folder: SourceFolder, plan: Plan) -> Iterator[RecordedCommand]:
    """Yield the commands of a plan's stream, in order; the plan must be resolved.

    Blocks. Memory is that of the longest transaction, or of a frame (1 MiB).
    """
    db = plan.snapshot.manifest.db
    selected = NO_DB if db is None else db
    for slice_ in plan.slices:
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
