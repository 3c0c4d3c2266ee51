"""Hash fields whose time has passed since, while a stream is applied on Redis.

Redis 7.4 and later takes a hash field for gone once its time has passed by the clock,
also while it loads an AOF or follows a primary. Restored late, commands that found the
field then find nothing now (tried on Redis 8.0; Valkey 9 keeps fields while it loads,
and needs none of this):

- HPERSIST does nothing, and the field is lost. Giving it a time far ahead first brings
  it back, so that is what a translation does. It is streamed if one of its fields was
  there; another may have lapsed before and not been deleted yet, and must not come
  back. Of several fields each must therefore be known to have been there, by a time
  after that of the receipt. Otherwise nobody can tell: that is an error.
- HSETEX … FXX does nothing. It was streamed because the field was there; without the
  condition it does what it did.
- HINCRBY begins at 0 again. Where the stream has told the field's time, that is put far
  ahead before the HINCRBY and back after it. Where only the snapshot knows it, and some
  field of that hash has lapsed, nobody can tell: that is an error.

A later HPEXPIREAT needs nothing: it brings a lapsed field back by itself. And before a
primary writes to a lapsed field, it streams its deletion (HDEL), unless what it does is
the same with or without it.

A key that is tracked must be forgotten with its hash, or a field of its next hash would
be given the time of one that is gone. So all is followed that replaces a key of another
type. What ends a hash field by field needs no rule: each HDEL forgets its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from kvtape.errors import PointError
from kvtape.tape.rdb import FIELD_EXPIRE_SLACK_MS

Command = Sequence[bytes]
Rewritten = Sequence[Sequence[bytes | int]]

# The first RDB version of a Redis that has field TTLs.
FIRST_RDB_VERSION = 12

# What makes a snapshot's own field TTLs matter.
NEED_TIMES = frozenset({b"HINCRBY", b"HPERSIST"})

# What the payload of such a hash begins with; its earliest time follows (rdb.h).
_HASHES_WITH_TTLS = (bytes([24]), bytes([25]))

# Without one of these no field gets a TTL, or loses it.
_FIRST = frozenset(
    {b"HPEXPIREAT", b"HEXPIREAT", b"HPERSIST", b"HSETEX", b"RESTORE", b"RESTORE-ASKING"}
)

# The year 4188: beyond any time in use, and below the 46 bits that Redis allows
# (t_hash.c:HFE_MAX_ABS_TIME_MSEC).
FAR = 70_000_000_000_000

# A load may take this long (ms): what lapses meanwhile counts as lapsed.
_MARGIN = 600_000

# By how much the clocks of the primary and of the agent may differ (ms).
_CLOCKS_DIFFER = 100

_NO_TTL = None


@dataclass(slots=True)
class _Hash:
    """What is known of one hash: the time of each field (ms), or None for no TTL.

    A field that is not listed lapses at others or later; None if it does not.
    """

    times: dict[bytes, int | None] = field(default_factory=dict)
    others: int | None = None

    def earliest(self, name: bytes) -> int | None:
        """Return when a field lapses at the earliest; None if it does not."""
        return self.times.get(name, self.others)


class FieldTtls:
    """Follows the TTLs of hash fields through a stream, and rewrites what needs it.

    now is the time of the restore (ms), db the database selected at the beginning. With
    is_lenient, what cannot be told is only counted in doubtful.
    """

    def __init__(self, now: int, db: int, *, is_lenient: bool = False) -> None:
        self.doubtful = 0
        self._until = now + _MARGIN
        self._received = now
        self._db = max(0, db)
        self._is_lenient = is_lenient
        self._hashes: dict[tuple[int, bytes], _Hash] = {}

    def see_key(self, db: int, key: bytes, earliest: int) -> None:
        """Take note of a hash of the snapshot, with the earliest time of a field."""
        earliest -= FIELD_EXPIRE_SLACK_MS
        if earliest <= self._until:
            self._hashes[db, key] = _Hash(others=earliest)

    @property
    def names(self) -> Collection[bytes]:
        """The commands that must be seen now; as long as there are no TTLs, few."""
        return self._FOLLOW.keys() if self._hashes else _FIRST

    def select(self, db: int) -> None:
        """Take note of a database that was selected by what was not seen."""
        self._db = max(0, db)

    def rewrite(self, words: Command, received: int) -> Rewritten | None:
        """Follow the next command; return what to pass on instead, or None.

        received is the time of its receipt (ms).
        """
        self._received = received
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
        hash_ = self._hash(words[1])
        for name in names:
            earliest = None if hash_ is None else hash_.earliest(name)
            if earliest is not None and len(names) > 1:
                self._must_have_been_there(words[1], name, earliest)
            self._set(words[1], name, _NO_TTL)
        return [_expire_again(words[1], FAR, names), words]

    def _must_have_been_there(self, key: bytes, name: bytes, earliest: int) -> None:
        if earliest <= self._received + _CLOCKS_DIFFER:
            what = "ends the expiry of several hash fields, of which"
            self._doubt(f"{what} {name!r:.60} of {key!r:.60}", "had no value then")

    def _set_with_ttl(self, words: Command) -> Rewritten | None:
        """Follow HSETEX key [FNX|FXX] [PXAT ms|KEEPTTL] FIELDS n (field value)…."""
        at = fields_at(words)
        options = [word.upper() for word in words[2:at]]
        if b"KEEPTTL" not in options:
            has_time = b"PXAT" in options
            time = int(words[2 + options.index(b"PXAT") + 1]) if has_time else _NO_TTL
            for name in words[at + 2 :: 2]:
                self._set(words[1], name, time)
        if b"FXX" not in options:
            return None
        kept = [word for word in words[2:at] if word.upper() != b"FXX"]
        return [[*words[:2], *kept, *words[at:]]]

    def _increment(self, words: Command) -> Rewritten | None:
        _, key, name, *_ = words
        hash_ = self._hash(key)
        if hash_ is None:
            return None
        time = hash_.earliest(name)
        if time is None or time > self._until:
            return None
        if name not in hash_.times:
            what = f"increments the hash field {name!r:.60} of {key!r:.60}"
            self._doubt(what, "Redis would begin at 0")
            return None
        return [
            _expire_again(key, FAR, [name]),
            words,
            _expire_again(key, time, [name]),
        ]

    def _doubt(self, what: str, doubt: str) -> None:
        self.doubtful += 1
        if not self._is_lenient:
            raise PointError(
                f"the restore cannot be exact: the stream {what} (database {self._db}),"
                f" and if that has expired by then or since, {doubt} (it hides expired "
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
        """Follow what replaces its first key, or deletes it if there is no result."""
        self._hashes.pop((self._db, words[1]), None)

    def _restore(self, words: Command) -> None:
        self._replace(words)
        payload = words[3]
        if payload[:1] in _HASHES_WITH_TTLS:
            earliest = int.from_bytes(payload[1:9], "little")
            # 0 is what a compact hash says that has no expiries any more.
            if earliest:
                self.see_key(self._db, words[1], earliest)

    def _combine_bits(self, words: Command) -> None:
        self._hashes.pop((self._db, words[2]), None)

    def _set_strings(self, words: Command) -> None:
        """Follow MSET key value …, and MSETEX number key value … options."""
        first = 1 if words[0].upper() == b"MSET" else 2
        end = len(words) if first == 1 else 2 + 2 * int(words[1])
        for key in words[first:end:2]:
            self._hashes.pop((self._db, key), None)

    def _store(self, words: Command) -> None:
        """Follow what has its result's key after STORE, among other options."""
        for word, key in pairwise(words[2:]):
            if word.upper() in (b"STORE", b"STOREDIST"):
                self._hashes.pop((self._db, key), None)

    def _rename(self, words: Command) -> None:
        self._put(self._db, words[2], self._hashes.pop((self._db, words[1]), None))

    def _copy(self, words: Command) -> None:
        options = [word.upper() for word in words[3:]]
        db = int(words[3 + options.index(b"DB") + 1]) if b"DB" in options else self._db
        hash_ = self._hash(words[1])
        copied = hash_ and _Hash(dict(hash_.times), hash_.others)
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
        b"SETEX": _replace,
        b"PSETEX": _replace,
        b"GETSET": _replace,
        b"SDIFFSTORE": _replace,
        b"SINTERSTORE": _replace,
        b"SUNIONSTORE": _replace,
        b"ZDIFFSTORE": _replace,
        b"ZINTERSTORE": _replace,
        b"ZUNIONSTORE": _replace,
        b"ZRANGESTORE": _replace,
        b"GEOSEARCHSTORE": _replace,
        b"BITOP": _combine_bits,
        b"MSET": _set_strings,
        b"MSETEX": _set_strings,
        b"SORT": _store,
        b"GEORADIUS": _store,
        b"GEORADIUSBYMEMBER": _store,
        b"RESTORE": _restore,
        b"RESTORE-ASKING": _restore,
        b"RENAME": _rename,
        b"RENAMENX": _rename,
        b"COPY": _copy,
        b"MOVE": _move,
        b"SWAPDB": _swap,
        b"FLUSHDB": _flush_db,
        b"FLUSHALL": _flush_all,
    }


def _expire_again(key: bytes, time: int, names: Sequence[bytes]) -> list[bytes | int]:
    """Return what changes the time of those fields that have one, lapsed or not.

    Not of all of them: HGETEX is streamed as an HPEXPIREAT of all that it was asked
    for, so what is followed may never have been there.
    """
    return [b"HPEXPIREAT", key, time, b"XX", b"FIELDS", len(names), *names]


def _fields(words: Command) -> Sequence[bytes]:
    """Return the fields after FIELDS n."""
    return words[fields_at(words) + 2 :]


def fields_at(words: Command) -> int:
    """Return where FIELDS stands; a key may have that name, too."""
    return 2 + [word.upper() for word in words[2:8]].index(b"FIELDS")
