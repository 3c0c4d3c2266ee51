"""Restoring into a running server, driven from here.

The target is told REPLICAOF us, takes everything as a replica does, and is told
REPLICAOF NO ONE once it has acknowledged the last byte and swallowed no error on the
way. Until then it serves nobody a half-restored state as its own: it is a read-only
replica. If something fails it is left as one, and the error says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import trio

from kvtape.errors import ServerError, VerificationError
from kvtape.restore.fields import prepare
from kvtape.restore.fit import (
    swallowed_errors,
    unfit,
    unfit_for_stream,
    unknown_commands,
)
from kvtape.restore.job import Job, Result
from kvtape.restore.link import Server, Target, listen, tape_of
from kvtape.restore.survey import estimate
from kvtape.server.client import Client, open_client
from kvtape.server.info import ServerInfo, ask, ask_info, ask_setting
from kvtape.server.url import ServerUrl, format_address
from kvtape.tape.translate import Tally

_log = logging.getLogger(__name__)

# How long a target may say nothing while it loads and applies. It acknowledges every
# second but for a snapshot that it is loading, when INFO tells that it does.
_SILENCE = 60.0

# How long a target that broke off may stay away, and how often it may come back.
_COME_BACK = 10.0
_MOST_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class IntoOptions:
    """The target, and the address under which it reaches us, if not as it seems.

    connect_within is how long (s) it may take to connect after REPLICAOF; it tries
    every second.
    """

    url: ServerUrl
    announce: tuple[str, int] | None = None
    force: bool = False
    connect_within: float = 30.0


async def check_target(job: Job, options: IntoOptions) -> None:
    """Raise the error that a restore into the target would end with, if it is known.

    Nothing on the target is changed, and nothing stored is verified.
    """
    async with open_client(options.url) as client:
        info = await _must_be_fit(client, job, options)
        tally = await trio.to_thread.run_sync(estimate, job)
        await _must_take_stream(client, info, job, tally)


async def restore_into(job: Job, options: IntoOptions) -> Result:
    """Restore into a running server; return when it is its own primary again.

    Raises ServerError or DestinationError if the target is unfit or fails, and
    VerificationError if anything stored is damaged, or the target answered an error to
    a command of the stream.
    """
    async with open_client(options.url) as client:
        info = await _must_be_fit(client, job, options)
        job, tally = await trio.to_thread.run_sync(
            partial(prepare, job, force=options.force), abandon_on_cancel=True
        )
        await _must_take_stream(client, info, job, tally)
        before = await ask_info(client)
        server = Server(tape_of(job, tally), _vet)
        host, port = options.announce or (client.local_host, 0)
        listeners = await listen(host if options.announce is None else None, port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listeners)
            port = port or listeners[0].socket.getsockname()[1]
            await client.call("REPLICAOF", host, port)
            try:
                us = format_address(host, port)
                await _wait_until_complete(server, client, us, options.connect_within)
                await _must_be_clean(client, before, job)
                await client.call("REPLICAOF", "NO", "ONE")
            except (ServerError, VerificationError) as error:
                left = await _leave(server, client)
                raise type(error)(f"{error}; {left}") from error
            except BaseException:
                _log.warning("interrupted: %s", _LEFT)
                raise
            nursery.cancel_scope.cancel()
    return job.result(tally.commands)


_LEFT = (
    "the target is left a read-only replica with an incomplete restore: restore again "
    "with --force"
)


async def _leave(server: Server, client: Client) -> str:
    """Leave a target alone; return how it is left."""
    if server.attempts:
        return _LEFT
    # It has not begun, so it still has what it had.
    await client.call("REPLICAOF", "NO", "ONE")
    return "the target holds what it held"


async def _vet(_target: Target) -> None:
    """Refuse nobody: the target was looked at before."""


async def _must_be_fit(client: Client, job: Job, options: IntoOptions) -> ServerInfo:
    if await ask_setting(client, "tls-replication") == "yes":
        # It would speak TLS to us too, and we pose as a primary without.
        raise ServerError(
            "the target replicates over TLS only (tls-replication yes), which kvtape "
            "does not speak as a primary: say CONFIG SET tls-replication no to it for "
            "the time of the restore, or restore into a folder (--data-dir)"
        )
    info = await ask(client)
    manifest = job.plan.snapshot.manifest
    if (error := unfit(info, manifest, force=options.force)) is not None:
        raise error
    return info


async def _must_take_stream(
    client: Client, info: ServerInfo, job: Job, tally: Tally
) -> None:
    unknown = await unknown_commands(client, tally)
    error = await trio.to_thread.run_sync(unfit_for_stream, info, unknown, job, tally)
    if error is not None:
        raise error


async def _wait_until_complete(
    server: Server, client: Client, us: str, connect_within: float
) -> None:
    with trio.move_on_after(connect_within) as connecting:
        while not server.targets and server.error is None:
            await server.changed.wait()
    if server.error is not None:
        raise server.error
    if connecting.cancelled_caught:
        raise ServerError(
            f"the target did not connect to {us} within {connect_within:g} s: if it "
            "reaches this machine by another address, name that by --announce HOST:PORT"
        )
    while not any(target.is_complete for target in server.targets):
        with trio.move_on_after(_SILENCE) as silence:
            await server.changed.wait()
        if server.error is not None:
            raise server.error
        if not server.targets:
            await _must_come_back(server, client)
        if silence.cancelled_caught and not await _is_loading(client):
            raise ServerError(f"the target said nothing for {_SILENCE:.0f} s")


async def _must_come_back(server: Server, client: Client) -> None:
    """Wait for a target that broke off; not too long, and not too often."""
    await ask_info(client)  # which fails at once if the target is gone
    with trio.move_on_after(_COME_BACK):
        while not server.targets:
            await server.changed.wait()
    if not server.targets or server.attempts > _MOST_ATTEMPTS:
        raise ServerError(
            "the target broke off the replication before it had everything; its log "
            "says why"
        )


async def _is_loading(client: Client) -> bool:
    info = await ask_info(client)
    return info.fields.get("loading") == "1" or bool(
        info.number("master_sync_in_progress")
    )


async def _must_be_clean(client: Client, before: ServerInfo, job: Job) -> None:
    after = await ask_info(client)
    error = swallowed_errors(before, after, skipped=job.undo.commands)
    if error is not None:
        raise error
