"""Where the commands of a batch are, found without parsing them.

Each command begins with the number of its words, as in `*3`, and each but the first
stands behind the end of a line: a *mark*. Where the bytes have as many marks as there
were commands when they were followed, none of them is part of a value. Then each is
where a command begins, and a search for a mark finds one from anywhere.

Where a value holds a mark, or most commands are wanted, or some have many words, all
are listed instead: by their heads, which are the bytes up to the end of their name; or,
if a value holds one of these, too, by parsing them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, compress, islice
from operator import add

from stringzilla import count as count_bytes
from stringzilla import find as find_bytes

from kvtape.replication.resp import packed_ends
from kvtape.tape.commands import Batch

# With how many words a command of a name is wanted; None is with no number of words.
LeastWords = Callable[[bytes], int | None]

# To search for each of so many marks takes as long as to list the commands.
_MOST_WORDS = 16
_MOST_FORMS = 16

# To look for every third command takes as long as to list all.
_MANY = 3

# A mark begins with the end of the line before.
_NEWLINE = b"\r\n"

# What a command of a single word begins with.
_ALONE = b"*1\r"


class Outline(ABC):
    """Where the commands of a batch begin and end, as offsets.

    Of those that are wanted starts tells where they begin, in order, and heads their
    heads, which read_head() reads.
    """

    starts: list[int]
    heads: list[bytes]

    @abstractmethod
    def __len__(self) -> int:
        """Return how many commands there are."""

    @abstractmethod
    def ends(self) -> list[int]:
        """Return where the commands end that are wanted."""

    @abstractmethod
    def end_of(self, start: int) -> int:
        """Return where the command ends that begins at an offset."""

    @abstractmethod
    def end_by(self, offset: int) -> int:
        """Return the last end of a command at or before an offset, or the start."""

    @abstractmethod
    def behind(self, start: int, number: int) -> int:
        """Return where about so many commands end that begin at an offset."""

    @abstractmethod
    def count(self, start: int, end: int) -> int:
        """Return how many commands there are from a start to an end."""

    def nth(self, start: int, number: int) -> int:
        """Return where the command begins that so many stand before, from one on."""
        for _ in range(number):
            start = self.end_of(start)
        return start


def outline(batch: Batch, least_words: LeastWords) -> Outline:
    """Return the outline of a batch; VerificationError where it is none of commands.

    least_words are those with which a command of a name, in upper case, is wanted.
    """
    return _searched(batch, least_words) or _listed(batch, least_words)


@lru_cache(maxsize=4096)
def read_head(head: bytes) -> tuple[bytes, int]:
    """Return the name that a head has, in upper case, and the number of words."""
    count, _, name = head.removesuffix(b"\r\n").split(b"\r\n", 2)
    return name.upper(), int(count[1:])


@lru_cache(maxsize=_MOST_WORDS)
def _marks(words: int) -> tuple[bytes, ...]:
    """Return the marks that commands of at most so many words have."""
    return tuple(b"\r\n*%d\r\n$" % number for number in range(1, words + 1))


@lru_cache(maxsize=64)
def _any_mark(marks: Sequence[bytes]) -> re.Pattern[bytes]:
    """Return a pattern for marks."""
    return re.compile(b"|".join(map(re.escape, marks)))


class _Searched(Outline):
    """Of bytes in which each mark is where a command begins."""

    def __init__(
        self,
        batch: Batch,
        marks: tuple[bytes, ...],
        commands: int,
        wanted: Sequence[tuple[int, bytes]],
    ) -> None:
        self.starts = [start for start, _ in wanted]
        self.heads = [head for _, head in wanted]
        self._start, self._data = batch.start, batch.data
        self._marks, self._any = marks, _any_mark(marks)
        self._commands = commands
        self._mean = -(-len(batch.data) // commands)

    def __len__(self) -> int:
        return self._commands

    def ends(self) -> list[int]:
        # One of a single word ends with its head.
        return [
            start + len(head) if head.startswith(_ALONE) else self.end_of(start)
            for start, head in zip(self.starts, self.heads, strict=True)
        ]

    def end_of(self, start: int) -> int:
        return self._begin_from(start + 1)

    def _begin_from(self, offset: int) -> int:
        """Return where the first command begins at or behind an offset, or the end."""
        at = max(0, offset - self._start - len(_NEWLINE))
        found = self._any.search(self._data, at)
        at = len(self._data) if found is None else found.start() + len(_NEWLINE)
        return self._start + at

    def end_by(self, offset: int) -> int:
        at = offset - self._start
        if at >= len(self._data):
            return self._start + len(self._data)
        begin = at - len(_NEWLINE)
        while begin >= 0:
            if self._any.match(self._data, begin):
                return self._start + begin + len(_NEWLINE)
            begin = self._data.rfind(_NEWLINE, 0, begin + 1)
        return self._start

    def behind(self, start: int, number: int) -> int:
        return self._begin_from(start + number * self._mean)

    def count(self, start: int, end: int) -> int:
        if start == end:
            return 0
        first, last, commands = start - self._start, end - self._start, 1
        for mark in self._marks:
            commands += count_bytes(self._data, mark, first, last)
        return commands


class _Listed(Outline):
    """Of commands of which each one's end is known, and its head."""

    def __init__(
        self, start: int, ends: list[int], heads: list[bytes], least_words: LeastWords
    ) -> None:
        self._starts, self._ends = [start, *ends[:-1]], ends
        wanted = _wanted(set(heads), least_words)
        # Nothing here runs in Python for each command.
        self._are_wanted = list(map(wanted.__contains__, heads))
        self.starts = list(compress(self._starts, self._are_wanted))
        self.heads = list(compress(heads, self._are_wanted))

    def __len__(self) -> int:
        return len(self._ends)

    def ends(self) -> list[int]:
        return list(compress(self._ends, self._are_wanted))

    def end_of(self, start: int) -> int:
        return self._ends[bisect_left(self._starts, start)]

    def end_by(self, offset: int) -> int:
        number = bisect_right(self._ends, offset)
        return self._ends[number - 1] if number else self._starts[0]

    def behind(self, start: int, number: int) -> int:
        last = bisect_left(self._starts, start) + number - 1
        return self._ends[min(last, len(self._ends) - 1)]

    def count(self, start: int, end: int) -> int:
        return bisect_left(self._starts, end) - bisect_left(self._starts, start)


