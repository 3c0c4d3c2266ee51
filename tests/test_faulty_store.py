"""Whatever call to the store fails, or is the last: nothing is lost, nothing is false.

What is listed can be restored at any time; what was stored stays as it was; in the end
all of the stream is there, each byte once.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import trio

from faulty_store import FaultyFileSystem, register
from kvtape.record import backoff
from kvtape.record.uploading import uploader
from kvtape.restore.job import open_job
from kvtape.storage.reader import read_snapshot, read_stream
from kvtape.storage.repository import SourceFolder
from kvtape.storage.store import LocalStore
from kvtape.tape.point import ToOffset
from tapes import stream_of
from telling import REPLID, START, STREAM, record, teller


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_FIRST", 0.002)
    monkeypatch.setattr(backoff, "_LONGEST", 0.02)
    monkeypatch.setattr(uploader, "_BY_HAND", 0.02)


@pytest.fixture
def store() -> Iterator[type[FaultyFileSystem]]:
    """Return what faulty:// is."""
    yield register()
    FaultyFileSystem.at = 0


def contents(repository: Path) -> dict[str, bytes]:
    """Return all objects that a listing shows, with what they hold."""
    store = LocalStore(repository)
    return {path: store.read(path) for path in store.list()}


def restore_all_that_is_listed(repository: Path) -> None:
    """Read all that every restorable range takes, which verifies it."""
    folder = SourceFolder(LocalStore(repository), "source")
    catalogue = folder.catalogue()
    assert catalogue.problems in ([], [f"histories/{REPLID}.json is missing"])
    for found in catalogue.all_ranges():
        point = ToOffset(found.end, found.replid)
        plan = open_job(str(repository), "source", point).plan
        assert b"".join(read_snapshot(folder, plan.snapshot)).startswith(b"REDIS")
        data = b"".join(piece.data for piece in read_stream(folder, plan.slices))
        start = plan.snapshot.name.offset - START
        assert data == STREAM[start : start + len(data)]
        assert plan.offset == found.end


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_at_any_call_to_the_store_loses_nothing_and_leaves_nothing_false(
    tmp_path: Path, when: str
) -> None:
    program = Path(__file__).with_name("faulty_store.py")
    subprocess.run([sys.executable, program, tmp_path, when], check=True, timeout=60)
    folders = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(folders) > 20
    for folder in folders:
        repository = folder / "repo"
        before = contents(repository)
        restore_all_that_is_listed(repository)
        trio.run(record, teller(), str(repository), folder / "spool")
        after = contents(repository)
        assert after == after | before
        assert stream_of(repository / "source", REPLID) == (START, STREAM)
        restore_all_that_is_listed(repository)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
async def test_any_call_to_the_store_may_fail_and_all_is_stored_in_the_end(
    tmp_path: Path, store: type[FaultyFileSystem], when: Literal["before", "after"]
) -> None:
    store.when = when
    store.fail = fail
    at = 0
    while at <= store.calls:
        at += 1
        store.calls, store.at = 0, at
        folder = tmp_path / str(at)
        storyteller = teller()
        await record(storyteller, f"faulty://{folder / 'repo'}", folder / "spool")
        assert len(storyteller.psyncs) == 1
        assert stream_of(folder / "repo" / "source", REPLID) == (START, STREAM)
        restore_all_that_is_listed(folder / "repo")
    assert at > 20


def fail() -> None:
    raise TimeoutError("it took too long")
