"""What failovers lost: bytes of a history that the story did not go on from.

Histories that fork from each other make a tree. One of its branches is the story that
went on: the lineage of the history of which something was received last. What was
recorded of the others behind the fork is orphaned: clients were told that it is
written, and no server has it any more. A branch that forked from an orphaned end is
orphaned as a whole: that somebody wrote on there makes it no part of the story.

A full resync without a known parent begins a tree of its own. What the server before it
had that this one lacks cannot be told: that is Unknown, not nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from kvtape.tape.catalogue import Catalogue, Part, Slice, clip
from kvtape.tape.documents import History

Span: TypeAlias = tuple[int, int]

_FAR = 2**63


@dataclass(frozen=True, slots=True)
class Orphan:
    """Stream bytes recorded under replid that went lost.

    The story parted from them at fork, and went on as successor, which began at time
    (ms). slices are what is stored of them, in order; there may be holes between. story
    is what it holds at the same offsets.
    """

    replid: str
    fork: int
    successor: str
    time: int
    slices: tuple[Slice, ...]
    story: tuple[Slice, ...] = ()

    @property
    def start(self) -> int:
        """The offset before the first byte."""
        return self.slices[0].start

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.slices[-1].end


@dataclass(frozen=True, slots=True)
class Unknown:
    """A full resync after which nobody knows what was lost.

    replid is the history before it, where a gap tells; successor began at time (ms).
    """

    replid: str | None
    successor: str
    time: int


def orphans(catalogue: Catalogue) -> list[Orphan]:
    """Return everything recorded that went lost, each byte once, as it was forked."""
    found = []
    for family in _families(catalogue):
        story = _story(catalogue, family)
        # What is accounted for of each history: first of all what the story came by.
        told: dict[str, list[Span]] = {
            part.replid: [(part.start or 0, _FAR if part.end is None else part.end)]
            for part in story
        }
        lineages = [catalogue.lineage(replid) for replid in family]
        for lineage in sorted(lineages, key=len):
            slices = _untold(catalogue, lineage, told)
            if slices:
                found.append(_orphan(catalogue, story, lineage, slices))
    return sorted(found, key=lambda orphan: (orphan.time, orphan.fork))


def stories(catalogue: Catalogue) -> list[tuple[Part, ...]]:
    """Return what went on: the story of each tree, the oldest first.

    Between two of them lies a full resync that nobody knows the parent of.
    """
    return [_story(catalogue, family) for family in _families(catalogue)]


def unknown(catalogue: Catalogue) -> list[Unknown]:
    """Return the full resyncs of which it is not known what they lost."""
    return [
        Unknown(_before(catalogue, history), history.replid, history.created)
        for history in catalogue.histories.values()
        # One without anything stored is a full resync that did not come to its end.
        if history.reason == "full-resync"
        and history.parent is None
        and catalogue.end(history.replid) is not None
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


def _story(catalogue: Catalogue, family: list[str]) -> tuple[Part, ...]:
    survivor = max(family, key=lambda replid: _recency(catalogue, replid))
    return catalogue.lineage(survivor)


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


def _untold(
    catalogue: Catalogue, lineage: tuple[Part, ...], told: dict[str, list[Span]]
) -> tuple[Slice, ...]:
    """Return what is stored under the last of a lineage and not told; note it as told.

    Bytes from before its fork are those of an ancestor, and told if they are of that.
    """
    stored = catalogue.bytes_behind(lineage[-1].replid, 0)
    found: list[Slice] = []
    for part in lineage:
        spans = told.setdefault(part.replid, [])
        slices = clip(stored, part.start or 0, _FAR if part.end is None else part.end)
        for start, end in spans:
            slices = clip(slices, 0, start) + clip(slices, end, _FAR)
        spans += [(slice_.start, slice_.end) for slice_ in slices]
        found += slices
    return tuple(sorted(found, key=lambda slice_: slice_.start))


def _orphan(
    catalogue: Catalogue,
    story: tuple[Part, ...],
    lineage: tuple[Part, ...],
    slices: tuple[Slice, ...],
) -> Orphan:
    ends = {part.replid: part.end for part in story}
    # The nearest ancestor that the story came by, and up to where both went with it.
    common = next(part for part in reversed(lineage) if part.replid in ends)
    shared = [end for end in (ends[common.replid], common.end) if end is not None]
    fork = min(shared, default=slices[0].start)
    successor = next(p.replid for p in story if p.end is None or p.end > fork)
    time = catalogue.histories[successor].created
    same = catalogue.bytes_of(story, slices[0].start, slices[-1].end)
    return Orphan(lineage[-1].replid, fork, successor, time, slices, same)
