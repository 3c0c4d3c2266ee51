"""What processes make of slices, in the tests of them.

A job is sent to a process by name, so it must be of a module that can be imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvtape.storage.repository import SourceFolder
from kvtape.tape.catalogue import Slice
from kvtape.tape.names import SegmentName
from recording import REPLID, THEN

# More than a pipe holds.
LARGE = 1_000_000


def slices(count: int) -> list[Slice]:
    """Return slices of 10 bytes; nothing reads them here."""
    return [
        Slice(SegmentName(REPLID, n, n + 10, THEN, THEN), n, n + 10)
        for n in range(0, 10 * count, 10)
    ]


def numbers(_folder: SourceFolder, slice_: Slice) -> Iterator[tuple[int, int]]:
    """Make as many parts of a slice as its number says."""
    for part in range(slice_.start // 10 % 4):
        yield slice_.start, part


def large(_folder: SourceFolder, slice_: Slice) -> Iterator[bytes]:
    """Make large parts."""
    for part in range(3):
        yield bytes([slice_.start + part]) * LARGE


@dataclass(frozen=True, slots=True)
class Failing:
    """Fails in the third slice, after one part of it."""

    error: Exception

    def __call__(self, _folder: SourceFolder, slice_: Slice) -> Iterator[int]:
        """Make two parts of a slice."""
        yield slice_.start
        if slice_.start == 20:
            raise self.error
        yield slice_.start + 1


def killed(_folder: SourceFolder, slice_: Slice) -> Iterator[int]:
    """Be killed in the second slice."""
    yield slice_.start
    if slice_.start == 10:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Counted:
    """Notes each part that was made in a file."""

    notes: str

    def __call__(self, _folder: SourceFolder, slice_: Slice) -> Iterator[bytes]:
        """Make many parts of 10 kB."""
        for _ in range(1000):
            with Path(self.notes).open("ab") as file:
                file.write(b".")
            yield b"x" * 10_000


def process_id(_folder: SourceFolder, _slice: Slice) -> Iterator[int]:
    """Say which process makes it."""
    yield os.getpid()


@dataclass(frozen=True, slots=True)
class Broken:
    """Has a bug."""

    def __call__(self, _folder: SourceFolder, slice_: Slice) -> Iterator[int]:
        """Make one part, and fail."""
        yield slice_.start
        raise ZeroDivisionError("a bug")
