"""Hash fields that have lapsed since are restored as they were, or it is refused.

The rules one by one, and all together against a model of Redis 8.0: what it streams was
looked up on a real one, whose lapsed fields were kept from being deleted meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtape.errors import PointError
from kvtape.tape.field_ttl import FieldTtls, Rewritten
from kvtape.tape.rdb import FIELD_EXPIRE_SLACK_MS

RESTORED: Final = 1_800_000_000_000
RECEIVED: Final = 1_700_000_000_000

# After the receipt, and long before the restore.
SOON: Final = RECEIVED + 1000
FAR: Final = 70_000_000_000_000
LATER: Final = RESTORED + 3_600_000


def words(line: str) -> list[bytes]:
    return [word.encode() for word in line.split()]


def follow(fields: FieldTtls, *lines: str) -> Rewritten | None:
    """Follow commands; return what the last one is rewritten to."""
    rewritten: Rewritten | None = None
    for line in lines:
        rewritten = fields.rewrite(words(line), RECEIVED)
    return rewritten


def shown(rewritten: Rewritten | None) -> list[str] | None:
    if rewritten is None:
        return None
    return [" ".join(map(text, command)) for command in rewritten]


def text(word: bytes | int) -> str:
    return str(word) if isinstance(word, int) else word.decode()


def lapsing(*lines: str, db: int = 0) -> FieldTtls:
    """Return what has seen f of the hash h lapse, and then these commands."""
    fields = FieldTtls(RESTORED, db)
    follow(fields, f"HPEXPIREAT h {SOON} FIELDS 1 f", *lines)
    return fields


def keeps(key: str, name: str = "f", time: int = SOON) -> list[str]:
    """Return how an increment is rewritten where the field has a TTL that lapsed."""
    return [
        f"HPEXPIREAT {key} {FAR} XX FIELDS 1 {name}",
        f"HINCRBY {key} {name} 1",
        f"HPEXPIREAT {key} {time} XX FIELDS 1 {name}",
    ]


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ((), "h"),
        (("HINCRBY h f 1",), "h"),
        (("HEXPIREAT h 1700000001 FIELDS 2 f g",), "h"),
        (("HSETEX h PXAT 1700000001000 FIELDS 2 g 1 f 2",), "h"),
        (("HSETEX h FNX PXAT 1700000001000 FIELDS 1 f 2",), "h"),
        (("HSETEX h KEEPTTL FIELDS 1 f 2",), "h"),
        (("HSET h g 1", "HDEL h g", "HPERSIST h FIELDS 1 g"), "h"),
        (("RENAME h i",), "i"),
        (("RENAMENX h i",), "i"),
        (("RENAME h h",), "h"),
        (("COPY h i",), "i"),
        (("COPY h i", "DEL h"), "i"),
        (("COPY h i", "DEL i"), "h"),
        (("COPY h i DB 3 REPLACE", "SELECT 3"), "i"),
        (("MOVE h 3", "SELECT 3"), "h"),
        (("SWAPDB 3 0", "SELECT 3"), "h"),
        (("SWAPDB 3 4",), "h"),
        (("SELECT 3", "DEL h", "FLUSHDB", "SELECT 0"), "h"),
        (("MSET g h", "MSETEX 1 g h PX 5", "BITOP NOT g k"), "h"),
        (("SORT k BY h STORE g", "GEORADIUSBYMEMBER k h 1 km"), "h"),
        (("NOTHING h",), "h"),
    ],
)
def test_an_increment_finds_its_value_and_leaves_the_field_its_time(
    lines: Sequence[str], key: str
) -> None:
    assert shown(follow(lapsing(*lines), f"HINCRBY {key} f 1")) == keeps(key)


@pytest.mark.parametrize(
    "line",
    [
        "HPERSIST h FIELDS 1 f",
        "HSET h g 1 f 1",
        "HMSET h f 1",
        "HSETNX h f 1",
        "HSETEX h FIELDS 1 f 1",
        "HDEL h g f",
        f"HPEXPIREAT h {LATER} FIELDS 1 f",
        "DEL g h",
        "UNLINK h",
        "SET h 1",
        "SETEX h 9 1",
        "PSETEX h 9 1",
        "GETSET h 1",
        "MSET g 1 h 1",
        "MSETEX 2 g 1 h 1 PX 9",
        "SINTERSTORE h a b",
        "SUNIONSTORE h a b",
        "SDIFFSTORE h a b",
        "ZINTERSTORE h 1 a",
        "ZUNIONSTORE h 1 a",
        "ZDIFFSTORE h 1 a",
        "ZRANGESTORE h a 0 1",
        "GEOSEARCHSTORE h a FROMMEMBER m BYRADIUS 1 km",
        "BITOP NOT h a",
        "SORT a ALPHA store h",
        "GEORADIUS a 1 1 1 km STORE h",
        "GEORADIUSBYMEMBER a m 1 km STOREDIST h ASC",
        "RESTORE h 0 payload REPLACE",
        "RENAME g h",
        "COPY g h REPLACE",
        "RENAME h g",
        "MOVE h 3",
        "SWAPDB 0 3",
        "FLUSHDB",
        "FLUSHALL",
        "SELECT 3",
    ],
)
def test_what_has_no_expiry_any_more_is_left_alone(line: str) -> None:
    assert follow(lapsing(line), "HINCRBY h f 1") is None


def test_a_move_replaces_what_was_tracked_there() -> None:
    fields = lapsing("SELECT 3", f"HPEXPIREAT h {SOON} FIELDS 1 g", "DEL h", "SELECT 0")
    assert shown(follow(fields, "MOVE h 3", "SELECT 3", "HINCRBY h f 1")) == keeps("h")


def test_a_persist_brings_all_its_fields_back_first() -> None:
    fields = lapsing(f"HPEXPIREAT h {SOON} FIELDS 1 g")
    line = "HPERSIST h FIELDS 3 f g unknown"
    assert shown(follow(fields, line)) == [
        f"HPEXPIREAT h {FAR} XX FIELDS 3 f g unknown",
        line,
    ]


@pytest.mark.parametrize("time", [RECEIVED - 5, RECEIVED, RECEIVED + 50])
def test_a_persist_of_several_fields_is_refused_where_one_may_have_lapsed_before(
    time: int,
) -> None:
    fields = lapsing(f"HPEXPIREAT h {time} FIELDS 1 g")
    with pytest.raises(PointError, match=r"cannot be exact.* b'g' of b'h'"):
        follow(fields, "HPERSIST h FIELDS 2 f g")
    # One that is streamed alone was there.
    line = "HPERSIST h FIELDS 1 g"
    assert shown(follow(fields, line)) == [f"HPEXPIREAT h {FAR} XX FIELDS 1 g", line]


def test_setting_only_what_is_there_sets_it_without_the_condition() -> None:
    line = "HSETEX fxx FXX PXAT 5 FIELDS 1 FXX FXX"
    assert shown(follow(lapsing(), line)) == ["HSETEX fxx PXAT 5 FIELDS 1 FXX FXX"]
    line = "HSETEX h KEEPTTL fxx FIELDS 1 f v"
    assert shown(follow(lapsing(), line)) == ["HSETEX h KEEPTTL FIELDS 1 f v"]


def test_a_key_may_be_named_like_an_option() -> None:
    fields = FieldTtls(RESTORED, 0)
    assert follow(fields, f"HPEXPIREAT FIELDS {SOON} NX FIELDS 1 f") is None
    assert shown(follow(fields, "HINCRBY FIELDS f 1")) == keeps("FIELDS")
    assert follow(fields, "HINCRBY FIELDS 1 1") is None
    assert shown(follow(fields, "HSETEX fields FXX FIELDS 1 f v")) == [
        "HSETEX fields FIELDS 1 f v"
    ]


def test_what_lapses_long_after_the_restore_needs_nothing() -> None:
    fields = FieldTtls(RESTORED, 0)
    follow(fields, f"HPEXPIREAT h {LATER} FIELDS 1 f")
    assert follow(fields, "HINCRBY h f 1") is None
    # A load may take a while.
    soon = RESTORED + 1000
    follow(fields, f"HPEXPIREAT h {soon} FIELDS 1 f")
    assert shown(follow(fields, "HINCRBY h f 1")) == keeps("h", time=soon)


@pytest.mark.parametrize("is_lenient", [True, False])
def test_what_only_the_snapshot_knows_is_refused_or_counted(
    *, is_lenient: bool
) -> None:
    fields = FieldTtls(RESTORED, 2, is_lenient=is_lenient)
    fields.see_key(2, b"h", RECEIVED)
    assert follow(fields, "HSET h known 1", "HINCRBY h known 1") is None
    assert fields.doubtful == 0
    lines = ["HINCRBY h f 1", "HPERSIST h FIELDS 2 f g"]
    for number, line in enumerate(lines, 1):
        if is_lenient:
            follow(fields, line)
            assert fields.doubtful >= number
        else:
            with pytest.raises(PointError, match=r"b'f' of b'h' \(database 2\)"):
                follow(fields, line)


def test_a_snapshots_hash_that_lapses_later_than_the_restore_needs_nothing() -> None:
    fields = FieldTtls(RESTORED, 0)
    fields.see_key(0, b"h", LATER)
    assert follow(fields, "HINCRBY h f 1") is None
    fields.see_key(0, b"h", RECEIVED + FIELD_EXPIRE_SLACK_MS + 60_000)
    assert follow(fields, "HPERSIST h FIELDS 2 f g") is not None


@pytest.mark.parametrize("name", ["RESTORE", "RESTORE-ASKING"])
@pytest.mark.parametrize("kind", [24, 25])
def test_a_payload_with_expiries_of_fields_is_as_the_snapshots(
    kind: int, name: str
) -> None:
    fields = FieldTtls(RESTORED, 0)
    payload = bytes([kind]) + RECEIVED.to_bytes(8, "little") + b"..."
    fields.rewrite([name.encode(), b"h", b"0", payload], RECEIVED)
    with pytest.raises(PointError):
        follow(fields, "HINCRBY h f 1")
    # The next value of this key is another hash.
    fields.rewrite([name.encode(), b"h", b"0", b"\x04...", b"REPLACE"], RECEIVED)
    assert follow(fields, "HINCRBY h f 1") is None


def test_a_payload_without_expiries_any_more_needs_nothing() -> None:
    fields = FieldTtls(RESTORED, 0)
    payload = b"\x19" + bytes(8) + b"..."
    fields.rewrite([b"RESTORE", b"h", b"0", payload], RECEIVED)
    assert follow(fields, "HINCRBY h f 1") is None


def test_only_what_matters_must_be_seen() -> None:
    fields = FieldTtls(RESTORED, -1)
    assert b"HPEXPIREAT" in fields.names
    assert not {b"DEL", b"HSET", b"SELECT", b"HINCRBY"} & set(fields.names)
    fields.select(-1)
    follow(fields, f"HPEXPIREAT h {SOON} FIELDS 1 f")
    assert {b"DEL", b"HSET", b"SELECT", b"HINCRBY"} <= set(fields.names)
    fields.select(4)
    assert follow(fields, "HINCRBY h f 1") is None
    fields.select(0)
    assert shown(follow(fields, "HINCRBY h f 1")) == keeps("h")


# The model: what a server holds; a hash's fields have a value and a time.

Fields: TypeAlias = dict[bytes, tuple[int, int | None]]
Words: TypeAlias = Sequence[bytes | int]


@dataclass
class Model:
    """A server whose clock stands at now; a primary collects what it streams.

    A field that lapses stays where it is, hidden, until something deletes it.
    """

    now: int
    stream: list[tuple[int, list[bytes]]] = field(default_factory=list)
    keys: dict[tuple[int, bytes], Fields] = field(default_factory=dict)
    db: int = 0
    is_primary: bool = False

    def run(self, command: Words) -> None:
        """Do a command; one that changes something is streamed."""
        line = [word if isinstance(word, bytes) else b"%d" % word for word in command]
        rule: Callable[..., bool] = getattr(self, f"_{line[0].decode().lower()}")
        if rule(*line[1:]):
            self.stream.append((self.now, line))
        self.keys = {place: it for place, it in self.keys.items() if it}

    def visible(self, at: int) -> dict[tuple[int, bytes], Fields]:
        """Return what is there at a time, without what has lapsed."""
        shown = {
            place: {
                name: it for name, it in fields.items() if it[1] is None or it[1] > at
            }
            for place, fields in self.keys.items()
        }
        return {place: fields for place, fields in shown.items() if fields}

    def hash(self, key: bytes) -> Fields:
        """Return a hash, which is kept only if something is put into it."""
        return self.keys.setdefault((self.db, key), {})

    def is_there(self, key: bytes, name: bytes) -> bool:
        """Whether a field is visible; a primary deletes one that has lapsed."""
        fields = self.hash(key)
        if name not in fields:
            return False
        _, time = fields[name]
        if time is None or time > self.now:
            return True
        if self.is_primary:
            self.run([b"HDEL", key, name])
            self.keys.setdefault((self.db, key), fields)
        return False

    def _tick(self, by: bytes) -> bool:
        self.now += int(by)
        return False

    def _select(self, db: bytes) -> bool:
        self.db = int(db)
        return True

    def _hset(self, key: bytes, name: bytes, value: bytes) -> bool:
        self.hash(key)[name] = int(value), None
        return True

    def _hdel(self, key: bytes, name: bytes) -> bool:
        return self.hash(key).pop(name, None) is not None

    def _hincrby(self, key: bytes, name: bytes, by: bytes) -> bool:
        fields = self.hash(key)
        value, time = fields[name] if self.is_there(key, name) else (0, None)
        self.hash(key)[name] = value + int(by), time
        return True

    def _hpexpireat(self, key: bytes, time: bytes, *options: bytes) -> bool:
        fields = self.hash(key)
        names = options[options.index(b"FIELDS") + 2 :]
        known = [
            name
            for name in names
            if name in fields and (options[0] != b"XX" or fields[name][1] is not None)
        ]
        for name in known:
            fields[name] = fields[name][0], int(time)
        if known:
            # Only of those that are there.
            count = b"%d" % len(known)
            line = [b"HPEXPIREAT", key, time, b"FIELDS", count, *known]
            self.stream.append((self.now, line))
        return False

    def _hgetex(self, key: bytes, time: bytes, *options: bytes) -> bool:
        fields, names = self.hash(key), options[2:]
        found = [name for name in names if self.is_there(key, name)]
        for name in found:
            fields[name] = fields[name][0], int(time)
        if found:
            # Also of those that are not there.
            line = [b"HPEXPIREAT", key, time, *options]
            self.stream.append((self.now, line))
        return False

    def _hpersist(self, key: bytes, *names: bytes) -> bool:
        fields = self.hash(key)
        found = [
            name
            for name in names[2:]
            if name in fields and (fields[name][1] or 0) > self.now
        ]
        for name in found:
            fields[name] = fields[name][0], None
        return bool(found)

    def _hsetex(self, key: bytes, *options: bytes) -> bool:
        at = options.index(b"FIELDS")
        name, value = options[at + 2 :]
        if b"FXX" in options[:at] and not self.is_there(key, name):
            return False
        if b"FNX" in options[:at] and self.is_there(key, name):
            return False
        time = self.hash(key).get(name, (0, None))[1]
        if b"KEEPTTL" not in options[:at]:
            has_time = b"PXAT" in options[:at]
            time = int(options[options.index(b"PXAT") + 1]) if has_time else None
        self.hash(key)[name] = int(value), time
        return True

    def _del(self, key: bytes) -> bool:
        return self.keys.pop((self.db, key), None) is not None

    def _sinterstore(self, key: bytes, _: bytes) -> bool:
        return self._del(key)

    def _rename(self, key: bytes, new: bytes) -> bool:
        fields = self.keys.pop((self.db, key), None)
        if fields is not None:
            self.keys[self.db, new] = fields
        return fields is not None

    def _copy(self, key: bytes, new: bytes, _db: bytes, db: bytes, _: bytes) -> bool:
        fields = self.keys.get((self.db, key))
        if fields is None or (self.db, key) == (int(db), new):
            return False
        self.keys[int(db), new] = dict(fields)
        return True

    def _move(self, key: bytes, db: bytes) -> bool:
        if (self.db, key) not in self.keys or (int(db), key) in self.keys:
            return False
        self.keys[int(db), key] = self.keys.pop((self.db, key))
        return True

    def _swapdb(self, one: bytes, other: bytes) -> bool:
        swapped = {int(one): int(other), int(other): int(one)}
        self.keys = {(swapped[db], key): it for (db, key), it in self.keys.items()}
        return True

    def _flushdb(self) -> bool:
        self.keys = {
            place: it for place, it in self.keys.items() if place[0] != self.db
        }
        return True


# What is drawn for each letter. Some fields lapse during the run, some before the
# restore, and some stay.
DRAWN: Final = {
    "K": "h i",
    "N": "f g",
    "D": "0 1",
    "V": "1 2 3",
    "T": f"{RECEIVED + 5000} {RECEIVED + 60_000} {RECEIVED + 90_000} {LATER}",
    "S": "1 40 950 4000",
}

COMMANDS: Final = (
    *["HINCRBY K N V", "HPEXPIREAT K T FIELDS 1 N"] * 5,
    "HPEXPIREAT K T FIELDS 2 f g",
    "HGETEX K T FIELDS 2 f g",
    "HPERSIST K FIELDS 1 N",
    "HPERSIST K FIELDS 2 f g",
    "HSET K N V",
    "HDEL K N",
    "HSETEX K FIELDS 1 N V",
    "HSETEX K FXX KEEPTTL FIELDS 1 N V",
    "HSETEX K FXX PXAT T FIELDS 1 N V",
    "HSETEX K FNX PXAT T FIELDS 1 N V",
    "TICK S",
    "SELECT D",
    "DEL K",
    "SINTERSTORE K nothing",
    "RENAME K K",
    "COPY K K DB D REPLACE",
    "MOVE K D",
    "SWAPDB 0 1",
    "FLUSHDB",
)


def drawn(rng: random.Random, count: int) -> list[list[bytes]]:
    return [
        [rng.choice(words(DRAWN.get(word, word))) for word in line.split()]
        for line in rng.choices(COMMANDS, k=count)
    ]


@dataclass
class Restoring:
    """A primary that is recorded from now on, and a copy that is made much later."""

    primary: Model
    copy: Model = field(init=False)
    tracked: FieldTtls = field(init=False)

    def __post_init__(self) -> None:
        primary = self.primary
        self.copy = Model(RESTORED, db=primary.db)
        self.tracked = FieldTtls(RESTORED, primary.db)
        for (db, key), fields in primary.keys.items():
            self.copy.keys[db, key] = dict(fields)
            times = [time for _, time in fields.values() if time is not None]
            if times:
                self.tracked.see_key(db, key, min(times))

    def run(self, command: Words) -> None:
        """Do a command on the primary, and what it streams on the copy."""
        primary = self.primary
        primary.stream.clear()
        primary.run(command)
        for received, streamed in primary.stream:
            rewritten = self.tracked.rewrite(streamed, received)
            for each in [streamed] if rewritten is None else rewritten:
                self.copy.run(each)

    def assert_same(self) -> None:
        """Compare, but for what has lapsed on either side."""
        assert self.copy.visible(RESTORED) == self.primary.visible(RESTORED)


# Not lists of strategies: those are mostly short, or of few kinds of commands.
@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_copy_made_later_equals_the_primary_unless_it_is_refused(
    seed: int, has_snapshot: bool
) -> None:
    rng = random.Random(seed)
    primary = Model(RECEIVED, is_primary=True)
    for command in drawn(rng, 8 if has_snapshot else 0):
        primary.run(command)
    restoring = Restoring(primary)
    for command in drawn(rng, 60):
        try:
            restoring.run(command)
        except PointError:
            return
        restoring.assert_same()


def test_the_model_loses_what_is_not_rewritten() -> None:
    model = Model(RESTORED)
    model.run([b"HSET", b"h", b"f", 5])
    model.run([b"HPEXPIREAT", b"h", SOON, b"FIELDS", 1, b"f"])
    model.run([b"HPERSIST", b"h", b"FIELDS", 1, b"f"])
    assert model.visible(RESTORED) == {}
