"""kvtape history: every recorded write to one key, and why it was deleted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from kvtape import amounts
from kvtape.audit.history import Beginning, Unread
from kvtape.audit.opened import open_audit
from kvtape.cli import options, output, ranges, rows
from kvtape.cli.listing import Missing
from kvtape.storage.commands import Damage
from kvtape.tape.key_expiry import Expiry
from kvtape.tape.key_history import Cause, Episode, Place
from kvtape.tape.point import format_time
from kvtape.tape.rdb import Key, type_name
from kvtape.tape.span import Hole


def history(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY", help="The key, as it is: no pattern.", show_default=False
        ),
    ],
    repo: options.Repo,
    source: options.Source = None,
    db: Annotated[
        int, typer.Option(metavar="N", min=0, help="The database that it is in.")
    ] = 0,
    from_offset: ranges.FromOffset = None,
    from_time: ranges.FromTime = None,
    to_offset: ranges.UpToOffset = None,
    to_time: ranges.UpToTime = None,
    to_latest: ranges.UpToLatest = False,
    values: options.Values = "full",
    json: options.JsonLines = False,
    skip_damaged: options.SkipDamaged = False,
    processes: options.Processes = None,
    config: options.Config = None,
) -> None:
    """Tell the story of one key: every write to it, and why it was deleted.

    It begins with what the first snapshot has of the key. Names that its value had
    before (RENAME, COPY, MOVE, SWAPDB) are followed back, and FLUSHALL and FLUSHDB are
    in it. No server is needed.

    The cause of a deletion is "expired" if its time had certainly come, "transaction"
    if it was part of one or of a script, "command" if no server does that by itself,
    and else "unknown": an eviction looks like any DEL. From Redis 7 and Valkey 8 on a
    script or transaction with a single write looks like a command.

    Who it was, the stream does not have: neither a user nor an address. An audit module
    of the server may, or the logs of what connects to it.
    """
    name = options.bytes_of(key)
    start = ranges.beginning(from_offset, from_time)
    end = ranges.end(to_offset, to_time, latest=to_latest)
    asked = open_audit(repo, source, start, end)
    missing = Missing(is_json=json, skips=skip_damaged)
    missing.tell_problems(asked)
    rows_shown = not json and sys.stdout.isatty()
    with output.bars(None if rows_shown else output.terminal()) as watch:
        story = asked.story((db, name), watch, processes)
        telling = _Telling(story.key, values, is_json=json)
        for item in story.items():
            match item:
                case Hole():
                    missing.tell_hole(item)
                case Damage():
                    missing.tell_damage(item)
                case Unread():
                    missing.tell_unread(item)
                case _:
                    for line in telling.lines(item):
                        output.print_line(line)
    if not telling.has_any and not json:
        elsewhere = ", ".join(map(str, sorted(story.elsewhere)))
        more = f", but in database {elsewhere} there is (--db)" if elsewhere else ""
        missing.note([f"no write to this key is recorded in database {db}{more}"])
    missing.end()


@dataclass(slots=True)
class _Telling:
    """Tells a story, for people or for scripts."""

    key: Place
    values: rows.Values
    is_json: bool
    has_any: bool = False

    def lines(self, item: Beginning | Episode) -> Iterator[str]:
        """Yield the lines of a part of the story."""
        self.has_any |= not isinstance(item, Beginning) or item.entry is not None
        if isinstance(item, Beginning):
            if self.is_json:
                yield rows.json_line(_beginning_document(item))
            else:
                yield from _beginning_lines(item)
        elif self.is_json:
            yield rows.json_line(self._episode(item))
        else:
            yield rows.TextRows(self.values).line(item.command)
            if item.cause is not None:
                yield rows.cut(f"{_INDENT}deleted: {_cause_text(item)}")
            elif item.place != self.key:
                shown = rows.quoted(item.place[1])
                yield rows.cut(f"{_INDENT}as {shown} in database {item.place[0]}")

    def _episode(self, episode: Episode) -> dict[str, object]:
        document = rows.JsonRows(self.values).row(episode.command)
        document["key"] = rows.text_or_base64(episode.place[1])
        document["effect"] = None if episode.effect is None else episode.effect.value
        if episode.cause is not None:
            document["cause"] = episode.cause
            document["expires"] = _time_of(episode.expiry)
        if episode.source is not None:
            document["from"] = rows.text_or_base64(episode.source[1])
            document["from_db"] = episode.source[0]
        return document


_INDENT = " " * 14

_TEXTS: dict[Cause, str] = {
    "expired": "expired",
    "transaction": "by a transaction or a script",
    "command": "by this command",
    "unknown": "cause unknown",
}


def _cause_text(episode: Episode) -> str:
    assert episode.cause is not None
    text = _TEXTS[episode.cause]
    when = _time_of(episode.expiry)
    if when is None or episode.cause in ("transaction", "command"):
        return text
    return f"{text}; its TTL ended {when}"


def _time_of(expiry: Expiry) -> str | None:
    return None if expiry.time is None else format_time(expiry.time)


# What a snapshot has.


def _beginning_lines(beginning: Beginning) -> Iterator[str]:
    name, entry = beginning.snapshot.name, beginning.entry
    db, key = beginning.place
    place = f"{name.offset:>12}  {format_time(name.time)} db{db}"
    yield rows.cut(f"{place}  snapshot: {rows.quoted(key)} {_entry_text(entry)}")
    if entry is not None and entry.expire_ms is not None:
        yield f"{_INDENT}expires {format_time(entry.expire_ms)}"


def _entry_text(entry: Key | None) -> str:
    if entry is None:
        return "not there"
    return f"{type_name(entry.type)} of {amounts.size(entry.value_size)}"


def _beginning_document(beginning: Beginning) -> dict[str, object]:
    name, entry = beginning.snapshot.name, beginning.entry
    db, key = beginning.place
    return {
        "replid": name.replid,
        "offset": name.offset,
        "time": format_time(name.time),
        "db": db,
        "key": rows.text_or_base64(key),
        "snapshot": None
        if entry is None
        else {
            "type": type_name(entry.type),
            "bytes": entry.value_size,
            "expires": None
            if entry.expire_ms is None
            else format_time(entry.expire_ms),
        },
    }
