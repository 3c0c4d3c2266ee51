"""The server that Sentinels know is found, and followed through real failovers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from certificates import Authority, start_tls_server
from conftest import require
from kvtape.cli.runner import run
from kvtape.errors import ServerError, UsageError
from kvtape.record.agent import Agent
from kvtape.record.options import RecordOptions
from kvtape.record.spooling.recorder import Limits
from kvtape.replication.refusal import RefusedError
from kvtape.replication.replica import LinkError
from kvtape.restore.into import IntoOptions, restore_into
from kvtape.restore.job import open_job
from kvtape.server import sentinel as sentinel_module
from kvtape.server.sentinel import (
    Answer,
    Finder,
    NotFoundError,
    Prefer,
    healthy,
    ranked,
)
from kvtape.server.url import SentinelUrl, ServerUrl, parse_source
from kvtape.tape.point import ToLatest
from oracle import compare, fingerprint, stable_fingerprint
from plain_client import PlainClient
from recording import Taping
from replicas import wait_until
from sentinels import NAME, Deployment, Sentinel, deployed, pause, tls_sentinel
from servers import Server, StartServer
from tapes import documents_of
from verbs import Outcome, kvtape

SERVER_SECRET = "server-marker"
SENTINEL_SECRET = "sentinel-marker"

A, B, C = ("a", 1), ("b", 1), ("c", 1)


# Whom to believe.


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([(A, 0)], [A]),
        ([(A, 1), (B, 0)], [A]),
        ([(B, 0), (A, 1), (B, 0)], [A, B]),
        ([(B, 0), (A, 1), (A, 1)], [A]),
        ([(A, 0), (B, 0)], [A, B]),
        ([(B, 0), (A, 0)], [A, B]),
        ([(C, 2), (B, 1), (A, 2), (A, 2)], [A, C]),
    ],
)
def test_the_newest_epoch_counts_most_and_then_the_votes(
    answers: list[tuple[tuple[str, int], int]], expected: list[tuple[str, int]]
) -> None:
    assert ranked([Answer(*answer) for answer in answers]) == expected


def replica(name: str, offset: int, **changes: str) -> dict[str, str]:
    fields = {"ip": name, "port": "1", "flags": "slave", "master-link-status": "ok"}
    return fields | {"slave-repl-offset": str(offset)} | changes


def test_of_the_healthy_replicas_the_one_that_has_most_comes_first() -> None:
    replicas = (
        replica("b", 1),
        replica("c", 3, flags="s_down,slave"),
        replica("d", 3, flags="slave,disconnected"),
        replica("e", 3, port="70000"),
        replica("f", 3, port="0"),
        {**replica("g", 3), "master-link-status": "err"},
        replica("h", 2),
    )
    answers = [Answer(B, 0, (replica("i", 9),)), Answer(A, 0, replicas)]
    assert healthy(answers, A) == [("h", 1), ("b", 1)]


# Finding.


@pytest.fixture(scope="module", params=["redis-7.0", "valkey-8.1"])
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """Return one that no test changes."""
    require(request.param)
    with deployed(
        request.param, password=SERVER_SECRET, sentinel_password=SENTINEL_SECRET
    ) as found:
        yield found


def find(url: SentinelUrl, prefer: Prefer = "primary") -> ServerUrl:
    return run(lambda: Finder(url, prefer).find())


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel_module, "_WAITS", (0.01,))
    monkeypatch.setattr(sentinel_module, "_PATIENCE", 0.5)


@pytest.mark.server
def test_the_primary_is_found_with_passwords_of_both(deployment: Deployment) -> None:
    url = find(deployment.url())
    assert (url.port, url.password) == (deployment.primary.port, SERVER_SECRET)
    for sentinel in deployment.sentinels:
        assert find(deployment.url(sentinel)) == url


@pytest.mark.server
def test_a_replica_is_found_and_kept(deployment: Deployment) -> None:
    finder = Finder(deployment.url(), "replica")
    url = run(finder.find)
    assert url.port in {server.port for server in deployment.servers[1:]}
    for _ in range(5):
        assert run(finder.find) == url


@pytest.mark.server
@pytest.mark.usefixtures("_impatient")
def test_a_user_that_may_only_replicate_finds_by_the_sentinels_word(
    deployment: Deployment,
) -> None:
    for server in deployment.servers:
        with PlainClient(server.client(password=SERVER_SECRET)) as plain:
            rules = ("on", ">tape", "-@all", "+psync", "+replconf")
            plain.ask("ACL", "SETUSER", "tape", *rules)
    url = replace(deployment.url(), username="tape", password="tape")
    with Sentinel(deployment.name, 1, password=SENTINEL_SECRET) as liar:
        every = deployment.url(liar, *deployment.sentinels).sentinels
        url = replace(url, sentinels=every)
        assert find(url).port == deployment.primary.port
        assert find(url, "replica").port != deployment.primary.port


@pytest.mark.server
@pytest.mark.usefixtures("_impatient")
def test_sentinels_that_are_down_or_hang_or_lie_are_survived(
    deployment: Deployment,
) -> None:
    good = deployment.sentinels[0]
    replica = deployment.servers[1]
    found = find(deployment.url(good))
    assert found.port == deployment.primary.port
    for port in (1, replica.port):
        with Sentinel(deployment.name, port, password=SENTINEL_SECRET) as liar:
            assert find(deployment.url(liar, good)) == found
        # It is down now.
        assert find(deployment.url(liar, good)) == found
    with Sentinel(deployment.name, 1, password=SENTINEL_SECRET) as hanging:
        hanging.pause()
        assert find(deployment.url(hanging, good)) == found
    with Sentinel(deployment.name, deployment.primary.port) as open_to_all:
        # Another password than the other ones': it refuses ours.
        assert find(deployment.url(open_to_all, good)) == found
    with Sentinel(
        deployment.name, 1, master="another", password=SENTINEL_SECRET
    ) as ignorant:
        assert find(deployment.url(ignorant, good)) == found


@pytest.mark.server
@pytest.mark.usefixtures("_impatient")
def test_a_name_that_leads_to_no_primary_is_told(deployment: Deployment) -> None:
    replica = deployment.servers[1]
    for port, why in ((1, "cannot connect to"), (replica.port, "is a replica by now")):
        with (
            Sentinel(deployment.name, port, password=SENTINEL_SECRET) as liar,
            pytest.raises(RefusedError, match=why) as caught,
        ):
            find(deployment.url(liar))
        assert "Sentinel says, but" in str(caught.value)
        assert caught.value.is_passing


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    "answer",
    [
        b"*2\r\n$1\r\nx\r\n$3\r\nabc\r\n",
        b"*2\r\n$1\r\nx\r\n$6\r\n999999\r\n",
        b"*2\r\n$1\r\nx\r\n$2\r\n-1\r\n",
        b"*2\r\n$0\r\n\r\n$4\r\n6379\r\n",
        b"*2\r\n$2\r\n\xff\x00\r\n$4\r\n6379\r\n",
        b"*1\r\n:5\r\n",
        b"*-1\r\n",
        b"$-1\r\n",
        b":1\r\n",
        b"*1\r\n*2\r\n:1\r\n$-1\r\n",
        b"garbage\r\n",
    ],
)
async def test_a_sentinel_that_talks_nonsense_is_as_one_that_is_down(
    answer: bytes,
) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listen = partial(trio.serve_tcp, talk, 0, host="127.0.0.1")
        [listener] = await nursery.start(listen)
        url = SentinelUrl((listener.socket.getsockname()[:2],), NAME)
        # Where it says that there is no such name, that is not doubted.
        with pytest.raises((ServerError, UsageError)) as caught:
            await Finder(url).find()
        assert not isinstance(caught.value, NotFoundError)
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("_impatient")
def test_without_a_healthy_replica_the_primary_is_recorded(
    start_server: StartServer,
) -> None:
    server = start_server("redis-6.2")
    with Sentinel("redis-6.2", server.port) as sentinel:
        url = Deployment("redis-6.2", [server], [sentinel]).url()
        assert find(url, "replica").port == server.port
    # A ghost: something that poses as a replica at a port where nobody listens.
    with socket.create_connection(("127.0.0.1", server.port)) as ghost:
        ghost.sendall(b"REPLCONF listening-port 1\r\n")
        assert ghost.recv(10) == b"+OK\r\n"
        ghost.sendall(b"PSYNC ? -1\r\n")
        with PlainClient(server.client()) as plain:
            wait_until(lambda: plain.info("replication")["connected_slaves"] == "1")
        with Sentinel("redis-6.2", server.port) as sentinel:
            wait_until(lambda: sentinel.ask("SENTINEL", "REPLICAS", NAME) != [])
            url = Deployment("redis-6.2", [server], [sentinel]).url()
            assert find(url, "replica").port == server.port


@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-8.0"], indirect=True)
def test_sentinels_and_server_may_speak_tls(
    server_name: str, start_server: StartServer, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    certificate = authority.issue("127.0.0.1")
    server = start_tls_server(start_server, server_name, authority, certificate)
    with tls_sentinel(server_name, server, certificate) as port:
        url = parse_source(f"rediss+sentinel://127.0.0.1:{port}/{NAME}")
        finder = Finder(url.with_tls(server.tls(certificate)))
        assert run(finder.find) == server.url(client=certificate)


# The command line.


def record(url: str, folder: Path, *more: object, **env: str) -> Outcome:
    where = ("--repo", folder / "repo", "--spool", folder / "spool")
    return kvtape("record", url, *where, *more, env=env)


def must_fail(outcome: Outcome, status: int, said: str) -> None:
    assert said in " ".join(outcome.err.split())
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.splitlines()[-1].startswith("kvtape: ")
    assert "Traceback" not in outcome.err
    assert "marker" not in outcome.err


@pytest.mark.server
@pytest.mark.usefixtures("_impatient")
def test_what_is_wrong_is_told_with_what_to_do(
    deployment: Deployment, tmp_path: Path
) -> None:
    url = deployment.text()
    both = {
        "KVTAPE_PASSWORD": SERVER_SECRET,
        "KVTAPE_SENTINEL_PASSWORD": SENTINEL_SECRET,
    }
    server_only = {"KVTAPE_PASSWORD": SERVER_SECRET}
    said = "wants a password: give the Sentinels' own user and password by"
    must_fail(record(url, tmp_path, **server_only), 8, said)
    wrong = both | {"KVTAPE_SENTINEL_PASSWORD": "wrong-marker"}
    must_fail(record(url, tmp_path, **wrong), 8, "the user name or the password is")
    wrong = both | {"KVTAPE_PASSWORD": "wrong-marker"}
    must_fail(record(url, tmp_path, **wrong), 8, "the server refused: the user name")
    unknown = deployment.text(name="another")
    said = "no Sentinel knows the name 'another', with which the URL ends: 127.0.0.1:"
    must_fail(record(unknown, tmp_path, **both), 2, said)
    must_fail(record(unknown, tmp_path, **both), 2, f"knows {NAME}")
    server = f"redis+sentinel://127.0.0.1:{deployment.primary.port}/{NAME}"
    env = {"KVTAPE_SENTINEL_PASSWORD": SERVER_SECRET}
    must_fail(record(server, tmp_path, **env), 8, "is no Sentinel: those listen on")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.server
def test_where_no_sentinel_answers_all_of_them_are_named(tmp_path: Path) -> None:
    require("redis-7.0")
    with Sentinel("redis-7.0", 1) as one, Sentinel("redis-7.0", 1) as two:
        url = Deployment("redis-7.0", [], [one, two]).text()
    outcome = record(url, tmp_path)
    must_fail(outcome, 8, f"no Sentinel of {NAME} answers: cannot connect to")
    for sentinel in (one, two):
        assert f"127.0.0.1:{sentinel.port}" in outcome.err


@pytest.mark.server
def test_the_source_is_named_as_sentinels_name_it(
    deployment: Deployment, tmp_path: Path
) -> None:
    both = {
        "KVTAPE_PASSWORD": SERVER_SECRET,
        "KVTAPE_SENTINEL_PASSWORD": SENTINEL_SECRET,
    }
    for sentinel in deployment.sentinels[:2]:
        url = deployment.text(sentinel)
        assert record(url, tmp_path, "--until-offset", 0, **both).status == 0
    [source] = documents_of(tmp_path / "repo", "*/source.json")
    assert (source["name"], source["address"]) == (NAME, f"{NAME}@sentinel")


@pytest.mark.server
def test_what_sentinels_name_is_checked(deployment: Deployment, tmp_path: Path) -> None:
    def check(url: str) -> dict[str, str]:
        outcome = kvtape(
            *("check", url, "--repo", tmp_path / "repo", "--json", "--sample", "0"),
            *("--prefer", "replica"),
            env={
                "KVTAPE_PASSWORD": SERVER_SECRET,
                "KVTAPE_SENTINEL_PASSWORD": SENTINEL_SECRET,
            },
        )
        assert "marker" not in outcome.out + outcome.err
        return {one["name"]: one["message"] for one in outcome.document()["checks"]}

    assert "replica" in check(deployment.text())["role"]
    with Sentinel(deployment.name, 1) as gone:
        url = deployment.text(gone)
    assert f"no Sentinel of {NAME} answers" in check(url)["reachability"]


def test_options_without_sentinels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    said = "go with a redis+sentinel:// URL"
    must_fail(record("redis://h", tmp_path, "--sentinel-user", "x"), 2, said)
    file = ("--sentinel-password-file", tmp_path / "secret")
    must_fail(record("redis://h", tmp_path, *file), 2, said)
    said = "--prefer goes with a redis+sentinel:// URL"
    must_fail(record("redis://h", tmp_path, "--prefer", "replica"), 2, said)
    outcome = kvtape("restore", "--repo", "r", "--into", "redis+sentinel://h/x")
    must_fail(outcome, 2, "name the server itself here, not its Sentinels")


# Following.


def options_for(url: SentinelUrl, folder: Path, prefer: Prefer) -> RecordOptions:
    return RecordOptions(
        url,
        str(folder / "repo"),
        None,
        folder / "spool",
        ack="received",
        limits=Limits(flush_interval=0.01, upload_interval=0.2),
        full_resyncs_per_hour=100,
        prefer=prefer,
        key_filters=False,
    )


@pytest.mark.server
@pytest.mark.usefixtures("_impatient")
def test_an_agent_that_starts_within_a_failover_waits_for_the_primary(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server("redis-7.0")
    server.kill()
    with Sentinel("redis-7.0", server.port) as sentinel:
        url = Deployment("redis-7.0", [server], [sentinel]).url()
        agent = Agent(options_for(url, tmp_path, "primary"))
        taping = Taping(server, tmp_path / "repo", agent)
        wait_until(lambda: "cannot connect to" in str(agent.trouble))
        # A unit that is not said to have begun would be killed for starting slowly.
        assert agent.begun.is_set()
        server.start()
        taping.wait_until_online()
        taping.stop()
        assert caplog.text.count("nothing is recorded") == 1
        server.kill()
        taping = Taping(server, tmp_path / "repo", Agent(agent.options))
        wait_until(lambda: taping.agent.trouble is not None)
        # There is nothing to lose by stopping.
        taping.stop()


class Writer:
    """Writes to whatever server is the primary, until it is stopped."""

    def __init__(self, deployment: Deployment) -> None:
        self.written = 0
        self._deployment = deployment
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            port = self._deployment.sentinels[0].primary()
            server = self._deployment.by_port(port)
            try:
                with PlainClient(server.client()) as plain:
                    while not self._over.is_set():
                        self._write(plain)
            except OSError:
                pass
            except Exception as error:
                if "onnection" not in str(error) and "READONLY" not in str(error):
                    raise

    def _write(self, plain: PlainClient) -> None:
        for number in range(20):
            plain.ask("SET", f"key{self.written % 997}", f"{self.written}" * 5)
            plain.ask("RPUSH", "list", number)
            self.written += 1
        self._over.wait(0.002)

    def stop(self) -> None:
        """Return when nothing is written any more."""
        self._over.set()
        self._thread.join()


def must_equal(server: Server, taping: Taping, folder: Path) -> None:
    """Stop, restore the latest into a new server, and compare that."""
    offset, state = stable_fingerprint(server.client())
    agent = taping.agent
    with PlainClient(server.client()) as plain:
        replid = plain.info("replication")["master_replid"]
    wait_until(
        lambda: agent.recorder.replid == replid and agent.recorder.durable >= offset
    )
    taping.stop()
    with Server(server.name) as target:
        job = open_job(str(folder / "repo"), NAME, ToLatest())
        into = IntoOptions(ServerUrl("127.0.0.1", target.port))
        run(lambda: restore_into(job, into))
        assert compare(state, fingerprint(target.client())) == []


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-7.0", "valkey-8.1"], indirect=True)
def test_a_recording_goes_on_at_the_new_primary(
    server_name: str, tmp_path: Path
) -> None:
    with deployed(server_name) as deployment:
        agent = Agent(options_for(deployment.url(), tmp_path, "primary"))
        taping = Taping(deployment.primary, tmp_path / "repo", agent)
        writer = Writer(deployment)
        try:
            taping.wait_until_online()
            wait_until(lambda: writer.written > 500)
            deployment.primary.kill()
            second = deployment.wait_for_failover(deployment.primary)
            written = writer.written
            wait_until(lambda: writer.written > written + 500)
            # And once more, as an operator does it: nothing dies, nothing closes.
            deployment.fail_over()
            third = deployment.wait_for_failover(second)
            written = writer.written
            wait_until(lambda: writer.written > written + 200)
        finally:
            writer.stop()
        must_equal(third, taping, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["redis-6.2"], indirect=True)
def test_a_primary_that_hangs_does_not_hold_the_link(
    server_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with deployed(server_name, replicas=1) as deployment:
        agent = Agent(options_for(deployment.url(), tmp_path, "primary"))
        taping = Taping(deployment.primary, tmp_path / "repo", agent)
        taping.wait_until_online()
        pause(deployment.primary)
        second = deployment.wait_for_failover(deployment.primary)
        must_equal(second, taping, tmp_path)
    old, new = (f"127.0.0.1:{one.port}" for one in (deployment.primary, second))
    assert f"Sentinel moved {NAME} from {old} to {new}" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["valkey-9.1"], indirect=True)
def test_a_replica_that_is_promoted_is_left_for_another_one(
    server_name: str, tmp_path: Path
) -> None:
    with deployed(server_name) as deployment:
        agent = Agent(options_for(deployment.url(), tmp_path, "replica"))
        taping = Taping(deployment.primary, tmp_path / "repo", agent)
        taping.wait_until_online()
        first = agent.session
        deployment.fail_over()
        second = deployment.wait_for_failover(deployment.primary)
        with PlainClient(second.client()) as plain:
            plain.ask("SET", "key", "value")
        must_equal(second, taping, tmp_path)
        assert agent.session is not first
        # What is behind is not believed, though its server says it is a primary.
        with Server(server_name) as old, Sentinel(server_name, old.port) as behind:
            assert find(deployment.url(behind)).port == old.port
            every = deployment.url(behind, *deployment.sentinels[:1])
            assert find(every).port == second.port


@pytest.mark.slow
def test_a_link_goes_on_without_any_sentinel(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server("redis-7.0")
    with Sentinel("redis-7.0", server.port) as sentinel:
        url = Deployment("redis-7.0", [server], [sentinel]).url()
        agent = Agent(options_for(url, tmp_path, "primary"))
        taping = Taping(server, tmp_path / "repo", agent)
        taping.wait_until_online()
    first = agent.session
    with PlainClient(server.client()) as plain:
        plain.ask("SET", "key", "value")
        taping.catch_up()
    assert agent.session is first
    taping.stop()


@pytest.mark.server
async def test_a_move_is_told_by_name(deployment: Deployment) -> None:
    finder = Finder(deployment.url())
    url = await finder.find()
    elsewhere = replace(url, port=1)
    with trio.fail_after(20), pytest.raises(LinkError) as caught:
        await finder.watch(elsewhere)
    assert str(caught.value) == (
        f"Sentinel moved {NAME} from 127.0.0.1:1 to {url.address}"
    )


def test_a_server_that_is_named_itself_is_where_it_is() -> None:
    url = ServerUrl("db", 1)
    finder = Finder(url)
    assert run(finder.find) == url
    run(lambda: finder.watch(url))
    with pytest.raises(UsageError, match="--prefer goes with"):
        Finder(url, "replica")
