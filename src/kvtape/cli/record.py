"""kvtape record: record a live server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from kvtape.cli import options, output
from kvtape.cli.runner import run_until_signal
from kvtape.errors import UsageError
from kvtape.record.acknowledge import AckOption
from kvtape.record.agent import Agent
from kvtape.record.options import RecordOptions
from kvtape.record.recorder import Limits
from kvtape.server.url import (
    Address,
    ServerUrl,
    parse_address,
    parse_source,
    parse_url,
)

_REFRESH = 0.25

# The time over which the rate is averaged, in refreshes.
_AVERAGED = 8


def record(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="The server: redis://[user[:password]@]host[:port], or valkey://…; "
            "rediss:// and valkeys:// with TLS; or the Sentinels that know it: "
            "redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/NAME.",
            show_default=False,
        ),
    ],
    repo: options.Repo,
    source: options.Source = None,
    spool: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to keep what is not stored yet: a local disk. By default a "
            "folder of the user's state.",
            show_default=False,
        ),
    ] = None,
    spool_limit: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="How much may wait in the spool. When it is full, the link is dropped "
            "until some of it is stored; nothing that is recorded is deleted.",
        ),
    ] = "10GiB",
    ack: Annotated[
        AckOption,
        typer.Option(
            help="What to tell the server: hidden is never counted by WAIT or "
            "FAILOVER; received is what is synced in the spool; stored is hidden, but "
            "WAITAOF counts what is in the repository (Redis 7.2 and later, Valkey). "
            "auto is received on a replica and with --announce, else hidden."
        ),
    ] = "auto",
    announce: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Listen there for a primary or Sentinel that takes kvtape for a "
            "replica, and tell them that it cannot be promoted. They must be able to "
            "connect to it.",
            show_default=False,
        ),
    ] = None,
    flush_interval: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="How often what was received is synced to the disk.",
        ),
    ] = "200ms",
    upload_interval: Annotated[
        str,
        typer.Option(metavar="DURATION", help="How often what was written is stored."),
    ] = "10s",
    segment_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="The size at which a segment ends in any case."
        ),
    ] = "64MiB",
    full_resyncs_per_hour: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="How often the server may be asked for a new snapshot.",
        ),
    ] = 2,
    stop_timeout: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="How long to go on storing after Ctrl-C or SIGTERM.",
        ),
    ] = "20s",
    until_offset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Stop once this offset is stored.",
            show_default=False,
        ),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="Go on under this source with a server at another address that knows "
            "nothing of what was recorded.",
        ),
    ] = False,
    snapshot_from: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Take snapshots from this replica of the server, which then never "
            "forks for us. Without a user in it, the server's is used.",
            show_default=False,
        ),
    ] = None,
    snapshot_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Begin with this RDB file of the server or of a replica of it, whose "
            "offset must still be in the server's backlog.",
            show_default=False,
        ),
    ] = None,
    password_file: options.PasswordFile = None,
    prefer: options.PreferRole = "primary",
    sentinel_user: options.SentinelUser = None,
    sentinel_password_file: options.SentinelPasswordFile = None,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    tls_server_name: options.TlsServerName = None,
    tls_any_name: options.TlsAnyName = False,
    verbose: options.Verbose = False,
    config: options.Config = None,
) -> None:
    """Record a live server: its snapshot, and every write after it.

    kvtape poses as a replica. It runs until Ctrl-C or SIGTERM, and then stores what it
    has; started again, it continues where it stopped.
    """
    console = output.stderr_console()
    output.set_up_logging(console, verbose=verbose)
    limits = Limits(
        options.parse_duration(flush_interval),
        options.parse_duration(upload_interval),
        options.parse_size(segment_size),
    )
    if not limits.segment_size:
        raise UsageError("--segment-size must be more than nothing")
    password = options.read_password(password_file)
    tls = options.tls(tls_ca, tls_cert, tls_key, tls_server_name, any_name=tls_any_name)
    address = parse_source(url).with_tls(tls).with_password(password)
    address = options.with_sentinel_login(
        address, sentinel_user, sentinel_password_file
    )
    replica = None if snapshot_from is None else _replica(snapshot_from, address)
    if replica is not None:
        replica = replica.with_password(password)
    most = options.parse_size(spool_limit)
    if not most:
        raise UsageError("--spool-limit must be more than nothing")
    agent = Agent(
        RecordOptions(
            address,
            repo,
            source,
            spool,
            ack,
            limits,
            full_resyncs_per_hour,
            options.parse_duration(stop_timeout),
            until_offset,
            adopt,
            most,
            prefer,
            replica,
            snapshot_file,
            None if announce is None else _announced(announce),
        )
    )

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            if console.is_terminal:
                nursery.start_soon(_show, agent, console)
            await agent.run()
            nursery.cancel_scope.cancel()

    run_until_signal(main, agent.stop)


def _replica(text: str, server: Address) -> ServerUrl:
    """Read the URL of a replica, with what it leaves out taken from its primary's."""
    replica = parse_url(text)
    if replica.tls is not None and server.tls is not None:
        replica = replica.with_tls(server.tls)
    if replica.username is None and replica.password is None:
        replica = replace(replica, username=server.username, password=server.password)
    return replica


def _announced(text: str) -> tuple[str, int]:
    host, port = parse_address(text)
    if not host or not port:
        raise UsageError(
            f"--announce {text!r} lacks a host or a port: give the HOST:PORT at which "
            "the primary can reach this machine"
        )
    return host, port


async def _show(agent: Agent, console: Console) -> None:
    """Keep a line about the recording at the bottom of a terminal."""
    received: list[int] = []
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            if agent.is_ready:
                received = [*received[-_AVERAGED:], agent.recorder.received]
                rate = max(0, received[-1] - received[0]) / _REFRESH
                rate /= max(1, len(received) - 1)
                line = Text(status_line(agent, rate), overflow="ellipsis", no_wrap=True)
                live.update(line, refresh=True)
            await trio.sleep(_REFRESH)


def status_line(agent: Agent, rate: float) -> str:
    """Return what an agent does now in a line; rate is in bytes a second."""
    session, recorder = agent.session, agent.recorder
    if agent.trouble is not None or session is None:
        return f"waiting: {agent.trouble or 'connecting'}"
    progress = session.progress
    if progress.phase == "snapshot":
        length = progress.snapshot_length
        of = "" if length is None else f" of {output.format_bytes(length)}"
        return f"snapshot: {output.format_bytes(progress.snapshot_bytes)}{of}"
    lag, stored = recorder.received - recorder.durable, agent.stored
    behind = "nothing"
    if stored is not None:
        behind = output.format_bytes(max(0, recorder.received - stored))
    phase: str = progress.phase
    seeder = agent.linker.seeder
    if seeder is not None and not agent.linker.commits.is_rooted:
        got = output.format_bytes(seeder.received)
        phase = f"snapshot from {seeder.origin.name}: {got}"
    return (
        f"{phase}: offset {recorder.received}, "
        f"{output.format_bytes(rate)}/s, {output.format_bytes(lag)} not synced, "
        f"{behind} {'not stored' if stored is not None else 'stored yet'}"
    )
