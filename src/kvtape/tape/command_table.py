"""What a command of a replication stream does to which keys.

The table has every command that writes, of Redis 6.2 to 8 and Valkey 8 to 9, and what
else a stream may hold. It is made from what those servers say of themselves
(`tools/command-table`), and has no commands of modules but VADD, VREM and VSETATTR,
which Redis 8 has built in. What it does not have is not guessed at: `find` returns
None, and a caller must take that for a command that may do anything.

Each line of `command_list` has the name, how few words it may have (the smallest number
that any release takes), the kind, and its keys, each place with the effect. A place is
one of these, counted as in Python, with the name as word 0:

    1               this word
    1:  1:-1  1::2  these words
    n2  n1/2        word 2 (1) is a number: so many of what follows are keys (each
                    second word is)
    STORE@6         what follows that word, from word 6 on; the last one counts
    KEYS@6: or 3    all that follows that word; without it, word 3
    STREAMS@1:/2    the first half of what follows it

"in 2" and "in DB@3" say in the same way where the database's number stands, if a key is
not in the selected one. "skip GET 1" says that the word behind GET is never one that is
looked for. A subcommand's name counts as part of the name, which moves no number.

Decided against: a file of data, which a layer without I/O could not read; and telling
apart what a command did from what it may have done, which only its reply says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from kvtape.errors import ProtocolError
from kvtape.tape.command_list import COMMANDS

Words: TypeAlias = Sequence[bytes]

# Returns which words are meant: none, if an option is not there.
_Find: TypeAlias = Callable[[Words], Sequence[int]]

# More digits are no number of keys; and a very long one takes Python long to read.
_MOST_DIGITS = 18


class Effect(Enum):
    """What a command that was carried out may have done to a key.

    A stream holds only commands that were carried out and changed something. Most can
    still leave a key as it was: LMPOP takes from the first list that has elements.
    """

    DELETES = "deletes"
    """Afterwards the key is not there: DEL, GETDEL, the source of RENAME."""

    CREATES = "creates"
    """It may be there where it was not, or be another one, or be changed: SET, LPUSH,
    HSET, the destination of COPY. What stores a result deletes it if there is none, and
    so does an expiry in the past."""

    CHANGES = "changes"
    """If it was there it may be changed, or be gone with its last element; if it was
    not, it is not: LPOP, EXPIRE, HDEL, XGROUP DESTROY."""

    READS = "reads"
    """It is as before: the source of COPY, those of ZUNIONSTORE."""


class Kind(Enum):
    """What a command writes to, of all that a snapshot holds."""

    KEYS = "keys"
    """Keys, and all of them are named. MOVE and COPY may write to another database."""

    DATABASES = "databases"
    """Keys that it does not name: FLUSHALL, FLUSHDB and SWAPDB, and what takes all keys
    of some slots from a node of a cluster."""

    FUNCTIONS = "functions"
    """The libraries of functions, and no key: FUNCTION LOAD."""

    SCRIPTS = "scripts"
    """What a script does to the keys that are named, and perhaps to others: EVAL. Most
    servers stream what it did instead."""

    NOTHING = "nothing"
    """Nothing: PING, SELECT, MULTI, EXEC, REPLCONF, PUBLISH."""


class KeyUse(NamedTuple):
    """A word that is a key, what is done to it, and in which database.

    db is None for the one that is selected.
    """

    at: int
    effect: Effect
    db: int | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where keys stand, what happens to them, and where their database's number is."""

    find: _Find
    effect: Effect
    find_db: _Find | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """An entry of the table.

    only_key_at is for those who look at millions: where it is not None, a command has
    exactly this one key, in the selected database, with only_effect, and keys() says
    nothing else.
    """

    name: str
    kind: Kind
    only_key_at: int | None
    only_effect: Effect | None
    _least: int = field(repr=False)
    # What keys() returns, if that is the same for all words.
    _always: tuple[KeyUse, ...] | None = field(repr=False)
    _places: tuple[_Place, ...] = field(repr=False)

    def keys(self, words: Words) -> tuple[KeyUse, ...]:
        """Return which words of such a command are keys, in the order of the table.

        The same word may come twice, as may the same key. ProtocolError if a key or a
        number is not where it should be, which no server carries out. Other faults go
        unseen, and then some of the words are returned: these are for words that a
        server has accepted.
        """
        if len(words) < self._least:
            raise ProtocolError(f"{self.name} came with {len(words)} words only")
        if self._always is not None:
            return self._always
        try:
            return tuple(_uses(words, self._places))
        except _MalformedError as error:
            raise ProtocolError(f"{self.name} came with {error}") from None


class _MalformedError(Exception):
    """What is wrong with words, to follow "came with"."""


def find(words: Words) -> Command | None:
    """Return the entry for the words of a command; None if there is none.

    Case does not matter. Of a command with subcommands the second word counts, too; all
    others are not looked at.
    """
    if not words:
        return None
    found = _COMMANDS.get(words[0])
    # Nearly all is found at once; the rest may take its time.
    return _find_otherwise(words) if found is None else found


def _find_otherwise(words: Words) -> Command | None:
    name = words[0].upper()
    subcommands = _SUBCOMMANDS.get(name)
    if subcommands is None:
        return _COMMANDS.get(name)
    return subcommands.get(words[1].upper()) if len(words) > 1 else None


def named(name: bytes) -> Sequence[Command]:
    """Return the entries of all commands of this first word, in any case."""
    upper = name.upper()
    if upper in _SUBCOMMANDS:
        return tuple(_SUBCOMMANDS[upper].values())
    command = _COMMANDS.get(upper)
    return () if command is None else (command,)


def names() -> Sequence[str]:
    """Return the names of all commands, in upper case and sorted."""
    return _NAMES


