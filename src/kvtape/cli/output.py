"""What a person or a script sees: text and tables, JSON, logs, progress.

Data goes to stdout, everything else to stderr. Tables, progress and colour appear on a
terminal only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import typer

from kvtape.errors import RepositoryError
from kvtape.progress import Advance, NoWatch

# Importing rich takes 25 ms, and only a terminal needs it.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def terminal() -> Console | None:
    """Return the console for everything that is not data; None without a terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    return console if console.is_terminal else None


def stdout_console() -> Console:
    """Return the console for data that is shown again and again."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def print_line(line: str) -> None:
    """Print a line of data, at once: somebody may wait for it at the end of a pipe.

    Where nobody does any more, the program ends as if all had been read.
    """
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer would be written again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
    except OSError as error:
        raise RepositoryError(f"cannot write the output: {error.strerror}") from None


def note(text: str, console: Console | None) -> None:
    """Say what to know of an answer, on stderr: above the bars of a terminal."""
    if console is None:
        sys.stderr.write(f"note: {text}\n")
    else:
        console.print(f"note: {text}", soft_wrap=True)


def alarmed(text: str) -> str:
    """Return text as it is shown where somebody has to do something: red."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return typer.style(text, fg=typer.colors.RED)
    return text


def print_json(document: object, *, one_line: bool = False) -> None:
    """Print a document as JSON, indented on a terminal and in one line elsewhere."""
    content = msgspec.json.encode(document)
    if sys.stdout.isatty() and not one_line:
        content = msgspec.json.format(content, indent=2)
    print_line(content.decode())


class BarWatch:
    """Shows each stage of a long work as a bar, with bytes and rate."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, name: str, length: int) -> Advance:
        """Show a new stage."""
        task = self._progress.add_task(name, total=length)

        def advance(count: int) -> None:
            self._progress.advance(task, count)

        return advance

    def end(self) -> None:
        """Take the bars away, as where something else is shown from now on."""
        self._progress.stop()


class NoBars(NoWatch):
    """Shows nothing, as there is no terminal."""

    def end(self) -> None:
        """Take nothing away."""


@contextmanager
def bars(console: Console | None) -> Iterator[BarWatch | NoBars]:
    """Show the stages of a long work on a terminal, and nothing elsewhere."""
    if console is None:
        yield NoBars()
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    progress = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        yield BarWatch(progress)
