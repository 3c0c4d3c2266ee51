"""The oracle's judgement: every difference between two fingerprints, in words.

It hides what may legitimately differ between a server and a copy of it that stands at
the same offset. There is little of that, and each kind is a function below that says
on which releases it was seen, so that nothing else hides behind it:

- what had expired by the time of a reading is not visible in it (`Readings.hidden`);
- some releases do not stream all of a consumer group (`loses_entries_read`,
  `loses_idle_consumers`);
- expiries are compared with a tolerance where a release streams relative ones.

These are not differences, but they are returned as explained, with the reason, so that
a test can bound how much it did not see. Servers also fail to stream a few things that
are not excused here (a consumer's history read with XREADGROUP on all six releases;
HINCRBYFLOAT beside a field's expiry on Redis 8.0.2): the workload does not do them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, TypeAlias

from fingerprints import (
    Fingerprint,
    Group,
    Hash,
    Key,
    Release,
    Stream,
    Value,
    fingerprint,
    stable_fingerprint,
    wait_for_offset,
)

__all__ = [
    "Difference",
    "Fingerprint",
    "Verdict",
    "compare",
    "fingerprint",
    "judge",
    "stable_fingerprint",
    "wait_for_offset",
]

# Why something is not a difference.
EXPIRED: Final = "expired by the time of the reading"
ENTRIES_READ: Final = "this release does not stream it"
IDLE_CONSUMER: Final = "this release does not stream a consumer without entries"

# Redis 6.2 streams relative expiries, so a copy's are late by the time of transfer.
# Up to 1 s was seen for writes during a full sync with repl-diskless-sync, where the
# stream waits for the replica's next acknowledgement: give a larger tolerance then.
RELATIVE_TOLERANCE_MS: Final = 50

SHOWN_BYTES: Final = 60
SHOWN_LETTERS: Final = 240


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not the same; `key` is None for what is in no database.

    A `reason` says why it is to be expected; it is empty for a real difference.
    """

    database: int | None
    key: bytes | None
    what: str
    reason: str = ""

    def __str__(self) -> str:
        place = "" if self.key is None else f"db {self.database} key {show(self.key)}: "
        return place + self.what + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is different, and apart from it what looks so but has a reason."""

    differences: list[Difference]
    explained: list[Difference]


# A finding in words, and the reason why it is no difference, if there is one.
Finding: TypeAlias = tuple[str, str]


def compare(
    expected: Fingerprint, actual: Fingerprint, *, tolerance_ms: int | None = None
) -> list[Difference]:
    """Return every difference that has no reason; see `judge`."""
    return judge(expected, actual, tolerance_ms=tolerance_ms).differences


def judge(
    expected: Fingerprint, actual: Fingerprint, *, tolerance_ms: int | None = None
) -> Verdict:
    """Compare a copy with what it should be, both ways.

    Absolute expiries must agree within `tolerance_ms`: exactly by default, or within
    50 ms where Redis 6.2 is involved.
    """
    if tolerance_ms is None:
        relative = expected.release.before_7 or actual.release.before_7
        tolerance_ms = RELATIVE_TOLERANCE_MS if relative else 0
    readings = Readings(expected, actual, tolerance_ms)
    found = [
        Difference(database, key, what, reason)
        for database, key in sorted(expected.keys.keys() | actual.keys.keys())
        for what, reason in readings.key(
            expected.keys.get((database, key)), actual.keys.get((database, key))
        )
    ]
    libraries = maps(expected.functions, actual.functions, "function library")
    found += [Difference(None, None, what) for what in libraries]
    return Verdict(
        [difference for difference in found if not difference.reason],
        [difference for difference in found if difference.reason],
    )


@dataclass(frozen=True, slots=True)
class Readings:
    """The two readings; each method yields what differs in one kind of thing."""

    expected: Fingerprint
    actual: Fingerprint
    tolerance_ms: int

    def key(self, expected: Key | None, actual: Key | None) -> Iterator[Finding]:
        """Compare a key that one side has at least."""
        if expected is None:
            if actual is not None:
                yield f"a {actual.kind} that should not exist", self.surplus(actual)
        elif actual is None:
            hidden = self.hidden(lapses_at(expected), self.actual)
            yield f"a {expected.kind} that is missing", hidden
        elif expected.kind != actual.kind:
            yield f"a {actual.kind} instead of a {expected.kind}", ""
        else:
            yield from self.expiry(expected.expiry, actual.expiry)
            yield from self.value(expected.value, actual.value)

    def hidden(self, expiry: int | None, reading: Fingerprint) -> str:
        """Return the reason why what has this expiry may be missing in a reading."""
        lapsed = expiry is not None and expiry - self.tolerance_ms <= reading.end
        return EXPIRED if lapsed else ""

    def surplus(self, key: Key) -> str:
        """Return the reason why only the copy has this key, if there is one.

        A primary deletes every expired key that a reading comes across (seen on all six
        releases), so at the offset of a stable reading the copy has none either that
        expired before: only what expired meanwhile is excused. A replica just hides
        them, and so does every server with fields (Redis 8.0.2, Valkey 9.1.2).
        """
        own, fields = key.expiry, fields_lapse_at(key)
        earliest = self.expected.start - self.tolerance_ms
        if own is not None and (own >= earliest or not self.expected.is_primary):
            return self.hidden(own, self.expected) or self.hidden(fields, self.expected)
        return self.hidden(fields, self.expected)

    def expiry(
        self, expected: int | None, actual: int | None, of: str = ""
    ) -> Iterator[Finding]:
        """Compare two absolute times."""
        if expected is None or actual is None:
            same = expected == actual
        else:
            same = abs(expected - actual) <= self.tolerance_ms
        if not same:
            yield f"{of}expires at {actual} instead of {expected} ms", ""

    def value(self, expected: Value, actual: Value) -> Iterator[Finding]:
        """Compare two values of the same type."""
        match expected, actual:
            case Hash(), Hash():
                yield from self.hash(expected, actual)
            case Stream(), Stream():
                yield from self.stream(expected, actual)
            case bytes(), bytes():
                yield from sure(strings(expected, actual))
            case tuple(), tuple():
                yield from sure(lists(expected, actual))
            case frozenset(), frozenset():
                yield from sure(sets(expected, actual, "member"))
            case dict(), dict():
                yield from sure(maps(expected, actual, "score of"))
            case _:
                raise TypeError(f"no comparison for {type(expected)}")

    def hash(self, expected: Hash, actual: Hash) -> Iterator[Finding]:
        """Compare fields, their values and their expiries."""
        for field in sorted(expected.values.keys() | actual.values.keys()):
            name = f"field {show(field)}"
            due, copied = expected.expiries.get(field), actual.expiries.get(field)
            if field not in actual.values:
                yield f"{name} is missing", self.hidden(due, self.actual)
            elif field not in expected.values:
                yield f"{name} should not exist", self.hidden(copied, self.expected)
            else:
                was, now = expected.values[field], actual.values[field]
                yield from sure(strings(was, now, f"{name} "))
                yield from self.expiry(due, copied, f"{name} ")

    def stream(self, expected: Stream, actual: Stream) -> Iterator[Finding]:
        """Compare entries, counters and groups."""
        yield from sure(maps(dict(expected.entries), dict(actual.entries), "entry"))
        yield from sure(facts(expected, actual, "last_id"))
        if not (self.expected.release.before_7 or self.actual.release.before_7):
            yield from sure(facts(expected, actual, "max_deleted_id", "entries_added"))
        yield from sure(sets(expected.groups.keys(), actual.groups.keys(), "group"))
        for name in sorted(expected.groups.keys() & actual.groups.keys()):
            was, now = expected.groups[name], actual.groups[name]
            for what, reason in self.group(was, now):
                yield f"group {show(name)}: {what}", reason

    def group(self, expected: Group, actual: Group) -> Iterator[Finding]:
        """Compare a group's position, its pending entries and its consumers."""
        release = self.expected.release
        yield from sure(facts(expected, actual, "last_delivered"))
        yield from sure(maps(expected.pending, actual.pending, "pending entry"))
        if not (release.before_7 or self.actual.release.before_7):
            reason = ENTRIES_READ if loses_entries_read(release) else ""
            for what in facts(expected, actual, "entries_read"):
                yield what, reason
        busy = {entry.consumer for entry in expected.pending.values()}
        idle = expected.consumers - busy if loses_idle_consumers(release) else set()
        yield from sure(
            sets(expected.consumers - idle, actual.consumers - idle, "consumer")
        )
        for consumer in sorted(idle - actual.consumers):
            yield f"consumer {show(consumer)} is missing", IDLE_CONSUMER


