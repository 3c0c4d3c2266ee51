"""Sending a stretch of the stream, in time, and noting what is answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from kvtape.errors import PointError
from kvtape.replay.line import Answer, Failure, Line, TargetError
from kvtape.replay.memory import Position
from kvtape.replay.options import ReplayOptions
from kvtape.replay.pace import Timeline
from kvtape.replay.progress import Progress
from kvtape.replay.sheet import Parcel, Sheet, Untold

_log = logging.getLogger(__name__)

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class _Sent:
    """What was committed: which commands of a sheet, as of which moment (ms)."""

    sheet: Sheet
    first: int
    last: int
    parcel: Parcel
    now: float


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
        self._is_free = self._pace.is_free
        self._progress = progress
        self._now = now
        self._stops = options.stops_on_error
        self._timeline: Timeline | None = None
        self._sent: _Sent | None = None

    def begin_round(self, position: Position) -> None:
        """Go on from another position, from now on."""
        self.position, self._timeline = position, None

    async def play(self, sheet: Sheet) -> None:
        """Play a sheet; the last of it may not be carried out yet."""
        at = 0
        while at < len(sheet):
            time = sheet.received if self._is_free else sheet.time_of(at)
            if self._timeline is None:
                self._timeline = self._pace.begin(time, self._now())
            due = self._timeline.due(time)
            if due > self._now():
                await self.finish()
                await trio.sleep(max(0.0, due - self._now()) / 1000)
            now = self._now()
            last = sheet.take(at, self._timeline.reached(now))
            self._progress.late = max(0.0, now - due) / 1000
            await self._send(sheet, at, last, now)
            at = last

    async def finish(self) -> None:
        """Wait until all that was sent is carried out."""
        await self._settle(None)

    def _build(
        self, sheet: Sheet, first: int, last: int, now: float, without: Sequence[int]
    ) -> Parcel:
        assert self._timeline is not None
        timeline = self._timeline
        return sheet.parcel(
            first, last, lambda time: timeline.moment(time, now), without
        )

    async def _send(self, sheet: Sheet, first: int, last: int, now: float) -> None:
        parcel = self._build(sheet, first, last, now, ())
        if parcel.untold:
            await self.finish()
            self._note_untold(sheet, parcel.untold)
        if parcel.is_empty:
            await self.finish()
            self._pass(parcel, now)
            return
        if not self._line.has(parcel.highest_db):
            await self.finish()
            await self._line.must_have(parcel.highest_db)
        await self._line.prepare(parcel, self._memory(parcel))
        await self._settle(parcel)
        await self._line.commit()
        self._sent = _Sent(sheet, first, last, parcel, now)

    def _memory(self, parcel: Parcel) -> bytes:
        return self._behind(parcel).encode()

    def _behind(self, parcel: Parcel) -> Position:
        was = self.position
        return Position(was.replay, parcel.replid, parcel.end, parcel.time, was.round)

    async def _settle(self, prepared: Parcel | None) -> None:
        """Wait for what was committed, if anything was; repeat what was not done."""
        sent = self._sent
        if sent is None or not self._line.is_waiting:
            return
        answer = await self._line.answer()
        if not answer.was_done:
            self._note_errors(sent, answer.failures, self.position)
            await self._line.discard()
            await self._repeat(sent, answer)
            if prepared is not None:
                await self._line.prepare(prepared, self._memory(prepared))
            return
        self._pass(sent.parcel, sent.now)
        self._note_errors(sent, answer.failures, self.position)

    async def _repeat(self, sent: _Sent, answer: Answer) -> None:
        """Send a parcel again without what the target refuses to take into one."""
        without: list[int] = []
        while not answer.was_done:
            without += [failure.number for failure in answer.failures]
            parcel = self._build(sent.sheet, sent.first, sent.last, sent.now, without)
            if parcel.is_empty:
                break
            await self._line.prepare(parcel, self._memory(parcel))
            await self._line.commit()
            answer = await self._line.answer()
            self._note_errors(sent, answer.failures, self.position)
        self._pass(sent.parcel, sent.now)

    def _pass(self, parcel: Parcel, now: float) -> None:
        """Note that a parcel is behind us."""
        self.position = self._behind(parcel)
        progress = self._progress
        progress.replid, progress.offset = parcel.replid, parcel.end
        progress.time, progress.round = parcel.time, self.position.round
        progress.commands += parcel.recorded
        progress.stream_bytes += parcel.end - parcel.start
        progress.behind = (now - parcel.time) / 1000

    def _note_errors(
        self, sent: _Sent, failures: Sequence[Failure], reached: Position
    ) -> None:
        for failure in failures:
            told = f"{_told(sent.sheet, failure.number)}: {failure.message}"
            if self._progress.count_error(failure.message, told):
                _log.warning("the target answered to %s", told)
            if self._stops:
                raise TargetError(
                    f"the target answered to {told}; all up to offset {reached.offset} "
                    "was replayed, and --on-error continue goes on behind it"
                )

    def _note_untold(self, sheet: Sheet, untold: Sequence[Untold]) -> None:
        for one in untold:
            told = _told(sheet, one.number)
            if self._stops:
                raise PointError(
                    f"what {told} does to what is replayed cannot be told: it is "
                    f"{one.reason}; all up to offset {self.position.offset} was "
                    "replayed, and --on-error continue leaves such commands out"
                )
            if self._progress.count_untold(one.reason):
                _log.warning("left out: %s, which is %s", told, one.reason)


def _told(sheet: Sheet, number: int) -> str:
    """Return a command as a message names it: with its offset, and its first words."""
    words = repr(b" ".join(sheet.commands[number][:2])[:_SHOWN])[2:-1]
    return f"{words} at offset {sheet.start_of(number)}"
