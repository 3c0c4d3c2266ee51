"""Being the only one that replays into a target.

What a replay sent before it was killed may still wait in the server's socket, its EXEC
among it, and be carried out after another was told how far the first had come. So each
connection has a name, and nothing is asked before all others of that name are gone: the
server drops one whose other end is closed when it has read all from it. One that stays,
as where a network was cut, is closed.
"""

from __future__ import annotations

import logging
import re

import trio

from kvtape.replay.refusal import TargetError, must_take
from kvtape.server.client import Client, ReplyError

_log = logging.getLogger(__name__)

NAME = "kvtape-replay"

_POLL = 0.02
_PATIENCE = 3.0

_CLIENT = re.compile(rb"^id=(\d+) .*\bname=kvtape-replay ", re.MULTILINE)


async def be_alone(client: Client) -> None:
    """Return once no other connection replays; TargetError if that is not told."""
    try:
        await client.call("CLIENT", "SETNAME", NAME)
        own = await client.call("CLIENT", "ID")
        deadline = trio.current_time() + _PATIENCE
        # Not cancelled when it is over: a reply that nobody took would be the next's.
        while (others := await _others(client, own)) and (  # noqa: ASYNC110
            trio.current_time() < deadline
        ):
            await trio.sleep(_POLL)
        for other in others:
            _log.warning("closing another connection of a replay to the target")
            await client.call("CLIENT", "KILL", "ID", other)
    except ReplyError as error:
        must_take(error)
        raise TargetError(
            f"{error}; a replay must know that no other goes on: allow +client to the "
            "user"
        ) from None


async def _others(client: Client, own: object) -> list[int]:
    """Return the IDs of the other connections that replay."""
    reply = await client.call("CLIENT", "LIST")
    text = reply if isinstance(reply, bytes) else b""
    return [int(found) for found in _CLIENT.findall(text) if int(found) != own]
