"""Counting commands and their bytes: by name, by key, by prefix, by minute.

The bytes of all that is counted add up to those of the commands, each once. Of a
command with several keys in different groups each group has its share.

Prefixes and minutes are few, and so are names; keys may be as many as the server has.
So counts are put away into a database on the disk when they are more than fit, and
added up there at the end, which sorts without an index: memory stays flat.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from kvtape.audit.search import Part, parts_of
from kvtape.errors import RepositoryError
from kvtape.storage.repository import SourceFolder
from kvtape.tape.catalogue import Slice
from kvtape.tape.command_table import find
from kvtape.tape.commands import Batch, Words
from kvtape.tape.query import Query, keys_of

By: TypeAlias = Literal["command", "prefix", "minute", "key"]

_MINUTE_MS = 60_000

# Of commands without keys, and of those of which the keys are not known.
NO_KEY = None

# So many groups are kept in memory: some 30 MiB of keys of usual length.
_IN_MEMORY = 100_000

Group: TypeAlias = bytes | int | None


class Count(NamedTuple):
    """How many commands a group has, and how many stream bytes they are.

    A group is a name, a key or a prefix, or None for commands without a key; or the
    time (ms) at which a minute begins.
    """

    group: Group
    commands: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Counting:
    """Counts the commands of a slice that are asked for, by what they have in common.

    A prefix ends before the depth-th separator of a key, or is all of it. It can be
    sent to another process.
    """

    query: Query
    by: By
    separator: bytes = b":"
    depth: int = 1

    def __call__(
        self, folder: SourceFolder, slice_: Slice
    ) -> Iterator[Part[list[Count]]]:
        """Yield the counts part by part."""
        return parts_of(folder, slice_, self.query.wants, self._counted)

    def _counted(self, batch: Batch) -> list[Count]:
        return self.count(self.query.find_words(batch))

    def count(self, commands: Iterable[tuple[Words, int, int]]) -> list[Count]:
        """Return the counts of commands: words, length, and when they came (ms)."""
        counts: dict[Group, list[int]] = {}
        groups_of = self._groups_of()
        for words, size, time in commands:
            groups = groups_of(words, time)
            share = size // len(groups)
            rest = size - share * len(groups)
            for group in groups:
                count = counts.get(group)
                if count is None:
                    count = counts[group] = [0, 0]
                count[0] += 1
                count[1] += share + rest
                rest = 0
        return [Count(group, *count) for group, count in counts.items()]

    def _groups_of(self) -> Callable[[Words, int], Collection[Group]]:
        """Return what tells the groups of a command that came at a time."""
        if self.by == "command":
            return lambda words, _: (words[0].upper(),)
        if self.by == "minute":
            return lambda _, time: (time // _MINUTE_MS * _MINUTE_MS,)
        if self.by == "key":
            return lambda words, _: _keys(words)
        return lambda words, _: {*map(self._prefix, _keys(words))}

    def _prefix(self, key: Group) -> Group:
        if not isinstance(key, bytes):
            return key
        if self.depth == 1:
            return key.partition(self.separator)[0]
        return self.separator.join(key.split(self.separator)[: self.depth])


def _keys(words: Words) -> Sequence[Group]:
    entry = find(words)
    if entry is not None and (at := entry.only_key_at) and len(words) > at:
        return (words[at],)
    return list(dict.fromkeys(keys_of(words) or ())) or [NO_KEY]


@dataclass(slots=True)
class Totals:
    """Adds counts up. Get one by totals()."""

    _database: sqlite3.Connection
    _counts: Counter[Group] = field(default_factory=Counter)
    _sizes: Counter[Group] = field(default_factory=Counter)

    def add(self, counts: Sequence[Count]) -> None:
        """Add what was counted of some commands."""
        for group, commands, size in counts:
            self._counts[group] += commands
            self._sizes[group] += size
        if len(self._counts) > _IN_MEMORY:
            self._put_away()

    def ordered(self, by: By, limit: int | None = None) -> Iterator[Count]:
        """Yield the groups: minutes in their order, others by bytes, most first."""
        self._put_away()
        order = "name" if by == "minute" else "3 DESC, 2 DESC, name"
        with _disk():  # to order many takes room as well
            rows = self._database.execute(
                "SELECT name, sum(commands), sum(bytes) FROM counts GROUP BY name "
                f"ORDER BY {order} LIMIT ?",
                (-1 if limit is None else limit,),
            )
            yield from (Count(*row) for row in rows)

    def _put_away(self) -> None:
        rows = [
            (group, count, self._sizes[group]) for group, count in self._counts.items()
        ]
        with _disk(), self._database:
            self._database.executemany("INSERT INTO counts VALUES (?, ?, ?)", rows)
        self._counts.clear()
        self._sizes.clear()


@contextmanager
def _disk() -> Iterator[None]:
    """Say what is wrong with the disk in a sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise RepositoryError(
            f"cannot keep the counts in a temporary file: {error}; TMPDIR says which "
            "disk it is on"
        ) from None


@contextmanager
def totals() -> Iterator[Totals]:
    """Open a place to add counts up in; what does not fit in memory is on the disk."""
    # An empty name is a temporary file of SQLite's own, which nobody else sees and
    # which is gone when it is closed.
    with closing(sqlite3.connect("")) as database:
        database.execute("CREATE TABLE counts (name, commands INTEGER, bytes INTEGER)")
        yield Totals(database)
