"""The state at a recorded moment, as an RDB file: exactly as it was then.

No server that is asked for values later tells it: what has expired since is deleted, or
hidden. But a replica deletes nothing by itself, and writes whatever it has into an RDB
file, which tells the expiries, too. So a scratch server loads the moment as a folder
(kvtape.restore.data_dir), as the replica of a primary that is not there, saves it, and
is gone before anybody looks at the keys. Tried on Redis 6.2, 7.0 and 8.0 and on Valkey
8.0, 8.1 and 9.1: a key, and a field of a hash, whose time has passed is in the file.

Decided against: reading from the server by DUMP, with active expiry turned off, which
only some releases can (DEBUG), and which leaves reads to delete what they touch; and a
clock that is set back, which takes a library that is loaded into the server.
"""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from kvtape.errors import ServerError, VerificationError
from kvtape.progress import Advance, Watch
from kvtape.restore.data_dir import Layout, restore_data_dir
from kvtape.restore.fit import grown_errors, release_of
from kvtape.restore.job import Job
from kvtape.restore.loader import Loader
from kvtape.server.client import open_client
from kvtape.server.info import ServerInfo, ask_info
from kvtape.server.scratch import private_server
from kvtape.tape.rdb import NEED_DATA, Key, RdbReader, read_header

# How the folder begins in which a moment is loaded.
FOLDER = "kvtape-moment-"

_PIECE = 1024 * 1024

_FILE = "point.rdb"

_FIRST_MULTI_PART = (7, 0)

_OPTIONS = (
    # Nobody listens on port 0, so it stays the replica of nobody.
    *("--replicaof", "127.0.0.1", "0"),
    *("--save", "", "--dbfilename", _FILE),
    # To unpack compressed strings would take most of the time that reading takes.
    *("--rdbcompression", "no"),
)


@dataclass(frozen=True, slots=True)
class State:
    """What was there at a moment, in a file that whoever made it removes.

    version and magic are the RDB file's.
    """

    file: Path
    job: Job
    loader: Loader
    version: int
    magic: str

    @property
    def time(self) -> int:
        """When the last byte before the moment was received (ms)."""
        return self.job.resolved.time

    def keys(self, stage: str, watch: Watch) -> Iterator[Key]:
        """Yield every key with its value, as a stage of a watch. Blocks.

        Memory is that of the largest value.
        """
        advance = watch.stage(stage, self.file.stat().st_size)
        reader = RdbReader()
        with self.file.open("rb") as file:
            while data := file.read(_PIECE):
                reader.receive_data(data)
                while (event := reader.next_event()) is not NEED_DATA:
                    if isinstance(event, Key):
                        yield event
                advance(len(data))
        if not reader.complete:
            raise ServerError(f"{self.loader.name} left out the end of its RDB file")


@dataclass(frozen=True, slots=True)
class CancelledWatch:
    """Ends a work in a thread of trio's when what waits for it is cancelled."""

    watch: Watch

    def stage(self, name: str, length: int) -> Advance:
        """Begin a stage that may end there."""
        advance = self.watch.stage(name, length)

        def advance_or_end(count: int) -> None:
            trio.from_thread.check_cancelled()
            advance(count)

        return advance_or_end


async def load_state(
    job: Job, loader: Loader, folder: Path, *, force: bool = False
) -> State:
    """Make the state that a job leads to, in a folder of nobody else's.

    Nothing else is left in the folder, and no server runs any more, also if it fails.
    Raises what restore_data_dir() raises, ServerError if the server fails, and
    VerificationError if it answers an error to a command of the stream.
    """
    data_dir = folder / "moment"
    try:
        await _restore(job, data_dir, _layout(loader), force=force)
        options = [str(data_dir / "redis.conf"), *_OPTIONS]
        async with (
            private_server(loader.program, data_dir, options, job.watch) as url,
            open_client(url) as client,
        ):
            errors = grown_errors(ServerInfo({}), await ask_info(client))
            if errors and not force:
                raise VerificationError(
                    f"{loader.name} answered errors while it loaded the moment "
                    f"({', '.join(errors)}), so it may not be what was recorded: name "
                    "a server like the recorded one (--scratch), or say --force"
                )
            # It serves nobody else meanwhile, so it need not fork.
            await client.call("SAVE", within=math.inf)
        file = folder / f"{job.plan.offset}-{secrets.token_hex(4)}.rdb"
        (data_dir / _FILE).rename(file)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    with file.open("rb") as opened:
        header, _ = read_header(opened.read(_PIECE))
    return State(file, job, loader, header.version, header.magic.decode())


async def _restore(job: Job, data_dir: Path, layout: Layout, *, force: bool) -> None:
    """Restore into a folder; whoever cancels it need not wait for it to be whole."""
    watched = replace(job, watch=CancelledWatch(job.watch))
    await trio.to_thread.run_sync(
        partial(restore_data_dir, watched, data_dir, layout, force=force)
    )


def _layout(loader: Loader) -> Layout:
    release = release_of(loader.server.version or "0")
    is_old = loader.server.family == "redis" and release < _FIRST_MULTI_PART
    return "single" if is_old else "multi-part"
