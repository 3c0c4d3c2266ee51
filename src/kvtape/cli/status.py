"""kvtape status: what running agents do, asked through their spools' sockets."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from kvtape import amounts
from kvtape.cli import options, output
from kvtape.cli.config import is_from, source_tables
from kvtape.errors import CheckError, Error, UsageError
from kvtape.record.spooling.place import default_spools, repository_mark
from kvtape.storage.store import open_store
from kvtape.watch.status import Status, absent, unready
from kvtape.watch.status_socket import NAME, ask_statuses

_REFRESH = 1.0
_WIDTH = 80
_LABEL = 13


def status(
    context: typer.Context,
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo",
            envvar="KVTAPE_REPO",
            metavar="REPO",
            help="Only agents that record into this repository.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Only the agent that records this source.",
            show_default=False,
        ),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The agent with this spool. By default all that run with a spool of "
            "kvtape.toml or of the user's state.",
            show_default=False,
        ),
    ] = None,
    max_lag: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="End with status 5 if more than this is at risk, or nothing is "
            "recorded: for scripts.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second.")
    ] = False,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Show what running agents do: offsets, lag, spool, gaps, errors.

    It asks the agents themselves, over a socket in the spool folder, and needs neither
    the server nor the repository. Without an agent the exit status is 5.
    """
    limit = None if max_lag is None else options.parse_duration(max_lag, "--max-lag")
    if watch and limit is not None:
        raise UsageError("give only one of --watch and --max-lag")
    tables = source_tables(context)
    own = [
        Path(str(table.values["spool"])) for table in tables if "spool" in table.values
    ]
    # Who names a spool asks for what is recorded with that one.
    expected = (
        [] if is_from(context, "spool", "COMMANDLINE") else [one.name for one in tables]
    )

    def ask() -> list[Status]:
        found = _ask(_spools(repo, source, spool, own))
        told = {one.source for one in found}
        found += [absent(name) for name in expected if name not in told]
        if found := [one for one in found if source in (None, one.source)]:
            return found
        raise CheckError(f"no agent that runs here records the source {source}")

    if watch:
        _watch(ask, json=json)
    found = ask()
    if json:
        for one in found:
            output.print_json(one)
    else:
        for line in text(found):
            is_alarm = line.endswith("(RED)") or line.startswith("  problem")
            output.print_line(output.alarmed(line) if is_alarm else line)
    if limit is not None:
        _require(found, limit)


def _require(found: Sequence[Status], limit: float) -> None:
    """Raise CheckError if a source has more at risk than the limit."""
    for one in found:
        if reasons := unready(one, limit):
            raise CheckError(f"source {one.source}: {'; '.join(reasons)}")


def _spools(
    repo: str | None, source: str | None, spool: Path | None, own: Sequence[Path]
) -> list[Path]:
    """Return the spools to ask: the ones named, else those that have a socket.

    own are those of single sources of kvtape.toml; sources that share a spool have a
    folder each in it.
    """
    if spool is not None:
        shared = sorted(path.parent for path in spool.glob(f"*/{NAME}"))
        if own or (shared and not (spool / NAME).exists()):
            return [*shared, *own]
        return [spool]
    name = "*" if source is None else source
    mark = "*" if repo is None else repository_mark(open_store(repo).url)
    sockets = default_spools().glob(f"{name}-{mark}/{NAME}")
    return sorted({*own, *(path.parent for path in sockets)})


def _ask(spools: Sequence[Path]) -> list[Status]:
    """Ask all; CheckError if none answers."""
    found: dict[tuple[int, str], Status] = {}
    beside: dict[tuple[int, str], Status] = {}
    errors = []
    for spool in spools:
        try:
            one, *others = ask_statuses(spool)
        except CheckError as error:
            errors.append(error)
        else:
            found[one.pid, one.source] = one
            # Each source of a process tells of those that have no spool open.
            beside |= {(other.pid, other.source): other for other in others}
    if not found and errors:
        raise errors[0]
    if not found:
        raise CheckError(
            f"no agent has a spool in {default_spools()} open: start kvtape record, or "
            "give its --spool; if it runs, its log says what it waits for"
        )
    return list((beside | found).values())


def _watch(ask: Callable[[], list[Status]], *, json: bool) -> None:
    """Show it until Ctrl-C, also while no agent runs."""
    from rich.live import Live
    from rich.text import Text

    console = output.stdout_console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                found = ask()
                lines = list(text(found))
            except Error as error:
                found, lines = [], [str(error)]
            if json:
                for one in found:
                    output.print_json(one, one_line=True)
            elif console.is_terminal:
                live.update(Text("\n".join(lines)), refresh=True)
            else:
                output.print_line("\n".join([*lines, ""]))
            time.sleep(_REFRESH)