def loses_entries_read(release: Release) -> bool:
    """Whether a primary's own replica has other entries-read counts than itself.

    Seen on Redis 7.0.15: XREADGROUP is streamed as XCLAIM with LASTID, which leaves the
    count as it was. Not seen on Redis 8.0.2 and Valkey 8.0.1, 8.1.1 and 9.1.2, which
    stream XGROUP SETID with ENTRIESREAD as well; 6.2.14 has no such count.
    """
    return release.family == "redis" and release.version[:2] == (7, 0)


def loses_idle_consumers(release: Release) -> bool:
    """Whether a consumer that has no entries may be missing on a primary's own replica.

    Seen on Redis 8.0.2 and Valkey 8.0.1, 8.1.1 and 9.1.2: XREADGROUP, XCLAIM and
    XAUTOCLAIM create their consumer even if they find nothing, and stream nothing.
    Not seen on Redis 6.2.14 and 7.0.15, where a consumer comes with its first entry.
    """
    return release.family == "valkey" or release.version >= (7, 2)


def lapses_at(key: Key) -> int | None:
    """Return when a key disappears, by its own expiry or with its last field's."""
    moments = [moment for moment in (key.expiry, fields_lapse_at(key)) if moment]
    return min(moments, default=None)


def fields_lapse_at(key: Key) -> int | None:
    """Return when the last field of a hash lapses; None if one stays."""
    if not isinstance(key.value, Hash):
        return None
    if key.value.values.keys() != key.value.expiries.keys():
        return None
    return max(key.value.expiries.values())


