"""Where spools stand of which nobody says where: in the user's state folder.

The name is made of the source's and of a mark of the repository, so that an agent finds
its spool again, and kvtape status the agents of a repository without asking it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kvtape.storage.repository import SourceFolder


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
