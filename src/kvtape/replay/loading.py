"""Beginning a replay with the state of the moment that it begins at.

The target takes it as a replica does (kvtape.restore.into), with its expiries moved to
now, and is its own primary then. What is not replayed is deleted there, what is has its
new names, before the replay writes down that it has begun: a start that is interrupted
is begun anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import hiredis
import trio

from kvtape.errors import PointError, ServerError
from kvtape.progress import Watch
from kvtape.replay.options import ReplayOptions
from kvtape.replay.selection import Selection
from kvtape.restore.changes import Changes
from kvtape.restore.into import IntoOptions, restore_into
from kvtape.restore.job import Job, open_job
from kvtape.server.client import Client, open_client
from kvtape.server.info import ask_info
from kvtape.storage.reader import resolve
from kvtape.storage.repository import SourceFolder
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.plan import Plan, choose
from kvtape.tape.point import Point, ToLatest, ToOffset

# By how much longer (ms) keys of the snapshot live: it takes a while to be loaded, and
# what is left of a key until the stream goes on must be there then.
_MARGIN = 10_000
_MS_PER_BYTE = 1 / 10_000

_SCAN = 1000


def begin_with_snapshot(
    folder: SourceFolder, catalogue: Catalogue, start: Point | None, end: Point | None
) -> tuple[ToOffset, ToOffset]:
    """Return the offsets that a replay begins and ends at, each at a boundary. Blocks.

    By itself it begins as far back as one can restore in the story of the end.
    """
    last = resolve(folder, choose(catalogue, end or ToLatest())).plan
    if start is None:
        return _first(catalogue, last), ToOffset(last.offset, last.replid)
    first = resolve(folder, choose(catalogue, start)).plan
    return ToOffset(first.offset, first.replid), ToOffset(last.offset, last.replid)


def _first(catalogue: Catalogue, last: Plan) -> ToOffset:
    lineage = catalogue.lineage(last.replid)
    starts = [
        stretch.start
        for stretch in catalogue.stretches(lineage)
        if stretch.start <= last.offset <= stretch.end
    ]
    if not starts:
        raise PointError("there is no snapshot that leads to the end of the replay")
    start = starts[-1]
    replid = next(
        (part.replid for part in lineage if part.end is None or start <= part.end),
        last.replid,
    )
    return ToOffset(start, replid)


async def load(
    options: ReplayOptions, start: ToOffset, watch: Watch, now: float
) -> Job:
    """Load what was there at the start, by its offset; return how that was done.

    now is in ms since the epoch.
    """

    def find() -> Job:
        return open_job(options.repository, options.source, start, watch)

    job = await trio.to_thread.run_sync(find)
    margin = _MARGIN + int(job.length * _MS_PER_BYTE)
    ttls = Changes("shift").ttls(
        job.plan.snapshot.manifest, job.resolved.time, int(now) + margin
    )
    assert ttls is not None  # it is a shift
    # What nobody knows is passed on as it is, as what is replayed behind it.
    job = replace(job, ttls=replace(ttls, is_lenient=True))
    into = IntoOptions(options.url, options.announce, options.force)
    await restore_into(job, into)
    if options.selection != Selection():
        async with open_client(options.url) as client:
            await _select(client, options.selection)
    return job


async def _select(client: Client, selection: Selection) -> None:
    """Delete what is not replayed, and give the rest the names that it has there."""
    info = await ask_info(client, "keyspace")
    for db in sorted(info.databases):
        if not selection.dbs or db in selection.dbs:
            await _select_keys(client, selection, db)
        else:
            await client.call("SELECT", db)
            await client.call("FLUSHDB")
    for one, other in _swaps(dict(selection.db_map)):
        await client.call("SWAPDB", one, other)


async def _select_keys(client: Client, selection: Selection, db: int) -> None:
    await client.call("SELECT", db)
    # All first: a key may be found again under its new name.
    keys = [key async for key in _keys(client)]
    changes: list[tuple[bytes, ...]] = []
    for key in keys:
        new = selection.renamed(key)
        if not selection.wants(key, db):
            changes.append((b"UNLINK", key))
        elif new != key:
            changes.append((b"RENAME", key, new))
    for start in range(0, len(changes), _SCAN):
        some = changes[start : start + _SCAN]
        await client.send(*some)
        for reply in await client.replies(len(some)):
            if isinstance(reply, hiredis.ReplyError):
                raise ServerError(f"the target does not let keys be renamed: {reply}")


async def _keys(client: Client) -> AsyncIterator[bytes]:
    cursor = b"0"
    while True:
        reply = await client.call("SCAN", cursor, "COUNT", _SCAN)
        match reply:
            case [bytes(next_cursor), list(keys)]:
                cursor = next_cursor
                for key in keys:
                    if isinstance(key, bytes):
                        yield key
            case _:
                raise ServerError(f"the target answered SCAN with {reply!r:.60}")
        if cursor == b"0":
            return


def _swaps(mapping: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Yield which databases to swap so that each becomes what it is mapped to.

    What a mapped one takes the place of is mapped itself, or empty.
    """
    place = {db: db for db in {*mapping, *mapping.values()}}
    for old, new in mapping.items():
        at = place[old]
        if at == new:
            continue
        yield at, new
        for db, where in place.items():
            if where == new:
                place[db] = at
        place[old] = new
