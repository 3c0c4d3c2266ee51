"""What failovers lost, without what the story holds all the same.

A history's document names the last offset that it shares with its parent, as the server
said it. A promoted server knows that. A replica that followed it later, and had less,
names where it stood itself; both histories go on alike behind that, up to the fork.
What is the same there, byte for byte, was not lost. So the bytes are read until they
differ, which behind a true fork is at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from kvtape.errors import PointError, VerificationError
from kvtape.storage.reader import differ_at, find_boundary, read_stream
from kvtape.storage.repository import SourceFolder
from kvtape.tape.catalogue import Catalogue, Slice, clip
from kvtape.tape.orphans import Orphan, orphans


def lost(folder: SourceFolder, catalogue: Catalogue) -> list[Orphan]:
    """Return everything recorded that went lost, as it was forked. Blocks."""
    found = []
    for orphan in orphans(catalogue):
        try:
            left = _without_shared(folder, orphan)
        except (PointError, VerificationError):
            left = orphan  # what is damaged cannot be compared
        if left is not None:
            found.append(left)
    return found


def _without_shared(folder: SourceFolder, orphan: Orphan) -> Orphan | None:
    differs = _first_difference(folder, orphan)
    if differs == orphan.start:
        return orphan
    slices = clip(orphan.slices, differs, orphan.end)
    if not slices:
        return None
    if slices[0].start == differs and differs > slices[0].segment.start:
        start = find_boundary(folder, slices[0].segment, differs).offset
        slices = clip(orphan.slices, start, orphan.end)
    return replace(orphan, slices=slices, fork=max(orphan.fork, slices[0].start))


def _first_difference(folder: SourceFolder, orphan: Orphan) -> int:
    """Return where what is orphaned and the story differ first, or one of them ends."""
    at = orphan.start
    ours, others = (
        _bytes(folder, slices, at) for slices in (orphan.slices, orphan.story)
    )
    return differ_at(ours, others, at)


def _bytes(folder: SourceFolder, slices: Iterable[Slice], at: int) -> Iterator[bytes]:
    """Yield the bytes from an offset on, up to the first hole."""
    for piece in read_stream(folder, slices):
        if piece.start != at:
            return
        yield piece.data
        at = piece.end
