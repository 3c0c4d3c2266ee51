"""What is acknowledged follows from what the server is, and never exceeds the truth."""

from __future__ import annotations

import pytest

from kvtape.errors import UsageError
from kvtape.record.acknowledge import (
    Ack,
    AckOption,
    acknowledgement,
    choose_ack,
    doubts_about,
)
from kvtape.server.info import ServerInfo

REDIS = {"redis_version": "7.2.4"}
VALKEY = {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.0.1"}
PRIMARY = {"role": "master"}
REPLICA = {"role": "slave"}
CLUSTER = {"cluster_enabled": "1"}
COUNTING = {"min_slaves_good_slaves": "0"}


def chosen(
    option: AckOption, fields: dict[str, str], *, has_endpoint: bool = False
) -> Ack:
    info = ServerInfo(fields)
    return choose_ack(option, info, "db:6379", has_endpoint=has_endpoint)


@pytest.mark.parametrize(
    ("fields", "without", "with_endpoint"),
    [
        ({}, "hidden", "hidden"),
        (REDIS | PRIMARY, "hidden", "received"),
        (REDIS | PRIMARY | CLUSTER, "hidden", "received"),
        (VALKEY | PRIMARY, "hidden", "received"),
        (VALKEY | PRIMARY | CLUSTER, "received", "received"),
        (REDIS | REPLICA, "received", "received"),
        (REDIS | REPLICA | COUNTING, "received", "received"),
    ],
)
def test_auto_is_what_suits_the_server(
    fields: dict[str, str], without: Ack, with_endpoint: Ack
) -> None:
    assert chosen("auto", fields) == without
    assert chosen("auto", fields, has_endpoint=True) == with_endpoint
    options: tuple[AckOption, ...] = ("hidden", "received", "stored")
    for option in options:
        assert chosen(option, fields) == option


@pytest.mark.parametrize("has_endpoint", [False, True])
def test_a_primary_that_counts_its_replicas_is_refused_unless_somebody_chose(
    has_endpoint: bool,
) -> None:
    fields = REDIS | PRIMARY | COUNTING
    with pytest.raises(UsageError, match="min-replicas-to-write"):
        chosen("auto", fields, has_endpoint=has_endpoint)
    assert chosen("hidden", fields, has_endpoint=has_endpoint) == "hidden"


@pytest.mark.parametrize("version", ["6.2.14", "7.0.15"])
def test_stored_is_refused_where_nobody_could_ask_for_it(version: str) -> None:
    with pytest.raises(UsageError, match=f"is Redis {version}, which has no WAITAOF"):
        chosen("stored", PRIMARY | {"redis_version": version})


@pytest.mark.parametrize("version", ["7.2.0", "7.4.1", "8.0.2", "10.0.0"])
def test_stored_is_taken_by_all_later_ones(version: str) -> None:
    assert chosen("stored", PRIMARY | {"redis_version": version}) == "stored"


def test_what_cannot_be_known_is_said_and_what_is_plain_is_not() -> None:
    unknown, primary = ServerInfo({}), ServerInfo(VALKEY | PRIMARY)
    [doubt] = doubts_about("auto", unknown, "db:6379")
    assert "min-replicas-to-write" in doubt
    [doubt] = doubts_about("stored", unknown, "db:6379")
    assert "there is no WAITAOF" in doubt
    [doubt] = doubts_about("stored", ServerInfo(VALKEY | REPLICA), "db:6379")
    assert "is a replica, where WAITAOF cannot be asked" in doubt
    assert doubts_about("auto", primary, "db:6379") == []
    assert doubts_about("stored", primary, "db:6379") == []


def test_what_is_said_is_never_more_than_is_there() -> None:
    assert acknowledgement("hidden", 500, 400) == (0, None)
    assert acknowledgement("received", 500, 400) == (500, 500)
    assert acknowledgement("stored", 500, 400) == (0, 400)
    assert acknowledgement("stored", 500, None) == (0, 0)
    # The source was set back, or its new snapshot is not complete.
    assert acknowledgement("stored", 300, 400) == (0, 300)
    assert acknowledgement("stored", 0, 400) == (0, 0)
