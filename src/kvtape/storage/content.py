"""What is written to a store and read from it: bytes, or files that hold them."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kvtape.errors import IdentityError
from kvtape.storage.trouble import translated

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# The end of names that a listing leaves out: they are being written.
UNFINISHED = ".partial"

_PIECE = 1024 * 1024


def unfinished(name: str) -> str:
    """Return the name of an object that is being written, which no other writer has."""
    return f"{name}.{uuid.uuid4().hex}{UNFINISHED}"


@contextlib.contextmanager
def opened(source: Path | bytes) -> Iterator[BinaryIO]:
    """Open what is to be written."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        yield file


def must_be_same(stored: BinaryIO, source: Path | bytes, what: str) -> None:
    """Raise IdentityError unless an object that is there holds what is to be written.

    The object is closed.
    """
    with stored, opened(source) as content:
        while True:
            there, here = stored.read(_PIECE), content.read(_PIECE)
            if there != here:
                raise IdentityError(
                    f"{what} is there already and holds something else: another "
                    "recording writes to this source; nothing was overwritten"
                )
            if not here:
                return


class _Reader(io.RawIOBase):
    """An open object, of which reading may fail long after it was opened."""

    def __init__(self, file: Any, what: str, passwords: Sequence[str]) -> None:  # noqa: ANN401
        self._file = file
        self._what = what
        self._passwords = passwords

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        with translated(self._what, "read", self._passwords):
            count: int = self._file.readinto(buffer)
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with translated(self._what, "read", self._passwords):
            position: int = self._file.seek(offset, whence)
        return position

    def close(self) -> None:
        super().close()
        self._file.close()


def reader(file: Any, what: str, passwords: Sequence[str] = ()) -> BinaryIO:  # noqa: ANN401
    """Return a file of any backend as one whose errors are ours."""
    return io.BufferedReader(_Reader(file, what, passwords))
