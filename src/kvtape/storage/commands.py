"""The stored stream as commands, each with its place, its time and its database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvtape.errors import VerificationError
from kvtape.replication.tracker import NO_DB
from kvtape.storage.reader import boundary_by, find_boundary
from kvtape.storage.repository import SourceFolder
from kvtape.storage.segments import read_frames_from, read_header, stream_of
from kvtape.tape.catalogue import Slice
from kvtape.tape.commands import Batch, RecordedCommand
from kvtape.tape.facts import Facts
from kvtape.tape.plan import Plan
from kvtape.tape.segment import Frame
from kvtape.tape.span import Span

# Told what is known of some frames, and the database selected before them; whether they
# have to be read.
Wanted = Callable[[Sequence[Facts], int], bool]


@dataclass(frozen=True, slots=True)
class Damage:
    """Stream bytes [start, end) of a history that are stored and cannot be read."""

    replid: str
    start: int
    end: int
    reason: str


def _everything(_facts: Sequence[Facts], _db: int) -> bool:
    return True


def recorded_commands(folder: SourceFolder, plan: Plan) -> Iterator[RecordedCommand]:
    """Yield the commands of a plan's stream, in order; the plan must be resolved.

    Blocks. Memory is that of the longest transaction, or of a frame (1 MiB).
    """
    db = plan.snapshot.manifest.db
    return commands_of(folder, plan.slices, NO_DB if db is None else db)


def commands_of(
    folder: SourceFolder, slices: Iterable[Slice], db: int = NO_DB
) -> Iterator[RecordedCommand]:
    """Yield the commands of slices that begin and end at boundaries, in order.

    db is the database selected at the beginning where the stream does not tell.
    """
    for slice_ in slices:
        for batch in read_batches(folder, slice_, db):
            commands = batch.parsed()
            yield from batch.located(commands, range(len(commands)))


def commands_behind(
    folder: SourceFolder, slices: Sequence[Slice]
) -> Iterator[RecordedCommand]:
    """Yield the commands that are not whole before slices begin, in order.

    The slices need no snapshot; they end at boundaries, and may have holes between.
    """
    end = -1
    for slice_ in slices:
        start = slice_.start
        if start != end:
            # Behind a hole it may begin within a command.
            begin = find_boundary(folder, slice_.segment, start)
            slice_ = replace(slice_, start=begin.offset)  # noqa: PLW2901
        for command in commands_of(folder, [slice_]):
            if command.end > start:
                yield command
        end = slice_.end


def whole_commands(
    folder: SourceFolder, span: Span
) -> tuple[list[Slice], list[Damage]]:
    """Return the slices of a span, cut such that no command or transaction is.

    What is received by a time, or up to an offset, ends with the last whole one. Where
    that cannot be found, as the segment is damaged, nothing of it is used.
    """
    whole: list[Slice] = []
    damaged: list[Damage] = []
    for slice_ in span.slices:
        try:
            cut = _whole(folder, span, slice_)
        except VerificationError as error:
            replid = slice_.segment.replid
            damaged.append(Damage(replid, slice_.start, slice_.end, str(error)))
        else:
            if cut.start < cut.end:
                whole.append(cut)
    return whole, damaged


def _whole(folder: SourceFolder, span: Span, slice_: Slice) -> Slice:
    name, start, end = slice_.segment, slice_.start, slice_.end
    if span.after is not None and name.first <= span.after:
        start = max(start, boundary_by(folder, name, span.after))
    if span.until is not None and name.last > span.until:
        end = min(end, boundary_by(folder, name, span.until))
    if start != name.start:
        start = find_boundary(folder, name, start).offset
    if end != name.end:
        end = find_boundary(folder, name, end).offset
    return Slice(name, start, end)


def read_batches(
    folder: SourceFolder, slice_: Slice, db: int = NO_DB, wanted: Wanted = _everything
) -> Iterator[Batch]:
    """Yield the bytes of a slice from boundary to boundary, but for what is not wanted.

    The slice begins and ends at boundaries. VerificationError for what is damaged.
    """
    for found in read_what_is_good(folder, slice_, db, wanted):
        if isinstance(found, Damage):
            raise VerificationError(found.reason)
        yield found


def read_what_is_good(
    folder: SourceFolder, slice_: Slice, db: int = NO_DB, wanted: Wanted = _everything
) -> Iterator[Batch | Damage]:
    """Yield the same, with what is damaged in its place.

    A frame whose bytes are damaged is left out alone, with those that its commands
    reach into. Where the facts are, so is the rest of the segment.
    """
    replid, at = slice_.segment.replid, slice_.start
    try:
        db = _db_at(folder, slice_, db)
        for group in _groups(folder, slice_):
            facts = tuple(frame.facts for frame in group)
            end = min(facts[-1].end, slice_.end)
            if wanted(facts, db):
                try:
                    data = b"".join(
                        stream_of(folder, slice_.segment, frame) for frame in group
                    )
                except VerificationError as error:
                    yield Damage(replid, at, end, str(error))
                else:
                    first = facts[0].start
                    yield Batch(replid, at, db, facts, data[at - first : end - first])
            db = db if facts[-1].db == NO_DB else facts[-1].db
            at = end
    except VerificationError as error:
        yield Damage(replid, at, slice_.end, str(error))


def _db_at(folder: SourceFolder, slice_: Slice, db: int) -> int:
    """Return the database selected where a slice begins."""
    name = slice_.segment
    if slice_.start == name.start:
        found = read_header(folder, name).db
    else:
        found = find_boundary(folder, name, slice_.start).db
    return db if found == NO_DB else found


def _groups(folder: SourceFolder, slice_: Slice) -> Iterator[list[Frame]]:
    """Yield the frames of a slice in runs from boundary to boundary."""
    group: list[Frame] = []
    for frame in read_frames_from(folder, slice_.segment, slice_.start, slice_.end):
        facts = frame.facts
        if facts.end <= slice_.start:
            continue
        group.append(frame)
        # One that is cut short is cut at a boundary.
        if facts.boundary == facts.end or facts.end > slice_.end:
            yield group
            group = []
    if group:
        raise VerificationError(
            f"the stream ends within a command that begins after {group[0].facts.start}"
        )
