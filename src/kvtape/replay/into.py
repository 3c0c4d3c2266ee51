"""kvtape replay: the stream from one point to another, into a running server.

What the target remembers (kvtape.replay.memory) decides where it goes on; a replay that
was killed, and one that lost its connection, are the same thing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import trio

from kvtape.errors import (
    Error,
    IdentityError,
    PointError,
    ServerError,
    VerificationError,
    cause_of,
)
from kvtape.progress import NoWatch, Watch
from kvtape.replay import memory
from kvtape.replay.course import behind, must_be_whole, next_slices
from kvtape.replay.fence import be_alone
from kvtape.replay.fit import in_use, unfit
from kvtape.replay.line import open_line
from kvtape.replay.memory import Position, replay_id
from kvtape.replay.options import ReplayOptions
from kvtape.replay.player import Player
from kvtape.replay.progress import Progress
from kvtape.replay.refusal import StateError, TargetError, state_error
from kvtape.replay.sheet import Sheet
from kvtape.replication.tracker import NO_DB
from kvtape.server.client import Client, ReplyError, open_client
from kvtape.server.info import ask
from kvtape.storage.commands import read_batches, whole_commands
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.tape import documents
from kvtape.tape.catalogue import Catalogue, Slice
from kvtape.tape.names import SOURCE_DOCUMENT
from kvtape.tape.point import ToOffset
from kvtape.tape.span import choose_span

_log = logging.getLogger(__name__)

# How many batches are read ahead, of about 1 MiB each.
_READ_AHEAD = 4

_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a run of a replay did, up to offset, whose last byte came at time (ms)."""

    replid: str
    start_offset: int
    offset: int
    time: int
    commands: int
    stream_bytes: int
    errors: dict[str, int]
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A recording, and what of it is replayed. Slices begin and end at boundaries."""

    folder: SourceFolder
    catalogue: Catalogue
    source: documents.Source
    own: str  # which replay it is
    slices: tuple[Slice, ...]
    start: ToOffset | None = None  # of the snapshot


async def replay_into(
    options: ReplayOptions,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> ReplayResult:
    """Replay; return when the end is reached, which with follow is never.

    progress is kept up to date meanwhile. Raises PointError for what is not recorded or
    cannot be replayed, IdentityError for the recorded server as the target and for one
    that is within another replay, DestinationError for one that holds keys, and
    ServerError for one that is unfit or goes away.
    """
    run = _Replay(options, progress or Progress(), watch or NoWatch())
    return await run.run()


class _Replay:
    def __init__(
        self, options: ReplayOptions, progress: Progress, watch: Watch
    ) -> None:
        self._options = options
        self._progress = progress
        self._watch = watch
        self._has_begun = False
        # The clock of the pace never goes back, whatever that of the machine does.
        self._ahead = time.time() * 1000 - trio.current_time() * 1000

    def _now(self) -> float:
        return self._ahead + trio.current_time() * 1000

    async def run(self) -> ReplayResult:
        opened = await trio.to_thread.run_sync(self._open, abandon_on_cancel=True)
        wait = _FIRST_WAIT
        while True:
            offset = self._progress.offset
            try:
                async with open_client(self._options.url) as client:
                    return await self._replay(client, opened)
            except ServerError as told:
                error = state_error(told) or told
                if not self._may_try_again(error):
                    raise self._explained(error) from told
                if self._progress.offset != offset:
                    wait = _FIRST_WAIT
                _log.warning("%s; trying again in %.0f s", error, wait)
            await trio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _may_try_again(self, error: ServerError) -> bool:
        if not (self._options.follow and self._has_begun):
            return False
        if isinstance(error, TargetError):
            return error.is_passing
        # What any client raises where there is no connection, and nothing else.
        return type(error) is ServerError

    def _explained(self, error: ServerError) -> ServerError:
        """Return the error with what was done before it."""
        is_whole = isinstance(error, TargetError) and not isinstance(error, StateError)
        if not self._has_begun or is_whole:
            return error
        kind = ServerError if isinstance(error, ReplyError) else type(error)
        return kind(
            f"{error}; all up to offset {self._progress.offset} was replayed, and the "
            "same command goes on behind what the target has"
        )

    def _open(self) -> _Opened:
        options = self._options
        repository = open_repository(options.repository)
        folder = repository.source(options.source)
        catalogue = folder.catalogue()
        document = documents.decode(
            documents.Source, folder.read(SOURCE_DOCUMENT), folder.url
        )
        start, end = options.start, options.end
        loaded: ToOffset | None = None
        if options.with_snapshot:
            from kvtape.replay.loading import begin_with_snapshot

            loaded, end = begin_with_snapshot(folder, catalogue, start, end)
            start = loaded
        span = choose_span(catalogue, start, end)
        must_be_whole(span, force=options.force)
        slices, damaged = whole_commands(folder, span)
        if damaged:
            raise VerificationError(damaged[0].reason)
        own = replay_id(f"{repository.id}/{folder.name}", options.selection)
        return _Opened(folder, catalogue, document, own, tuple(slices), loaded)

    async def _replay(self, client: Client, opened: _Opened) -> ReplayResult:
        await be_alone(client)
        info = await ask(client)
        options, catalogue = self._options, opened.catalogue
        error = unfit(info, catalogue, opened.source, force=options.force)
        if error is not None:
            raise error
        position = await self._remembered(client, opened.own)
        if position is not None:
            if not self._has_begun:
                _log.info("going on at offset %d, where it stopped", position.offset)
        elif self._has_begun:
            raise TargetError(
                "the target no longer remembers how far the replay was, as after a "
                "restart without its data: replay anew"
            )
        else:
            error = in_use(info, catalogue, force=options.force)
            if error is not None:
                raise error
            position = await self._begin(client, opened)
        await self._play(client, opened, position)
        done = self._progress
        return ReplayResult(
            done.replid,
            done.started,
            done.offset,
            done.time,
            done.commands,
            done.stream_bytes,
            dict(done.errors),
            dict(done.untold),
        )

    async def _remembered(self, client: Client, own: str) -> Position | None:
        """Return where the target says that this replay is."""
        await client.call("SELECT", memory.DB)
        if await client.call("TYPE", memory.KEY) == b"none":
            return None
        content = await client.call("GET", memory.KEY)
        try:
            position = memory.decode(content if isinstance(content, bytes) else b"")
        except IdentityError:
            if self._options.force:
                return None
            raise
        if position.replay == own:
            return position
        if self._options.force:
            return None
        raise IdentityError(
            f"the target is within another replay, which stopped at offset "
            f"{position.offset}: go on with that one, or say --force"
        )

    async def _begin(self, client: Client, opened: _Opened) -> Position:
        """Bring the target to where the replay begins."""
        if opened.start is not None:
            # All that a restore needs is imported with it.
            from kvtape.replay.loading import load

            job = await load(self._options, opened.start, self._watch, self._now())
            plan = job.plan
            position = Position(opened.own, plan.replid, plan.offset, job.resolved.time)
            await client.call("SELECT", memory.DB)
            await client.call("SET", memory.KEY, position.encode())
            return position
        if not opened.slices:
            raise PointError("there is no whole command in the range to replay")
        first = opened.slices[0]
        name = first.segment
        return Position(opened.own, name.replid, first.start, name.first)

    async def _play(self, client: Client, opened: _Opened, position: Position) -> None:
        options, progress = self._options, self._progress
        if not self._has_begun:
            progress.started = position.offset
        self._has_begun = True
        progress.replid, progress.offset = position.replid, position.offset
        progress.time, progress.round = position.time, position.round
        line = await open_line(client)
        player = Player(line, position, options, progress, self._now)
        if options.follow:
            await self._follow(opened.folder, player)
        await self._play_rounds(opened, player)
        await player.finish()
        await client.call("SELECT", memory.DB)
        await client.call("DEL", memory.KEY)

    async def _play_rounds(self, opened: _Opened, player: Player) -> None:
        at = player.position
        slices = opened.slices
        rest: Sequence[Slice] = ()
        if slices:
            rest = behind(opened.catalogue, slices, at.replid, at.offset)
        rounds = self._options.rounds if slices else 0
        for number in range(at.round, rounds + 1):
            if number > at.round:
                await player.finish()
                rest, first = slices, slices[0]
                player.begin_round(
                    Position(
                        at.replay,
                        first.segment.replid,
                        first.start,
                        first.segment.first,
                        number,
                    )
                )
            await self._go_through(opened.folder, rest, player)

    async def _follow(self, folder: SourceFolder, player: Player) -> None:
        """Go on with what is stored meanwhile, for ever."""
        while True:
            catalogue = await trio.to_thread.run_sync(
                folder.catalogue, abandon_on_cancel=True
            )
            await player.finish()
            at = player.position
            slices = next_slices(catalogue, at.replid, at.offset)
            await self._go_through(folder, slices, player)
            await player.finish()
            if not slices:
                self._progress.behind = (self._now() - at.time) / 1000
                await trio.sleep(self._options.poll)

    async def _go_through(
        self, folder: SourceFolder, slices: Sequence[Slice], player: Player
    ) -> None:
        sheets = self._sheets(folder, slices)
        send, receive = trio.open_memory_channel[Sheet](_READ_AHEAD)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read, sheets, send)
                async with receive:
                    async for sheet in receive:
                        await player.play(sheet)
        except ExceptionGroup as group:
            cause = cause_of(group)
            if isinstance(cause, Error):
                raise cause from group
            raise

    def _sheets(self, folder: SourceFolder, slices: Sequence[Slice]) -> Iterator[Sheet]:
        db = NO_DB
        for slice_ in slices:
            for batch in read_batches(folder, slice_, db):
                sheet = Sheet(batch, self._options.selection)
                sheet.parse()
                yield sheet


async def _read(sheets: Iterator[Sheet], send: trio.MemorySendChannel[Sheet]) -> None:
    async with send:
        while True:
            sheet = await trio.to_thread.run_sync(
                next, sheets, None, abandon_on_cancel=True
            )
            if sheet is None:
                return
            try:
                await send.send(sheet)
            except trio.BrokenResourceError:
                # Nobody takes it any more. Whoever did has ended with an error.
                return
