"""A network that misbehaves: a TCP proxy whose links can be cut, stopped and slowed.

It hides sockets and threads. A stopped proxy keeps its links open and says nothing,
like a host that lost its power; one that is gone refuses, like a host whose program
ended. Links that a fault finds standing are hit as well as new ones.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

_PIECE: Final = 16 * 1024
_POLL: Final = 0.05


class Proxy:
    """Listens on a free port of 127.0.0.1, and passes on to another one.

    target may be changed; links that stand stay with the old one until cut().
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._is_stopped = False
        self._bytes_per_second: int | None = None
        self._links: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._listener: socket.socket | None = None
        self.port = 0
        self.come_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Break all links that stand; new ones are welcome."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def go(self) -> None:
        """Break all links and refuse new ones, until come_back()."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone would not wake the thread that accepts.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def come_back(self) -> None:
        """Listen again, on the same port."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self.port = self._listener.getsockname()[1]
            self._start(self._accept, self._listener)

    def stop(self) -> None:
        """Pass nothing on any more, and break nothing, until heal()."""
        self._is_stopped = True

    def slow_down(self, bytes_per_second: int) -> None:
        """Pass on this much each second over each link and direction, until heal()."""
        self._bytes_per_second = bytes_per_second

    def heal(self) -> None:
        """Be a network as it should be."""
        self._is_stopped = False
        self._bytes_per_second = None
        self.come_back()

    def close(self) -> None:
        """End everything."""
        self._is_closed = True
        self.go()

    def _start(self, work: object, *arguments: object) -> None:
        assert callable(work)
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._links |= {near, far}
            self._start(self._pass_on, near, far)
            self._start(self._pass_on, far, near)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_PIECE):
                while self._is_stopped and not self._is_closed:
                    time.sleep(_POLL)
                sink.sendall(data)
                if self._bytes_per_second:
                    time.sleep(len(data) / self._bytes_per_second)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._links -= {source, sink}
        # Both directions come here; closing twice harms nobody.
        source.close()
        sink.close()
