"""What a soak runs: servers, an agent, a writer, a store, and the networks between.

It hides how each is started, hurt and healed. A scene is one recording from its first
byte to its last: one repository, one ledger. Everything is a process of its own, as in
production; only the writer and the networks are threads of the tests.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.request import Request, urlopen

import fsspec
import redis

from ledger import Ledger
from object_store import BadWay, bad_way
from scribe import Scribe
from sentinels import NAME, Deployment, deployed
from servers import Server
from small_disk import mounted_disk
from switch import Switch

Topology: TypeAlias = Literal["single", "sentinel"]
StoreKind: TypeAlias = Literal["folder", "s3"]

SOURCE: Final = "soak"
BUCKET: Final = "soak"

_SKEWED_CLOCK: Final = Path(__file__).resolve().parent / "skewed_clock"
_PATIENCE: Final = 60.0
SPOOL_SIZE: Final = 96 * 2**20

_CONFIG: Final = {
    "repl-backlog-size": "16mb",
    "repl-diskless-sync-delay": "0",
    "repl-timeout": "10",
    # A scene's servers are killed and started; what they lose is what is tested.
    "save": "",
}


class SoakError(AssertionError):
    """Something that must not happen, in words."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scene is of."""

    server_name: str
    topology: Topology
    store: StoreKind
    seed: int

    @property
    def knows_waitaof(self) -> bool:
        """Whether the server can be asked what is in the backup."""
        return self.server_name not in ("redis-6.2", "redis-7.0")


