"""An agent goes on through what passes, and ends with a sentence at what does not.

What it records from is kvtape's own primary, or what is no server at all.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from faulty_disk import FaultyDisk
from kvtape.errors import (
    Error,
    IdentityError,
    RepositoryError,
    ServerError,
)
from kvtape.record import backoff as backoff_module
from kvtape.record.agent import Agent
from kvtape.record.options import RecordOptions
from kvtape.record.spooling.place import default_spool
from kvtape.record.spooling.recorder import Limits
from kvtape.replication.refusal import RefusedError
from kvtape.server.url import ServerUrl
from kvtape.storage.repository import SourceFolder, create_repository
from kvtape.storage.spool import Spool
from kvtape.tape.documents import Server, Source
from primaries import Teller
from recording import rdb
from tapes import command, documents_of, stream_of
from telling import Handler, served, told, until

REPLID = "a" * 40
START = 5000
RDB = rdb((0, "key", "value", None))
STREAM = command("SELECT", 0) + b"".join(
    command("SET", f"key{number}", "x" * number) for number in range(60)
)


def options_for(port: int, folder: Path, **changes: Any) -> RecordOptions:  # noqa: ANN401
    options = RecordOptions(
        ServerUrl("127.0.0.1", port),
        str(folder / "repo"),
        "source",
        folder / "spool",
        limits=Limits(flush_interval=0.001, upload_interval=0.05, segment_size=300),
        full_resyncs_per_hour=1000,
        key_filters=False,
    )
    return replace(options, **changes)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for little before trying again."""
    monkeypatch.setattr(backoff_module, "_FIRST", 0.002)
    monkeypatch.setattr(backoff_module, "_LONGEST", 0.02)


async def error_of(options: RecordOptions) -> Error:
    with trio.fail_after(20), pytest.raises(Error) as caught:
        await Agent(options).run()
    return caught.value


# What is no server to record from.


async def close(_: trio.SocketStream) -> None:
    """Hang up before anything is said."""


def answering(data: bytes) -> Handler:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(data)
        # Or what was said might be lost by hanging up.
        await stream.receive_some()

    return answer


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (close, "closed the connection without a word"),
        (answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "speaks HTTP, not Redis"),
        (answering(b"\x15\x03\x01\x00\x02\x02\x46"), "speaks TLS"),
        (answering(b"SSH-2.0-OpenSSH_9.6\r\n"), "Protocol error"),
    ],
    ids=["closes", "HTTP", "TLS", "SSH"],
)
async def test_what_is_no_server_is_told_from_one(
    tmp_path: Path, handler: Handler, sentence: str
) -> None:
    async with served(handler) as port:
        error = await error_of(options_for(port, tmp_path))
    assert isinstance(error, ServerError)
    assert error.exit_status == 8
    assert sentence in str(error)
    assert not (tmp_path / "repo").exists()


async def test_where_nobody_listens_there_is_no_server(tmp_path: Path) -> None:
    async with served(close) as port:
        pass
    error = await error_of(options_for(port, tmp_path))
    assert isinstance(error, ServerError)
    assert str(error) == f"cannot connect to 127.0.0.1:{port}: Connection refused"


@pytest.mark.parametrize(
    ("refusal", "is_final"),
    [
        ("NOAUTH Authentication required.", True),
        ("ERR unknown command 'PSYNC'", True),
        ("LOADING Redis is loading the dataset in memory", False),
        ("NOMASTERLINK Can't SYNC while not connected with my master", False),
        ("ERR max number of clients reached", False),
    ],
)
async def test_a_refusal_ends_it_only_if_waiting_does_not_help(
    tmp_path: Path, refusal: str, *, is_final: bool
) -> None:
    handler = answering(f"-{refusal}\r\n".encode())
    async with served(handler) as port, trio.open_nursery() as nursery:
        agent = Agent(options_for(port, tmp_path))
        if is_final:
            error = await error_of(agent.options)
            assert isinstance(error, RefusedError)
            assert refusal in str(error)
        else:
            nursery.start_soon(agent.run)
            await until(lambda: refusal in str(agent.trouble))
            agent.stop()


# Where it records to.


async def record(folder: Path, teller: Teller, **changes: Any) -> Agent:  # noqa: ANN401
    """Record all that a teller has."""
    async with told(teller) as port:
        options = options_for(port, folder, until_offset=teller.end, **changes)
        agent = Agent(options)
        with trio.fail_after(20):
            await agent.run()
    return agent


