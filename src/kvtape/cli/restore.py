"""kvtape restore: bring a moment back."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import trio
import typer

from kvtape import amounts
from kvtape.cli import options, output, ranges, undone
from kvtape.cli import rescue as rescuing
from kvtape.cli.logs import set_up_logging
from kvtape.cli.runner import run, run_unless_signal, run_until_signal
from kvtape.errors import UsageError, VerificationError
from kvtape.restore.changes import Changes
from kvtape.restore.data_dir import (
    layout_for,
    must_be_free,
    restore_data_dir,
    start_command,
)
from kvtape.restore.fields import rehearse
from kvtape.restore.into import IntoOptions, check_target, restore_into
from kvtape.restore.job import Job, Result, open_job
from kvtape.restore.link import Target
from kvtape.restore.rescue import RescueOptions
from kvtape.restore.serve import ServeOptions, serve
from kvtape.restore.undo import Touched, touched_later
from kvtape.server.url import Tls, format_address, parse_address, parse_url
from kvtape.tape.command_pattern import parse_pattern
from kvtape.tape.glob import parse_glob
from kvtape.tape.point import Point, ToLatest, format_time, parse_offset
from kvtape.tape.translate import Destination
from kvtape.tape.ttls import Mode

_log = logging.getLogger(__name__)

Layout = Literal["auto", "multi-part", "single"]


def restore(
    repo: options.Repo,
    source: options.Source = None,
    to_offset: ranges.AtOffset = None,
    to_time: ranges.AtTime = None,
    to_latest: ranges.AtLatest = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A new folder, which a server loads by itself.",
            show_default=False,
        ),
    ] = None,
    serve_at: Annotated[
        str | None,
        typer.Option(
            "--serve",
            metavar="[HOST:]PORT",
            help="Pose as a primary there, for any server that says REPLICAOF.",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A running, empty server, such as redis://127.0.0.1:6380; with --key "
            "one that goes on serving.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Bring only such keys, by the pattern of KEYS: 'user:42:*'. Several "
            "times: any of them. All else at the target stays as it is.",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Overwrite keys that the target has otherwise than they were.",
        ),
    ] = False,
    rename_prefix: Annotated[
        str | None,
        typer.Option(
            metavar="OLD=NEW",
            help="Put them beside, under names that begin with NEW instead of OLD.",
            show_default=False,
        ),
    ] = None,
    db: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Only of this database; each goes into the one of the same number.",
            show_default=False,
        ),
    ] = None,
    scratch: options.Scratch = None,
    ttl: Annotated[
        Mode,
        typer.Option(
            help="Expiries: keep them (what has passed expires), shift them by the "
            "time from the point to now (what had an hour left has an hour left), or "
            "drop them.",
        ),
    ] = "keep",
    skip_offset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[REPLID:]N",
            help="Restore as if the command that begins at N, as audit shows it, had "
            "never run; with a MULTI, its transaction. Several times: all of them. "
            "--dry-run lists what came later on the same keys.",
            show_default=False,
        ),
    ] = None,
    skip_command: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="The same for every such command since the snapshot: FLUSHALL, or "
            "name and patterns of the first words: 'DEL user:*'. Several times: any of "
            "them.",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option(
            help="How --data-dir is laid out: multi-part for Redis 7 and later and "
            "Valkey, single for Redis 6; auto is as the recorded server would."
        ),
    ] = "auto",
    announce: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the target of --into reaches this machine, if not at the "
            "address that it is reached from.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace what the target holds, and accept what is only likely to "
            "go wrong.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Tell what would be done, and do nothing. With --ttl or --skip-… all "
            "that is stored is read first, to find what would be refused.",
        ),
    ] = False,
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
    """Bring any recorded moment back: into a folder or into a running server.

    The state is the recorded server's after the last command or transaction that ends
    at or before the point. Keys whose time has passed since then expire, unless --ttl
    says otherwise.

    With --into URL --key GLOB only some keys come, into a server that goes on serving.
    See with --dry-run first what it has of them now.
    """
    tls = options.tls(tls_ca, tls_cert, tls_key, tls_server_name, any_name=tls_any_name)
    place = _place(data_dir, serve_at, into, tls, announce, password_file, force=force)
    rename = None if rename_prefix is None else options.parse_rename(rename_prefix)
    if key:
        place = _rescue(place, key, db, rename, scratch, replace=replace)
    elif replace or rename or scratch is not None or db is not None:
        raise UsageError("--replace, --rename-prefix, --db and --scratch go with --key")
    request = _Request(
        point=ranges.end(to_offset, to_time, latest=to_latest) or ToLatest(),
        place=place,
        changes=Changes(
            ttl,
            tuple(map(parse_offset, skip_offset or ())),
            tuple(map(parse_pattern, skip_command or ())),
        ),
        layout=layout,
        force=force,
        dry_run=dry_run,
        json=json,
    )
    if request.place is None and not dry_run:
        raise UsageError(
            "say where to restore: --data-dir DIR, --serve PORT or --into URL; or "
            "--dry-run to see what would be done"
        )
    console = output.terminal()
    set_up_logging(console, verbose=verbose)
    with output.bars(console) as watch:
        job = open_job(repo, source, request.point, watch, request.changes)
        for note in job.notes:
            output.note(note, console)
        touched = None
        if dry_run and job.undo.starts:
            touched = touched_later(job.folder, job.plan, job.undo)
        result = _restore(job, request, touched)
    if result is not None:
        _report(job, request, result, touched)


_Place = Path | ServeOptions | IntoOptions | RescueOptions


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for."""

    point: Point
    place: _Place | None
    changes: Changes
    layout: Layout
    force: bool
    dry_run: bool
    json: bool


