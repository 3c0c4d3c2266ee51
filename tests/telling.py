"""An agent and what it records from in one process: a short story over a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from kvtape.errors import cause_of
from kvtape.record import backoff
from kvtape.record.agent import Agent
from kvtape.record.options import RecordOptions
from kvtape.record.spooling.recorder import Limits
from kvtape.record.uploading import uploader
from kvtape.server.url import ServerUrl
from primaries import Teller
from recording import rdb
from tapes import command

REPLID: Final = "a" * 40
START: Final = 5000
RDB: Final = rdb((0, "key", "value", None))
STREAM: Final = command("SELECT", 0) + b"".join(
    command("SET", f"key{number}", "x" * number) for number in range(20)
)

Handler: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]


def teller() -> Teller:
    """Return who tells the story."""
    return Teller(REPLID, START, STREAM, RDB)


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[int]:
    """Serve with a handler; yields the port."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def told(teller: Teller) -> AsyncIterator[int]:
    """Serve what a teller has, on links that stay; yields the port."""
    async with served(partial(teller.serve, stays=True)) as port:
        yield port


def options_for(
    port: int,
    repository: str,
    spool: Path,
    **changes: Any,  # noqa: ANN401
) -> RecordOptions:
    """Return options with which the story becomes a few segments."""
    options = RecordOptions(
        ServerUrl("127.0.0.1", port),
        repository,
        "source",
        spool,
        limits=Limits(flush_interval=0.001, upload_interval=0.05, segment_size=500),
        full_resyncs_per_hour=1000,
        adopt=True,  # the port is another one each time
        key_filters=False,  # which would be written at some time or other
    )
    return replace(options, **changes)


async def record(teller: Teller, repository: str, spool: Path, **changes: Any) -> Agent:  # noqa: ANN401
    """Record all that a teller has."""
    until = {"until_offset": teller.end}
    try:
        async with told(teller) as port:
            agent = Agent(options_for(port, repository, spool, **{**until, **changes}))
            with trio.fail_after(20):
                await agent.run()
            return agent
    except ExceptionGroup as group:
        raise cause_of(group) from group


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nothing tells of."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


def be_impatient() -> None:
    """Have this process wait for little before it tries again."""
    backoff._FIRST = 0.002
    backoff._LONGEST = 0.02
    uploader._BY_HAND = 0.02
