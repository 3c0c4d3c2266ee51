"""Finding commands in what is recorded, on all cores, from the front or from the back.

What is found comes part by part, in order, together with how much was read for it, and
with what could not be read in its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from kvtape.errors import VerificationError
from kvtape.storage.commands import (
    Damage,
    Wanted,
    read_what_is_good,
    whole_commands,
)
from kvtape.storage.parallel import Job, in_order, processes_for
from kvtape.storage.repository import SourceFolder
from kvtape.storage.segments import frame_starts, opening
from kvtape.tape.catalogue import Slice, clip
from kvtape.tape.commands import Batch, RecordedCommand
from kvtape.tape.facts import Facts
from kvtape.tape.span import Span

Made = TypeVar("Made")

# How many frames are read at once from the back, of at most about 1 MiB each.
_FRAMES = 4


@dataclass(frozen=True, slots=True)
class Part(Generic[Made]):
    """What was made of length stream bytes: of the commands found in them, if any."""

    length: int
    content: Made | Damage | None


class Finder(Protocol):
    """Tells what is looked for: a Query or a KeyQuery."""

    def wants(self, facts: Sequence[Facts], db: int, /) -> bool:
        """Whether frames have to be read."""

    def find(self, batch: Batch) -> Iterator[RecordedCommand]:
        """Yield what is looked for."""


@dataclass(frozen=True, slots=True)
class Search(Generic[Made]):
    """Reads a slice and makes something of the commands that a query asks for.

    It can be sent to another process, so make must be a function of a module, or an
    object of a class of one.
    """

    query: Finder
    make: Callable[[Sequence[RecordedCommand]], Made]

    def __call__(self, folder: SourceFolder, slice_: Slice) -> Iterator[Part[Made]]:
        """Yield the parts of a slice."""
        return parts_of(folder, slice_, self.query.wants, self._made)

    def _made(self, batch: Batch) -> Made | None:
        found = list(self.query.find(batch))
        return self.make(found) if found else None


def parts_of(
    folder: SourceFolder,
    slice_: Slice,
    wanted: Wanted,
    make: Callable[[Batch], Made | None],
) -> Iterator[Part[Made]]:
    """Yield what is made of the batches of a slice, for a job that reads it.

    A VerificationError of make says that the bytes of a batch are no commands.
    """
    at = slice_.start
    for good in read_what_is_good(folder, slice_, wanted=wanted):
        content = good if isinstance(good, Damage) else _made_or_damage(good, make)
        yield Part(good.end - at, content)
        at = good.end
    if at < slice_.end:
        yield Part(slice_.end - at, None)


def _made_or_damage(
    batch: Batch, make: Callable[[Batch], Made | None]
) -> Made | Damage | None:
    try:
        return make(batch)
    except VerificationError as error:
        return Damage(batch.replid, batch.start, batch.end, str(error))


def search(
    folder: SourceFolder,
    span: Span,
    job: Job[Part[Made]],
    processes: int | None = None,
) -> Generator[Part[Made]]:
    """Yield what a job, such as a Search, makes of a span, in order.

    By itself it starts as many processes as are worth it. About these, see
    kvtape.storage.parallel.in_order.
    """
    slices, damaged = whole_commands(folder, span)
    # What is damaged here is at one of the ends of what was asked for.
    for damage in damaged:
        yield Part(damage.end - damage.start, damage)
    chosen = processes_for(slices) if processes is None else processes
    yield from in_order(folder, slices, job, chosen)


def last_found(
    folder: SourceFolder, span: Span, query: Finder, count: int
) -> tuple[list[RecordedCommand], list[Damage]]:
    """Return the last commands that a query asks for, and what was damaged on the way.

    It is read from the back, and no further than that takes.
    """
    job = Search(query, list)
    found: list[RecordedCommand] = []
    slices, damaged = whole_commands(folder, span)
    for slice_ in reversed(slices):
        for piece in _pieces_from_back(folder, slice_):
            here: deque[RecordedCommand] = deque(maxlen=count - len(found))
            damaged_here: list[Damage] = []
            for part in job(folder, piece):
                if isinstance(part.content, Damage):
                    damaged_here.append(part.content)
                elif part.content:
                    here.extend(part.content)
            found = [*here, *found]
            damaged = [*damaged_here, *damaged]
            if len(found) == count:
                return found, damaged
    return found, damaged


def _pieces_from_back(folder: SourceFolder, slice_: Slice) -> Iterator[Slice]:
    """Yield a slice in pieces of a few frames that begin at boundaries, the last first.

    One that cannot be found one's way in is a single piece.
    """
    name, end = slice_.segment, slice_.end
    try:
        starts = [start for start in frame_starts(folder, name) if start < end]
        for start in starts[::-_FRAMES]:
            begin = opening(folder, name, start).offset
            if slice_.start < begin < end:
                yield from clip([slice_], begin, end)
                end = begin
    except VerificationError:
        pass  # whoever reads what is left finds out the same
    yield from clip([slice_], slice_.start, end)
