"""Over TLS as without, with a user that may only replicate; and all that can be wrong.

The servers want a client certificate, as they do by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from certificates import (
    LONG_AGO,
    TLS_SERVERS,
    Authority,
    Certificate,
    TlsServer,
    start_tls_server,
)
from conftest import require
from kvtape.cli.runner import run
from kvtape.errors import ServerError
from kvtape.replay.into import replay_into
from kvtape.replay.options import ReplayOptions
from kvtape.restore.into import IntoOptions, check_target, restore_into
from kvtape.restore.job import open_job
from kvtape.server import client as client_module
from kvtape.tape.point import ToLatest
from oracle import compare, fingerprint, stable_fingerprint
from plain_client import PlainClient
from recording import Tape, tape_of, taping
from replicas import wait_until
from servers import Server, StartServer
from verbs import Outcome, kvtape
from workload import Workload

SECRET = "hunter2-marker"
NAME = "db.example"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return a CA that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("tls") / "other-ca")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("127.0.0.1", NAME)


@pytest.fixture(scope="module")
def client(authority: Authority) -> Certificate:
    return authority.issue("kvtape.example")


@pytest.fixture(scope="module")
def started() -> Iterator[StartServer]:
    """Start servers that stay for the module."""
    servers: list[Server] = []

    def start(name: str, **config: str) -> Server:
        require(name)
        options = {option.replace("_", "-"): value for option, value in config.items()}
        servers.append(Server(name, options))
        return servers[-1]

    yield start  # type: ignore[misc]
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def tls_server(
    started: StartServer, authority: Authority, certificate: Certificate
) -> TlsServer:
    return start_tls_server(started, "redis-7.0", authority, certificate)


# What works.


@pytest.mark.slow
@pytest.mark.parametrize("server_name", TLS_SERVERS, indirect=True)
def test_a_user_that_may_only_replicate_records_and_all_is_restored(
    server_name: str,
    start_server: StartServer,
    authority: Authority,
    certificate: Certificate,
    client: Certificate,
    tmp_path: Path,
) -> None:
    def start() -> TlsServer:
        return start_tls_server(start_server, server_name, authority, certificate)

    primary, target = start(), start()
    with PlainClient(primary.server.client()) as plain:
        rules = ("on", f">{SECRET}", "-@all", "+psync", "+replconf")
        plain.ask("ACL", "SETUSER", "tape", *rules)
        plain.ask("SET", "before", "x" * 100_000)
    url = primary.url("tape", SECRET, client=client)
    with taping(primary.server, tmp_path / "repo", url=url) as recording:
        with Workload("127.0.0.1", primary.server.port, 1, server_name) as work:
            work.step(100)
            work.large_value(2_000_000)
        offset, state = stable_fingerprint(primary.server.client())
        wait_until(lambda: recording.agent.recorder.durable >= offset)
    job = open_job(str(tmp_path / "repo"), None, ToLatest())
    into = IntoOptions(target.url(client=client))
    result = run(lambda: restore_into(job, into))
    assert result.offset >= offset
    assert compare(state, fingerprint(target.server.client())) == []


@pytest.mark.slow
@pytest.mark.parametrize("server_name", TLS_SERVERS, indirect=True)
def test_a_target_with_tls_is_replayed_into(
    server_name: str,
    start_server: StartServer,
    authority: Authority,
    certificate: Certificate,
    client: Certificate,
    tmp_path: Path,
) -> None:
    tape = tape_of(tmp_path / "repo", server_name)
    tape.commands(*[("INCR", "n") for _ in range(5000)], ("SET", "large", "x" * 10**6))
    target = start_tls_server(start_server, server_name, authority, certificate)
    options = ReplayOptions(
        str(tape.repository), target.url(client=client), speed=None, with_snapshot=True
    )
    result = run(lambda: replay_into(options))
    assert (result.offset, result.errors) == (tape.end, {})
    plain = target.server.client()
    assert plain.mget("key", "n") == [b"value", b"5000"]
    assert plain.strlen("large") == 10**6


@pytest.mark.slow
def test_a_link_that_is_cut_is_made_again(
    start_server: StartServer,
    authority: Authority,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    # No servers end TLS before they end TCP, not even those that are stopped.
    primary = start_tls_server(
        start_server, "redis-7.0", authority, certificate, tls_auth_clients="no"
    )
    with taping(primary.server, tmp_path / "repo", url=primary.url()) as recording:
        agent = recording.agent
        first = agent.session
        with primary.server.client() as plain:
            plain.client_kill_filter(_type="replica")
            wait_until(lambda: agent.session not in (None, first))
            recording.wait_until_online()
            stats = plain.info("stats")
            assert (stats["sync_full"], stats["sync_partial_ok"]) == (1, 1)
            primary.server.kill()
            wait_until(lambda: agent.trouble is not None)
            assert "certificate" not in str(agent.trouble)


def test_the_name_that_is_checked_can_be_chosen_or_left_out(
    tls_server: TlsServer, client: Certificate, tmp_path: Path
) -> None:
    for option in (("--tls-server-name", NAME), ("--tls-any-name",)):
        must_fail(
            # Behind TLS there is a server, which has something else to refuse.
            record(tls_server, tmp_path, *given(client), *option, user="no-such-user@"),
            8,
            "the user name or the password is wrong",
        )


# What does not.


def given(client: Certificate) -> tuple[object, ...]:
    return "--tls-cert", client.cert, "--tls-key", client.key


def record(
    server: TlsServer,
    folder: Path,
    *more: object,
    user: str = "",
    host: str = "localhost",
    port: int | None = None,
    ca: Path | None = None,
) -> Outcome:
    return kvtape(
        *("record", f"rediss://{user}{host}:{port or server.port}", *more),
        *("--repo", folder / "repo", "--spool", folder / "spool"),
        *("--tls-ca", ca or server.authority.file),
        env={"KVTAPE_PASSWORD": SECRET},
    )


def must_fail(outcome: Outcome, status: int, said: str) -> None:
    assert said in " ".join(outcome.err.split())
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.splitlines()[-1].startswith("kvtape: ")
    assert "Traceback" not in outcome.err
    assert SECRET not in outcome.err


def test_a_certificate_of_another_name_is_refused_with_its_names(
    tls_server: TlsServer, client: Certificate, tmp_path: Path
) -> None:
    said = f"is for 127.0.0.1, {NAME}, not for localhost: connect by such a name"
    must_fail(record(tls_server, tmp_path, *given(client)), 8, said)


def test_a_server_of_an_unknown_ca_is_refused(
    tls_server: TlsServer, stranger: Authority, tmp_path: Path
) -> None:
    said = "is not signed by the CA of"
    must_fail(record(tls_server, tmp_path, ca=stranger.file), 8, said)
    outcome = kvtape(
        *("record", f"rediss://127.0.0.1:{tls_server.port}"),
        *("--repo", tmp_path / "repo", "--spool", tmp_path / "spool"),
    )
    must_fail(outcome, 8, "no CA that this machine trusts: name the CA's file by")


def test_a_server_that_wants_a_certificate_says_so(
    tls_server: TlsServer, stranger: Authority, tmp_path: Path
) -> None:
    # The server's own word is lost, now and then, as it hangs up at once.
    said = "want a client certificate: give one by --tls-cert and --tls-key"
    outcome = record(tls_server, tmp_path, host="127.0.0.1")
    heard = Outcome(outcome.status, outcome.out, outcome.err.replace("wants", "want"))
    must_fail(heard, 8, said)
    foreign = given(stranger.issue("kvtape.example"))
    said = "not accept the client certificate"
    must_fail(record(tls_server, tmp_path, *foreign, host="127.0.0.1"), 8, said)


def test_an_expired_certificate_is_refused(
    start_server: StartServer, authority: Authority, tmp_path: Path
) -> None:
    expired = authority.issue("127.0.0.1", not_after=LONG_AGO)
    server = start_tls_server(start_server, "valkey-8.1", authority, expired)
    must_fail(record(server, tmp_path, host="127.0.0.1"), 8, "has expired: renew it")


def test_a_port_without_tls_is_told_from_one_with(
    tls_server: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A plain server may wait for the end of what it takes for a line.
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT", 0.5)
    outcome = record(tls_server, tmp_path, port=tls_server.server.port)
    assert outcome.status == 8
    assert any(
        said in outcome.err
        for said in ("does not speak TLS", "the port may speak no TLS")
    )
    outcome = kvtape(
        *("record", f"redis://127.0.0.1:{tls_server.port}"),
        *("--repo", tmp_path / "repo", "--spool", tmp_path / "spool"),
    )
    must_fail(outcome, 8, "begins with rediss://")


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("good", "other", "does not belong to the certificate"),
        ("text", "good", "there is no certificate in"),
        ("good", "text", "or no key in"),
        ("good", "encrypted", "is encrypted: give one that is not"),
        ("good", "missing", "cannot read"),
        ("missing", "good", "cannot read"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tls_server: TlsServer,
    authority: Authority,
    tmp_path: Path,
    cert: str,
    key: str,
    said: str,
) -> None:
    good, other = authority.issue("a.example"), authority.issue("b.example")
    text, encrypted = tmp_path / "text", tmp_path / "encrypted"
    text.write_text("no PEM\n")
    encrypted.write_bytes(
        load_pem_private_key(good.key.read_bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
        )
    )
    certs = {"good": good.cert, "text": text, "missing": tmp_path / "missing"}
    keys = {
        "good": good.key,
        "other": other.key,
        "encrypted": encrypted,
        "text": text,
        "missing": tmp_path / "missing",
    }
    given = ("--tls-cert", certs[cert], "--tls-key", keys[key])
    must_fail(record(tls_server, tmp_path, *given), 2, said)


def test_options_that_do_not_fit_are_refused(
    tls_server: TlsServer, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no PEM\n")
    ca = tmp_path / "text"
    must_fail(record(tls_server, tmp_path, ca=ca), 2, "holds no certificate: it must")
    said = "--tls-key goes with --tls-cert"
    must_fail(record(tls_server, tmp_path, "--tls-key", ca), 2, said)
    both = ("--tls-server-name", "x", "--tls-any-name")
    must_fail(record(tls_server, tmp_path, *both), 2, "give only one of")
    name = ("--tls-server-name", ".x")
    must_fail(record(tls_server, tmp_path, *name), 2, "is no server's name")
    outcome = kvtape("record", "redis://h", "--repo", "r", "--tls-ca", ca)
    must_fail(outcome, 2, "need a URL that begins with rediss://")
    Tape(tmp_path / "repo").snapshot()
    restore = ("restore", "--repo", tmp_path / "repo", "--into", "redis://h")
    said = "need a URL that begins with rediss://"
    must_fail(kvtape(*restore, "--tls-ca", ca), 2, said)


@pytest.mark.parametrize("server_name", TLS_SERVERS, indirect=True)
def test_a_target_that_replicates_over_tls_only_is_refused_untouched(
    server_name: str,
    start_server: StartServer,
    authority: Authority,
    certificate: Certificate,
    client: Certificate,
    tmp_path: Path,
) -> None:
    target = start_tls_server(
        start_server, server_name, authority, certificate, tls_replication="yes"
    )
    job = tape_of(tmp_path / "repo", server_name).job()
    options = IntoOptions(target.url(client=client))
    for verb in (check_target, restore_into):
        with pytest.raises(ServerError, match="CONFIG SET tls-replication no"):
            run(lambda verb=verb: verb(job, options))  # type: ignore[misc]
    target.server.client().config_set("tls-replication", "no")
    run(lambda: restore_into(job, options))
    assert target.server.client().get("key") == b"value"
