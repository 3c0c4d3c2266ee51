"""What an RDB consists of, part by part, and what can be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from kvtape.errors import VerificationError


class RdbError(VerificationError):
    """The bytes are not an RDB, or a damaged or incomplete one; offset says where."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class UnknownRdbError(RdbError):
    """The RDB has a part this module does not know; it need not be damaged."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first bytes: the family, b"REDIS" or b"VALKEY", and the format's version."""

    magic: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Aux:
    """An auxiliary field, such as redis-ver, repl-id or repl-offset."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Library:
    """The source of a library of functions."""

    source: bytes


@dataclass(frozen=True, slots=True)
class ModuleAux:
    """What a module stored outside of any key, from its id on, as it stands."""

    value: bytes | None
    value_size: int


@dataclass(frozen=True, slots=True)
class SlotImport:
    """A slot migration into a Valkey cluster was under way; ranges are inclusive."""

    job: bytes
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SelectDb:
    """The keys that follow are in this database."""

    db: int


@dataclass(frozen=True, slots=True)
class ResizeDb:
    """How many keys the database has, and how many of them expire."""

    keys: int
    expires: int


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """How many keys a slot has, and how many of them expire (Redis cluster mode)."""

    slot: int
    keys: int
    expires: int


# Redis 7.4 and 8.0 update what they know of a hash only when the earliest expiry of its
# fields changes by this much (t_hash.c:hashTypeSetExDone), and write that for small
# hashes (rdb.c:rdbSaveObject).
FIELD_EXPIRE_SLACK_MS: Final = 4000


# Not frozen as the others are: that takes five times as long to make, and there may be
# a hundred million of them.
@dataclass(slots=True)
class Key:
    """A key, with its value as it stands (None when values are not wanted).

    DUMP prints type, value, the version in two bytes and a CRC64, all little endian
    (cluster.c:createDumpPayload). Metadata, if there is any, comes before, after its
    opcode 243; that is by the source of Redis 8.6, and was not tried.

    expire_ms is a time in ms since 1970; idle (seconds) is there under an LRU policy,
    frequency under an LFU policy, metadata if a module of Redis 8.6 or later stored
    some with the key.

    field_expire_ms is the time in ms at which the first field of a hash expires, as far
    as the server cared to know: for a listpack of Redis (type 25) it may be later than
    the truth by less than FIELD_EXPIRE_SLACK_MS, or earlier (after HPERSIST: by any
    time).
    """

    db: int
    key: bytes
    type: int
    value: bytes | None
    value_size: int
    expire_ms: int | None = None
    field_expire_ms: int | None = None
    idle: int | None = None
    frequency: int | None = None
    metadata: bytes | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The RDB is complete, and its checksum is right or 0 for not computed."""

    checksum: int


Event = (
    Header
    | Aux
    | Library
    | ModuleAux
    | SlotImport
    | SelectDb
    | ResizeDb
    | SlotInfo
    | Key
    | End
)


class NeedData(Enum):
    """The type of NEED_DATA, so that mypy can tell it from an event."""

    NEED_DATA = auto()


NEED_DATA: Final = NeedData.NEED_DATA
