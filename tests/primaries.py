"""A primary to record from, in memory: kvtape's own, with a story to tell.

It hides what a real primary decides (whether what a replica has can be continued) and
when it speaks: after a snapshot that ends with a mark, only after an ACK. A link can be
cut after any byte that the primary has said.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import trio

from kvtape.replication.primary import Ack, Primary, Psync
from kvtape.replication.replica import NEED_DATA

MARK = b"0123456789abcdef" * 2 + b"markmark"


class CutError(Exception):
    """The link was cut where the test wanted it."""


@dataclass
class Teller:
    """A primary that has the stream of a history from start on, and no more than that.

    A replica that has none of it, or too little, gets the snapshot, which was taken at
    start + snapshot_at. older is another replid and the last offset that both share.
    It tells nothing before so many links have asked as audience says, all in all.
    acks are those that came, with the time, and durables what they said is durable.
    """

    replid: str
    start: int
    stream: bytes
    rdb: bytes
    snapshot_at: int = 0
    has_mark: bool = False
    older: tuple[str, int] | None = None
    acks: list[tuple[float, int]] = field(default_factory=list)
    durables: list[tuple[float, int | None]] = field(default_factory=list)
    psyncs: list[Psync] = field(default_factory=list)
    audience: int = 0
    said: int = 0  # bytes over the last link
    has_told_all: trio.Event = field(default_factory=trio.Event)

    @property
    def end(self) -> int:
        """The offset that it would show as master_repl_offset."""
        return self.start + len(self.stream)

    async def serve(
        self, link: trio.abc.Stream, cut: int | None = None, *, stays: bool = False
    ) -> None:
        """Serve one link; hang up after cut bytes, or when all is told.

        One that stays then listens until it is cancelled or the other end hangs up.
        """
        self.said = 0
        async with link:
            talk = _Talk(self, link, cut)
            with suppress(CutError, trio.BrokenResourceError):
                psync = await talk.handshake()
                self.psyncs.append(psync)
                while len(self.psyncs) < self.audience:  # noqa: ASYNC110
                    await trio.sleep(0.001)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(talk.listen, nursery.cancel_scope)
                    if not (await talk.tell(psync) and stays):
                        nursery.cancel_scope.cancel()

    def can_continue(self, psync: Psync) -> bool:
        """Whether it has all that the replica lacks."""
        is_known = psync.replid == self.replid
        if self.older is not None and psync.replid == self.older[0]:
            is_known = psync.offset <= self.older[1]
        return is_known and self.start <= psync.offset <= self.end


class _Talk:
    """One link of a teller."""

    def __init__(self, teller: Teller, link: trio.abc.Stream, cut: int | None) -> None:
        self._teller = teller
        self._link = link
        self._cut = cut
        self._primary = Primary()
        self._has_ack = trio.Event()

    async def handshake(self) -> Psync:
        while True:
            event = await self._next_event()
            if isinstance(event, Psync):
                return event

    async def listen(self, talk: trio.CancelScope) -> None:
        with suppress(CutError, trio.BrokenResourceError):
            while True:
                event = await self._next_event()
                if isinstance(event, Ack):
                    now, teller = trio.current_time(), self._teller
                    teller.acks.append((now, event.offset))
                    teller.durables.append((now, event.durable))
                    self._has_ack.set()
        talk.cancel()

    async def _next_event(self) -> Psync | Ack:
        while (event := self._primary.next_event()) is NEED_DATA:
            if answer := self._primary.data_to_send():
                await self._say(answer)
            data = await self._link.receive_some()
            if not data:
                raise CutError
            self._primary.receive_data(bytes(data))
        return event

    async def tell(self, psync: Psync) -> bool:
        """Say all that the replica lacks; return False if the link was cut."""
        with suppress(CutError, trio.BrokenResourceError):
            await self._say(await self._answer(psync))
            self._teller.has_told_all.set()
            return True
        return False

    async def _answer(self, psync: Psync) -> bytes:
        """Answer, and say the snapshot if it takes one; return the stream to say."""
        teller, primary = self._teller, self._primary
        offset = psync.offset
        if teller.can_continue(psync):
            primary.partial_resync(teller.replid)
            await self._say(primary.data_to_send())
        else:
            offset = teller.start + teller.snapshot_at
            length = None if teller.has_mark else len(teller.rdb)
            primary.full_resync(teller.replid, offset, length=length, mark=MARK)
            await self._say(b"\n" + primary.data_to_send() + teller.rdb)
            if teller.has_mark:
                await self._say(MARK)
                await self._has_ack.wait()
        return teller.stream[offset - teller.start :]

    async def _say(self, data: bytes) -> None:
        teller = self._teller
        left = len(data) if self._cut is None else self._cut - teller.said
        await self._link.send_all(data[:left])
        teller.said += len(data[:left])
        if left < len(data):
            raise CutError
