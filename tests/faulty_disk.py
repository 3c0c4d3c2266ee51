"""A disk that fails, and a machine that dies, at any operation on a file.

Hides how a program's ways to its files are intercepted. The operations below one folder
are counted; one of them can be made to fail (the disk is full, or broken) or to be the
last that the process does. A write that fails has written its first half, as real ones
may have.

It also knows what a power cut would leave: of a file what was synced, in a folder the
names that were there when the folder was synced. A rename is one change, so a sync of
either folder keeps all of it. What a failed fsync was to write is lost for good, even
if the next one succeeds: Linux counts those pages as clean.

Decided against a file system of its own (FUSE is not everywhere) and against patching
kvtape: what is intercepted is the interface to the system that any code has to use.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

# A function of the os module, as it is before any is replaced.
Function: TypeAlias = Callable[..., Any]

OPEN: Final[Function] = io.open


class KilledError(BaseException):
    """The process was killed at this operation; no handler of OSError catches it."""


class FaultyDisk:
    """What happens to the files below a folder, for as long as the monkeypatch lasts.

    operations are those done so far, as (name, path). fail() and kill() count from the
    next operation on, beginning with 1; heal() ends either. Threads may share it.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.operations: list[tuple[str, str]] = []
        # An operation and what is known of it change together.
        self.lock = threading.RLock()
        self._countdown = 0
        self._error: int | None = None
        self._is_lasting = False
        self._is_broken = False
        # A file or folder is known here by a number of its own: the system gives the
        # inode of one that was deleted to the next.
        self._numbers: dict[int, int] = {}
        self._synced: dict[int, bytes] = {}  # contents of files
        self._names: dict[int, dict[str, int]] = {}  # synced names of folders
        self._next_number = itertools.count()
        self._lost: dict[int, set[int]] = {}  # positions that a failed fsync left out
        self._renames: list[tuple[int, str, int, str, int]] = []
        for above, _, files in os.walk(folder):
            self._sync_folder(above)
            for name in files:
                file = Path(above, name)
                self._synced[self.number(file)] = file.read_bytes()
        self._install(monkeypatch)

    def fail(
        self, at: int, error: int = errno.ENOSPC, *, lasting: bool = False
    ) -> None:
        """Have an operation fail; a lasting failure goes on until heal()."""
        self.heal()
        self._countdown, self._error, self._is_lasting = at, error, lasting

    def kill(self, at: int) -> None:
        """Have an operation be the last: it and all that follow do nothing."""
        self.heal()
        self._countdown, self._error, self._is_lasting = at, None, True

    def heal(self) -> None:
        """Have everything work again."""
        self._countdown, self._is_broken = 0, False

    @property
    def is_dead(self) -> bool:
        """Whether the process was killed."""
        return self._is_broken and self._error is None

    def survivors(self, path: Path, target: Path) -> Path:
        """Build in target what a power cut would leave now of path, a folder."""
        number: int | None = self.number(self.folder)
        for name in path.relative_to(self.folder).parts:
            number = None if number is None else self._names[number].get(name)
        with self.lock:
            target.mkdir()
            if number is not None:
                self._build(number, target)
        return target

    def _build(self, folder: int, target: Path) -> None:
        for name, number in self._names[folder].items():
            if number in self._names:
                (target / name).mkdir()
                self._build(number, target / name)
            else:
                (target / name).write_bytes(self._synced.get(number, b""))

    def number(self, path: str | Path, *, is_new: bool = False) -> int:
        """Return the number of a file or folder."""
        inode = Path(path).stat().st_ino
        if is_new or inode not in self._numbers:
            self._numbers[inode] = next(self._next_number)
        return self._numbers[inode]

    # Counting, and failing.

    def step(self, name: str, path: str | os.PathLike[str]) -> None:
        """Count an operation; raise if it is to fail."""
        self.operations.append((name, os.fspath(path)))
        if self._countdown > 0:
            self._countdown -= 1
            if self._countdown == 0:
                self._countdown = -1
                self._is_broken = self._is_lasting
                self._strike()
        elif self._is_broken:
            self._strike()

    def _strike(self) -> None:
        if self._error is None:
            raise KilledError
        raise OSError(self._error, os.strerror(self._error))

    def _counts(self, path: object) -> bool:
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.folder)

    # The interface to the system.

    def _install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, after in (
            ("mkdir", self._after_mkdir),
            ("link", None),
            ("unlink", None),
            ("rmdir", None),
        ):
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name), after))
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._counted_sync(name, getattr(os, name)))
        monkeypatch.setattr(os, "rename", self._counted_rename(os.rename))
        monkeypatch.setattr(io, "open", self._open)

    def _counted(
        self, name: str, function: Function, after: Callable[[str], None] | None
    ) -> Function:
        def counted(path: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
            if not self._counts(path):
                return function(path, *args, **options)
            with self.lock:
                self.step(name, path)
                result = function(path, *args, **options)
                if after is not None:
                    after(path)
            return result

        return counted

    def _after_mkdir(self, path: str) -> None:
        self._names[self.number(path, is_new=True)] = {}

    def _counted_rename(self, function: Function) -> Function:
        def counted(source: Any, target: Any) -> None:  # noqa: ANN401
            if not self._counts(target):
                function(source, target)
                return
            with self.lock:
                self.step("rename", target)
                source, target = Path(source), Path(target)
                moved = self.number(source)
                function(source, target)
                folders = self.number(source.parent), self.number(target.parent)
                self._renames.append(
                    (folders[0], source.name, folders[1], target.name, moved)
                )

        return counted

    def _counted_sync(self, name: str, function: Function) -> Function:
        def counted(file: Any) -> None:  # noqa: ANN401
            descriptor = file if isinstance(file, int) else file.fileno()
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if not self._counts(path):
                function(descriptor)
                return
            with self.lock:
                try:
                    self.step(name, path)
                except OSError:
                    self._lose(path)
                    raise
                function(descriptor)
                if path.is_dir():
                    self._sync_folder(path)
                else:
                    self._sync_file(path)

        return counted

    def _sync_folder(self, folder: str | Path) -> None:
        number = self.number(folder)
        self._names[number] = {
            path.name: self.number(path) for path in Path(folder).iterdir()
        }
        for source, name, target, new_name, moved in self._renames:
            if number == source and target in self._names:
                self._names[target][new_name] = moved
            if number == target and self._names.get(source, {}).get(name) == moved:
                del self._names[source][name]
        self._renames = [r for r in self._renames if number not in (r[0], r[2])]

    def _sync_file(self, path: Path) -> None:
        content, number = bytearray(path.read_bytes()), self.number(path)
        for position in self._lost.get(number, ()):
            if position < len(content):
                content[position] = 0
        self._synced[number] = bytes(content)

    def _lose(self, path: Path) -> None:
        if path.is_file():
            number, length = self.number(path), path.stat().st_size
            unsynced = range(len(self._synced.get(number, b"")), length)
            self._lost.setdefault(number, set()).update(unsynced)

    def note_write(self, number: int, start: int, end: int) -> None:
        """Note bytes that are to be synced again."""
        if number in self._lost:
            self._lost[number].difference_update(range(start, end))

    def _open(
        self,
        file: Any,  # noqa: ANN401
        mode: str = "r",
        buffering: int = -1,
        *args: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if not self._counts(file) or not set(mode) & set("wax+"):
            return OPEN(file, mode, buffering, *args, **options)
        with self.lock:
            self.step("open", file)
            is_new = not Path(file).exists()
            raw = _File(os.fspath(file), mode.replace("b", ""))
            raw.belong_to(self, self.number(file, is_new=is_new))
        if buffering == 0:
            return raw
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)


class _File(io.FileIO):
    """A file whose writes are counted."""

    def belong_to(self, disk: FaultyDisk, number: int) -> None:
        """Say which disk the file is on."""
        self._disk, self._number = disk, number

    def write(self, data: Any, /) -> int:  # noqa: ANN401
        if self._disk.is_dead:
            # Python writes what it has buffered when a file is closed; a process that
            # is dead does not.
            return len(data)
        with self._disk.lock:
            try:
                self._disk.step("write", str(self.name))
            except BaseException:
                self._write(memoryview(data)[: len(data) // 2])
                raise
            return self._write(memoryview(data))

    def _write(self, data: memoryview) -> int:
        start = self.tell()
        count = super().write(data)
        self._disk.note_write(self._number, start, start + count)
        return count

    def truncate(self, size: int | None = None, /) -> int:
        self._disk.step("truncate", str(self.name))
        return super().truncate(size)
