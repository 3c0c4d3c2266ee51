"""The JSON documents of a repository.

Each is written once. Unknown keys are kept out of the way when read, so that a later
kvtape may add some; a document that lacks a key that is needed is an error that names
the document. Times are ms since the epoch, UTC.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from kvtape.errors import VerificationError

FORMAT_VERSION = 1

Reason = Literal["first", "failover", "full-resync"]
Family = Literal["redis", "valkey"]


class Repository(msgspec.Struct, frozen=True):
    """kvtape.json: what this folder is."""

    format: int
    id: str
    created: int


class Server(msgspec.Struct, frozen=True):
    """A server, as far as it let itself be known; None is unknown."""

    family: Family | None = None
    version: str | None = None
    run_id: str | None = None
    role: Literal["primary", "replica"] | None = None
    databases: int | None = None


class Source(msgspec.Struct, frozen=True):
    """source.json: the server that is recorded, as it was first seen."""

    name: str
    address: str
    created: int
    server: Server


class History(msgspec.Struct, frozen=True):
    """histories/<replid>.json: how a history began.

    parent_offset is the last offset that it shares with its parent.
    """

    replid: str
    reason: Reason
    created: int
    parent: str | None = None
    parent_offset: int | None = None


class Manifest(msgspec.Struct, frozen=True):
    """snapshots/…/manifest.json: what the RDB file is, and that it is complete.

    bytes and sha256 are of the RDB file as it was received, stored_bytes is the length
    of rdb.zst. db is the database selected in the stream at offset, where the RDB file
    says it; used_memory is what the server used for it, in bytes.
    """

    replid: str
    offset: int
    time: int
    completed: int
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
    start_offset: int
    end_offset: int | None
    start_time: int
    end_time: int
    reason: str


Document = TypeVar("Document", Repository, Source, History, Manifest, Gap)


def encode(document: msgspec.Struct) -> bytes:
    """Return a document as it is stored: indented, since people read it too."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode(kind: type[Document], content: bytes, path: str) -> Document:
    """Read a document; VerificationError names path if it is not one."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VerificationError(f"{path} is damaged: {error}") from None
