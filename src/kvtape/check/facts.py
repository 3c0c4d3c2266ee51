"""What is known before anything is judged. Everything may be unknown: None.

Facts and judgements are kept apart so that each judgement is a table in the tests, and
so that whoever reads one knows that it asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvtape.server.info import ServerInfo
from kvtape.storage.spool import DEFAULT_LIMIT
from kvtape.tape.documents import Server

_REDIS_7 = 7


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast the stream grows, over a sample of some seconds.

    A server with no backlog does not count its stream. What came in from its clients
    is then a bound: reads are in it too.
    """

    bytes_per_second: float
    is_bound: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """Where recording would go on."""

    replid: str
    offset: int


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server let itself be asked, before and after an interval.

    who is known also where INFO is not allowed. settings has what CONFIG GET told; may
    what is known of the user's commands, and refusal what the server said where it
    refused one. clock_offset is the server's clock minus ours, in seconds, and
    round_trip how far off that can be, twice.
    """

    address: str
    before: ServerInfo = field(default_factory=lambda: ServerInfo({}))
    after: ServerInfo = field(default_factory=lambda: ServerInfo({}))
    seconds: float = 0.0
    connect_seconds: float | None = None
    round_trip: float | None = None
    clock_offset: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    may: Mapping[str, bool | None] = field(default_factory=dict)
    refusal: str | None = None
    trouble: str | None = None

    @property
    def info(self) -> ServerInfo:
        """The later of the two."""
        return self.after

    @property
    def who(self) -> Server:
        """Family, release and role."""
        return self.after.server

    @property
    def has_info(self) -> bool:
        """Whether INFO was answered, and not only what any user may ask."""
        return self.after.offset is not None

    @property
    def major(self) -> int | None:
        """The first number of its release."""
        first = (self.who.version or "").partition(".")[0]
        return int(first) if first.isdigit() else None

    @property
    def shares_buffers(self) -> bool:
        """Whether replicas and the backlog hold the same memory (7.0 and later)."""
        return self.major is not None and self.major >= _REDIS_7

    @property
    def rate(self) -> Rate | None:
        """How fast it is written to."""
        counted = "offset" if self.before.has_backlog else "input"
        if counted == "offset":
            first, last = self.before.offset, self.after.offset
        else:
            name = "total_net_input_bytes"
            first, last = self.before.number(name), self.after.number(name)
        if first is None or last is None or self.seconds <= 0:
            return None
        # Less than nothing: it was restarted, or follows another history since.
        grown = max(0, last - first)
        return Rate(grown / self.seconds, is_bound=counted == "input")


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The folder of the spool, or the one that it would be made in.

    used_bytes wait there already, and limit_bytes may.
    """

    folder: str
    free_bytes: int | None = None
    sync_seconds: float | None = None
    trouble: str | None = None
    used_bytes: int = 0
    limit_bytes: int = DEFAULT_LIMIT

    @property
    def room(self) -> int | None:
        """How many bytes can still wait there."""
        if self.free_bytes is None:
            return None
        return max(0, min(self.free_bytes, self.limit_bytes - self.used_bytes))
