"""The key filters of segments, written behind the recording.

A filter is made of what was uploaded, from the file in the spool, which is opened
before it is deleted there; so nothing is read back from the repository, and nothing is
left behind by a crash. Making it is left to a child of the lowest priority. The
recording waits for none of this: if filters are made slower than segments are stored,
as after an outage, some are left out. Whoever misses one makes it, so an error is told
and counted, and that is all.

Decided against: making them from the repository, which would download from it all that
is uploaded; and in the queue of the spool, where one that fails would hold up what
matters.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import BinaryIO

import trio

from kvtape.errors import Error
from kvtape.record.events import FiltersFail, tell
from kvtape.signal import Signal
from kvtape.storage.filter_child import FilterChild
from kvtape.storage.repository import SourceFolder
from kvtape.tape.names import FilterName, SegmentName

_log = logging.getLogger(__name__)

# How many times as long as a filter took the next one waits. So filters take a quarter
# of one processor at most, which is enough for 250,000 small commands a second. Without
# it, a recording of a million a second took 1.2 times as long on two processors: even
# what runs only when nothing else does shares the caches with what does.
_REST = 3.0

# How many segments may wait. They are deleted from the spool by then, and take up its
# disk until they are closed: 256 MiB at most, with ordinary ones.
_MOST_WAITING = 4


class FilterWriter:
    """Writes the filters of the segments that it is offered, in order.

    written and failures count filters, left_out the segments that found no room.
    """

    def __init__(self, folder: SourceFolder, child: FilterChild) -> None:
        self.written = 0
        self.failures = 0
        self.left_out = 0
        self._folder = folder
        self._child = child
        self._waiting: deque[tuple[SegmentName, BinaryIO]] = deque()
        self._offered = Signal()
        self._finishing = trio.Event()
        # Of its own: a child that is busy must not take threads from the recording.
        self._thread = trio.CapacityLimiter(1)
        self._trouble = ""

    def offer(self, segment: SegmentName, file: Path) -> None:
        """Take a segment that is stored; its file may be deleted when this returns."""
        if len(self._waiting) >= _MOST_WAITING:
            self.left_out += 1
            return
        try:
            self._waiting.append((segment, file.open("rb")))
        except OSError as error:
            self._note(f"cannot read {file}: {error.strerror or error}")
        self._offered.fire()

    def finish(self) -> None:
        """Have run() write what waits, and return."""
        self._finishing.set()
        self._offered.fire()

    async def run(self) -> None:
        """Write filters until finish(). It can be cancelled at any time."""
        try:
            while True:
                offered = self._offered.next()
                while self._waiting:
                    began = trio.current_time()
                    await self._write(*self._waiting.popleft())
                    with trio.move_on_after(_REST * (trio.current_time() - began)):
                        await self._finishing.wait()
                if self._finishing.is_set():
                    return
                await offered.wait()
        finally:
            for _, file in self._waiting:
                file.close()

    async def _write(self, segment: SegmentName, file: BinaryIO) -> None:
        try:
            await trio.to_thread.run_sync(
                self._make, segment, file, abandon_on_cancel=True, limiter=self._thread
            )
        except Error as error:
            self._note(str(error))
        except Exception as error:  # noqa: BLE001 it is told, and logged
            # Even a bug of ours in here is no reason to stop recording.
            _log.exception("a bug in kvtape")
            self._note(repr(error))
        else:
            self.written += 1
            self._trouble = ""
        finally:
            # Also under a thread that is left alone: the child has it open by itself.
            file.close()

    def _make(self, segment: SegmentName, file: BinaryIO) -> None:
        content = self._child.build(file, segment)
        self._folder.put(FilterName(segment).path, content)

    def _note(self, trouble: str) -> None:
        self.failures += 1
        tell(FiltersFail(trouble, is_repeated=trouble == self._trouble))
        self._trouble = trouble
