"""The story that history tells of a key is what was really done to it, and by whom."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from chronicle import (
    Chronicle,
    Document,
    as_bytes,
    chronicle,
    history,
    least_ahead,
    must_be_told,
)
from deeds import Place
from stories import Stories, Story, alive_before

_KEYS: Final = 100

pytestmark = pytest.mark.slow


def begins_rightly(told: Document, place: Place, early: dict[Place, bool]) -> bool:
    """Whether what the snapshot has of a key is what was there."""
    assert (told["db"], as_bytes(told["key"])) == place
    has_ttl = early.get(place)
    if has_ttl is None:
        return told["snapshot"] is None
    if told["snapshot"] is None:
        return has_ttl  # it may have expired before
    return has_ttl or told["snapshot"]["expires"] is None


def faults(
    told: dict[int, Document], story: Story, recorded: set[int]
) -> list[tuple[str, object]]:
    """Return what is wrong with a story, by the numbers of what was written."""
    needed = story.needed & recorded
    found: list[tuple[str, object]] = [
        ("is missing", needed - told.keys()),
        ("is of another story", told.keys() - needed - story.possible),
    ]
    found += [
        (f"{told[number].get('cause')} instead of {set(death.causes)}", {number})
        for number, death in story.deaths.items()
        if number in told and told[number].get("cause") not in death.causes
    ]
    return [(fault, numbers) for fault, numbers in found if numbers]


def check(made: Chronicle, keys: int) -> Counter[str]:
    """Check the stories of keys; return the causes that were told of expirations."""
    stories = Stories(made.written, made.name == "redis-6.2")
    numbers = {
        one.row.start: number
        for number, one in enumerate(made.written)
        if one.row is not None
    }
    early = dict(alive_before(made.written))
    causes: Counter[str] = Counter()
    ahead = least_ahead(made.repository)
    for place in random.Random(made.name).sample(sorted(stories.of), keys):
        lines = history(made.repository, place)
        snapshots = [line for line in lines if "snapshot" in line]
        [own] = [
            line for line in snapshots if (line["db"], as_bytes(line["key"])) == place
        ]
        assert lines[: len(snapshots)] == snapshots
        assert begins_rightly(own, place, early), (place, own)
        told = {numbers[line["start_offset"]]: line for line in lines[len(snapshots) :]}
        assert list(told) == sorted(told)
        assert len(told) + len(snapshots) == len(lines)
        story = stories.of[place]
        assert not faults(told, story, set(numbers.values())), (place, told)
        for number, death in story.deaths.items():
            if death.is_expiry and number in told:
                causes[told[number]["cause"]] += 1
                assert must_be_told(told[number], ahead) <= (
                    told[number]["cause"] == "expired"
                )
    return causes


def test_the_story_of_a_key_is_what_was_done_to_it(
    server_name: str, tmp_path: Path
) -> None:
    causes = check(chronicle(server_name, tmp_path), _KEYS)
    # How many is the machine's affair: nine of ten, if it does nothing else.
    assert causes.total() > 5
    assert causes["expired"] > 0
