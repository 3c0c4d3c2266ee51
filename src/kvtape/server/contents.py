"""Everything that a server holds, read as a client reads it, to compare two servers.

Not by DUMP or DEBUG DIGEST: these differ for equal data, as the same set may be kept in
two encodings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvtape.server.client import Client

_READ: dict[bytes, tuple[str | int, ...]] = {
    b"string": ("GET",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"hash": ("HGETALL",),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"stream": ("XRANGE", "-", "+"),
}


@dataclass(frozen=True, slots=True)
class Content:
    """A key's type, value and expiry (ms since the epoch; -1 is none)."""

    type: bytes
    value: object
    expires: int


Contents = Mapping[tuple[int, bytes], Content]


async def read_contents(client: Client, databases: int = 16) -> Contents:
    """Return every key of every database. Only for servers that hold little."""
    found: dict[tuple[int, bytes], Content] = {}
    for db in range(databases):
        await client.call("SELECT", db)
        keys = await client.call("KEYS", "*")
        for key in keys if isinstance(keys, list) else ():
            content = await _read(client, key)
            if content is not None:
                found[db, key] = content
    await client.call("SELECT", 0)
    return found


async def _read(client: Client, key: bytes) -> Content | None:
    type_ = await client.call("TYPE", key)
    if not isinstance(type_, bytes) or type_ not in _READ:
        return None  # it has expired since it was listed
    expires = await client.call("PEXPIRETIME", key)
    verb, *arguments = _READ[type_]
    value = await client.call(verb, key, *arguments)
    if type_ == b"set" and isinstance(value, list):
        value = sorted(value)
    if type_ == b"hash" and isinstance(value, list):
        value = dict(zip(value[::2], value[1::2], strict=True))
    return Content(type_, value, expires if isinstance(expires, int) else -1)
