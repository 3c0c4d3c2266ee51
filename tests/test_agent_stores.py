"""Recording goes on whatever an object store does, and all is stored in the end.

What is recorded is a story of kvtape's own primary; the store is an S3 over HTTP.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from kvtape.errors import IdentityError, RepositoryError
from kvtape.record import backoff
from kvtape.record.agent import Agent
from kvtape.record.uploading import uploader
from kvtape.replication.tracker import Summary
from kvtape.restore.job import open_job
from kvtape.storage import objects
from kvtape.storage.reader import read_stream
from kvtape.storage.repository import open_repository
from kvtape.storage.spool import Spool
from kvtape.tape.point import ToLatest
from kvtape.tape.segment import Header, Mark
from object_store import BadWay, Bucket
from primaries import Teller
from tapes import command
from telling import REPLID, START, STREAM, options_for, record, teller, told, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_FIRST", 0.002)
    monkeypatch.setattr(backoff, "_LONGEST", 0.02)
    monkeypatch.setattr(uploader, "_BY_HAND", 0.02)
    monkeypatch.setattr(objects, "_TRIES_OF_BOTOCORE", 1)
    monkeypatch.setattr(objects, "_TRIES_OF_S3FS", 1)


def stored_stream(url: str) -> bytes:
    """Return the stream up to the latest point, verified."""
    job = open_job(url, "source", ToLatest())
    return b"".join(piece.data for piece in read_stream(job.folder, job.plan.slices))


async def checked(url: str) -> bytes:
    return await trio.to_thread.run_sync(stored_stream, url)


# When it starts.


async def test_an_agent_that_starts_while_the_store_is_down_waits_for_it(
    bucket: Bucket, way: BadWay, tmp_path: Path
) -> None:
    storyteller = teller()
    way.trouble = lambda *_: (503, "SlowDown")
    async with told(storyteller) as port, trio.open_nursery() as nursery:
        agent = Agent(options_for(port, bucket.url, tmp_path / "spool"))
        nursery.start_soon(agent.run)
        await until(lambda: len(way.requests) > 3)
        assert f"cannot list {bucket.url}" in str(agent.trouble)
        way.trouble = lambda *_: None
        await until(lambda: agent.is_ready and agent.stored == storyteller.end)
        assert agent.trouble is None
        agent.stop()
    assert await checked(bucket.url) == STREAM


@pytest.mark.parametrize(
    ("has_queue", "trouble"),
    [
        (False, (503, "SlowDown")),
        (True, (503, "SlowDown")),
        (True, (403, "ExpiredToken")),
    ],
    ids=["open segment", "queue", "credentials"],
)
async def test_an_agent_whose_spool_knows_where_to_go_on_records_without_the_store(
    bucket: Bucket,
    way: BadWay,
    tmp_path: Path,
    trouble: tuple[int, str],
    *,
    has_queue: bool,
) -> None:
    storyteller = teller()
    story = storyteller.stream
    await record(storyteller, bucket.url, tmp_path / "spool")
    way.trouble = lambda *_: trouble
    # The store goes, then more is written, then the agent is killed.
    spool = tmp_path / "spool"
    with closing(Spool(spool)) as opened:
        identity = opened.identity()
        assert identity is not None
        opened.open(identity.repository, identity.source)
        more = command("SET", "more", 1)
        segment = opened.begin_segment(Header(REPLID, storyteller.end, 0, 1))
        end = storyteller.end + len(more)
        opened.append(segment.writer.frame(more, [Mark(end, 1)], end, 0, Summary()))
        if has_queue:
            opened.seal()
        else:
            opened.sync()
    storyteller.stream = story + more * 10
    async with told(storyteller) as port, trio.open_nursery() as nursery:
        agent = Agent(options_for(port, bucket.url, spool))
        nursery.start_soon(agent.run)
        await until(lambda: agent.is_ready)
        await until(lambda: agent.recorder.durable == storyteller.end)
        assert agent.stored is None
        way.trouble = lambda *_: None
        await until(lambda: agent.stored == storyteller.end)
        agent.stop()
    assert len(storyteller.psyncs) == 2
    assert await checked(bucket.url) == storyteller.stream


async def test_what_was_recorded_for_one_repository_is_not_stored_in_another(
    bucket: Bucket, way: BadWay, tmp_path: Path
) -> None:
    await record(teller(), bucket.url, tmp_path / "spool")
    with closing(Spool(tmp_path / "spool")) as spool:
        identity = spool.identity()
        assert identity is not None
        spool.open(identity.repository, identity.source)
        spool.begin_segment(Header(REPLID, START + len(STREAM), 0, 1))
        data = command("SET", "more", 1)
        end = START + len(STREAM) + len(data)
        assert spool.segment is not None
        writer = spool.segment.writer
        spool.append(writer.frame(data, [Mark(end, 1)], end, 0, Summary()))
        spool.seal()
    other = f"s3://{bucket.name}/other"
    await record(teller(), other, tmp_path / "other-spool")
    way.trouble = lambda *_: (503, "SlowDown")
    storyteller = teller()
    storyteller.stream += data
    with pytest.RaisesGroup(
        pytest.RaisesExc(IdentityError, match="is another repository"),
        flatten_subgroups=True,
    ):
        async with told(storyteller) as port, trio.open_nursery() as nursery:
            agent = Agent(options_for(port, other, tmp_path / "spool"))
            nursery.start_soon(agent.run)
            await until(lambda: agent.is_ready)
            way.trouble = lambda *_: None


@pytest.mark.parametrize("trouble", [(503, "SlowDown"), "never answers"], ids=str)
async def test_it_stops_at_once_while_it_waits_for_the_store(
    bucket: Bucket, way: BadWay, tmp_path: Path, trouble: object
) -> None:
    may_go_on = threading.Event()
    way.trouble = lambda *_: may_go_on if trouble == "never answers" else trouble
    async with told(teller()) as port:
        agent = Agent(options_for(port, bucket.url, tmp_path / "spool"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            await until(lambda: bool(way.requests))
            agent.stop()
    may_go_on.set()


async def test_it_stops_at_once_while_the_store_does_not_tell_what_is_there(
    bucket: Bucket, way: BadWay, tmp_path: Path
) -> None:
    await record(teller(), bucket.url, tmp_path / "spool")
    may_go_on, asked = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> object:
        # Of the repository itself all is well; all of a source is one listing.
        if "list-type" not in path or "delimiter=%2F" in path:
            return None
        asked.set()
        return may_go_on

    way.trouble = hang
    async with told(teller()) as port:
        agent = Agent(options_for(port, bucket.url, tmp_path / "spool"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            await until(asked.is_set)
            agent.stop()
            # Less than s3fs waits for an answer, which is 15 s.
            nursery.cancel_scope.deadline = trio.current_time() + 10
        assert not nursery.cancel_scope.cancelled_caught
    may_go_on.set()


async def test_an_agent_that_starts_with_no_bucket_ends_with_the_next_step(
    bucket: Bucket, tmp_path: Path
) -> None:
    with pytest.raises(RepositoryError, match="does not exist: create it") as caught:
        await record(teller(), f"s3://{bucket.name}-not", tmp_path / "spool")
    assert caught.value.exit_status == 7
    assert not (tmp_path / "spool").exists()


# While it runs.


def for_a_while(trouble: object) -> Callable[[str, str], object]:
    """Do this to the requests from the second on, five of them."""
    count = itertools.count(1)
    return lambda *_: trouble if 2 <= next(count) < 7 else None


def now_and_then(trouble: object) -> Callable[[str, str], object]:
    count = itertools.count(1)
    return lambda *_: trouble if next(count) % 3 == 0 else None


@pytest.mark.parametrize("when", [for_a_while, now_and_then])
@pytest.mark.parametrize(
    "trouble",
    [(503, "SlowDown"), "reset", "reset after", (403, "AccessDenied")],
    ids=str,
)
async def test_recording_goes_on_while_the_store_fails_and_all_is_stored_after(
    bucket: Bucket,
    way: BadWay,
    tmp_path: Path,
    when: Callable[[object], Callable[[str, str], object]],
    trouble: object,
) -> None:
    storyteller = teller()
    async with told(storyteller) as port, trio.open_nursery() as nursery:
        options = options_for(port, bucket.url, tmp_path / "spool")
        agent = Agent(options)
        nursery.start_soon(agent.run)
        await until(lambda: agent.is_ready)
        way.trouble = when(trouble)
        await until(lambda: agent.recorder.durable == storyteller.end)
        await until(lambda: agent.stored == storyteller.end)
        # The client tries some by itself, on a new connection.
        assert agent.uploader.failures > 0 or trouble in ("reset", "reset after")
        way.trouble = lambda *_: None
        agent.stop()
    assert len(storyteller.psyncs) == 1
    assert await checked(bucket.url) == STREAM
    assert bucket.unfinished_uploads() == []


async def test_what_the_bucket_lacks_may_come_while_it_records(
    bucket: Bucket, way: BadWay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storyteller = teller()
    async with told(storyteller) as port, trio.open_nursery() as nursery:
        agent = Agent(options_for(port, bucket.url, tmp_path / "spool"))
        nursery.start_soon(agent.run)
        await until(lambda: agent.is_ready)
        way.trouble = lambda *_: (404, "NoSuchBucket")
        await until(lambda: agent.recorder.durable == storyteller.end)
        await until(lambda: agent.uploader.failures > 3)
        assert "does not exist: create it" in str(agent.uploader.error)
        said = [r for r in caplog.records if "create it" in r.getMessage()]
        assert len(said) <= 2
        way.trouble = lambda *_: None
        await until(lambda: agent.stored == storyteller.end)
        assert agent.uploader.error is None
        agent.stop()
    assert await checked(bucket.url) == STREAM


async def test_a_store_that_never_answers_delays_a_stop_by_no_more_than_was_said(
    bucket: Bucket, way: BadWay, tmp_path: Path
) -> None:
    storyteller, may_go_on = teller(), threading.Event()
    async with told(storyteller) as port:
        options = options_for(port, bucket.url, tmp_path / "spool", stop_timeout=0.05)
        agent = Agent(options)
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                with pytest.raises(RepositoryError, match=r"stored within 0\.05 s"):
                    await agent.run()

            nursery.start_soon(run)
            await until(lambda: agent.is_ready)
            way.trouble = lambda *_: may_go_on
            await until(lambda: agent.recorder.durable == storyteller.end)
            agent.stop()
    may_go_on.set()
    way.trouble = lambda *_: None
    await record(storyteller, bucket.url, tmp_path / "spool")
    assert await checked(bucket.url) == STREAM


# Two agents.


async def test_two_agents_record_one_story_and_either_may_end_at_any_time(
    bucket: Bucket, tmp_path: Path
) -> None:
    storyteller = teller()
    stream = STREAM

    async def record_until_told(name: str, changes: dict[str, Any]) -> None:
        await record(storyteller, bucket.url, tmp_path / name, **changes)

    for step in range(1, 5):
        storyteller.stream = stream + command("SET", "step", step) * step * 10
        agents = [f"spool{number}" for number in range(2) if (step + number) % 3]
        # Whoever is first must not store what the other would begin behind.
        before = len(storyteller.psyncs)
        storyteller.audience = before + len(agents)
        async with trio.open_nursery() as nursery:
            for name in agents:
                nursery.start_soon(record_until_told, name, {})
        assert len({psync.offset for psync in storyteller.psyncs[before:]}) == 1
        stream = storyteller.stream
        assert await checked(bucket.url) == stream
    folder = await trio.to_thread.run_sync(lambda: open_repository(bucket.url).source())
    catalogue = await trio.to_thread.run_sync(folder.catalogue)
    [found] = catalogue.all_ranges()
    assert (found.start, found.end) == (START, START + len(stream))


async def test_a_server_that_went_back_and_tells_other_bytes_ends_it_and_all_is_kept(
    tmp_path: Path,
) -> None:
    repository = str(tmp_path / "repo")
    await record(teller(), repository, tmp_path / "spool")
    # As from an image of the machine: the same replication ID, and another future.
    half = len(STREAM) // 2
    other = STREAM[:half] + command("SET", "another", "future") * 10
    back = Teller(REPLID, START, other, teller().rdb, snapshot_at=half)
    with pytest.raises(IdentityError, match="hold different bytes at offset") as caught:
        await record(back, repository, tmp_path / "spool", until_offset=None)
    assert caught.value.exit_status == 6
    folder = await trio.to_thread.run_sync(lambda: open_repository(repository).source())
    segments = folder.catalogue().segments[REPLID]
    assert any(s.start == START + half for s in segments)
