"""kvtape check: what could go wrong, before recording and while it runs."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from kvtape.check.finding import Finding, Verdict, worst
from kvtape.check.survey import CheckOptions, run_checks
from kvtape.cli import options, output
from kvtape.cli.runner import run_unless_signal
from kvtape.errors import CheckError
from kvtape.record.acknowledge import AckOption
from kvtape.server.url import parse_source

_WIDTH = 80
_INDENT = " " * 6

_COLOURS: dict[Verdict, str] = {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "unknown": "cyan",
}


def check(
    repo: options.Repo,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The server, as for record. By default the one that the source was "
            "recorded from; without one, only the repository and the spool are "
            "checked.",
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
    password = options.read_password(password_file)
    tls = options.tls(tls_ca, tls_cert, tls_key, tls_server_name, any_name=tls_any_name)
    address = None
    if url is not None:
        address = parse_source(url).with_tls(tls).with_password(password)
        address = options.with_sentinel_login(
            address, sentinel_user, sentinel_password_file
        )
    chosen = CheckOptions(
        repo,
        address,
        source,
        spool,
        ack,
        options.parse_duration(sample),
        password,
        tls,
        options.parse_size(spool_limit),
        prefer,
    )
    console = output.stderr_console()
    with console.status("checking") if console.is_terminal else nullcontext():
        findings = run_unless_signal(lambda: run_checks(chosen))
    if json:
        output.print_json(document(findings))
    else:
        for line in lines(findings, has_colours=sys.stdout.isatty()):
            output.print_line(line)
    failed = [finding.name for finding in findings if finding.verdict == "fail"]
    if failed:
        raise CheckError(f"failed: {', '.join(failed)}")


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
                break_on_hyphens=False,
            )


def _sayable_together(finding: Finding) -> tuple[str, ...]:
    if finding.verdict == "unknown":
        return (finding.message, finding.hint)
    return (finding.name,)


def _told(verdict: str, text: str) -> Iterator[str]:
    """Wrap a text behind a verdict, which may hold colours that take no room."""
    room = _WIDTH - len("unknown  ")
    first, *others = textwrap.wrap(text, room, break_on_hyphens=False)
    yield f"{verdict}  {first}"
    for line in others:
        yield f"{' ' * len('unknown  ')}{line}"
