"""Whether a server can take a restore, told before anything on it is touched.

A server that gets an RDB file it cannot load has already thrown its own data away
(Redis 6.2 and 7.0), and some exit; a command that it does not know is skipped without a
word. So all that can be known is asked first. --force accepts what is the operator's to
accept, and nothing that cannot work.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtape.errors import DestinationError, Error, ServerError, VerificationError
from kvtape.restore.job import Job
from kvtape.restore.survey import databases_needed
from kvtape.server.client import Client, ReplyError
from kvtape.server.info import ServerInfo
from kvtape.tape.documents import Manifest, Server
from kvtape.tape.translate import LEFT_OUT, Tally

# The newest RDB version that a release loads, by the first release that does (rdb.h of
# each). A release that is newer than this table may load more.
_REDIS_LOADS = [((0, 0), 6), ((3, 2), 7), ((4, 0), 8), ((5, 0), 9), ((7, 0), 10)]
_REDIS_LOADS += [((7, 2), 11), ((7, 4), 12), ((8, 6), 13), ((8, 8), 14)]
_REDIS_NEWEST = (8, 10)

# Valkey parted from Redis at version 11, and numbers its own from 80 on, under a magic
# of its own; what lies in between is Redis's, and refused.
_LAST_SHARED = 11
_VALKEY = "VALKEY"
_FIRST_VALKEY_MAGIC = (9, 0)

# Errors of other clients, which a server answers just because it is a replica, loading,
# or theirs to log in to. They say nothing of the stream.
_OF_CLIENTS = frozenset(
    {"NOAUTH", "WRONGPASS", "NOPERM", "READONLY", "LOADING", "MASTERDOWN"}
)


def unfit(info: ServerInfo, manifest: Manifest, *, force: bool) -> Error | None:
    """Return why a server cannot take a snapshot and be its own primary after it."""
    return (
        _unfit_for_replicaof(info, force=force)
        or unfit_release(info.server, manifest, force=force)
        or unfit_memory(info, manifest, force=force)
        or _in_use(info, force=force)
    )


def _unfit_for_replicaof(info: ServerInfo, *, force: bool) -> ServerError | None:
    if not info.fields and not force:
        return ServerError(
            "the target does not tell what it is and holds (INFO): allow it to the "
            "user, or say --force"
        )
    if info.is_clustered:
        return ServerError(
            "the target is in cluster mode and would refuse REPLICAOF: restore into a "
            "folder (--data-dir) and start a cluster node on it"
        )
    return None


def _in_use(info: ServerInfo, *, force: bool) -> Error | None:
    if force:
        return None
    if info.server.role == "replica":
        return ServerError(
            "the target is a replica of another server: say REPLICAOF NO ONE to it "
            "first, or --force"
        )
    if info.keys:
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
    recorded = recorded_server(manifest)
    if not loads(server, manifest.rdb_version, manifest.rdb_magic):
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


def unfit_memory(
    info: ServerInfo, manifest: Manifest, *, force: bool
) -> ServerError | None:
    """Return why a server would evict what it was given, as soon as it is a primary."""
    limit = info.number("maxmemory")
    if force or not limit or limit >= (manifest.used_memory or 0):
        return None
    return ServerError(
        f"the target has maxmemory {limit}, and the recorded server used "
        f"{manifest.used_memory} bytes: raise it, or say --force"
    )


def unfit_for_stream(
    info: ServerInfo, unknown: Sequence[str], job: Job, tally: Tally
) -> ServerError | None:
    """Return why a server cannot take a stream: a database or a command it lacks.

    unknown is what unknown_commands() found. Blocks, as databases_needed() does.
    """
    if unknown:
        return ServerError(
            f"the target does not know the command {', '.join(unknown)} of the stream: "
            "restore into a server like the recorded one, with the same modules"
        )
    there = info.number("databases")
    if there is None or (needed := databases_needed(job, tally, there)) <= there:
        return None
    # It would write into the database that was selected before.
    return ServerError(
        f"the target has {there} databases, and the recording needs {needed}: set "
        "databases there and restart it"
    )


def swallowed_errors(
    before: ServerInfo, after: ServerInfo, *, skipped: int = 0
) -> VerificationError | None:
    """Return the error that a target's answers to nobody, on a link, amount to.

    skipped is how many commands were left out on purpose.
    """
    grown = grown_errors(before, after)
    if not grown:
        return None
    if skipped:
        return VerificationError(
            "the target answered errors while it applied the stream "
            f"({', '.join(grown)}): without what was skipped, later commands may not "
            "fit what they find, and then do nothing (--dry-run lists those on the "
            "same keys); if that is as it should be, restore into a folder "
            "(--data-dir), since a server that loads one passes over them"
        )
    return VerificationError(
        f"the target answered errors while it applied the stream ({', '.join(grown)}), "
        "so it may not be what was recorded; errors of other clients count, too: keep "
        "them away, or look in its log"
    )


def grown_errors(before: ServerInfo, after: ServerInfo) -> list[str]:
    """Return which errors a server answered in between, and how often."""
    counts = {
        kind: count - before.errors.get(kind, 0) for kind, count in after.errors.items()
    }
    return [
        f"{count} x {kind}"
        for kind, count in sorted(counts.items())
        if count > 0 and kind not in _OF_CLIENTS
    ]


async def unknown_commands(client: Client, tally: Tally) -> list[str]:
    """Ask a server which commands of a stream it does not know."""
    ordered = sorted(tally.names - LEFT_OUT["link"])
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


def loads(server: Server, version: int, magic: str) -> bool:
    """Whether a server loads RDB files, and takes payloads, of a version.

    magic is the family's, as RDB files begin; up to version 11 there is one for both.
    True where the server is not known.
    """
    if server.version is None or server.family is None:
        return True
    release = release_of(server.version)
    if magic == _VALKEY and version > _LAST_SHARED:
        return server.family == "valkey" and release >= _FIRST_VALKEY_MAGIC
    if server.family == "valkey":
        return version <= _LAST_SHARED
    if release >= _REDIS_NEWEST:
        return True
    return version <= max(newest for first, newest in _REDIS_LOADS if first <= release)


def what_loads(version: int, magic: str) -> str:
    """Return which servers load an RDB version of a family, for messages."""
    if magic == _VALKEY and version > _LAST_SHARED:
        major, minor = _FIRST_VALKEY_MAGIC
        return f"Valkey {major}.{minor} or later"
    found = (first for first, newest in _REDIS_LOADS if newest >= version)
    major, minor = next(found, _REDIS_NEWEST)
    or_valkey = ", or Valkey" if version <= _LAST_SHARED else ""
    return f"Redis {major}.{minor} or later{or_valkey}"


def release_of(version: str) -> tuple[int, int]:
    """Return the major and the minor number of a version."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return int(major), int(minor) if minor.isdigit() else 0


def recorded_server(manifest: Manifest) -> str:
    """Return what was recorded, for messages."""
    server = manifest.server
    if server.family is None:
        return f"a server that writes {manifest.rdb_magic} files"
    return f"{server.family.capitalize()} {server.version}"
