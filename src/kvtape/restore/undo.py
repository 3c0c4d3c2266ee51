"""Leaving commands out of a restore, as if they had never run.

Which they are is named by the offset that they begin at, as an audit shows it, or by
pattern. All are found before anything is done, so that a mistake is told and is no
restore without the undo: an offset at which no command begins, and a pattern that
nothing matches.

What a snapshot holds cannot be undone. So where an offset lies before the snapshot that
a restore would begin with, an older one is used if the stream goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from kvtape.errors import PointError, UsageError
from kvtape.replication.tracker import NO_DB
from kvtape.storage.commands import commands_of, read_batches
from kvtape.storage.reader import Resolved, find_boundary
from kvtape.storage.repository import SourceFolder
from kvtape.tape.aftermath import Aftermath
from kvtape.tape.catalogue import Catalogue, Slice
from kvtape.tape.command_pattern import NEEDED, CommandPattern
from kvtape.tape.commands import Batch, RecordedCommand
from kvtape.tape.facts import Facts
from kvtape.tape.plan import Plan, begin_by, history_named
from kvtape.tape.point import ToOffset
from kvtape.tape.translate import Skips

# So many commands are kept to be shown.
SHOWN = 20

_BRACKETS = frozenset({b"MULTI", b"EXEC", b"SELECT"})


@dataclass(frozen=True, slots=True)
class Undo:
    """What is left out: commands in all, those that begin at starts; the first ones.

    With a MULTI its whole transaction is, whose commands are counted.
    """

    starts: tuple[int, ...] = ()
    commands: int = 0
    first: tuple[RecordedCommand, ...] = ()

    @property
    def skips(self) -> Skips:
        """The same, for a translation."""
        return Skips(self.starts)


@dataclass(frozen=True, slots=True)
class Touched:
    """How many later commands may mean something else now, and the first of them."""

    commands: int
    first: tuple[RecordedCommand, ...]


def reach(
    catalogue: Catalogue, resolved: Resolved, offsets: Sequence[ToOffset]
) -> Resolved:
    """Return a plan whose stream has these offsets; PointError if none can.

    Mostly that is the plan as it is; else it begins with an older snapshot.
    """
    plan = resolved.plan
    for point in offsets:
        _must_lead_through(catalogue, plan, point)
        if point.offset >= plan.offset:
            raise PointError(
                f"offset {point.offset} is not before the point, {plan.offset}: what "
                "comes behind it is not restored anyway"
            )
    first = min((point.offset for point in offsets), default=plan.offset)
    return replace(resolved, plan=begin_by(catalogue, plan, first))


def _must_lead_through(catalogue: Catalogue, plan: Plan, point: ToOffset) -> None:
    if point.replid is None:
        return
    replid = history_named(catalogue, point.replid)
    for part in catalogue.lineage(plan.replid):
        if part.replid == replid and (part.end is None or point.offset < part.end):
            return
    raise PointError(
        f"{point.replid}:{point.offset} is no part of what leads to the point, "
        f"{plan.replid}:{plan.offset}: a failover lost it, or it is another history"
    )


def find_undone(
    folder: SourceFolder,
    plan: Plan,
    offsets: Sequence[ToOffset],
    patterns: Sequence[CommandPattern],
) -> Undo:
    """Find what is to be left out of a plan's stream. Blocks.

    PointError if no command begins at an offset, UsageError if nothing matches a
    pattern.
    """
    for point in offsets:
        _must_begin_at(folder, plan, point.offset)
    starts = frozenset(point.offset for point in offsets)
    names = frozenset(pattern.name for pattern in patterns)

    def may_have_some(facts: Sequence[Facts], _db: int) -> bool:
        return any(
            frame.summary.lost
            or not names.isdisjoint(frame.summary.names)
            or any(map(_holds(frame), starts))
            for frame in facts
        )

    finding = _Finding(starts, patterns)
    db = plan.snapshot.manifest.db
    for slice_ in plan.slices:
        if not patterns and not any(map(_holds(slice_), starts)):
            continue
        for batch in read_batches(
            folder, slice_, NO_DB if db is None else db, may_have_some
        ):
            for command in _located(batch):
                finding.see(command)
    if unmatched := [repr(it.text) for it in patterns if it not in finding.matched]:
        raise UsageError(
            f"no command between the snapshot at {plan.snapshot.name.offset} and the "
            f"point at {plan.offset} matches {' or '.join(unmatched)}: kvtape audit "
            "lists those that there are; what ran before that snapshot, only "
            "--skip-offset reaches"
        )
    return finding.undo()


@dataclass(slots=True)
class _Finding:
    """What was found so far of what is to be left out."""

    offsets: frozenset[int]
    patterns: Sequence[CommandPattern]
    matched: set[CommandPattern] = field(default_factory=set)
    _starts: list[int] = field(default_factory=list)
    _commands: int = 0
    _first: list[RecordedCommand] = field(default_factory=list)
    _transaction: int | None = None

    def see(self, command: RecordedCommand) -> None:
        """Look at the next command."""
        matching = [it for it in self.patterns if it.matches(command.words)]
        self.matched.update(matching)
        if command.transaction is None or command.transaction != self._transaction:
            if not matching and command.start not in self.offsets:
                return
            self._starts.append(command.start)
            self._transaction = command.start if command.name == b"MULTI" else None
        if command.name not in _BRACKETS:
            self._commands += 1
            if len(self._first) < SHOWN:
                self._first.append(command)

    def undo(self) -> Undo:
        """Return what was found."""
        return Undo(tuple(self._starts), self._commands, tuple(self._first))


def _must_begin_at(folder: SourceFolder, plan: Plan, offset: int) -> None:
    """Raise PointError if no command that can be left out begins at an offset."""
    slice_ = next(it for it in plan.slices if _holds(it)(offset))
    begin = find_boundary(folder, slice_.segment, offset)
    rest = Slice(slice_.segment, begin.offset, slice_.end)
    commands = list(_located(next(read_batches(folder, rest, begin.db))))
    found = next((it for it in commands if it.start == offset), None)
    if found is None:
        near = [it.start for it in commands if it.start < offset][-1:]
        near += [it.start for it in commands if it.start > offset][:1]
        raise PointError(
            f"no command begins at offset {offset}; the nearest that do begin at "
            f"{' and '.join(map(str, near))} (kvtape audit shows where each begins)"
        )
    if found.name in NEEDED:
        within = found.transaction
        hint = f"; its transaction begins at {within}" if within is not None else ""
        raise PointError(
            f"what begins at offset {offset} is {found.name.decode()}, without which "
            f"what follows would mean something else{hint}"
        )


def _holds(part: Slice | Facts) -> Callable[[int], bool]:
    """Return what tells whether a part of the stream has an offset."""
    return range(part.start, part.end).__contains__


def _located(batch: Batch) -> Iterator[RecordedCommand]:
    commands = batch.parsed()
    return batch.located(commands, range(len(commands)))


def touched_later(folder: SourceFolder, plan: Plan, undo: Undo) -> Touched:
    """Find the later commands that may mean something else without what is left out.

    Blocks; the stream is read from the first of those on.
    """
    skips, aftermath = undo.skips, Aftermath()
    transaction: int | None = None
    count = 0
    first: list[RecordedCommand] = []
    db = plan.snapshot.manifest.db
    for command in commands_of(
        folder, _behind(folder, plan, undo.starts[0]), NO_DB if db is None else db
    ):
        is_within = command.transaction is not None
        if command.start in skips or (is_within and command.transaction == transaction):
            transaction = (
                command.transaction if command.name == b"MULTI" else transaction
            )
            aftermath.undo(command)
        elif aftermath.touches(command):
            count += 1
            if len(first) < SHOWN:
                first.append(command)
    return Touched(count, tuple(first))


def _behind(folder: SourceFolder, plan: Plan, start: int) -> Iterator[Slice]:
    """Yield the slices of a plan from the last boundary before a command on."""
    for slice_ in plan.slices:
        if slice_.end > start:
            begin = max(slice_.start, start)
            boundary = find_boundary(folder, slice_.segment, begin).offset
            yield Slice(slice_.segment, boundary, slice_.end)
