"""Patterns of keys, as KEYS and SCAN take them, and where to look for their matches.

The rules are the servers' (util.c:stringmatchlen): `*`, `?`, `[abc]`, `[^abc]`,
`[a-z]`, and a backslash before what is meant literally. Servers take whatever they are
given, as an unclosed bracket; here that is an error, since an audit that finds nothing
must not be one that was asked wrongly.

Every pattern but one of only wildcards has a literal part. A stream that does not hold
that part holds no match, and to look for it costs a tenth of reading the commands. What
is looked for is longer than the part where the pattern begins or ends with it: a word
stands between two line ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TypeAlias

from kvtape.errors import UsageError

_CRLF = b"\r\n"
_ANY = b".*"
_BACKSLASH, _DASH = b"\\-"
_NOT_ASCII = 0x80

# One place of a pattern: the byte that must stand there, or the expression for others.
_Place: TypeAlias = int | bytes


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern.

    needle is part of any stream that holds a match, and part of any match; both may be
    empty.
    """

    pattern: bytes
    expression: re.Pattern[bytes]
    needle: bytes
    part: bytes

    def matches(self, key: bytes) -> bool:
        """Whether a key is one of those that the pattern means."""
        # Most keys lack the literal part, and an expression takes five times as long.
        return self.part in key and self.expression.fullmatch(key) is not None


def parse_glob(pattern: bytes) -> Glob:
    """Read a pattern; UsageError for what is none."""
    places = _places(pattern)
    literal = bytes(place for place in places if isinstance(place, int))
    if len(literal) == len(places):
        return replace(exactly(literal), pattern=pattern)
    runs = _runs(places)
    framed = [_CRLF + runs[0], *runs[1:-1], runs[-1] + _CRLF]
    # Line ends alone are everywhere.
    needle = max((run for run in framed if run != _CRLF), key=len, default=b"")
    # What keys begin with they have in common, mostly.
    part = max(runs[1:], key=len) or runs[0]
    return Glob(pattern, _expression(places), needle, part)


def exactly(key: bytes) -> Glob:
    """Return the pattern of one key and no other."""
    framed = b"$%d\r\n%s\r\n" % (len(key), key)
    return Glob(key, re.compile(re.escape(key), re.DOTALL), framed, key)


def _expression(places: list[_Place]) -> re.Pattern[bytes]:
    """Return the expression; its time is proportional to the key, whatever it is."""
    runs = [b""]
    for place in places:
        if place == _ANY:
            runs.append(b"")
        else:
            runs[-1] += re.escape(bytes([place])) if isinstance(place, int) else place
    first, *others = runs
    if not others:
        return re.compile(first, re.DOTALL)
    *between, last = others
    if len(between) == 1 and not last:
        # Twice as fast, and what is most asked for: *part*.
        return re.compile(first + _ANY + between[0] + _ANY, re.DOTALL)
    # Of what stands between two stars the first place found is as good as any later
    # one, so there is no need to come back to it.
    middle = b"".join(b"(?>.*?%s)" % run for run in between)
    return re.compile(first + middle + _ANY + last, re.DOTALL)


def _runs(places: list[_Place]) -> list[bytes]:
    """Return the literal parts, in order: at least one more than there are others."""
    runs = [b""]
    for place in places:
        if isinstance(place, int):
            runs[-1] += bytes([place])
        else:
            runs.append(b"")
    return runs


def _places(pattern: bytes) -> list[_Place]:
    places: list[_Place] = []
    at = 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        if byte == b"*":
            if places[-1:] != [_ANY]:
                places.append(_ANY)
        elif byte == b"?":
            places.append(b".")
        elif byte == b"[":
            expression, at = _set(pattern, at)
            places.append(expression)
        else:
            if byte == b"\\":
                at += 1
                if at == len(pattern):
                    raise _no_glob(pattern, "it ends with a backslash")
            places.append(pattern[at])
        at += 1
    return places


def _set(pattern: bytes, at: int) -> tuple[bytes, int]:
    """Return the expression for the bracket that opens there, and where it closes."""
    begin = at + 1
    is_negated = pattern[begin : begin + 1] == b"^"
    members: list[tuple[int, int]] = []
    at = begin + is_negated
    while pattern[at : at + 1] != b"]":
        pair, at = _members(pattern, at)
        members.append(pair)
    ranges = b"".join(b"\\x%02x-\\x%02x" % pair for pair in members)
    if not ranges:
        return (b"." if is_negated else b"(?!)"), at
    return b"[%s%s]" % (b"^" if is_negated else b"", ranges), at


def _members(pattern: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return the range that begins there in a bracket, and what comes behind it.

    As to the servers, what stands behind a dash is always its other end, a closing
    bracket and a backslash, too; and what a backslash stands before begins no range.
    """
    first, *rest = pattern[at : at + 3] or b"["
    if first == _BACKSLASH and rest:
        return (rest[0], rest[0]), at + 2
    if len(rest) > 1 and rest[0] == _DASH:
        low, high = sorted((first, rest[1]))
        if low < _NOT_ASCII <= high:
            # Whether chars have a sign decides what lies between, which machines do.
            raise _no_glob(pattern, "a range of other bytes than ASCII begins in it")
        return (low, high), at + 3
    if not rest:
        raise _no_glob(pattern, "a bracket is not closed")
    return (first, first), at + 1


def _no_glob(pattern: bytes, why: str) -> UsageError:
    shown = pattern.decode(errors="backslashreplace")
    return UsageError(
        f"{shown!r} is no pattern of keys: {why}; put a backslash before what is meant "
        "literally"
    )
