"""kvtape restore --into URL --key GLOB: some keys, into a server that goes on serving.

The verb and its options are those of kvtape.cli.restore; here is what a rescue tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import typer

from kvtape.cli import output, rows, undone
from kvtape.cli.runner import run_unless_signal
from kvtape.errors import Error
from kvtape.restore.compare import Kind
from kvtape.restore.job import Job
from kvtape.restore.rescue import KINDS, Found, Place, Rescue, RescueOptions
from kvtape.restore.undo import Touched
from kvtape.tape.point import format_time


def rescue(
    job: Job,
    chosen: RescueOptions,
    *,
    dry_run: bool,
    json: bool,
    touched: Touched | None = None,
) -> None:
    """Do it, and tell what came of it; also of one that ends half-way.

    touched is what may mean something else without what is left out, of a dry run.
    """
    work = Rescue(job, chosen)
    try:
        run_unless_signal(lambda: work.run(dry_run=dry_run))
    except (Error, typer.Exit):
        if work.done or work.unanswered:
            _report(work, dry_run=dry_run, json=json, is_complete=False)
        raise
    _report(work, dry_run=dry_run, json=json, is_complete=True, touched=touched)


def _report(
    work: Rescue,
    *,
    dry_run: bool,
    json: bool,
    is_complete: bool,
    touched: Touched | None = None,
) -> None:
    if json:
        document = _document(work, dry_run=dry_run, is_complete=is_complete)
        if touched is not None:
            document["touched"] = undone.touched_document(touched)
        output.print_json(document)
        return
    for line in _lines(work, dry_run=dry_run, is_complete=is_complete):
        output.print_line(rows.cut(line))
    for line in undone.lines(work.job.undo, touched):
        output.print_line(line)


_TEXTS: dict[Kind, str] = {
    "missing": "not there",
    "changed": "of another value",
    "expiry": "of another expiry",
    "same": "as they were",
    "expired": "their time has passed",
}


def _lines(work: Rescue, *, dry_run: bool, is_complete: bool) -> Iterator[str]:
    result = work.job.result(0)
    verb = "would write" if dry_run else "wrote" if is_complete else "had written"
    count = work.to_write if dry_run else len(work.done)
    yield f"{verb} {count} keys as of offset {result.offset}"
    yield f"  history   {result.replid}"
    yield f"  received  {format_time(result.time)}"
    yield "what the target had of them before:"
    for kind in KINDS:
        found = work.found[kind]
        yield f"  {found.count:>10}  {_TEXTS[kind]:<22}{_some(found)}"
    if not is_complete:
        yield "written (--json has all):"
        yield from (f"  {_name(place)}" for place in work.done[:_SHOWN])
        if len(work.done) > _SHOWN:
            yield f"  and {len(work.done) - _SHOWN} more"


# So many keys are listed to people that were written before something failed.
_SHOWN = 20


def _some(found: Found) -> str:
    names = " ".join(map(_name, found.first))
    return names + (" …" * (found.count > len(found.first)))


def _name(place: Place) -> str:
    db, key = place
    name = rows.quoted(key)
    return name if db == 0 else f"{name} (db {db})"


def _document(work: Rescue, *, dry_run: bool, is_complete: bool) -> dict[str, object]:
    result = work.job.result(0)
    loader = work.loader
    document: dict[str, object] = {
        "replid": result.replid,
        "offset": result.offset,
        "time": format_time(result.time),
        "dry_run": dry_run,
        "complete": is_complete,
        "written": len(work.done),
        "scratch": None
        if loader is None
        else {
            "program": str(loader.program),
            "server": loader.name,
            "reason": work.reason,
        },
        "skipped": result.skipped,
        "skipped_offsets": result.skipped_offsets,
        "notes": work.job.notes,
    }
    for kind in KINDS:
        found = work.found[kind]
        document[kind] = {"count": found.count, "keys": _keys(found.first)}
    if not is_complete:
        document["done"] = _keys(work.done)
        document["unanswered"] = _keys(work.unanswered)
    return document


def _keys(places: Sequence[Place]) -> list[dict[str, object]]:
    return [{"db": db, "key": rows.text_or_base64(key)} for db, key in places]
