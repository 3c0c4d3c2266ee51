"""Trials: record a busy server, and read it at every pause of its writer.

It hides how a recording is disturbed: writes go on while the snapshot is taken, the
link is cut, the agent is killed and started again. What it promises: the agent is a
real process, started as an operator starts it; the writer pauses at random moments,
that is after a random number of operations; and at each pause the primary is read by
the oracle between two equal readings of its offset. What is restored of it is judged in
copies.py.

Redis 6.2 sends expiries relative to now, and the recording dates them by their receipt.
What it wrote while no agent read the link is dated too late, by as long at most. A
trial notes which expiries those are (`Late`), and excuses only them, and only that.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from fingerprints import Key
from kvtape.storage.repository import open_repository
from kvtape.tape.catalogue import Catalogue
from operations import FieldTtls
from oracle import (
    RELATIVE_TOLERANCE_MS,
    Fingerprint,
    fingerprint,
    stable_fingerprint,
)
from plain_client import PlainClient, as_bytes
from servers import Server
from watching import wait_until_spooled
from workload import Workload

Mode: TypeAlias = Literal["diskless", "disk"]

MODES: Final[tuple[Mode, ...]] = ("diskless", "disk")
SOURCE: Final = "trial"

MIB: Final = 2**20
# Longer than a receipt time is coarse (10 ms), by far, for a busy machine.
QUIET: Final = 0.35
QUIET_PAUSES: Final = 2
AGENT_PATIENCE: Final = 60.0
# So that the snapshot has one in any case.
LIBRARY: Final = """#!lua name=early
    redis.register_function('early', function(keys, args) return 1 end)"""

# Redis 6.2 may hold the stream back after a diskless sync until the next ACK, which
# comes each second.
HELD_BACK: Final = 1.1


@dataclass(frozen=True, slots=True)
class Setting:
    """What a trial is of; the seed decides the writes and the pauses.

    operations are how many there are at least and at most between two pauses. Where
    is_calm, nothing is written while the agent is away, and it is away only once.
    """

    server_name: str
    mode: Mode
    seed: int
    points: int = 10
    field_ttls: FieldTtls = "long"
    large_value: int = 4 * MIB
    kills_agent: bool = False
    early_operations: int = 2500
    operations: tuple[int, int] = (30, 600)
    is_calm: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What the primary held at an offset, and when it had stood there for a while.

    The time (ms) is None where it had not.
    """

    offset: int
    state: Fingerprint
    time: int | None = None


@dataclass(frozen=True, slots=True)
class Late:
    """Expiries that a Redis 6.2 sent while nobody received, and for how long (ms)."""

    expiries: frozenset[int]
    longest: int

    def covers(self, expected: Key, actual: Key) -> bool:
        """Whether this is why a copy expires when it does."""
        if expected.expiry is None or actual.expiry is None:
            return False
        # A remaining time is read exactly to 1 ms.
        around = range(expected.expiry - 2, expected.expiry + 3)
        by = actual.expiry - expected.expiry
        tolerated = -RELATIVE_TOLERANCE_MS <= by <= self.longest
        return tolerated and not self.expiries.isdisjoint(around)


@dataclass(frozen=True, slots=True)
class Recording:
    """A trial's first half: what is in the repository, and what it must be."""

    setting: Setting
    repository: Path
    before: Fingerprint
    readings: Sequence[Reading]
    end: int
    commands: int
    late: Sequence[Late]

    def catalogue(self) -> Catalogue:
        """Return what the repository says can be restored."""
        return open_repository(str(self.repository)).source(SOURCE).catalogue()


