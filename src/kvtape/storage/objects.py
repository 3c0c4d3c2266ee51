"""Anything that fsspec reaches: S3, GCS, Azure, SFTP, SMB, ….

On an object store, an upload makes the whole object appear at once; on the others it is
uploaded beside its place and renamed. Credentials and endpoints are the store's own
matter (AWS_* in the environment, profiles, instance roles, fsspec's configuration
files): kvtape has no option for them, and so has nothing to leak.

**Written once.** S3 overwrites without a word, so an object is put on the condition
that none is there (If-None-Match: *) where the backend has that, as mode="create". For
the others, and a store that says it does not know the condition, it is looked whether
there is one before; there, two who write at the very same moment are a race. Not looked
for where there is the condition: one request less for each object, and a HEAD that is
refused has no body to say why.

**Listings.** fsspec's find() and walk() leave out a folder that could not be listed, so
that a store that is down looks like an empty one. Hence a walk of our own, but for
whole trees on object stores, which are one listing by prefix.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.config import conf

from kvtape.errors import RepositoryError
from kvtape.storage.content import UNFINISHED, must_be_same, reader, unfinished
from kvtape.storage.trouble import is_code, is_no_bucket, judge, reason, translated

_S3 = frozenset({"s3", "s3a"})

# Stores whose upload makes the whole object appear at once.
_ATOMIC = _S3 | {"gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "memory"}

# Which extra of ours brings the package for a store.
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
}

# An object of at least two parts is uploaded in parts, so many at once. s3fs's own are
# 50 MiB and 10, half a gigabyte of memory. S3 takes at most 10,000 parts.
_PART = 16 * 1024 * 1024
_PARTS_AT_ONCE = 4
_MOST_PARTS = 10_000

# How often botocore and, over it, s3fs try a request. By themselves they try 5 times
# each, which takes more than six minutes on a store that accepts and never answers
# (15 s, s3fs's read_timeout, for each of 25). A restore needs a few tries; whoever
# uploads has a patience of its own, and says what is wrong meanwhile.
_TRIES_OF_BOTOCORE = 2
_TRIES_OF_S3FS = 2

# What says that an object is there already.
_TAKEN = ("PreconditionFailed", "412")

# user:password@ of a URL, also of one that stands behind another (simplecache::sftp://).
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):([^/]*)(?=@)")


class FsspecStore:
    """A store that fsspec reaches."""

    def __init__(self, url: str) -> None:
        self.url = _PASSWORD.sub(r"\1", url)
        self._passwords = [match[2] for match in _PASSWORD.finditer(url)]
        protocol = url.split("://", 1)[0].split("::", 1)[0]
        self._is_s3 = protocol in _S3
        self._is_atomic = protocol in _ATOMIC
        self._has_condition = True  # until the store says that it does not know it
        self._filesystem, root = self._connect(url, protocol)
        self._root = root.rstrip("/")

    def _connect(self, url: str, protocol: str) -> tuple[Any, str]:
        try:
            # Cached listings would hide what another process has just written.
            filesystem, root = fsspec.url_to_fs(
                url, use_listings_cache=False, **_patience(protocol)
            )
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            how = (
                f"pip install 'kvtape[{extra}]'"
                if extra is not None
                else reason(error, self._passwords)
            )
            raise RepositoryError(
                f"{self.url} needs a package that is not installed: {how}"
            ) from None
        except Exception as error:  # some connect here, with exceptions of their own
            raise RepositoryError(
                f"{self.url} is no place to store: {reason(error, self._passwords)}",
                is_passing=judge(error, self.url, "list").is_passing,
            ) from error
        if protocol in _S3:
            filesystem.retries = _TRIES_OF_S3FS
        return filesystem, root

    def list(self, prefix: str = "", depth: int | None = None) -> dict[str, int]:
        """Return the path and length of every object under a folder."""
        folder = f"{self._root}/{prefix}".rstrip("/")
        with translated(self.url, "list", self._passwords):
            self._filesystem.invalidate_cache()
            objects = self._tree(folder, depth)
        found = {}
        for info in objects:
            if info["type"] == "file" and not info["name"].endswith(UNFINISHED):
                # Names begin with a / on some stores only.
                path = info["name"].lstrip("/").removeprefix(self._root.lstrip("/"))
                found[path.lstrip("/")] = int(info["size"])
        return found

    def read(self, path: str) -> bytes:
        """Return a whole object."""
        with translated(f"{self.url}/{path}", "read", self._passwords):
            content: bytes = self._filesystem.cat_file(f"{self._root}/{path}")
        return content

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return some bytes of an object."""
        what = f"{self.url}/{path}"
        with translated(what, "read", self._passwords):
            try:
                content: bytes = self._filesystem.cat_file(
                    f"{self._root}/{path}", start=start, end=end
                )
            except Exception as error:
                # What S3 says, with status 416, of a range behind an object's end.
                if is_code(error, "InvalidRange", "416"):
                    return b""
                raise
        # A server may ignore the range, and send everything; so does S3 if it is empty.
        return content[start:end] if len(content) > end - start else content

    def open(self, path: str) -> BinaryIO:
        """Open an object for reading."""
        what = f"{self.url}/{path}"
        with translated(what, "read", self._passwords):
            file: BinaryIO = self._filesystem.open(f"{self._root}/{path}", "rb")
        return reader(file, what, self._passwords)

    def put(self, path: str, source: Path | bytes) -> None:
        """Write an object; that it is durable then is the store's promise."""
        target = f"{self._root}/{path}"
        with translated(f"{self.url}/{path}", "write", self._passwords):
            if not self._write(source, target):
                must_be_same(self.open(path), source, f"{self.url}/{path}")

    def delete(self, path: str) -> None:
        """Delete an object; where a store has folders, they stay."""
        with translated(f"{self.url}/{path}", "delete", self._passwords):
            try:
                self._filesystem.rm_file(f"{self._root}/{path}")
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise

    def _tree(self, folder: str, depth: int | None) -> Sequence[Any]:
        if self._is_atomic and depth is None:
            return _none_if_absent(self._filesystem.find, folder)
        found = _none_if_absent(self._filesystem.ls, folder)
        # Of a file, ls() returns the file; some stores list a folder in itself.
        objects = [i for i in found if i["name"].strip("/") != folder.strip("/")]
        if depth != 1:
            deeper = None if depth is None else depth - 1
            for info in [i for i in objects if i["type"] == "directory"]:
                objects += self._tree(info["name"].rstrip("/"), deeper)
        return objects

    def _write(self, source: Path | bytes, target: str) -> bool:
        """Write an object where none is; return False if there is one."""
        if not self._is_atomic:
            return self._write_beside(source, target)
        try:
            if self._knows_condition(source):
                self._upload(source, target, mode="create")
            elif self._is_there(target):
                return False
            else:
                self._upload(source, target)
        except FileExistsError:
            return False
        except Exception as error:
            if is_code(error, *_TAKEN):
                return False
            if self._has_condition and is_code(error, "NotImplemented", "501"):
                self._has_condition = False
                return self._write(source, target)
            raise
        return True

    def _write_beside(self, source: Path | bytes, target: str) -> bool:
        if self._is_there(target):
            return False
        folder = target.rpartition("/")[0]
        self._filesystem.makedirs(folder, exist_ok=True)
        beside = unfinished(target)
        self._upload(source, beside)
        self._filesystem.mv(beside, target)
        return True

    def _is_there(self, target: str) -> bool:
        # Not exists(), which takes every error for absence.
        try:
            self._filesystem.info(target)
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise
            return False
        return True

    def _knows_condition(self, source: Path | bytes) -> bool:
        files = self._filesystem
        upload = files.pipe_file if isinstance(source, bytes) else files.put_file
        return self._has_condition and "mode" in inspect.signature(upload).parameters

    def _upload(self, source: Path | bytes, target: str, **options: Any) -> None:  # noqa: ANN401
        if isinstance(source, bytes):
            self._filesystem.pipe_file(target, source, **options)
            return
        if self._is_s3:
            part = max(_PART, math.ceil(source.stat().st_size / _MOST_PARTS))
            options |= {"chunksize": part, "max_concurrency": _PARTS_AT_ONCE}
        self._filesystem.put_file(str(source), target, **options)


def _none_if_absent(look: Any, folder: str) -> Sequence[Any]:  # noqa: ANN401
    """Return what a backend lists in a folder; no such folder is an empty one."""
    try:
        found = look(folder, detail=True)
    except FileNotFoundError as error:
        if is_no_bucket(error):
            raise
        return ()
    return [*found.values()] if isinstance(found, dict) else found


def _patience(protocol: str) -> dict[str, Any]:
    """Return how often a backend is to try; what the operator configured counts."""
    configured = conf.get(protocol, {}).get("config_kwargs", {})
    if protocol not in _S3:
        return {}
    retries = {"mode": "standard", "total_max_attempts": _TRIES_OF_BOTOCORE}
    return {"config_kwargs": {"retries": retries, **configured}}
