"""Restoring into a folder that a server loads by itself.

The RDB file is the base of an append-only file and the stream its increment, so that a
server loads both with its own code. Not a dump.rdb with the commands sent afterwards: a
primary drops every key whose time has passed while it loads a dump.rdb, and what the
stream then does to that key (INCR, APPEND, PERSIST) acts on nothing. While it loads an
AOF it keeps such keys to the end.

A folder without its manifest would start empty, and overwrite the base. So all is built
in DIR.partial, which becomes DIR when it is whole and synced: there is no moment at
which a server started on DIR loads half of it.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import string
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal

from kvtape.errors import DestinationError, RepositoryError
from kvtape.progress import Advance
from kvtape.replication.resp import pack
from kvtape.restore.fields import keep_fields
from kvtape.restore.job import Job, Result
from kvtape.restore.survey import databases_needed
from kvtape.storage.reader import read_stream
from kvtape.storage.store import make_folder, replace_file, sync_folder
from kvtape.tape.documents import Manifest
from kvtape.tape.translate import Tally, Translator

Layout = Literal["multi-part", "single"]

_MARKER = ".kvtape-partial"
_APPEND_DIR = "appendonlydir"
_APPEND_FILE = "appendonly.aof"
_CONFIGURATION = "redis.conf"

_DEFAULT_DATABASES = 16

# The first release that keeps its AOF in several files (Redis; Valkey always has).
_FIRST_MULTI_PART = 7
_LAST_SINGLE_RDB = 9


def layout_for(manifest: Manifest) -> Layout:
    """Return the layout that the recorded server itself would use."""
    version = manifest.server.version
    if version is None:
        return "single" if manifest.rdb_version <= _LAST_SINGLE_RDB else "multi-part"
    is_single = int(version.split(".")[0]) < _FIRST_MULTI_PART
    return "single" if is_single else "multi-part"


def must_be_free(target: Path) -> None:
    """Raise DestinationError if a folder cannot be restored into."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DestinationError(
            f"{target} is not empty: restore into a folder that is new, or empty"
        )
    if target.resolve().is_mount():
        raise DestinationError(
            f"{target} is where a disk is mounted, and cannot be put in place at once: "
            "restore into a new folder on it"
        )


def restore_data_dir(
    job: Job, target: Path, layout: Layout, *, force: bool = False
) -> Result:
    """Restore into a folder; return what was restored. Blocks.

    The folder may be there if it is empty. Raises VerificationError if anything stored
    is damaged, RepositoryError if the disk fails, and PointError if the result would
    not be exact, which force accepts; all of them leave nothing.
    """
    target = target.resolve()
    must_be_free(target)
    job = keep_fields(job, force=force)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with _begun(partial):
            try:
                tally = _build(job, partial, target, layout)
                sync_folder(partial)
                partial.rename(target)
                sync_folder(target.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            # Last, so that whatever is left under the other name can be told as ours.
            (target / _MARKER).unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise RepositoryError(f"cannot write {target}: {reason}") from error
    return job.result(tally.commands, str(target))


def start_command(manifest: Manifest, target: Path) -> str:
    """Return the command that starts a server on a restored folder."""
    program = "valkey-server" if manifest.server.family == "valkey" else "redis-server"
    return shlex.join([program, str(target.resolve() / _CONFIGURATION)])


@contextmanager
def _begun(partial: Path) -> Iterator[None]:
    """Make the folder to build in; one that an earlier restore left is removed.

    It is locked until this is left: a restore that still runs is no leftover.
    """
    if partial.exists():
        marker = partial / _MARKER
        is_empty = partial.is_dir() and not any(partial.iterdir())
        if not is_empty and not marker.exists():
            raise DestinationError(
                f"{partial} is in the way, and not of an interrupted restore: move it"
            )
        if not is_empty:
            with _locked(marker):
                shutil.rmtree(partial)
    make_folder(partial)
    with _locked(partial / _MARKER):
        yield


@contextmanager
def _locked(marker: Path) -> Iterator[None]:
    with marker.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DestinationError(
                f"another restore is building {marker.parent}: wait for it, or stop it"
            ) from None
        yield


def _build(job: Job, partial: Path, target: Path, layout: Layout) -> Tally:
    _must_have_room(partial, job.length)
    advance = job.watch.stage("restoring", job.length)
    translator = job.translator("file")
    snapshot = job.snapshot()
    stream = _stream(job, translator)
    if layout == "single":
        _write(partial / _APPEND_FILE, chain(snapshot, stream), advance)
    else:
        parts = partial / _APPEND_DIR
        parts.mkdir()
        base, increment = f"{_APPEND_FILE}.1.base.rdb", f"{_APPEND_FILE}.1.incr.aof"
        _write(parts / base, snapshot, advance)
        _write(parts / increment, stream, advance)
        listed = f"file {base} seq 1 type b\nfile {increment} seq 1 type i\n"
        replace_file(parts / f"{_APPEND_FILE}.manifest", listed.encode())
    databases = max(_DEFAULT_DATABASES, databases_needed(job, translator.tally))
    configuration = _configuration(target, databases, layout)
    replace_file(partial / _CONFIGURATION, configuration.encode())
    return translator.tally


def _stream(job: Job, translator: Translator) -> Iterator[bytes]:
    # A loader begins in database 0, whatever the base ended with. Mostly the stream's
    # first command is a SELECT, but not if it was recorded from a replica.
    db = job.plan.snapshot.manifest.db
    if db and job.plan.slices:
        yield pack("SELECT", db)
    for piece in read_stream(job.folder, job.plan.slices):
        yield translator.translate(piece)


def _write(path: Path, pieces: Iterable[bytes], advance: Advance) -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            advance(len(piece))
        file.flush()
        os.fsync(file.fileno())


def _must_have_room(folder: Path, length: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < length:
        raise RepositoryError(
            f"the restore needs {length} bytes, and the disk of {folder} has only "
            f"{free} free"
        )


_PLAIN = frozenset(string.ascii_letters + string.digits + "/._-")


def _configuration(target: Path, databases: int, layout: Layout) -> str:
    # Redis 6.2 does not know the option and refuses to start. Without it, it would
    # ignore the folder of that name, and start empty.
    folder = f"appenddirname {_APPEND_DIR}\n" if layout == "multi-part" else ""
    # As config.c reads a quoted value: \xNN is any byte.
    quoted = "".join(
        chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}"
        for byte in os.fsencode(target)
    )
    return f"""\
# Written by kvtape restore. A server started without "appendonly yes" on this folder
# would start empty. Add what else yours needs: bind, port, requirepass, …
dir "{quoted}"
appendonly yes
{folder}databases {databases}
"""
