"""kvtape check: what could go wrong, before recording and while it runs."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from kvtape.check.finding import Finding, Verdict, worst
from kvtape.check.survey import CheckOptions, run_checks
from kvtape.cli import options, output
from kvtape.cli.config import SourceTable, is_from, params_of, source_tables
from kvtape.cli.runner import run_unless_signal
from kvtape.errors import CheckError, UsageError
from kvtape.record.acknowledge import AckOption

_WIDTH = 80
_INDENT = " " * 6

_COLOURS: dict[Verdict, str] = {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "unknown": "cyan",
}


def check(
    context: typer.Context,
    repo: options.Repo,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The server, as for record. By default the one that kvtape.toml has "
            "for record, or that the source was recorded from; without one, only the "
            "repository and the spool are checked.",
            show_default=False,
        ),
    ] = None,
    source: options.Source = None,
    spool: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The spool of record. By default the one that record takes.",
            show_default=False,
        ),
    ] = None,
    spool_limit: Annotated[
        str,
        typer.Option(metavar="SIZE", help="How much may wait in the spool of record."),
    ] = "10GiB",
    ack: Annotated[
        AckOption,
        typer.Option(
            help="What record is told: a primary that counts replicas fails unless "
            "this is chosen."
        ),
    ] = "auto",
    announce: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="What record is told: it decides what --ack auto means.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="For how long to measure how fast the server is written to.",
        ),
    ] = "3s",
    password_file: options.PasswordFile = None,
    prefer: options.PreferRole = "primary",
    sentinel_user: options.SentinelUser = None,
    sentinel_password_file: options.SentinelPasswordFile = None,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    tls_server_name: options.TlsServerName = None,
    tls_any_name: options.TlsAnyName = False,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Check whether server, disk and repository are fit to record, and still are.

    Nothing is changed on the server, and no snapshot is asked for. Exit status 5 if a
    check fails; 0 if all are ok, warnings, or unknown for lack of permissions.
    """
    table = _table(context, source)
    chosen = _check_options(
        context.params if table is None else params_of(context, table)
    )
    console = output.terminal()
    with nullcontext() if console is None else console.status("checking"):
        findings = run_unless_signal(lambda: run_checks(chosen))
    if json:
        output.print_json(document(findings))
    else:
        for line in lines(findings, has_colours=sys.stdout.isatty()):
            output.print_line(line)
    failed = [finding.name for finding in findings if finding.verdict == "fail"]
    if failed:
        raise CheckError(f"failed: {', '.join(failed)}")


def _table(context: typer.Context, source: str | None) -> SourceTable | None:
    """Return the [sources.NAME] table of the server that is meant, if it has one."""
    tables = source_tables(context)
    if is_from(context, "url", "COMMANDLINE"):
        return None
    if source is not None:
        return next((table for table in tables if table.name == source), None)
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise UsageError(
            f"kvtape.toml has the sources {names}: say which to check by --source"
        )
    return tables[0] if tables else None


def _check_options(params: dict[str, Any]) -> CheckOptions:
    password, tls = options.login_of(params)
    address = None if params["url"] is None else options.address_of(params)
    return CheckOptions(
        params["repo"],
        address,
        params["source"],
        params["spool"],
        params["ack"],
        options.parse_duration(params["sample"], "--sample"),
        password,
        tls,
        options.parse_size(params["spool_limit"], "--spool-limit"),
        params["prefer"],
        options.parse_announced(params["announce"]) is not None,
    )


def document(findings: Sequence[Finding]) -> dict[str, object]:
    """Return the JSON document of check."""
    return {
        "checks": [
            {
                "name": finding.name,
                "verdict": finding.verdict,
                "measured": finding.measured,
                "message": finding.message,
                "hint": finding.hint,
            }
            for finding in findings
        ],
        "verdict": worst(finding.verdict for finding in findings),
    }


def lines(findings: Iterable[Finding], *, has_colours: bool = False) -> Iterator[str]:
    """Yield what people read. What is unknown for one reason is said once."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        groups.setdefault(_sayable_together(finding), []).append(finding)
    for alike in groups.values():
        first = alike[0]
        names = ", ".join(finding.name for finding in alike)
        verdict = f"{first.verdict:<7}"
        if has_colours:
            verdict = typer.style(verdict, fg=_COLOURS[first.verdict])
        yield from _told(verdict, f"{names}: {first.message}")
        if first.hint:
            yield from textwrap.wrap(
                first.hint,
                _WIDTH,
                initial_indent=f"{_INDENT}  -> ",
                subsequent_indent=f"{_INDENT}     ",
                break_long_words=False,  # what is cut in two cannot be copied
                break_on_hyphens=False,
            )


def _sayable_together(finding: Finding) -> tuple[str, ...]:
    if finding.verdict == "unknown":
        return (finding.message, finding.hint)
    return (finding.name,)


def _told(verdict: str, text: str) -> Iterator[str]:
    """Wrap a text behind a verdict, which may hold colours that take no room."""
    room = _WIDTH - len("unknown  ")
    first, *others = textwrap.wrap(
        text, room, break_long_words=False, break_on_hyphens=False
    )
    yield f"{verdict}  {first}"
    for line in others:
        yield f"{' ' * len('unknown  ')}{line}"
