"""Counts add up to what was counted, however many groups there are, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtape.audit import count
from kvtape.audit.count import By, Count, Counting, totals
from kvtape.errors import RepositoryError
from kvtape.replication.resp import packed_length
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.query import Query
from recording import REPLID, THEN

MINUTE = 60_000

keys = st.sampled_from([b"a", b"b", b"a:1", b"a:1:x", b":", b"", b"\xff"])
several = st.lists(keys, min_size=1, max_size=4)

words = st.one_of(
    several.map(lambda some: (b"DEL", *some)),
    keys.map(lambda key: (b"set", key, b"value")),
    st.just((b"FLUSHALL",)),
    keys.map(lambda key: (b"MOD.CMD", key)),
)


@st.composite
def streams(draw: st.DrawFn) -> list[RecordedCommand]:
    """Return commands that follow each other."""
    found, at = [], 1000
    for some in draw(st.lists(words, max_size=20)):
        end = at + packed_length(some)
        time = THEN + draw(st.integers(0, 3 * MINUTE))
        found.append(RecordedCommand(REPLID, at, end, time, time, 0, None, some))
        at = end
    return found


def groups_of(command: RecordedCommand, by: By, depth: int) -> set[object]:
    known = {b"DEL": command.words[1:], b"SET": command.words[1:2]}
    named = known.get(command.name, ())
    match by:
        case "command":
            return {command.name}
        case "minute":
            return {command.time - command.time % MINUTE}
        case "key":
            return {*named} or {None}
        case _:
            return {b":".join(key.split(b":")[:depth]) for key in named} or {None}


def measured(command: RecordedCommand) -> tuple[list[bytes], int, int]:
    return list(command.words), command.end - command.start, command.time


def counted(
    commands: Sequence[RecordedCommand], counting: Counting, size: int = 3
) -> list[Count]:
    """Count commands, a few at a time as they come from the processes."""
    with totals() as sums:
        for at in range(0, len(commands), size):
            sums.add(counting.count(map(measured, commands[at : at + size])))
        return list(sums.ordered(counting.by))


by = st.sampled_from(["command", "key", "prefix", "minute"])


@given(streams(), by, st.integers(1, 3), st.integers(0, 5))
def test_counts_are_those_of_each_command_and_bytes_add_up(
    commands: list[RecordedCommand], by: By, depth: int, in_memory: int
) -> None:
    with pytest.MonkeyPatch.context() as shrunk:
        # More groups than this are put away; of few keys that is often.
        shrunk.setattr(count, "_IN_MEMORY", in_memory)
        found = counted(commands, Counting(Query(), by, depth=depth))
    expected = Counter(
        group for command in commands for group in groups_of(command, by, depth)
    )
    assert {one.group: one.commands for one in found} == expected
    assert len({one.group for one in found}) == len(found)
    assert sum(one.bytes for one in found) == sum(c.end - c.start for c in commands)
    if by == "minute":
        assert found == sorted(found)
    else:
        sizes = [(one.bytes, one.commands) for one in found]
        assert sizes == sorted(sizes, reverse=True)


@given(streams(), by)
def test_how_the_commands_come_does_not_matter(
    commands: list[RecordedCommand], by: By
) -> None:
    counting = Counting(Query(), by)
    assert counted(commands, counting, 1) == counted(commands, counting, 1000)


def recorded(*some: bytes, start: int = 0) -> RecordedCommand:
    end = start + packed_length(some)
    return RecordedCommand(REPLID, start, end, THEN, THEN, 0, None, some)


def test_each_of_several_keys_has_its_share() -> None:
    command = recorded(b"DEL", b"a", b"bb", b"a", b"ccc")
    length = command.end - command.start
    found = counted([command], Counting(Query(), "key"))
    assert {one.group for one in found} == {b"a", b"bb", b"ccc"}
    assert [one.commands for one in found] == [1, 1, 1]
    assert max(one.bytes for one in found) - min(one.bytes for one in found) <= 2
    assert sum(one.bytes for one in found) == length
    # All of one prefix: it is one group.
    [one] = counted([recorded(b"DEL", b"a:1", b"a:2")], Counting(Query(), "prefix"))
    assert (one.group, one.commands) == (b"a", 1)


@pytest.mark.parametrize(
    ("depth", "prefix"),
    [(1, b"shop"), (2, b"shop:cart"), (3, b"shop:cart:17"), (4, b"shop:cart:17")],
)
def test_a_prefix_ends_before_the_colon_that_was_asked_for(
    depth: int, prefix: bytes
) -> None:
    command = recorded(b"SET", b"shop:cart:17", b"")
    [one] = counted([command], Counting(Query(), "prefix", depth=depth))
    assert one.group == prefix


def test_only_as_many_as_asked_for_are_told_the_largest_first() -> None:
    commands = [recorded(b"SET", b"k%d" % n, b"x" * n) for n in range(9)]
    with totals() as sums:
        sums.add(Counting(Query(), "key").count(map(measured, commands)))
        assert [one.group for one in sums.ordered("key", 2)] == [b"k8", b"k7"]


def test_a_group_without_a_key_is_one_also_when_it_was_put_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(count, "_IN_MEMORY", 0)
    found = counted([recorded(b"FLUSHALL")] * 5, Counting(Query(), "key"), 1)
    assert found == [Count(None, 5, 5 * packed_length([b"FLUSHALL"]))]


def test_where_the_disk_is_full_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "_IN_MEMORY", 0)
    with totals() as sums:
        # To SQLite it is a full disk when there may be no more pages.
        sums._database.execute("PRAGMA max_page_count = 3")
        many = [Count(b"%d" % n + b"x" * 1000, 1, 1) for n in range(100)]
        with pytest.raises(RepositoryError, match=r"cannot keep the counts.*TMPDIR"):
            sums.add(many)