@dataclass(slots=True)
class Agent:
    """`kvtape record`, as a process of its own."""

    server: Server
    folder: Path
    _process: subprocess.Popen[bytes] | None = None

    @property
    def repository(self) -> Path:
        """Where it stores what it records."""
        return self.folder / "repository"

    @property
    def log(self) -> str:
        """What it has said, over all its starts."""
        return (self.folder / "agent.log").read_text()

    def start(self) -> None:
        """Start it, or start it again."""
        command = [sys.executable, "-m", "kvtape", "record"]
        command += [f"redis://127.0.0.1:{self.server.port}", "--source", SOURCE]
        command += ["--repo", str(self.repository), "--spool", str(self.folder / "s")]
        command += ["--upload-interval", "500ms", "--segment-size", "64KiB"]
        with (self.folder / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGTERM; on return all that it received is stored."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(AGENT_PATIENCE) == 0, self.log
        self._process = None

    @property
    def is_started(self) -> bool:
        """Whether it was started, and nobody ended it since."""
        return self._process is not None

    def catch_up(self, offset: int) -> None:
        """Wait until it has synced what was written up to an offset."""
        wait_until_spooled(self.folder / "s", offset)

    def must_run(self) -> None:
        """Raise AssertionError, with its log, if it has ended."""
        assert self._process is not None
        assert self._process.poll() is None, self.log


@contextmanager
def agent_for(server: Server, folder: Path) -> Iterator[Agent]:
    """Give an agent that is not started yet, and is certainly gone at the end."""
    agent = Agent(server, folder)
    try:
        yield agent
    finally:
        agent.kill()


def record(setting: Setting, folder: Path) -> Recording:
    """Run a busy server and an agent; return when both are gone."""
    config = {
        "repl-diskless-sync": "yes" if setting.mode == "diskless" else "no",
        "repl-diskless-sync-delay": "0",
        "client-output-buffer-limit": "replica 0 0 0",
        # What is written while nobody listens must be there when somebody does.
        "repl-backlog-size": "256mb",
    }
    with (
        Server(setting.server_name, config) as server,
        agent_for(server, folder) as agent,
        Workload(
            "127.0.0.1",
            server.port,
            setting.seed,
            setting.server_name,
            field_ttls=setting.field_ttls,
        ) as work,
        PlainClient(server.client()) as plain,
    ):
        return _Session(setting, server, agent, work, plain).run()


@dataclass(slots=True)
class _Session:
    """One run of `record`: the writer, and what happens to the agent meanwhile."""

    setting: Setting
    server: Server
    agent: Agent
    work: Workload
    plain: PlainClient
    late: list[Late] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)

    def run(self) -> Recording:
        setting, work = self.setting, self.work
        rng = random.Random(setting.seed)
        work.step(setting.early_operations)
        if setting.server_name != "redis-6.2":
            self.plain.ask("FUNCTION", "LOAD", "REPLACE", LIBRARY)
        before = fingerprint(self.server.client())
        with self._nobody_listening():
            self.agent.start()
        events = self._events()
        quiet = rng.sample(range(setting.points), QUIET_PAUSES)
        for number in range(setting.points):
            work.step(rng.randint(*setting.operations))
            for event in events.get(number, ()):
                event()
            self._pause(is_quiet=number in quiet)
        end = self._finish()
        commands = work.done.total()
        repository = self.agent.repository
        return Recording(
            setting, repository, before, self.readings, end, commands, self.late
        )

    def _events(self) -> dict[int, list[Callable[[], None]]]:
        """Return what happens before which pause."""
        points = self.setting.points
        events: dict[int, list[Callable[[], None]]] = {}
        happenings = [
            (points // 5, self.work.evictions),
            (points * 3 // 4, self._write_large),
            (points * 3 // 4 + 2, self._delete_large),
        ]
        if not self.setting.is_calm:
            again = self._kill if self.setting.kills_agent else self._cut
            happenings += [(points // 3, self._cut), (points // 2, again)]
        for number, event in happenings:
            events.setdefault(number, []).append(event)
        return events

    def _cut(self) -> None:
        with self._nobody_listening():
            self.plain.ask("CLIENT", "KILL", "TYPE", "replica")

    def _kill(self) -> None:
        with self._nobody_listening():
            self.agent.kill()
            self.work.step(200)
            self.agent.start()

    def _write_large(self) -> None:
        self.work.large_value(self.setting.large_value)

    def _delete_large(self) -> None:
        """Delete it wherever it is now, or each later reading would hold a copy."""
        key = f"large:{self.setting.large_value}"
        for database in (0, 1, 3, 9, 15):
            self.plain.exchange([("SELECT", database), ("DEL", key)])

    @contextmanager
    def _nobody_listening(self) -> Iterator[None]:
        """Do something to the agent, and write on until it listens again."""
        is_relative = self.setting.server_name == "redis-6.2"
        before = set(self._expiries()) if is_relative else set()
        if is_relative and self.agent.is_started:
            # What a killed agent has not synced it receives again, and dates anew.
            self.agent.catch_up(self._offset())
        begun, gone = time.monotonic(), self._links()
        yield
        while not self._is_listening(gone):
            self.agent.must_run()
            assert time.monotonic() < begun + AGENT_PATIENCE, self.agent.log
            if self.setting.is_calm:
                time.sleep(0.01)
            else:
                self.work.step(20)
        if is_relative:
            time.sleep(HELD_BACK)
            longest = int((time.monotonic() - begun) * 1000)
            new = {it for it in self._expiries() if not before & {it - 1, it, it + 1}}
            self.late.append(Late(frozenset(new), longest))

    def _expiries(self) -> Iterator[int]:
        state = fingerprint(self.server.client())
        return (key.expiry for key in state.keys.values() if key.expiry is not None)

    def _links(self) -> set[bytes]:
        """Return the links to replicas, each by its connection's own id."""
        clients = as_bytes(self.plain.ask("CLIENT", "LIST", "TYPE", "replica"))
        return {line.split()[0] for line in clients.splitlines()}

    def _is_listening(self, gone: set[bytes]) -> bool:
        replication = self.plain.info("replication")
        is_online = "state=online" in replication.get("slave0", "")
        return is_online and bool(self._links() - gone)

    def _pause(self, *, is_quiet: bool) -> None:
        moment, quiet = self._wait_for_quiet() if is_quiet else (0, 0)
        offset, state = stable_fingerprint(self.server.client())
        self.agent.must_run()
        self.readings.append(
            Reading(offset, state, moment if offset == quiet else None)
        )

    def _wait_for_quiet(self) -> tuple[int, int]:
        """Return a time with nothing written around it, and the offset at it.

        Whatever expires soon has to be gone for that, and PINGs come in between. What
        is written is dated by its receipt, and a busy machine's agent may be behind.
        """
        deadline = time.monotonic() + AGENT_PATIENCE
        while time.monotonic() < deadline:
            offset = self._offset()
            self.agent.catch_up(offset)
            time.sleep(QUIET / 2)
            moment = int(time.time() * 1000)
            time.sleep(QUIET / 2)
            if self._offset() == offset:
                return moment, offset
        raise AssertionError(f"something was written all of {AGENT_PATIENCE:.0f} s")

    def _offset(self) -> int:
        return int(self.plain.info("replication")["master_repl_offset"])

    def _finish(self) -> int:
        """Have the accident, stop the agent, and return where the server stands."""
        self.plain.ask("CONFIG", "SET", "repl-ping-replica-period", 3600)
        self.plain.ask("FLUSHALL")
        # With nothing left to expire, and no PING, the offset stands still.
        end = self._offset()
        self.agent.catch_up(end)
        self.agent.stop()
        assert self._offset() == end
        return end
