"""What a target that takes nothing at all says, and whether that passes."""

from __future__ import annotations

import hiredis

from kvtape.errors import ServerError
from kvtape.server.client import ReplyError

# What a server answers for its own state, whatever the command: nothing goes on then.
_STATES = {
    "OOM": "it is out of memory: raise its maxmemory",
    "READONLY": "it has become a read-only replica",
    "MISCONF": "it refuses writes because it cannot save",
    "LOADING": "it is loading",
    "MASTERDOWN": "it is a replica whose primary is gone",
    "NOREPLICAS": "it lacks the replicas that min-replicas-to-write asks for",
    "CLUSTERDOWN": "it is a cluster node, and its cluster is down",
    "MOVED": "it is a cluster node",
    "CROSSSLOT": "it is a cluster node",
    "NOAUTH": "it asks for a password",
    "BUSY": "it runs a script that does not end",
}

# The states that pass by themselves.
_PASSING = {"LOADING", "MASTERDOWN", "NOREPLICAS", "BUSY", "MISCONF"}


class TargetError(ServerError):
    """The target cannot be replayed into, or not now: is_passing says that it may."""

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


class StateError(TargetError):
    """The target takes nothing at all, as it is now."""


def state_error(reply: object) -> StateError | None:
    """Return that error for a reply, or for the error of one; None for another."""
    if isinstance(reply, ReplyError):
        said = reply.reply
    elif isinstance(reply, hiredis.ReplyError):
        said = str(reply)
    else:
        return None
    kind = said.partition(" ")[0]
    if kind not in _STATES:
        return None
    return StateError(
        f"the target takes nothing more: {_STATES[kind]} ({said})",
        is_passing=kind in _PASSING,
    )


def must_take(reply: object) -> None:
    """Raise that error, if it is one."""
    if (error := state_error(reply)) is not None:
        raise error
