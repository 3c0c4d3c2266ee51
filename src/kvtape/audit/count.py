"""Counting commands and their bytes: by name, by key, by prefix, by minute.

The bytes of all that is counted add up to those of the commands, each once. Of a
command with several keys in different groups each group has its share.

Prefixes and minutes are few, and so are names; keys may be as many as the server has.
So counts are put into a database on the disk when they are more than fit, and memory
stays flat.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from kvtape.errors import RepositoryError
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.query import keys_of

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
    """Counts commands by what they have in common.

    A prefix ends before the depth-th separator of a key, or is all of it.
    """

    by: By
    separator: bytes = b":"
    depth: int = 1

    def __call__(self, commands: Sequence[RecordedCommand]) -> list[Count]:
        """Return the counts of some commands."""
        counts: Counter[Group] = Counter()
        sizes: Counter[Group] = Counter()
        groups_of = self._groups_of()
        for command in commands:
            groups = groups_of(command)
            share, rest = divmod(command.end - command.start, len(groups))
            for group in groups:
                counts[group] += 1
                sizes[group] += share
            sizes[groups[0]] += rest
        return [Count(group, count, sizes[group]) for group, count in counts.items()]

    def _groups_of(self) -> Callable[[RecordedCommand], Sequence[Group]]:
        if self.by == "command":
            return lambda command: (command.words[0].upper(),)
        if self.by == "minute":
            return lambda command: (command.time // _MINUTE_MS * _MINUTE_MS,)
        return _keys if self.by == "key" else self._prefixes

    def _prefixes(self, command: RecordedCommand) -> Sequence[Group]:
        return list(dict.fromkeys(map(self._prefix, _keys(command))))

    def _prefix(self, key: Group) -> Group:
        if not isinstance(key, bytes):
            return key
        return self.separator.join(key.split(self.separator)[: self.depth])


def _keys(command: RecordedCommand) -> Sequence[Group]:
    return list(dict.fromkeys(keys_of(command.words) or ())) or [NO_KEY]


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
        order = "name" if by == "minute" else "bytes DESC, commands DESC, name"
        rows = self._database.execute(
            f"SELECT name, commands, bytes FROM counts ORDER BY {order} LIMIT ?",
            (-1 if limit is None else limit,),
        )
        yield from (Count(*row) for row in rows)

    def _put_away(self) -> None:
        rows = [
            (group, count, self._sizes[group]) for group, count in self._counts.items()
        ]
        try:
            with self._database:
                # Of a key, SQLite takes any number of nulls for different ones.
                self._database.executemany(
                    "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT (ifnull(name, -1))"
                    " DO UPDATE SET commands = commands + excluded.commands, "
                    "bytes = bytes + excluded.bytes",
                    rows,
                )
        except sqlite3.Error as error:
            raise RepositoryError(
                f"cannot keep the counts in a temporary file: {error}; TMPDIR says "
                "which disk it is on"
            ) from None
        self._counts.clear()
        self._sizes.clear()


@contextmanager
def totals() -> Iterator[Totals]:
    """Open a place to add counts up in; what does not fit in memory is on the disk."""
    # An empty name is a temporary file of SQLite's own, which nobody else sees and
    # which is gone when it is closed.
    with closing(sqlite3.connect("")) as database:
        database.execute("CREATE TABLE counts (name, commands INTEGER, bytes INTEGER)")
        database.execute("CREATE UNIQUE INDEX by_name ON counts (ifnull(name, -1))")
        yield Totals(database)
