"""What is left out of a restore or a rescue as if never run, and what that leads to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvtape.cli.rows import JsonRows, TextRows
from kvtape.restore.undo import Touched, Undo
from kvtape.tape.commands import RecordedCommand


def lines(undo: Undo, touched: Touched | None) -> Iterator[str]:
    """Yield what is left out, and what of the rest may mean something else then."""
    if not undo.starts:
        return
    yield f"as if never run: {_commands(undo.commands)}"
    yield from _rows(undo.first, undo.commands)
    if touched is None:
        return
    if not touched.commands:
        yield "nothing later touched the same keys"
        return
    yield f"later on the same keys, and maybe not the same now: {touched.commands}"
    yield from _rows(touched.first, touched.commands)


def touched_document(touched: Touched) -> dict[str, object]:
    """Return the latter for a script."""
    first = [JsonRows().row(command) for command in touched.first]
    return {"commands": touched.commands, "first": first}


def _commands(count: int) -> str:
    return f"{count} command{'' if count == 1 else 's'}"


def _rows(first: Sequence[RecordedCommand], count: int) -> Iterator[str]:
    yield from map(TextRows().line, first)
    if count > len(first):
        yield f"{'…':>12} and {count - len(first)} more"
