"""Real servers for the tests: what `tools/servers` got, started one process each.

Hides where the programs are, how a free port is found, and when a server is up.
A server listens on 127.0.0.1 only, works in a temporary folder of its own, and is
ended by its process id. `STARTED` remembers which were up at least once, so that a
run can prove that it tested against real servers (see conftest.py).

Decided against: port 0 (these servers take it for "do not listen"), and asking the
kernel for a port: it gives out the same range to every outgoing connection, so that
a server that is restarted could find its port taken.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

SERVERS: Final = (
    "redis-6.2",
    "redis-7.0",
    "redis-8.0",
    "valkey-8.0",
    "valkey-8.1",
    "valkey-9.1",
)

STARTED: Final[set[str]] = set()

FOLDER: Final = Path(__file__).resolve().parent.parent / ".servers"

# Below the range that Linux gives to outgoing connections, and low enough that a
# cluster's second port (10000 more) is a valid one.
PORTS: Final = range(12000, 22000)
PORT_TRIES: Final = 20
START_TIMEOUT: Final = 30.0
# Longer than the ten seconds that a server from 7.0 on may wait for its replicas, so
# that such an end is still an orderly one.
STOP_TIMEOUT: Final = 15.0
POLL_INTERVAL: Final = 0.01


class ServerError(Exception):
    """A server is missing, did not start, or did not stop."""


class PortTakenError(ServerError):
    """Somebody else listens on the port that was chosen."""


def binary(name: str, program: str = "server") -> Path | None:
    """Find a server's program; None if `tools/servers` has not got it.

    `program` is what follows the family in its name: server, cli, check-aof,
    check-rdb, benchmark (not every server comes with the last one, nor with cli).
    """
    if not (FOLDER / name / "version").exists():
        return None
    path = FOLDER / name / "bin" / f"{name.partition('-')[0]}-{program}"
    return path if path.exists() else None


class Server:
    """One server process; it is up when the constructor returns.

    `config` holds options as redis.conf writes them, over defaults that suit tests:
    `{"repl-diskless-sync": "yes", "client-output-buffer-limit": "replica 0 0 0"}`.
    Without more it works in a temporary folder, which `close` removes. With `folder`
    it works there instead. With `config_file` it is started from that file as an
    operator would, with the port, the address and the log overridden, and nothing
    else unless `config` says so. Neither of these two is ever removed. `program` is a
    server that is not among ours; its name is for messages only.

    `stop`, `kill`, `start` and `restart` keep the port, the folder and the log;
    `close` (or leaving the context) ends it all. They block: a trio test that has a
    replica attached calls `stop` and `restart` in a thread, as a server from 7.0 on
    waits for its replicas. Not to be used by two threads at once.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, str] | None = None,
        *,
        config_file: Path | None = None,
        folder: Path | None = None,
        program: Path | None = None,
    ) -> None:
        program = program or binary(name)
        if program is None:
            raise ServerError(f"{name} is missing: run tools/servers")
        self.name = name
        self.port = 0
        self._program = program
        self._config_file = config_file
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        self._scratch = Path(tempfile.mkdtemp(prefix=f"kvtape-{name}-"))
        self._log_file = self._scratch / "server.log"
        if config_file is None:
            self.folder = folder or self._scratch
            self._config = {**self._defaults(), **(config or {})}
        else:
            self.folder = folder or config_file.resolve().parent
            self._config = dict(config or {})
            if folder is not None:
                self._config["dir"] = shlex.quote(str(folder))
        try:
            self._start_on_any_port()
        except BaseException:
            self.close()
            raise

    def _defaults(self) -> dict[str, str]:
        options = {
            "dir": shlex.quote(str(self.folder)),
            "save": "",
            "appendonly": "no",
            "repl-diskless-sync-delay": "0",
        }
        if self.name != "redis-6.2":
            options["enable-debug-command"] = "yes"
        return options

    @property
    def pid(self) -> int:
        """The process id; ServerError when it is not running."""
        if self._process is None or not self.running:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """All that the server has logged, over all its restarts."""
        try:
            return self._log_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def client(self, **options: Any) -> redis.Redis:  # noqa: ANN401
        """Connect a new client that sees each error at once; `close` closes it."""
        settings = {
            "host": "127.0.0.1",
            "port": self.port,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            # Or it names itself to the server, which before 7.2 counts as an error.
            "driver_info": None,
            "socket_timeout": 30,
            **options,
        }
        client = redis.Redis(**settings)
        self._clients.append(client)
        return client

    def start(self) -> None:
        """Start it again, on the same port, after `stop` or `kill`."""
        if self.running:
            raise ServerError(f"{self.name} is running already")
        self._start_on(self.port)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that took too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as in a crash, to it and to a child that writes a snapshot."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def wait_for_end(self) -> None:
        """Wait until it has ended by itself."""
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT)
            self._process = None

    def restart(self) -> None:
        """Stop it and start it on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End everything at once: clients, processes, temporary folder.

        The server is killed, which never waits; `stop` it before when what it writes
        at its end matters.
        """
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.kill()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start_on_any_port(self) -> None:
        for _ in range(PORT_TRIES):
            self.port = random.choice(PORTS)
            try:
                self._start_on(self.port)
            except PortTakenError:
                continue
            return
        raise ServerError(f"{self.name} found no free port in {PORT_TRIES} tries")

    def _start_on(self, port: int) -> None:
        logged_before = len(self.log())
        with self._log_file.open("ab") as log_file:
            self._process = subprocess.Popen(
                self._command(port),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                # The interrupt key ends the tests, which then end the server.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_up(port, self.log()[logged_before:]):
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(self._failure(f"not up after {START_TIMEOUT:.0f} s"))
            time.sleep(POLL_INTERVAL)
        STARTED.add(self.name)

    def _command(self, port: int) -> list[str]:
        options = {
            **self._config,
            "port": str(port),
            "bind": "127.0.0.1",
            "daemonize": "no",
            # To its output, where it also says what is wrong with its options.
            "logfile": "",
        }
        command = [str(self._program)]
        if self._config_file is not None:
            command.append(str(self._config_file.resolve()))
        for name, value in options.items():
            command += [f"--{name}", *(shlex.split(value) or [""])]
        return command

    def _is_up(self, port: int, log: str) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            self._process = None
            if "Address already in use" in log:
                raise PortTakenError(f"port {port} is taken")
            raise ServerError(self._failure("ended at once"))
        # A PONG alone could come from another server that has the port.
        return "Ready to accept connections" in log and answers(port)

    def _failure(self, what: str) -> str:
        tail = "\n".join(self.log().splitlines()[-20:])
        return f"{self.name} on port {self.port}: {what}; its log ends:\n{tail}"


class StartServer(Protocol):
    """Starts a server that is closed when the test ends (the fixture `start_server`).

    Options are written with underscores: `start_server(name, maxmemory="1mb")`.
    """

    def __call__(
        self,
        name: str,
        *,
        config_file: Path | None = None,
        folder: Path | None = None,
        **config: str,
    ) -> Server:
        """Start it; the arguments are those of `Server`."""


def answers(port: int) -> bool:
    """Whether a server is there and past loading (a demand for a password counts)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            reply = connection.recv(100)
    except OSError:
        return False
    return reply.startswith((b"+PONG", b"-NOAUTH"))


def quiet(start_server: StartServer, name: str, **config: str) -> Server:
    """Start a server without PINGs: its offset stands still when nothing is written."""
    return start_server(name, repl_ping_replica_period="3600", **config)  # type: ignore[arg-type]
