"""The log is lines for people or objects for machines, and never holds a secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import trio

from kvtape.cli.logs import set_up_logging
from kvtape.record.events import (
    Event,
    GapFound,
    LinkLost,
    current_source,
    tell,
    tell_to,
)
from kvtape.record.journal import Journal
from verbs import kvtape

GAP = GapFound("a" * 40, 1, None, 1000, 3000, "it was restarted")


@pytest.fixture(autouse=True)
def _undo() -> Iterator[None]:
    logger = logging.getLogger("kvtape")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def told(
    capsys: pytest.CaptureFixture[str], *, as_json: bool = False, named: bool = False
) -> list[str]:
    """Return what is logged of a gap, one that is told twice, and a plain line."""
    set_up_logging(
        None,
        verbose=False,
        as_json=as_json,
        source_of=current_source,
        named=named,
    )

    async def main() -> None:
        tell_to(Journal("shop"))
        await trio.to_thread.run_sync(tell, GAP)
        tell(LinkLost("refused", 1.0))
        tell(LinkLost("refused", 2.0, is_repeated=True))
        try:
            int("no number")
        except ValueError:
            logging.getLogger("kvtape.x").exception("a bug in %s", "kvtape")

    trio.run(main)
    return capsys.readouterr().err.splitlines()


def test_an_event_is_an_object_with_its_fields_and_its_source(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gap, lost, bug = map(json.loads, told(capsys, as_json=True))
    assert gap.pop("time").endswith("Z")
    assert gap == {
        "level": "error",
        "source": "shop",
        "event": "gap",
        "message": str(GAP),
        "replid": "a" * 40,
        "start_offset": 1,
        "end_offset": None,
        "start_time": 1000,
        "end_time": 3000,
        "reason": "it was restarted",
    }
    assert (lost["event"], lost["level"], lost["wait"]) == ("link-lost", "warning", 1.0)
    assert (bug["event"], bug["message"]) == ("log", "a bug in kvtape")
    assert "ValueError" in bug["traceback"]


@pytest.mark.parametrize("named", [False, True])
def test_a_line_names_its_source_where_there_are_several(
    capsys: pytest.CaptureFixture[str], *, named: bool
) -> None:
    gap, lost, *_ = told(capsys, named=named)
    assert gap.endswith(("shop: " if named else "ERROR ") + str(GAP))
    assert "refused; connecting again in 1.0 s" in lost


def test_no_field_of_an_event_stands_in_the_way_of_those_of_a_line() -> None:
    taken = {"level", "source", "event", "message", "traceback"}
    for kind in get_args(Event):
        assert not taken & {field.name for field in fields(kind)}


def test_the_last_line_of_a_log_of_objects_is_one_too(tmp_path: Path) -> None:
    where = ("--repo", tmp_path / "repo", "--spool", tmp_path / "spool")
    outcome = kvtape("record", "redis://127.0.0.1:1", *where, "--log-format", "json")
    assert outcome.status == 8
    last = json.loads(outcome.err.splitlines()[-1])
    assert (last["level"], last["event"]) == ("critical", "log")
    assert "cannot connect to 127.0.0.1:1" in last["message"]
