"""kvtape audit: the recorded writes, as commands or counted.

A row is a command as the server sent it to its replicas. Brackets (MULTI, EXEC) are
left out, and what changes nothing: PING, SELECT, REPLCONF and, unless asked for,
PUBLISH.
"""

from __future__ import annotations

from typing import Annotated

import typer

from kvtape.audit.count import By
from kvtape.audit.opened import open_audit
from kvtape.cli import options, picking, ranges
from kvtape.cli.listing import Format, Listing, Missing
from kvtape.cli.orphaned import list_orphaned
from kvtape.errors import UsageError
from kvtape.storage.repository import open_repository
from kvtape.tape.glob import parse_glob
from kvtape.tape.query import Query


def audit(
    repo: options.Repo,
    source: options.Source = None,
    from_offset: ranges.FromOffset = None,
    from_time: ranges.FromTime = None,
    to_offset: ranges.UpToOffset = None,
    to_time: ranges.UpToTime = None,
    to_latest: ranges.UpToLatest = False,
    orphaned: Annotated[
        bool,
        typer.Option(
            "--orphaned",
            help="The writes that failovers lost: recorded of a server whose successor "
            "does not have them.",
        ),
    ] = False,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Those that name such a key, by the pattern of KEYS: 'user:42:*'. "
            "FLUSHALL and the like name none (kvtape history KEY has them). Several "
            "times: any of them.",
            show_default=False,
        ),
    ] = None,
    command: picking.Command = None,
    db: picking.Db = None,
    publish: picking.Publish = False,
    last: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The last N of them only; read from the end.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The first N of them only; of counts, the N largest.",
            show_default=False,
        ),
    ] = None,
    count_by: Annotated[
        By | None,
        typer.Option(
            help="Count them and their bytes instead of listing them. A prefix is what "
            "stands before the first colon of a key.",
            show_default=False,
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Of --count-by prefix: before the N-th colon; by default the first.",
            show_default=False,
        ),
    ] = None,
    values: options.Values = "full",
    json: options.JsonLines = False,
    csv: Annotated[
        bool,
        typer.Option("--csv", help="Print CSV, with a header."),
    ] = False,
    skip_damaged: options.SkipDamaged = False,
    processes: options.Processes = None,
    config: options.Config = None,
) -> None:
    """List or count the recorded writes; no server is needed.

    Each row has the offset that it begins at, and restore --to-offset REPLID:OFFSET is
    the moment before it. A time is that of receipt; where a ~ stands before it, the
    command was written at any moment of the second before, or earlier. A │ stands
    before what is in a transaction.

    What and when, not who: the stream has no user and no address. Who it was may be
    told by an audit module of the server, by the logs of what connects to it at that
    time, and by ACL LOG if it was refused elsewhere.
    """
    if json and csv:
        raise UsageError("give only one of --json and --csv")
    form: Format = "json" if json else "csv" if csv else "text"
    query = Query(
        tuple(parse_glob(options.bytes_of(glob)) for glob in key or ()),
        frozenset(map(picking.command_name, command or ())),
        frozenset(db or ()),
        publish,
    )
    start = ranges.beginning(from_offset, from_time)
    end = ranges.end(to_offset, to_time, latest=to_latest)
    if last is not None and limit is not None:
        raise UsageError("give only one of --last and --limit")
    if count_by is not None and last is not None:
        raise UsageError("--last goes with a list, not with --count-by")
    if depth is not None and count_by != "prefix":
        raise UsageError("--depth goes with --count-by prefix only")
    if orphaned:
        others = (start, end, last, limit, count_by, csv, skip_damaged)
        if any(others):
            raise UsageError(
                "--orphaned lists all that was lost: it goes with --key, --command, "
                "--db, --publish, --values and --json only"
            )
        list_orphaned(open_repository(repo).source(source), query, form, values)
        return
    listing = Listing(
        open_audit(repo, source, start, end),
        query,
        form,
        values,
        limit,
        processes,
        Missing(is_json=json, skips=skip_damaged),
    )
    listing.begin()
    if count_by is not None:
        listing.count(count_by, depth or 1)
    elif last is not None:
        listing.show_last(last)
    else:
        listing.show()
    listing.end()
