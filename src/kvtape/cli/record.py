"""kvtape record: record a live server."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import trio
import typer

from kvtape.cli import options, output
from kvtape.cli.config import is_from, params_of, source_tables
from kvtape.cli.logs import set_up_logging
from kvtape.cli.runner import run_until_signal
from kvtape.cli.status import status_line
from kvtape.errors import Error, UsageError
from kvtape.record.acknowledge import AckOption
from kvtape.record.events import current_source
from kvtape.record.options import RecordOptions
from kvtape.record.spooling.recorder import Limits
from kvtape.server.url import (
    Address,
    ServerUrl,
    parse_url,
)
from kvtape.watch.fleet import WatchedFleet, summary
from kvtape.watch.notify import find_notifier

if TYPE_CHECKING:
    from rich.console import Console

_log = logging.getLogger(__name__)

_REFRESH = 0.25

# The time over which the rate is averaged, in refreshes.
_AVERAGED = 8


def record(
    context: typer.Context,
    repo: options.Repo,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The server: redis://[user[:password]@]host[:port], or valkey://…; "
            "rediss:// and valkeys:// with TLS; or the Sentinels that know it: "
            "redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/NAME. May "
            "be left out where kvtape.toml has [sources.NAME] tables.",
            show_default=False,
        ),
    ] = None,
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
    announce: options.Announce = None,
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
    key_filters: Annotated[
        bool,
        typer.Option(
            help="Write for each segment which keys it names, so that the history of a "
            "key is found without reading all segments. It is done by a second "
            "process, of the lowest priority."
        ),
    ] = True,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve /metrics for Prometheus, /healthz and /readyz over HTTP; on "
            "127.0.0.1 if no host is given.",
            show_default=False,
        ),
    ] = None,
    ready_max_lag: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="How much may be at risk before /readyz says no.",
        ),
    ] = "60s",
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(help="How to write the log: for people, or an object a line."),
    ] = "text",
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
    chosen = [_record_options(one) for one in _sources(context, url, source)]
    most_at_risk = options.parse_duration(ready_max_lag, "--ready-max-lag")
    console = output.terminal()
    set_up_logging(
        console,
        verbose=verbose,
        as_json=log_format == "json",
        source_of=current_source,
        named=len(chosen) > 1,
    )
    watched = WatchedFleet(chosen)
    notifier = find_notifier(os.environ)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            if metrics is not None:
                await nursery.start(_serve, watched, metrics, most_at_risk)
            if notifier is not None:
                nursery.start_soon(watched.notify, notifier)
            if console is not None and log_format == "text":
                nursery.start_soon(_show, watched, console)
            await watched.fleet.run()
            nursery.cancel_scope.cancel()

    def stop() -> None:
        if notifier is not None:
            notifier.tell_stopping()
        watched.fleet.stop()

    try:
        run_until_signal(main, stop)
    except Error as error:
        if log_format != "json":
            raise
        # Whoever reads the log as objects must not miss the last line of it.
        _log.critical("%s", error)
        raise typer.Exit(error.exit_status) from error


async def _serve(
    watched: WatchedFleet,
    address: str,
    most_at_risk: float,
    task_status: trio.TaskStatus[int],
) -> None:
    """Serve the metrics; what that takes is imported by who wants it only."""
    from kvtape.watch import pages

    await pages.serve(watched, address, most_at_risk, task_status=task_status)


def _replica(text: str, server: Address) -> ServerUrl:
    """Read the URL of a replica, with what it leaves out taken from its primary's."""
    replica = parse_url(text)
    if replica.tls is not None and server.tls is not None:
        replica = replica.with_tls(server.tls)
    if replica.username is None and replica.password is None:
        replica = replace(replica, username=server.username, password=server.password)
    return replica


def _sources(
    context: typer.Context, url: str | None, source: str | None
) -> list[dict[str, Any]]:
    """Return the parameters of each source: those given here, over its own table."""
    tables = source_tables(context)
    if url is not None and not is_from(context, "url", "DEFAULT_MAP"):
        tables = []
    if url is not None and tables:
        raise UsageError(
            "kvtape.toml has a url in [record] and [sources.NAME] tables: move the url "
            "into a table of its own"
        )
    if not tables and url is None:
        raise UsageError(
            "name the server's URL, or record several by [sources.NAME] tables in "
            "kvtape.toml"
        )
    if not tables:
        return [context.params]
    chosen = [table for table in tables if source in (None, table.name)]
    if not chosen:
        names = ", ".join(table.name for table in tables)
        raise UsageError(f"kvtape.toml has no source {source}, but {names}")
    return [params_of(context, table) for table in chosen]


def _record_options(params: dict[str, Any]) -> RecordOptions:
    """Read the parameters of one source."""
    limits = Limits(
        options.parse_duration(params["flush_interval"], "--flush-interval"),
        options.parse_duration(params["upload_interval"], "--upload-interval"),
        options.parse_size(params["segment_size"], "--segment-size"),
    )
    most = options.parse_size(params["spool_limit"], "--spool-limit")
    for name, value in (
        ("--flush-interval", limits.flush_interval),
        ("--upload-interval", limits.upload_interval),
        ("--segment-size", limits.segment_size),
        ("--spool-limit", most),
    ):
        if not value:
            raise UsageError(f"{name} must be more than nothing")
    address = options.address_of(params)
    replica = None
    if params["snapshot_from"] is not None:
        password, _ = options.login_of(params)
        replica = _replica(params["snapshot_from"], address).with_password(password)
    return RecordOptions(
        address,
        params["repo"],
        params["source"],
        params["spool"],
        params["ack"],
        limits,
        params["full_resyncs_per_hour"],
        options.parse_duration(params["stop_timeout"], "--stop-timeout"),
        params["until_offset"],
        params["adopt"],
        most,
        params["prefer"],
        replica,
        params["snapshot_file"],
        options.parse_announced(params["announce"]),
        params["key_filters"],
    )


async def _show(watched: WatchedFleet, console: Console) -> None:
    """Keep a line about the recording at the bottom of a terminal."""
    from rich.live import Live
    from rich.text import Text

    received: list[int] = []
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            now = watched.statuses()
            total = sum(one.received_offset or 0 for one in now)
            received = [*received[-_AVERAGED:], total]
            rate = max(0, received[-1] - received[0]) / _REFRESH
            rate /= max(1, len(received) - 1)
            line = status_line(now[0], rate) if len(now) == 1 else summary(now)
            live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
            await trio.sleep(_REFRESH)
