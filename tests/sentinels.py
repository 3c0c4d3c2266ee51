"""Real Sentinels for the tests, around a primary and its replicas.

A Sentinel writes its own configuration file, so each has one in a temporary folder. It
is the server's program, started as one: `Server` does not fit, since it takes no option
of a server.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import redis

from certificates import Certificate, TlsServer
from kvtape.server.url import SentinelUrl
from plain_client import PlainClient
from replicas import attach, wait_until
from servers import PORT_TRIES, PORTS, START_TIMEOUT, Server, ServerError, binary

NAME: Final = "mymaster"
DOWN_AFTER_MS: Final = 700


class Sentinel:
    """One Sentinel process, which is up when the constructor returns."""

    def __init__(
        self,
        name: str,
        port_of_primary: int,
        *,
        master: str = NAME,
        password: str | None = None,
        server_password: str | None = None,
        more: Sequence[str] = (),
    ) -> None:
        program = binary(name)
        if program is None:
            raise ServerError(f"{name} is missing: run tools/servers")
        self.password = password
        self.port = 0
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="kvtape-sentinel-"))
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            *more,
            "bind 127.0.0.1",
            f"sentinel monitor {master} 127.0.0.1 {port_of_primary} 2",
            f"sentinel down-after-milliseconds {master} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {master} 3000",
        ]
        if server_password is not None:
            lines.append(f"sentinel auth-pass {master} {server_password}")
        if password is not None:
            lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        try:
            self._start_on_any_port(lines)
        except BaseException:
            self.close()
            raise

    def client(self) -> redis.Redis:
        """Return a new client."""
        return redis.Redis("127.0.0.1", self.port, password=self.password, protocol=2)

    def ask(self, *words: str) -> object:
        """Send a command and return the reply."""
        with self.client() as client, PlainClient(client) as plain:
            return plain.ask(*words)

    def primary(self) -> int:
        """Return the port of the primary that it names."""
        reply = self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        assert isinstance(reply, list)
        return int(reply[1])

    def knows(self, replicas: int, sentinels: int) -> bool:
        """Whether it has found so many replicas that are up, and other Sentinels."""
        with self.client() as client, PlainClient(client) as plain:
            found = plain.ask("SENTINEL", "REPLICAS", NAME)
            others = plain.ask("SENTINEL", "SENTINELS", NAME)
        assert isinstance(found, list)
        assert isinstance(others, list)
        up = [replica for replica in found if b"ok" in replica]  # type: ignore[operator]
        return len(up) >= replicas and len(others) >= sentinels

    def pause(self) -> None:
        """Stop it as if it hung."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def start(self) -> None:
        """Start it again after kill(), with what it has written down."""
        if not self._is_up():
            raise ServerError(f"the port {self.port} is taken")

    def close(self) -> None:
        """Kill it, and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start_on_any_port(self, lines: Sequence[str]) -> None:
        for _ in range(PORT_TRIES):
            self.port = random.choice(PORTS)
            file = self._folder / "sentinel.conf"
            file.write_text("\n".join([f"port {self.port}", *lines, ""]))
            if self._is_up():
                return
            self._process = None
        raise ServerError(f"no free port for a Sentinel in {PORT_TRIES} tries")

    def _is_up(self) -> bool:
        """Start it; False if its port is taken."""
        log = self._folder / f"{self.port}.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [self._program, self._folder / "sentinel.conf", "--sentinel"],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            text = log.read_text(errors="replace")
            if self._process.poll() is not None:
                if "Address already in use" in text:
                    return False
                raise ServerError(f"the Sentinel ended:\n{text}")
            if "+monitor" in text:
                return True
            time.sleep(0.01)
        raise ServerError("the Sentinel is not up")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A primary, its replicas, and the Sentinels that watch them."""

    name: str
    servers: list[Server]
    sentinels: list[Sentinel]
    password: str | None = None

    @property
    def primary(self) -> Server:
        """The first primary; it stays so only as long as nothing fails."""
        return self.servers[0]

    def by_port(self, port: int) -> Server:
        """Return the server that listens there."""
        return next(server for server in self.servers if server.port == port)

    def url(self, *sentinels: Sentinel, name: str = NAME) -> SentinelUrl:
        """Return the URL, with these Sentinels or with all."""
        chosen = sentinels or self.sentinels
        return SentinelUrl(
            tuple(("127.0.0.1", sentinel.port) for sentinel in chosen),
            name,
            password=self.password,
            sentinel_password=self.sentinels[0].password,
        )

    def text(self, *sentinels: Sentinel, name: str = NAME) -> str:
        """Return the URL as an operator writes it, without the passwords."""
        hosts = [f"127.0.0.1:{port}" for _, port in self.url(*sentinels).sentinels]
        return f"redis+sentinel://{','.join(hosts)}/{name}"

    def fail_over(self) -> None:
        """Have a replica promoted, as an operator does, as soon as that can be."""

        def is_accepted() -> bool:
            try:
                self.sentinels[0].ask("SENTINEL", "FAILOVER", NAME)
            except redis.ResponseError as error:
                # One is not over yet, or its new replica is not known yet.
                if not str(error).startswith(("INPROG", "NOGOODSLAVE")):
                    raise
                return False
            return True

        wait_until(is_accepted)

    def wait_for_failover(self, old: Server) -> Server:
        """Return the new primary, when all Sentinels name it."""
        alive = self.sentinels

        def moved() -> bool:
            ports = {sentinel.primary() for sentinel in alive}
            return len(ports) == 1 and old.port not in ports

        wait_until(moved)
        return self.by_port(alive[0].primary())


