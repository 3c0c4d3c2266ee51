"""What to tell the primary that we hold.

What a replica acknowledges is believed: WAIT, WAITAOF, FAILOVER and SHUTDOWN count it.
What is acknowledged follows from what the server is; docs/design.md has the reasons.
Everything here is a plain function of what is known, so that each case can be tried.
"""

from __future__ import annotations

from typing import Literal

from kvtape.errors import UsageError
from kvtape.server.info import ServerInfo
from kvtape.tape.documents import Server

# What is sent: nothing that counts; the end of what is synced in the spool; or nothing
# but the end of what is in the repository, as what is durable.
Ack = Literal["hidden", "received", "stored"]

AckOption = Literal["auto", "hidden", "received", "stored"]

# The first Redis that keeps what a replica says is durable (FACK), for WAITAOF. Every
# Valkey does.
_FIRST_WITH_FACK = (7, 2)


def choose_ack(
    option: AckOption, info: ServerInfo, address: str, *, has_endpoint: bool = False
) -> Ack:
    """Return what to acknowledge; UsageError where no choice is safe.

    address is the server's, for the message; has_endpoint is whether the primary can
    find out, at the address we announce, that we are none to fail over to.
    """
    server = info.server
    if option == "stored" and _takes_fack(server) is False:
        raise UsageError(
            f"{address} is Redis {server.version}, which has no WAITAOF, so that --ack "
            "stored would tell nobody anything: leave --ack out, or record a Redis "
            "from 7.2 on, or a Valkey"
        )
    if option != "auto":
        return option
    if server.role == "replica":
        return "received"
    if info.needs_replicas:
        raise UsageError(
            f"{address} has min-replicas-to-write set and would count this recording "
            "as a replica: record from a replica, or accept that by --ack hidden, "
            "--ack received or --ack stored"
        )
    if server.role == "primary" and has_endpoint:
        return "received"
    # On a cluster-enabled Valkey, CLUSTER SETSLOT waits for every replica's ACK.
    if server.family == "valkey" and info.is_clustered:
        return "received"
    return "hidden"


def doubts_about(option: AckOption, info: ServerInfo, address: str) -> list[str]:
    """Return what an operator should know about the choice, in a sentence each."""
    server = info.server
    doubts = []
    if server.role is None and option == "auto":
        doubts.append(
            f"{address} does not tell what it is (its user lacks +info): if it has "
            "min-replicas-to-write set, it counts this recording as a replica"
        )
    if option == "stored" and _takes_fack(server) is None:
        # Harmless: one that has no WAITAOF ignores what it is told.
        doubts.append(
            f"{address} does not tell its release (its user lacks +info): before Redis "
            "7.2 there is no WAITAOF, and --ack stored is the same as hidden"
        )
    if option == "stored" and server.role == "replica":
        doubts.append(
            f"{address} is a replica, where WAITAOF cannot be asked: --ack stored "
            "counts when the primary itself is recorded"
        )
    return doubts


def acknowledgement(
    ack: Ack, synced: int, stored: int | None
) -> tuple[int, int | None]:
    """Return what a heartbeat says: what is received, and what of it is durable.

    synced is the boundary up to which the spool has it, 0 while a snapshot is not
    complete there; stored is the one up to which the repository has everything.
    """
    match ack:
        case "hidden":
            return 0, None
        case "received":
            return synced, synced
        case "stored":
            # A source that fell back behind what is stored is not told of more than it
            # has: a primary never forgets the highest it was told.
            return 0, min(stored or 0, synced)


def _takes_fack(server: Server) -> bool | None:
    """Whether it keeps what is told to be durable; None if unknown."""
    if server.family == "valkey":
        return True
    parts = (server.version or "").split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    return (int(parts[0]), int(parts[1])) >= _FIRST_WITH_FACK
