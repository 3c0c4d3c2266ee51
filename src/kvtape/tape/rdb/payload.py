"""What DUMP prints and RESTORE takes: one value, on its own.

It is the type and the value as in an RDB file, the RDB version in two bytes, and a
CRC64 over all of that, little endian (cluster.c:createDumpPayload). A server refuses a
payload of a version above its own (and Valkey 9 those of Redis above 11), whatever the
type is. So one made here says the first version that had the type, which any server
that knows the type takes; tried between all pairs of the six servers of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import anycrc

from kvtape.tape.rdb.events import Key, RdbError

_CRC: Final = anycrc.Model("CRC64-REDIS")

_FOOTER = 10
_CHECKSUM = 8

# The first RDB version with each type that Redis 6.2 does not have. Up to 21 they mean
# the same in Redis and in Valkey.
_OLDEST = 9
_SINCE = {16: 10, 17: 10, 18: 10, 19: 10, 20: 11, 21: 11}
_LAST_SHARED_TYPE = 21
# A module checks what its own release wrote.
_MODULE = 7


@dataclass(frozen=True, slots=True)
class Payload:
    """A value as DUMP prints it, read."""

    type: int
    value: bytes
    version: int


def needed_version(type_: int, version: int) -> int:
    """Return the RDB version that a server must load to take a value of a type.

    version is that of the RDB that it is from.
    """
    if type_ > _LAST_SHARED_TYPE or type_ == _MODULE:
        return version
    return min(version, _SINCE.get(type_, _OLDEST))


def make_payload(key: Key, version: int) -> bytes:
    """Return what RESTORE takes; version is that of the RDB that the key is from."""
    assert key.value is not None
    number = needed_version(key.type, version)
    body = bytes([key.type]) + key.value + number.to_bytes(2, "little")
    checksum: int = _CRC.calc(body)
    return body + checksum.to_bytes(_CHECKSUM, "little")


def read_payload(payload: bytes) -> Payload:
    """Return what DUMP printed; RdbError if it is damaged."""
    body = payload[:-_CHECKSUM]
    checksum = int.from_bytes(payload[-_CHECKSUM:], "little")
    if len(payload) <= _FOOTER or checksum not in (0, _CRC.calc(body)):
        raise RdbError("what DUMP printed is damaged", 0)
    version = int.from_bytes(body[-2:], "little")
    return Payload(payload[0], body[1:-2], version)
