"""The commands of a stream that give something an expiry, with another one.

What an expiry is changed to, Ttls say (kvtape.tape.ttls). Relative ones have been made
absolute before. Of the expiries before the point some are kept where others are
dropped; so what would have given an expiry that is dropped takes away one that may be
there: PEXPIREAT becomes PERSIST, and SET has no option any more, which clears it, too.

Conditions (NX, XX, GT, LT) are asked of expiries that have all moved alike, so a shift
leaves them. Where expiries are dropped they would be asked of what is not there. But of
a single key or field it is known that they held: the command was streamed. Of several
fields at once it is known of one of them at least.

- NX, LT: what had no expiry, or a later one, gets one that is dropped: nothing to do.
- XX, GT: what had an expiry, or an earlier one, gets one that is dropped: so does what
  still has one, as all that are kept are earlier.
- With an expiry that is kept, GT and LT hold for the same fields as they did, since one
  that was dropped was later, and so is none. Of NX and XX nobody can tell.

A field on Redis that has lapsed by now cannot be persisted (kvtape.tape.field_ttl). It
comes back with a time far ahead, so it is first given that, as it was given one then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from kvtape.tape import command_table
from kvtape.tape.command_table import Kind
from kvtape.tape.field_ttl import FAR, Command, fields_at
from kvtape.tape.rdb.rewriting import rewrite_payload
from kvtape.tape.ttls import InexactError, Ttls

_Rule: TypeAlias = Callable[[Command, Ttls], Sequence[Command]]

_UNITS: Final = {b"EXAT": 1000, b"PXAT": 1}

# Redis 8.8 has it, and it was not tried how it is streamed.
_NOT_TRIED: Final = b"INCREX"


def change(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Return what to pass on instead of a command; mostly it is the same.

    InexactError, to follow the name of its key, if that cannot be told; ValueError or
    IndexError if no server would send it.
    """
    rule = _RULES.get(words[0].upper())
    return [words] if rule is None else rule(words, ttls)


def is_opaque(name: bytes) -> bool:
    """Whether nobody knows what commands of a name, in upper case, do to expiries."""
    commands = command_table.named(name)
    is_script = any(command.kind is Kind.SCRIPTS for command in commands)
    return is_script or not commands or name == _NOT_TRIED


def _with_option(
    words: Command, start: int, end: int | None, of: Callable[[int], int | None]
) -> tuple[Command, bool]:
    """Return a command with the time of an option between two words changed.

    And whether the option was dropped.
    """
    for at in range(start, (len(words) if end is None else end) - 1):
        if unit := _UNITS.get(words[at].upper()):
            time = of(int(words[at + 1]) * unit)
            if time is None:
                return [*words[:at], *words[at + 2 :]], True
            return [*words[:at], b"PXAT", b"%d" % time, *words[at + 2 :]], False
    return words, False


def _set(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Change SET key value options."""
    return [_with_option(words, 3, None, ttls.of_key)[0]]


def _set_several(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Change MSETEX n (key value)… options."""
    return [_with_option(words, 2 + 2 * int(words[1]), None, ttls.of_key)[0]]


def _get(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Change GETEX key options."""
    changed, is_dropped = _with_option(words, 2, None, ttls.of_key)
    return [[b"PERSIST", words[1]] if is_dropped else changed]


def _set_fields(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Change HSETEX key options FIELDS n (field value)…."""
    return [_with_option(words, 2, fields_at(words), ttls.of_field)[0]]


def _get_fields(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Change HGETEX key options FIELDS n field…."""
    at = fields_at(words)
    changed, is_dropped = _with_option(words, 2, at, ttls.of_field)
    return _without_expiry(words[1], words[at:]) if is_dropped else [changed]


def _expire(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Change EXPIREAT key s …, PEXPIREAT key ms …."""
    unit = 1 if words[0][:1] in b"Pp" else 1000
    time = ttls.of_key(int(words[2]) * unit)
    if time is None:
        return [[b"PERSIST", words[1]]]
    options = [] if ttls.shift is None else words[3:]
    return [[b"PEXPIREAT", words[1], b"%d" % time, *options]]


def _expire_fields(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Change HEXPIREAT key s …, HPEXPIREAT key ms …."""
    unit = 1 if words[0][1:2] in b"Pp" else 1000
    time = ttls.of_field(int(words[2]) * unit)
    at = fields_at(words)
    options = [word.upper() for word in words[3:at]]
    if ttls.shift is None and int(words[at + 1]) == 1:
        options = []
    if time is None:
        return _drop_fields(words[1], options, words[at:])
    if ttls.shift is None and not ttls.is_lenient and {b"NX", b"XX"} & {*options}:
        raise InexactError(
            "has fields given an expiry on a condition (NX or XX) of which one cannot "
            "tell whether it held for each of them"
        )
    return [[b"HPEXPIREAT", words[1], b"%d" % time, *options, *words[at:]]]


def _drop_fields(
    key: bytes, options: Sequence[bytes], fields: Command
) -> Sequence[Command]:
    if b"NX" in options or b"LT" in options:
        return []
    if b"XX" in options or b"GT" in options:
        return [[b"HPERSIST", key, *fields]]
    return _without_expiry(key, fields)


def _without_expiry(key: bytes, fields: Command) -> Sequence[Command]:
    return [
        [b"HPEXPIREAT", key, b"%d" % FAR, *fields],
        [b"HPERSIST", key, *fields],
    ]


def _restore(words: Command, ttls: Ttls) -> Sequence[Command]:
    """Change RESTORE key ms payload …."""
    time = int(words[2])
    changed = (ttls.of_key(time) or 0) if time else 0
    payload = words[3]
    try:
        payload = rewrite_payload(payload, ttls)
    except InexactError:
        if not ttls.is_lenient:
            raise
    return [[*words[:2], b"%d" % changed, payload, *words[4:]]]


_RULES: Final[Mapping[bytes, _Rule]] = {
    b"SET": _set,
    b"MSETEX": _set_several,
    b"GETEX": _get,
    b"EXPIREAT": _expire,
    b"PEXPIREAT": _expire,
    b"HSETEX": _set_fields,
    b"HGETEX": _get_fields,
    b"HEXPIREAT": _expire_fields,
    b"HPEXPIREAT": _expire_fields,
    b"RESTORE": _restore,
    b"RESTORE-ASKING": _restore,
}

NAMES: Final = frozenset(_RULES)
"""The commands that may be changed, and have to be looked at."""
