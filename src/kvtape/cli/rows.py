"""How a recorded command is shown: as a line for people, as JSON, as CSV.

These are sent to the processes that read the recording, so that they write the text,
too, which takes longer than to find what it is about.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from kvtape.replication.tracker import NO_DB
from kvtape.tape.command_table import find
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.point import format_time
from kvtape.tape.query import is_known

Values: TypeAlias = Literal["full", "sha256", "none"]

WIDTH = 80

# What needs no quotes when a command is shown.
_PLAIN = re.compile(rb"[!#-&(-;=-\[\]-~]+")

# What JSON lets pass and a terminal may obey.
_CONTROL = re.compile("[\x7f-\x9f]")

# No word is shown longer than this, so that a long value does not hide the next ones.
_LONGEST_WORD = 32

# How wide the interval in which something was written must be to be worth a sign (ms).
WIDE = 1000

CSV_HEADER = (
    "replid,start_offset,end_offset,time,written_after,db,transaction,known,command,"
    "arguments"
)


@dataclass(frozen=True, slots=True)
class Hidden:
    """What is told of a word instead of the word."""

    bytes: int
    sha256: str | None = None


Word: TypeAlias = bytes | Hidden


def shown_words(words: Sequence[bytes], values: Values) -> Sequence[Word]:
    """Return the words of a command with its values as they are to be shown.

    Its name (and that of its subcommand) and its keys are always shown, and all else is
    a value: options and fields, too, since nothing says for certain which words those
    are.
    """
    if values == "full":
        return words
    entry = find(words) if is_known(words) else None
    open_words = {0}
    if entry is not None:
        open_words |= set(range(1 + entry.name.count(" ")))
        open_words |= {use.at for use in entry.keys(words)}
    return [
        word if at in open_words else _hidden(word, values)
        for at, word in enumerate(words)
    ]


def _hidden(word: bytes, values: Values) -> Hidden:
    if values == "none":
        return Hidden(len(word))
    return Hidden(len(word), hashlib.sha256(word).hexdigest())


# For scripts.


@dataclass(frozen=True, slots=True)
class JsonRows:
    """A JSON document a line."""

    values: Values = "full"

    def __call__(self, commands: Sequence[RecordedCommand]) -> str:
        """Return the lines of some commands."""
        return "".join(f"{json_line(self.row(command))}\n" for command in commands)

    def row(self, command: RecordedCommand) -> dict[str, object]:
        """Return the document of a command."""
        words = shown_words(command.words, self.values)
        document: dict[str, object] = {
            "replid": command.replid,
            "start_offset": command.start,
            "end_offset": command.end,
            "time": format_time(command.time),
            "written_after": format_time(command.after),
            "db": None if command.db == NO_DB else command.db,
            "transaction": command.transaction,
            "command": [_json_word(word) for word in words],
        }
        if not is_known(command.words):
            document["known"] = False
        return document


def json_line(document: dict[str, object]) -> str:
    """Return a document in one line, which does nothing to a terminal."""
    line = msgspec.json.encode(document).decode()
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def text_or_base64(data: bytes) -> str | dict[str, str]:
    """Return bytes as JSON has them: as text if they are UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _json_word(word: Word) -> object:
    if isinstance(word, bytes):
        return text_or_base64(word)
    if word.sha256 is None:
        return {"bytes": word.bytes}
    return {"sha256": word.sha256, "bytes": word.bytes}


@dataclass(frozen=True, slots=True)
class CsvRows:
    """A row of CSV_HEADER each; arguments are as redis-cli takes them."""

    values: Values = "full"

    def __call__(self, commands: Sequence[RecordedCommand]) -> str:
        """Return the rows of some commands."""
        return "".join(f"{csv_line(self.row(command))}\n" for command in commands)

    def row(self, command: RecordedCommand) -> Sequence[object]:
        """Return the fields of a command."""
        name, *arguments = shown_words(command.words, self.values)
        return (
            command.replid,
            command.start,
            command.end,
            format_time(command.time),
            format_time(command.after),
            "" if command.db == NO_DB else command.db,
            command.transaction,
            "yes" if is_known(command.words) else "no",
            quoted(name),
            " ".join(map(quoted, arguments)),
        )


def csv_line(fields: Sequence[object]) -> str:
    """Return a row of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()


# For people.


@dataclass(frozen=True, slots=True)
class TextRows:
    """A line each, cut to the width of a terminal."""

    values: Values = "full"

    def __call__(self, commands: Sequence[RecordedCommand]) -> str:
        """Return the lines of some commands."""
        return "".join(f"{self.line(command)}\n" for command in commands)

    def line(self, command: RecordedCommand) -> str:
        """Return the line of a command."""
        db = "?" if command.db == NO_DB else command.db
        when = f"{'~' if is_wide(command) else ' '}{format_time(command.time)}"
        within = " " if command.transaction is None else "│"
        known = "" if is_known(command.words) else "(unknown) "
        place = f"{command.start:>12} {when} db{db} {within}{known}"
        return cut(f"{place}{shown(command.words, self.values)}")


def is_wide(command: RecordedCommand) -> bool:
    """Whether it is not known to the second when a command was written."""
    return command.time - command.after > WIDE


def shown(words: Sequence[bytes], values: Values = "full") -> str:
    """Return a command as redis-cli would take it, with long words shortened."""
    return " ".join(map(_shortened, shown_words(words, values)))


def cut(line: str) -> str:
    """Return a line that fits into a terminal's width."""
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def quoted(word: Word) -> str:
    """Return a word as redis-cli would take it; what is hidden in angle brackets."""
    if isinstance(word, bytes):
        return word.decode("ascii") if _PLAIN.fullmatch(word) else _escaped(word)
    digest = "" if word.sha256 is None else f"sha256 {word.sha256}, "
    return f"<{digest}{word.bytes} bytes>"


def _shortened(word: Word) -> str:
    if isinstance(word, Hidden):
        digest = "" if word.sha256 is None else f"sha256 {word.sha256[:12]}…, "
        return f"<{digest}{word.bytes} bytes>"
    head = quoted(word[:_LONGEST_WORD])
    return head if len(word) <= _LONGEST_WORD else f"{head}…"


def _escaped(word: bytes) -> str:
    return '"' + "".join(map(_escaped_byte, word)) + '"'


def _escaped_byte(byte: int) -> str:
    character = chr(byte)
    if character in '"\\':
        return f"\\{character}"
    is_plain = character.isascii() and character.isprintable()
    return character if is_plain else f"\\x{byte:02x}"
