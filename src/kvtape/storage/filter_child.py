"""Making filters in a process of its own, so that recording is not slowed by it.

A filter takes a second of one processor for each million commands. In a thread of the
recorder most of that second would be taken from the loop that receives, since one
thread of Python runs at a time. The child has the lowest priority there is, gets open
files of segments over a socket, and answers with the bytes of filters. It opens
nothing itself, and knows no repository: what becomes of a filter is its parent's to
say. A segment can be deleted as soon as it is open.

It begins with the first segment, ends by itself when it has been idle for a while, and
is begun anew with the next one; its end, also a kill, costs one more try. It ends, too,
when the socket tells that its parent is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from threading import Lock
from typing import BinaryIO

from kvtape.errors import Error
from kvtape.storage.filters import filter_of
from kvtape.tape.names import SegmentName, parse

# In seconds. A recording that stores each 10 s keeps its child.
_IDLE = 60.0

# The way to the segment's name, which is what a request is.
_LONGEST_NAME = 1024

# Whether it went well; the length of the filter, or of the reason, that follows.
_ANSWER = struct.Struct("<?I")

# With the modules of its parent, wherever those are from.
_BEGIN = """
import sys
sys.path[:] = {!r}
from kvtape.storage.filter_child import main
main()
"""


class FilterChildError(Error):
    """No filter was made."""


class FilterChild:
    """Makes filters, one at a time, until close(). Any thread may ask."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._is_closed = False
        self._building = Lock()
        self._changing = Lock()

    def build(self, file: BinaryIO, segment: SegmentName) -> bytes:
        """Return the filter of a segment, of which file is at the start.

        Blocks. FilterChildError if that is not possible.
        """
        with self._building:
            if self._link is not None:
                with suppress(OSError):
                    return self._ask(self._link, file, segment)
            # It was idle for too long, or somebody has killed it.
            self._end()
            try:
                return self._ask(self._begin(), file, segment)
            except OSError as error:
                self._end()
                raise FilterChildError(
                    f"the process that makes key filters ended: {error}"
                ) from None

    def close(self) -> None:
        """End the process, if there is one, also in the middle of a filter."""
        self._is_closed = True
        self._end()

    def _begin(self) -> socket.socket:
        with self._changing:
            if self._is_closed:
                raise ConnectionError("it is not wanted any more")
            ours, theirs = socket.socketpair()
            self._link = ours
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BEGIN.format(sys.path)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    # Ctrl-C on a terminal is for its parent. No session of its own:
                    # Linux may give each an equal share, whatever the priorities.
                    process_group=0,
                )
            return ours

    def _end(self) -> None:
        with self._changing:
            if self._link is not None:
                # Whoever waits for an answer is told.
                with suppress(OSError):
                    self._link.shutdown(socket.SHUT_RDWR)
                self._link.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._link = self._process = None

    def _ask(self, link: socket.socket, file: BinaryIO, segment: SegmentName) -> bytes:
        file.seek(0)
        socket.send_fds(link, [segment.path.encode()], [file.fileno()])
        is_good, length = _ANSWER.unpack(_receive(link, _ANSWER.size))
        content = _receive(link, length)
        if not is_good:
            raise FilterChildError(content.decode())
        return content


def _receive(link: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        piece = link.recv(min(length - len(content), 1024 * 1024))
        if not piece:
            raise ConnectionError("it was killed, or could not begin")
        content += piece
    return bytes(content)


def main() -> None:
    """Be the child: answer what comes over the socket that is the standard input."""
    # A service is often ended by a signal to all its processes; its parent tells when.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A sandbox may forbid either; then it is no worse than without it.
    with suppress(OSError):
        os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        # Less than that, on Linux: only when no one else wants the processor.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with socket.socket(fileno=0) as link, suppress(OSError):
        link.settimeout(_IDLE)
        while answer := _answer(link):
            link.sendall(answer)


def _answer(link: socket.socket) -> bytes | None:
    """Wait for a segment and return what to answer; None at the end."""
    request, descriptors, _, _ = socket.recv_fds(link, _LONGEST_NAME, 1)
    if not request:
        return None
    path = request.decode()
    segment = parse(path)
    assert isinstance(segment, SegmentName), path
    with os.fdopen(descriptors[0], "rb") as file:
        try:
            content = filter_of(file, segment)
        except Exception as error:  # noqa: BLE001 whatever it is, its parent tells it
            reason = f"{path}: {error!r}".encode()
            return _ANSWER.pack(False, len(reason)) + reason
    return _ANSWER.pack(True, len(content)) + content
