"""The JSON documents of a repository.

Each is written once. Unknown keys are ignored when read, so that a later kvtape may add
some; a document that lacks a key that is needed, or has a number that cannot be, is an
error that names the document. Times are ms since the epoch, UTC.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from kvtape.errors import VerificationError

FORMAT_VERSION = 1

# What the names of files have room for, and a server can have.
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Time = Annotated[int, msgspec.Meta(ge=0, lt=10**14)]

Reason = Literal["first", "failover", "full-resync"]
Family = Literal["redis", "valkey"]


class Repository(msgspec.Struct, frozen=True):
    """kvtape.json: what this folder is."""

    format: int
    id: str
    created: Time


class Server(msgspec.Struct, frozen=True):
    """A server, as far as it let itself be known; None is unknown."""

    family: Family | None = None
    version: str | None = None
    run_id: str | None = None
    role: Literal["primary", "replica"] | None = None
    databases: int | None = None


def server_name(server: Server) -> str | None:
    """Return a server's family and version, such as Redis 7.0.15."""
    if server.family is None or server.version is None:
        return None
    return f"{server.family.capitalize()} {server.version}"


class Source(msgspec.Struct, frozen=True):
    """source.json: the server that is recorded, as it was first seen."""

    name: str
    address: str
    created: Time
    server: Server


class History(msgspec.Struct, frozen=True):
    """histories/<replid>.json: how a history began.

    created is the last receipt before it, or its snapshot's announcement. parent_offset
    is the last offset that it is known to share with its parent, which may be behind
    the end of what is recorded of it: the bytes between are then recorded here. address
    is what Source.address was when it was first recorded.
    """

    replid: str
    reason: Reason
    created: Time
    parent: str | None = None
    parent_offset: Offset | None = None
    address: str | None = None


class Manifest(msgspec.Struct, frozen=True):
    """snapshots/…/manifest.json: what the RDB file is, and that it is complete.

    bytes and sha256 are of the RDB file as it was received, stored_bytes is the length
    of rdb.zst. db is the database selected in the stream at offset, where the RDB file
    says it; used_memory is what the server used for it, in bytes.
    """

    replid: str
    offset: Offset
    time: Time
    completed: Time
    bytes: int
    stored_bytes: int
    sha256: str
    rdb_magic: str
    rdb_version: int
    db: int | None
    used_memory: int | None
    server: Server


class Gap(msgspec.Struct, frozen=True):
    """gaps/…: bytes that are not recorded, and why."""

    replid: str
    start_offset: Offset
    end_offset: Offset | None
    start_time: Time
    end_time: Time
    reason: str


Document = TypeVar("Document", Repository, Source, History, Manifest, Gap)


def encode(document: msgspec.Struct) -> bytes:
    """Return a document as it is stored: indented, since people read it too."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode(kind: type[Document], content: bytes, path: str) -> Document:
    """Read a document; VerificationError names path if it is not one."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VerificationError(f"{path} is damaged: {error}") from None
