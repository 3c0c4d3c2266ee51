"""What failovers lost: bytes of a history that the story did not go on from.

Histories that fork from each other make a tree. One of its branches is the story that
went on: the lineage of the history of which something was received last. What was
recorded of the others behind the fork is orphaned: clients were told that it is
written, and no server has it any more. A branch that forked from an orphaned end is
orphaned as a whole; that there is more of it makes it no part of the story.

A full resync without a known parent begins a tree of its own. What the server before it
had that this one lacks cannot be told: that is Unknown, not nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtape.tape.catalogue import Catalogue, Part, Slice
from kvtape.tape.documents import History


@dataclass(frozen=True, slots=True)
class Orphan:
    """The stream bytes [start, end) of replid that went lost.

    The story parted from it at start, and went on as successor, which began at time
    (ms). slices are what is stored of these bytes; runs of them may have holes between.
    """

    replid: str
    start: int
    end: int
    successor: str
    time: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A full resync after which nobody knows what was lost.

    replid is the history before it, where a gap tells; successor began at time (ms).
    """

    replid: str | None
    successor: str
    time: int


def orphans(catalogue: Catalogue) -> list[Orphan]:
    """Return everything recorded that went lost, in the order of the forks."""
    found = []
    for family in _families(catalogue):
        survivor = max(family, key=lambda replid: _recency(catalogue, replid))
        lineage = catalogue.lineage(survivor)
        for replid in family:
            orphan = _orphan(catalogue, lineage, catalogue.lineage(replid))
            if orphan is not None:
                found.append(orphan)
    return sorted(found, key=lambda orphan: (orphan.time, orphan.start))


def unknown(catalogue: Catalogue) -> list[Unknown]:
    """Return the full resyncs of which it is not known what they lost."""
    return [
        Unknown(_before(catalogue, history), history.replid, history.created)
        for history in catalogue.histories.values()
        if history.reason == "full-resync" and history.parent is None
    ]


def _before(catalogue: Catalogue, history: History) -> str | None:
    # A gap that no offset ends has the time of the snapshot behind it.
    for gap in catalogue.gaps:
        if gap.end_offset is None and gap.end_time == history.created:
            return gap.replid
    return None


def _families(catalogue: Catalogue) -> list[list[str]]:
    families: dict[str, list[str]] = {}
    for replid in catalogue.histories:
        root = catalogue.lineage(replid)[0].replid
        families.setdefault(root, []).append(replid)
    return list(families.values())


def _recency(catalogue: Catalogue, replid: str) -> tuple[int, int]:
    """Return when the last of a history was received, and how deep it is.

    One that forked, and of which no byte is stored yet, is as recent as its parent.
    """
    lineage = catalogue.lineage(replid)
    for part in reversed(lineage):
        if catalogue.end(part.replid) is not None:
            return catalogue.last_time(part.replid)[0], len(lineage)
        if catalogue.histories[part.replid].reason != "failover":
            break
    return -1, len(lineage)


def _orphan(
    catalogue: Catalogue, story: tuple[Part, ...], lineage: tuple[Part, ...]
) -> Orphan | None:
    """Return what of the last history of a lineage is no part of the story."""
    replid = lineage[-1].replid
    told = {part.replid: part.end for part in story}
    # The nearest ancestor that the story came by, and up to where it did.
    common = next(part for part in reversed(lineage) if part.replid in told)
    ends = [end for end in (told[common.replid], common.end) if end is not None]
    if not ends:
        return None  # the story leads here
    left = start = min(ends)
    if replid != common.replid:
        # What it shares with its parent is the parent's, as far as that has it.
        parent, fork = lineage[-2].replid, lineage[-1].start or 0
        start = max(start, min(fork, catalogue.end(parent) or 0))
    slices = catalogue.bytes_behind(replid, start)
    if not slices:
        return None
    successor = next(p.replid for p in story if p.end is None or p.end > left)
    time = catalogue.histories[successor].created
    return Orphan(replid, start, slices[-1].end, successor, time, slices)
