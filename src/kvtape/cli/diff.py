"""kvtape diff: which keys are not the same at two recorded moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from kvtape.cli import options, output, ranges, rows
from kvtape.cli.logs import set_up_logging
from kvtape.cli.runner import run_unless_signal
from kvtape.errors import UsageError
from kvtape.restore.difference import (
    Changes,
    Comparison,
    Difference,
    DiffOptions,
    comparison,
)
from kvtape.restore.job import Job, open_job
from kvtape.tape.glob import parse_glob
from kvtape.tape.point import ToLatest, format_time


def diff(
    repo: options.Repo,
    source: options.Source = None,
    from_offset: ranges.AtOffset = None,
    from_time: ranges.AtTime = None,
    to_offset: Annotated[
        str | None,
        typer.Option(
            metavar="[REPLID:]N",
            help="As --from-offset.",
            show_default=False,
        ),
    ] = None,
    to_time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="As --from-time.",
            show_default=False,
        ),
    ] = None,
    to_latest: ranges.AtLatest = False,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Such keys, by the pattern of KEYS: 'user:42:*'. Several times: any "
            "of them.",
            show_default=False,
        ),
    ] = None,
    db: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Keys of this database.",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[
        bool,
        typer.Option(
            "--keys",
            help="List each key, instead of counting them by prefix: what stands "
            "before the first colon.",
        ),
    ] = False,
    depth: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Count by what stands before the N-th colon.",
        ),
    ] = 1,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The first N of them only.",
            show_default=False,
        ),
    ] = None,
    scratch: options.Scratch = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Accept what is only likely to go wrong."),
    ] = False,
    json: options.JsonLines = False,
    verbose: options.Verbose = False,
    config: options.Config = None,
) -> None:
    """Tell which keys were added, removed and changed between two recorded moments.

    Both are loaded by a server of its own, in a temporary folder (TMPDIR), and every
    key is compared by its value and its expiry, as they were then: what has expired
    since is there, and what had expired by a moment is not.
    """
    start = ranges.beginning(from_offset, from_time)
    if start is None:
        raise UsageError("say from which moment: --from-offset N or --from-time TIME")
    end = ranges.end(to_offset, to_time, latest=to_latest) or ToLatest()
    chosen = DiffOptions(
        tuple(parse_glob(options.bytes_of(glob)) for glob in key or ()),
        db,
        scratch,
        force,
    )
    console = output.terminal()
    set_up_logging(console, verbose=verbose)
    with comparison() as compared:
        with output.bars(console) as watch:
            jobs = (
                open_job(repo, source, start, watch),
                open_job(repo, source, end, watch),
            )
            run_unless_signal(lambda: compared.fill(jobs, chosen))
        for note in dict.fromkeys(_notes(jobs, compared)):
            output.note(note, console)
        for line in _lines(compared, depth, limit, keys=keys, json=json):
            output.print_line(line)


def _notes(jobs: tuple[Job, Job], compared: Comparison) -> Iterator[str]:
    """Yield what to know of an answer."""
    for job in jobs:
        yield from job.notes
    was, now = jobs
    for name, job, count in zip(("from", "to"), jobs, compared.compared, strict=True):
        plan = job.plan
        yield (
            f"{name} offset {plan.offset} of {plan.replid}, received "
            f"{format_time(job.resolved.time)}: {count} keys"
        )
    if was.plan.snapshot != now.plan.snapshot:
        yield (
            "the two moments begin with different snapshots, so what servers do not "
            "replicate (consumers that hold no entry) may be shown as changes"
        )
    if compared.unknown:
        yield (
            f"{compared.unknown} keys are of types that can only be compared byte by "
            "byte: one that is shown as changed may be equal"
        )


def _lines(
    compared: Comparison, depth: int, limit: int | None, *, keys: bool, json: bool
) -> Iterator[str]:
    if keys:
        show = _key_document if json else _key_line
        yield from map(show, compared.differences(limit))
        return
    if not json:
        yield f"{'added':>10} {'removed':>10} {'changed':>10}  prefix"
    for changes in compared.prefixes(depth, limit):
        yield _prefix_document(changes) if json else _prefix_line(changes)


_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def _key_line(found: Difference) -> str:
    what = ""
    if found.change == "changed":
        both = (("value", found.value), ("expiry", found.expiry))
        what = f"  ({' and '.join(name for name, differs in both if differs)})"
    place = f"{_SIGNS[found.change]} db{found.db} {rows.quoted(found.key)}"
    return rows.cut(f"{place}{what}")


def _key_document(found: Difference) -> str:
    document: dict[str, object] = {
        "db": found.db,
        "key": rows.text_or_base64(found.key),
        "change": found.change,
    }
    if found.change == "changed":
        document |= {"value": found.value, "expiry": found.expiry}
    return rows.json_line(document)


def _prefix_line(changes: Changes) -> str:
    counts = f"{changes.added:>10} {changes.removed:>10} {changes.changed:>10}"
    return rows.cut(f"{counts}  {rows.quoted(changes.prefix)}")


def _prefix_document(changes: Changes) -> str:
    return rows.json_line(
        {
            "prefix": rows.text_or_base64(changes.prefix),
            "added": changes.added,
            "removed": changes.removed,
            "changed": changes.changed,
        }
    )
