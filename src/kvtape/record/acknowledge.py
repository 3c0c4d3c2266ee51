"""What to tell the primary that we hold.

What a replica acknowledges is believed: WAIT, FAILOVER and SHUTDOWN count it. What is
acknowledged follows from what the server is; docs/design.md has the reasons.
"""

from __future__ import annotations

from typing import Literal

from kvtape.errors import UsageError
from kvtape.server.info import ServerInfo

# What is sent: nothing that counts, or the end of what is synced in the spool.
Ack = Literal["hidden", "received"]

AckOption = Literal["auto", "hidden", "received"]


def choose_ack(option: AckOption, info: ServerInfo, address: str) -> Ack:
    """Return what to acknowledge; UsageError where no choice is safe.

    address is the server's, for the message.
    """
    if option != "auto":
        return option
    server = info.server
    if server.role == "replica":
        return "received"
    if info.needs_replicas:
        raise UsageError(
            f"{address} has min-replicas-to-write set and would count this recording "
            "as a replica: record from a replica, or accept that by --ack hidden or "
            "--ack received"
        )
    # On a cluster-enabled Valkey, CLUSTER SETSLOT waits for every replica's ACK.
    if server.family == "valkey" and info.is_clustered:
        return "received"
    return "hidden"