def text(found: Sequence[Status]) -> Iterator[str]:
    """Yield what people read, in at most 80 columns."""
    for number, one in enumerate(found):
        if number:
            yield ""
        colour = "RED" if is_red(one) else "yellow" if one.problems else "green"
        doing = "waiting" if one.phase == "waiting" else activity(one)
        yield f"source {one.source}: {doing} ({colour})"
        for problem in one.problems:
            yield from _wrapped("problem", problem)
        for label, content in _rows(one):
            yield from _wrapped(label, content)


def is_red(one: Status) -> bool:
    """Whether writes are being lost to the recording, or were."""
    is_losing = one.phase == "waiting" or one.open_gap is not None
    return is_losing or one.gaps_total > 0


def activity(one: Status) -> str:
    """Return what an agent does now, in a few words."""
    if one.phase == "waiting":
        return f"waiting: {one.waiting_for or 'connecting'}"
    if one.phase == "snapshot":
        length = one.snapshot_length
        of = "" if length is None else f" of {amounts.size(length)}"
        return f"snapshot: {amounts.size(one.snapshot_bytes or 0)}{of}"
    return one.phase


def status_line(one: Status, rate: float) -> str:
    """Return a line about an agent; rate is what it receives in bytes a second."""
    if one.phase != "streaming":
        return activity(one)
    received = one.received_offset or 0
    unsynced = max(0, received - max(one.spooled_offset or 0, one.stored_offset or 0))
    behind = unsynced if one.lag_bytes is None else one.lag_bytes
    return (
        f"{one.phase}: offset {received}, {amounts.size(rate)}/s, "
        f"{amounts.size(unsynced)} not synced, "
        f"{amounts.size(behind)} not stored"
    )


def _rows(one: Status) -> Iterator[tuple[str, str]]:
    yield "since", one.phase_since
    yield "server", ", ".join(filter(None, (one.address, one.server, one.role)))
    if one.ack is not None:
        yield "acknowledges", one.ack
    if one.replid is not None:
        yield "history", f"{one.replid} ({one.history_reason or 'unknown'})"
        yield (
            "offsets",
            (
                f"received {one.received_offset}, spooled {one.spooled_offset}, stored "
                f"{'none' if one.stored_offset is None else one.stored_offset}"
            ),
        )
    yield "at risk", _risk(one)
    if one.headroom_seconds is not None:
        yield (
            "headroom",
            f"the backlog covers {amounts.duration(one.headroom_seconds)} of writes",
        )
    if one.spool is not None:
        yield "spool", _spool_use(one)
        yield "", one.spool
    yield "repository", one.repository or "unknown"
    yield "resyncs", f"full: {_counts(one.full_resyncs)}"
    yield "", f"partial: {_counts(one.partial_resyncs)}"
    if (taken := one.last_snapshot) is not None:
        yield (
            "snapshot",
            f"{taken.time}, {amounts.size(taken.bytes)} in {taken.seconds:.1f} s",
        )
    yield "gaps", str(one.gaps_total or "none")
    for gap in one.gaps:
        yield "", f"{gap.start_time} to {gap.end_time}: {gap.reason}"
    if one.upload_errors:
        yield "upload tries", f"failed: {_counts(one.upload_errors)}"
    if one.last_error is not None:
        yield "last error", f"{one.last_error.time}: {one.last_error.message}"
    yield (
        "agent",
        f"pid {one.pid}, kvtape {one.version}, up {amounts.duration(one.uptime)}",
    )


def _risk(one: Status) -> str:
    if one.lag_seconds is None:
        return "everything: nothing is stored yet"
    behind = "" if one.lag_bytes is None else amounts.size(one.lag_bytes)
    lag = amounts.duration(one.lag_seconds)
    return f"{lag} of writes, {behind or 'unknown'} not stored"


def _spool_use(one: Status) -> str:
    used = amounts.size(one.spool_bytes or 0)
    of = "" if one.spool_limit is None else f" of {amounts.size(one.spool_limit)}"
    return f"{used}{of}, {one.queue_length} files to upload"


def _counts(counts: dict[str, int]) -> str:
    named = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return named or "none"


def _wrapped(label: str, content: str) -> list[str]:
    indent = " " * (_LABEL + 2)
    return textwrap.wrap(
        content,
        _WIDTH,
        initial_indent=f"  {label:<{_LABEL}}",
        subsequent_indent=indent,
        break_long_words=False,  # a path that is cut in two cannot be copied
        break_on_hyphens=False,
    )
