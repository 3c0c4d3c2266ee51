"""A spool as an agent opens it, without the agent."""

from __future__ import annotations

from pathlib import Path

from kvtape.storage.spool import Spool


def opened(folder: Path) -> Spool:
    """Return the spool in a folder, new or as it was left, of a source of its own."""
    spool = Spool(folder)
    spool.open("repository", "source")
    return spool
