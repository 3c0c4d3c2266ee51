"""Where objects are kept: a folder of this machine, or anything that fsspec reaches.

Objects are written once, whole or not at all, and never changed. Folders are not left
to fsspec, whose file system for the local disk never calls fsync: an object in a folder
is written beside its place, synced, and linked to its name, which fails if the name is
taken. Beside its place it has a name that no other writer has: two agents may write the
same object at once, and one must not finish what the other has just begun.

All calls block. What goes wrong becomes a RepositoryError (kvtape.storage.trouble);
only that there is no object to read stays a FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import BinaryIO, Protocol

from kvtape.errors import UsageError
from kvtape.storage.content import UNFINISHED, must_be_same, opened, reader, unfinished
from kvtape.storage.trouble import translated

_PIECE = 1024 * 1024

_SCHEME = re.compile(r"([A-Za-z0-9+.-]+)(?:::|://)")


class Store(Protocol):
    """A tree of immutable objects. Paths are relative, with / between the parts."""

    url: str  # for messages: never with a secret in it

    def list(self, prefix: str = "", depth: int | None = None) -> dict[str, int]:
        """Return the path and length of every object whose path begins with prefix.

        prefix is empty or a folder with its /; no such folder is an empty one. depth
        limits how many folders deep below it to look; 1 is its own objects.
        """

    def read(self, path: str) -> bytes:
        """Return a whole object; FileNotFoundError if there is none."""

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of an object, or what it has of them.

        FileNotFoundError if there is no such object.
        """

    def open(self, path: str) -> BinaryIO:
        """Open an object for reading; it can seek. FileNotFoundError if none."""

    def put(self, path: str, source: Path | bytes) -> None:
        """Write an object. One with the same content is fine, another is an error."""

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is fine."""


def open_store(url: str) -> Store:
    """Return the store for a path or an fsspec URL. Nothing is created or read."""
    if not url:
        raise UsageError("the repository's path or URL is empty")
    match = _SCHEME.match(url)
    if match is None:
        try:
            return LocalStore(Path(url).expanduser())
        except RuntimeError as error:
            raise UsageError(f"there is no folder {url}: {error}") from None
    if match[0] in ("file://", "local://"):
        return LocalStore(Path(url.removeprefix(match[0]) or "/"))
    # Importing fsspec takes 30 ms, which a repository in a folder has no use for.
    from kvtape.storage.objects import FsspecStore

    return FsspecStore(url)


class LocalStore:
    """A folder of this machine, or one mounted on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.url = str(self.folder)

    def list(self, prefix: str = "", depth: int | None = None) -> dict[str, int]:
        """Return the path and length of every object under a folder."""
        found = {}
        top = self.folder / prefix
        with translated(self.url, "list"):
            for folder, folders, files in os.walk(top, onerror=_raise):
                if depth is not None:
                    deeper = depth - 1 - len(Path(folder).relative_to(top).parts)
                    folders[:] = folders if deeper > 0 else []
                for name in files:
                    file = Path(folder, name)
                    # What is deleted meanwhile is not there.
                    with contextlib.suppress(FileNotFoundError):
                        if not name.endswith(UNFINISHED):
                            path = file.relative_to(self.folder).as_posix()
                            found[path] = file.stat().st_size
        return found

    def read(self, path: str) -> bytes:
        """Return a whole object."""
        with translated(f"{self.url}/{path}", "read"):
            return (self.folder / path).read_bytes()

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return some bytes of an object."""
        with (
            translated(f"{self.url}/{path}", "read"),
            (self.folder / path).open("rb", buffering=0) as file,
        ):
            # A regular file gives all that is asked for, in one call.
            return os.pread(file.fileno(), end - start, start)

    def open(self, path: str) -> BinaryIO:
        """Open an object for reading."""
        what = f"{self.url}/{path}"
        with translated(what, "read"):
            return reader((self.folder / path).open("rb", buffering=0), what)

    def put(self, path: str, source: Path | bytes) -> None:
        """Write an object, durably: when this returns, a power cut does not undo it.

        A file on the same file system becomes the object, under a second name; it must
        be synced, and not change any more.
        """
        target = self.folder / path
        partial = target.with_name(unfinished(f".{target.name}"))
        with translated(f"{self.url}/{path}", "write"):
            make_folder(target.parent)
            try:
                if not (isinstance(source, Path) and _link(source, target)):
                    with opened(source) as content, partial.open("xb") as file:
                        while piece := content.read(_PIECE):
                            file.write(piece)
                        file.flush()
                        os.fsync(file.fileno())
                    _name_once(partial, target)
            except FileExistsError:
                must_be_same(self.open(path), source, f"{self.url}/{path}")
            finally:
                partial.unlink(missing_ok=True)
            sync_folder(target.parent)

    def delete(self, path: str) -> None:
        """Delete an object, and the folders that are empty then.

        Whoever writes into such a folder at that moment fails, and has to try again.
        """
        target = self.folder / path
        with translated(f"{self.url}/{path}", "delete"):
            target.unlink(missing_ok=True)
            for folder in target.parents:
                if folder == self.folder or not _remove_if_empty(folder):
                    break


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably."""
    missing = [folder]
    while not missing[-1].exists():
        missing.append(missing[-1].parent)
    # An earlier call may have come no further than to make the first one that is there.
    # Above what is ours there may be folders that we may not open.
    with contextlib.suppress(PermissionError):
        sync_folder(missing[-1].parent)
    for above, created in zip(missing[:0:-1], missing[-2::-1], strict=True):
        created.mkdir(exist_ok=True)
        sync_folder(above)


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file whole, durably, or leave the one that was there."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name, if it can be; FileExistsError if that is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        return False  # another file system, or one without links: it is copied
    return True


def _name_once(partial: Path, target: Path) -> None:
    """Give a finished file its name; FileExistsError if the name is taken."""
    try:
        os.link(partial, target)
    except PermissionError:
        # A file system without links (FAT, some network mounts) says EPERM. What is
        # left there is not atomic against a second writer, and good against a crash.
        if target.exists():
            raise FileExistsError(target) from None
        partial.rename(target)


def _remove_if_empty(folder: Path) -> bool:
    """Remove a folder with nothing in it; return whether it is gone."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True  # somebody else did
    except OSError:
        return False  # not empty, or not ours to remove: it does no harm
    return True


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
