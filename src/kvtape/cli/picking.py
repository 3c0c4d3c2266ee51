"""The options that pick commands of the stream, of those verbs that do."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from kvtape.cli.options import bytes_of
from kvtape.errors import UsageError
from kvtape.tape import command_table
from kvtape.tape.query import may_be_listed

Command = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Commands of this name, such as DEL. Several times: any of them.",
        show_default=False,
    ),
]

Db = Annotated[
    list[int] | None,
    typer.Option(
        metavar="N",
        min=0,
        help="What is in this database. Several times: any of them.",
        show_default=False,
    ),
]

Publish = Annotated[
    bool,
    typer.Option(
        "--publish",
        help="PUBLISH and SPUBLISH, too, which write nothing.",
    ),
]


def command_name(name: str) -> bytes:
    """Return a name to look for; UsageError for what cannot be in any stream."""
    upper = name.upper()
    known = {known.partition(" ")[0] for known in command_table.names()}
    if upper in known and not may_be_listed(upper.encode()):
        raise UsageError(f"{upper} is left out: it writes nothing")
    # Modules give theirs a prefix and a dot, and there is no list of them.
    if upper in known or "." in upper:
        return bytes_of(upper)
    near = difflib.get_close_matches(upper, sorted(known), n=3)
    like = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"no server streams a command {name!r} to its replicas: it writes nothing, or "
        f"there is none (give its first word only){like}"
    )
