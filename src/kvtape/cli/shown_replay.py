"""How far a replay is: a line that changes on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from kvtape import amounts
from kvtape.cli.output import BarWatch, NoBars
from kvtape.replay.progress import Progress
from kvtape.tape.point import format_time

if TYPE_CHECKING:
    from rich.console import Console

_log = logging.getLogger(__name__)

_ON_TERMINAL = 0.5
_IN_LOG = 10.0


class Showing:
    """Shows a replay until it is cancelled."""

    def __init__(
        self,
        console: Console | None,
        bars: BarWatch | NoBars,
        progress: Progress,
        *,
        is_following: bool,
    ) -> None:
        self._console = console
        self._bars = bars
        self._progress = progress
        self._is_following = is_following
        self._seen = 0
        self._at = 0.0

    async def show(self) -> None:
        """Show it, again and again."""
        interval = _IN_LOG if self._console is None else _ON_TERMINAL
        while not self._progress.replid:  # noqa: ASYNC110 it is looked at now and then
            await trio.sleep(interval)
        self._at = trio.current_time()
        if self._console is None:
            while True:
                await trio.sleep(interval)
                _log.info("%s", self._line())
        from rich.live import Live
        from rich.text import Text

        self._bars.end()
        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            while True:
                await trio.sleep(interval)
                line = Text(self._line(), no_wrap=True, overflow="ellipsis")
                live.update(line, refresh=True)

    def _line(self) -> str:
        now, progress = trio.current_time(), self._progress
        rate = (progress.commands - self._seen) / max(now - self._at, 0.001)
        self._seen, self._at = progress.commands, now
        lag = progress.behind if self._is_following else progress.late
        parts = [
            f"offset {progress.offset}",
            format_time(progress.time),
            f"{rate:.0f}/s",
            f"{amounts.duration(lag)} {'behind' if self._is_following else 'late'}",
        ]
        if progress.round > 1:
            parts.append(f"round {progress.round}")
        parts += [f"{count} x {kind}" for kind, count in progress.errors.items()]
        parts += [f"{count} left out" for count in [progress.untold.total()] if count]
        return "  ".join(parts)