def _uses(words: Words, places: Sequence[_Place]) -> Iterator[KeyUse]:
    for place in places:
        db = None
        for at in place.find_db(words) if place.find_db else ():
            db = _number(words[at])
        for at in place.find(words):
            yield KeyUse(at, place.effect, db)


def _number(word: bytes) -> int:
    if not word.isdigit() or len(word) > _MOST_DIGITS:
        raise _MalformedError(f"{word!r:.30} where a number should be")
    return int(word)


def _one(at: int) -> _Find:
    where = range(at, at + 1)
    return lambda _words: where


def _some(start: int, stop: int | None, step: int) -> _Find:
    part = slice(start, stop, step)
    return lambda words: range(len(words))[part]


def _counted(at: int, step: int) -> _Find:
    """Find as many keys as the word there says, step words each."""

    def find(words: Words) -> Sequence[int]:
        end = at + 1 + _number(words[at]) * step
        if end > len(words):
            raise _MalformedError(f"fewer keys than the {words[at]!r:.30} it should")
        return range(at + 1, end, step)

    return find


def _option(names: Sequence[bytes], start: int, skips: Mapping[bytes, int]) -> _Find:
    """Find the word that follows the last of these options."""

    def find(words: Words) -> Sequence[int]:
        found: Sequence[int] = ()
        for at in _options(words, names, start, skips):
            if at == len(words):
                raise _MalformedError(f"nothing behind {words[-1]!r:.30}")
            found = range(at, at + 1)
        return found

    return find


def _rest(
    name: bytes, start: int, share: int, default: int | None, skips: Mapping[bytes, int]
) -> _Find:
    """Find the words that follow an option, or the first share of them."""

    def find(words: Words) -> Sequence[int]:
        for at in _options(words, [name], start, skips):
            count, odd = divmod(len(words) - at, share)
            if not count or odd:
                raise _MalformedError(f"no such number of words behind {name.decode()}")
            return range(at, at + count)
        if default is None:
            raise _MalformedError(f"no {name.decode()}")
        return range(default, default + 1)

    return find


def _options(
    words: Words, names: Sequence[bytes], start: int, skips: Mapping[bytes, int]
) -> Iterator[int]:
    """Yield what follows each of some options; it may be the end.

    What an option takes is no option: a key, or a pattern, may be called STORE.
    """
    at = start
    while at < len(words):
        option = words[at].upper()
        at += 1
        if option in names:
            yield at
            at += 1
        else:
            at += skips.get(option, 0)


_PLACE = re.compile(
    r"(?P<one>\d+)"
    r"|(?P<start>\d+):(?P<stop>-\d+)?(:(?P<step>\d+))?"
    r"|n(?P<count>\d+)(/(?P<each>\d+))?"
    r"|(?P<options>[A-Z|]+)@(?P<first>\d+)"
    r"|(?P<before>[A-Z]+)@(?P<behind>\d+):(/(?P<share>\d+))?( or (?P<default>\d+))?"
)


def _find_of(text: str, skips: Mapping[bytes, int]) -> tuple[_Find, int]:
    """Read where keys stand; and how many words that needs at least."""
    match = _PLACE.fullmatch(text)
    assert match is not None, text
    parts = match.groupdict()
    if one := parts["one"]:
        return _one(int(one)), int(one) + 1
    if start := parts["start"]:
        stop = int(parts["stop"]) if parts["stop"] else None
        return _some(int(start), stop, int(parts["step"] or 1)), 0
    if count := parts["count"]:
        return _counted(int(count), int(parts["each"] or 1)), int(count) + 1
    if options := parts["options"]:
        names = options.encode().split(b"|")
        return _option(names, int(parts["first"]), skips), 0
    default = int(parts["default"]) if parts["default"] else None
    share = int(parts["share"] or 1)
    name = parts["before"].encode()
    return _rest(name, int(parts["behind"]), share, default, skips), (default or 0) + 1


def _read(line: str) -> Command:
    """Read a line of the list."""
    name, least_words, kind, keys = (*line.split(" | "), "")[:4]
    keys, _, to_skip = keys.partition(", skip ")
    pairs = to_skip.encode().split()
    skips = dict(zip(pairs[::2], map(int, pairs[1::2]), strict=True))
    least = int(least_words)
    places: list[_Place] = []
    always: list[KeyUse] = []
    for text in keys.split(", ") if keys else ():
        where, _, db = text.partition(" in ")
        where, _, effect = where.rpartition(" ")
        find, needed = _find_of(where, skips)
        least = max(least, needed)
        find_db, needed = _find_of(db, {}) if db else (None, 0)
        least = max(least, needed)
        places.append(_Place(find, Effect(effect), find_db))
        if where.isdigit() and not db:
            always.append(KeyUse(int(where), Effect(effect)))
    is_always = len(always) == len(places)
    only = always[0] if is_always and len(always) == 1 else None
    return Command(
        name,
        Kind(kind),
        only.at if only else None,
        only.effect if only else None,
        least,
        tuple(always) if is_always else None,
        tuple(places),
    )


_ALL: Final = tuple(_read(line) for line in COMMANDS.splitlines())
_NAMES: Final = tuple(command.name for command in _ALL)

# By the names as clients write them; others are looked up by the first.
_COMMANDS: Final = {
    name: command
    for command in _ALL
    for name in (command.name.encode(), command.name.lower().encode())
    if b" " not in name
}
_SUBCOMMANDS: Final = {
    name: {
        command.name.encode().partition(b" ")[2]: command
        for command in _ALL
        if command.name.encode().startswith(name + b" ")
    }
    for name in {command.name.encode().partition(b" ")[0] for command in _ALL}
    - _COMMANDS.keys()
}
