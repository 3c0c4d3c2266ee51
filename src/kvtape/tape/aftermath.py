"""What may mean something else once commands before it have never run.

A command that is undone leaves the keys that it wrote to as they were before. What was
done to those keys afterwards was done to something else then: an INCR to another
number, an LPUSH to a key of another type. That is followed from key to key where one is
renamed, copied or combined.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from kvtape.tape import command_table
from kvtape.tape.command_table import Command, Effect, Kind
from kvtape.tape.commands import RecordedCommand

_Key = tuple[int, bytes]


@dataclass(slots=True)
class Aftermath:
    """Follows a stream in which commands are undone.

    Tell it each command in order: undo() for one that is undone, and touches() for any
    other.
    """

    _is_everywhere: bool = False
    _dbs: set[int] = field(default_factory=set)
    _keys: set[_Key] = field(default_factory=set)
    _are_functions: bool = False

    def undo(self, command: RecordedCommand) -> None:
        """Take note of a command that is undone."""
        entry = command_table.find(command.words)
        if entry is None or entry.kind is Kind.SCRIPTS:
            self._is_everywhere = True
        elif entry.kind is Kind.DATABASES:
            self._undo_databases(command)
        elif entry.kind is Kind.FUNCTIONS:
            self._are_functions = True
        else:
            effects = set(Effect) - {Effect.READS}
            self._keys |= _keys(entry, command, effects)

    def _undo_databases(self, command: RecordedCommand) -> None:
        if command.name == b"FLUSHDB":
            self._dbs.add(command.db)
        elif command.name == b"SWAPDB":
            self._dbs |= _swapped(command.words)
        else:
            self._is_everywhere = True

    def touches(self, command: RecordedCommand) -> bool:
        """Whether a command may mean something else now."""
        entry = command_table.find(command.words)
        if entry is None:
            return self._is_everywhere or self._may_be_named(command)
        match entry.kind:
            case Kind.NOTHING:
                return False
            case Kind.FUNCTIONS:
                return self._is_everywhere or self._are_functions
            case Kind.DATABASES:
                return self._touches_databases(command) or self._is_everywhere
            case Kind.SCRIPTS:
                may = self._is_everywhere or self._are_functions
                return self._touches_keys(entry, command) or may
            case Kind.KEYS:
                return self._touches_keys(entry, command) or self._is_everywhere

    def _may_be_named(self, command: RecordedCommand) -> bool:
        """Whether one of the words of an unknown command would be such a key."""
        words = command.words[1:]
        return command.db in self._dbs or self._has({(command.db, w) for w in words})

    def _touches_databases(self, command: RecordedCommand) -> bool:
        is_touched = bool(self._dbs or self._keys)
        if command.name == b"SWAPDB":
            dbs = _swapped(command.words)
            if dbs & self._dbs:
                self._dbs |= dbs
            here = {(db, key) for db, key in self._keys if db in dbs}
            self._keys |= {(db, key) for _, key in here for db in dbs}
        return is_touched

    def _touches_keys(self, entry: Command, command: RecordedCommand) -> bool:
        if not self._has(_keys(entry, command, [*Effect])):
            return False
        sources = {Effect.READS, Effect.DELETES, Effect.CHANGES}
        if self._has(_keys(entry, command, sources)):
            self._keys |= _keys(entry, command, {Effect.CREATES})
        return True

    def _has(self, keys: Collection[_Key]) -> bool:
        return any(key in self._keys or key[0] in self._dbs for key in keys)


def _keys(
    entry: Command, command: RecordedCommand, effects: Collection[Effect]
) -> set[_Key]:
    return {
        (command.db if use.db is None else use.db, command.words[use.at])
        for use in entry.keys(command.words)
        if use.effect in effects
    }


def _swapped(words: Sequence[bytes]) -> set[int]:
    return {int(word) for word in words[1:3]}
