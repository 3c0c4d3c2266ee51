"""A fingerprint is read at one offset, or not at all."""

from __future__ import annotations

import pytest

from fingerprints import (
    fingerprint,
    replication_offset,
    server_time,
    stable_fingerprint,
)
from oracle import compare
from plain_client import PlainClient
from replicas import attach, wait_until
from servers import StartServer
from workload import Workload


def leave_an_expired_key(plain: PlainClient) -> None:
    """Have a key that has expired and that only a reading will delete."""
    plain.ask("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    expiry = server_time(plain) + 20
    plain.ask("SET", "k", "v", "PXAT", expiry)
    wait_until(lambda: server_time(plain) > expiry)
    assert plain.ask("DBSIZE") == 1


def test_a_stable_reading_has_no_key_whose_deletion_is_still_to_come(
    server_name: str, start_server: StartServer
) -> None:
    primary, replica = start_server(server_name), start_server(server_name)
    attach(replica, primary)
    with PlainClient(primary.client()) as plain:
        leave_an_expired_key(plain)
        before = replication_offset(plain)
        offset, state = stable_fingerprint(primary.client())
        assert state.keys == {}
        assert plain.ask("DBSIZE") == 0
        assert offset > before


def test_a_reading_is_given_up_when_the_offset_goes_on_moving(
    start_server: StartServer,
) -> None:
    primary, replica = start_server("redis-7.0"), start_server("redis-7.0")
    attach(replica, primary)
    with PlainClient(primary.client()) as plain:
        leave_an_expired_key(plain)
        with pytest.raises(TimeoutError, match="did not stand still"):
            stable_fingerprint(primary.client(), patience=0)


def test_a_client_of_the_newer_protocol_reads_the_same(
    start_server: StartServer,
) -> None:
    server = start_server("redis-8.0")
    with Workload("127.0.0.1", server.port, 5, "redis-8.0") as work:
        work.step(500)
    newer = server.client(protocol=3, decode_responses=True)
    assert compare(fingerprint(server.client()), fingerprint(newer)) == []
