"""What an operator chooses about a recording."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from kvtape.errors import UsageError
from kvtape.record.acknowledge import AckOption
from kvtape.record.spooling.recorder import Limits
from kvtape.server.sentinel import Prefer
from kvtape.server.url import Address, ServerUrl
from kvtape.storage.spool import DEFAULT_LIMIT


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What to record, and how. Times are in seconds.

    source and spool may be left out: the source is then named after the address, and
    the spool stands in the user's state folder. prefer is for what Sentinels know.
    announce is the host and port at which the primary is told that we listen, and at
    which we then do.
    """

    url: Address
    repository: str
    source: str | None = None
    spool: Path | None = None
    ack: AckOption = "auto"
    limits: Limits = field(default_factory=Limits)
    full_resyncs_per_hour: int = 2
    stop_timeout: float = 20.0
    until_offset: int | None = None
    adopt: bool = False
    spool_limit: int = DEFAULT_LIMIT
    prefer: Prefer = "primary"
    # Where snapshots come from instead of the server: a replica of it, or an RDB file.
    snapshot_from: ServerUrl | None = None
    snapshot_file: Path | None = None
    announce: tuple[str, int] | None = None
    # Whether to write, for each segment, a filter of the keys that it names.
    key_filters: bool = True

    @property
    def name(self) -> str:
        """What the source is called, unless the repository holds one of another name.

        Logs and metrics use it from the start: one that changes is two series.
        """
        return self.source or re.sub(r"[^A-Za-z0-9.]+", "-", self.url.name).strip("-")

    def __post_init__(self) -> None:
        """Refuse what makes no sense together."""
        if self.snapshot_from is not None and self.snapshot_file is not None:
            raise UsageError(
                "--snapshot-from and --snapshot-file are two ways to have the same "
                "snapshot: give one of them"
            )
