"""Whether a server can take a restore, told before anything on it is touched.

A server that gets an RDB file it cannot load has already thrown its own data away
(Redis 6.2 and 7.0), and some exit; a command that it does not know is skipped without a
word. So all that can be known is asked first. --force accepts what is the operator's to
accept, and nothing that cannot work.
"""

from __future__ import annotations

from kvtape.errors import DestinationError, Error, ServerError
from kvtape.restore.job import Job
from kvtape.restore.survey import databases_needed
from kvtape.server.client import Client, ReplyError
from kvtape.server.info import ServerInfo, ask_setting
from kvtape.tape.documents import Manifest, Server
from kvtape.tape.translate import Tally

# The newest RDB version that a release loads, by the first release that does (rdb.h of
# each). A release that is newer than this table may load more.
_REDIS_LOADS = [((0, 0), 6), ((3, 2), 7), ((4, 0), 8), ((5, 0), 9), ((7, 0), 10)]
_REDIS_LOADS += [((7, 2), 11), ((7, 4), 12), ((8, 6), 13), ((8, 8), 14)]
_REDIS_NEWEST = (8, 10)

# Valkey parted from Redis at version 11, and numbers its own from 80 on, under a magic
# of its own; what lies in between is Redis's, and refused.
_LAST_SHARED = 11
_FIRST_VALKEY_MAGIC = (9, 0)


def unfit(info: ServerInfo, manifest: Manifest, *, force: bool) -> Error | None:
    """Return why a server cannot take a snapshot and be its own primary after it."""
    server = info.server
    if info.is_clustered:
        return ServerError(
            "the target is in cluster mode and would refuse REPLICAOF: restore into a "
            "folder (--data-dir) and start a cluster node on it"
        )
    if (error := unfit_release(server, manifest, force=force)) is not None:
        return error
    if server.role == "replica" and not force:
        return ServerError(
            "the target is a replica of another server: say REPLICAOF NO ONE to it "
            "first, or --force"
        )
    limit = info.number("maxmemory")
    if not force and limit and limit < (manifest.used_memory or 0):
        return ServerError(
            f"the target has maxmemory {limit}, and the recorded server used "
            f"{manifest.used_memory} bytes: raise it, or say --force"
        )
    if info.keys and not force:
        return DestinationError(
            f"the target holds {info.keys} keys, which a restore would throw away: "
            "restore into an empty server, or say --force"
        )
    return None


def unfit_release(
    server: Server, manifest: Manifest, *, force: bool
) -> ServerError | None:
    """Return why a release cannot load a snapshot, as far as that is known."""
    if server.version is None or server.family is None:
        return None
    target = f"{server.family.capitalize()} {server.version}"
    recorded = _recorded(manifest)
    if not _loads(server, manifest):
        return ServerError(
            f"the target is {target} and cannot load RDB version {manifest.rdb_version}"
            f" of {recorded}: restore into a server like the recorded one"
        )
    is_other = manifest.server.family not in (None, server.family)
    if is_other and not force:
        return ServerError(
            f"the target is {target} and the recording is of {recorded}: the families "
            "have drifted apart, so restore into the same one, or say --force"
        )
    return None


async def unfit_for_stream(client: Client, job: Job, tally: Tally) -> Error | None:
    """Return why a server cannot take a stream: a database or a command it lacks."""
    databases = await ask_setting(client, "databases")
    if databases is not None:
        needed = databases_needed(job, tally)
        if needed > int(databases):
            return ServerError(
                f"the target has {databases} databases, and the recording needs "
                f"{needed}: set databases there and restart it"
            )
    unknown = await _unknown_commands(client, tally.names)
    if unknown:
        return ServerError(
            f"the target does not know the command {', '.join(unknown)} of the stream: "
            "restore into a server like the recorded one, with the same modules"
        )
    return None


async def _unknown_commands(client: Client, names: set[bytes]) -> list[str]:
    ordered = sorted(names)
    if not ordered:
        return []
    try:
        reply = await client.call("COMMAND", "INFO", *ordered)
    except ReplyError:
        return []  # not allowed to ask
    known = reply if isinstance(reply, list) else []
    return [
        name.decode("utf-8", "replace")
        for name, answer in zip(ordered, known, strict=False)
        if not answer
    ]


def _loads(server: Server, manifest: Manifest) -> bool:
    release, version = _release(server.version or "0"), manifest.rdb_version
    if manifest.rdb_magic == "VALKEY":
        return server.family == "valkey" and release >= _FIRST_VALKEY_MAGIC
    if server.family == "valkey":
        return version <= _LAST_SHARED
    if release >= _REDIS_NEWEST:
        return True
    return version <= max(loads for first, loads in _REDIS_LOADS if first <= release)


def _release(version: str) -> tuple[int, int]:
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return int(major), int(minor) if minor.isdigit() else 0


def _recorded(manifest: Manifest) -> str:
    server = manifest.server
    if server.family is None:
        return f"a server that writes {manifest.rdb_magic} files"
    return f"{server.family.capitalize()} {server.version}"