@dataclass(slots=True)
class Agent:
    """`kvtape record`, as a process that is killed, stopped and started again."""

    command: list[str]
    folder: Path
    environment: dict[str, str]
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def spool(self) -> Path:
        """Where it keeps what is not stored yet."""
        return self.folder / "spool" / "spool"

    @property
    def log(self) -> str:
        """What it has said, over all its starts."""
        return (self.folder / "agent.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, or start it again."""
        self.starts += 1
        with (self.folder / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )

    def kill(self) -> None:
        """SIGKILL, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """SIGTERM; on return all that it received is stored."""
        assert self._process is not None
        self._process.terminate()
        status = self._process.wait(_PATIENCE)
        self._process = None
        if status != 0:
            raise SoakError(f"the agent ended with {status}: {self._tail()}")

    def must_run(self) -> None:
        """Raise SoakError, with its log, if it has ended."""
        if self._process is None or self._process.poll() is not None:
            raise SoakError(f"the agent has ended: {self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log.splitlines()[-30:])


@dataclass(slots=True)
class Store:
    """Where the repository is, and the ways it can be gone."""

    url: str
    environment: dict[str, str]
    fail: Callable[[], None]
    heal: Callable[[], None]
    link: Switch | None = None
    way: BadWay | None = None
    process: subprocess.Popen[bytes] | None = None


@dataclass(slots=True)
class Scene:
    """Everything that runs, and what a soak does with it.

    Where there are Sentinels, agent and writer ask them for the primary; where there is
    but one server, the agent reaches it over link.
    """

    setting: Setting
    servers: list[Server]
    agent: Agent
    scribe: Scribe
    ledger: Ledger
    store: Store
    clock: Path  # by how many seconds the agent's clock is wrong
    spool_disk: Path | None  # None where no small one could be mounted
    restored: Server  # what is restored into, of the same release
    link: Switch | None = None
    deployment: Deployment | None = None

    @property
    def primary(self) -> Server:
        """The server that is written to, as far as anybody knows."""
        if self.deployment is None:
            return self.servers[0]
        return self.deployment.by_port(named_by(self.deployment))

    def skew_clock(self, seconds: float) -> None:
        """Set the agent's wall clock that far off."""
        replacement = self.clock.with_suffix(".new")
        replacement.write_text(str(seconds))
        replacement.rename(self.clock)


def named_by(deployment: Deployment) -> int:
    """Return the port of the primary that most Sentinels name which answer at once."""
    votes: Counter[int] = Counter()
    for sentinel in deployment.sentinels:
        with suppress(redis.RedisError, OSError):
            client = redis.Redis(port=sentinel.port, socket_timeout=0.5)
            with client:
                address = client.sentinel_get_master_addr_by_name(NAME)
                assert isinstance(address, tuple)
                votes[address[1]] += 1
    if not votes:
        raise ConnectionError("no Sentinel answers")
    return votes.most_common(1)[0][0]


@contextmanager
def folder_store(folder: Path) -> Iterator[Store]:
    """Yield a repository in a folder, which fails when a file takes its place."""
    place, aside = folder / "repository", folder / "aside"

    def fail() -> None:
        if place.exists():
            place.rename(aside)
        place.write_text("this is no folder")

    def heal() -> None:
        place.unlink()
        if aside.exists():
            aside.rename(place)

    yield Store(str(place), {}, fail, heal)


@contextmanager
def s3_store(folder: Path) -> Iterator[Store]:
    """Yield a bucket of a real S3 server, behind a network of its own."""
    port = _free_port()
    with (folder / "s3.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for_port(port, process)
        with (
            bad_way(f"127.0.0.1:{port}") as way,
            Switch(port_of(way)) as link,
        ):
            environment = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{link.port}",
                "AWS_ACCESS_KEY_ID": "soak",
                "AWS_SECRET_ACCESS_KEY": "soak",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            os.environ.update(environment)
            # What was opened for an earlier scene has that one's address.
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            _create_bucket(port)
            yield Store(
                f"s3://{BUCKET}/tape",
                environment,
                lambda: link.turn_to(None),
                lambda: link.turn_to(port_of(way)),
                link,
                way,
                process,
            )
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def port_of(way: BadWay) -> int:
    """Return the port to use instead of the store's own."""
    return int(way.front.rpartition(":")[2])


def _create_bucket(port: int) -> None:
    request = Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
    with urlopen(request, timeout=_PATIENCE):
        pass


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise SoakError("the S3 server did not start")


@contextmanager
def scene(setting: Setting, folder: Path) -> Iterator[Scene]:
    """Run a scene; everything is gone afterwards but its folder."""
    folder.mkdir(parents=True)
    clock = folder / "clock"
    clock.write_text("0")
    with ExitStack() as stack:
        store = stack.enter_context(
            s3_store(folder) if setting.store == "s3" else folder_store(folder)
        )
        disk = folder / "spool"
        has_disk = stack.enter_context(mounted_disk(disk, SPOOL_SIZE))
        restored = stack.enter_context(Server(setting.server_name))
        link = deployment = None
        if setting.topology == "sentinel":
            deployment = stack.enter_context(
                deployed(setting.server_name, more=_CONFIG)
            )
            servers, url = deployment.servers, deployment.text()
            where = partial(named_by, deployment)
        else:
            server = stack.enter_context(Server(setting.server_name, _CONFIG))
            link = stack.enter_context(Switch(server.port))
            servers, url = [server], f"redis://127.0.0.1:{link.port}"
            where = partial(getattr, server, "port")
        agent = Agent(
            _command(setting, url, store.url, disk), folder, _environment(store, clock)
        )
        stack.callback(agent.kill)
        ledger = Ledger(setting.seed)
        scribe = Scribe(ledger, where, asks_promises=setting.knows_waitaof)
        stack.enter_context(scribe)
        agent.start()
        yield Scene(
            setting,
            servers,
            agent,
            scribe,
            ledger,
            store,
            clock,
            disk if has_disk else None,
            restored,
            link,
            deployment,
        )


def _command(setting: Setting, url: str, repository: str, spool: Path) -> list[str]:
    command = [sys.executable, "-m", "kvtape", "record", url, "--source", SOURCE]
    command += ["--repo", repository, "--spool", str(spool / "spool")]
    command += ["--upload-interval", "1s", "--full-resyncs-per-hour", "100000"]
    command += ["--ack", "stored" if setting.knows_waitaof else "auto"]
    return command


def _environment(store: Store, clock: Path) -> dict[str, str]:
    path = os.pathsep.join(
        [str(_SKEWED_CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KVTAPE_")
    }
    return {
        **environment,
        **store.environment,
        "PYTHONPATH": path,
        "SKEWED_CLOCK": str(clock),
    }
