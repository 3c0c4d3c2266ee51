"""The verbs of kvtape."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from kvtape.cli import output
from kvtape.cli.audit import audit
from kvtape.cli.check import check
from kvtape.cli.demo import demo
from kvtape.cli.diff import diff
from kvtape.cli.history import history
from kvtape.cli.info import info
from kvtape.cli.record import record
from kvtape.cli.replay import replay
from kvtape.cli.restore import restore
from kvtape.cli.status import status

app = typer.Typer(
    name="kvtape",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(*, wanted: bool) -> None:
    if wanted:
        output.print_line(f"kvtape {metadata.version('kvtape')}")
        raise typer.Exit


@app.callback()
def kvtape(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Record every write to a Redis or Valkey server, and bring any moment back."""


app.command()(record)
app.command()(check)
app.command()(info)
app.command()(audit)
app.command()(history)
app.command()(diff)
app.command()(status)
app.command()(restore)
app.command()(replay)
app.command()(demo)
