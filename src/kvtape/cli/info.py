"""kvtape info: what can be restored."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from kvtape.cli import options, output
from kvtape.storage.repository import open_repository
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.documents import Server
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
    if json:
        output.print_json(document(folder.name, catalogue))
    else:
        _print(folder.name, catalogue)


def document(source: str, catalogue: Catalogue) -> dict[str, object]:
    """Return the JSON document of info."""
    return {
        "source": source,
        "histories": [
            {
                "replid": history.replid,
                "parent": history.parent,
                "parent_offset": history.parent_offset,
                "reason": history.reason,
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
        "stored_bytes": catalogue.stored_bytes,
        "problems": catalogue.problems,
    }


def server_name(server: Server) -> str | None:
    """Return a server's family and version, such as Redis 7.0.15."""
    if server.family is None or server.version is None:
        return None
    return f"{server.family.capitalize()} {server.version}"


def _print(source: str, catalogue: Catalogue) -> None:
    console = Console(highlight=False)
    stored = output.format_bytes(catalogue.stored_bytes)
    console.print(f"source {source}: {stored} stored")
    for replid, history in catalogue.histories.items():
        origin: str = history.reason
        if history.parent is not None:
            origin += f" of {history.parent} at {history.parent_offset}"
        console.print(
            f"\nhistory {replid}\n  began {format_time(history.created)} ({origin})",
            soft_wrap=True,
        )
        _print_history(console, catalogue, replid)
    if not catalogue.all_ranges():
        console.print("nothing can be restored yet: no snapshot is complete")
    for problem in catalogue.problems:
        console.print(f"problem: {problem}", soft_wrap=True)


def _print_history(console: Console, catalogue: Catalogue, replid: str) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for range_ in catalogue.ranges(replid):
        table.add_row(
            "  restorable",
            f"{range_.start} to {range_.end}",
            f"{_short(range_.start_time)} to {_short(range_.end_time)}",
        )
    for snapshot in catalogue.snapshots:
        if snapshot.name.replid == replid:
            size = output.format_bytes(snapshot.manifest.bytes)
            server = server_name(snapshot.manifest.server) or "unknown server"
            table.add_row("  snapshot", f"{snapshot.name.offset}", f"{size}, {server}")
    for gap in catalogue.gaps:
        if gap.replid == replid:
            end = "?" if gap.end_offset is None else str(gap.end_offset)
            table.add_row("  gap", f"{gap.start_offset} to {end}", gap.reason)
    console.print(table)


def _short(time: int) -> str:
    return format_time(time)[:19].replace("T", " ") + "Z"
