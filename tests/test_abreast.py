"""It is known whether what is received is new, and never said of what may be old.

The server is a client's other end in memory, and the clocks are those of the test.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from kvtape.errors import ServerError
from kvtape.record.linking.abreast import (
    OFTEN,
    PATIENCE,
    PROMPT,
    SELDOM,
    TOLERANCE,
    Abreast,
)
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.position import Position
from kvtape.record.spooling.recorder import Limits, Recorder
from kvtape.replication.resp import pack
from kvtape.server.client import Client
from kvtape.server.info import ServerInfo
from kvtape.server.url import ServerUrl
from kvtape.signal import Signal
from kvtape.storage.spool import Spool
from kvtape.tape.facts import ClockDifference
from tapes import command

REPLID = "a" * 40
START = 5000
TIME = 1_700_000_000_000
URL = ServerUrl("127.0.0.1", 6379)
SET = command("SET", "key", "value")
INFO = pack("INFO", "default")


@dataclass
class Asked:
    """A server that is asked, and what it says; it says nothing while it hangs."""

    offset: int = START
    replid: str = REPLID
    more: str = ""
    hangs: bool = False
    is_down: bool = False
    asked: int = 0
    connections: int = 0
    may_answer: trio.Event = field(default_factory=trio.Event)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        """Connect to it."""
        self.connections += 1
        if self.is_down:
            raise ServerError("nobody is there")
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery, ours:
            nursery.start_soon(self._serve, theirs)
            yield Client(ours, URL)  # type: ignore[arg-type]
            nursery.cancel_scope.cancel()

    async def _serve(self, stream: trio.abc.Stream) -> None:
        while await stream.receive_some():
            self.asked += 1
            said = (
                f"role:master\r\nmaster_replid:{self.replid}\r\n"
                f"master_repl_offset:{self.offset}\r\n{self.more}"
            ).encode()
            if self.hangs:
                await self.may_answer.wait()
            await stream.send_all(b"$%d\r\n%b\r\n" % (len(said), said))


@dataclass
class Watched:
    """A recorder and what watches it, on the clock of trio."""

    recorder: Recorder
    server: Asked | None = None
    ahead: float = 0.0  # of the steady clock: what trio's has slept through
    abreast: Abreast = field(init=False)

    def __post_init__(self) -> None:
        ask = None if self.server is None else self.server.open
        clock = ReceiptClock(wall=self._wall, steady=self._steady)
        self.clock = clock
        self.abreast = Abreast(self.recorder, clock, ask, self._steady)

    def _steady(self) -> float:
        return trio.current_time() + self.ahead

    def _wall(self) -> float:
        return TIME / 1000 + self._steady()

    def read(self, data: bytes = SET, *, leaves_some: bool = False) -> None:
        """Receive some of the stream now."""
        self.abreast.hear(leaves_some=leaves_some)
        self.recorder.receive(data, self.clock.now())
        self.abreast.listen()

    async def flow(self, seconds: float) -> None:
        """Have so much of the stream come as it is written, without a silence."""
        for _ in range(round(seconds / 0.2)):
            await trio.sleep(0.2)
            self.read()
            if self.server is not None:
                self.server.offset = self.recorder.received

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the stream flow."""
        async with trio.open_nursery() as nursery:
            self.abreast.begin()
            self.abreast.listen()
            nursery.start_soon(self.abreast.run)
            yield
            nursery.cancel_scope.cancel()

    def since(self) -> int | None:
        """Since when (ms, after the beginning) what is received is late."""
        since = self.recorder.late_since
        return None if since is None else since - TIME


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """Return a recorder of a history that was received TIME last."""
    spool = Spool(tmp_path / "spool")
    spool.open("repository", "source")
    with closing(spool):
        recorder = Recorder(spool, Limits(), Signal())
        recorder.follow(Position(REPLID, START, START, 0, TIME))
        yield recorder


