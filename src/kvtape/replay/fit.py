"""Whether a server can be replayed into, told before anything is written to it.

The worst that can happen is to replay into the server that was recorded. It is known by
its run_id and by the replication IDs that are recorded: its replicas have these, too,
and so has what was promoted. --force accepts keys, and a server that once had such an
ID, as one that was restored into has; never one that has it now.
"""

from __future__ import annotations

from kvtape.errors import DestinationError, Error, IdentityError
from kvtape.replay.refusal import TargetError
from kvtape.server.info import ServerInfo
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.documents import Source


def unfit(
    info: ServerInfo, catalogue: Catalogue, source: Source, *, force: bool
) -> Error | None:
    """Return why a server must not be replayed into, whatever it holds."""
    if not info.fields and not force:
        return TargetError(
            "the target does not tell what it is and holds (INFO): allow it to the "
            "user, or say --force"
        )
    return _unfit_role(info) or _unfit_identity(info, catalogue, source)


def _unfit_role(info: ServerInfo) -> Error | None:
    if info.fields.get("redis_mode") == "sentinel":
        return TargetError("the target is a Sentinel: name a server")
    if info.is_clustered:
        return TargetError(
            "the target is a cluster node, which takes the keys of its slots only: "
            "replay into a standalone server"
        )
    return None


def _unfit_identity(
    info: ServerInfo, catalogue: Catalogue, source: Source
) -> Error | None:
    if _is_recorded(info, catalogue, source):
        return IdentityError(
            "the target is the recorded server or a replica of it: replay into another"
        )
    if info.server.role == "replica":
        return TargetError(
            "the target is a replica of another server, and read-only: replay into a "
            "primary"
        )
    return None


def _is_recorded(info: ServerInfo, catalogue: Catalogue, source: Source) -> bool:
    known = {source.server.run_id}
    known |= {snapshot.manifest.server.run_id for snapshot in catalogue.snapshots}
    run_id = info.server.run_id
    return (
        run_id is not None and run_id in known
    ) or info.replid in catalogue.histories


def in_use(info: ServerInfo, catalogue: Catalogue, *, force: bool) -> Error | None:
    """Return why a server must not be begun with, for what it holds or was."""
    if force:
        return None
    if info.fork is not None and info.fork[0] in catalogue.histories:
        return IdentityError(
            "the target goes on from the recorded history, as a promoted replica does: "
            "if it was restored into and is nothing more, say --force"
        )
    if info.keys:
        return DestinationError(
            f"the target holds {info.keys} keys, and no memory of this replay: replay "
            "into an empty server, or say --force"
        )
    return None
