"""Recording goes back to the last command that a promoted server has, or stays."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from kvtape.record.histories.rewind import Rewinder
from kvtape.record.spooling.position import recover, stored_catalogue, stored_position
from kvtape.replication.replica import LinkError
from kvtape.replication.tracker import Tracker
from kvtape.server.info import ServerInfo
from kvtape.storage.repository import SourceFolder
from kvtape.storage.store import LocalStore
from primaries import Teller
from tapes import command, documents_of, stream_of
from test_session import NEW, OLD, RDB, START, STREAM, Recording, short_frames

END = START + len(STREAM)

__all__ = ["short_frames"]  # a fixture


def says(shared: int, replid: str = NEW, parent: str = OLD) -> ServerInfo:
    """Return what a server says that was promoted at an offset."""
    return ServerInfo(
        {
            "master_replid": replid,
            "master_replid2": parent,
            "second_repl_offset": str(shared + 1),
        }
    )


def rewinder_of(recording: Recording, repository: Path) -> Rewinder:
    folder = SourceFolder(LocalStore(repository), "source")
    return Rewinder(recording.recorder, folder, recording.spool)


def places() -> list[tuple[int, int]]:
    """Return the last boundary before each offset of the stream, and its database."""
    tracker = Tracker(START, 3)
    found = [(START, 3)]
    for byte in range(len(STREAM)):
        tracker.feed(STREAM[byte : byte + 1])
        found.append((tracker.boundary, tracker.db))
    return found


@pytest.mark.parametrize("is_uploaded", [False, True])
async def test_it_goes_back_to_the_last_boundary_before_any_offset(
    tmp_path: Path, *, is_uploaded: bool
) -> None:
    recording = Recording(tmp_path / "spool")
    with closing(recording.spool):
        async with recording.running():
            await recording.link(Teller(OLD, START, STREAM, RDB))
            rewinder = rewinder_of(recording, tmp_path / "repo")
            await recording.recorder.settle()
            if is_uploaded:
                (tmp_path / "repo").mkdir()
                shutil.move(recording.queue, tmp_path / "repo" / "source")
                recording.queue.mkdir()
            for shared, (boundary, db) in enumerate(places(), start=START):
                if shared == END:
                    break
                await rewinder.go_back(says(shared))
                assert rewinder.is_back
                end = recording.recorder.end
                assert end is not None
                assert (end.offset, end.db) == (boundary, db)
                assert recording.recorder.position == (OLD, boundary)
            rewinder.undo()
            assert recording.recorder.position == (OLD, END)
            assert not rewinder.is_back


async def test_it_stays_where_it_is_if_there_is_nothing_to_go_back_for(
    tmp_path: Path,
) -> None:
    recording = Recording(tmp_path / "spool")
    with closing(recording.spool):
        async with recording.running():
            rewinder = rewinder_of(recording, tmp_path)
            await rewinder.go_back(says(START))
            assert not rewinder.is_back
            await recording.link(Teller(OLD, START, STREAM, RDB))
            for info in (
                ServerInfo({}),
                says(END),
                says(END + 100),
                says(START + 50, replid=OLD),
                says(START + 50, parent="c" * 40),
                says(START - 1),  # before the first snapshot
                says(-2),  # as INFO shows where there is none
            ):
                await rewinder.go_back(info)
                assert recording.recorder.position == (OLD, END)
                assert not rewinder.is_back


async def test_both_branches_are_recorded_also_when_links_break_on_the_way(
    tmp_path: Path,
) -> None:
    fork = places()[600][0]
    shared = START + 600
    rest = command("SET", "new", 1) * 9
    stream = STREAM[: fork - START] + rest
    new = Teller(NEW, START, stream, RDB, older=(OLD, shared))
    recording = Recording(tmp_path / "spool")
    with closing(recording.spool):
        async with recording.running():
            await recording.link(Teller(OLD, START, STREAM, RDB))
            rewinder = rewinder_of(recording, tmp_path)
            for cut in (0, 60, None):
                rewinder.undo()
                assert recording.recorder.position == (OLD, END)
                await rewinder.go_back(says(shared))
                recording.commits.attach(says(shared), "heir:6379", 0)
                await recording.link(new, cut)
            rewinder.undo()
            assert recording.recorder.position == (NEW, new.end)
        assert stream_of(recording.queue, OLD) == (START, STREAM)
        assert stream_of(recording.queue, NEW) == (fork, rest)
        [_, history] = documents_of(recording.queue, "histories/*.json")
        assert (history["parent"], history["parent_offset"]) == (OLD, shared)
        assert history["address"] == "heir:6379"
        assert documents_of(recording.queue, "gaps/*/*.json") == []


async def test_a_crash_before_the_server_agreed_leaves_the_end_to_go_on_from(
    tmp_path: Path,
) -> None:
    recording = Recording(tmp_path / "spool")
    with closing(recording.spool):
        async with recording.running():
            await recording.link(Teller(OLD, START, STREAM, RDB))
            await rewinder_of(recording, tmp_path).go_back(says(START + 600))
            assert recording.recorder.received < END
    again = Recording(tmp_path / "spool")
    with closing(again.spool):
        assert recover(again.spool) is None
        folder = SourceFolder(LocalStore(tmp_path), "source")
        stored = stored_catalogue(folder, again.spool)
        position = stored_position(stored, folder, again.spool)
        assert position is not None
        assert (position.replid, position.offset) == (OLD, END)


class _Uploading(LocalStore):
    """A repository to which all that is queued is uploaded while it is listed."""

    def __init__(self, folder: Path, queue: Path) -> None:
        super().__init__(folder)
        self.queue = queue

    def list(self, prefix: str = "", depth: int | None = None) -> dict[str, int]:
        listing = super().list(prefix, depth)
        shutil.copytree(self.queue, self.folder / "source", dirs_exist_ok=True)
        for file in [file for file in self.queue.rglob("*") if file.is_file()]:
            file.unlink()
        return listing


async def test_what_is_uploaded_while_it_is_looked_for_is_found(
    tmp_path: Path,
) -> None:
    recording = Recording(tmp_path / "spool")
    with closing(recording.spool):
        async with recording.running():
            await recording.link(Teller(OLD, START, STREAM, RDB))
            store = _Uploading(tmp_path / "repo", recording.queue)
            folder = SourceFolder(store, "source")
            await recording.recorder.settle()
            stored = stored_catalogue(folder, recording.spool)
            assert recording.spool.queued() == {}
            position = stored_position(stored, folder, recording.spool)
            assert position is not None
            assert (position.replid, position.offset) == (OLD, END)


async def test_a_server_that_did_not_part_after_all_is_not_recorded_twice(
    tmp_path: Path,
) -> None:
    recording = Recording(tmp_path / "spool")
    liar = Teller(OLD, START, STREAM[:600] + command("SET", "other", 1), RDB)
    with closing(recording.spool):
        async with recording.running():
            await recording.link(Teller(OLD, START, STREAM, RDB))
            rewinder = rewinder_of(recording, tmp_path)
            await rewinder.go_back(says(START + 600))
            recording.must_fork = rewinder.is_back
            error = await recording.link(liar)
            assert isinstance(error, LinkError)
            assert "goes on with it all the same" in str(error)
            rewinder.undo()
            assert recording.recorder.position == (OLD, END)
        assert stream_of(recording.queue, OLD) == (START, STREAM)


async def test_what_cannot_be_read_now_is_tried_again_later(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "spool")
    (tmp_path / "file").write_bytes(b"")
    with closing(recording.spool):
        async with recording.running():
            await recording.link(Teller(OLD, START, STREAM, RDB))
            await recording.recorder.settle()
            shutil.rmtree(recording.queue)
            recording.queue.mkdir()
            rewinder = rewinder_of(recording, tmp_path / "file")
            with pytest.raises(LinkError, match="cannot be read"):
                await rewinder.go_back(says(START + 600))
            assert recording.recorder.position == (OLD, END)


async def test_what_is_stored_damaged_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "spool")
    with closing(recording.spool):
        async with recording.running():
            await recording.link(Teller(OLD, START, STREAM, RDB))
            await recording.recorder.settle()
            for file in recording.queue.glob("stream/*/*/*.seg"):
                file.write_bytes(file.read_bytes()[:30])
            rewinder = rewinder_of(recording, tmp_path)
            await rewinder.go_back(says(START + 600))
            assert not rewinder.is_back
            # Nor is a history of which nothing is stored at all.
            shutil.rmtree(recording.queue)
            recording.queue.mkdir()
            await rewinder.go_back(says(START + 600))
            assert not rewinder.is_back
            assert recording.recorder.position == (OLD, END)


@pytest.mark.usefixtures("short_frames")
@pytest.mark.parametrize("length", [10, 700])
async def test_a_part_of_a_command_that_the_heir_lacks_is_dropped(
    tmp_path: Path, length: int
) -> None:
    """In memory, or written already: it takes more than a frame."""
    recording = Recording(tmp_path / "spool")
    part = command("SET", "key", "x" * 1000)[:length]
    with closing(recording.spool):
        async with recording.running():
            await recording.link(Teller(OLD, START, STREAM + part, RDB))
            assert recording.recorder.received == END + length
            await rewinder_of(recording, tmp_path).go_back(says(END))
            assert recording.recorder.position == (OLD, END)
        assert stream_of(recording.queue, OLD) == (START, STREAM)
