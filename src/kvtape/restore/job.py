"""One restore: what it starts from, how it is watched, what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvtape.errors import PointError
from kvtape.progress import NoWatch, Watch
from kvtape.storage.reader import Resolved, resolve
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.tape.plan import Plan, choose
from kvtape.tape.point import Point, ToOffset, ToTime, format_time
from kvtape.tape.translate import Destination, Translator


@dataclass(frozen=True, slots=True)
class Job:
    """A restore to be done: a resolved plan, where its files are, who watches.

    notes is what an operator should know of where the point led, and of what is wrong
    with the recording.
    """

    folder: SourceFolder
    resolved: Resolved
    watch: Watch = field(default_factory=NoWatch)
    translator: Callable[[Destination], Translator] = Translator  # a new one each time
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        """The plan, whose end is a boundary."""
        return self.resolved.plan

    @property
    def length(self) -> int:
        """How many bytes it takes: the RDB file's and the stream's."""
        return self.plan.snapshot.manifest.bytes + self.plan.stream_bytes

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
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What was restored, or would be.

    offset is the one that was reached, at a boundary, and time (ms) when the primary's
    last byte up to it was received.
    """

    replid: str
    offset: int
    time: int
    snapshot_offset: int
    segments: int
    stream_bytes: int
    commands: int
    data_dir: str | None = None


# How wide the interval in which something was written must be to be worth a word (ms).
_WIDE = 1000


def open_job(
    repository: str, source: str | None, point: Point, watch: Watch | None = None
) -> Job:
    """Find out what a restore to a point takes. Blocks; restores nothing.

    Raises PointError for a point that cannot be restored, RepositoryError,
    IdentityError, VerificationError.
    """
    folder = open_repository(repository).source(source)
    catalogue = folder.catalogue()
    problems = [f"{folder.url}/{problem}" for problem in catalogue.problems]
    try:
        resolved = resolve(folder, choose(catalogue, point))
    except PointError as error:
        # What is damaged is not in the catalogue, and may be why the point is not.
        raise PointError("; ".join((str(error), *problems))) from None
    return Job(
        folder,
        resolved,
        NoWatch() if watch is None else watch,
        notes=(*notes_on(point, resolved), *problems),
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
