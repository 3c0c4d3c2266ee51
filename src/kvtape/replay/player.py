"""Sending a stretch of the stream, in time, and noting what is answered."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn

import trio

from kvtape.errors import PointError
from kvtape.replay.line import Answer, Failure, Line
from kvtape.replay.memory import Position
from kvtape.replay.options import ReplayOptions
from kvtape.replay.pace import Timeline
from kvtape.replay.progress import Progress
from kvtape.replay.refusal import TargetError
from kvtape.replay.sheet import Parcel, Sheet, Untold

_log = logging.getLogger(__name__)

_SHOWN = 60


# How many transactions are on their way at once.
_MOST_WAITING = 64


@dataclass(frozen=True, slots=True)
class _Sent:
    """What is sent: a parcel of a sheet, as of which moment (ms)."""

    sheet: Sheet
    parcel: Parcel
    now: float

    def source(self, failure: Failure) -> int:
        """Return where the command begins that failed."""
        return self.sheet.source(self.parcel, failure.number)


class Player:
    """Plays sheets in order, over one line, from a position on.

    now returns the time in ms since the epoch, and never goes back. After finish()
    everything is carried out; TargetError or PointError for what ends it.
    """

    def __init__(
        self,
        line: Line,
        position: Position,
        options: ReplayOptions,
        progress: Progress,
        now: Callable[[], float],
    ) -> None:
        self.position = position
        self._line = line
        self._pace = options.pace
        self._progress = progress
        self._now = now
        self._stops = options.stops_on_error
        self._timeline: Timeline | None = None
        self._sent: deque[_Sent] = deque()
        # Where one transaction fails another may, and all that wait behind it are sent
        # again. And before the first, the target has no memory to guard.
        self._window = 1

    def begin_round(self, position: Position) -> None:
        """Go on from another position, from now on."""
        self.position, self._timeline = position, None

    async def play(self, sheet: Sheet) -> None:
        """Play a sheet; the last of it may not be carried out yet."""
        at = sheet.start
        while at < sheet.end:
            time = sheet.time_of(at)
            if self._timeline is None:
                self._timeline = self._pace.begin(time, self._now())
            due = self._timeline.due(time)
            if due > self._now():
                await self.finish()
                await trio.sleep(max(0.0, due - self._now()) / 1000)
            now = self._now()
            self._progress.late = max(0.0, now - due) / 1000
            until = self._timeline.reached(now)
            some: list[_Sent] = []
            while at < sheet.end and (
                not some or until is None or sheet.time_of(at) <= until
            ):
                end = sheet.take(at, until)
                some.append(self._build(sheet, at, end, now))
                at = end
            await self._send(some)

    async def finish(self) -> None:
        """Wait until all that was sent is carried out."""
        while self._sent:
            await self._settle()

    def _build(
        self,
        sheet: Sheet,
        start: int,
        end: int,
        now: float,
        without: Collection[int] = (),
    ) -> _Sent:
        assert self._timeline is not None
        timeline = self._timeline
        parcel = sheet.parcel(
            start, end, lambda time: timeline.moment(time, now), without
        )
        return _Sent(sheet, parcel, now)

    async def _send(self, some: Sequence[_Sent]) -> None:
        """Send what was built, as soon as it may go."""
        ready: list[_Sent] = []
        for sent in some:
            parcel = sent.parcel
            if parcel.untold or not self._line.has(parcel.highest_db):
                await self._post(ready)
                await self.finish()
                self._note_untold(sent.sheet, parcel.untold)
                await self._line.must_have(parcel.highest_db)
                ready = []
            ready.append(sent)
        await self._post(ready)

    async def _post(self, ready: Sequence[_Sent]) -> None:
        """Send, as many at once as may be on their way."""
        rest = deque(ready)
        while rest:
            # Waiting for one to make room for one, each would be sent alone.
            if self._line.waiting + len(rest) > self._window:
                while self._line.waiting > self._window // 2:
                    await self._settle()
            transactions: list[tuple[Parcel, bytes]] = []
            while rest and self._line.waiting + len(transactions) < self._window:
                sent = rest.popleft()
                self._sent.append(sent)
                if not sent.parcel.is_empty:
                    transactions.append(
                        (sent.parcel, self._behind(sent.parcel).encode())
                    )
            if transactions:
                await self._line.send(transactions)
        while self._sent and self._sent[0].parcel.is_empty:
            await self._settle()

    def _behind(self, parcel: Parcel) -> Position:
        was = self.position
        return Position(was.replay, parcel.replid, parcel.end, parcel.time, was.round)

    async def _settle(self) -> None:
        """Wait for the first of what was sent; repeat it if it was not done."""
        sent = self._sent.popleft()
        if sent.parcel.is_empty:
            self._pass(sent.parcel, sent.now)
            return
        answer = await self._line.answer()
        if answer.was_done:
            self._widen()
            await self._note(sent, answer)
            return
        self._window = 1
        behind, self._sent = self._sent, deque()
        await self._line.drop()
        await self._send_alone(sent)
        await self._post(behind)

    def _widen(self) -> None:
        if self._line.is_guarded:
            self._window = min(2 * self._window, _MOST_WAITING)

    async def _send_alone(self, sent: _Sent) -> None:
        """Send a parcel again, until it is without what the target refuses of it."""
        without: set[int] = set()
        while not sent.parcel.is_empty:
            parcel = sent.parcel
            await self._line.send([(parcel, self._behind(parcel).encode())])
            answer = await self._line.answer()
            if answer.was_done:
                await self._note(sent, answer)
                return
            told = self._count(sent, answer.failures)
            if told and self._stops:
                await self._end_with(told)
            without.update(map(sent.source, answer.failures))
            sent = self._build(sent.sheet, parcel.start, parcel.end, sent.now, without)
        self._pass(sent.parcel, sent.now)

    async def _note(self, sent: _Sent, answer: Answer) -> None:
        """Note what was carried out, and end it there if that is to be."""
        self._pass(sent.parcel, sent.now)
        told = self._count(sent, answer.failures)
        if told and self._stops:
            await self._end_with(told)

    def _pass(self, parcel: Parcel, now: float) -> None:
        """Note that a parcel is behind us."""
        self.position = self._behind(parcel)
        progress = self._progress
        progress.replid, progress.offset = parcel.replid, parcel.end
        progress.time, progress.round = parcel.time, self.position.round
        progress.commands += parcel.recorded
        progress.stream_bytes += parcel.end - parcel.start
        progress.behind = (now - parcel.time) / 1000

    def _count(self, sent: _Sent, failures: Sequence[Failure]) -> str | None:
        """Count errors; return the first as it is told."""
        first = None
        for failure in failures:
            told = f"{_told(sent.sheet, sent.source(failure))}: {failure.message}"
            first = first or told
            if self._progress.count_error(failure.message, told):
                _log.warning("the target answered to %s", told)
        return first

    async def _end_with(self, told: str) -> NoReturn:
        """Raise TargetError for an answer, once it is known what was done behind it."""
        while self._sent:
            sent = self._sent.popleft()
            if not sent.parcel.is_empty:
                answer = await self._line.answer()
                if not answer.was_done:
                    await self._line.drop()
                    break
                self._count(sent, answer.failures)
            self._pass(sent.parcel, sent.now)
        raise TargetError(
            f"the target answered to {told}; all up to offset {self.position.offset} "
            "was replayed, and --on-error continue goes on behind it"
        )

    def _note_untold(self, sheet: Sheet, untold: Sequence[Untold]) -> None:
        for one in untold:
            told = _told(sheet, one.start)
            if self._stops:
                raise PointError(
                    f"what {told} does to what is replayed cannot be told: it is "
                    f"{one.reason}; all up to offset {self.position.offset} was "
                    "replayed, and --on-error continue leaves such commands out"
                )
            if self._progress.count_untold(one.reason):
                _log.warning("left out: %s, which is %s", told, one.reason)


def _told(sheet: Sheet, start: int) -> str:
    """Return a command as a message names it: with its offset, and its first words."""
    words = repr(b" ".join(sheet.words_of(start)[:2])[:_SHOWN])[2:-1]
    return f"{words} at offset {start}"
