"""The options that say from where to where, and those that say which moment.

The first are of the verbs that read the stream, the others of those that load a state;
a moment is given by --to-offset to a restore, by --from-offset to a diff, each by the
name of its parameter.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from kvtape.errors import UsageError
from kvtape.tape.point import Point, parse_offset, parse_time

FromOffset = Annotated[
    str | None,
    typer.Option(
        metavar="[REPLID:]N",
        help="What ends behind N, as INFO replication shows master_repl_offset.",
        show_default=False,
    ),
]

FromTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="What was received after it: 2026-05-01T03:00:00Z, now-15m.",
        show_default=False,
    ),
]

UpToOffset = Annotated[
    str | None,
    typer.Option(
        "--to-offset",
        metavar="[REPLID:]N",
        help="What ends at or before N.",
        show_default=False,
    ),
]

UpToTime = Annotated[
    str | None,
    typer.Option(
        "--to-time",
        metavar="TIME",
        help="What was received by then.",
        show_default=False,
    ),
]

UpToLatest = Annotated[
    bool,
    typer.Option(
        "--to-latest",
        help="Up to the last recorded byte; the default.",
    ),
]


AtOffset = Annotated[
    str | None,
    typer.Option(
        metavar="[REPLID:]N",
        help="After every command that ends at or before N, as INFO replication "
        "shows master_repl_offset.",
        show_default=False,
    ),
]

AtTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="After everything received by then: 2026-05-01T03:00:00Z, now-15m.",
        show_default=False,
    ),
]

AtLatest = Annotated[
    bool,
    typer.Option(
        "--to-latest",
        help="The last recorded moment; the default.",
    ),
]


def beginning(from_offset: str | None, from_time: str | None) -> Point | None:
    """Return the point that a range begins at; None is where the recording does."""
    if from_offset is not None and from_time is not None:
        raise UsageError("give only one of --from-offset and --from-time")
    return _point(from_offset, from_time)


def end(to_offset: str | None, to_time: str | None, *, latest: bool) -> Point | None:
    """Return the point that a range, or a restore, ends at; None is the latest."""
    if (to_offset is not None) + (to_time is not None) + latest > 1:
        raise UsageError("give only one of --to-offset, --to-time and --to-latest")
    return _point(to_offset, to_time)


def _point(offset: str | None, when: str | None) -> Point | None:
    if offset is not None:
        return parse_offset(offset)
    return None if when is None else parse_time(when, int(time.time() * 1000))
