"""A value's story goes back over the names that it had, and over no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recording import Tape
from verbs import kvtape

Words = tuple[str | int, ...]


def story(folder: Path, *commands: Words) -> list[str]:
    """Return the story of x in database 0, after these commands in database 0."""
    Tape(folder).snapshot().commands(("SELECT", 0), *commands)
    outcome = kvtape("history", "x", "--repo", folder, "--json")
    assert outcome.status == 0
    documents = [json.loads(line) for line in outcome.out.splitlines()]
    return [
        " ".join(document["command"])
        for document in documents
        if "snapshot" not in document
    ]


@pytest.mark.parametrize(
    "commands",
    [
        # How the value came to its last name but one is part of it.
        ["SET a 1", "COPY a b", "RENAME b x"],
        ["SET a 1", "COPY a b", "SET b 2", "COPY b x"],
        ["SET a 1", "RENAME a b", "RENAME b c", "RENAME c x"],
        ["SET a 1", "COPY a x DB 1", "SWAPDB 0 1"],
        ["SET x 1", "SWAPDB 0 1", "SWAPDB 1 2", "SWAPDB 2 3", "SWAPDB 3 0"],
        ["SET a 1", "MOVE a 1", "SWAPDB 0 1", "RENAME a x"],
    ],
)
def test_every_way_that_a_value_came_by_is_told(
    tmp_path: Path, commands: list[str]
) -> None:
    assert story(tmp_path, *(tuple(each.split()) for each in commands)) == commands


@pytest.mark.parametrize(
    ("others", "commands"),
    [
        # What was there before a value came is of another story.
        (["SET a 1", "RENAME a b"], ["SET c 1", "RENAME c b", "RENAME b x"]),
        (["SET a 1", "COPY a b"], ["SET c 1", "COPY c b REPLACE", "COPY b x"]),
        # And what the other value of a swap was, which goes the other way.
        (
            ["SELECT 2", "SET x 2", "SELECT 1"],
            ["SET x 1", "SWAPDB 1 2", "SWAPDB 2 0"],
        ),
    ],
)
def test_what_happened_to_another_value_of_such_a_name_is_not(
    tmp_path: Path, others: list[str], commands: list[str]
) -> None:
    words = [tuple(each.split()) for each in [*others, *commands]]
    assert story(tmp_path, *words) == commands
