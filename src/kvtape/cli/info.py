"""kvtape info: what can be restored."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from kvtape import amounts
from kvtape.cli import options, output
from kvtape.storage.lost import lost as lost_of
from kvtape.storage.repository import open_repository
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.documents import Gap, History, server_name
from kvtape.tape.orphans import Orphan, unknown
from kvtape.tape.point import format_time


def info(
    repo: options.Repo,
    source: options.Source = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Show what can be restored: histories, ranges, snapshots and gaps.

    No server is needed. Every offset of a restorable range, both ends included, can be
    given to restore --to-offset; every time between its two times to --to-time.
    """
    folder = open_repository(repo).source(source)
    catalogue = folder.catalogue()
    lost = lost_of(folder, catalogue)
    if json:
        output.print_json(document(folder.name, catalogue, lost))
    else:
        for line in _lines(folder.name, catalogue, lost):
            output.print_line(line)


def document(
    source: str, catalogue: Catalogue, lost: Sequence[Orphan]
) -> dict[str, object]:
    """Return the JSON document of info."""
    return {
        "source": source,
        "histories": [
            {
                "replid": history.replid,
                "parent": history.parent,
                "parent_offset": history.parent_offset,
                "reason": history.reason,
                "created": format_time(history.created),
                "address": history.address,
            }
            for history in catalogue.histories.values()
        ],
        "restorable": [
            {
                "replid": range_.replid,
                "start_offset": range_.start,
                "end_offset": range_.end,
                "start_time": format_time(range_.start_time),
                "end_time": format_time(range_.end_time),
            }
            for range_ in catalogue.all_ranges()
        ],
        "snapshots": [
            {
                "replid": snapshot.name.replid,
                "offset": snapshot.name.offset,
                "time": format_time(snapshot.name.time),
                "bytes": snapshot.manifest.bytes,
                "stored_bytes": snapshot.manifest.stored_bytes,
                "server": server_name(snapshot.manifest.server),
            }
            for snapshot in catalogue.snapshots
        ],
        "gaps": [
            {
                "replid": gap.replid,
                "start_offset": gap.start_offset,
                "end_offset": gap.end_offset,
                "start_time": format_time(gap.start_time),
                "end_time": format_time(gap.end_time),
                "reason": gap.reason,
            }
            for gap in catalogue.gaps
        ],
        "orphaned": _orphaned(catalogue, lost),
        "stored_bytes": catalogue.stored_bytes,
        "problems": catalogue.problems,
    }


def _orphaned(catalogue: Catalogue, lost: Sequence[Orphan]) -> list[dict[str, object]]:
    """Return what failovers lost; without offsets where that is unknown."""
    known = [
        {
            "replid": orphan.replid,
            "start_offset": orphan.start,
            "end_offset": orphan.end,
            "continued_as": orphan.successor,
        }
        for orphan in lost
    ]
    return known + [
        {
            "replid": unsure.replid,
            "start_offset": None,
            "end_offset": None,
            "continued_as": unsure.successor,
        }
        for unsure in unknown(catalogue)
    ]


_WIDTH = 80
_INDENT = " " * len("  restorable  ")


def _lines(source: str, catalogue: Catalogue, lost: Sequence[Orphan]) -> Iterator[str]:
    """Yield what people read: no line is longer than it must be."""
    yield f"source {source}: {amounts.size(catalogue.stored_bytes)} stored"
    unsure = {one.successor for one in unknown(catalogue)}
    for replid, history in catalogue.histories.items():
        yield from _lines_of_beginning(history)
        yield from _lines_of_history(catalogue, replid)
        for gap in (gap for gap in catalogue.gaps if gap.replid == replid):
            yield from map(output.alarmed, _lines_of_gap(gap))
        for orphan in (orphan for orphan in lost if orphan.replid == replid):
            yield f"  orphaned    {orphan.start} to {orphan.end}"
            yield f"{_INDENT}kvtape audit --orphaned lists these writes"
        if replid in unsure:
            yield "  orphaned    unknown, of what was recorded before this history"
    if not catalogue.all_ranges():
        yield "nothing can be restored yet: no snapshot is complete"
    for problem in catalogue.problems:
        yield f"problem: {problem}"


def _lines_of_beginning(history: History) -> Iterator[str]:
    yield ""
    yield f"history {history.replid}"
    yield f"  began {format_time(history.created)} ({history.reason})"
    if history.parent is not None:
        yield f"  parent {history.parent}"
        yield f"  shared up to {history.parent_offset}"
    if history.address is not None:
        yield f"  recorded from {history.address}"


def _lines_of_history(catalogue: Catalogue, replid: str) -> Iterator[str]:
    for range_ in catalogue.ranges(replid):
        yield f"  restorable  {range_.start} to {range_.end}"
        start, end = format_time(range_.start_time), format_time(range_.end_time)
        yield f"{_INDENT}{start} to {end}"
    for snapshot in catalogue.snapshots:
        if snapshot.name.replid == replid:
            size = amounts.size(snapshot.manifest.bytes)
            server = server_name(snapshot.manifest.server) or "unknown server"
            yield f"  snapshot    {snapshot.name.offset}, {size}, {server}"


def _lines_of_gap(gap: Gap) -> Iterator[str]:
    end = "a full resync" if gap.end_offset is None else str(gap.end_offset)
    yield f"  gap         {gap.start_offset} to {end}"
    yield f"{_INDENT}{format_time(gap.start_time)} to {format_time(gap.end_time)}"
    yield from textwrap.wrap(
        gap.reason, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT
    )
