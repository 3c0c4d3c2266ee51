"""The log on stderr: lines for people, or one JSON object a line for machines.

Every line that belongs to a source can name it, since the running task knows for which
it works. An event (kvtape.record.events) is an object of its fields; everything else is
the event "log" with a message. Fields never hold secrets: errors do not, and events are
made of errors and numbers.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from kvtape.tape.point import format_time

if TYPE_CHECKING:
    from rich.console import Console

_MS = 1000


# Tells which source the running task works for: kvtape.record.events.current_source.
SourceOf: TypeAlias = Callable[[], str | None]


def _no_source() -> None:
    """Only what records works for a source."""


class _Lines(logging.Formatter):
    """Lines for people, which name their source if there is one."""

    def __init__(self, form: str, source_of: SourceOf) -> None:
        super().__init__(form)
        self._source_of = source_of

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        source = self._source_of()
        if source is not None:
            record.message = f"{source}: {record.message}"
        return super().formatMessage(record)


class _Objects(logging.Formatter):
    """JSON objects: time, level, source, event, message, and the event's fields."""

    def __init__(self, source_of: SourceOf) -> None:
        super().__init__()
        self._source_of = source_of

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": format_time(int(record.created * _MS)),
            "level": record.levelname.lower(),
            "source": self._source_of(),
            "event": "log",
            "message": record.getMessage(),
        }
        event = getattr(record, "event", None)
        if event is not None:
            fields = dataclasses.asdict(event)
            # The time of the line is when it was told, not what it is about.
            fields = {"at" if key == "time" else key: fields[key] for key in fields}
            document |= fields | {"event": event.name}
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(document).decode()


def set_up_logging(
    console: Console | None,
    *,
    verbose: bool,
    as_json: bool = False,
    source_of: SourceOf = _no_source,
    named: bool = False,
) -> None:
    """Send the log to stderr: with times, and one line an event.

    An object has its source always, a line for people only if named.
    """
    level = logging.DEBUG if verbose else logging.INFO
    logger = logging.getLogger("kvtape")
    logger.setLevel(level)
    handler: logging.Handler
    names = source_of if named else _no_source
    if console is not None and not as_json:
        # Nothing else here needs rich.
        from rich.logging import RichHandler

        handler = RichHandler(console=console, show_path=False, show_level=False)
        handler.setFormatter(_Lines("%(message)s", names))
    else:
        handler = logging.StreamHandler(sys.stderr)
        form = "%(asctime)s %(levelname)s %(message)s"
        handler.setFormatter(_Objects(source_of) if as_json else _Lines(form, names))
    logger.handlers[:] = [handler]
