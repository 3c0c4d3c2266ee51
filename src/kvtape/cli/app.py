"""The verbs of kvtape, each of which is imported when it is asked for.

All of them together take a third of a second to import, one alone half of that or less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvtape.cli import output

# In the order of the help. Each is a function in a module of its name.
VERBS = (
    "record",
    "check",
    "info",
    "audit",
    "history",
    "diff",
    "status",
    "restore",
    "replay",
    "demo",
)


class _Verbs(Mapping[str, Any]):
    """The commands by their names, which are known before any is imported."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        if name not in VERBS:
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


@cache
def _command(verb: str) -> Any:  # noqa: ANN401
    # Of an app with a single command, typer makes just that.
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command()(getattr(import_module(f"kvtape.cli.{verb}"), verb))
    return typer.main.get_command(alone)


class _Group(TyperGroup):
    """Has the mapping for its commands, so that whatever asks for them finds them."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(**{**settings, "commands": _Verbs()})


app = typer.Typer(
    name="kvtape",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(*, wanted: bool) -> None:
    if wanted:
        # No verb is to wait 10 ms for it.
        from importlib import metadata

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
