"""The writes that failovers lost, for people and for scripts."""

from __future__ import annotations

from collections.abc import Iterator

from kvtape.cli import output, rows
from kvtape.cli.listing import Format
from kvtape.storage.commands import commands_behind
from kvtape.storage.lost import lost as lost_of
from kvtape.storage.repository import SourceFolder
from kvtape.tape.orphans import Orphan, Unknown, unknown
from kvtape.tape.point import format_time
from kvtape.tape.query import Query


def list_orphaned(
    folder: SourceFolder, query: Query, form: Format, values: rows.Values
) -> None:
    """Print them, history by history."""
    catalogue = folder.catalogue()
    lost: list[Orphan | Unknown] = [*lost_of(folder, catalogue), *unknown(catalogue)]
    lost.sort(key=lambda one: one.time)
    for one in lost:
        lines = (
            _lines_of_unknown(one, form)
            if isinstance(one, Unknown)
            else _lines_of_orphan(folder, one, query, form, values)
        )
        for line in lines:
            output.print_line(line)
    if not lost and form == "text":
        output.print_line("no failover lost anything that is recorded")


def _lines_of_unknown(lost: Unknown, form: Format) -> Iterator[str]:
    if form == "json":
        yield rows.json_line(
            {
                "replid": lost.replid,
                "orphaned": "unknown",
                "continued_as": lost.successor,
                "time": format_time(lost.time),
            }
        )
        return
    yield f"history {lost.replid or 'unknown'}"
    yield f"  goes on as {lost.successor}"
    # A replica that took a snapshot does not say whose history it came from.
    yield "  (which may hold some of what is listed above, after all)"
    yield f"  by a full resync at {format_time(lost.time)}; orphaned: unknown"


def _lines_of_orphan(
    folder: SourceFolder,
    lost: Orphan,
    query: Query,
    form: Format,
    values: rows.Values,
) -> Iterator[str]:
    found = filter(query.asks_for, commands_behind(folder, lost.slices))
    if form == "json":
        for command in found:
            yield rows.json_line(rows.JsonRows(values).row(command))
        return
    yield f"history {lost.replid}"
    yield f"  goes on as {lost.successor}"
    yield f"  forked at {lost.fork}, {format_time(lost.time)}"
    count = 0
    for count, command in enumerate(found, start=1):  # noqa: B007
        yield rows.TextRows(values).line(command)
    yield f"  orphaned: {lost.start} to {lost.end}, {count} writes"
