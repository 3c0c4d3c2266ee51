"""Running kvtape's command line: within the tests where that will do, or as a program.

Within the tests it is the same main(), with its own arguments, environment and output;
what escapes it is a bug, and fails the test. As a program it costs a third of a
second, and is for signals, pipes and terminals.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvtape.__main__ import main

PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a verb ended, and what it said."""

    status: int
    out: str
    err: str

    def document(self) -> Any:  # noqa: ANN401
        """Return the one JSON document on stdout."""
        return json.loads(self.out)


def kvtape(*arguments: object, env: Mapping[str, str] | None = None) -> Outcome:
    """Run a verb within this process; no variable of kvtape's is set but env."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["kvtape", *map(str, arguments)]
    with (
        pytest.MonkeyPatch.context() as within,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        within.setattr(sys, "argv", argv)
        within.setattr(os, "environ", environment(env))
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    assert isinstance(status, int)
    return Outcome(status, out.getvalue(), err.getvalue())


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with kvtape's variables replaced."""
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KVTAPE_")
    }
    return {**others, "COLUMNS": "80", **(env or {})}


@contextmanager
def program(
    *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a verb as a program, which is killed if it still runs at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvtape", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(env),
        cwd=cwd,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> Outcome:
    """Wait until a program ends by itself."""
    out, err = process.communicate(timeout=PATIENCE)
    return Outcome(process.returncode, out, err)


def wait_for_line(process: subprocess.Popen[str], part: str) -> str:
    """Read a program's log until a line that has a part; AssertionError if none has."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if part in line:
            return line
    raise AssertionError(f"no {part!r} in {seen}")
