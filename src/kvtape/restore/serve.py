"""restore --serve: a primary that any server may follow to the chosen moment.

We cannot ask a server that comes to us who it is: on a replication link it asks and we
answer. What it announces tells a little, and its own port tells the rest if it answers
INFO there to a stranger, or to the password we were given. A server that is known to be
unfit is refused before it has thrown its data away; one that cannot be asked is served.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, TypeVar

import trio

from kvtape.errors import ServerError, VerificationError
from kvtape.restore.fields import prepare
from kvtape.restore.fit import (
    swallowed_errors,
    unfit_for_stream,
    unfit_memory,
    unfit_release,
    unknown_commands,
)
from kvtape.restore.job import Job, Result
from kvtape.restore.link import Server, Target, listen, tape_of
from kvtape.server.client import Client, open_client
from kvtape.server.info import ServerInfo, ask, ask_info
from kvtape.server.url import ServerUrl
from kvtape.tape.documents import Family
from kvtape.tape.documents import Server as Identity
from kvtape.tape.translate import Tally

_log = logging.getLogger(__name__)

_ASK_TIMEOUT = 2.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where to listen, and the password to ask targets with. Port 0 is any free one."""

    host: str
    port: int
    password: str | None = None
    force: bool = False


async def serve(
    job: Job,
    options: ServeOptions,
    *,
    ready: Callable[[int, Result], None],
    complete: Callable[[Target, VerificationError | None], None],
) -> NoReturn:
    """Serve a restore to whoever says REPLICAOF, until cancelled.

    ready is called with the port, and what will be restored, once everything is
    verified and a server may come; complete with each target that has it all, and with
    what its answers to nobody meanwhile amount to, if it tells.
    """
    job, tally = await trio.to_thread.run_sync(
        partial(prepare, job, force=options.force), abandon_on_cancel=True
    )
    vetting = _Vetting(job, tally, options)
    server = Server(tape_of(job, tally), vetting.vet)
    listeners = await listen(options.host or None, options.port)
    told: list[Target] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listeners)
        port: int = listeners[0].socket.getsockname()[1]
        ready(port, job.result(tally.commands))
        while True:
            next_change = server.changed.next()
            for target in list(server.targets):
                if target.is_complete and target not in told:
                    told.append(target)
                    complete(target, await vetting.swallowed_errors(target))
            await next_change.wait()


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a target told: of itself, what it does not know, its errors so far."""

    info: ServerInfo
    unknown: list[str]
    before: ServerInfo


@dataclass(frozen=True, slots=True)
class _Vetting:
    """Looks at each target, before it is served and when it has everything."""

    job: Job
    tally: Tally
    options: ServeOptions

    async def vet(self, target: Target) -> ServerError | None:
        """Return why a target must not be served, as far as that can be known."""
        job, tally, force = self.job, self.tally, self.options.force
        manifest = job.plan.snapshot.manifest
        asked = await self._ask(target, self._look)
        if asked is None or not asked.info.fields:
            # Only Valkey announces a version.
            family: Family | None = None if target.version is None else "valkey"
            identity = Identity(family, target.version)
            return unfit_release(identity, manifest, force=force)
        target.before = asked.before
        return (
            unfit_release(asked.info.server, manifest, force=force)
            or unfit_memory(asked.info, manifest, force=force)
            or await trio.to_thread.run_sync(
                unfit_for_stream, asked.info, asked.unknown, job, tally
            )
        )

    async def swallowed_errors(self, target: Target) -> VerificationError | None:
        """Return what a target answered to nobody while it was served, if it tells."""
        if target.before is None:
            return None
        after = await self._ask(target, ask_info)
        if after is None:
            return None
        skipped = self.job.undo.commands
        return swallowed_errors(target.before, after, skipped=skipped)

    async def _look(self, client: Client) -> _Asked:
        info = await ask(client)
        unknown = await unknown_commands(client, self.tally)
        return _Asked(info, unknown, await ask_info(client))

    async def _ask(
        self, target: Target, look: Callable[[Client], Awaitable[Answer]]
    ) -> Answer | None:
        """Connect to a target as a client, and look; None if that cannot be done."""
        if not target.listening_port:
            return None
        password = self.options.password
        url = ServerUrl(target.host, target.listening_port, password=password)
        with trio.move_on_after(_ASK_TIMEOUT):
            try:
                async with open_client(url) as client:
                    return await look(client)
            except ServerError as error:
                _log.info("cannot ask %s who it is: %s", url.address, error)
        return None
