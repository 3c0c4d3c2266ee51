"""Where a recording is kept of which nobody says where: which source, and which spool.

Spools stand in the user's state folder. The name is made of the source's and of a mark
of the repository, so that an agent finds its spool again, and kvtape status the agents
of a repository without asking it.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from kvtape.server.url import Address
from kvtape.storage.repository import Repository, SourceFolder
from kvtape.tape.documents import Server, Source


def source_folder(
    repository: Repository, name: str | None, url: Address, server: Server, now: int
) -> SourceFolder:
    """Return the folder to record into; whether it is the right one, the link shows."""
    if name is None:
        sources = repository.sources()
        only = next(iter(sources)) if len(sources) == 1 else None
        name = only or re.sub(r"[^A-Za-z0-9.]+", "-", url.name).strip("-")
    return repository.add_source(Source(name, url.address, now, server))


def default_spool(folder: SourceFolder) -> Path:
    """Return where the spool of a source stands if nobody says: in the user's state."""
    return default_spools() / f"{folder.name}-{repository_mark(folder.store.url)}"


def default_spools() -> Path:
    """Return the folder of the spools of which nobody says where they stand."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "kvtape"


def repository_mark(url: str) -> str:
    """Return what tells the spools of one repository from those of another."""
    return hashlib.sha256(url.encode()).hexdigest()[:8]
