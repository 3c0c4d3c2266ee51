"""One restore: what it starts from, how it is watched, what it reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvtape.errors import PointError, VerificationError
from kvtape.progress import NoWatch, Watch
from kvtape.restore.changes import Changes
from kvtape.restore.undo import Undo, find_undone, reach
from kvtape.storage.reader import Resolved, read_snapshot, resolve
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.tape.field_ttl import FieldTtls
from kvtape.tape.plan import Plan, choose
from kvtape.tape.point import Point, ToOffset, ToTime, format_time
from kvtape.tape.rdb import RdbError
from kvtape.tape.rdb.rewriting import RdbRewriter
from kvtape.tape.translate import Destination, Tally, Translator
from kvtape.tape.ttls import Mode, Ttls


@dataclass(frozen=True, slots=True)
class Job:
    """A restore to be done: a resolved plan, where its files are, who watches.

    notes is what an operator should know of where the point led, and of what is wrong
    with the recording. ttls are how expiries change, undo is what is left out; fields
    returns a new one for each time that the stream is translated.
    """

    folder: SourceFolder
    resolved: Resolved
    watch: Watch = field(default_factory=NoWatch)
    notes: tuple[str, ...] = ()
    ttls: Ttls | None = None
    undo: Undo = field(default_factory=Undo)
    fields: Callable[[], FieldTtls] | None = None

    @property
    def plan(self) -> Plan:
        """The plan, whose end is a boundary."""
        return self.resolved.plan

    @property
    def length(self) -> int:
        """How many bytes it takes: the RDB file's and the stream's."""
        return self.plan.snapshot.manifest.bytes + self.plan.stream_bytes

    def translator(self, destination: Destination) -> Translator:
        """Return a new translation of the stream."""
        fields = None if self.fields is None else self.fields()
        skips = self.undo.skips
        return Translator(destination, fields, ttls=self.ttls, skips=skips)

    def snapshot(self, tally: Tally | None = None) -> Iterator[bytes]:
        """Yield the RDB file as it is passed on; tally is told what became of it."""
        snapshot = self.plan.snapshot
        rewriter = None if self.ttls is None else RdbRewriter(self.ttls)
        length = 0
        try:
            for piece in read_snapshot(self.folder, snapshot):
                data = piece if rewriter is None else rewriter.rewrite(piece)
                length += len(data)
                yield data
            if rewriter is not None:
                rewriter.close()
        except RdbError as error:
            where = f"{self.folder.url}/{snapshot.name.rdb}"
            raise VerificationError(f"{where} is damaged: {error}") from None
        if tally is not None:
            tally.snapshot_bytes = length
            tally.snapshot_changes = 0 if rewriter is None else rewriter.changes

    @property
    def ttl(self) -> Mode:
        """What becomes of expiries."""
        if self.ttls is None:
            return "keep"
        return "drop" if self.ttls.shift is None else "shift"

    def result(self, commands: int, data_dir: str | None = None) -> Result:
        """Return what to report when it is done."""
        return Result(
            replid=self.plan.replid,
            offset=self.plan.offset,
            time=self.resolved.time,
            snapshot_offset=self.plan.snapshot.name.offset,
            segments=len(self.plan.slices),
            stream_bytes=self.plan.stream_bytes,
            commands=commands,
            data_dir=data_dir,
            ttl=self.ttl,
            ttl_shift_ms=None if self.ttls is None else self.ttls.shift,
            skipped=self.undo.commands,
            skipped_offsets=self.undo.starts,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What was restored, or would be.

    offset is the one that was reached, at a boundary, and time (ms) when the primary's
    last byte up to it was received. Expiries were moved by ttl_shift_ms. skipped
    commands were left out, which are those that begin at skipped_offsets, and those of
    a transaction that does.
    """

    replid: str
    offset: int
    time: int
    snapshot_offset: int
    segments: int
    stream_bytes: int
    commands: int
    data_dir: str | None = None
    ttl: Mode = "keep"
    ttl_shift_ms: int | None = None
    skipped: int = 0
    skipped_offsets: tuple[int, ...] = ()


# How wide the interval in which something was written must be to be worth a word (ms).
_WIDE = 1000


def open_job(
    repository: str,
    source: str | None,
    point: Point,
    watch: Watch | None = None,
    changes: Changes | None = None,
) -> Job:
    """Find out what a restore to a point takes. Blocks; restores nothing.

    Raises PointError for a point that cannot be restored, RepositoryError,
    IdentityError, VerificationError, and UsageError for a pattern that nothing matches.
    """
    changes = Changes() if changes is None else changes
    folder = open_repository(repository).source(source)
    catalogue = folder.catalogue()
    problems = [f"{folder.url}/{problem}" for problem in catalogue.problems]
    try:
        chosen = resolve(folder, choose(catalogue, point))
        resolved = reach(catalogue, chosen, changes.skip_offsets)
    except PointError as error:
        # What is damaged is not in the catalogue, and may be why the point is not.
        raise PointError("; ".join((str(error), *problems))) from None
    plan = resolved.plan
    notes = notes_on(point, resolved)
    if plan.snapshot is not chosen.plan.snapshot:
        notes.append(
            f"the snapshot at {chosen.plan.snapshot.name.offset} has what is to be "
            f"skipped: the restore begins with the one at {plan.snapshot.name.offset}"
        )
    now = int(time.time() * 1000)
    return Job(
        folder,
        resolved,
        NoWatch() if watch is None else watch,
        notes=(*notes, *problems),
        ttls=changes.ttls(plan.snapshot.manifest, resolved.time, now),
        undo=find_undone(folder, plan, changes.skip_offsets, changes.skip_commands),
    )


def notes_on(point: Point, resolved: Resolved) -> list[str]:
    """Return what an operator should know of where a point led."""
    plan, notes = resolved.plan, []
    match point:
        case ToOffset(offset) if resolved.was_cut:
            notes.append(
                f"offset {offset} is within a command or transaction: rounded down to "
                f"{plan.offset}, the end of the last complete one"
            )
        case ToTime(time) if resolved.time - resolved.last_written_after > _WIDE:
            notes.append(
                f"what was received at {format_time(resolved.time)} was written some "
                f"time after {format_time(resolved.last_written_after)}: the recording "
                f"was interrupted or idle before {format_time(time)}"
            )
        case _:
            pass
    return notes
