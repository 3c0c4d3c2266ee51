"""Which segments may name a key is told by their filters, and never wrongly no.

A filter is made when it is missing or damaged, where the repository can be written and
where it cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from kvtape.errors import RepositoryError, VerificationError
from kvtape.storage.filters import Answer, make_filter, segments_with
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.storage.store import Store, open_store
from kvtape.tape.command_table import find
from kvtape.tape.facts import with_crc
from kvtape.tape.key_filter import HEADER_SIZE
from kvtape.tape.names import FilterName, SegmentName
from kvtape.tape.translate import read_commands
from object_store import Bucket
from recording import Tape, recorded
from tapes import decompressed

KEY = b"key:7"


@pytest.fixture
def tape(tmp_path: Path) -> Tape:
    """Return a tape of 20 segments, of which each has a key of its own."""
    tape = Tape(tmp_path / "repo").snapshot()
    for number in range(20):
        tape.commands(("SELECT", 0), ("SET", f"key:{number}", 1), ("INCR", "counter"))
    return tape


def segments_of(folder: SourceFolder) -> list[SegmentName]:
    return [name for names in folder.catalogue().segments.values() for name in names]


def asked(folder: SourceFolder, *keys: bytes) -> list[Answer]:
    return list(segments_with(folder, segments_of(folder), keys))


def needed(answers: Iterable[Answer]) -> list[int]:
    return [number for number, answer in enumerate(answers) if answer.is_needed]


def filters_in(folder: SourceFolder) -> list[str]:
    return sorted(folder.list("filters/"))


def test_missing_filters_are_made_and_kept(tape: Tape) -> None:
    answers = asked(tape.folder, KEY)
    assert [answer.segment for answer in answers] == segments_of(tape.folder)
    assert needed(answers) == [7]
    assert not answers[7].touches_all
    paths = [FilterName(segment).path for segment in segments_of(tape.folder)]
    assert filters_in(tape.folder) == sorted(paths)
    assert tape.folder.read(paths[7]) == make_filter(tape.folder, answers[7].segment)


def test_filters_that_are_there_are_enough(tape: Tape) -> None:
    asked(tape.folder, KEY)
    for segment in segments_of(tape.folder):
        Path(tape.folder.url, segment.path).write_bytes(b"")
    assert needed(asked(tape.folder, KEY)) == [7]


def test_several_keys_are_asked_for_at_once(tape: Tape) -> None:
    assert needed(asked(tape.folder, b"key:3", b"key:15", b"nowhere")) == [3, 15]
    assert needed(asked(tape.folder, b"counter")) == list(range(20))
    assert needed(asked(tape.folder)) == []


def test_a_segment_that_touches_all_keys_is_needed_for_every_key(tape: Tape) -> None:
    tape.commands(("SET", "key:20", 1), ("FLUSHALL",))
    tape.commands(("SET", "key:21", 1))
    answers = asked(tape.folder, KEY)
    assert needed(answers) == [7, 20]
    assert (answers[20].may_name, answers[20].touches_all) == (False, True)


def test_a_segment_with_an_unknown_command_is_needed_for_every_key(tape: Tape) -> None:
    tape.commands(("MODULE.WRITE", "what"))
    answers = asked(tape.folder, KEY)
    assert needed(answers) == [7, 20]
    assert answers[20].may_name


def test_an_object_store_is_asked_in_the_same_way(tape: Tape, bucket: Bucket) -> None:
    store = open_store(bucket.url)
    for path, _ in sorted(tape.folder.list().items()):
        store.put(f"{tape.folder.name}/{path}", tape.folder.read(path))
    folder = SourceFolder(store, tape.folder.name)
    assert needed(asked(folder, KEY)) == [7]
    assert len(filters_in(folder)) == 20
    for segment in segments_of(folder):
        store.delete(f"{folder.name}/{segment.path}")
    answers = segments_with(folder, segments_of(tape.folder), [KEY, b"key:9"])
    assert needed(answers) == [7, 9]


def test_no_segments_are_no_answers(tape: Tape) -> None:
    assert list(segments_with(tape.folder, [], [KEY])) == []


def test_who_has_heard_enough_need_not_hear_the_rest(tape: Tape) -> None:
    answers = segments_with(tape.folder, segments_of(tape.folder), [KEY])
    assert next(answers).segment.start == 1000
    assert isinstance(answers, Iterator)
    del answers


def test_segments_are_not_taken_long_before_they_are_asked_about(tape: Tape) -> None:
    taken = []

    def segments() -> Iterator[SegmentName]:
        for segment in segments_of(tape.folder) * 5:
            taken.append(segment)
            yield segment

    answers = segments_with(tape.folder, segments(), [KEY])
    next(answers)
    assert len(taken) < 20


# Damage.


@pytest.mark.parametrize("content", [b"", b"x", b"kvtape-k", b"garbage" * 99])
def test_a_damaged_filter_is_made_anew(tape: Tape, content: bytes) -> None:
    asked(tape.folder, KEY)
    path = Path(tape.folder.url, filters_in(tape.folder)[7])
    good = path.read_bytes()
    path.write_bytes(content)
    assert needed(asked(tape.folder, KEY)) == [7]
    assert path.read_bytes() == good


def test_any_damage_to_a_filter_is_found_where_it_matters(tape: Tape) -> None:
    asked(tape.folder, KEY)
    segment = segments_of(tape.folder)[7]
    path = Path(tape.folder.url, FilterName(segment).path)
    good = path.read_bytes()
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 0x10
        for content in (bytes(damaged), good[:at]):
            path.write_bytes(content)
            (answer,) = segments_with(tape.folder, [segment], [KEY])
            assert answer.may_name


def test_the_filter_of_another_segment_is_replaced(tape: Tape) -> None:
    asked(tape.folder, KEY)
    paths = [Path(tape.folder.url, path) for path in filters_in(tape.folder)]
    paths[7].write_bytes(paths[8].read_bytes())
    assert needed(asked(tape.folder, KEY)) == [7]
    assert needed(asked(tape.folder, b"key:8")) == [8]


def test_the_filter_of_a_newer_kvtape_is_left_alone(tape: Tape) -> None:
    asked(tape.folder, KEY)
    path = Path(tape.folder.url, filters_in(tape.folder)[7])
    head = path.read_bytes()[: HEADER_SIZE - 8]
    newer = head[:8] + b"\x02\x00" + head[10:]
    newer += with_crc(newer)[-8:] + b"what comes then"
    path.write_bytes(newer)
    assert needed(asked(tape.folder, KEY)) == [7]
    assert path.read_bytes() == newer


def test_a_damaged_segment_is_needed(
    tape: Tape, caplog: pytest.LogCaptureFixture
) -> None:
    segments = segments_of(tape.folder)
    for segment, content in ((segments[3], b"x"), (segments[5], b"")):
        Path(tape.folder.url, segment.path).write_bytes(content)
    path = Path(tape.folder.url, segments[9].path)
    path.write_bytes(Path(tape.folder.url, segments[8].path).read_bytes())
    answers = list(segments_with(tape.folder, segments, [KEY]))
    assert needed(answers) == [3, 5, 7, 9]
    assert f"{segments[3].path} is damaged" in caplog.text
    assert len(filters_in(tape.folder)) == 17
    Path(tape.folder.url, segments[3].path).unlink()
    assert needed(segments_with(tape.folder, segments, [KEY])) == [3, 5, 7, 9]
    with pytest.raises(VerificationError, match="is missing"):
        make_filter(tape.folder, segments[3])


class ReadOnly:
    """A store that takes nothing, and counts what is read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.tries = 0
        self.read_bytes = 0
        self.is_gone = False
        self.url, self.open, self.list = store.url, store.open, store.list
        self.read = store.read

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Read, and count."""
        if self.is_gone:
            raise RepositoryError("the store is gone")
        content = self._store.read_range(path, start, end)
        self.read_bytes += len(content)
        return content

    def put(self, path: str, source: Path | bytes) -> None:
        """Refuse."""
        self.tries += 1
        raise RepositoryError(f"{path} may not be written")

    def delete(self, path: str) -> None:
        """Refuse."""
        self.put(path, b"")


def test_a_repository_that_is_read_only_is_no_error(tape: Tape) -> None:
    store = ReadOnly(tape.folder.store)
    folder = SourceFolder(store, tape.folder.name)
    assert needed(asked(folder, KEY)) == [7]
    assert store.tries == 1
    assert filters_in(folder) == []


def test_a_repository_that_cannot_be_read_is_an_error(tape: Tape) -> None:
    store = ReadOnly(tape.folder.store)
    store.is_gone = True
    with pytest.raises(RepositoryError, match="gone"):
        asked(SourceFolder(store, tape.folder.name), KEY)


def test_a_kilobyte_and_a_half_of_a_filter_is_read_at_most(tape: Tape) -> None:
    tape.commands(*(("SET", f"many:{number}", 1) for number in range(5000)))
    asked(tape.folder, KEY)
    store = ReadOnly(tape.folder.store)
    folder = SourceFolder(store, tape.folder.name)
    assert needed(asked(folder, b"many:77")) == [20]
    last = segments_of(folder)[-1]
    store.read_bytes = 0
    list(segments_with(folder, [last], [b"many:77"]))
    assert store.read_bytes <= 1536
    assert Path(folder.url, FilterName(last).path).stat().st_size > 7000


# Real recordings.


def keys_by_force(folder: SourceFolder, segment: SegmentName) -> set[bytes]:
    content = decompressed(folder.read(segment.path))
    keys = set()
    for words, _, _ in read_commands(content, segment.start):
        command = find(words)
        assert command is not None, words
        keys |= {words[use.at] for use in command.keys(words)}
    return keys


def test_filters_of_real_recordings_deny_no_key(
    server_name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tape = recorded(server_name, tmp_path_factory.mktemp(server_name))
    folder = open_repository(str(tape.repository)).source()
    segments = segments_of(folder)
    keys = {segment: keys_by_force(folder, segment) for segment in segments}
    every = sorted(set().union(*keys.values()))
    assert len(every) > 20
    wrong = 0
    for key in every:
        for answer in segments_with(folder, segments, [key]):
            assert answer.may_name or key not in keys[answer.segment]
            wrong += answer.may_name and key not in keys[answer.segment]
    assert wrong <= len(every) * len(segments) * 0.05
