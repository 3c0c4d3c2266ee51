"""Which commands of a stream are replayed, and how they are changed for that.

The stream goes to a server that others may use, through a connection like theirs. So
what speaks to replicas is left out, PUBLISH is unless it is asked for, and expiries are
moved (kvtape.replay.moving). MULTI and EXEC are left out, too, since what is sent is
within a MULTI of our own (kvtape.replay.line); so what was one transaction still is.

With patterns, names of keys or databases, the target holds a part of what the recorded
server held, and what is sent must do to this part what was done to it then. A command
with keys of both kinds is cut down to what it does here (DEL, MSET, RENAME out of it).
Where that would take a value that is not here (RENAME into it, SUNIONSTORE of others),
or nobody knows which words are keys (a module's command, a script), it cannot be told;
that is said of each, and never guessed at. FLUSHALL, FLUSHDB and SWAPDB are passed on,
since to this part they do what they did to all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtape.errors import Error, PointError, ProtocolError, UsageError
from kvtape.replay import client_form
from kvtape.replay.moving import NAMES as EXPIRIES
from kvtape.replay.moving import moved
from kvtape.replication.tracker import NO_DB
from kvtape.tape import command_table
from kvtape.tape.command_table import Command, Effect, KeyUse, Kind
from kvtape.tape.commands import Words
from kvtape.tape.glob import Glob

Edited = Sequence[Sequence[bytes | int]]

# What is never sent, and is the same in any database.
LEFT_OUT = frozenset({b"MULTI", b"EXEC", b"PING", b"REPLCONF", b"CLUSTER"})
_MESSAGES = frozenset({b"PUBLISH", b"SPUBLISH"})
_TRIM = b"TRIMSLOTS"
_ALWAYS = LEFT_OUT | _MESSAGES | {b"SELECT", b"SWAPDB", _TRIM}

# Of those that may have to be changed: with fewer words they have no such options.
_LEAST_WORDS = {**dict.fromkeys(EXPIRIES, 1), b"SET": 4, **client_form.LEAST_WORDS}

# What takes from one key what it gives to another: what is left of it if the other is
# not replayed.
_TAKES: dict[bytes, Callable[[Sequence[bytes]], list[bytes]]] = {
    b"LMOVE": lambda words: [words[3][:1] + b"POP", words[1]],
    b"RPOPLPUSH": lambda words: [b"RPOP", words[1]],
    b"SMOVE": lambda words: [b"SREM", words[1], words[3]],
}
_PAIRS = {b"MSET": 1, b"MSETNX": 1, b"MSETEX": 2}


class UntoldError(Error):
    """What a command does to what is replayed cannot be told; why not, as a kind."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is replayed, and under which names; by itself, all as it is.

    Commands of which each of these is true: one of their keys matches one of globs,
    their name is one of names (in upper case), they are in one of dbs; what is empty
    does not matter. prefixes are those of keys, old and new; db_map are databases.
    """

    globs: tuple[Glob, ...] = ()
    names: frozenset[bytes] = frozenset()
    dbs: frozenset[int] = frozenset()
    publish: bool = False
    prefixes: tuple[tuple[bytes, bytes], ...] = ()
    db_map: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for what, pairs in (("prefix", self.prefixes), ("database", self.db_map)):
            old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            if len(set(old)) != len(old) or len(set(new)) != len(new):
                raise UsageError(
                    f"each {what} can be mapped once, and to one that no other is "
                    "mapped to"
                )

    @property
    def has_all_keys(self) -> bool:
        """Whether keys are what they were, so that nobody has to know them."""
        return not self.globs and not self.prefixes

    @property
    def has_all(self) -> bool:
        """Whether all is replayed, as it is."""
        return self.has_all_keys and not (self.names or self.dbs or self.db_map)

    def wants(self, key: bytes, db: int) -> bool:
        """Whether a key of a database is replayed."""
        if self.dbs and db not in self.dbs:
            return False
        return not self.globs or any(glob.matches(key) for glob in self.globs)

    def renamed(self, key: bytes) -> bytes:
        """Return what a key is called; of several prefixes, the longest counts."""
        fitting = [pair for pair in self.prefixes if key.startswith(pair[0])]
        if not fitting:
            return key
        old, new = max(fitting, key=lambda pair: len(pair[0]))
        return new + key.removeprefix(old)

    def db_for(self, db: int) -> int:
        """Return the database that takes the place of one; UsageError if two do."""
        mapping = dict(self.db_map)
        if db not in mapping and db in mapping.values():
            (other,) = (old for old, new in self.db_map if new == db)
            raise UsageError(
                f"the databases {other} and {db} of the recording would both become "
                f"{db}: map {db}, too, or leave it out by --db"
            )
        return mapping.get(db, db)

    def least_words(self, name: bytes) -> int | None:
        """Return with how many words a command of a name needs a look; None is never.

        With fewer there is certainly nothing to change.
        """
        name = name.upper()
        if name in _ALWAYS or not self.has_all or name in self.names:
            return 1
        return _LEAST_WORDS.get(name)

    def edit(
        self, words: Words, db: int, time: int, moment: int, start: int
    ) -> Edited | None:
        """Return what is sent instead of a command; None if it is fine as it is.

        db is the database that was selected, time (ms) when it was received, moment
        when it is replayed, and start its offset. UntoldError where it cannot be told.
        """
        name = words[0].upper()
        if name == _TRIM:
            raise PointError(
                "the stream deletes the keys of whole slots (TRIMSLOTS), which only a "
                f"cluster node can repeat; what can be replayed ends at offset {start}"
            )
        if name == b"SELECT":
            return self._select(int(words[1]))
        if not self._asks_for(name):
            return ()
        try:
            if name in EXPIRIES and self.has_all:
                return self._moved(words, None, time, moment)
            return self._edit(name, words, db, time, moment)
        except (ProtocolError, ValueError, IndexError):
            raise UntoldError("a command that no server would carry out") from None

    def _select(self, db: int) -> Edited | None:
        if self.dbs and db not in self.dbs:
            return ()
        return ((b"SELECT", self.db_for(db)),) if self.db_map else None

    def _asks_for(self, name: bytes) -> bool:
        if name in LEFT_OUT:
            return False
        if name in _MESSAGES:
            return self.publish or name in self.names
        return not self.names or name in self.names

    def _edit(
        self, name: bytes, words: Words, db: int, time: int, moment: int
    ) -> Edited | None:
        entry = command_table.find(words)
        chosen: Edited | None = None
        if entry is None or entry.kind is Kind.SCRIPTS:
            if not self.has_all_keys:
                what = "a command of which it is not known which words are keys"
                raise UntoldError(what if entry is None else "a script")
            return () if self.dbs and db not in self.dbs else None
        if entry.kind is Kind.DATABASES:
            return self._databases(name, words, db)
        if entry.kind is Kind.KEYS:
            chosen = self._choose(name, words, entry, db)
        elif self.globs and entry.kind is Kind.FUNCTIONS:
            return ()
        return self._moved(words, chosen, time, moment)

    def _moved(
        self, words: Words, chosen: Edited | None, time: int, moment: int
    ) -> Edited | None:
        if chosen is None:
            whole = moved(words, time, moment) or client_form.client_form(words)
            return None if whole is None else (whole,)
        # What was chosen has only words of the stream, and numbers of databases.
        each = [[_as_bytes(word) for word in command] for command in chosen]
        return [
            moved(command, time, moment) or client_form.client_form(command) or command
            for command in each
        ]

    def _choose(
        self, name: bytes, words: Words, entry: Command, db: int
    ) -> Edited | None:
        """Return what of a command concerns what is replayed, under its names."""
        if self.has_all_keys and not self.dbs and not self.db_map:
            return None
        if name == b"SORT" and not self.has_all_keys and _looks_elsewhere(words):
            raise UntoldError("SORT by what other keys hold")
        uses = entry.keys(words)
        wanted = [use for use in uses if self.wants(words[use.at], _db_of(use, db))]
        if not wanted:
            return ()
        if len(wanted) == len(uses):
            return self._named_anew(name, words, uses)
        left = self._cut_down(name, words, uses, wanted)
        found = command_table.find(left) if left else None
        if found is None:
            return ()
        return self._named_anew(left[0], left, found.keys(left)) or (left,)

    def _named_anew(
        self, name: bytes, words: Sequence[bytes], uses: Sequence[KeyUse]
    ) -> Edited | None:
        """Return the command with the names that its keys and databases have."""
        new: list[bytes | int] = list(words)
        for use in uses:
            new[use.at] = self.renamed(words[use.at])
        if self.db_map and name == b"MOVE":
            new[2] = self.db_for(int(words[2]))
        if self.db_map and name == b"COPY":
            for at in range(3, len(words) - 1):
                if words[at].upper() == b"DB":
                    new[at + 1] = self.db_for(int(words[at + 1]))
        return None if new == list(words) else (new,)

    def _cut_down(
        self,
        name: bytes,
        words: Words,
        uses: Sequence[KeyUse],
        wanted: Sequence[KeyUse],
    ) -> list[bytes]:
        """Return what is left of a command of which not all keys are replayed."""
        if name in _PAIRS:
            return _pairs(name, words, uses, wanted)
        deleted = [words[use.at] for use in wanted if use.effect is Effect.DELETES]
        effects = {use.effect for use in wanted} - {Effect.READS}
        if name == b"PFCOUNT" or not effects:
            return []
        if effects == {Effect.DELETES}:
            return [name if name == b"UNLINK" else b"DEL", *deleted]
        if name in _TAKES and wanted[0].at == 1:
            return _TAKES[name](words)
        raise UntoldError(f"{name.decode()} with keys that are not replayed")

    def _databases(self, name: bytes, words: Words, db: int) -> Edited | None:
        if name == b"SWAPDB":
            both = [int(words[1]), int(words[2])]
            here = [one for one in both if not self.dbs or one in self.dbs]
            if len(here) == 1:
                raise UntoldError("SWAPDB with a database that is not replayed")
            if not here or not self.db_map:
                return None if here else ()
            return ((b"SWAPDB", *map(self.db_for, both)),)
        if name == b"FLUSHALL" and self.dbs:
            flushes: list[tuple[bytes | int, ...]] = []
            for one in sorted(self.dbs):
                flushes += [
                    (b"SELECT", self.db_for(one)),
                    (b"FLUSHDB", *words[1:]),
                ]
            back = [(b"SELECT", self.db_for(db))] if db in self.dbs else []
            return [*flushes, *back]
        return () if self.dbs and db not in self.dbs else None


def _db_of(use: KeyUse, db: int) -> int:
    return db if use.db is None else use.db


def _as_bytes(word: bytes | int) -> bytes:
    return word if isinstance(word, bytes) else b"%d" % word


def _looks_elsewhere(words: Words) -> bool:
    """Whether SORT names keys by a pattern."""
    options = {word.upper() for word in words[2:]}
    return not options.isdisjoint({b"BY", b"GET"})


def _pairs(
    name: bytes, words: Words, uses: Sequence[KeyUse], wanted: Sequence[KeyUse]
) -> list[bytes]:
    """Return MSET and the like with some of its keys and their values."""
    pairs = [word for use in wanted for word in words[use.at : use.at + 2]]
    if name != b"MSETEX":
        return [name, *pairs]
    return [name, b"%d" % len(wanted), *pairs, *words[uses[-1].at + 2 :]]


def must_be_known(db: int, start: int) -> int:
    """Return the database selected at an offset; PointError if it is not known."""
    if db == NO_DB:
        raise PointError(
            f"which database is selected at offset {start} is not recorded; begin at "
            "another, or with --with-snapshot"
        )
    return db
