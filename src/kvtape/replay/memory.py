"""How far a replay has come, as the target itself remembers it.

A small key is written in the same MULTI as what was replayed, so that both are there or
neither is, whatever is killed in between. What the stream does to all keys (FLUSHALL)
comes before it in the same transaction, so it is never seen without. It is removed at
the end, and in database 0 until then, which every server has.
"""

from __future__ import annotations

import hashlib

import msgspec

from kvtape.errors import IdentityError
from kvtape.replay.selection import Selection

KEY = b"kvtape:replay"
DB = 0


class Position(msgspec.Struct, frozen=True):
    """All of the history replid up to offset was replayed, for the round-th time.

    time (ms) is when the last of it was received; replay tells which replay it is of.
    """

    replay: str
    replid: str
    offset: int
    time: int
    round: int = 1

    def encode(self) -> bytes:
        """Return it as it is kept."""
        return msgspec.json.encode(self)


def decode(content: bytes) -> Position:
    """Read what a target remembers; IdentityError if it is something else."""
    try:
        return msgspec.json.decode(content, type=Position)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise IdentityError(
            f"the key {KEY.decode()} of the target is none that a replay wrote: delete "
            "it there, or say --force"
        ) from None


def replay_id(source: str, selection: Selection) -> str:
    """Return what tells replays apart: of what, and what is made of it."""
    parts = (
        source,
        sorted(glob.pattern.hex() for glob in selection.globs),
        sorted(name.hex() for name in selection.names),
        sorted(selection.dbs),
        selection.publish,
        sorted((old.hex(), new.hex()) for old, new in selection.prefixes),
        sorted(selection.db_map),
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]