async def test_we_are_abreast_when_all_that_was_written_before_asking_is_here(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked(START + 3 * len(SET))
    watched = Watched(recorder, server)
    async with watched.running():
        await trio.sleep(5.5)
        assert watched.since() == 0
        assert server.asked == 6
        assert server.connections == 1
        watched.read(SET + SET)
        await trio.sleep(1)
        assert watched.since() == 0
        watched.read()
        await trio.sleep(1)
        assert watched.since() is None


async def test_what_comes_while_it_is_waited_for_the_answer_may_prove_it(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    watched = Watched(recorder, Asked(START + len(SET)))
    async with watched.running():
        await trio.sleep(PROMPT / 2)
        watched.read()
        await wait_all_tasks_blocked()
        assert watched.since() is None


async def test_when_all_is_well_it_is_asked_seldom(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked()
    watched = Watched(recorder, server)
    async with watched.running():
        await watched.flow(600)
        assert watched.since() is None
    assert server.connections == 1
    assert server.asked == pytest.approx(600 / (OFTEN + SELDOM), abs=2)


async def test_a_pause_makes_late_what_comes_after_the_last_good_moment(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked()
    watched = Watched(recorder, server)
    async with watched.running():
        await watched.flow(2)
        assert watched.since() is None
        server.offset = recorder.received + len(SET)
        await trio.sleep(0.25)
        # Stopped for an hour; then the link is read before anything else.
        watched.ahead = 3600
        watched.read(SET[:5])
        assert watched.since() == 2000
        await trio.sleep(1.5)
        assert watched.since() == 2000
        watched.read(SET[5:])
        await trio.sleep(1.5)
        assert watched.since() is None


async def test_a_pause_is_noticed_before_anything_was_read(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked()
    watched = Watched(recorder, server)
    async with watched.running():
        await trio.sleep(2)
        assert watched.since() is None
        server.offset += len(SET)
        watched.ahead = 2 * TOLERANCE
        await trio.sleep(0.15)
        watched.read()
        assert watched.since() == 0


async def test_a_short_pause_is_none(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    watched = Watched(recorder, Asked(START))
    async with watched.running():
        await trio.sleep(2.05)
        watched.ahead = TOLERANCE / 2
        watched.read()
        await trio.sleep(0.2)
        assert watched.since() is None


async def test_a_link_that_is_not_read_makes_late_what_comes_then(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    watched = Watched(recorder, Asked(START + len(SET)))
    async with watched.running():
        watched.read()
        await trio.sleep(3)
        assert watched.since() is None
        # What was read is dealt with for long.
        watched.abreast.hear(leaves_some=False)
        await trio.sleep(1)
        watched.abreast.listen()
        watched.abreast.hear(leaves_some=False)
        assert watched.since() == 0


async def test_a_stall_that_is_told_makes_late_what_comes_then(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked(START)
    watched = Watched(recorder, server)
    async with watched.running():
        await watched.flow(2)
        watched.abreast.stall()
        assert watched.since() == 2000
        await trio.sleep(2)
        assert watched.since() is None


@pytest.mark.parametrize("leaves_some", [False, True])
async def test_what_may_have_been_held_up_is_late_until_the_server_says_that_it_is_not(
    recorder: Recorder, autojump_clock: MockClock, *, leaves_some: bool
) -> None:
    server = Asked(START)
    watched = Watched(recorder, server)
    async with watched.running():
        await watched.flow(2)
        await trio.sleep(0.1 if leaves_some else 2 * TOLERANCE)
        watched.read(leaves_some=leaves_some)
        assert watched.since() == 2000
        server.offset = recorder.received
        await watched.flow(2)
        assert watched.since() is None


async def test_a_link_that_is_never_read_to_its_end_is_behind(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked(START)
    watched = Watched(recorder, server)
    async with watched.running():
        await trio.sleep(2)
        server.offset += 100 * len(SET)
        for _ in range(20):
            watched.read(leaves_some=True)
            await trio.sleep(0.05)
        assert watched.since() == 0


async def test_an_answer_from_before_a_pause_proves_nothing(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked(hangs=True)
    watched = Watched(recorder, server)
    async with watched.running():
        await trio.sleep(0.2)
        assert server.asked == 1
        watched.ahead = 10
        server.may_answer.set()
        await trio.sleep(0.1)
        assert watched.since() == 0
        await trio.sleep(OFTEN)
        assert watched.since() is None


async def test_a_stream_that_lags_without_a_pause_is_found_out_when_it_is_asked(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked()
    watched = Watched(recorder, server)
    async with watched.running():
        await trio.sleep(1)
        assert watched.since() is None
        server.offset += len(SET)
        await trio.sleep(SELDOM + 2 * OFTEN + PROMPT)
        assert watched.since() == 0


@pytest.mark.parametrize(
    "wrong", [{"replid": "b" * 40}, {"more": "master_link_status:down\r\n"}]
)
async def test_another_server_and_a_replica_without_its_primary_prove_nothing(
    recorder: Recorder, autojump_clock: MockClock, wrong: dict[str, str]
) -> None:
    watched = Watched(recorder, Asked(**wrong))  # type: ignore[arg-type]
    async with watched.running():
        await trio.sleep(100)
        assert watched.since() == 0


async def test_a_server_that_cannot_be_asked_is_tried_again_and_disturbs_nothing(
    recorder: Recorder, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = Asked(is_down=True)
    watched = Watched(recorder, server)
    async with watched.running():
        await trio.sleep(600)
        assert 20 <= server.connections <= 50
        assert watched.since() == 0
        server.is_down, server.hangs = False, True
        await trio.sleep(100)
        assert 2 <= server.asked <= 20
        assert watched.since() == 0
        server.hangs = False
        await trio.sleep(40)
        assert watched.since() is None
    assert "nobody is there" in caplog.text
    assert "did not answer INFO for 1 s" in caplog.text
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


# Where the server does not tell.


@pytest.mark.parametrize("lasted", [1, 3600])
async def test_without_being_told_we_are_abreast_after_as_long_as_the_interruption(
    recorder: Recorder, autojump_clock: MockClock, lasted: int
) -> None:
    watched = Watched(recorder, ahead=lasted)
    async with watched.running():
        watched.read()
        await trio.sleep(max(lasted, PATIENCE) - 0.1)
        assert watched.since() == 0
        await trio.sleep(0.2)
        assert watched.since() is None
        watched.read()
        heard = recorder.heard - TIME
        await trio.sleep(0.15)  # a good moment
        watched.ahead += 5
        watched.read()
        assert watched.since() == heard
        await trio.sleep(PATIENCE - 0.1)
        watched.abreast.stall()
        await trio.sleep(PATIENCE - 0.1)
        assert watched.since() == heard
        await trio.sleep(0.2)
        assert watched.since() is None


# The clock.


async def test_how_far_the_primarys_clock_is_ahead_is_measured_anew_each_time(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    server = Asked()
    watched = Watched(recorder, server)
    async with watched.running():
        for ahead in (7000, -5000):
            server.more = f"server_time_usec:{TIME + ahead}400\r\n"
            await trio.sleep(OFTEN + SELDOM - 0.5)
        asked = round(1000 * (OFTEN + SELDOM))
        clock = recorder.server_clock
    assert clock == ClockDifference(-5000 - asked - 1, -4999 - asked)


@pytest.mark.parametrize(
    ("micros", "low", "high"),
    [(TIME * 1000, -31, -10), (TIME * 1000 + 20_001, -11, 11)],
)
def test_the_difference_of_the_clocks_is_as_wide_as_asking_took(
    micros: int, low: int, high: int
) -> None:
    fields = {"server_time_usec": str(micros), "role": "master"}
    info = ServerInfo(fields)
    found = info.clock_ahead(TIME + 10, TIME + 30)
    assert found == ClockDifference(low, high)
    assert ServerInfo({"role": "master"}).clock_ahead(TIME, TIME) is None
    assert ServerInfo({**fields, "role": "slave"}).clock_ahead(TIME, TIME) is None
