"""Where commands are is found without parsing them, and is where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import START, Stream, recorded
from kvtape.errors import VerificationError
from kvtape.storage.commands import read_batches
from kvtape.tape.catalogue import Slice
from kvtape.tape.commands import Batch
from kvtape.tape.outline import LeastWords, Outline, outline, read_head
from recording import THEN, Tape
from tapes import command

# Of a command: where it begins and ends, and its words.
Place = tuple[int, int, tuple[bytes, ...]]


def nothing(_name: bytes) -> int | None:
    return None


def everything(_name: bytes) -> int | None:
    return 1


def turns(name: bytes) -> int | None:
    return 1 if name in {b"MULTI", b"EXEC", b"SELECT"} else None


def long_ones(name: bytes) -> int | None:
    return {b"COPY": 3, b"MSET": 5, b"SET": 4, b"XGROUP": 1}.get(name)


wishes = st.sampled_from([nothing, everything, turns, long_ones])


def places_of(batch: Batch) -> list[Place]:
    places = []
    at = batch.start
    for words in batch.parsed():
        end = at + len(command(*words))
        places.append((at, end, tuple(words)))
        at = end
    return places


def assert_is_of(found: Outline, places: list[Place], least_words: LeastWords) -> None:
    """Check all that an outline tells."""
    assert len(found) == len(places)
    first, last = places[0][0], places[-1][1]
    ends = [end for _, end, _ in places]
    for number, (start, end, _) in enumerate(places):
        assert found.end_of(start) == end
        assert found.nth(first, number) == start
        assert found.count(first, end) == number + 1
        assert found.count(start, last) == len(places) - number
        assert found.count(start, start) == found.count(end, end) == 0
        for many in (1, 2, len(places) + 1):
            assert found.behind(start, many) in ends[number:]
        assert found.behind(start, len(places) * 100) == last
    for offset in range(first, last + 2):
        assert found.end_by(offset) == max([first, *(e for e in ends if e <= offset)])
    expected = [
        (start, end, (words[0].upper(), len(words)))
        for start, end, words in places
        if (least := least_words(words[0].upper())) is not None and len(words) >= least
    ]
    heads = map(read_head, found.heads)
    assert list(zip(found.starts, found.ends(), heads, strict=True)) == expected


@given(recorded(), wishes, st.data())
def test_it_is_that_of_the_commands(
    stream: Stream, least_words: LeastWords, data: st.DataObject
) -> None:
    bounds = stream.boundaries()
    start, end = sorted(
        data.draw(st.lists(st.sampled_from(bounds), min_size=2, max_size=2))
    )
    if start == end:
        start, end = bounds[0], bounds[-1]
    batch = stream.batch(start, end)
    places = places_of(batch)
    assert [words for _, _, words in places] == [
        each.words for each in stream.all() if start < each.end <= end
    ]
    assert_is_of(outline(batch, least_words), places, least_words)


def batch_of(folder: Path, *commands: tuple[str | bytes | int, ...]) -> Batch:
    tape = Tape(folder)
    name = tape.segment([(THEN, b"".join(command(*words) for words in commands))])
    (batch,) = read_batches(tape.folder, Slice(name, name.start, name.end))
    assert batch.start == START
    return batch


INNER = command("SET", "a", 1)


@pytest.mark.parametrize(
    "value",
    [
        b"plain",
        b"*",
        b"*3",
        b"*17\r\n$3\r\nSET\r\n",
        b"*03\r\n$3\r\nSET\r\n",
        b"*3\r\n:3\r\n",
        INNER,
        b"x" + INNER[:-3],
        INNER[:13],
        b"\r\n" + INNER,
        b"\r\n*2\r\n$",
        b"*3\r\n$3\r\nset\r\n",
        b"\r\n" * 9,
    ],
)
@pytest.mark.parametrize("least_words", [nothing, turns, long_ones])
@pytest.mark.parametrize("name", ["SET", "set", "MOD.SET"])
def test_what_looks_like_a_command_in_a_value_is_none(
    name: str, least_words: LeastWords, value: bytes, tmp_path: Path
) -> None:
    batch = batch_of(
        tmp_path,
        (name, "key", value),
        ("INCR", "n"),
        ("multi",),
        *[(name, "key", value)] * 3,
        ("SET", value, value, "KEEPTTL"),
        ("EXEC",),
        ("INCR", "n"),
        (name, "key", value),
    )
    assert_is_of(outline(batch, least_words), places_of(batch), least_words)


@pytest.mark.parametrize("words", [1, 2, 9, 10, 16, 17, 99, 300])
@pytest.mark.parametrize("wanted", [None, 1, 2, 16, 17, 200])
def test_commands_may_have_many_words(
    words: int, wanted: int | None, tmp_path: Path
) -> None:
    def least_words(name: bytes) -> int | None:
        return wanted if name == b"DEL" else None

    keys = ["key"] * (words - 1)
    batch = batch_of(tmp_path, *[("INCR", "n")] * 9, ("DEL", *keys), ("INCR", "n"))
    assert_is_of(outline(batch, least_words), places_of(batch), least_words)


def test_what_is_none_of_commands_is_told(tmp_path: Path) -> None:
    tape = Tape(tmp_path)
    name = tape.segment([(THEN, INNER + b"*1\r\n:1\r\n")])
    (batch,) = read_batches(tape.folder, Slice(name, name.start, name.end))
    with pytest.raises(VerificationError, match=f"from offset {START + len(INNER)} on"):
        outline(batch, nothing)
