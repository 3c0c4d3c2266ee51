"""The bytes of a file that arrive in pieces and are read with a plain index.

Hides the pieces. A reader works on `data` from `position` on, without ever asking
whether there is enough: running off the end is an IndexError, and means "wait for
more". A position may lie beyond the data; that is how a string of 512 MiB is passed
over without being held.

Invariants: the work is proportional to the bytes, however small the pieces and however
large the thing that has to be there whole; `data` changes only in fill() and suspend().
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

import anycrc

_CRC: Final = anycrc.Model("CRC64-REDIS")


class ShortError(IndexError):
    """The data end too early: they must reach at least to the position `end`."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


class Input:
    """What was received and is not dealt with yet; `start` is the offset of the data.

    At most one stretch of the file at a time (a value) can be worked on in steps:
    begin() says where it starts, suspend() lets go of all before the position, and
    finish() returns the stretch, or None for it unless `keep` is set, and its size.
    """

    def __init__(self, *, keep: bool) -> None:
        self.data = b""
        self.position = 0
        self.start = 0
        self._keep = keep
        self._pieces: list[bytes] = []  # follow the data, once they are joined to it
        self._received = 0  # bytes in the pieces
        self._needed = 0  # bytes from the position on that make a new try worth it
        self._skip = 0  # bytes still to come that belong to the stretch
        self._crc = 0  # of all bytes before the data
        self._begun = 0  # where in the data the stretch goes on
        self._size = 0  # bytes of the stretch before that
        self._kept = BytesIO()

    @property
    def offset(self) -> int:
        """Where in the file the position is."""
        return self.start + self.position

    @property
    def total(self) -> int:
        """How many bytes were received."""
        return self.start + len(self.data) + self._received

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece of the file."""
        piece = bytes(data)
        if self._skip:
            skipped, piece = piece[: self._skip], piece[self._skip :]
            self._skip -= len(skipped)
            self.start += len(skipped)
            self._crc = _CRC.calc(skipped, self._crc)
            if self._keep:
                self._kept.write(skipped)
        if piece:
            self._pieces.append(piece)
            self._received += len(piece)

    def fill(self) -> bool:
        """Make all that was received one piece of data, unless it cannot be enough."""
        if self._skip:
            return False
        if self._pieces:
            if len(self.data) - self.position + self._received < self._needed:
                return False
            self._let_go(self.position)
            if self.data:
                self._pieces.insert(0, self.data)
            self.data = b"".join(self._pieces)  # A single piece is not copied.
            self._pieces.clear()
            self._received = self._needed = 0
        return True

    def miss(self, error: IndexError) -> None:
        """Remember how much more is needed, if the error says so."""
        end = error.end if isinstance(error, ShortError) else 0
        self._needed = end - self.position

    def checksum(self, end: int) -> int:
        """Return the CRC64 of the file up to that position of the data."""
        return _checksum(memoryview(self.data)[:end], self._crc)

    def rest(self) -> bytes:
        """Return all from the position on."""
        return b"".join([self.data[self.position :], *self._pieces])

    def begin(self, position: int) -> None:
        """Start a stretch, there."""
        self.position = self._begun = position
        self._size = 0

    def suspend(self) -> None:
        """Let go of what is before the position; what is beyond the data is skipped."""
        here = min(self.position, len(self.data))
        if self._keep:
            self._kept.write(self.data[self._begun : here])
        self._size += self.position - self._begun
        self._skip = self.position - here
        self._begun = 0
        self._let_go(here)

    def finish(self) -> tuple[bytes | None, int]:
        """End the stretch, at the position, and return it and its size."""
        last = self.data[self._begun : self.position]
        size = self._size + len(last)
        if not self._keep:
            return None, size
        if not self._size:
            return last, size
        self._kept.write(last)
        kept, self._kept = self._kept, BytesIO()
        # Unlike a join of pieces this does not copy, for it is all the memory there is.
        return kept.getvalue(), size

    def _let_go(self, size: int) -> None:
        self._crc = self.checksum(size)
        self.start += size
        self.data = self.data[size:]
        self.position = 0


def _checksum(data: memoryview, crc: int) -> int:
    checksum: int = _CRC.calc(data, crc)
    return checksum
