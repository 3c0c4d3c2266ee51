"""Hash fields whose time has passed since, while a stream is applied on Redis.

Redis 7.4 and later takes a hash field for gone once its time has passed by the clock,
also while it loads an AOF or follows a primary. Restored late, commands that found the
field then find nothing now (tried on Redis 8.0; Valkey 9 keeps fields while it loads,
and needs none of this):

- HPERSIST does nothing, and the field is lost. Giving it a time far ahead first brings
  it back, so that is what a translation does.
- HSETEX … FXX does nothing. It was streamed because the field was there; without the
  condition it does what it did.
- HINCRBY begins at 0 again. Where the stream has told the field's time, that is put far
  ahead before the HINCRBY and back after it. Where only the snapshot knows it, and some
  field of that hash has lapsed, nobody can tell: that is an error.

A later HPEXPIREAT needs nothing: it brings a lapsed field back by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from kvtape.errors import PointError
from kvtape.tape.rdb import FIELD_EXPIRE_SLACK_MS

Command = Sequence[bytes]
Rewritten = Sequence[Sequence[bytes | int]]

# The first RDB version of a Redis that has field TTLs.
FIRST_RDB_VERSION = 12

# What makes a snapshot's own field TTLs matter.
INCREMENT = b"HINCRBY"

# What the payload of such a hash begins with; its earliest time follows (rdb.h).
_HASHES_WITH_TTLS = (bytes([24]), bytes([25]))

# Without one of these no field gets a TTL, or loses it.
_FIRST = frozenset(
    {b"HPEXPIREAT", b"HEXPIREAT", b"HPERSIST", b"HSETEX", b"RESTORE", b"RESTORE-ASKING"}
)

# The year 4188: beyond any time in use, and below the 46 bits that Redis allows
# (t_hash.c:HFE_MAX_ABS_TIME_MSEC).
_FAR = 70_000_000_000_000

# A load may take this long (ms): what lapses meanwhile counts as lapsed.
_MARGIN = 600_000

_NO_TTL = None


@dataclass(slots=True)
class _Hash:
    """What is known of one hash: the time of each field (ms), or None for no TTL.

    is_suspect tells that a field not listed may have lapsed.
    """

    times: dict[bytes, int | None] = field(default_factory=dict)
    is_suspect: bool = False


class FieldTtls:
    """Follows the TTLs of hash fields through a stream, and rewrites what needs it.

    now is the time of the restore (ms), db the database selected at the beginning. With
    is_lenient, what cannot be told is counted in doubtful and passed on as it is.
    """

    def __init__(self, now: int, db: int, *, is_lenient: bool = False) -> None:
        self.doubtful = 0
        self._until = now + _MARGIN
        self._db = max(0, db)
        self._is_lenient = is_lenient
        self._hashes: dict[tuple[int, bytes], _Hash] = {}

    def see_key(self, db: int, key: bytes, earliest: int) -> None:
        """Take note of a hash of the snapshot, with the earliest time of a field."""
        if earliest - FIELD_EXPIRE_SLACK_MS <= self._until:
            self._hashes[db, key] = _Hash(is_suspect=True)

    @property
    def names(self) -> Collection[bytes]:
        """The commands that must be seen now; as long as there are no TTLs, few."""
        return self._FOLLOW.keys() if self._hashes else _FIRST

    def select(self, db: int) -> None:
        """Take note of a database that was selected by what was not seen."""
        self._db = max(0, db)

    def rewrite(self, words: Command) -> Rewritten | None:
        """Follow the next command; return what to pass on instead, or None."""
        follow = self._FOLLOW.get(words[0].upper())
        return None if follow is None else follow(self, words)

    def _hash(self, key: bytes) -> _Hash | None:
        return self._hashes.get((self._db, key))

    def _set(self, key: bytes, name: bytes, time: int | None) -> None:
        hash_ = self._hash(key)
        if hash_ is None:
            if time is _NO_TTL:
                return
            hash_ = self._hashes[self._db, key] = _Hash()
        hash_.times[name] = time

    def _select(self, words: Command) -> None:
        self._db = int(words[1])

    def _expire(self, words: Command) -> None:
        unit = 1 if words[0][1:2] in b"Pp" else 1000
        for name in _fields(words):
            self._set(words[1], name, int(words[2]) * unit)

    def _persist(self, words: Command) -> Rewritten:
        names = _fields(words)
        for name in names:
            self._set(words[1], name, _NO_TTL)
        return [_expire_at(words[1], _FAR, names), words]

    def _set_with_ttl(self, words: Command) -> Rewritten | None:
        """Follow HSETEX key [FNX|FXX] [PXAT ms|KEEPTTL] FIELDS n (field value)…."""
        at = [word.upper() for word in words].index(b"FIELDS")
        options = [word.upper() for word in words[2:at]]
        if b"KEEPTTL" not in options:
            has_time = b"PXAT" in options
            time = int(words[2 + options.index(b"PXAT") + 1]) if has_time else _NO_TTL
            for name in words[at + 2 :: 2]:
                self._set(words[1], name, time)
        if b"FXX" not in options:
            return None
        return [[word for word in words[:at] if word.upper() != b"FXX"] + [*words[at:]]]

    def _increment(self, words: Command) -> Rewritten | None:
        _, key, name, *_ = words
        hash_ = self._hash(key)
        if hash_ is None:
            return None
        if name not in hash_.times:
            if hash_.is_suspect:
                self._doubt(key, name)
            return None
        time = hash_.times[name]
        if time is None or time > self._until:
            return None
        return [_expire_at(key, _FAR, [name]), words, _expire_at(key, time, [name])]

    def _doubt(self, key: bytes, name: bytes) -> None:
        self.doubtful += 1
        if not self._is_lenient:
            raise PointError(
                f"the restore cannot be exact: the stream increments the hash field "
                f"{name!r:.60} of {key!r:.60} (database {self._db}), which may have "
                "expired since, and Redis would then begin at 0 (it hides expired "
                "fields while it loads); restore to a point with a later snapshot, or "
                "accept it by --force"
            )

    def _set_fields(self, words: Command) -> None:
        for name in words[2::2]:
            self._set(words[1], name, _NO_TTL)

    def _delete_fields(self, words: Command) -> None:
        # A field that comes again comes without a TTL.
        for name in words[2:]:
            self._set(words[1], name, _NO_TTL)

    def _delete(self, words: Command) -> None:
        for key in words[1:]:
            self._hashes.pop((self._db, key), None)

    def _replace(self, words: Command) -> None:
        """Follow SET and RESTORE: whatever was there is not there any more."""
        self._hashes.pop((self._db, words[1]), None)
        payload = words[3] if words[0].upper() != b"SET" else b""
        if payload[:1] in _HASHES_WITH_TTLS:
            self.see_key(self._db, words[1], int.from_bytes(payload[1:9], "little"))

    def _rename(self, words: Command) -> None:
        self._put(self._db, words[2], self._hashes.pop((self._db, words[1]), None))

    def _copy(self, words: Command) -> None:
        options = [word.upper() for word in words[3:]]
        db = int(words[3 + options.index(b"DB") + 1]) if b"DB" in options else self._db
        hash_ = self._hash(words[1])
        copied = hash_ and _Hash(dict(hash_.times), hash_.is_suspect)
        self._put(db, words[2], copied)

    def _move(self, words: Command) -> None:
        hash_ = self._hashes.pop((self._db, words[1]), None)
        self._put(int(words[2]), words[1], hash_)

    def _put(self, db: int, key: bytes, hash_: _Hash | None) -> None:
        if hash_ is None:
            self._hashes.pop((db, key), None)
        else:
            self._hashes[db, key] = hash_

    def _swap(self, words: Command) -> None:
        one, other = int(words[1]), int(words[2])
        swapped = {one: other, other: one}
        self._hashes = {
            (swapped.get(db, db), key): hash_
            for (db, key), hash_ in self._hashes.items()
        }

    def _flush_db(self, _words: Command) -> None:
        self._hashes = {
            name: hash_ for name, hash_ in self._hashes.items() if name[0] != self._db
        }

    def _flush_all(self, _words: Command) -> None:
        self._hashes.clear()

    _FOLLOW: ClassVar[dict[bytes, Callable[[FieldTtls, Command], Rewritten | None]]] = {
        b"SELECT": _select,
        b"HPEXPIREAT": _expire,
        b"HEXPIREAT": _expire,
        b"HPERSIST": _persist,
        b"HSETEX": _set_with_ttl,
        b"HINCRBY": _increment,
        b"HSET": _set_fields,
        b"HMSET": _set_fields,
        b"HSETNX": _set_fields,
        b"HDEL": _delete_fields,
        b"DEL": _delete,
        b"UNLINK": _delete,
        b"SET": _replace,
        b"RESTORE": _replace,
        b"RESTORE-ASKING": _replace,
        b"RENAME": _rename,
        b"RENAMENX": _rename,
        b"COPY": _copy,
        b"MOVE": _move,
        b"SWAPDB": _swap,
        b"FLUSHDB": _flush_db,
        b"FLUSHALL": _flush_all,
    }


def _expire_at(key: bytes, time: int, names: Sequence[bytes]) -> list[bytes | int]:
    return [b"HPEXPIREAT", key, time, b"FIELDS", len(names), *names]


def _fields(words: Command) -> Sequence[bytes]:
    """Return the fields after FIELDS n."""
    at = [word.upper() for word in words[:6]].index(b"FIELDS")
    return words[at + 2 :]