def sure(findings: Iterable[str]) -> Iterator[Finding]:
    """Yield findings for which there is no excuse."""
    return ((what, "") for what in findings)


def strings(expected: bytes, actual: bytes, of: str = "") -> Iterator[str]:
    """Yield how two strings differ, and where when they are too long to show."""
    if expected == actual:
        return
    what = f"{of}is {show(actual)} instead of {show(expected)}"
    if max(len(expected), len(actual)) > SHOWN_BYTES:
        what += f", different from byte {first_difference(expected, actual)} on"
    yield what


def lists(expected: tuple[bytes, ...], actual: tuple[bytes, ...]) -> Iterator[str]:
    """Yield the first element that differs, and a difference in length."""
    place = first_difference(expected, actual)
    if place < min(len(expected), len(actual)):
        was, now = expected[place], actual[place]
        yield f"element {place} is {show(now)} instead of {show(was)}"
    if len(expected) != len(actual):
        yield f"has {len(actual)} elements instead of {len(expected)}"


def first_difference(
    expected: bytes | tuple[bytes, ...], actual: bytes | tuple[bytes, ...]
) -> int:
    """Return the first place that is not the same, or the length of the shorter one."""
    pairs = enumerate(zip(expected, actual, strict=False))
    shorter = min(len(expected), len(actual))
    return next((place for place, (was, now) in pairs if was != now), shorter)


def sets(
    expected: AbstractSet[bytes], actual: AbstractSet[bytes], what: str
) -> Iterator[str]:
    """Yield each missing and each surplus member."""
    for member in sorted(expected - actual):
        yield f"{what} {show(member)} is missing"
    for member in sorted(actual - expected):
        yield f"{what} {show(member)} should not exist"


def maps(
    expected: Mapping[bytes, object], actual: Mapping[bytes, object], what: str
) -> Iterator[str]:
    """Yield each missing, surplus and different item."""
    yield from sets(expected.keys(), actual.keys(), what)
    for name in sorted(expected.keys() & actual.keys()):
        was, now = expected[name], actual[name]
        if was != now:
            yield f"{what} {show(name)} is {show(now)} instead of {show(was)}"


def facts(expected: object, actual: object, *names: str) -> Iterator[str]:
    """Yield each attribute that differs."""
    for name in names:
        was, now = getattr(expected, name), getattr(actual, name)
        if was != now:
            yield f"{name} is {show(now)} instead of {show(was)}"


def show(thing: object) -> str:
    """Return a repr that fits on a line or two."""
    if isinstance(thing, bytes) and len(thing) > SHOWN_BYTES:
        return f"{thing[:SHOWN_BYTES]!r}... ({len(thing)} bytes)"
    text = repr(thing)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."
