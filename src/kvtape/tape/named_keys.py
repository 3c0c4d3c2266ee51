"""Which keys the commands of a segment name: what its filter is made of.

Frames go in, in order, and the filter comes out. Nothing is kept of the commands but
the hashes of their keys. Most commands of a stream are of a few kinds that name one
key, always as the same word, and nothing in Python runs for each of those.

What cannot be read makes the filter say of every key that the segment may name it: a
frame whose commands could not be followed, a command that is not in the table, a script
(which may write to other keys than it names), and a command so long that reading it
would take more memory than is to be spent on a filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

import hiredis

from kvtape.errors import ProtocolError
from kvtape.replication.resp import PIECE
from kvtape.tape.command_table import Kind, find
from kvtape.tape.key_filter import KeySet
from kvtape.tape.names import SegmentName
from kvtape.tape.segment import Facts

# A longer command is not read. It has to be in memory as a whole, twice for a moment.
_LONGEST = 16 * 1024 * 1024

_name = itemgetter(0)


class SegmentKeys:
    """Reads the commands of one segment, from its start. Feed it every frame."""

    def __init__(self) -> None:
        self._keys = KeySet()
        self._reader = hiredis.Reader()
        self._unread = 0  # bytes since the last whole command
        self._commands = 0
        # By the names as they come: where the only key is.
        self._places: dict[bytes, int] = {}
        self._keyless: set[bytes] = set()
        self._others: set[bytes] = set()

    @property
    def is_vague(self) -> bool:
        """Whether the filter will tell nothing; what follows need not be read."""
        return self._keys.is_vague

    def feed(self, facts: Facts, data: bytes) -> None:
        """Read the stream bytes of the next frame."""
        if facts.summary.lost:
            self._keys.is_vague = True
        # Whole commands are summed up where they end.
        self._commands -= facts.summary.commands
        for position in range(0, len(data), PIECE):
            if self.is_vague:
                return
            self._read(data[position : position + PIECE])

    def filter(self, segment: SegmentName) -> bytes:
        """Return the filter of the segment, of which all frames were fed."""
        if self._unread or self._commands:
            self._keys.is_vague = True
        return self._keys.filter(segment)

    def _read(self, piece: bytes) -> None:
        try:
            self._reader.feed(piece)
            commands = list(iter(self._reader.gets, False))
            if commands:
                self._unread = 0
                self._take(commands)
        # What the facts call commands is none: a reply, or something without words, or
        # more of them than there is memory for.
        except (
            *(hiredis.ProtocolError, ProtocolError),
            *(TypeError, IndexError, MemoryError),
        ):
            self._keys.is_vague = True
            return
        self._unread = len(piece) + self._unread if self._reader.has_data() else 0
        if self._unread > _LONGEST:
            self._keys.is_vague = True

    def _take(self, commands: Sequence[Sequence[bytes]]) -> None:
        self._commands += len(commands)
        names = set(map(_name, commands))
        if {bytes} != set(map(type, names)):
            raise TypeError("a number where a command should be")
        self._learn(names, commands)
        for place in {self._places[name] for name in names & self._places.keys()}:
            alike = {name for name in names if self._places.get(name) == place}
            of_these = commands
            if len(alike) < len(names):
                of_these = [command for command in commands if command[0] in alike]
            self._keys.add(map(itemgetter(place), of_these))
        if others := names & self._others:
            each = [command for command in commands if command[0] in others]
            self._keys.add(self._keys_of(each))

    def _learn(self, names: set[bytes], commands: Sequence[Sequence[bytes]]) -> None:
        """Find out which words are keys of commands whose names are new."""
        for name in names - self._places.keys() - self._others - self._keyless:
            words = next(command for command in commands if command[0] == name)
            command = find(words)
            if command is None or " " in command.name:
                self._others.add(name)
            elif command.only_key_at is not None:
                self._places[name] = command.only_key_at
            elif command.kind is Kind.NOTHING and not command.keys(words):
                self._keyless.add(name)
            else:
                self._others.add(name)

    def _keys_of(self, commands: Iterable[Sequence[bytes]]) -> Iterator[bytes]:
        """Yield the keys of commands, which may have none, or several."""
        for words in commands:
            command = find(words)
            if command is None or command.kind is Kind.SCRIPTS:
                self._keys.is_vague = True
                return
            if command.kind is Kind.DATABASES:
                self._keys.touches_all = True
            for use in command.keys(words):
                yield words[use.at]
