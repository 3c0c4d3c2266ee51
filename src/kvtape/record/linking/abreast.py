"""Whether what is received was written just now, or has queued up somewhere.

After an outage the primary sends in a moment what it wrote in an hour; and while this
program is stopped, starved or does not read, what is written meanwhile waits in the
kernel and at the primary. The stream does not tell, so the server is asked: INFO sent
at some moment answers with an offset, and when everything up to that is here, whatever
comes later was written after that moment. If that took no longer than PROMPT, we are
abreast. Asked is over a connection of its own, once the stream flows and each second
until we are abreast, then once in SELDOM.

Between these, falling behind is noticed here: ten times a second is looked whether the
program runs, reads, and leaves nothing unread. When the link is read and that has not
been so for TOLERANCE, everything since the last good moment is late, before any of it
is recorded. What comes after a silence, or in a reading that may have left something
unread, is late itself: so comes what a network has held up, when it goes on.

A server that does not tell (its user lacks +info) is believed to have caught up when
the link has stood as long as the interruption lasted, and PATIENCE at least.

What is not noticed: a network that is slower than the server writes, and a primary that
holds the stream up, for less than it takes to be asked again. A replica is only asked
how far we are behind itself, and whether its own link is up.

None of it may disturb the recording: if the server cannot be asked, what is received
stays late, and it is tried again after waits that grow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from kvtape.errors import ServerError, UsageError, cause_of
from kvtape.record.backoff import Backoff
from kvtape.record.linking.pace import steady_clock
from kvtape.record.spooling.clock import ReceiptClock
from kvtape.record.spooling.recorder import Recorder
from kvtape.server.client import Client
from kvtape.server.info import ask_info

_log = logging.getLogger(__name__)

# How often is looked whether all is well, and how long it may not be, in seconds.
BEAT = 0.1
TOLERANCE = 0.3

# How long an answer may take, and what was written before it; docs/format.md promises
# what is not late to within this.
PROMPT = 1.0

# How often to ask: while we are behind, and while we are not. The second is how often
# Sentinel asks the same; servers are used to it.
OFTEN = 1.0
SELDOM = 10.0

# How long a pause is taken to have an effect, where nobody can be asked.
PATIENCE = 10.0

# What may go wrong with asking. An OSError is taken for one of the spool elsewhere.
_MISHAPS = (ServerError, UsageError, OSError, trio.BrokenResourceError, ExceptionGroup)

# Opens a connection to the server that the link leads to.
Ask = Callable[[], AbstractAsyncContextManager[Client]]


class Abreast:
    """Tells a recorder when it falls behind the primary, and when it has caught up.

    Call begin() when the stream begins to flow, and have run() run from then on. Call
    listen() before each reading of the link, and hear() after it, before what was read
    is recorded; stall() when it will not be read for a while. ask is None if the
    server does not tell.
    """

    def __init__(
        self,
        recorder: Recorder,
        clock: ReceiptClock,
        ask: Ask | None = None,
        steady: Callable[[], float] = steady_clock,
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._ask = ask
        self._steady = steady
        self._is_behind = True
        self._fell = trio.Event()  # when it fell behind, since it was abreast last
        self._is_listening = False
        self._has_left_some = False  # the last reading did, as far as is known
        self._has_heard = False  # since the last beat
        # The last moment at which all was well, and the newest receipt then.
        self._good = self._read = steady()
        self._heard = self._proven = recorder.heard
        self._believed = 0.0  # when we are abreast, if the server does not tell

    # What the link calls.

    def begin(self) -> None:
        """Say that the stream begins to flow, after however long an interruption."""
        recorder = self._recorder
        recorder.fall_behind(recorder.heard)
        since = recorder.late_since or 0
        lasted = (self._clock.now() - since) / 1000
        self._believed = trio.current_time() + max(PATIENCE, lasted)
        self._good, self._heard = self._steady(), recorder.heard

    def listen(self) -> None:
        """Say that the link is going to be read, and all that came is recorded."""
        self._is_listening = True

    def hear(self, *, leaves_some: bool) -> None:
        """Say that the link was read; leaves_some if there may have been more."""
        self._is_listening = False
        self._has_heard, self._has_left_some = True, leaves_some
        now = self._steady()
        silence, self._read = now - self._read, now
        if now - self._good > TOLERANCE:
            self._fall_behind(self._heard)
        elif self._ask is not None and (leaves_some or silence > TOLERANCE):
            # Whether nothing was written or was held up on its way only the server can
            # tell; without it, a stream that pauses would be late for ever.
            self._fall_behind(self._recorder.heard)

    def stall(self) -> None:
        """Say that the link is not read for a while."""
        self._fall_behind(self._recorder.heard)

    # Falling behind and catching up.

    def _fall_behind(self, since: int) -> None:
        self._recorder.fall_behind(since)
        self._believed = max(self._believed, trio.current_time() + PATIENCE)
        self._is_behind = True
        self._fell.set()

    def _catch_up(self) -> None:
        recorder = self._recorder
        recorder.catch_up()
        self._is_behind, self._fell = False, trio.Event()
        self._good = self._steady()
        self._heard = self._proven = recorder.heard

    async def run(self) -> None:
        """Look and ask until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            if self._ask is None:
                await self._wait_where_it_does_not_tell()
            else:
                await self._ask_for_ever(self._ask)

    async def _beat(self) -> None:
        while True:
            await trio.sleep(BEAT)
            is_idle = not self._has_heard
            if self._is_listening and (is_idle or not self._has_left_some):
                if self._steady() - self._good > TOLERANCE:
                    # What was recorded of it, if anything, was recorded as late.
                    self._fall_behind(self._heard)
                self._good, self._heard = self._steady(), self._recorder.heard
            self._has_heard = False

    async def _wait_where_it_does_not_tell(self) -> None:
        while True:
            await trio.sleep_until(self._believed)
            if trio.current_time() < self._believed:
                continue  # it was put off meanwhile
            if self._is_behind:
                self._catch_up()
            await self._fell.wait()

    # Asking.

    async def _ask_for_ever(self, ask: Ask) -> None:
        backoff = Backoff()
        while True:
            try:
                async with ask() as client:
                    while True:
                        await self._ask_until_abreast(client)
                        backoff.reset()
                        # Who falls behind all the time is not to ask all the time.
                        await trio.sleep(OFTEN)
                        with trio.move_on_after(SELDOM):
                            await self._fell.wait()
            except _MISHAPS as error:
                _log.debug("cannot ask how far we are behind: %s", cause_of(error))
                await trio.sleep(backoff.next())

    async def _ask_until_abreast(self, client: Client) -> None:
        while True:
            begun = trio.current_time()
            if await self._prove(client):
                return
            await trio.sleep_until(begun + OFTEN)

    async def _prove(self, client: Client) -> bool:
        """Ask, and return whether we are abreast.

        ServerError if it does not answer, not in time, or for another server.
        """
        recorder, begun, before = self._recorder, self._steady(), self._clock.now()
        has_answered = False
        with trio.move_on_after(PROMPT):
            info = await ask_info(client, "default")
            has_answered = True
            if info.offset is None or info.replid != recorder.replid:
                raise ServerError(f"{client.url.address} does not say where it stands")
            recorder.server_clock = info.clock_ahead(before, self._clock.now())
            # A replica without its primary has what was written since still to come.
            if info.fields.get("master_link_status", "up") == "up":
                await recorder.until_received(info.offset)
                # Until all was here, not until the answer was: what the stream takes
                # to come is then within what the clocks may differ by.
                recorder.server_clock = info.clock_ahead(before, self._clock.now())
                # A program that was stopped waits no longer, by trio's clock.
                if self._steady() - begun <= PROMPT:
                    self._catch_up()
                    return True
        if not self._is_behind:
            self._fall_behind(self._proven)
        if not has_answered:
            raise ServerError(
                f"{client.url.address} did not answer INFO for {PROMPT:.0f} s"
            )
        return False
