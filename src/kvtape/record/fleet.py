"""Many sources in one process, each failing alone.

A source whose agent ends with an error is started again after growing waits, however
long that takes: the server may be down when the machine starts. Two kinds of errors are
not waited out. What was configured wrongly stays wrong (UsageError), and where another
server's bytes turned up, going on would record them (IdentityError): that source stops
for good, loudly, and the others go on. When all have ended, or were stopped, the worst
error is raised, so that the exit status tells of it.

A fleet of one is not started again: what ends it ends the process, whose supervisor
decides.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from kvtape.errors import (
    Error,
    IdentityError,
    RepositoryError,
    ServerError,
    UsageError,
    cause_of,
)
from kvtape.record.agent import Agent
from kvtape.record.backoff import Backoff
from kvtape.record.events import SourceFails, tell, tell_to
from kvtape.record.journal import Journal
from kvtape.record.options import RecordOptions
from kvtape.storage.filter_child import FilterChild

_log = logging.getLogger(__name__)

# An agent that recorded for so long had a good start; its next wait is short again.
_GOOD_START = 300.0

# From the worst on; what is not here is a bug, and worse.
_RANKS = (IdentityError, RepositoryError, ServerError, UsageError)


@dataclass(slots=True)
class Recording:
    """One source of a fleet. agent is the one that runs, or ran last.

    trouble says why none runs; has_begun is set once the first has opened its spool,
    waits for what may pass, or failed.
    """

    options: RecordOptions
    journal: Journal
    agent: Agent | None = None
    trouble: str | None = None
    error: BaseException | None = None
    has_begun: trio.Event = field(default_factory=trio.Event)


async def _nothing(_: Agent) -> None:
    """Be nothing beside an agent."""


class Fleet:
    """Records sources until stop(). beside runs along with each agent, for watching."""

    def __init__(
        self,
        options: Sequence[RecordOptions],
        beside: Callable[[Agent], Awaitable[None]] = _nothing,
    ) -> None:
        self.recordings = [Recording(one, Journal(one.name)) for one in options]
        self._beside = beside
        self._stopping = trio.Event()
        # One for all: it takes as much memory as half of a recorder.
        self._filter_child = FilterChild()

    def stop(self) -> None:
        """Have run() store what there is, and return."""
        self._stopping.set()
        for recording in self.recordings:
            if recording.agent is not None:
                recording.agent.stop()

    async def run(self) -> None:
        """Record; raises the worst of the errors that ended a source."""
        try:
            await self._run()
        finally:
            self._filter_child.close()

    async def _run(self) -> None:
        if len(self.recordings) == 1:
            await self._record(self.recordings[0])
            return
        async with trio.open_nursery() as nursery:
            for recording in self.recordings:
                nursery.start_soon(self._keep_recording, recording)
        errors = [
            one.error
            for one in self.recordings
            # A stop ends the waiting for a server; there is nothing of it to lose.
            if one.error is not None
            and not (self._stopping.is_set() and isinstance(one.error, ServerError))
        ]
        if errors:
            raise min(errors, key=_rank)

    async def _keep_recording(self, recording: Recording) -> None:
        tell_to(recording.journal)
        backoff = Backoff()
        while not self._stopping.is_set():
            began = trio.current_time()
            recording.error = await self._outcome(recording)
            if recording.error is None or self._stopping.is_set():
                return
            before = recording.trouble
            recording.trouble = str(recording.error) or repr(recording.error)
            if isinstance(recording.error, IdentityError | UsageError):
                tell(SourceFails(recording.trouble, None))
                return
            if trio.current_time() - began > _GOOD_START:
                backoff.reset()
            wait = backoff.next()
            tell(SourceFails(recording.trouble, wait, before == recording.trouble))
            with trio.move_on_after(wait):
                await self._stopping.wait()

    async def _outcome(self, recording: Recording) -> BaseException | None:
        """Record until it ends, and return the error that ended it."""
        try:
            await self._record(recording)
        except Error as error:
            return error
        except Exception as error:  # noqa: BLE001 a bug must not end the others
            _log.exception("a bug in kvtape")
            return error
        finally:
            recording.has_begun.set()
        return None

    async def _record(self, recording: Recording) -> None:
        agent = recording.agent = Agent(
            recording.options, recording.journal, self._filter_child
        )
        if self._stopping.is_set():
            agent.stop()
        try:
            async with trio.open_nursery() as nursery:
                tell_to(recording.journal)
                nursery.start_soon(self._watch, recording, agent)
                await agent.run()
                nursery.cancel_scope.cancel()
        except ExceptionGroup as group:
            raise cause_of(group) from group

    async def _watch(self, recording: Recording, agent: Agent) -> None:
        await agent.begun.wait()
        recording.has_begun.set()
        await agent.opened.wait()
        recording.trouble = None
        await self._beside(agent)


def _rank(error: BaseException) -> int:
    ranks = [n for n, kind in enumerate(_RANKS, 1) if isinstance(error, kind)]
    return min(ranks, default=0)