@contextmanager
def deployed(
    name: str,
    *,
    replicas: int = 2,
    password: str | None = None,
    sentinel_password: str | None = None,
    more: Mapping[str, str] | None = None,
) -> Iterator[Deployment]:
    """Start a primary with replicas and three Sentinels that know all of them.

    more are further options of the servers.
    """
    config = {} if password is None else {"requirepass": password}
    config |= {} if password is None else {"masterauth": password}
    # So that a failover is not the end of what a replica can continue.
    config |= {"repl-backlog-size": "32mb", "repl-diskless-sync-delay": "0"}
    config |= more or {}
    servers: list[Server] = []
    sentinels: list[Sentinel] = []
    try:
        for number in range(1 + replicas):
            servers.append(Server(name, config))
            if number:
                _attach(servers[number], servers[0], password)
        while len(sentinels) < 3:
            sentinel = Sentinel(
                name,
                servers[0].port,
                password=sentinel_password,
                server_password=password,
            )
            sentinels.append(sentinel)
        for sentinel in sentinels:
            wait_until(lambda one=sentinel: one.knows(replicas, 2))  # type: ignore[misc]
        yield Deployment(name, servers, sentinels, password)
    finally:
        for sentinel in sentinels:
            sentinel.close()
        for server in servers:
            server.close()


@contextmanager
def tls_sentinel(
    name: str, server: TlsServer, certificate: Certificate
) -> Iterator[int]:
    """Start a Sentinel that speaks TLS, with its server too; yield that port."""
    for _ in range(PORT_TRIES):
        port = random.choice(PORTS)
        more = [
            f"tls-port {port}",
            f"tls-cert-file {certificate.cert}",
            f"tls-key-file {certificate.key}",
            f"tls-ca-cert-file {server.authority.file}",
            "tls-replication yes",
        ]
        try:
            sentinel = Sentinel(name, server.port, more=more)
        except ServerError as error:
            if "no free port" in str(error):
                continue
            raise
        with sentinel:
            yield port
        return
    raise ServerError(f"no free port for TLS in {PORT_TRIES} tries")


def _attach(replica: Server, primary: Server, password: str | None) -> None:
    if password is None:
        attach(replica, primary)
        return
    with PlainClient(replica.client(password=password)) as plain:
        plain.ask("REPLICAOF", "127.0.0.1", primary.port)
        wait_until(lambda: plain.info("replication")["master_link_status"] == "up")


def pause(server: Server) -> None:
    """Stop a server as if it hung; its connections stay."""
    os.kill(server.pid, signal.SIGSTOP)
