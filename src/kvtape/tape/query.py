"""Which commands an audit is asked for, and how they are found among millions.

What is known without reading is asked first (the facts of a frame name its commands),
then the raw bytes (they must hold the literal part of a pattern), and only what is left
is parsed. A command that is not known, as one of a module, is never guessed at: it is
found, and marked, wherever one of its words would be a key that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stringzilla import find as find_bytes

from kvtape.errors import ProtocolError
from kvtape.replication.tracker import NO_DB
from kvtape.tape import command_table
from kvtape.tape.command_table import Kind
from kvtape.tape.commands import Batch, RecordedCommand, Words, name_of, numbers_of
from kvtape.tape.facts import Facts
from kvtape.tape.glob import Glob, exactly

# Whether a command is one of those that are asked for.
_Test = Callable[[Words], bool]

# More names than these take longer to look for than parsing does.
_MANY_NAMES = 16

PUBLISH = frozenset({b"PUBLISH", b"SPUBLISH"})


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for: commands of which each of these is true.

    One of its keys matches one of globs; its name is one of names, in upper case; it is
    in one of dbs. Where one of them is empty, it does not matter. It is a write, or not
    known; with messages, PUBLISH and SPUBLISH are found, too, as they are when their
    names are asked for.
    """

    globs: tuple[Glob, ...] = ()
    names: frozenset[bytes] = frozenset()
    dbs: frozenset[int] = frozenset()
    messages: bool = False

    def wants(self, facts: Sequence[Facts], db: int) -> bool:
        """Whether frames may hold any of it; db is the one selected before them."""
        if any(frame.summary.lost for frame in facts):
            return True
        found = {name for frame in facts for name in frame.summary.names}
        if self.dbs and db not in self.dbs and db != NO_DB and b"SELECT" not in found:
            return False
        return any(map(self._may_ask_for, found))

    def find(self, batch: Batch) -> Iterator[RecordedCommand]:
        """Yield the commands of a batch that are asked for, in order."""
        if not self._may_be_in(batch.data):
            return
        commands = batch.parsed()
        for command in batch.located(commands, self._wanted(commands)):
            if not self.dbs or command.db in self.dbs:
                yield command

    def find_words(self, batch: Batch) -> Iterator[tuple[Words, int, int]]:
        """Yield the words of the same commands, their length and when they came (ms).

        It is for who looks at very many, and costs a third.
        """
        if self.dbs:
            for command in self.find(batch):
                yield list(command.words), command.end - command.start, command.time
        elif self._may_be_in(batch.data):
            commands = batch.parsed()
            wanted = self._wanted(commands)
            for number, (size, time) in zip(
                wanted, batch.sizes(commands, wanted), strict=True
            ):
                yield commands[number], size, time

    def asks_for(self, command: RecordedCommand) -> bool:
        """Whether a command by itself is asked for."""
        words = list(command.words)
        is_here = not self.dbs or command.db in self.dbs
        return is_here and bool(self._wanted([words]))

    def _wanted(self, commands: Sequence[Words]) -> Sequence[int]:
        """Return the numbers of the commands that are asked for, but for databases."""
        tests = {name: self._test(name) for name in set(map(name_of, commands))}
        if all(test is None for test in tests.values()):
            return ()
        if all(test is _always for test in tests.values()):
            return range(len(commands))
        if len(self.globs) != 1:
            return _passing(commands, tests)
        try:
            return self._matching(commands, tests)
        except IndexError:  # one has fewer words than it should
            return _passing(commands, tests)

    def _matching(
        self, commands: Sequence[Words], tests: Mapping[bytes, _Test | None]
    ) -> Sequence[int]:
        """Return the same as _passing, for one pattern, and faster."""
        # What most commands are gets by without a call of Python's for each.
        ats = {
            name: test.at if isinstance(test, _OnlyKey) else 0
            for name, test in tests.items()
        }
        part, matches = self.globs[0].part, self.globs[0].expression.fullmatch
        wanted = [
            number
            for number, (words, at) in enumerate(
                zip(commands, map(ats.__getitem__, map(name_of, commands)), strict=True)
            )
            if at and part in (key := words[at]) and matches(key)
        ]
        if all(ats.values()):
            return wanted
        others = {name: None if ats[name] else test for name, test in tests.items()}
        return sorted([*wanted, *_passing(commands, others)])

    def _may_be_in(self, data: bytes) -> bool:
        """Whether the raw bytes hold what every match of a pattern has in it."""
        needles = [glob.needle for glob in self.globs]
        return not needles or any(find_bytes(data, one) >= 0 for one in needles)

    def _may_ask_for(self, name: bytes) -> bool:
        """Whether any command of a name may be asked for."""
        name = name.upper()
        if self.names and name not in self.names:
            return False
        return not _is_silent(name) or (
            name in PUBLISH and (self.messages or name in self.names)
        )

    def _test(self, name: bytes) -> _Test | None:
        """Return what a command of that name must pass; None if none can."""
        if not self._may_ask_for(name):
            return None
        entry = command_table.find([name])
        if not self.globs:
            # Of some commands with subcommands only a few write.
            return _writes if entry is None else _always
        if entry is not None and entry.only_key_at is not None:
            return _OnlyKey(entry.only_key_at, self.globs)
        return self._test_of_any

    def _test_of_any(self, words: Words) -> bool:
        keys = keys_of(words)
        words = words[1:] if keys is None else keys
        return any(glob.matches(key) for key in words for glob in self.globs)


