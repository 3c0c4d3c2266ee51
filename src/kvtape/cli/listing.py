"""The rows and counts of an audit, with what is missing among them.

Whatever is not in the answer is said: what is not recorded at the beginning, what is
damaged in its place; to people on stderr, to scripts in the JSON as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from kvtape import amounts
from kvtape.audit.count import By, Count, Counting, Totals, totals
from kvtape.audit.history import Unread
from kvtape.audit.opened import Audit
from kvtape.audit.search import Part, Search, last_found, search
from kvtape.cli import output, rows
from kvtape.errors import VerificationError
from kvtape.storage.commands import Damage
from kvtape.storage.parallel import Job
from kvtape.tape.commands import RecordedCommand
from kvtape.tape.point import format_time
from kvtape.tape.query import Query
from kvtape.tape.span import Hole

Made = TypeVar("Made")

Format: TypeAlias = Literal["text", "json", "csv"]


def rows_of(
    form: Format, values: rows.Values
) -> Callable[[Sequence[RecordedCommand]], str]:
    """Return what makes lines of commands in a format."""
    if form == "json":
        return rows.JsonRows(values)
    return rows.CsvRows(values) if form == "csv" else rows.TextRows(values)


@dataclass(slots=True)
class Missing:
    """Says what an answer lacks: to people on stderr, to scripts in the JSON, too.

    With skips, what is damaged is left out, and end() is a VerificationError then;
    without, it is one at once.
    """

    is_json: bool
    skips: bool
    _damaged: int = 0
    _documents: int = 0

    def tell_problems(self, asked: Audit) -> None:
        """Say what of the recording is no good, and where it ends before the range."""
        for problem in asked.catalogue.problems:
            self._tell_document(f"{asked.folder.url}/{problem}")
        self.note(_ends(asked))

    def _tell_document(self, problem: str) -> None:
        """Say that what describes the recording is damaged: an answer may lack of it.

        Nobody knows whether it does, as what it says is not known.
        """
        if not self.skips:
            raise VerificationError(f"{problem}; --skip-damaged goes on without it")
        self._documents += 1
        if self.is_json:
            output.print_line(rows.json_line({"damaged": problem}))
        self.note([f"something is left out: {problem}"])

    def tell_hole(self, hole: Hole) -> None:
        """Say what is not recorded."""
        if self.is_json:
            output.print_line(rows.json_line(_hole_document(hole)))
        self.note([_hole_text(hole)])

    def tell_unread(self, unread: Unread) -> None:
        """Say which snapshot is beyond us: newer, and not damaged."""
        name = unread.snapshot.name
        if self.is_json:
            document = {
                "replid": name.replid,
                "offset": name.offset,
                "time": format_time(name.time),
                "unread": unread.reason,
            }
            output.print_line(rows.json_line(document))
        self.note(
            [
                f"the snapshot at {name.offset} of {name.replid} is newer than this "
                f"kvtape ({unread.reason}): what it has of the key, also the TTL, is "
                "not known here; use a newer kvtape"
            ]
        )

    def tell_damage(self, damage: Damage) -> None:
        """Say what cannot be read."""
        # Of what is no part of the stream, as a snapshot, there are no offsets.
        offsets = f"offsets {damage.start} to {damage.end} of {damage.replid}"
        what = offsets if damage.start < damage.end else "it"
        if not self.skips:
            raise VerificationError(
                f"{damage.reason}; --skip-damaged goes on without {what}"
            )
        self._damaged += 1
        if self.is_json:
            output.print_line(rows.json_line(_damage_document(damage)))
        left_out = f"{offsets} are" if damage.start < damage.end else "something is"
        self.note([f"{left_out} left out: {damage.reason}"])

    def end(self) -> None:
        """Say at the end that something was left out."""
        counts = ((self._damaged, "range"), (self._documents, "document"))
        parts = [
            f"{count} damaged {name}{'s' * (count > 1)}"
            for count, name in counts
            if count
        ]
        if parts:
            verb = "was" if self._damaged + self._documents == 1 else "were"
            raise VerificationError(
                f"what is shown is not complete: {' and '.join(parts)} {verb} left out"
            )

    def note(self, notes: Iterable[str]) -> None:
        """Say something about an answer."""
        console = output.terminal()
        for note in notes:
            output.note(note, console)


@dataclass(slots=True)
class Listing:
    """One audit: what is asked for, and what could not be read on the way."""

    asked: Audit
    query: Query
    form: Format
    values: rows.Values
    limit: int | None
    processes: int | None
    missing: Missing
    _shown: int = 0

    def begin(self) -> None:
        """Say what is not recorded of the range."""
        self.missing.tell_problems(self.asked)
        for hole in self.asked.span.holes:
            self.missing.tell_hole(hole)

    def show(self) -> None:
        """List from the front."""
        if self.form == "csv":
            output.print_line(rows.CSV_HEADER)
        job = Search(self.query, rows_of(self.form, self.values))
        for text in self._made(job):
            lines = text.split("\n")[:-1]
            if self.limit is not None:
                lines = lines[: self.limit - self._shown]
            self._shown += len(lines)
            output.print_line("\n".join(lines))
            if self._shown == self.limit:
                return

    def show_last(self, count: int) -> None:
        """List what is found from the back, in order."""
        found, damaged = last_found(
            self.asked.folder, self.asked.span, self.query, count
        )
        for damage in damaged:
            self.missing.tell_damage(damage)
        if self.form == "csv":
            output.print_line(rows.CSV_HEADER)
        self._shown = len(found)
        if found:
            output.print_line(rows_of(self.form, self.values)(found).removesuffix("\n"))

    def count(self, by: By, depth: int) -> None:
        """Count, and show the counts."""
        with totals() as sums:
            for counts in self._made(Counting(self.query, by, depth=depth)):
                sums.add(counts)
            for line in _count_lines(sums, by, self.form, self.limit):
                self._shown += 1
                output.print_line(line)

    def end(self) -> None:
        """Say how it ended; VerificationError if something had to be left out."""
        if not self._shown and self.form == "text":
            self.missing.note([_NOTHING])
        self.missing.end()

    def _made(self, job: Job[Part[Made]]) -> Iterator[Made]:
        """Yield what is made of all that is found."""
        folder, span = self.asked.folder, self.asked.span
        total = sum(slice_.end - slice_.start for slice_ in span.slices)
        parts = search(folder, span, job, self.processes)
        # Where rows are shown as they come, they are the progress.
        shown = self.form == "text" and sys.stdout.isatty()
        console = None if shown else output.terminal()
        with closing(parts), output.bars(console) as bars:
            advance = bars.stage("reading", total)
            for part in parts:
                advance(part.length)
                if isinstance(part.content, Damage):
                    self.missing.tell_damage(part.content)
                elif part.content is not None:
                    yield part.content


_NOTHING = (
    "nothing was found; a server streams some commands as others: EXPIRE as PEXPIREAT, "
    "SETEX as SET, SPOP as SREM, and scripts as what they did"
)


def _ends(asked: Audit) -> Iterator[str]:
    """Yield where a recording begins after, or ends before, the times asked for.

    That nothing was written and that nobody recorded it look the same in the rows.
    """
    stored = [name for names in asked.catalogue.segments.values() for name in names]
    first = min(name.first for name in stored)
    if asked.span.after is not None and asked.span.after < first:
        yield f"the first byte that is recorded was received at {format_time(first)}"
    last = max(name.last for name in stored)
    if asked.span.until is not None and asked.span.until > last:
        yield f"the last byte that is recorded was received at {format_time(last)}"


def _hole_text(hole: Hole) -> str:
    place = f"of {hole.replid} from offset {hole.start}"
    if hole.end_replid == hole.replid:
        place += f" to {hole.end}"
    else:
        place += f" up to offset {hole.end} of {hole.end_replid}"
    why = "" if hole.reason is None else f": {hole.reason}"
    return (
        f"nothing is recorded {place}, between {format_time(hole.start_time)} and "
        f"{format_time(hole.end_time)}{why}"
    )


def _hole_document(hole: Hole) -> dict[str, object]:
    return {
        "replid": hole.replid,
        "start_offset": hole.start,
        "end_offset": hole.end if hole.end_replid == hole.replid else None,
        "start_time": format_time(hole.start_time),
        "end_time": format_time(hole.end_time),
        "continued_as": hole.end_replid,
        "gap": hole.reason or "unknown",
    }


def _damage_document(damage: Damage) -> dict[str, object]:
    return {
        "replid": damage.replid,
        "start_offset": damage.start,
        "end_offset": damage.end,
        "damaged": damage.reason,
    }


# Counts.


def _count_lines(
    sums: Totals, by: By, form: Format, limit: int | None
) -> Iterator[str]:
    counts = sums.ordered(by, limit)
    if form == "json":
        for count in counts:
            yield rows.json_line(
                {
                    by: _group_of_json(count, by),
                    "commands": count.commands,
                    "bytes": count.bytes,
                }
            )
    elif form == "csv":
        yield f"{by},commands,bytes"
        for count in counts:
            yield rows.csv_line([_group(count, by), count.commands, count.bytes])
    else:
        yield f"{'commands':>12} {'bytes':>10}  {by}"
        for count in counts:
            size = amounts.size(count.bytes)
            line = f"{count.commands:>12} {size:>10}  {_group(count, by) or '(none)'}"
            yield rows.cut(line)


def _group(count: Count, by: By) -> str:
    match count.group:
        case bytes():
            return rows.quoted(count.group)
        case int() if by == "minute":
            return format_time(count.group)
        case _:
            return ""


def _group_of_json(count: Count, by: By) -> object:
    if isinstance(count.group, bytes):
        return rows.text_or_base64(count.group)
    return _group(count, by) or None
