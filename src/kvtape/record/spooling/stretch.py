"""Stretches of received bytes, and how they are joined into the frames of a segment.

A stretch ends at a boundary, or is a part of a command or transaction that is longer
than a frame; such a part fills a frame of its own. So every frame ends at a boundary,
or holds no boundary but its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from kvtape.replication.tracker import Summary
from kvtape.tape.segment import MAX_FRAME, Mark

# How finely receipts are stamped, in ms.
MARK_RESOLUTION = 10

# The most marks that a frame's facts can count; beyond it they get coarser.
_MOST_MARKS = 0xFFFF


@dataclass(slots=True)
class Stretch:
    """Received bytes that go into one frame together, and the facts about them.

    If late_since (ms) is not None, any of them may have been written right after it.
    """

    data: bytes
    marks: list[Mark]
    boundary: int
    db: int
    summary: Summary
    late_since: int | None = None


def frames(stretches: list[Stretch]) -> Iterator[Stretch]:
    """Join stretches into as few as fit into frames."""
    joined: list[Stretch] = []
    size = 0
    for stretch in stretches:
        if joined and size + len(stretch.data) > MAX_FRAME:
            yield _join(joined)
            joined, size = [], 0
        joined.append(stretch)
        size += len(stretch.data)
    if joined:
        yield _join(joined)


def _join(stretches: list[Stretch]) -> Stretch:
    summary = Summary()
    for stretch in stretches:
        summary.merge(stretch.summary)
    data = b"".join(stretch.data for stretch in stretches)
    marks = [mark for stretch in stretches for mark in stretch.marks]
    resolution = MARK_RESOLUTION
    while len(thin := _thinned(marks, resolution)) > _MOST_MARKS:
        resolution *= 2
    last = stretches[-1]
    late = [stretch.late_since for stretch in stretches]
    late_since = min((since for since in late if since is not None), default=None)
    return Stretch(data, thin, last.boundary, last.db, summary, late_since)


def _thinned(marks: list[Mark], resolution: int) -> list[Mark]:
    """Leave one mark for what was received within resolution (ms): the last one."""
    thin: list[Mark] = []
    begun = -math.inf
    for mark in marks:
        if mark.time - begun < resolution:
            thin.pop()
        else:
            begun = mark.time
        thin.append(mark)
    return thin