def _searched(batch: Batch, least_words: LeastWords) -> Outline | None:
    """Return the outline by marks; None if they do not tell, or listing is faster."""
    commands, most = batch.commands, batch.most_words
    words = max(most.values(), default=_MOST_WORDS + 1)
    if not commands or words > _MOST_WORDS:
        return None
    forms = {
        (number, len(name))
        for name, up_to in most.items()
        if (least := least_words(name)) is not None
        for number in range(least, up_to + 1)
    }
    counts = {mark: count_bytes(batch.data, mark) for mark in _marks(words)}
    if len(forms) > _MOST_FORMS or sum(counts.values()) + 1 != commands:
        return None
    begins = {b"*%d\r\n$%d\r\n" % form: form[1] for form in forms}
    if sum(count_bytes(batch.data, form) for form in begins) * _MANY > commands:
        return None
    found: list[tuple[int, bytes]] = []
    for form, name in begins.items():
        found += _begins(batch.data, form, name)
    found.sort()
    wanted = _wanted({head for _, head in found}, least_words)
    chosen = [(batch.start + at, head) for at, head in found if head in wanted]
    # A single command has none before it.
    marks = tuple(mark for mark, count in counts.items() if count) or tuple(counts)
    return _Searched(batch, marks, commands, chosen)


def _begins(data: bytes, form: bytes, name: int) -> list[tuple[int, bytes]]:
    """Return where commands begin that have a form, which is more than a mark has.

    With each is its head, for names of so many bytes.
    """
    found = []
    length = len(form) + name + len(_NEWLINE)
    if data.startswith(form):
        found.append((0, data[:length]))
    form = _NEWLINE + form
    at = find_bytes(data, form)
    while at >= 0:
        begin = at + len(_NEWLINE)
        found.append((begin, data[begin : begin + length]))
        at = find_bytes(data, form, begin)
    return found


def _wanted(heads: Iterable[bytes], least_words: LeastWords) -> set[bytes]:
    """Return those of some heads whose commands are wanted."""
    wanted = set()
    for head in heads:
        name, words = read_head(head)
        if (least := least_words(name)) is not None and words >= least:
            wanted.add(head)
    return wanted


def _listed(batch: Batch, least_words: LeastWords) -> Outline:
    ends, heads = _by_heads(batch) or _by_parsing(batch)
    return _Listed(batch.start, ends, heads, least_words)


def _by_heads(batch: Batch) -> tuple[list[int], list[bytes]] | None:
    """Return the ends and heads of all commands; None if their names do not tell.

    Each command begins with its head. So where there are as many heads as there were
    commands, none of them is part of a value.
    """
    if not batch.commands:
        return None
    first, *parts = _any_head(frozenset(batch.most_words)).split(batch.data)
    heads = parts[::2]
    if first or len(heads) != batch.commands:
        return None
    lengths = map(add, map(len, heads), map(len, parts[1::2]))
    ends = islice(accumulate(lengths, initial=batch.start), 1, None)
    return list(ends), heads


@lru_cache(maxsize=64)
def _any_head(names: frozenset[bytes]) -> re.Pattern[bytes]:
    """Return a pattern for the heads of commands of these names."""
    known = b"|".join(map(re.escape, names))
    return re.compile(rb"(\*\d{1,10}\r\n\$\d{1,10}\r\n(?i:%b)\r\n)" % known)


def _by_parsing(batch: Batch) -> tuple[list[int], list[bytes]]:
    commands = batch.parsed()
    heads = [
        b"*%d\r\n$%d\r\n%b\r\n" % (len(words), len(words[0]), words[0])
        for words in commands
    ]
    return packed_ends(commands, batch.start), heads
