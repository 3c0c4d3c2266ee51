"""kvtape audit: the recorded writes, as commands.

A row is a command as the server sent it to its replicas. Brackets (MULTI, EXEC) and
what changes no key (PING, SELECT, REPLCONF, PUBLISH) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from kvtape.cli import options, output
from kvtape.errors import UsageError
from kvtape.storage.commands import RecordedCommand, commands_behind
from kvtape.storage.lost import lost as lost_of
from kvtape.storage.repository import SourceFolder, open_repository
from kvtape.tape.orphans import Orphan, Unknown, unknown
from kvtape.tape.point import format_time

_WIDTH = 80

# What needs no quotes when a command is shown.
_PLAIN = re.compile(rb"[!#-&(-\[\]-~]+")

# No word is shown longer than this, so that a long value does not hide the next ones.
_LONGEST_WORD = 32


def audit(
    repo: options.Repo,
    source: options.Source = None,
    orphaned: Annotated[
        bool,
        typer.Option(
            "--orphaned",
            help="The writes that failovers lost: recorded of a server whose successor "
            "does not have them.",
        ),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one document a line.")
    ] = False,
    config: options.Config = None,
) -> None:
    """List recorded writes: with --orphaned, exactly those that failovers lost.

    No server is needed. Each row has the offset that it begins at; restore --to-offset
    REPLID:OFFSET is the moment before it. Where a full resync left it unknown what was
    lost, that is said: in JSON by a line with "orphaned": "unknown".
    """
    if not orphaned:
        raise UsageError("say which writes to list: --orphaned")
    folder = open_repository(repo).source(source)
    catalogue = folder.catalogue()
    lost: list[Orphan | Unknown] = [*lost_of(folder, catalogue), *unknown(catalogue)]
    lost.sort(key=lambda one: one.time)
    for one in lost:
        for line in _json_lines(folder, one) if json else _lines(folder, one):
            output.print_line(line)
    if not lost and not json:
        output.print_line("no failover lost anything that is recorded")


def _writes(folder: SourceFolder, orphan: Orphan) -> Iterator[RecordedCommand]:
    return (
        command
        for command in commands_behind(folder, orphan.slices)
        if command.is_write
    )


# For scripts.


def _json_lines(folder: SourceFolder, lost: Orphan | Unknown) -> Iterator[str]:
    if isinstance(lost, Unknown):
        yield _line_of(
            {
                "replid": lost.replid,
                "orphaned": "unknown",
                "continued_as": lost.successor,
                "time": format_time(lost.time),
            }
        )
        return
    for command in _writes(folder, lost):
        yield _line_of(row(command))


def row(command: RecordedCommand) -> dict[str, object]:
    """Return the JSON document of a command."""
    return {
        "replid": command.replid,
        "start_offset": command.start,
        "end_offset": command.end,
        "time": format_time(command.time),
        "db": command.db,
        "command": [output.text_or_base64(word) for word in command.words],
    }


def _line_of(document: dict[str, object]) -> str:
    return msgspec.json.encode(document).decode()


# For people.


def _lines(folder: SourceFolder, lost: Orphan | Unknown) -> Iterator[str]:
    if isinstance(lost, Unknown):
        yield f"history {lost.replid or 'unknown'}"
        yield f"  goes on as {lost.successor}"
        # A replica that took a snapshot does not say whose history it came from.
        yield "  (which may hold some of what is listed above, after all)"
        yield f"  by a full resync at {format_time(lost.time)}; orphaned: unknown"
        return
    yield f"history {lost.replid}"
    yield f"  goes on as {lost.successor}"
    yield f"  forked at {lost.fork}, {format_time(lost.time)}"
    count = 0
    for count, command in enumerate(_writes(folder, lost), start=1):  # noqa: B007
        yield line(command)
    yield f"  orphaned: {lost.start} to {lost.end}, {count} writes"


def line(command: RecordedCommand) -> str:
    """Return a line about a command, cut to the width of a terminal."""
    place = f"  {command.start} {format_time(command.time)} db{command.db}"
    words = " ".join(map(_shown, command.words))
    room = _WIDTH - len(place) - 1
    return f"{place} {words if len(words) <= room else words[: room - 1] + '…'}"


def _shown(word: bytes) -> str:
    """Return a word as redis-cli would take it, shortened."""
    head = word[:_LONGEST_WORD]
    text = head.decode("ascii") if _PLAIN.fullmatch(head) else _quoted(head)
    return text if len(word) <= _LONGEST_WORD else f"{text}…"


def _quoted(word: bytes) -> str:
    return '"' + "".join(map(_escaped, word)) + '"'


def _escaped(byte: int) -> str:
    if chr(byte) in '"\\':
        return f"\\{chr(byte)}"
    return (
        chr(byte)
        if chr(byte).isascii() and chr(byte).isprintable()
        else f"\\x{byte:02x}"
    )
