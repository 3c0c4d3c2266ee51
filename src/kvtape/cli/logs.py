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

import msgspec
from rich.console import Console
from rich.logging import RichHandler

from kvtape.record.events import current_source
from kvtape.tape.point import format_time

_MS = 1000


class _Lines(logging.Formatter):
    """Lines for people; named says whether they name their source."""

    def __init__(self, form: str, *, named: bool) -> None:
        super().__init__(form)
        self._named = named

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        source = current_source()
        if self._named and source is not None:
            record.message = f"{source}: {record.message}"
        return super().formatMessage(record)


class _Objects(logging.Formatter):
    """JSON objects: time, level, source, event, message, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": format_time(int(record.created * _MS)),
            "level": record.levelname.lower(),
            "source": current_source(),
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
    console: Console, *, verbose: bool, as_json: bool = False, named: bool = False
) -> None:
    """Send the log to stderr: with times, and one line an event."""
    level = logging.DEBUG if verbose else logging.INFO
    logger = logging.getLogger("kvtape")
    logger.setLevel(level)
    handler: logging.Handler
    if console.is_terminal and not as_json:
        handler = RichHandler(console=console, show_path=False, show_level=False)
        handler.setFormatter(_Lines("%(message)s", named=named))
    else:
        handler = logging.StreamHandler(sys.stderr)
        form = "%(asctime)s %(levelname)s %(message)s"
        handler.setFormatter(_Objects() if as_json else _Lines(form, named=named))
    logger.handlers[:] = [handler]