async def test_it_records_until_the_offset_it_is_given_and_stores_all_of_it(
    tmp_path: Path,
) -> None:
    agent = await record(tmp_path, Teller(REPLID, START, STREAM, RDB, has_mark=True))
    assert stream_of(tmp_path / "repo" / "source", REPLID) == (START, STREAM)
    assert agent.stored == START + len(STREAM)
    assert agent.uploader.waiting == {}
    [source] = documents_of(tmp_path / "repo", "*/source.json")
    assert source["name"] == "source"


async def test_the_source_is_named_after_the_address_if_nobody_says(
    tmp_path: Path,
) -> None:
    teller = Teller(REPLID, START, STREAM, RDB)
    async with told(teller) as port:
        for _ in range(2):
            options = options_for(port, tmp_path, source=None, until_offset=START)
            await Agent(options).run()
        assert list(create_repository(str(tmp_path / "repo"), 0).sources()) == [
            f"127.0.0.1-{port}"
        ]
    assert len(documents_of(tmp_path / "repo", "*/snapshots/*/*/manifest.json")) == 1


async def test_another_servers_recording_is_not_continued_by_mistake(
    tmp_path: Path,
) -> None:
    repository = create_repository(str(tmp_path / "repo"), 0)
    repository.add_source(Source("mine", "db.example:6379", 0, Server()))
    async with told(Teller(REPLID, START, STREAM, RDB)) as port:
        error = await error_of(options_for(port, tmp_path, source=None))
    assert isinstance(error, IdentityError)
    assert error.exit_status == 6
    assert "the source mine was recorded from db.example:6379, and" in str(error)
    assert "say --adopt if" in str(error)
    assert not (tmp_path / "repo" / "mine" / "histories").exists()


def test_the_spool_stands_in_the_users_state_if_nobody_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folders = [
        create_repository(str(tmp_path / name), 0).add_source(
            Source("mine", "db.example:6379", 0, Server())
        )
        for name in ("one", "two")
    ]
    spools = [default_spool(folder) for folder in folders]
    assert spools == [default_spool(folder) for folder in folders]
    assert len(set(spools)) == 2
    for spool in spools:
        assert spool.parent == tmp_path / "state" / "kvtape"
        assert spool.name.startswith("mine-")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_spool(folders[0]).parent == tmp_path / ".local" / "state" / "kvtape"


async def test_a_second_agent_on_a_spool_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    teller = Teller(REPLID, START, STREAM, RDB)
    async with told(teller) as port, trio.open_nursery() as nursery:
        agent = Agent(options_for(port, tmp_path))
        nursery.start_soon(agent.run)
        await until(lambda: agent.is_ready and agent.recorder.durable == teller.end)
        error = await error_of(options_for(port, tmp_path))
        assert isinstance(error, RepositoryError)
        assert "another kvtape records with the spool" in str(error)
        agent.stop()
    assert stream_of(tmp_path / "repo" / "source", REPLID) == (START, STREAM)


async def test_a_spool_of_another_repository_is_refused_and_not_kept_locked(
    tmp_path: Path,
) -> None:
    teller = Teller(REPLID, START, STREAM, RDB)
    await record(tmp_path, teller)
    async with told(teller) as port:
        other = options_for(port, tmp_path, repository=str(tmp_path / "other"))
        for _ in range(2):
            error = await error_of(other)
            assert isinstance(error, IdentityError)
            assert "give this recording another --spool" in str(error)
    await record(tmp_path, teller)


async def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "photo.jpg").write_bytes(b"")
    async with told(Teller(REPLID, START, STREAM, RDB)) as port:
        error = await error_of(options_for(port, tmp_path))
    assert isinstance(error, IdentityError)
    assert "is no kvtape repository" in str(error)
    assert not (tmp_path / "spool").exists()


async def test_a_spool_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with told(Teller(REPLID, START, STREAM, RDB)) as port:
        options = options_for(port, tmp_path, spool=tmp_path / "file" / "spool")
        error = await error_of(options)
    assert isinstance(error, RepositoryError)
    assert str(error) == (
        f"cannot write to the spool {tmp_path}/file/spool: Not a directory"
    )


async def test_another_recordings_bytes_under_our_names_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = SourceFolder.put

    def put_behind_another(folder: SourceFolder, path: str, source: Path) -> None:
        if path.startswith("snapshots/"):
            put(folder, path, b"another's")
        put(folder, path, source)

    monkeypatch.setattr(SourceFolder, "put", put_behind_another)
    async with told(Teller(REPLID, START, STREAM, RDB)) as port:
        error = await error_of(options_for(port, tmp_path))
    assert isinstance(error, IdentityError)
    assert "holds something else" in str(error)


# Stopping.


