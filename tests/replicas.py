"""Real replicas for the tests: attach one, and wait for what takes a moment.

Waiting is for an event and never for a time; it fails after `PATIENCE` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from plain_client import PlainClient
from servers import Server

PATIENCE: Final = 20.0
POLL_INTERVAL: Final = 0.01


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; AssertionError if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s"
        time.sleep(POLL_INTERVAL)


def attach(replica: Server, primary: Server) -> None:
    """Make a server a replica of another; it has the snapshot on return."""
    with PlainClient(replica.client()) as plain:
        plain.ask("REPLICAOF", "127.0.0.1", primary.port)
        wait_until(lambda: plain.info("replication")["master_link_status"] == "up")


def replication_of(server: Server, password: str | None = None) -> dict[str, str]:
    """Return what INFO says of a server's replication."""
    with PlainClient(server.client(password=password)) as plain:
        return plain.info("replication")


def offset_of(server: Server) -> int:
    """Return how far a server's stream has come."""
    return int(replication_of(server)["master_repl_offset"])
