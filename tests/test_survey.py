"""Estimating what a restore takes reads no command from the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtape.restore.survey import estimate, survey
from kvtape.tape.point import ToOffset
from recording import THEN, Tape
from tapes import command

# A value that does not fit into a frame of the segment, and what follows in the last.
FIRST = command("SELECT", "0") + command("SET", "before", "1")
LARGE = command("SET", "large", "x" * 1000)
LAST = [command("INCR", "n"), command("INCR", "n"), command("DEL", "n")]


@pytest.mark.parametrize("commands", [3, 4, 5, 6])
def test_a_plan_that_ends_in_the_last_frame_of_a_large_command_is_estimated(
    tmp_path: Path, commands: int
) -> None:
    tape = Tape(tmp_path / "repository").snapshot()
    start = tape.end
    frames = [FIRST + LARGE[:400], LARGE[400:800], LARGE[800:] + b"".join(LAST)]
    tape.segment(*([(THEN, frame)] for frame in frames))
    length = len(FIRST + LARGE) + sum(map(len, LAST[: commands - 3]))
    job = tape.job(ToOffset(start + length))
    tally = estimate(job)
    assert tally.commands == commands == survey(job, "file").commands
    assert tally.highest_db == 0
