"""Several processes read what one would, in its order, and end when they should."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from jobs import LARGE, Counted, Failing, killed, large, numbers, process_id, slices
from kvtape.errors import (
    DestinationError,
    Error,
    PointError,
    RepositoryError,
    UsageError,
    VerificationError,
)
from kvtape.storage.parallel import in_order, processes_for
from kvtape.storage.repository import SourceFolder
from kvtape.tape.catalogue import Slice
from kvtape.tape.names import SegmentName
from recording import REPLID, THEN, Tape


@pytest.fixture
def folder(tmp_path: Path) -> SourceFolder:
    """Return a source's folder."""
    return Tape(tmp_path).folder


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_any_number_of_processes_make_the_same_in_the_same_order(
    folder: SourceFolder, processes: int
) -> None:
    chosen = slices(8)
    alone = list(in_order(folder, chosen, numbers))
    assert alone == [p for slice_ in chosen for p in numbers(folder, slice_)]
    assert list(in_order(folder, chosen, numbers, processes)) == alone
    assert multiprocessing.active_children() == []


def test_the_work_is_done_by_as_many_processes_as_asked_for(
    folder: SourceFolder,
) -> None:
    assert {*in_order(folder, slices(4), process_id, 1)} == {os.getpid()}
    one, other, *rest = in_order(folder, slices(4), process_id, 2)
    assert len({one, other, os.getpid()}) == 3
    assert rest == [one, other]


def test_nothing_is_made_of_nothing(folder: SourceFolder) -> None:
    assert list(in_order(folder, [], numbers, 2)) == []


def test_what_is_larger_than_a_pipe_comes_whole(folder: SourceFolder) -> None:
    found = list(in_order(folder, slices(3), large, 2))
    assert found == [bytes([n + p]) * LARGE for n in (0, 10, 20) for p in range(3)]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "error",
    [
        VerificationError("it is damaged"),
        PointError("it is not there"),
        UsageError("it is not asked well"),
        RepositoryError("it may pass", is_passing=True),
        DestinationError("it is full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_as_in_this_process_and_in_its_place(
    folder: SourceFolder, error: Error, processes: int
) -> None:
    found: list[int] = []
    with pytest.raises(type(error)) as caught:
        found.extend(_each(folder, Failing(error), processes, found))
    assert found == [0, 1, 10, 11, 20]
    assert str(caught.value) == str(error)
    assert caught.value.exit_status == error.exit_status
    if isinstance(error, RepositoryError):
        assert isinstance(caught.value, RepositoryError)
        assert caught.value.is_passing
    assert multiprocessing.active_children() == []


def _each(
    folder: SourceFolder, job: Failing, processes: int, found: list[int]
) -> list[int]:
    for part in in_order(folder, slices(5), job, processes):
        found.append(part)  # noqa: PERF402 - what came before an error counts
    return []


def test_a_process_that_is_killed_is_said_to_be(folder: SourceFolder) -> None:
    with pytest.raises(RepositoryError, match="was killed, as happens where memory"):
        list(in_order(folder, slices(4), killed, 2))
    assert multiprocessing.active_children() == []


def test_whoever_has_enough_ends_the_processes(folder: SourceFolder) -> None:
    with closing(in_order(folder, slices(4), large, 2)) as parts:
        next(parts)
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


def test_nothing_is_made_ahead_of_a_slow_reader(
    folder: SourceFolder, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    with closing(in_order(folder, slices(2), Counted(str(notes)), 2)) as parts:
        # The second process has nobody who reads yet: it stands at a full pipe.
        for _ in range(1000):
            next(parts)
        made = notes.stat().st_size
        # A pipe holds 64 KiB, or what the machine allows it; a part has 10 kB.
        assert 1000 <= made < 1200
        assert sum(1 for _ in parts) == 1000
    assert notes.stat().st_size == 2000


SCRIPT = """
import sys
from kvtape.storage.parallel import in_order
from kvtape.storage.repository import open_repository
from jobs import Broken, large, slices

if __name__ == "__main__":
    folder = open_repository(sys.argv[1]).source(None)
    job = Broken() if sys.argv[2] == "broken" else large
    parts = in_order(folder, slices(6), job, 2)
    for part in parts:
        if sys.argv[2] == "early":
            break
    parts.close()
    print("done")
"""


def script(folder: SourceFolder, how: str) -> subprocess.CompletedProcess[str]:
    path = Path(folder.url).parent / "script.py"
    path.write_text(SCRIPT)
    tests = str(Path(__file__).parent)
    source = os.pathsep.join([tests, *sys.path])
    return subprocess.run(
        [sys.executable, str(path), str(path.parent), how],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": source},
    )


def test_leaving_early_is_silent(folder: SourceFolder) -> None:
    ended = script(folder, "early")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_bug_in_a_process_is_not_taken_for_a_lack_of_memory(
    folder: SourceFolder,
) -> None:
    ended = script(folder, "broken")
    assert ended.returncode != 0
    assert "ZeroDivisionError: a bug" in ended.stderr
    assert "memory" not in ended.stderr


def test_as_many_processes_are_started_as_are_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})

    def large_slices(count: int, length: int) -> list[Slice]:
        name = SegmentName(REPLID, 0, length, THEN, THEN)
        return [Slice(name, 0, length)] * count

    assert processes_for([]) == 1
    assert processes_for(large_slices(10, 1000)) == 1
    assert processes_for(large_slices(1, 2**40)) == 1
    assert processes_for(large_slices(2, 64 * 2**20)) == 2
    assert processes_for(large_slices(3, 32 * 2**20)) == 3
    assert processes_for(large_slices(10, 2**30)) == 4
