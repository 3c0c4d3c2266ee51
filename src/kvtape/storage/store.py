"""Where objects are kept: a folder, or anything that fsspec reaches.

Objects are written once, whole or not at all, and never changed. Two writers are here
and not one, because fsspec's own for the local disk never calls fsync: an object in a
folder is written beside its place, synced, and linked to its name, which fails if the
name is taken. On an object store, uploading is atomic by itself; on the others (SFTP,
SMB, …) an object is uploaded beside its place and renamed. Beside its place it has a
name that no other writer has: two agents may write the same object at once, and one
must not finish what the other has just begun.

All calls block. Errors of every store become RepositoryError here, so that nothing of
fsspec's many backends is seen elsewhere; only that there is no object to read stays a
FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import unquote

import fsspec

from kvtape.errors import IdentityError, RepositoryError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Stores whose upload makes the whole object appear at once.
_ATOMIC = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "memory"}
)

# Names that a listing leaves out: they are being written.
_UNFINISHED = ".partial"

_PIECE = 1024 * 1024

_SCHEME = re.compile(r"([A-Za-z0-9+.-]+)(?:::|://)")

# user:password@ of a URL, also of one that stands behind another (simplecache::sftp://).
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):([^/]*)(?=@)")


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

    def open(self, path: str) -> BinaryIO:
        """Open an object for reading; it can seek. FileNotFoundError if none."""

    def put(self, path: str, source: Path | bytes) -> None:
        """Write an object. One with the same content is fine, another is an error."""


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
        with _translated(self.url, "list"):
            for folder, folders, files in os.walk(top, onerror=_raise):
                if depth is not None:
                    deeper = depth - 1 - len(Path(folder).relative_to(top).parts)
                    folders[:] = folders if deeper > 0 else []
                for name in files:
                    file = Path(folder, name)
                    # What is deleted meanwhile is not there.
                    with contextlib.suppress(FileNotFoundError):
                        if not name.endswith(_UNFINISHED):
                            path = file.relative_to(self.folder).as_posix()
                            found[path] = file.stat().st_size
        return found

    def read(self, path: str) -> bytes:
        """Return a whole object."""
        with _translated(f"{self.url}/{path}", "read"):
            return (self.folder / path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        """Open an object for reading."""
        what = f"{self.url}/{path}"
        with _translated(what, "read"):
            return _reader((self.folder / path).open("rb", buffering=0), what)

    def put(self, path: str, source: Path | bytes) -> None:
        """Write an object, durably: when this returns, a power cut does not undo it.

        A file on the same file system becomes the object, under a second name; it must
        be synced, and not change any more.
        """
        target = self.folder / path
        partial = target.with_name(_unfinished(f".{target.name}"))
        with _translated(f"{self.url}/{path}", "write"):
            make_folder(target.parent)
            try:
                if not (isinstance(source, Path) and _link(source, target)):
                    with _reading(source) as content, partial.open("xb") as file:
                        while piece := content.read(_PIECE):
                            file.write(piece)
                        file.flush()
                        os.fsync(file.fileno())
                    _name_once(partial, target)
            except FileExistsError:
                _must_be_same(self, path, source)
            finally:
                partial.unlink(missing_ok=True)
            sync_folder(target.parent)


class FsspecStore:
    """Anything that fsspec reaches."""

    def __init__(self, url: str) -> None:
        self.url = _PASSWORD.sub(r"\1", url)
        self._passwords = [match[2] for match in _PASSWORD.finditer(url)]
        protocol = url.split("://", 1)[0].split("::", 1)[0]
        self._is_atomic = protocol in _ATOMIC
        try:
            # Cached listings would hide what another process has just written.
            filesystem, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise RepositoryError(
                f"{self.url} needs a package that is not installed: "
                f"{_reason(error, self._passwords)}"
            ) from None
        except Exception as error:  # some connect here, with exceptions of their own
            raise RepositoryError(
                f"{self.url} is no place to store: {_reason(error, self._passwords)}"
            ) from error
        self._filesystem: Any = filesystem
        self._root = root.rstrip("/")

    def list(self, prefix: str = "", depth: int | None = None) -> dict[str, int]:
        """Return the path and length of every object under a folder."""
        folder = f"{self._root}/{prefix}".rstrip("/")
        found: dict[str, int] = {}
        with _translated(self.url, "list", self._passwords):
            self._filesystem.invalidate_cache()
            # find() of a folder that is not there is empty on some stores only.
            if not self._filesystem.exists(folder):
                return found
            objects = self._filesystem.find(folder, maxdepth=depth, detail=True)
            for name, info in objects.items():
                if info["type"] == "file" and not name.endswith(_UNFINISHED):
                    # What find() returns begins with a / on some stores only.
                    path = name.lstrip("/").removeprefix(self._root.lstrip("/"))
                    found[path.lstrip("/")] = int(info["size"])
        return found

    def read(self, path: str) -> bytes:
        """Return a whole object."""
        with _translated(f"{self.url}/{path}", "read", self._passwords):
            content: bytes = self._filesystem.cat_file(f"{self._root}/{path}")
        return content

    def open(self, path: str) -> BinaryIO:
        """Open an object for reading."""
        what = f"{self.url}/{path}"
        with _translated(what, "read", self._passwords):
            file: BinaryIO = self._filesystem.open(f"{self._root}/{path}", "rb")
        return _reader(file, what, self._passwords)

    def put(self, path: str, source: Path | bytes) -> None:
        """Write an object; that it is durable then is the store's promise."""
        target = f"{self._root}/{path}"
        with _translated(f"{self.url}/{path}", "write", self._passwords):
            if self._filesystem.exists(target):
                _must_be_same(self, path, source)
                return
            if self._is_atomic:
                self._upload(source, target)
            else:
                folder = target.rpartition("/")[0]
                self._filesystem.makedirs(folder, exist_ok=True)
                partial = _unfinished(target)
                self._upload(source, partial)
                self._filesystem.mv(partial, target)

    def _upload(self, source: Path | bytes, target: str) -> None:
        if isinstance(source, bytes):
            self._filesystem.pipe_file(target, source)
        else:
            self._filesystem.put_file(str(source), target)


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


