"""What happens to a recording that an operator acts on, one line of the log each.

An event is a value: its name and its fields are what scripts read (--log-format json)
and are not renamed, its sentence is what people read, and its level says how bad it is.
tell() writes it to the log and into the journal of the source that the running task
works for, which is found through the task's context: it follows into threads and child
tasks by itself, so that nothing has to be handed through the layers of a recording.

An event is told when something changes, never at each try.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from kvtape.amounts import duration, size
from kvtape.tape.documents import Manifest

_log = logging.getLogger("kvtape.events")

# Why a primary began a full resync: nothing was recorded before; its backlog did not
# reach back; it knows another history.
FullReason = Literal["first", "backlog", "history"]

# Why a link was made that continued: the process started, a link had broken, or the
# primary has a new replication ID.
PartialReason = Literal["start", "reconnect", "failover"]


@dataclass(frozen=True, slots=True)
class Linked:
    """The primary continues where recording stopped."""

    name: ClassVar = "linked"
    level: ClassVar = logging.INFO
    replid: str
    offset: int
    reason: PartialReason

    def __str__(self) -> str:
        return f"the primary continues {self.replid} at {self.offset} ({self.reason})"


@dataclass(frozen=True, slots=True)
class LinkLost:
    """Nothing is received any more. is_repeated: as it was at the try before."""

    name: ClassVar = "link-lost"
    reason: str
    wait: float
    is_repeated: bool = False

    @property
    def level(self) -> int:
        """Return how loudly to say it."""
        return logging.DEBUG if self.is_repeated else logging.WARNING

    def __str__(self) -> str:
        return f"{self.reason}; connecting again in {self.wait:.1f} s"


@dataclass(frozen=True, slots=True)
class BreakExplained:
    """Why the last link broke, from what the server said before and says now."""

    name: ClassVar = "link-explained"
    level: ClassVar = logging.WARNING
    reason: str
    lasted: float
    next_step: str

    def __str__(self) -> str:
        return (
            f"the link that stood for {duration(self.lasted)} broke because: "
            f"{self.reason}; {self.next_step}"
        )


@dataclass(frozen=True, slots=True)
class FullResyncPostponed:
    """A full resync is needed, and its limit or the spool do not allow it yet."""

    name: ClassVar = "full-resync-postponed"
    level: ClassVar = logging.WARNING
    reason: str
    wait: float

    def __str__(self) -> str:
        return f"{self.reason}; waiting up to {self.wait:.0f} s"


@dataclass(frozen=True, slots=True)
class FullResyncBegun:
    """The primary could not continue, and takes a snapshot."""

    name: ClassVar = "full-resync-begun"
    level: ClassVar = logging.INFO
    replid: str
    offset: int
    reason: FullReason

    def __str__(self) -> str:
        return (
            f"full resync: a snapshot at {self.offset} of {self.replid} ({self.reason})"
        )


@dataclass(frozen=True, slots=True)
class FullResyncComplete:
    """A snapshot is whole and synced in the spool."""

    name: ClassVar = "full-resync-complete"
    level: ClassVar = logging.INFO
    replid: str
    offset: int
    bytes: int
    stored_bytes: int
    seconds: float
    time: int

    def __str__(self) -> str:
        return (
            f"the snapshot at {self.offset} is complete: {self.bytes} bytes, "
            f"{self.stored_bytes} compressed, in {self.seconds:.1f} s"
        )


def complete(manifest: Manifest) -> FullResyncComplete:
    """Return what to tell of a snapshot that is whole."""
    return FullResyncComplete(
        manifest.replid,
        manifest.offset,
        manifest.bytes,
        manifest.stored_bytes,
        max(0, manifest.completed - manifest.time) / 1000,
        manifest.time,
    )


@dataclass(frozen=True, slots=True)
class GapFound:
    """What was written meanwhile is lost to the recording. Times are in ms."""

    name: ClassVar = "gap"
    level: ClassVar = logging.ERROR
    replid: str
    start_offset: int
    end_offset: int | None
    start_time: int
    end_time: int
    reason: str

    def __str__(self) -> str:
        end = "the full resync" if self.end_offset is None else str(self.end_offset)
        seconds = (self.end_time - self.start_time) / 1000
        return (
            f"a gap of {seconds:.1f} s in {self.replid}, from {self.start_offset} to "
            f"{end}: {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class FileStored:
    """A file is in the repository."""

    name: ClassVar = "stored"
    level: ClassVar = logging.DEBUG
    path: str
    seconds: float

    def __str__(self) -> str:
        return f"stored {self.path} in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class StartWaits:
    """The repository, or a server behind Sentinels, is out of reach at the start.

    is_recording: the spool knows where to go on, and recording begins into it.
    """

    name: ClassVar = "start-waits"
    reason: str
    is_recording: bool = False
    is_repeated: bool = False

    @property
    def level(self) -> int:
        """Return how loudly to say it."""
        return logging.DEBUG if self.is_repeated else logging.WARNING

    def __str__(self) -> str:
        if self.is_recording:
            return f"{self.reason}; recording goes on into the spool"
        return f"{self.reason}; nothing is recorded; trying again"


@dataclass(frozen=True, slots=True)
class SourceFound:
    """Sentinel names another server than before, or the first one."""

    name: ClassVar = "source-found"
    level: ClassVar = logging.INFO
    address: str
    role: Literal["primary", "replica"]

    def __str__(self) -> str:
        return f"Sentinel names {self.address}, a {self.role}"


@dataclass(frozen=True, slots=True)
class SeedJoined:
    """The stream is followed from an offset on, and the snapshot comes from elsewhere.

    Nothing from there on can be restored before it is there.
    """

    name: ClassVar = "seed-joined"
    level: ClassVar = logging.INFO
    replid: str
    offset: int

    def __str__(self) -> str:
        return f"joining the stream of {self.replid} at {self.offset}"


@dataclass(frozen=True, slots=True)
class SeedBegun:
    """A snapshot comes from a replica or a file."""

    name: ClassVar = "seed-begun"
    level: ClassVar = logging.INFO
    origin: str
    offset: int

    def __str__(self) -> str:
        return f"a snapshot comes from {self.origin} at {self.offset}"


@dataclass(frozen=True, slots=True)
class SeedFails:
    """No snapshot comes yet from where it should; it is tried until one does."""

    name: ClassVar = "seed-fails"
    reason: str
    is_repeated: bool = False

    @property
    def level(self) -> int:
        """Return how loudly to say it."""
        return logging.DEBUG if self.is_repeated else logging.WARNING

    def __str__(self) -> str:
        return f"{self.reason}; trying again"


@dataclass(frozen=True, slots=True)
class UploadsFail:
    """The repository does not take what is queued. is_repeated: nor did it before."""

    name: ClassVar = "uploads-fail"
    reason: str
    is_passing: bool
    is_repeated: bool = False

    @property
    def level(self) -> int:
        """Return how loudly to say it: what passes by itself is not for a hand."""
        if self.is_repeated:
            return logging.DEBUG
        return logging.WARNING if self.is_passing else logging.ERROR

    def __str__(self) -> str:
        return f"{self.reason}; recording goes on into the spool, and it is tried again"


@dataclass(frozen=True, slots=True)
class UploadsRecover:
    """The repository takes what is queued again."""

    name: ClassVar = "uploads-recover"
    level: ClassVar = logging.INFO
    seconds: float

    def __str__(self) -> str:
        return f"the repository stores again, after {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class FiltersFail:
    """The key filter of a segment is not written. is_repeated: as it was before."""

    name: ClassVar = "filters-fail"
    reason: str
    is_repeated: bool = False

    @property
    def level(self) -> int:
        """Return how loudly to say it: nothing is lost by it."""
        return logging.DEBUG if self.is_repeated else logging.WARNING

    def __str__(self) -> str:
        return f"a key filter is not written: {self.reason}; it is made when missed"


@dataclass(frozen=True, slots=True)
class SpoolFills:
    """The spool is filled beyond 70 or 90 %, or no longer."""

    name: ClassVar = "spool-fills"
    level: ClassVar = logging.WARNING
    reason: str
    percent: int

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class SpoolFull:
    """The spool is full, and nothing is received until some of it is stored."""

    name: ClassVar = "spool-full"
    level: ClassVar = logging.ERROR
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class SpoolHasRoom:
    """The spool was full, and is not any more."""

    name: ClassVar = "spool-has-room"
    level: ClassVar = logging.WARNING
    used: int
    limit: int

    def __str__(self) -> str:
        return (
            f"the spool has room again ({size(self.used)} of {size(self.limit)}): "
            "recording goes on"
        )


@dataclass(frozen=True, slots=True)
class DiskFails:
    """The spool cannot be written, and nothing is recorded meanwhile."""

    name: ClassVar = "disk-fails"
    level: ClassVar = logging.ERROR
    reason: str
    wait: float

    def __str__(self) -> str:
        return f"{self.reason}; trying again in {self.wait:.1f} s"


@dataclass(frozen=True, slots=True)
class DiskRecovers:
    """The spool can be written again."""

    name: ClassVar = "disk-recovers"
    level: ClassVar = logging.INFO

    def __str__(self) -> str:
        return "the spool can be written again"


@dataclass(frozen=True, slots=True)
class SourceFails:
    """One of several sources ended. wait None: it is not started again."""

    name: ClassVar = "source-fails"
    reason: str
    wait: float | None
    is_repeated: bool = False

    @property
    def level(self) -> int:
        """Return how loudly to say it."""
        return logging.DEBUG if self.is_repeated else logging.ERROR

    def __str__(self) -> str:
        if self.wait is None:
            return f"{self.reason}; this source is not recorded any more"
        return f"{self.reason}; starting this source again in {self.wait:.1f} s"


@dataclass(frozen=True, slots=True)
class Stopped:
    """Everything up to offset is stored. offset None: nothing can be restored yet."""

    name: ClassVar = "stopped"
    level: ClassVar = logging.INFO
    replid: str | None
    offset: int | None

    def __str__(self) -> str:
        if self.offset is None:
            return (
                "stopped: nothing can be restored yet, since no snapshot is complete; "
                "the next start asks for a new one"
            )
        return f"stopped: everything up to {self.offset} of {self.replid} is stored"


Event = (
    Linked
    | LinkLost
    | BreakExplained
    | SpoolFills
    | SpoolFull
    | SpoolHasRoom
    | FullResyncPostponed
    | FullResyncBegun
    | FullResyncComplete
    | GapFound
    | FileStored
    | StartWaits
    | SourceFound
    | SeedJoined
    | SeedBegun
    | SeedFails
    | UploadsFail
    | UploadsRecover
    | FiltersFail
    | DiskFails
    | DiskRecovers
    | SourceFails
    | Stopped
)


class Notes(Protocol):
    """Where the events of one source are kept: kvtape.record.journal.Journal."""

    @property
    def source(self) -> str:
        """The source's name."""

    def note(self, event: Event) -> None:
        """Keep what follows from an event."""


_notes: ContextVar[Notes | None] = ContextVar("kvtape-notes", default=None)


def tell_to(notes: Notes) -> None:
    """Have this task, and what it starts from now on, tell its events to a journal."""
    _notes.set(notes)


def current_source() -> str | None:
    """Return the source that the running task or thread works for."""
    notes = _notes.get()
    return None if notes is None else notes.source


def tell(event: Event) -> None:
    """Log an event, and note it in the journal of its source."""
    notes = _notes.get()
    if notes is not None:
        notes.note(event)
    _log.log(event.level, "%s", event, extra={"event": event})
