"""The local disk, and how far a source is recorded according to what is there.

It must not disturb an agent that records meanwhile: no lock is taken and nothing of the
spool is changed. Its folder may not be there yet; then the nearest one above it that is
stands for its disk.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
import uuid
from dataclasses import replace
from pathlib import Path

from kvtape.check.facts import DiskFacts, Position
from kvtape.errors import RepositoryError
from kvtape.storage.spool import DEFAULT_LIMIT, Spool
from kvtape.storage.store import LocalStore
from kvtape.tape.catalogue import Catalogue
from kvtape.tape.names import SegmentName, parse
from kvtape.tape.segment import NEED_DATA, Frame, Header, Parser, SegmentError

# The median of a few: the first sync of a disk that slept says nothing.
_SYNCS = 5
_BLOCK = bytes(4096)

_PIECE = 1024 * 1024


def disk_facts(folder: Path, limit: int = DEFAULT_LIMIT) -> DiskFacts:
    """Write to the disk of a spool, and measure it. Blocks; leaves nothing behind."""
    try:
        used = sum(LocalStore(folder).list().values())
    except RepositoryError as error:
        return DiskFacts(str(folder), trouble=str(error), limit_bytes=limit)
    return replace(_disk(folder), used_bytes=used, limit_bytes=limit)


def _disk(folder: Path) -> DiskFacts:
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return DiskFacts(str(there), trouble=error.strerror)
    try:
        return DiskFacts(str(there), free, _sync_seconds(there))
    except OSError as error:
        return DiskFacts(str(there), free, trouble=error.strerror)


def _sync_seconds(folder: Path) -> float:
    probe = folder / f".kvtape-check-{uuid.uuid4().hex}"
    took = []
    try:
        with probe.open("xb", buffering=0) as file:
            for _ in range(_SYNCS):
                file.write(_BLOCK)
                began = time.perf_counter()
                os.fsync(file.fileno())
                took.append(time.perf_counter() - began)
    finally:
        probe.unlink(missing_ok=True)
    return statistics.median(took)


def position(catalogue: Catalogue | None, folder: Path) -> Position | None:
    """Return where recording would go on: from the spool, else from what is stored.

    An agent that records meanwhile may be further by now. Blocks.
    """
    if (written := _written(Spool(folder).segment_file)) is not None:
        return written
    replid = None if catalogue is None else catalogue.newest_history()
    end = None if catalogue is None or replid is None else catalogue.end(replid)
    if replid is None or end is None:
        return None
    queued = [
        name.end
        for name in map(parse, Spool(folder).queued())
        if isinstance(name, SegmentName) and name.replid == replid
    ]
    return Position(replid, max([end, *queued]))


def _written(segment: Path) -> Position | None:
    """Return where a segment that is being written ends; its last frame may be torn."""
    parser, found = Parser(), None
    try:
        with segment.open("rb") as file:
            while piece := file.read(_PIECE):
                parser.receive_data(piece)
                while (part := parser.next_part()) is not NEED_DATA:
                    if isinstance(part, Header):
                        found = Position(part.replid, part.start)
                    elif isinstance(part, Frame) and found is not None:
                        found = Position(found.replid, part.facts.end)
    except FileNotFoundError:
        return None
    except SegmentError:
        # As after a crash: what is before the damage counts.
        return found
    return found
