"""Replaying into a server of the tests, to the end or until it is interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from kvtape.cli.runner import run
from kvtape.errors import DestinationError
from kvtape.replay.into import ReplayResult, replay_into
from kvtape.replay.options import ReplayOptions
from kvtape.server.url import ServerUrl
from servers import Server


def options(repository: Path, target: Server, **changes: object) -> ReplayOptions:
    """Return the options of a replay as fast as it goes."""
    url = ServerUrl("127.0.0.1", target.port)
    chosen = ReplayOptions(str(repository), url, speed=None, poll=0.05)
    return replace(chosen, **changes)  # type: ignore[arg-type]


def play(repository: Path, target: Server, **changes: object) -> ReplayResult:
    """Replay to the end."""
    return run(lambda: replay_into(options(repository, target, **changes)))


async def replay_until(chosen: ReplayOptions, rest: float) -> bool:
    """Replay until some time (s) has passed; return whether the end was reached."""
    try:
        with trio.move_on_after(rest) as scope:
            await replay_into(chosen)
    except DestinationError:
        # It was interrupted after its last word, which removes the memory.
        return True
    return not scope.cancelled_caught
