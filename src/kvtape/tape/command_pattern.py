"""Naming commands by pattern: FLUSHALL, DEL user:*, "SET config:? *".

The name first, in any case and without wildcards; then patterns as KEYS takes them, of
the words that follow it, in order. Words behind those are not looked at. So `DEL a`
means `DEL a b`, too, and not `DEL b a`: a command is undone as a whole.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from kvtape.errors import UsageError
from kvtape.tape import command_table
from kvtape.tape.glob import Glob, parse_glob

# Without one of these what follows would mean something else.
NEEDED = frozenset({b"SELECT", b"EXEC"})


@dataclass(frozen=True, slots=True)
class CommandPattern:
    """A name in upper case, and what the words behind it must match."""

    text: str
    name: bytes
    globs: tuple[Glob, ...]

    def matches(self, words: Sequence[bytes]) -> bool:
        """Whether a command is one of those that the pattern means."""
        return (
            words[0].upper() == self.name
            and len(words) > len(self.globs)
            and all(map(Glob.matches, self.globs, self._compared(words)))
        )

    def _compared(self, words: Sequence[bytes]) -> Sequence[bytes]:
        """Return the words that are compared: a subcommand's name in upper case."""
        if len(words) > 1 and _has_subcommands(self.name):
            return [words[1].upper(), *words[2:]]
        return words[1:]


def parse_pattern(text: str) -> CommandPattern:
    """Read a pattern; UsageError for what is none. Quotes keep spaces together."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    lexer.escape = ""  # a backslash is the pattern's own
    try:
        words = [word.encode("utf-8", "surrogateescape") for word in lexer]
    except ValueError:
        raise UsageError(f"{text!r} is no pattern: a quote is not closed") from None
    if not words:
        raise UsageError("an empty pattern means no command: give one such as FLUSHALL")
    name = words[0].upper()
    if name in NEEDED:
        raise UsageError(
            f"{name.decode()} cannot be skipped: what follows it would mean something "
            "else. A transaction is skipped with its MULTI"
        )
    if len(words) > 1 and _has_subcommands(name):
        words[1] = words[1].upper()
    return CommandPattern(text, name, tuple(map(parse_glob, words[1:])))


def _has_subcommands(name: bytes) -> bool:
    return any(" " in command.name for command in command_table.named(name))