async def test_it_stops_while_it_waits_for_a_server_to_come_back(
    tmp_path: Path,
) -> None:
    teller = Teller(REPLID, START, STREAM, RDB)
    agent: Agent
    async with trio.open_nursery() as nursery:
        async with told(teller) as port:
            agent = Agent(options_for(port, tmp_path))
            nursery.start_soon(agent.run)
            await until(lambda: agent.is_ready and agent.recorder.durable == teller.end)
        await until(lambda: "Connection refused" in str(agent.trouble))
        agent.stop()
    assert stream_of(tmp_path / "repo" / "source", REPLID) == (START, STREAM)


async def test_it_stops_while_the_limit_on_full_resyncs_keeps_it_waiting(
    tmp_path: Path,
) -> None:
    await record(tmp_path, Teller(REPLID, START, STREAM, RDB))
    async with (
        told(Teller("b" * 40, START, STREAM, RDB)) as port,
        trio.open_nursery() as nursery,
    ):
        options = options_for(port, tmp_path, full_resyncs_per_hour=1, adopt=True)
        agent = Agent(options)
        nursery.start_soon(agent.run)
        await until(lambda: "--full-resyncs-per-hour" in str(agent.trouble))
        agent.stop()


async def test_stopped_at_once_it_records_nothing_and_is_content(
    tmp_path: Path,
) -> None:
    async with told(Teller(REPLID, START, STREAM, RDB)) as port:
        agent = Agent(options_for(port, tmp_path))
        agent.stop()
        with trio.fail_after(20):
            await agent.run()
    assert documents_of(tmp_path / "repo" / "source", "snapshots/*/*/*.json") == []


# When the disk of the spool fails.


def said_by(agent: Agent) -> str:
    """Return what an agent says of its disk."""
    if agent.is_ready and agent.uploader.error is not None:
        return str(agent.uploader.error)
    return agent.trouble if agent.trouble and "No space" in agent.trouble else ""


async def record_on(disk: FaultyDisk, folder: Path, name: str) -> list[str]:
    """Record on a disk that fails, and heals when the agent has said so."""
    teller = Teller(REPLID, START, STREAM, RDB, has_mark=True)
    troubles: list[str] = []
    async with told(teller) as port, trio.open_nursery() as nursery:
        spool = disk.folder / name
        options = options_for(port, folder / name, spool=spool, until_offset=teller.end)
        agent = Agent(options)

        async def heal() -> None:
            await until(lambda: bool(said_by(agent)))
            troubles.append(said_by(agent))
            # What lasts is tried again meanwhile, and fails again.
            await trio.sleep(0.01)
            disk.heal()

        nursery.start_soon(heal)
        with trio.fail_after(20):
            await agent.run()
        nursery.cancel_scope.cancel()
    return troubles


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for a while"])
async def test_after_any_operation_that_fails_it_goes_on_and_stores_everything(
    disk: FaultyDisk, tmp_path: Path, *, lasting: bool
) -> None:
    # The disk fails under an agent that runs, not under one that starts.
    Spool(disk.folder / "none").open("repository", "source")
    begun = len(disk.operations)
    assert await record_on(disk, tmp_path, "whole") == []
    steps = len(disk.operations) - begun
    assert steps > 60
    said = 0
    for step in range(begun + 2, steps - 2, 4):
        disk.fail(step, errno.ENOSPC, lasting=lasting)
        try:
            troubles = await record_on(disk, tmp_path, str(step))
        except RepositoryError:
            # It was about to stop, or it had only just begun.
            disk.heal()
            troubles = await record_on(disk, tmp_path, str(step))
        said += len(troubles)
        disk.heal()
        folder = tmp_path / str(step) / "repo" / "source"
        assert stream_of(folder, REPLID) == (START, STREAM)
        assert len(documents_of(folder, "snapshots/*/*/manifest.json")) >= 1
        assert documents_of(folder, "gaps/*/*.json") == []
    assert said > 3


async def test_a_disk_that_fails_at_the_end_is_an_error_and_keeps_what_it_has(
    disk: FaultyDisk, tmp_path: Path
) -> None:
    teller = Teller(REPLID, START, STREAM, RDB)
    async with told(teller) as port:
        limits = Limits(flush_interval=0.001, upload_interval=60)
        options = options_for(
            port, tmp_path, spool=disk.folder / "spool", limits=limits
        )
        agent = Agent(options)
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises(RepositoryError, match="No space left") as caught:
                    await agent.run()
                assert caught.value.exit_status == 7

            nursery.start_soon(run)
            await until(lambda: agent.is_ready and agent.recorder.durable == teller.end)
            disk.fail(1, errno.ENOSPC, lasting=True)
            agent.stop()
        disk.heal()
        again = Agent(replace(options, until_offset=teller.end))
        await again.run()
    assert len(teller.psyncs) == 1
    assert stream_of(tmp_path / "repo" / "source", REPLID) == (START, STREAM)
