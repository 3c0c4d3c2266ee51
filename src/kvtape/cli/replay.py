"""kvtape replay: the recorded writes again, into a running server."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from typing import Annotated

import trio
import typer

from kvtape import amounts
from kvtape.cli import options, output, picking, ranges
from kvtape.cli.logs import set_up_logging
from kvtape.cli.runner import run_unless_signal
from kvtape.cli.shown_replay import Showing
from kvtape.errors import UsageError
from kvtape.replay.into import ReplayResult, replay_into
from kvtape.replay.options import ReplayOptions
from kvtape.replay.progress import Progress
from kvtape.replay.selection import Selection
from kvtape.server.url import parse_url
from kvtape.tape.glob import parse_glob
from kvtape.tape.point import format_time

_log = logging.getLogger(__name__)


def replay(
    repo: options.Repo,
    into: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="A running server of its own, such as redis://127.0.0.1:6380.",
            show_default=False,
        ),
    ],
    source: options.Source = None,
    from_offset: ranges.FromOffset = None,
    from_time: ranges.FromTime = None,
    to_offset: ranges.UpToOffset = None,
    to_time: ranges.UpToTime = None,
    to_latest: ranges.UpToLatest = False,
    with_snapshot: Annotated[
        bool,
        typer.Option(
            "--with-snapshot",
            help="Load the state of the first moment before; then the target is what "
            "the recorded server was.",
        ),
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Go on with what is recorded meanwhile, until it is interrupted.",
        ),
    ] = False,
    speed: Annotated[
        str | None,
        typer.Option(
            metavar="1|N|max",
            help="As fast as it was recorded, ten times so, or as the target takes it. "
            "By default 1, and with --follow max.",
            show_default=False,
        ),
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="With --follow: so long after it was recorded, such as 1h.",
            show_default=False,
        ),
    ] = None,
    loop: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="So often, one after another, on what is there by then.",
        ),
    ] = 1,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="What is done to such keys, by the pattern of KEYS. Several times: "
            "any of them.",
            show_default=False,
        ),
    ] = None,
    command: picking.Command = None,
    db: picking.Db = None,
    publish: picking.Publish = False,
    rename_prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="Keys that begin with OLD begin with NEW there. Several times: of "
            "each key, the longest that fits.",
            show_default=False,
        ),
    ] = None,
    map_db: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="The database OLD is NEW there, such as 0=5. Several times, too.",
            show_default=False,
        ),
    ] = None,
    on_error: Annotated[
        options.OnError,
        typer.Option(
            help="What to do when the target answers an error, or where it cannot be "
            "told what a command does to a part of the keys: each is counted, and the "
            "first of each kind is shown."
        ),
    ] = "stop",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Into a server that holds keys or is within another replay; and past "
            "what is not recorded.",
        ),
    ] = False,
    announce: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="With --with-snapshot: where the target reaches this machine, if not "
            "at the address that it is reached from.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
    password_file: options.PasswordFile = None,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    tls_server_name: options.TlsServerName = None,
    tls_any_name: options.TlsAnyName = False,
    verbose: options.Verbose = False,
    config: options.Config = None,
) -> None:
    """Send the recorded writes again, as a client, into a server that runs.

    Transactions stay transactions, and what expires is moved to the time of its replay.
    The target remembers how far it is, so the same command goes on where it stopped,
    whatever stopped it; nothing is written twice.
    """
    tls = options.tls(tls_ca, tls_cert, tls_key, tls_server_name, any_name=tls_any_name)
    password = options.read_password(password_file)
    request = ReplayOptions(
        repo,
        parse_url(into).with_tls(tls).with_password(password),
        source,
        ranges.beginning(from_offset, from_time),
        ranges.end(to_offset, to_time, latest=to_latest),
        Selection(
            tuple(parse_glob(options.bytes_of(glob)) for glob in key or ()),
            frozenset(map(picking.command_name, command or ())),
            frozenset(db or ()),
            publish,
            tuple(map(options.parse_rename, rename_prefix or ())),
            tuple(map(_databases, map_db or ())),
        ),
        _speed(speed, follow=follow),
        with_snapshot,
        loop,
        follow,
        None if delay is None else options.parse_duration(delay, "--delay"),
        on_error == "stop",
        force,
        options.parse_announced(announce),
    )
    _must_fit(request, speed, to_latest=to_latest)
    console = output.terminal()
    set_up_logging(console, verbose=verbose)
    progress = Progress()
    with output.bars(console) as watch:
        showing = Showing(console, watch, progress, is_following=follow)

        async def main() -> ReplayResult:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(showing.show)
                result = await replay_into(request, progress, watch)
                nursery.cancel_scope.cancel()
            return result

        try:
            result = run_unless_signal(main)
        except typer.Exit:
            if progress.replid:
                _log.info(
                    "interrupted at offset %d; the same command goes on behind it",
                    progress.offset,
                )
            raise
    _report(result, is_json=json)


def _must_fit(request: ReplayOptions, speed: str | None, *, to_latest: bool) -> None:
    if request.delay is not None and not request.follow:
        raise UsageError("--delay goes with --follow")
    if request.delay is not None and speed is not None:
        raise UsageError("give only one of --delay and --speed")
    if request.follow and (request.end is not None or to_latest or request.rounds > 1):
        raise UsageError("--follow has no end: it goes neither with --to nor --loop")
    if request.announce is not None and not request.with_snapshot:
        raise UsageError("--announce goes with --with-snapshot")


def _speed(text: str | None, *, follow: bool) -> float | None:
    """Read 1, 10, 0.5 or max; None is as fast as it goes."""
    if text is None:
        return None if follow else 1.0
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise UsageError(
            f"--speed {text!r} is no speed: give 1, another number, or max"
        )
    return speed


def _databases(text: str) -> tuple[int, int]:
    """Read OLD=NEW of --map-db."""
    old, _, new = text.partition("=")
    if not all(each.isascii() and each.isdigit() for each in (old, new)):
        raise UsageError(f"--map-db {text!r} names no two databases: give OLD=NEW")
    return int(old), int(new)


def _report(result: ReplayResult, *, is_json: bool) -> None:
    if is_json:
        output.print_json({**asdict(result), "time": format_time(result.time)})
        return
    say = partial(output.print_line)
    say(f"replayed up to offset {result.offset}")
    say(f"  history   {result.replid}")
    say(f"  from      {result.start_offset}")
    say(f"  received  {format_time(result.time)}")
    say(f"  stream    {amounts.size(result.stream_bytes)}")
    say(f"  commands  {result.commands}")
    for kind, count in result.errors.items():
        say(f"  answered  {count} x {kind}")
    for reason, count in result.left_out.items():
        say(f"  left out  {count} x {reason}")