def _must_be_same(store: Store, path: str, source: Path | bytes) -> None:
    """Compare what is to be written with what is there already."""
    with store.open(path) as stored, _reading(source) as content:
        while True:
            there, here = stored.read(_PIECE), content.read(_PIECE)
            if there != here:
                raise IdentityError(
                    f"{store.url}/{path} is there already and holds something else: "
                    "another recording writes to this source; nothing was overwritten"
                )
            if not here:
                return


def _unfinished(name: str) -> str:
    """Return the name of an object that is being written, which no other writer has."""
    return f"{name}.{uuid.uuid4().hex}{_UNFINISHED}"


@contextlib.contextmanager
def _reading(source: Path | bytes) -> Iterator[BinaryIO]:
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        yield file


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
        with _translated(self._what, "read", self._passwords):
            count: int = self._file.readinto(buffer)
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _translated(self._what, "read", self._passwords):
            position: int = self._file.seek(offset, whence)
        return position

    def close(self) -> None:
        super().close()
        self._file.close()


def _reader(file: Any, what: str, passwords: Sequence[str] = ()) -> BinaryIO:  # noqa: ANN401
    return io.BufferedReader(_Reader(file, what, passwords))


@contextlib.contextmanager
def _translated(what: str, verb: str, passwords: Sequence[str] = ()) -> Iterator[None]:
    try:
        yield
    except (IdentityError, RepositoryError):
        raise
    except Exception as error:  # each backend of fsspec has exceptions of its own
        # A store whose folder or bucket is gone says the same, and that is an error.
        if isinstance(error, FileNotFoundError) and verb == "read":
            raise
        reason = _reason(error, passwords)
        raise RepositoryError(f"cannot {verb} {what}: {reason}") from error


def _reason(error: Exception, passwords: Sequence[str]) -> str:
    """Return what an error says, in one line and without the secrets of a URL."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    line = " ".join(said.split()) or type(error).__name__
    for password in passwords:
        for secret in {password, unquote(password)} - {""}:
            line = line.replace(secret, "***")
    return line


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
