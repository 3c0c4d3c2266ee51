"""What became of the keys between two moments: added, removed, changed.

Both moments are loaded, one after the other, and of each key a digest and the expiry
are kept in a database on the disk, so that memory stays flat. A key whose time had come
by a moment was not there any more, whether or not the server had got round to deleting
it; so it is with the fields of a hash.

Decided against: to compare only keys that the stream between the two touches. Both
moments would have to be loaded all the same, which is most of the time, and what a
FLUSHDB, a SWAPDB or a script touches is not in the stream.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import trio

from kvtape.errors import RepositoryError
from kvtape.restore.fit import release_of
from kvtape.restore.job import Job
from kvtape.restore.loader import Loader, choose_loader, loaders_at_hand
from kvtape.restore.state import FOLDER, CancelledWatch, State, load_state
from kvtape.server.scratch import scratch_folder
from kvtape.tape.glob import Glob
from kvtape.tape.rdb import Key
from kvtape.tape.rdb.canonical import canonical

_log = logging.getLogger(__name__)

# So many rows are put into the database at once.
_ROWS = 1000

# Redis 6.2 streams how long a key has left, and what that comes to is known by when it
# was received. Two moments that begin with two snapshots may differ by that
# (docs/correctness.md).
_RELATIVE_LEEWAY = 50

Change = Literal["added", "removed", "changed"]


class Difference(NamedTuple):
    """A key that is not the same at two moments.

    Of one that was changed, value and expiry say which of the two differs.
    """

    db: int
    key: bytes
    change: Change
    value: bool
    expiry: bool


class Changes(NamedTuple):
    """How many keys with a prefix were added, removed and changed."""

    prefix: bytes
    added: int
    removed: int
    changed: int


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """Which keys are compared: those that match one of globs, if there are any.

    scratch names the server to load the recording with; None is the best that there is.
    """

    globs: tuple[Glob, ...] = ()
    db: int | None = None
    scratch: str | None = None
    force: bool = False

    def wants(self, key: Key) -> bool:
        """Whether a key is compared."""
        if self.db is not None and key.db != self.db:
            return False
        return not self.globs or any(glob.matches(key.key) for glob in self.globs)


@dataclass(slots=True)
class Comparison:
    """Two moments, compared by fill(); then read differences() any number of times.

    compared is how many keys each of them has. unknown is how many of these, of both,
    are of types that can only be compared byte by byte (of modules, or of newer
    servers), so that they may be called changed and be equal. leeway (ms) is by how
    much expiries may differ and still be the same. Get one by comparison().
    """

    _database: sqlite3.Connection
    leeway: int = 0
    compared: list[int] = field(default_factory=list)
    unknown: int = 0

    async def fill(self, jobs: tuple[Job, Job], options: DiffOptions) -> None:
        """Load both moments and compare them.

        Raises what load_state() raises, and RepositoryError if the disk is full. It is
        cancelled at once.
        """
        at_hand = await trio.to_thread.run_sync(loaders_at_hand, options.scratch)
        loaders = [_choose(at_hand, job) for job in jobs]
        is_lean = any(_is_before_7(loader) for loader in loaders)
        self.leeway = _RELATIVE_LEEWAY if is_lean else 0
        for table, job, loader in zip(_TABLES, jobs, loaders, strict=True):
            with scratch_folder(FOLDER) as folder:
                state = await load_state(job, loader, folder, force=options.force)
                await trio.to_thread.run_sync(
                    partial(self._put, table, state, options, is_lean=is_lean)
                )

    def _put(
        self, table: str, state: State, options: DiffOptions, *, is_lean: bool
    ) -> None:
        """Put what a state has into a table. Blocks."""
        rows = self._rows(state, options, is_lean=is_lean)
        insert = f"INSERT INTO {table} VALUES (?, ?, ?, ?)"
        count = 0
        try:
            with self._database:
                while some := list(islice(rows, _ROWS)):
                    self._database.executemany(insert, some)
                    count += len(some)
        except sqlite3.Error as error:
            raise _cannot_keep(error) from None
        self.compared.append(count)

    def _rows(
        self, state: State, options: DiffOptions, *, is_lean: bool
    ) -> Iterator[tuple[int, bytes, bytes, int | None]]:
        at = state.time
        for key in state.keys("comparing", CancelledWatch(state.job.watch)):
            is_over = key.expire_ms is not None and key.expire_ms <= at
            if is_over or not options.wants(key) or key.value is None:
                continue
            found = canonical(key.type, key.value, at=at, is_lean=is_lean)
            if found is not None:
                self.unknown += not found.is_known
                yield key.db, key.key, found.digest, key.expire_ms

    def differences(self, limit: int | None = None) -> Iterator[Difference]:
        """Yield the keys that are not the same, by database and name. Blocks."""
        query = f"{_COMPARE} ORDER BY db, key"
        for db, key, was, now, value, expiry in self._read(query, limit):
            change: Change = "changed"
            if not was or not now:
                change = "removed" if was else "added"
            yield Difference(db, key, change, bool(value), bool(expiry))

    def prefixes(self, depth: int = 1, limit: int | None = None) -> Iterator[Changes]:
        """Yield how many keys changed by what their names begin with, most first.

        A prefix ends before the depth-th colon of a key, or is all of it. Blocks.
        """

        def prefix_of(key: bytes) -> bytes:
            return b":".join(key.split(b":")[:depth])

        self._database.create_function("prefix_of", 1, prefix_of, deterministic=True)
        query = (
            "SELECT prefix_of(key), sum(NOT was), sum(NOT now), sum(was AND now) "
            f"FROM ({_COMPARE}) GROUP BY 1 ORDER BY count(*) DESC, 1"
        )
        yield from map(Changes._make, self._read(query, limit))

    def _read(self, query: str, limit: int | None) -> Iterator[tuple[Any, ...]]:
        values = {"leeway": self.leeway, "limit": -1 if limit is None else limit}
        try:
            yield from self._database.execute(f"{query} LIMIT :limit", values)
        except sqlite3.Error as error:
            raise _cannot_keep(error) from None


_TABLES = ("was", "now")

# Each key once: those of the first moment with what became of them, then the others.
_COMPARE = """
SELECT * FROM (
  SELECT was.db AS db, was.key AS key, 1 AS was, now.key IS NOT NULL AS now,
         was.digest IS NOT now.digest AS value,
         (was.expires IS NULL) IS NOT (now.expires IS NULL)
           OR ifnull(abs(was.expires - now.expires) > :leeway, 0) AS expiry
    FROM was LEFT JOIN now ON was.db = now.db AND was.key = now.key
) WHERE value OR expiry
UNION ALL
SELECT now.db, now.key, 0, 1, 1, now.expires IS NOT NULL
  FROM now LEFT JOIN was ON was.db = now.db AND was.key = now.key
 WHERE was.key IS NULL
"""


@contextmanager
def comparison() -> Iterator[Comparison]:
    """Open a place to compare two moments in, which is gone when it is left."""
    # An empty name is a temporary file of SQLite's own, which nobody else sees. What
    # fills it is one thread at a time, but not the one that opened it.
    with closing(sqlite3.connect("", check_same_thread=False)) as database:
        for table in _TABLES:
            database.execute(
                f"CREATE TABLE {table} (db INTEGER, key BLOB, digest BLOB, "
                "expires INTEGER, PRIMARY KEY (db, key)) WITHOUT ROWID"
            )
        yield Comparison(database)


def _choose(loaders: Sequence[Loader], job: Job) -> Loader:
    loader, reason = choose_loader(loaders, job.plan.snapshot.manifest)
    offset = job.plan.offset
    _log.info("loading offset %d with %s", offset, loader.choice(reason))
    return loader


def _is_before_7(loader: Loader) -> bool:
    return release_of(loader.server.version or "7.0") < (7, 0)


def _cannot_keep(error: sqlite3.Error) -> RepositoryError:
    return RepositoryError(
        f"cannot keep the digests of the keys in a temporary file: {error}; TMPDIR "
        "says which disk it is on"
    )
