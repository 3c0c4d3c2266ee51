"""restore --serve: a primary that any server may follow to the chosen moment.

We cannot ask a server that comes to us who it is: on a replication link it asks and we
answer. What it announces tells a little, and its own port tells the rest if it answers
INFO there to a stranger, or to the password we were given. A server that is known to be
unfit is refused before it has thrown its data away; one that cannot be asked is served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import trio

from kvtape.errors import ServerError
from kvtape.restore.fields import keep_fields
from kvtape.restore.fit import unfit_release
from kvtape.restore.job import Job, Result
from kvtape.restore.link import Server, Target, listen, tape_of
from kvtape.restore.survey import survey
from kvtape.server.client import open_client
from kvtape.server.info import ask
from kvtape.server.url import ServerUrl, format_address
from kvtape.tape.documents import Server as Identity

_log = logging.getLogger(__name__)

_ASK_TIMEOUT = 2.0


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
    ready: Callable[[str, Result], None],
    complete: Callable[[Target], None],
) -> NoReturn:
    """Serve a restore to whoever says REPLICAOF, until cancelled.

    ready is called with the address, and what will be restored, once everything is
    verified and a server may come; complete with each target that has it all.
    """
    job = await trio.to_thread.run_sync(partial(keep_fields, job, force=options.force))
    tally = await trio.to_thread.run_sync(survey, job, "link")

    async def vet(target: Target) -> ServerError | None:
        return await _vet(job, options, target)

    server = Server(tape_of(job, tally), vet)
    listeners = await listen(options.host or None, options.port)
    told: list[Target] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listeners)
        host, port = listeners[0].socket.getsockname()[:2]
        ready(format_address(host, port), job.result(tally.commands))
        while True:
            await server.changed.wait()
            for target in server.targets:
                if target.is_complete and target not in told:
                    told.append(target)
                    complete(target)


async def _vet(job: Job, options: ServeOptions, target: Target) -> ServerError | None:
    manifest = job.plan.snapshot.manifest
    identity = await _identity(options, target)
    return unfit_release(identity, manifest, force=options.force)


async def _identity(options: ServeOptions, target: Target) -> Identity:
    """Find out who a target is, as far as it can be."""
    if target.listening_port:
        url = ServerUrl(target.host, target.listening_port, password=options.password)
        with trio.move_on_after(_ASK_TIMEOUT):
            try:
                async with open_client(url) as client:
                    return (await ask(client)).server
            except ServerError as error:
                _log.info("cannot ask %s who it is: %s", url.address, error)
    if target.version is not None:
        # Only Valkey announces a version.
        return Identity("valkey", target.version)
    return Identity()
