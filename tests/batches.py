"""Streams of commands in frames, without a file; and what is true of each byte.

It hides how facts come from bytes and receipts. The truth is worked out from a list of
all bytes, slowly, and shares nothing with what is tested but the table of commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from kvtape.replication.tracker import NO_DB, Tracker
from kvtape.tape.commands import Batch, RecordedCommand
from kvtape.tape.facts import Facts, Mark
from tapes import command

REPLID = "c" * 40
START = 1000

# Few, so that patterns match; some are parts of others, or look like RESP.
KEYS = (b"a", b"b", b"user:1", b"user:12", b"a\r\n", b"$1")

keys = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"a", b"user:1", b"x" * 50])

# A MULTI and what belongs to it is one item, since an EXEC alone is in no stream.
_single = st.one_of(
    st.tuples(st.sampled_from([b"SET", b"set", b"APPEND", b"Incrby"]), keys, values),
    st.tuples(st.sampled_from([b"DEL", b"unlink", b"SUNIONSTORE"]), keys, keys),
    st.tuples(st.just(b"MSET"), keys, values, keys, values),
    st.tuples(st.sampled_from([b"PUBLISH", b"spublish"]), keys, values),
    st.tuples(st.sampled_from([b"MOD.SET", b"mod.set", b"NEWER"]), keys, values),
    st.tuples(st.sampled_from([b"RENAME", b"COPY"]), keys, keys),
    st.tuples(st.just(b"EVAL"), values, st.just(b"1"), keys, keys),
    st.tuples(st.just(b"XGROUP"), st.just(b"destroy"), keys, values),
    st.tuples(st.sampled_from([b"SELECT", b"select"]), st.sampled_from([b"0", b"12"])),
    st.sampled_from(
        [
            (b"PING",),
            (b"REPLCONF", b"GETACK", b"*"),
            (b"FLUSHALL",),
            (b"flushdb",),
            (b"SWAPDB", b"0", b"12"),
            (b"FUNCTION", b"FLUSH"),
            (b"CLUSTER", b"SETSLOT", b"1", b"a"),
            (b"XGROUP",),
        ]
    ),
)

Words = tuple[bytes, ...]


def _in_multi(commands: list[Words]) -> list[Words]:
    return [(b"MULTI",), *commands, (b"exec",)]


_items = st.one_of(
    _single.map(lambda words: [words]),
    st.lists(_single, max_size=4).map(_in_multi),
)

streams = st.lists(_items, max_size=12).map(
    lambda items: [words for item in items for words in item]
)


@dataclass(frozen=True, slots=True)
class Byte:
    """When a byte was received, and what it was written after."""

    time: int
    after: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Commands, what they are as bytes in frames, and when each byte came."""

    commands: Sequence[Words]
    db: int
    frames: Sequence[Facts]
    data: bytes
    bytes: Sequence[Byte]

    def boundaries(self) -> list[int]:
        """Return all boundaries, worked out from the commands."""
        found, at, within = [START], START, False
        for words in self.commands:
            at += len(command(*words))
            within = words[0].upper() == b"MULTI" or (
                within and words[0].upper() != b"EXEC"
            )
            if not within:
                found.append(at)
        return found

    def batch(self, start: int = START, end: int | None = None) -> Batch:
        """Return the batch from one boundary to another."""
        end = START + len(self.data) if end is None else end
        db = next((c.db for c in reversed(self.all()) if c.end <= start), self.db)
        frames = [f for f in self.frames if f.end > start and f.start < end]
        data = self.data[start - START : end - START]
        return Batch(REPLID, start, db, tuple(frames), data)

    def all(self) -> list[RecordedCommand]:
        """Return all commands with what is true of them."""
        found = []
        at, db, transaction = START, self.db, None
        for words in self.commands:
            end = at + len(command(*words))
            name = words[0].upper()
            if name == b"SELECT":
                db = int(words[1])
            if name == b"MULTI":
                transaction = at
            time = self.bytes[end - START - 1].time
            after = self.bytes[at - START].after
            found.append(
                RecordedCommand(REPLID, at, end, time, after, db, transaction, words)
            )
            if name == b"EXEC":
                transaction = None
            at = end
        return found


@st.composite
def recorded(draw: st.DrawFn) -> Stream:
    """Return a stream in frames cut anywhere, received at any times, or late."""
    commands = draw(streams.filter(bool))
    db = draw(st.sampled_from([NO_DB, 0, 12]))
    data = b"".join(command(*words) for words in commands)
    cuts = draw(st.sets(st.integers(1, len(data) - 1), max_size=6))
    frame_ends = {*draw(st.sets(st.sampled_from([*cuts, len(data)]))), len(data)}
    tracker = Tracker(START, db)
    frames: list[Facts] = []
    told: list[Byte] = []
    marks: list[Mark] = []
    time = after = frame_after = since = 5000
    begin = frame_start = 0
    late = False
    for end in sorted({*cuts, len(data)}):
        if not marks:
            frame_start, frame_after, after = begin, time, time
            late = draw(st.booleans())
            since = frame_after - draw(st.integers(0, 1000))
        tracker.feed(data[begin:end])
        time += draw(st.integers(0, 3000))
        marks.append(Mark(START + end, time))
        told += [Byte(time, since if late else after)] * (end - begin)
        after, begin = time, end
        if end in frame_ends:
            frames.append(
                Facts(
                    start=START + frame_start,
                    end=START + end,
                    stored_length=0,
                    boundary=tracker.boundary,
                    db=tracker.db,
                    after=since if late else frame_after,
                    marks=tuple(marks),
                    summary=tracker.take_summary(),
                    crc=0,
                    stored_crc=0,
                    is_late=late,
                )
            )
            marks = []
    assert tracker.lost_because is None
    return Stream(commands, db, frames, data, told)
