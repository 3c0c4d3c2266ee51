"""Asking a server, without leaving a trace that matters.

A dozen short commands over one connection, none of which changes anything: no PSYNC
(one that cannot be continued is a full resync), no write, no setting. REPLCONF is tried
for real; before a PSYNC it only notes a port for this connection. A command that is not
allowed adds to ACL LOG and to errorstats. Each wait is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import trio

from kvtape.check.facts import ServerFacts
from kvtape.errors import ServerError, cause_of
from kvtape.replication.refusal import refused
from kvtape.replication.replica import HIDDEN_PORT
from kvtape.server.client import Client, ReplyError, open_client
from kvtape.server.info import ServerInfo, ask_hello, ask_info, ask_setting
from kvtape.server.url import ServerUrl

# A connection, a TLS handshake and a login, each of which has a limit of its own.
CONNECT_TIMEOUT = 30.0
ANSWER_TIMEOUT = 10.0

# The clock is read as often, and the quickest answer believed.
_CLOCK_TRIES = 3

_SETTINGS = (
    "repl-backlog-ttl",
    "client-output-buffer-limit",
    "min-replicas-to-write",
)

# The categories of ACL rules that PSYNC and REPLCONF are in.
_CATEGORIES = ("all", "admin", "slow", "dangerous")

_MICROSECOND = 1_000_000

Answer = TypeVar("Answer")


async def ask_server(url: ServerUrl, sample: float) -> ServerFacts:
    """Ask everything, and twice, sample seconds apart, what changes.

    A server that cannot be reached, or stops answering, is one with trouble.
    """
    try:
        async with AsyncExitStack() as stack:
            began = trio.current_time()
            client = await _in_time(
                url,
                CONNECT_TIMEOUT,
                lambda: stack.enter_async_context(open_client(url)),
            )
            return await _ask(client, sample, trio.current_time() - began)
    except (ServerError, ExceptionGroup) as group:
        error = cause_of(group)
        if not isinstance(error, ServerError):
            raise
        return ServerFacts(url.address, trouble=str(error))


async def _in_time(
    url: ServerUrl, seconds: float, asking: Callable[[], Awaitable[Answer]]
) -> Answer:
    with trio.move_on_after(seconds):
        return await asking()
    raise ServerError(f"{url.address} did not answer for {seconds:.0f} s")


async def _ask(client: Client, sample: float, connecting: float) -> ServerFacts:
    async def in_time(asking: Callable[[], Awaitable[Answer]]) -> Answer:
        return await _in_time(client.url, ANSWER_TIMEOUT, asking)

    hello = await in_time(lambda: ask_hello(client))
    offset, round_trip = await in_time(lambda: _clock(client))
    version = hello.server.version or ""
    permissions = await in_time(lambda: _permissions(client, version))
    settings = await in_time(lambda: _settings(client))
    # Last, so that none of our own commands is taken for a client's.
    first, began = await in_time(lambda: ask_info(client)), trio.current_time()
    last = first
    if first.fields:
        await trio.sleep(max(0.0, began + sample - trio.current_time()))
        last = await in_time(lambda: ask_info(client))
    return ServerFacts(
        client.url.address,
        first,
        # What INFO says is the truth where both do.
        ServerInfo({**hello.fields, **last.fields}),
        trio.current_time() - began,
        connecting,
        round_trip,
        offset,
        settings,
        permissions.may,
        permissions.refusal,
    )


async def _try(client: Client, *words: str | int) -> object | None:
    """Ask for what may not be allowed, or not be known to this release: None then."""
    try:
        return await client.call(*words)
    except ReplyError:
        return None


async def _settings(client: Client) -> dict[str, str]:
    found = {name: await ask_setting(client, name) for name in _SETTINGS}
    return {name: value for name, value in found.items() if value is not None}


async def _clock(client: Client) -> tuple[float | None, float]:
    """Return how far the server's clock is ahead, if it may be asked; the round trip.

    Its clock is read somewhere within the round trip: taken to be the middle.
    """
    best: tuple[float, float | None] | None = None
    for _ in range(_CLOCK_TRIES):
        sent, began = time.time(), trio.current_time()
        reply = await _try(client, "TIME")
        took = trio.current_time() - began
        offset = None
        if isinstance(reply, list):
            seconds, micros = map(int, reply)
            offset = seconds + micros / _MICROSECOND - (sent + took / 2)
        if best is None or took < best[0]:
            best = took, offset
    took, offset = best or (0.0, None)
    return offset, took


# Permissions.


@dataclass(frozen=True, slots=True)
class _Permissions:
    """Whether the user may run PSYNC and REPLCONF, and what was said if not."""

    may: dict[str, bool | None]
    refusal: str | None = None


async def _permissions(client: Client, version: str) -> _Permissions:
    """Find out as much as may be asked."""
    # Renamed or taken away, as managed services do.
    known = await _try(client, "COMMAND", "INFO", "PSYNC")
    if known == [None]:
        refusal = refused("ERR unknown command 'PSYNC'", "PSYNC")
        return _Permissions({"psync": False, "replconf": None}, str(refusal))
    try:
        await client.call("REPLCONF", "listening-port", HIDDEN_PORT)
    except ReplyError as error:
        refusal = refused(str(error).partition(": ")[2], "REPLCONF")
        return _Permissions({"psync": None, "replconf": False}, str(refusal))
    return _Permissions({"psync": await _may_psync(client, version), "replconf": True})


async def _may_psync(client: Client, version: str) -> bool | None:
    user = await _try(client, "ACL", "WHOAMI")
    if not isinstance(user, bytes):
        return None
    name = user.decode("utf-8", "surrogateescape")
    # Redis 6.2 does not know it, and would count an error.
    if not version.startswith("6."):
        reply = await _try(client, "ACL", "DRYRUN", name, "PSYNC", "?", "-1")
        if isinstance(reply, bytes):
            return reply == b"OK"  # or a sentence
    described = await _try(client, "ACL", "GETUSER", name)
    if not isinstance(described, list):
        return None
    facts = dict(zip(described[::2], described[1::2], strict=False))
    rules = facts.get(b"commands")
    return allows(rules.decode(), "psync") if isinstance(rules, bytes) else None


def allows(rules: str, command: str) -> bool:
    """Whether an ACL's rules on commands allow PSYNC or REPLCONF: the last one counts.

    For what Redis 6.2 shows of a user, which cannot be asked for one command.
    """
    allowed = False
    names = {command, *(f"@{category}" for category in _CATEGORIES)}
    for rule in rules.split():
        if rule[1:] in names:
            allowed = rule[0] == "+"
    return allowed
