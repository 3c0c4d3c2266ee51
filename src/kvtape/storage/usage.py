"""How many bytes a folder holds, known at any moment without walking it.

Every file has its length here, set to what it is rather than added to, so that a call
that failed half-way and is made again does not count twice. Threads may change and ask
at the same time.
"""

from __future__ import annotations

import threading
from pathlib import Path


class Usage:
    """The lengths of files, and their sum."""

    def __init__(self) -> None:
        self.total = 0
        self._lengths: dict[Path, int] = {}
        self._lock = threading.Lock()

    def note(self, file: Path, length: int) -> None:
        """Say how long a file is now."""
        with self._lock:
            self.total += length - self._lengths.get(file, 0)
            self._lengths[file] = length

    def move(self, file: Path, target: Path) -> None:
        """Say that a file was renamed, over what had the name before."""
        with self._lock:
            self.total -= self._lengths.pop(target, 0)
            if (length := self._lengths.pop(file, None)) is not None:
                self._lengths[target] = length

    def is_all(self, file: Path) -> bool:
        """Whether there is nothing but this file."""
        with self._lock:
            return self.total == self._lengths.get(file, 0)

    def drop(self, file: Path) -> None:
        """Say that a file is gone."""
        with self._lock:
            self.total -= self._lengths.pop(file, 0)
