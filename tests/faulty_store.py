"""A store that fails, or ends the program, at the call that it is told to.

faulty://FOLDER is a folder of this machine, reached as a store of somebody else's:
through fsspec, with an upload and a rename for each object. Calls are counted, those
that one call makes of others not.

Run as a program it records the story of telling.py again and again, each time in a
process of its own that is ended, as by kill -9, at a later call to the store, until one
is left to its end: python faulty_store.py FOLDER before|after.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import fsspec
import trio
from fsspec.implementations.local import LocalFileSystem

from telling import be_impatient, record, teller

When = Literal["before", "after"]

KILLED: Final = 9


class FaultyFileSystem(LocalFileSystem):  # type: ignore[misc]
    """A folder whose at-th call does what fail says, before or after its effect."""

    protocol = "faulty"
    cachable = False
    at = 0  # counted from 1; 0 is never
    when: When = "before"
    fail: Callable[[], None]
    calls = 0
    _inside = threading.local()
    _lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:  # noqa: ANN401
        path = str(path).removeprefix("faulty://")
        stripped: str = LocalFileSystem._strip_protocol(path)
        return stripped


def _counted(name: str) -> Callable[..., Any]:
    inner = getattr(LocalFileSystem, name)

    def call(self: FaultyFileSystem, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        kind, inside = FaultyFileSystem, FaultyFileSystem._inside
        if getattr(inside, "yes", False):
            return inner(self, *args, **options)
        with kind._lock:
            kind.calls += 1
            is_it = kind.calls == kind.at
        if is_it and kind.when == "before":
            kind.fail()
        inside.yes = True
        try:
            return inner(self, *args, **options)
        finally:
            inside.yes = False
            if is_it and kind.when == "after":
                kind.fail()

    return call


_CALLS = ("info", "ls", "cat_file", "open", "makedirs", "pipe_file", "put_file", "mv")
for _name in _CALLS:
    setattr(FaultyFileSystem, _name, _counted(_name))


def register() -> type[FaultyFileSystem]:
    """Make faulty:// a store of this process, that does not fail yet."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    FaultyFileSystem.at = FaultyFileSystem.calls = 0
    return FaultyFileSystem


def _record_and_die(folder: Path, at: int, when: When) -> None:
    kind = register()
    kind.at, kind.when = at, when
    kind.fail = lambda: os._exit(KILLED)
    trio.run(record, teller(), f"faulty://{folder / 'repo'}", folder / "spool")


def main(top: Path, when: When) -> None:
    """Die at each call in turn; the folders are named after the number of the call."""
    be_impatient()
    at = 0
    while True:
        at += 1
        folder = top / str(at)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            _record_and_die(folder, at, when)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if (status := os.waitstatus_to_exitcode(status)) != KILLED:
            sys.exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "before" if sys.argv[2] == "before" else "after")
