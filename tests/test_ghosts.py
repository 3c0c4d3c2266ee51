"""No real server is hurt by taking us for a replica, whatever we acknowledge.

What counts replicas is tried: WAIT, WAITAOF, FAILOVER, SHUTDOWN, min-replicas-to-write,
CLUSTER SETSLOT and Sentinel. Every release is used, but not each for everything.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trio

from kvtape.errors import UsageError
from kvtape.record.agent import Agent
from kvtape.record.options import RecordOptions
from kvtape.record.spooling.recorder import Limits
from kvtape.record.uploading import uploader as uploader_module
from kvtape.tape.names import SegmentName, parse
from plain_client import PlainClient
from recording import SOURCE, Taping, taping_by
from recording import options_for as usual_options
from replicas import attach, wait_until
from servers import PORTS, Server, StartServer, answers, binary, quiet
from tapes import documents_of

WITH_WAITAOF = ["redis-8.0", "valkey-8.0", "valkey-8.1", "valkey-9.1"]

# What a store that fails is waited for is not what is tried here.
NEVER = 3600.0


def options_for(server: Server, folder: Path, **changes: Any) -> RecordOptions:  # noqa: ANN401
    limits = Limits(flush_interval=0.01, upload_interval=NEVER)
    return usual_options(server.port, folder, **{"limits": limits, **changes})


def recording(
    server: Server,
    folder: Path,
    **changes: Any,  # noqa: ANN401
) -> AbstractContextManager[Taping]:
    return taping_by(options_for(server, folder, **changes), server)


@contextmanager
def announcing(server: Server, folder: Path, **changes: Any) -> Iterator[Taping]:  # noqa: ANN401
    """Record a server, and listen at an announced port."""
    announce = ("127.0.0.1", free_port())
    with recording(server, folder, announce=announce, **changes) as taping:
        yield taping


def refusal_of(server: Server, folder: Path, **changes: Any) -> str:  # noqa: ANN401
    """Return why recording is refused."""
    agent = Agent(options_for(server, folder, **changes))
    with pytest.raises(UsageError) as refused:
        trio.run(agent.run)
    return str(refused.value)


def free_port() -> int:
    while answers(port := random.choice(PORTS)):
        pass
    return port


def offset_of(plain: PlainClient) -> int:
    return int(plain.info("replication")["master_repl_offset"])


def wait_until_all_is_acknowledged(plain: PlainClient) -> None:
    """Return when the one replica has acknowledged all that there is."""

    def is_acknowledged() -> bool:
        return f"offset={offset_of(plain)}," in plain.info("replication")["slave0"]

    wait_until(is_acknowledged)


def wait_until_failover_ended(plain: PlainClient) -> None:
    wait_until(
        lambda: plain.info("replication")["master_failover_state"] == "no-failover"
    )


def assert_is_primary(plain: PlainClient) -> None:
    assert plain.info("replication")["role"] == "master"
    assert plain.ask("SET", "writable", 1) == b"OK"


def stored_end(folder: Path) -> int:
    """Return the end of the last segment in the repository."""
    source = folder / "repo" / SOURCE
    names = [parse(str(path.relative_to(source))) for path in source.rglob("*.seg")]
    return max(name.end for name in names if isinstance(name, SegmentName))


# WAITAOF.


@pytest.mark.parametrize("server_name", WITH_WAITAOF, indirect=True)
def test_what_is_durable_does_not_move_while_nothing_can_be_uploaded(
    server_name: str,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # How long a hand is waited for.
    monkeypatch.setattr(uploader_module, "_BY_HAND", 0.2)
    server = quiet(start_server, server_name)
    repository, away = tmp_path / "repo", tmp_path / "away"
    with (
        recording(server, tmp_path, ack="stored") as taping,
        PlainClient(server.client()) as plain,
    ):
        for number in range(3):
            plain.ask("SET", "key", number)
            written = offset_of(plain)
            assert plain.ask("WAITAOF", 0, 1, 20_000) == [0, 1]
            assert stored_end(tmp_path) >= written
        # Nobody else counts us.
        assert plain.ask("WAIT", 1, 50) == 0
        assert "offset=0," in plain.info("replication")["slave0"]
        wait_until(lambda: taping.agent.stored == offset_of(plain))
        stored = taping.agent.stored

        repository.rename(away)
        repository.write_text("in the way")
        for number in range(5):
            plain.ask("SET", "key", f"while it is gone {number}")
            assert plain.ask("WAITAOF", 0, 1, 100) == [0, 0]
        wait_until(lambda: taping.agent.recorder.durable >= offset_of(plain))
        assert taping.agent.stored == stored

        repository.unlink()
        away.rename(repository)
        written = offset_of(plain)
        assert plain.ask("WAITAOF", 0, 1, 20_000) == [0, 1]
        assert stored_end(tmp_path) >= written


@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_what_an_earlier_run_stored_is_durable_at_once(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with PlainClient(server.client()) as plain:
        with recording(server, tmp_path, ack="stored"):
            plain.ask("SET", "key", 1)
            written = offset_of(plain)
            assert plain.ask("WAITAOF", 0, 1, 20_000) == [0, 1]
        with recording(server, tmp_path, ack="stored") as taping:
            stored = taping.agent.stored
            assert stored is not None
            assert stored >= written
            # Of a history that begins in a promoted server nothing is stored yet, but
            # what it shares with the one before.
            plain.ask("SET", "key", 2)
            assert plain.ask("WAITAOF", 0, 1, 20_000) == [0, 1]
            first = taping.replid
            plain.ask("REPLICAOF", "127.0.0.1", free_port())
            plain.ask("REPLICAOF", "NO", "ONE")
            wait_until(lambda: taping.replid != first)
            plain.ask("SET", "key", 3)
            assert plain.ask("WAITAOF", 0, 1, 20_000) == [0, 1]
            assert taping.agent.stored == stored_end(tmp_path)


@pytest.mark.parametrize("server_name", ["redis-6.2", "redis-7.0"], indirect=True)
def test_where_there_is_no_waitaof_nothing_is_promised(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name)
    assert "has no WAITAOF" in refusal_of(server, tmp_path, ack="stored")
    assert not (tmp_path / "repo").exists()


# On a primary.


@pytest.mark.parametrize(
    ("server_name", "ack"),
    [
        ("redis-6.2", "auto"),
        ("redis-7.0", "auto"),
        ("redis-8.0", "stored"),
        ("valkey-8.0", "auto"),
        ("valkey-9.1", "stored"),
    ],
    indirect=["server_name"],
)
def test_unseen_on_a_primary_we_are_never_counted_nor_chosen(
    server_name: str, ack: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with (
        recording(server, tmp_path, ack=ack) as taping,
        PlainClient(server.client()) as plain,
    ):
        plain.ask("SET", "key", "value")
        assert plain.ask("WAIT", 1, 50) == 0
        if ack == "auto" and server_name in WITH_WAITAOF:
            assert plain.ask("WAITAOF", 0, 1, 50) == [0, 0]
        plain.ask("FAILOVER", "TIMEOUT", 200)
        wait_until_failover_ended(plain)
        assert_is_primary(plain)
        # Without a limit it waits for a replica that has everything: not for us.
        plain.ask("FAILOVER")
        wait_until(lambda: taping.agent.recorder.durable >= offset_of(plain))
        plain.ask("FAILOVER", "ABORT")
        assert_is_primary(plain)
        assert plain.info("stats")["sync_full"] == "1"


def test_at_an_announced_address_a_failover_to_us_is_given_up_at_once(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    # With a password of its own, which it then uses to log in at ours.
    config = {"masterauth": "secret", "masteruser": "whoever"}
    server = quiet(start_server, server_name, **config)
    with (
        announcing(server, tmp_path) as taping,
        PlainClient(server.client()) as plain,
    ):
        plain.ask("SET", "key", "value")
        assert plain.ask("WAIT", 1, 20_000) == 1
        if server_name in WITH_WAITAOF:
            assert plain.ask("WAITAOF", 0, 1, 20_000) == [0, 1]
        first = taping.replid
        plain.ask("FAILOVER")
        wait_until_failover_ended(plain)
        assert_is_primary(plain)
        assert "Failover target rejected psync request" in server.log()
        wait_until(lambda: taping.replid != first)
        taping.catch_up()
        assert plain.info("stats")["sync_full"] == "1"
        second = taping.replid
    histories = documents_of(tmp_path / "repo" / SOURCE, "histories/*.json")
    parents = {history["replid"]: history["parent"] for history in histories}
    assert parents == {first: None, second: first}


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-8.1"], indirect=True)
def test_a_shutdown_waits_for_us_only_where_we_say_nothing(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name, shutdown_timeout="1")
    for number, recorder in enumerate((announcing, recording)):
        with recorder(server, tmp_path / str(number)):
            with PlainClient(server.client()) as plain:
                plain.ask("SET", "key", "value")
                if recorder is announcing:
                    wait_until_all_is_acknowledged(plain)
            server.stop()
            has_waited = "replicas before shutting down" in server.log()
            assert has_waited == (recorder is recording)
            server.start()


@pytest.mark.parametrize("server_name", ["valkey-8.0"], indirect=True)
def test_a_primary_that_counts_its_replicas_is_refused_also_with_an_endpoint(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(server_name, min_replicas_to_write="1")
    announce = ("127.0.0.1", free_port())
    refusal = refusal_of(server, tmp_path, announce=announce)
    assert "has min-replicas-to-write set" in refusal
    with (
        PlainClient(server.client()) as plain,
        recording(server, tmp_path, ack="stored"),
    ):
        wait_until(lambda: plain.exchange([("SET", "key", 1)]) == [b"OK"])


@pytest.mark.parametrize("server_name", ["valkey-8.1", "valkey-9.1"], indirect=True)
def test_a_clustered_valkey_can_move_slots(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name, cluster_enabled="yes")
    with (
        PlainClient(server.client()) as plain,
        recording(server, tmp_path),
    ):
        plain.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        myself = plain.ask("CLUSTER", "MYID")
        assert isinstance(myself, bytes)
        wait_until_all_is_acknowledged(plain)
        assert plain.ask("CLUSTER", "SETSLOT", 1, "NODE", myself) == b"OK"


# On a replica.


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
def test_on_a_replica_nothing_of_this_matters(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    primary = quiet(start_server, server_name, shutdown_timeout="1")
    replica = quiet(start_server, server_name, shutdown_timeout="1")
    attach(replica, primary)
    with (
        PlainClient(primary.client()) as plain,
        PlainClient(replica.client()) as other,
        recording(replica, tmp_path) as taping,
    ):
        plain.ask("SET", "key", "value")
        # The replica has just come, and may take a moment.
        assert plain.ask("WAIT", 1, 20_000) == 1
        assert plain.ask("WAIT", 2, 50) == 1
        if server_name in WITH_WAITAOF:
            assert plain.ask("WAITAOF", 0, 1, 50) == [0, 0]
        wait_until_all_is_acknowledged(other)
        first = taping.replid
        plain.ask("FAILOVER")
        wait_until_failover_ended(plain)
        assert_is_primary(other)
        wait_until(lambda: taping.replid != first)


# Sentinel.


class Sentinel:
    """One sentinel that watches a primary, and promotes alone."""

    def __init__(self, name: str, primary: Server, folder: Path) -> None:
        self.port = free_port()
        folder.mkdir()
        config, self._log = folder / "sentinel.conf", folder / "sentinel.log"
        config.write_text(
            f"port {self.port}\n"
            "bind 127.0.0.1\n"
            f"dir {folder}\n"
            f"sentinel monitor tape 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds tape 500\n"
            # Far longer than this test would wait.
            "sentinel failover-timeout tape 120000\n"
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(binary(name)), str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: answers(self.port))

    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text(errors="replace")

    def replicas(self) -> list[dict[str, str]]:
        """Return what it says of the replicas that it shows."""
        with redis.Redis(port=self.port, decode_responses=True) as client:
            reply: Any = client.execute_command("SENTINEL", "REPLICAS", "tape")
        return [_pairs(replica) for replica in reply]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def _pairs(fields: Any) -> dict[str, str]:  # noqa: ANN401
    if isinstance(fields, dict):
        return fields
    return dict(zip(fields[::2], fields[1::2], strict=True))


@contextmanager
def watched(name: str, primary: Server, folder: Path) -> Iterator[Sentinel]:
    """Have a sentinel of the same release."""
    sentinel = Sentinel(name, primary, folder)
    try:
        yield sentinel
    finally:
        sentinel.close()


@pytest.mark.parametrize("server_name", ["redis-6.2", "valkey-8.1"], indirect=True)
def test_without_an_endpoint_sentinel_does_not_know_us(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server, replica = quiet(start_server, server_name), start_server(server_name)
    attach(replica, server)
    with (
        recording(server, tmp_path),
        PlainClient(server.client()) as plain,
        watched(server_name, server, tmp_path / "sentinel") as sentinel,
    ):
        # It sees the replica by the same INFO that tells of us.
        assert "port=70000" in plain.info("replication")["slave1"]
        wait_until(lambda: f"+slave slave 127.0.0.1:{replica.port}" in sentinel.log())
        assert [fields["port"] for fields in sentinel.replicas()] == [str(replica.port)]
        assert "70000" not in sentinel.log()


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-9.1"], indirect=True)
def test_with_an_endpoint_sentinel_hides_us_and_never_promotes_us(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = quiet(start_server, server_name)
    with (
        announcing(server, tmp_path) as taping,
        watched(server_name, server, tmp_path / "sentinel") as sentinel,
    ):
        assert taping.agent.endpoint is not None
        ours = f"slave 127.0.0.1:{taping.agent.endpoint.announced.port}"
        wait_until(lambda: f"+slave {ours}" in sentinel.log())
        wait_until(lambda: sentinel.replicas() == [])
        server.kill()
        wait_until(lambda: "-failover-abort-no-good-slave" in sentinel.log())
        assert f"+sdown {ours}" not in sentinel.log()
        assert sentinel.replicas() == []


@pytest.mark.parametrize("server_name", ["redis-8.0", "valkey-8.0"], indirect=True)
def test_a_failover_by_sentinel_is_not_held_up_by_us(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    server, replica = quiet(start_server, server_name), start_server(server_name)
    attach(replica, server)
    with (
        announcing(server, tmp_path) as taping,
        watched(server_name, server, tmp_path / "sentinel") as sentinel,
    ):
        assert taping.agent.endpoint is not None
        ours = f"127.0.0.1:{taping.agent.endpoint.announced.port}"
        wait_until(lambda: f"+slave slave {ours}" in sentinel.log())
        wait_until(
            lambda: [r["port"] for r in sentinel.replicas()] == [str(replica.port)]
        )
        server.kill()
        wait_until(lambda: "+switch-master" in sentinel.log())
        with PlainClient(replica.client()) as plain:
            assert_is_primary(plain)
