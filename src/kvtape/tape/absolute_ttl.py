"""Expiries that count from now, made absolute by the time of receipt.

They are in SET PX, EXPIRE, RESTORE without ABSTTL and the like, and all that Redis 6.2
sends; Redis 7 and later send absolute ones themselves. Whoever passes a command on at
another time than it was received needs that done first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from kvtape.tape.field_ttl import Command

# Given the time of receipt (ms), returns the command to pass on; None if it is fine.
_Rule: TypeAlias = Callable[[Command, int], list[bytes | int] | None]


def absolute(words: Command, time: int) -> Command:
    """Return a command with its expiry as a time; mostly it is the same.

    time is when it was received, in ms. ValueError or IndexError if no server would
    send it.
    """
    rule = _RULES.get(words[0].upper())
    changed = rule and rule(words, time)
    if not changed:
        return words
    return [word if isinstance(word, bytes) else b"%d" % word for word in changed]


_RELATIVE_MS: Final = {b"EX": 1000, b"PX": 1}


def _absolute(number: bytes, unit_ms: int, time: int) -> int:
    return int(number) * unit_ms + time


def _set(command: Command, time: int) -> list[bytes | int] | None:
    """Change SET key value … EX s | PX ms …."""
    words: list[bytes | int] = list(command)
    for index, word in enumerate(command[3:-1], 3):
        if unit := _RELATIVE_MS.get(word.upper()):
            words[index] = b"PXAT"
            words[index + 1] = _absolute(command[index + 1], unit, time)
            return words
    return None


def _setex(command: Command, time: int) -> list[bytes | int]:
    """Change SETEX key s value, PSETEX key ms value."""
    _, key, number, value = command
    unit = 1 if command[0][:1] in b"Pp" else 1000
    return [b"SET", key, value, b"PXAT", _absolute(number, unit, time)]


def _expire(command: Command, time: int) -> list[bytes | int]:
    """Change EXPIRE key s …, PEXPIRE key ms …."""
    unit = 1 if command[0][:1] in b"Pp" else 1000
    when = _absolute(command[2], unit, time)
    return [b"PEXPIREAT", command[1], when, *command[3:]]


def _expire_fields(command: Command, time: int) -> list[bytes | int]:
    """Change HEXPIRE key s …, HPEXPIRE key ms …."""
    unit = 1 if command[0][1:2] in b"Pp" else 1000
    when = _absolute(command[2], unit, time)
    return [b"HPEXPIREAT", command[1], when, *command[3:]]


def _msetex(command: Command, time: int) -> list[bytes | int] | None:
    """Change MSETEX n (key value)… EX s | PX ms …."""
    words: list[bytes | int] = list(command)
    for index, word in enumerate(command[:-1]):
        unit = _RELATIVE_MS.get(word.upper())
        if unit and index >= 2 + 2 * int(command[1]):
            words[index] = b"PXAT"
            words[index + 1] = _absolute(command[index + 1], unit, time)
            return words
    return None


def _getex(command: Command, time: int) -> list[bytes | int] | None:
    """Change GETEX key EX s, and HGETEX and HSETEX key … EX s FIELDS …."""
    words: list[bytes | int] = list(command)
    for index, word in enumerate(command[2:-1], 2):
        if word.upper() == b"FIELDS":
            return None  # what follows are fields, which may have any name
        if unit := _RELATIVE_MS.get(word.upper()):
            words[index] = b"PXAT"
            words[index + 1] = _absolute(command[index + 1], unit, time)
            return words
    return None


def _restore(command: Command, time: int) -> list[bytes | int] | None:
    """Change RESTORE key ms payload [REPLACE] …."""
    options = {word.upper() for word in command[4:]}
    if b"ABSTTL" in options or int(command[2]) == 0:
        return None
    when = _absolute(command[2], 1, time)
    return [*command[:2], when, *command[3:], b"ABSTTL"]


_RULES: Final[Mapping[bytes, _Rule]] = {
    b"SET": _set,
    b"SETEX": _setex,
    b"PSETEX": _setex,
    b"MSETEX": _msetex,
    b"EXPIRE": _expire,
    b"PEXPIRE": _expire,
    b"GETEX": _getex,
    b"HEXPIRE": _expire_fields,
    b"HPEXPIRE": _expire_fields,
    b"HGETEX": _getex,
    b"HSETEX": _getex,
    b"RESTORE": _restore,
    b"RESTORE-ASKING": _restore,
}

NAMES: Final = frozenset(_RULES)
"""The commands that may be changed, and have to be looked at."""