@dataclass(frozen=True, slots=True)
class KeyQuery:
    """Finds the commands that may concern keys of some names, in any database.

    That is more than those that name them as keys: what touches keys without naming
    them, and what merely has such a word.
    """

    names: frozenset[bytes]

    def wants(self, facts: Sequence[Facts], _db: int) -> bool:
        """Whether frames may hold any of it."""
        found = {name for frame in facts for name in frame.summary.names}
        is_lost = any(frame.summary.lost for frame in facts)
        return is_lost or not all(map(_is_silent, found))

    def find(self, batch: Batch) -> Iterator[RecordedCommand]:
        """Yield the commands of a batch that may concern such keys, in order."""
        named = {name for facts in batch.facts for name in facts.summary.names}
        at_large = {name for name in named if _touches_any_key(name)}
        if not at_large and not batch.is_lost and not self._may_be_in(batch.data):
            return
        commands = batch.parsed()
        at_large = set(filter(_touches_any_key, set(map(name_of, commands))))
        wanted = [
            number
            for number, words in enumerate(commands)
            if words[0] in at_large or not self.names.isdisjoint(words)
        ]
        yield from batch.located(commands, wanted)

    def _may_be_in(self, data: bytes) -> bool:
        if len(self.names) > _MANY_NAMES:
            return True
        return any(find_bytes(data, exactly(name).needle) >= 0 for name in self.names)


@dataclass(frozen=True, slots=True)
class _OnlyKey:
    """Whether the word at a place, which is the only key, matches one of globs."""

    at: int
    globs: tuple[Glob, ...]

    def __call__(self, words: Words) -> bool:
        keys = words[self.at : self.at + 1] or words[1:]
        return any(glob.matches(key) for key in keys for glob in self.globs)


def _passing(
    commands: Sequence[Words], tests: Mapping[bytes, _Test | None]
) -> list[int]:
    """Return the numbers of the commands that pass the test of their name."""
    names = {name for name, test in tests.items() if test is not None}
    if not names:
        return []
    found = []
    for number in numbers_of(commands, names):
        test = tests[commands[number][0]]
        if test is not None and test(commands[number]):
            found.append(number)
    return found


def keys_of(words: Sequence[bytes]) -> list[bytes] | None:
    """Return the keys that a command names; None if it is not known which they are.

    That is so, too, of a command that has not the words that it should: a later release
    may take it otherwise.
    """
    entry = command_table.find(words)
    try:
        return None if entry is None else [words[use.at] for use in entry.keys(words)]
    except ProtocolError:
        return None


def is_known(words: Sequence[bytes]) -> bool:
    """Whether it is known what a command does."""
    return keys_of(words) is not None


def may_be_listed(name: bytes) -> bool:
    """Whether commands of a name are found if they are asked for: writes, messages."""
    return name in PUBLISH or not _is_silent(name)


def _is_silent(name: bytes) -> bool:
    """Whether no command of a name writes anything."""
    entry = command_table.find([name])
    return entry is not None and entry.kind is Kind.NOTHING


def _touches_any_key(name: bytes) -> bool:
    """Whether a command of a name may write to keys that it does not name."""
    kinds = {command.kind for command in command_table.named(name)}
    return not kinds.isdisjoint({Kind.DATABASES, Kind.SCRIPTS})


def _writes(words: Words) -> bool:
    entry = command_table.find(words)
    return entry is None or entry.kind is not Kind.NOTHING


def _always(_words: Words) -> bool:
    return True
