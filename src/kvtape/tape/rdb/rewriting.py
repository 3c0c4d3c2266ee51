"""Another RDB out of one: the same but for expiries, as bytes in and bytes out.

RdbRewriter passes an RDB on while it is read, with the expiries of keys and of fields
of hashes changed as Ttls say, and a checksum of its own. All else is passed on as it
stands: it is the reader that knows where an expiry is, and only those bytes are
replaced. What comes out may be longer or shorter than what went in.

What of a file is held is what has not been dealt with: as much as the reader holds.
Of a compact hash of Redis (type 25) that is the whole value, of a large one nothing.

Fields of hashes have expiries in three types, and where all of them are dropped, Redis
gets the types without (rdb.c:rdbSaveObjectType of Redis 8.0 writes those for a hash
whose fields have none any more). Valkey writes a time for each field, and none is -1:
that it loads such a hash is tried on 9.1. The types of the release candidates of 7.4
are not changed: nobody can try that any more.

The payload of RESTORE is a value as in an RDB, with the version and a checksum behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import anycrc

from kvtape.errors import PointError
from kvtape.tape.rdb import listpack
from kvtape.tape.rdb.events import NEED_DATA, End, Event, Key, UnknownRdbError
from kvtape.tape.rdb.input import Input
from kvtape.tape.rdb.reader import CHECKSUM_SIZE, RdbReader
from kvtape.tape.rdb.strings import UnreadableError, length_of, read_string
from kvtape.tape.rdb.values import (
    Walk,
    Walker,
    next_int64,
    next_length,
    next_of,
    pass_strings,
)
from kvtape.tape.ttls import InexactError, Ttls

_CRC: Final = anycrc.Model("CRC64-REDIS")

_EXPIRE_MS = b"\xfc"
_HASH, _HASH_LISTPACK = b"\x04", b"\x10"
_NEVER = -1
_METADATA = 243

_FIRST_VALKEY_VERSION = 80
_VERSION_SIZE = 2


class _Edit(NamedTuple):
    """Bytes [start, end) of the file are replaced."""

    start: int
    end: int
    new: bytes


class _Edits:
    """What is to be replaced, in the order of the file, and not passed on yet.

    held_from is where it may still be that something is replaced.
    """

    def __init__(self) -> None:
        self.waiting: deque[_Edit] = deque()
        self.count = 0
        self.held_from: int | None = None

    def replace(self, start: int, end: int, new: bytes) -> None:
        """Note what stands in the place of some bytes."""
        self.waiting.append(_Edit(start, end, new))
        self.count += 1

    def apply(self, data: bytes, start: int) -> bytes:
        """Return data, which begins at start and ends with no edit, with the edits."""
        out: list[bytes] = []
        done = start
        while self.waiting and self.waiting[0].end <= start + len(data):
            edit = self.waiting.popleft()
            out += (data[done - start : edit.start - start], edit.new)
            done = edit.end
        if not out:
            return data
        return b"".join((*out, data[done - start :]))


# Walks over a hash whose type is at that offset, and edits it.
_EditWalker: TypeAlias = Callable[[Input, _Edits, Ttls, int], Walk]


class RdbRewriter:
    """Rewrites one RDB. changes is how much of it was replaced, but for its checksum.

    PointError if it cannot be done exactly; RdbError if it is damaged.
    """

    def __init__(self, ttls: Ttls) -> None:
        self._reader = _Reader(ttls)
        self._held = bytearray()
        self._start = 0
        self._crc = 0

    @property
    def changes(self) -> int:
        """How many expiries, and types of hashes, are others than they were."""
        return self._reader.edits.count

    def rewrite(self, data: bytes) -> bytes:
        """Return what can be passed on after the next piece."""
        if self._reader.complete:
            return data
        self._held += data
        self._reader.receive_data(data)
        end: End | None = None
        try:
            while (event := self._reader.next_event()) is not NEED_DATA:
                if isinstance(event, Key) and self._reader.trouble is not None:
                    raise _inexact(event.key, self._reader.trouble)
                end = event if isinstance(event, End) else None
        except UnknownRdbError as error:
            raise PointError(
                f"the snapshot is newer than this kvtape: {error}; restore it with its "
                "expiries as they were (--ttl keep)"
            ) from None
        return self._let_go() if end is None else self._finish(end)

    def close(self) -> None:
        """Say that no more comes; RdbError if the RDB is not complete."""
        self._reader.close()

    def _let_go(self) -> bytes:
        # A long string is passed over before it is there.
        end = min(self._reader.offset, self._start + len(self._held))
        held_from = self._reader.edits.held_from
        return self._take(end if held_from is None else min(end, held_from))

    def _take(self, end: int) -> bytes:
        size = end - self._start
        data = self._reader.edits.apply(bytes(self._held[:size]), self._start)
        del self._held[:size]
        self._start = end
        self._crc = _CRC.calc(data, self._crc)
        return data

    def _finish(self, end: End) -> bytes:
        if not end.checksum:
            # The server computed none, or the format has none; what follows goes, too.
            return self._take(self._start + len(self._held))
        body = self._take(self._reader.offset - CHECKSUM_SIZE)
        behind = bytes(self._held[CHECKSUM_SIZE:])
        return body + self._crc.to_bytes(CHECKSUM_SIZE, "little") + behind


class _Reader(RdbReader):
    """A reader that notes what is to be replaced; trouble is of the next key."""

    def __init__(self, ttls: Ttls) -> None:
        super().__init__(values=False)
        self.edits = _Edits()
        self.trouble: InexactError | None = None
        self._ttls = ttls
        self._part = 0

    def _learn_opcodes(self) -> None:
        super()._learn_opcodes()
        for kind in self._walkers.keys() & _WALKERS[self._magic].keys():
            self._walkers[kind] = partial(
                self._walk_hash, _WALKERS[self._magic][kind], self._walkers[kind]
            )

    def _read_part(self) -> Event | None:
        source = self._input
        self._part = source.start + source.position  # the loop that must be fast
        return super()._read_part()

    def _expire_at_ms(self, data: bytes, position: int) -> tuple[None, int]:
        event, end = super()._expire_at_ms(data, position)
        self._edit_expiry(end)
        return event, end

    def _expire_at(self, data: bytes, position: int) -> tuple[None, int]:
        event, end = super()._expire_at(data, position)
        self._edit_expiry(end)
        return event, end

    def _edit_expiry(self, end: int) -> None:
        time = self._expire_ms
        assert time is not None  # it was just read
        try:
            new = self._ttls.of_key(time)
        except InexactError as error:
            # Which key it is of comes behind it.
            self.trouble = error
            return
        if new != time:
            opcode = b"" if new is None else _EXPIRE_MS + _int64(new)
            self.edits.replace(self._part, self._input.start + end, opcode)

    def _walk_hash(self, edit: _EditWalker, walker: Walker, source: Input) -> Walk:
        kind = self._part - source.start
        key, _ = read_string(source.data, kind + 1)
        try:
            yield from edit(source, self.edits, self._ttls, self._part)
        except InexactError as error:
            if not self._ttls.is_lenient:
                raise _inexact(key, error) from None
            yield from walker(source)
        return None


def rewrite_payload(payload: bytes, ttls: Ttls) -> bytes:
    """Return the payload of a RESTORE with the expiries of fields changed.

    InexactError if that cannot be done.
    """
    tail = _VERSION_SIZE + CHECKSUM_SIZE
    value, rest = payload[:-tail], payload[-tail:]
    kind = payload[0] if payload else 0
    if kind == _METADATA:
        raise InexactError("is restored from a payload that begins with metadata")
    version = int.from_bytes(rest[:_VERSION_SIZE], "little")
    magic = b"REDIS" if version < _FIRST_VALKEY_VERSION else b"VALKEY"
    edit = _WALKERS[magic].get(kind)
    if edit is None:
        return payload
    source, edits = Input(keep=False), _Edits()
    source.receive(value)
    source.fill()
    source.begin(1)
    try:
        for _ in edit(source, edits, ttls, 0):
            raise InexactError("is restored from a payload that is cut short")
    except UnreadableError as error:
        raise InexactError(f"is restored from a payload with {error.reason}") from None
    if not edits.count:
        return payload
    content = edits.apply(value, 0) + rest[:_VERSION_SIZE]
    checksum = _CRC.calc(content) if any(rest[_VERSION_SIZE:]) else 0
    return content + checksum.to_bytes(CHECKSUM_SIZE, "little")


def _inexact(key: bytes, reason: InexactError) -> PointError:
    return PointError(
        f"the restore cannot be exact: {key!r:.60} {reason}; restore with the expiries "
        "as they were (--ttl keep), or accept it by --force"
    )


def _int64(number: int) -> bytes:
    return number.to_bytes(8, "little", signed=True)


def _hash_of_valkey(source: Input, edits: _Edits, ttls: Ttls, _kind: int) -> Walk:
    for _ in range((yield from next_length(source))):
        yield from pass_strings(source, 2)
        time = yield from next_int64(source)
        if time < 0:
            continue
        new = ttls.of_field(time)
        if new != time:
            end = source.offset
            edits.replace(end - 8, end, _int64(_NEVER if new is None else new))
    return None


def _hash_after_minimum(source: Input, edits: _Edits, ttls: Ttls, kind: int) -> Walk:
    edits.held_from = kind
    least = yield from next_int64(source)
    base = ttls.of_field(least)
    end = source.offset
    if base is None:
        # No field has an earlier time, so none is left.
        edits.replace(kind, kind + 1, _HASH)
        edits.replace(end - 8, end, b"")
    elif base != least:
        edits.replace(end - 8, end, _int64(base))
    edits.held_from = None
    for _ in range((yield from next_length(source))):
        start = source.offset
        distance = yield from next_length(source)
        if base is None:
            edits.replace(start, source.offset, b"")
        elif distance:
            new = ttls.of_field(least + distance - 1)
            changed = 0 if new is None else new - base + 1
            if changed != distance:
                edits.replace(start, source.offset, length_of(changed))
        yield from pass_strings(source, 2)
    return None


def _listpack_after_minimum(
    source: Input, edits: _Edits, ttls: Ttls, kind: int
) -> Walk:
    edits.held_from = kind
    start = source.offset
    yield from next_int64(source)
    content = yield from next_of(source, read_string)
    try:
        triples = listpack.read_entries(content)
        times = [listpack.integer_of(entry) for entry in triples[2::3]]
    except ValueError as error:
        raise UnreadableError(source.position, f"{error}") from None
    changed = [(time and ttls.of_field(time)) or 0 for time in times]
    if changed != times:
        if not any(changed):
            edits.replace(kind, kind + 1, _HASH_LISTPACK)
            del triples[2::3]
            least = b""
        else:
            triples[2::3] = map(listpack.entry_of, changed)
            least = _int64(min(filter(None, changed)))
        packed = listpack.listpack_of(triples)
        edits.replace(start, source.offset, least + length_of(len(packed)) + packed)
    edits.held_from = None
    return None


def _of_candidate(_source: Input, _edits: _Edits, _ttls: Ttls, _kind: int) -> Walk:
    raise InexactError("has field expiries in the format of a release candidate")


_WALKERS: Final[Mapping[bytes, Mapping[int, _EditWalker]]] = {
    b"REDIS": {
        22: _of_candidate,
        23: _of_candidate,
        24: _hash_after_minimum,
        25: _listpack_after_minimum,
    },
    b"VALKEY": {22: _hash_of_valkey},
}