def _restore(job: Job, request: _Request, touched: Touched | None) -> Result | None:
    """Do it; return what was done. What is served or rescued reports itself."""
    place = request.place
    if isinstance(place, RescueOptions):
        dry_run, json = request.dry_run, request.json
        rescuing.rescue(job, place, dry_run=dry_run, json=json, touched=touched)
        return None
    if request.dry_run:
        if isinstance(place, IntoOptions):
            run(lambda: check_target(job, place))
        destination: Destination = "file" if isinstance(place, Path) else "link"
        tally = rehearse(job, destination, force=request.force)
        return job.result(tally.commands)
    match place:
        case Path():
            layout = request.layout
            if layout == "auto":
                layout = layout_for(job.plan.snapshot.manifest)
            return restore_data_dir(job, place, layout, force=request.force)
        case IntoOptions():
            return run_unless_signal(lambda: restore_into(job, place))
        case ServeOptions():
            _serve(job, request, place)
        case None:
            pass
    return None


def _serve(job: Job, request: _Request, place: ServeOptions) -> None:
    scope = trio.CancelScope()

    def ready(port: int, result: Result) -> None:
        _report(job, request, result)
        host = place.host or socket.gethostname()
        if not place.host:
            _log.warning(
                "whoever reaches port %d of this machine can take the data: --serve "
                "HOST:PORT listens on one address only",
                port,
            )
        _log.info("serving: say REPLICAOF %s %d to an empty server", host, port)

    def complete(target: Target, trouble: VerificationError | None) -> None:
        address = format_address(target.host, target.listening_port or 0)
        if trouble is not None:
            _log.error("%s: %s", address, trouble)
        _log.info(
            "%s has everything up to %d: say REPLICAOF NO ONE to it; Ctrl-C ends this",
            address,
            job.plan.offset,
        )

    async def main() -> None:
        with scope:
            await serve(job, place, ready=ready, complete=complete)

    run_until_signal(main, scope.cancel)


def _report(
    job: Job, request: _Request, result: Result, touched: Touched | None = None
) -> None:
    if request.json:
        document = {**asdict(result), "time": format_time(result.time)}
        document["notes"] = job.notes
        if touched is not None:
            document["touched"] = undone.touched_document(touched)
        output.print_json(document)
        return
    verb = "would restore" if request.dry_run else "restored"
    if isinstance(request.place, ServeOptions):
        verb = "serves"
    for line in (*_lines(verb, result), *undone.lines(job.undo, touched)):
        output.print_line(line)
    if result.data_dir is not None:
        manifest = job.plan.snapshot.manifest
        output.print_line("start a server on it by:")
        output.print_line(f"  {start_command(manifest, Path(result.data_dir))}")


def _lines(verb: str, result: Result) -> Iterator[str]:
    stream = amounts.size(result.stream_bytes)
    yield f"{verb} offset {result.offset}"
    yield f"  history   {result.replid}"
    yield f"  received  {format_time(result.time)}"
    yield f"  snapshot  {result.snapshot_offset}"
    yield f"  stream    {stream}"
    yield f"  commands  {result.commands}"
    if result.ttl == "drop":
        yield "  expiries  dropped"
    if result.ttl_shift_ms is not None:
        yield f"  expiries  moved by {amounts.duration(result.ttl_shift_ms / 1000)}"
    if result.skipped_offsets:
        yield f"  skipped   {result.skipped}"
    if result.data_dir is not None:
        yield f"  folder    {result.data_dir}"


def _rescue(
    place: _Place | None,
    keys: list[str],
    db: int | None,
    rename: tuple[bytes, bytes] | None,
    scratch: str | None,
    *,
    replace: bool,
) -> RescueOptions:
    if not isinstance(place, IntoOptions):
        raise UsageError("--key goes with --into, the URL of the server to bring it to")
    if place.announce is not None:
        raise UsageError("--announce goes with --into without --key")
    globs = tuple(parse_glob(options.bytes_of(key)) for key in keys)
    return RescueOptions(
        place.url, globs, db, rename, replace, scratch, force=place.force
    )


def _place(
    data_dir: Path | None,
    serve_at: str | None,
    into: str | None,
    tls: Tls | None,
    announce: str | None,
    password_file: Path | None,
    *,
    force: bool,
) -> _Place | None:
    if sum(place is not None for place in (data_dir, serve_at, into)) > 1:
        raise UsageError("give only one of --data-dir, --serve and --into")
    if announce is not None and into is None:
        raise UsageError("--announce goes with --into")
    password = options.read_password(password_file)
    if data_dir is not None:
        must_be_free(data_dir)
        return data_dir
    if serve_at is not None:
        host, port = parse_address(serve_at)
        return ServeOptions(host, port, password, force)
    if into is not None:
        url = parse_url(into).with_tls(tls).with_password(password)
        return IntoOptions(url, options.parse_announced(announce), force)
    return None
